//! Threads: one private pool for the whole process; nothing else in the crate names rayon.
//!
//! Its size is what [`set_num_threads`] said last, else `FATNN_NUM_THREADS`, else what [`set_default_threads`] said last (the
//! host framework's number), else the number of CPUs this process may use.
//! Work is split by output rows, and every row is computed the same way whoever computes it, so results do not depend on
//! the number of threads. After a `fork` the child builds a pool of its own, for threads do not survive a fork. (As with every
//! library that has locks, fork while no other thread is inside a call.)

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;

use crate::config;
use crate::error::{Error, Result, bad_value};

/// More threads than this are refused: a typing error, not a machine.
pub const MAX_THREADS: usize = 4096;

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

/// Sets how many threads later calls use where neither [`set_num_threads`] nor `FATNN_NUM_THREADS` says: for a host that has
/// a setting of its own.
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
        _ => bad_value("number of threads", format!("a whole number from 1 to {MAX_THREADS}"), threads),
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

/// Calls `work` on one of the pool's threads: what it splits then finds the others awake, where each call from outside would
/// wake them anew (measured, in a network of twenty layers that takes as long as half its work).
pub(crate) fn inside<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    match pool()? {
        (_, Some(pool)) => Ok(pool.install(work)),
        (_, None) => Ok(work()),
    }
}

thread_local! {
    /// Whether this thread runs something that others need not help with, since each of them has its own.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work` for every index below `count`, and returns what it makes, in order. Where there are at least as many as
/// threads, each call stays on one thread.
pub(crate) fn for_each_alone<R: Send>(count: usize, work: impl Fn(usize) -> Result<R> + Sync) -> Result<Vec<R>> {
    match pool()? {
        (threads, Some(pool)) if count >= threads => pool.install(|| {
            let alone = |i| {
                let before = ALONE.replace(true);
                let made = work(i);
                ALONE.set(before);
                made
            };
            (0..count).into_par_iter().map(alone).collect()
        }),
        _ => (0..count).map(work).collect(),
    }
}

/// Calls `work(first_row, rows)` over disjoint pieces of `out`, whose rows have `row_len` elements.
///
/// `cost` is the work of the whole call in multiply-accumulates: small calls stay on the calling thread. Pieces are
/// multiples of `granularity` rows where there are enough of them.
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
    try_for_each_pair(out, row_len, &mut [(); 0], 0, granularity, cost, |first, rows, _| work(first, rows))
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

/// [`try_for_each_rows`] for two outputs that have equally many rows; the second may be empty, with rows of no length.
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
    assert_eq!(beside.len(), rows * beside_len);
    let (threads, pool) = if alone(cost) { (1, None) } else { pool()? };
    let Some(pool) = pool else {
        return work(0, out, beside);
    };
    // A few pieces per thread even out unequal cores without making pieces so small that their set-up shows.
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
                assert!(out.iter().enumerate().all(|(i, &v)| v as usize == i + 1), "{threads} threads, {rows} rows");
            }
        }
    }

    #[test]
    fn silly_numbers_of_threads_are_refused() {
        for n in [0, MAX_THREADS + 1] {
            let message = set_num_threads(n).unwrap_err().to_string();
            assert!(message.contains("number of threads") && message.contains(&n.to_string()), "{message}");
        }
    }
}
