//! Threads: one private pool for the whole process; nothing else in the crate names rayon.
//!
//! Its size is what [`set_num_threads`] said last, else `FATNN_NUM_THREADS`, else what
//! [`set_default_threads`] said last (the host framework's number), else the number of CPUs this
//! process may use. Work is split by output rows, and every row is computed the same way whoever
//! computes it, so results do not depend on the number of threads. Pool threads round floats, and
//! flush denormals or not, as the calling thread does (`kernels::float_mode`). After a `fork` the
//! child builds a pool of its own, for threads do not survive a fork. (As with every library that
//! has locks, fork while no other thread is inside a call.)

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
    wanted: Option<usize>,
    /// From [`set_default_threads`]; `None` until then.
    default: Option<usize>,
    pool: Option<(u32, usize, Arc<rayon::ThreadPool>)>,
}

static STATE: Mutex<State> = Mutex::new(State { wanted: None, default: None, pool: None });

/// Sets how many threads later calls use.
///
/// # Errors
/// [`Error::Value`] where `threads` is 0 or above [`MAX_THREADS`].
pub fn set_num_threads(threads: usize) -> Result<()> {
    state().wanted = Some(check(threads)?);
    Ok(())
}

/// Sets how many threads later calls use where neither [`set_num_threads`] nor `FATNN_NUM_THREADS`
/// says: for a host that has a setting of its own.
///
/// # Errors
/// As [`set_num_threads`].
pub fn set_default_threads(threads: usize) -> Result<()> {
    state().default = Some(check(threads)?);
    Ok(())
}

fn check(threads: usize) -> Result<usize> {
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

/// How many threads calls use now.
///
/// # Errors
/// [`Error::Environment`] where `FATNN_NUM_THREADS` has a meaningless value.
pub fn num_threads() -> Result<usize> {
    resolve(&state())
}

fn resolve(state: &State) -> Result<usize> {
    if let Some(n) = state.wanted {
        return Ok(n);
    }
    if let Some(n) = config::get()?.threads.or(state.default) {
        return Ok(n);
    }
    // Asked once: the answer is read from several files.
    static CPUS: OnceLock<usize> = OnceLock::new();
    Ok(*CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)))
}

fn pool() -> Result<(usize, Option<Arc<rayon::ThreadPool>>)> {
    let process = std::process::id();
    let threads = {
        let state = state();
        let threads = resolve(&state)?;
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
    // Without the lock, which a fork at this moment would leave locked in the child.
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
        // The old pool's threads did not survive the fork: joining them would wait for ever.
        std::mem::forget(old);
    }
    Ok((threads, Some(pool)))
}

/// Asks the caller of a run whether it may go on. Only the calling thread asks, at most every
/// [`Watch::INTERVAL`]: while pool threads work it waits and asks, and where it works itself it
/// asks in [`Watch::check`].
pub(crate) struct Watch<'a> {
    go_on: Option<&'a (dyn Fn() -> bool + Sync)>,
    caller: ThreadId,
    asked: Mutex<Instant>,
    stopped: AtomicBool,
}

impl<'a> Watch<'a> {
    const INTERVAL: Duration = Duration::from_millis(50);

    /// For a run of this thread; `None` lets it go on to its end.
    pub fn new(go_on: Option<&'a (dyn Fn() -> bool + Sync)>) -> Self {
        let (asked, stopped) = (Mutex::new(Instant::now()), AtomicBool::new(false));
        Watch { go_on, caller: thread::current().id(), asked, stopped }
    }

    pub fn none() -> Self {
        Watch::new(None)
    }

    /// Comes between the parts of a run.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the run is to stop.
    pub fn check(&self) -> Result<()> {
        let Some(go_on) = self.go_on else { return Ok(()) };
        if thread::current().id() == self.caller {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.elapsed() >= Self::INTERVAL {
                *asked = Instant::now();
                drop(asked);
                self.ask(go_on);
            }
        }
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    fn ask(&self, go_on: &(dyn Fn() -> bool + Sync)) {
        if !go_on() {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Calls `work` on one of the pool's threads, in this thread's floating-point mode; asks
    /// meanwhile.
    fn install<R: Send>(
        &self,
        pool: &rayon::ThreadPool,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R> {
        let mode = FloatMode::current();
        let work = move || mode.run(work);
        // A thread of the pool must not wait here: it calls the work itself, and only the caller
        // asks.
        let go_on = match self.go_on {
            Some(go_on) if pool.current_thread_index().is_none() => go_on,
            _ => return Ok(pool.install(work)),
        };
        /// Wakes the caller, also where the work panics.
        struct Done<'a>(&'a Mutex<bool>, &'a Condvar);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.1.notify_one();
            }
        }
        let (done, woken, mut made) = (Mutex::new(false), Condvar::new(), None);
        pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                let _done = Done(&done, &woken);
                made = Some(work());
            });
            let mut finished = done.lock().unwrap_or_else(PoisonError::into_inner);
            while !*finished {
                let waited = woken
                    .wait_timeout(finished, Self::INTERVAL)
                    .unwrap_or_else(PoisonError::into_inner);
                finished = waited.0;
                if !*finished && waited.1.timed_out() {
                    // Not while the lock is held: the caller may take long to answer.
                    drop(finished);
                    self.ask(go_on);
                    finished = done.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
        });
        // A panic of the work has left the scope already.
        made.ok_or(Error::Interrupted)
    }
}

