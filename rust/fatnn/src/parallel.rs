//! Threads: one private pool for the whole process. Only this module uses rayon.
//!
//! The pool's size is what [`set_num_threads`] set last, else `FATNN_NUM_THREADS`, else what
//! [`set_default_threads`] set last (the host framework's number), else the number of CPUs that
//! this process may use.
//!
//! Work is split by output rows. A row is computed in the same way on every thread, so results do
//! not depend on the number of threads. Pool threads use the caller's rounding mode and denormal
//! flushing (`kernels::float_mode`).
//!
//! Threads do not survive a `fork`, so the child builds a new pool. As with every library that has
//! locks, only fork while no other thread is inside a call.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::config;
pub use crate::config::MAX_THREADS;
use crate::error::{Error, Result, bad_value};
use crate::kernels::FloatMode;

struct State {
    /// From [`set_num_threads`]; `None` until then.
    requested: Option<usize>,
    /// From [`set_default_threads`]; `None` until then.
    default: Option<usize>,
    pool: Option<(u32, usize, Arc<rayon::ThreadPool>)>,
}

static STATE: Mutex<State> = Mutex::new(State { requested: None, default: None, pool: None });

/// Sets the number of threads of later calls.
///
/// # Errors
/// [`Error::Value`] if `threads` is 0 or above [`MAX_THREADS`].
pub fn set_num_threads(threads: usize) -> Result<()> {
    state().requested = Some(check_num_threads(threads)?);
    Ok(())
}

/// Sets the number of threads of later calls if neither [`set_num_threads`] nor `FATNN_NUM_THREADS`
/// does. Meant for a host that has a setting of its own.
///
/// # Errors
/// As [`set_num_threads`].
pub fn set_default_threads(threads: usize) -> Result<()> {
    state().default = Some(check_num_threads(threads)?);
    Ok(())
}

fn check_num_threads(threads: usize) -> Result<usize> {
    match threads {
        1..=MAX_THREADS => Ok(threads),
        _ => bad_value(
            "number of threads",
            format!("a whole number from 1 to {MAX_THREADS}"),
            threads,
        ),
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of threads that calls use now.
///
/// # Errors
/// [`Error::Environment`] if `FATNN_NUM_THREADS` has an invalid value.
pub fn num_threads() -> Result<usize> {
    resolve_num_threads(&state())
}

fn resolve_num_threads(state: &State) -> Result<usize> {
    if let Some(n) = state.requested {
        return Ok(n);
    }
    if let Some(n) = config::get()?.threads.or(state.default) {
        return Ok(n);
    }
    // Asked once, because the standard library reads it from several files.
    static CPUS: OnceLock<usize> = OnceLock::new();
    Ok(*CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)))
}

/// The number of threads, and the pool if there is more than one thread.
fn pool() -> Result<(usize, Option<Arc<rayon::ThreadPool>>)> {
    let process = std::process::id();
    let threads = {
        let state = state();
        let threads = resolve_num_threads(&state)?;
        if threads == 1 {
            return Ok((1, None));
        }
        if let Some((owner, size, pool)) = &state.pool
            && *owner == process
            && *size == threads
        {
            return Ok((threads, Some(pool.clone())));
        }
        threads
    };
    // Built without holding the lock: a fork at this moment would leave it locked in the child.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("fatnn-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads, why: e.to_string() })?;
    let pool = Arc::new(pool);
    let old = state().pool.replace((process, threads, pool.clone()));
    if let Some((owner, _, old)) = old
        && owner != process
    {
        // The old pool's threads did not survive the fork, so joining them would never return.
        std::mem::forget(old);
    }
    Ok((threads, Some(pool)))
}

/// Lets the caller of a run stop it. Only the calling thread calls `go_on`, at most every
/// [`Cancellation::INTERVAL`]: while it waits for pool threads, and in [`Cancellation::check`].
pub(crate) struct Cancellation<'a> {
    go_on: Option<&'a (dyn Fn() -> bool + Sync)>,
    caller: ThreadId,
    asked: Mutex<Instant>,
    stopped: AtomicBool,
}

impl<'a> Cancellation<'a> {
    const INTERVAL: Duration = Duration::from_millis(50);

