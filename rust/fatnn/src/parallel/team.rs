//! The threads of one run: the calling thread, and helpers that take part in its loops.
//!
//! A network has a loop every few microseconds. Waking a sleeping thread takes as long as such a
//! loop, so helpers wait actively between the loops of a run, and sleep only if none comes. The
//! calling thread works, too: if it slept meanwhile, the scheduler would often put two awake
//! workers on one CPU, because the other one was still busy with the caller when it chose.
//!
//! A loop waits only for helpers that have entered it. A helper that comes late, because its CPU is
//! busy, finds the loop closed, and the other threads have done its share.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::helpers::Helpers;
use super::lock;

/// Checks of a waiting thread with only a pause between them: a few microseconds.
const SPINS: usize = 200;

/// Further checks that let other threads run: about 0.1 ms if none wants to.
const YIELDS: usize = 300;

/// Time between the caller's later checks.
const NAP: Duration = Duration::from_micros(100);

/// A loop's work, which every thread of the team calls once.
type Work = dyn Fn() + Sync;

/// See the module's documentation. Dropping it sends the helpers away.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Arc<Helpers>,
    /// The process that made the team. A child that a fork makes does not have the helpers.
    process: u32,
    /// The calling thread and the helpers that may join.
    threads: usize,
    /// Helpers that were asked to join.
    asked: usize,
    /// Whether [`Helpers::count_team`] was called.
    counted: bool,
}

struct Shared {
    /// The number of times that a loop was opened or closed: odd while one is open. Only the
    /// calling thread writes it.
    epoch: AtomicUsize,
    /// Helpers that may be reading or calling `work`.
    inside: AtomicUsize,
    /// The open loop's work.
    work: UnsafeCell<Option<*const Work>>,
    finished: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Of a helper's work; the calling thread passes it on.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the calling thread writes `work` only while no loop is open. A helper reads it only in
// `enter`, between counting itself `inside` and uncounting, and only if the epoch is still that of
// the loop that it enters; `CloseLoop` waits for such helpers. The pointer's target is `Sync`, so
// every thread may call it.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only used while its target is borrowed by `Team::run`.
unsafe impl Send for Shared {}

/// The process forked while a loop was open, so the helpers' part of it is lost.
pub(super) struct Forked;

impl Team {
    /// A team of `threads`, at least 2.
    pub fn new(threads: usize, helpers: Arc<Helpers>) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            finished: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        Team { shared, helpers, process: process::id(), threads, asked: 0, counted: false }
    }

    /// Whether no fork has separated this process from the helpers.
    pub fn is_of_this_process(&self) -> bool {
        self.process == process::id()
    }

    /// Calls `work` on this thread and, at the same time, on helpers that are free; asks for more
    /// helpers if there are not enough for `threads` threads. Returns when all of these calls have
    /// returned. If it has to wait long for helpers, it calls `poll` at times. Must not be called
    /// by `work` itself.
    pub fn run(
        &mut self,
        threads: usize,
        work: &(dyn Fn() + Sync),
        poll: &dyn Fn(),
    ) -> Result<(), Forked> {
        let shared = &*self.shared;
        let epoch = shared.epoch.load(Ordering::Relaxed);
        debug_assert_eq!(epoch % 2, 0);
        let work_pointer: *const (dyn Fn() + Sync + '_) = work;
        // SAFETY: only the lifetime changes. Helpers use the pointer only inside an open loop, and
        // this function does not return, nor unwind, before `CloseLoop` has closed the loop and
        // all helpers have left it.
        let work_pointer = unsafe {
            std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const Work>(work_pointer)
        };
        // SAFETY: no loop is open. A helper that is still on its way into an earlier loop finds
        // another epoch and does not read this.
        unsafe { *shared.work.get() = Some(work_pointer) };
        shared.epoch.store(epoch.wrapping_add(1), Ordering::SeqCst);
        let mut close = CloseLoop { shared, process: self.process, open: true };
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            shared.wake_all();
        }
        let wanted = threads.min(self.threads) - 1;
        if self.asked < wanted {
            let shared = self.shared.clone();
            if !std::mem::replace(&mut self.counted, true) {
                self.helpers.count_team();
            }
            self.asked += self.helpers.ask(wanted - self.asked, move || shared.help());
        }
        work();
        close.finish(poll)?;
        let panicked = lock(&shared.panic).take();
        match panicked {
            Some(panic) => resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            // Their locks may be held by threads that this process does not have.
            std::mem::forget(self.helpers.clone());
            return;
        }
        if !self.counted {
            return;
        }
        self.helpers.uncount_team();
        self.shared.finished.store(true, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.shared.wake_all();
        }
    }
}

