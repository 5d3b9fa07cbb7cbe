//! Threads: the calling one, and a private pool of helpers for the whole process. Only this module
//! uses rayon.
//!
//! The pool's size is what [`set_num_threads`] set last, else `FATNN_NUM_THREADS`, else what
//! [`set_default_threads`] set last (the host framework's number), else the number of CPUs that
//! this process may use.
//!
//! Work is split by output rows. A row is computed in the same way on every thread, so results do
//! not depend on the number of threads. Helping threads use the caller's rounding mode and denormal
//! flushing (`kernels::float_mode`).
//!
//! Threads do not survive a `fork`, so the child builds a new pool. As with every library that has
//! locks, only fork while no other thread is inside a call.

mod cancellation;
mod helpers;
mod loops;
// `unsafe`: threads call work that is borrowed from the calling thread's stack.
#[allow(unsafe_code)]
mod team;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config;
pub use crate::config::MAX_THREADS;
use crate::error::{Error, Result, bad_value};
pub(crate) use cancellation::Cancellation;
use helpers::Helpers;
pub(crate) use loops::{
    chunk_of_at_least, for_each_rows, map_one_per_thread, threads_for, try_for_each_pair,
    try_for_each_rows,
};
use team::Team;

struct State {
    /// From [`set_num_threads`]; `None` until then.
    requested: Option<usize>,
    /// From [`set_default_threads`]; `None` until then.
    default: Option<usize>,
    /// The process that started them, the number of threads with the calling one, and the others.
    helpers: Option<(u32, usize, Arc<Helpers>)>,
}

static STATE: Mutex<State> = Mutex::new(State { requested: None, default: None, helpers: None });

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
    lock(&STATE)
}

/// Locks a mutex whose content is valid even if a thread panicked while it held the lock.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The number of threads, and the helpers if there is more than one.
fn helpers() -> Result<(usize, Option<Arc<Helpers>>)> {
    let process = std::process::id();
    let threads = {
        let state = state();
        let threads = resolve_num_threads(&state)?;
        if threads == 1 {
            return Ok((1, None));
        }
        if let Some((owner, size, helpers)) = &state.helpers
            && *owner == process
            && *size == threads
        {
            return Ok((threads, Some(helpers.clone())));
        }
        threads
    };
    // Started without holding the lock: a fork at this moment would leave it locked in the child.
    let helpers = Helpers::new(threads - 1).map_err(|why| Error::Threads { threads, why })?;
    let helpers = Arc::new(helpers);
    let old = state().helpers.replace((process, threads, helpers.clone()));
    if let Some((owner, _, old)) = old
        && owner != process
    {
        // The old threads did not survive the fork, and they may have held locks of the pool.
        std::mem::forget(old);
    }
    Ok((threads, Some(helpers)))
}

/// Calls `work`, whose loops share one [`Team`]: its threads stay awake from loop to loop.
pub(crate) fn with_team<R>(work: impl FnOnce() -> R) -> R {
    /// Sends the team away, even if the work panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            KEEP_TEAM.set(false);
            TEAM.take();
        }
    }
    let _end = (!KEEP_TEAM.replace(true)).then_some(End);
    work()
}

/// The team of this thread's run, or a new one; `None` if there is only one thread.
fn take_team() -> Result<Option<Team>> {
    // After a fork, in a signal handler that was called during a run, the team has no helpers.
    if let Some(team) = TEAM.take().filter(Team::is_of_this_process) {
        return Ok(Some(team));
    }
    let (threads, helpers) = helpers()?;
    Ok(helpers.map(|helpers| Team::new(threads, helpers)))
}

/// Keeps the team for the next loop, if this thread is inside [`with_team`].
fn put_team(team: Team) {
    if KEEP_TEAM.get() {
        TEAM.set(Some(team));
    }
}

thread_local! {
    /// Whether this thread must not split its work, because every thread has a task of its own.
    static KEEP_SERIAL: Cell<bool> = const { Cell::new(false) };

    /// Whether this thread is inside [`with_team`].
    static KEEP_TEAM: Cell<bool> = const { Cell::new(false) };

    /// The team of this thread's run, outside of its loops. The first loop makes it.
    static TEAM: RefCell<Option<Team>> = const { RefCell::new(None) };
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
            let lock = lock(&LOCK);
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