/// Calls `work` on one of the pool's threads: what it splits then finds the others awake, where
/// each call from outside would wake them anew (measured, in a network of twenty layers that takes
/// as long as half its work).
pub(crate) fn inside<R: Send>(watch: &Watch<'_>, work: impl FnOnce() -> R + Send) -> Result<R> {
    match pool()? {
        (_, Some(pool)) => watch.install(&pool, work),
        (_, None) => Ok(work()),
    }
}

thread_local! {
    /// Whether this thread runs something that others need not help with, since each of them has
    /// its own.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Puts the flag back, also where the work panics.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        ALONE.set(self.0);
    }
}

/// Calls `work`, of which nothing is handed to other threads: a thread's working memory may be
/// borrowed meanwhile.
pub(crate) fn on_this_thread<R>(work: impl FnOnce() -> R) -> R {
    let _before = Before(ALONE.replace(true));
    work()
}

/// Calls `work` for every index below `count`, and returns what it makes, in order. Where there are
/// at least as many as threads, each call stays on one thread.
pub(crate) fn for_each_alone<R: Send>(
    watch: &Watch<'_>,
    count: usize,
    work: impl Fn(usize) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mode = FloatMode::current();
    match pool()? {
        (threads, Some(pool)) if count >= threads => watch.install(&pool, || {
            let alone = |i| {
                let _before = Before(ALONE.replace(true));
                mode.run(|| work(i))
            };
            (0..count).into_par_iter().map(alone).collect()
        })?,
        _ => (0..count).map(work).collect(),
    }
}

/// Calls `work(first_row, rows)` over disjoint pieces of `out`, whose rows have `row_len` elements.
///
/// `cost` is the work of the whole call in multiply-accumulates: small calls stay on the calling
/// thread. Pieces are multiples of `granularity` rows where there are enough of them.
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

/// [`for_each_rows`] for work that may fail; one of the errors comes back.
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

/// Whether work of so many multiply-accumulates stays on the thread that it comes from.
fn alone(cost: usize) -> bool {
    /// Below, handing work to another thread costs more than it saves.
    const SERIAL_BELOW: usize = 4 << 20;
    cost < SERIAL_BELOW || ALONE.get()
}

/// How many threads work of so many multiply-accumulates is split among.
///
/// # Errors
/// As [`num_threads`].
pub(crate) fn threads_for(cost: usize) -> Result<usize> {
    if alone(cost) { Ok(1) } else { num_threads() }
}

/// [`try_for_each_rows`] for two outputs that have equally many rows; the second may be empty, with
/// rows of no length.
pub(crate) fn try_for_each_pair<T: Send, U: Send>(
    out: &mut [T],
    row_len: usize,
    beside: &mut [U],
    beside_len: usize,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T], &mut [U]) -> Result<()> + Sync,
) -> Result<()> {
    let rows = out.len().checked_div(row_len).unwrap_or(0);
    if rows == 0 {
        return Ok(());
    }
    debug_assert_eq!(Some(beside.len()), rows.checked_mul(beside_len));
    let (threads, pool) = if alone(cost) { (1, None) } else { pool()? };
    let Some(pool) = pool else {
        return work(0, out, beside);
    };
    let mode = FloatMode::current();
    let work = |first, out: &mut [T], beside: &mut [U]| mode.run(|| work(first, out, beside));
    // A few pieces per thread even out unequal cores without making pieces so small that their
    // set-up shows.
    let piece = rows.div_ceil(threads * 4).next_multiple_of(granularity).max(granularity);
    pool.install(|| {
        let pieces = out.par_chunks_mut(piece * row_len).enumerate();
        if beside_len == 0 {
            return pieces.try_for_each(|(i, out)| work(i * piece, out, &mut []));
        }
        let beside = beside.par_chunks_mut(piece * beside_len);
        pieces.zip(beside).try_for_each(|((i, out), beside)| work(i * piece, out, beside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
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
    fn silly_numbers_of_threads_are_refused() {
        for n in [0, MAX_THREADS + 1] {
            let message = set_num_threads(n).unwrap_err().to_string();
            assert!(
                message.contains("number of threads") && message.contains(&n.to_string()),
                "{message}"
            );
        }
    }
}