/// Closes the loop and waits until every helper has left it, also if the work panics.
struct CloseLoop<'a> {
    shared: &'a Shared,
    process: u32,
    open: bool,
}

impl CloseLoop<'_> {
    fn finish(&mut self, poll: &dyn Fn()) -> Result<(), Forked> {
        let shared = self.shared;
        if self.open {
            // A helper counts itself in and then reads the epoch; here the order is the opposite.
            // In the single order of these four operations, either this thread sees the helper, or
            // the helper sees that the loop is closed.
            let open = shared.epoch.load(Ordering::Relaxed);
            shared.epoch.store(open.wrapping_add(1), Ordering::SeqCst);
            self.open = false;
        }
        let mut checks = 0;
        while shared.inside.load(Ordering::SeqCst) != 0 {
            if checks < SPINS + YIELDS {
                pause(&mut checks);
                continue;
            }
            if self.process != process::id() {
                return Err(Forked);
            }
            poll();
            thread::sleep(NAP);
        }
        Ok(())
    }
}

impl Drop for CloseLoop<'_> {
    fn drop(&mut self) {
        // After a fork, no helper is left that could use the work.
        let _ = self.finish(&|| ());
    }
}

/// Waits for a moment. The first [`SPINS`] times, the thread keeps its CPU.
fn pause(checks: &mut usize) {
    if *checks < SPINS {
        spin_loop();
    } else {
        thread::yield_now();
    }
    *checks += 1;
}

impl Shared {
    /// A helper's part of the run.
    fn help(&self) {
        let mut last = 0;
        while let Some(open) = self.wait_for_loop(last) {
            self.enter(open);
            last = open;
        }
    }

    /// Calls the work of the loop that was opened as `open`, unless it is closed by now.
    fn enter(&self, open: usize) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        if self.epoch.load(Ordering::SeqCst) == open {
            // SAFETY: the loop is open, and this thread is counted inside, so `work` is neither
            // written nor ends its borrow before this thread leaves.
            let work = unsafe { (*self.work.get()).map(|work| &*work) };
            if let Some(work) = work
                && let Err(panic) = catch_unwind(AssertUnwindSafe(work))
            {
                *lock(&self.panic) = Some(panic);
            }
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits for an open loop other than `last`; `None` if the run ends.
    fn wait_for_loop(&self, last: usize) -> Option<usize> {
        let next = || {
            let epoch = self.epoch.load(Ordering::SeqCst);
            (epoch % 2 == 1 && epoch != last).then_some(epoch)
        };
        let finished = || self.finished.load(Ordering::SeqCst);
        let mut checks = 0;
        while checks < SPINS + YIELDS {
            if finished() {
                return None;
            }
            if let Some(open) = next() {
                return Some(open);
            }
            pause(&mut checks);
        }
        let mut guard = lock(&self.sleep);
        // Counted before the epoch is read, and `run` reads the count after it wrote the epoch, so
        // one of them sees the other.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if finished() {
                break None;
            }
            if let Some(open) = next() {
                break Some(open);
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    fn wake_all(&self) {
        drop(lock(&self.sleep));
        self.wake.notify_all();
    }
}