    /// For a run that the current thread starts. With `None` the run cannot be stopped.
    pub fn new(go_on: Option<&'a (dyn Fn() -> bool + Sync)>) -> Self {
        let (asked, stopped) = (Mutex::new(Instant::now()), AtomicBool::new(false));
        Cancellation { go_on, caller: thread::current().id(), asked, stopped }
    }

    pub fn none() -> Self {
        Cancellation::new(None)
    }

    /// Called between the parts of a run.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the caller stopped the run.
    pub fn check(&self) -> Result<()> {
        let Some(go_on) = self.go_on else { return Ok(()) };
        if thread::current().id() == self.caller {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.elapsed() >= Self::INTERVAL {
                *asked = Instant::now();
                drop(asked);
                self.poll(go_on);
            }
        }
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    fn poll(&self, go_on: &(dyn Fn() -> bool + Sync)) {
        if !go_on() {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Calls `work` on a pool thread, in the caller's floating-point mode. The calling thread
    /// polls meanwhile.
    fn install<R: Send>(
        &self,
        pool: &rayon::ThreadPool,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R> {
        let mode = FloatMode::current();
        let work = move || mode.run(work);
        // A pool thread must not wait here, so it runs the work itself without polling.
        let go_on = match self.go_on {
            Some(go_on) if pool.current_thread_index().is_none() => go_on,
            _ => return Ok(pool.install(work)),
        };
        /// Wakes the caller, even if the work panics.
        struct NotifyDone<'a>(&'a Mutex<bool>, &'a Condvar);
        impl Drop for NotifyDone<'_> {
            fn drop(&mut self) {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.1.notify_one();
            }
        }
        let (done, woken, mut result) = (Mutex::new(false), Condvar::new(), None);
        pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                let _done = NotifyDone(&done, &woken);
                result = Some(work());
            });
            let mut finished = done.lock().unwrap_or_else(PoisonError::into_inner);
            while !*finished {
                let waited = woken
                    .wait_timeout(finished, Self::INTERVAL)
                    .unwrap_or_else(PoisonError::into_inner);
                finished = waited.0;
                if !*finished && waited.1.timed_out() {
                    // Released before polling, because `go_on` may take long.
                    drop(finished);
                    self.poll(go_on);
                    finished = done.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
        });
        // If the work panicked, the scope has already passed the panic on.
        result.ok_or(Error::Interrupted)
    }
}

/// Calls `work` on a pool thread, so that nested loops find awake workers. Waking them once per
/// layer took half as long as the work itself, in a network of twenty layers.
pub(crate) fn on_pool_thread<R: Send>(
    cancel: &Cancellation<'_>,
    work: impl FnOnce() -> R + Send,
) -> Result<R> {
    match pool()? {
        (_, Some(pool)) => cancel.install(&pool, work),
        (_, None) => Ok(work()),
    }
}

thread_local! {
    /// Whether this thread must not split its work, because every thread has a task of its own.
    static KEEP_SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Restores the flag, even if the work panics.
struct RestoreFlag(bool);

impl Drop for RestoreFlag {
    fn drop(&mut self) {
        KEEP_SERIAL.set(self.0);
    }
}

/// Calls `work` without handing any of it to other threads, so it may borrow this thread's working
/// memory.
pub(crate) fn on_this_thread<R>(work: impl FnOnce() -> R) -> R {
    let _before = RestoreFlag(KEEP_SERIAL.replace(true));
    work()
}

/// Calls `work` for every index below `count`, and returns the results in order. With at least as
/// many indices as threads, each call stays on one thread.
pub(crate) fn map_one_per_thread<R: Send>(
    cancel: &Cancellation<'_>,
    count: usize,
    work: impl Fn(usize) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mode = FloatMode::current();
    match pool()? {
        (threads, Some(pool)) if count >= threads => cancel.install(&pool, || {
            let call = |i| {
                let _restore = RestoreFlag(KEEP_SERIAL.replace(true));
                mode.run(|| work(i))
            };
            (0..count).into_par_iter().map(call).collect()
        })?,
        _ => (0..count).map(work).collect(),
    }
}

/// Calls `work(first_row, rows)` over disjoint chunks of `out`, whose rows have `row_len` elements.
///
/// `cost` is the work of the whole call in multiply-accumulates; small calls stay on the calling
/// thread. Chunks are multiples of `granularity` rows, except the last.
pub(crate) fn for_each_rows<T: Send>(
    out: &mut [T],
    row_len: usize,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    try_for_each_rows(out, row_len, granularity, cost, |first, rows| {
        work(first, rows);
        Ok(())
    })
}

/// [`for_each_rows`] for work that may fail; returns one of the errors.
pub(crate) fn try_for_each_rows<T: Send>(
    out: &mut [T],
    row_len: usize,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    try_for_each_pair(out, row_len, &mut [(); 0], 0, granularity, cost, |first, rows, _| {
        work(first, rows)
    })
}

/// Whether work of `cost` multiply-accumulates stays on the current thread.
fn is_serial(cost: usize) -> bool {
    /// Below this, handing work to another thread costs more than it saves.
    const SERIAL_BELOW: usize = 4 << 20;
    cost < SERIAL_BELOW || KEEP_SERIAL.get()
}

/// The number of threads that work of `cost` multiply-accumulates is split among.
///
/// # Errors
/// As [`num_threads`].
pub(crate) fn threads_for(cost: usize) -> Result<usize> {
    if is_serial(cost) { Ok(1) } else { num_threads() }
}

/// [`try_for_each_rows`] for two outputs with the same number of rows. The second may be empty,
/// with rows of length 0.
pub(crate) fn try_for_each_pair<T: Send, U: Send>(
    out: &mut [T],
    row_len: usize,
    second: &mut [U],
    second_len: usize,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T], &mut [U]) -> Result<()> + Sync,
) -> Result<()> {
    let rows = out.len().checked_div(row_len).unwrap_or(0);
    if rows == 0 {
        return Ok(());
    }
    debug_assert_eq!(Some(second.len()), rows.checked_mul(second_len));
    let (threads, pool) = if is_serial(cost) { (1, None) } else { pool()? };
    let Some(pool) = pool else {
        return work(0, out, second);
    };
    let mode = FloatMode::current();
    let work = |first, out: &mut [T], second: &mut [U]| mode.run(|| work(first, out, second));
    // Four chunks per thread balance unequal cores; smaller chunks would make set-up costs visible.
    let chunk = rows.div_ceil(threads * 4).next_multiple_of(granularity).max(granularity);
    pool.install(|| {
        let chunks = out.par_chunks_mut(chunk * row_len).enumerate();
        if second_len == 0 {
            return chunks.try_for_each(|(i, out)| work(i * chunk, out, &mut []));
        }
        let second = second.par_chunks_mut(chunk * second_len);
        chunks.zip(second).try_for_each(|((i, out), second)| work(i * chunk, out, second))
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Lets a test set the number of threads. Only one test at a time can hold it; dropping it
    /// restores the former setting, also after a panic.
    pub struct ThreadCount {
        requested: Option<usize>,
        _lock: MutexGuard<'static, ()>,
    }

    impl ThreadCount {
        pub fn lock() -> Self {
            static LOCK: Mutex<()> = Mutex::new(());
            let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
            ThreadCount { requested: state().requested, _lock: lock }
        }
    }

    impl Drop for ThreadCount {
        fn drop(&mut self) {
            state().requested = self.requested;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        let _threads = testing::ThreadCount::lock();
        for threads in [1, 2, 5] {
            set_num_threads(threads).unwrap();
            for rows in [0, 1, 3, 64, 1001] {
                let mut out = vec![0u32; rows * 3];
                for_each_rows(&mut out, 3, 4, usize::MAX, |first, chunk| {
                    for (i, v) in chunk.iter_mut().enumerate() {
                        *v += (first * 3 + i) as u32 + 1;
                    }
                })
                .unwrap();
                assert!(
                    out.iter().enumerate().all(|(i, &v)| v as usize == i + 1),
                    "{threads} threads, {rows} rows"
                );
            }
        }
    }

    #[test]
    fn invalid_numbers_of_threads_are_refused() {
        for n in [0, MAX_THREADS + 1] {
            let message = set_num_threads(n).unwrap_err().to_string();
            assert!(
                message.contains("number of threads") && message.contains(&n.to_string()),
                "{message}"
            );
        }
    }
}
