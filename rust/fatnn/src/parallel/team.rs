//! The threads of one run: the calling thread, and helpers that take part in its loops.
//!
//! A network has a loop every few microseconds. Waking a sleeping thread takes as long as such a
//! loop, so helpers wait actively between the loops of a run, and sleep only if none comes. The
//! calling thread works, too: if it slept meanwhile, the scheduler would often put two awake
//! workers on one CPU, because the other one was still busy with the caller when it chose.
//!
//! A helper that comes late, because its CPU is busy, never delays a loop: the calling thread takes
//! all of the work that is left and closes the loop.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::helpers::Helpers;

/// Checks of a waiting thread with only a pause between them: a few microseconds.
const SPINS: usize = 200;

/// Further checks that let other threads run: about 0.1 ms if none wants to.
const YIELDS: usize = 300;

/// A loop's work, which every thread of the team calls once.
type Work = dyn Fn() + Sync;

/// See the module's documentation. Dropping it sends the helpers away.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Arc<Helpers>,
    /// The calling thread and the helpers.
    threads: usize,
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

// SAFETY: `work` is written by the calling thread only while no loop is open and no helper is
// inside, and helpers read it only between entering an open loop and leaving it (`enter`). The
// pointer's target is `Sync`, so every thread may call it.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only used while its target is borrowed by `Team::run`.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads`, at least 2, whose helpers are asked at its first loop.
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
        Team { shared, helpers, threads }
    }

    /// Calls `work` on this thread and, at the same time, on every helper that is free. Returns
    /// when all of these calls have returned. Must not be called by `work` itself.
    pub fn run(&mut self, work: &(dyn Fn() + Sync)) {
        let shared = &*self.shared;
        let epoch = shared.epoch.load(Ordering::Relaxed);
        debug_assert_eq!(epoch % 2, 0);
        // SAFETY: only the lifetime changes. Helpers use the pointer only inside an open loop, and
        // this function does not return, nor unwind, before `CloseLoop` has closed the loop and
        // all helpers have left it.
        let work_pointer =
            unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const Work>(work) };
        // SAFETY: no loop is open, and `CloseLoop` of the last one waited until no helper was
        // inside, so nobody reads this now.
        unsafe { *shared.work.get() = Some(work_pointer) };
        shared.epoch.store(epoch.wrapping_add(1), Ordering::SeqCst);
        let close = CloseLoop(shared);
        if epoch == 0 {
            let shared = self.shared.clone();
            self.helpers.join_team(self.threads - 1, move || shared.help());
        } else if shared.sleepers.load(Ordering::SeqCst) > 0 {
            shared.wake_all();
        }
        work();
        drop(close);
        let panicked = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if self.shared.epoch.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.helpers.leave_team();
        self.shared.finished.store(true, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.shared.wake_all();
        }
    }
}

/// Closes the loop and waits until every helper has left it, even if the work panics.
struct CloseLoop<'a>(&'a Shared);

impl Drop for CloseLoop<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        // A helper counts itself in and then reads the epoch; here the order is the opposite. In
        // the single order of these four operations, either this thread sees the helper, or the
        // helper sees that the loop is closed.
        let open = shared.epoch.load(Ordering::Relaxed);
        shared.epoch.store(open.wrapping_add(1), Ordering::SeqCst);
        let mut checks = 0;
        while shared.inside.load(Ordering::SeqCst) != 0 {
            pause(&mut checks);
        }
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
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
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
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
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
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}
