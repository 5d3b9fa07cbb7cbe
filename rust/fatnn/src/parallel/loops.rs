//! Loops whose rows or items are shared by the threads of a team.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::team::Forked;
use super::{Cancellation, KEEP_SERIAL, RestoreFlag, lock, num_threads, put_team, take_team};
use crate::error::{Error, Result};
use crate::kernels::FloatMode;
use crate::memory;

/// Calls `work` for every item, on as many threads as there are. The first error ends it; others
/// are dropped. The calling thread calls `poll` at times if it waits long for others.
fn share<I: Send>(
    poll: &dyn Fn(),
    items: impl ExactSizeIterator<Item = I> + Send,
    work: impl Fn(I) -> Result<()> + Sync,
) -> Result<()> {
    let mode = FloatMode::current();
    let (count, items, error) = (items.len(), Mutex::new(items), Mutex::new(None));
    let failed = AtomicBool::new(false);
    let take = || lock(&items).next();
    let part = || {
        let _restore = RestoreFlag(KEEP_SERIAL.replace(true));
        while !failed.load(Ordering::Relaxed)
            && let Some(item) = take()
        {
            if let Err(e) = work(item) {
                failed.store(true, Ordering::Relaxed);
                lock(&error).get_or_insert(e);
            }
        }
    };
    let team = if KEEP_SERIAL.get() { None } else { take_team()? };
    match team {
        Some(mut team) => {
            let done = team.run(count, &|| mode.run(part), poll);
            put_team(team);
            // The child of a fork has no helpers that could finish their parts.
            done.map_err(|Forked| Error::Interrupted)?;
        }
        None => part(),
    }
    lock(&error).take().map_or(Ok(()), Err)
}

/// Calls `work` for every index below `count`, and returns the results in order. With at least as
/// many indices as threads, each call stays on one thread.
pub(crate) fn map_one_per_thread<R: Send>(
    cancel: &Cancellation<'_>,
    count: usize,
    work: impl Fn(usize) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let threads = num_threads()?;
    if threads == 1 || count < threads {
        return (0..count).map(work).collect();
    }
    let mut results: Vec<Option<R>> = Vec::new();
    memory::reserve("results of the threads", &mut results, count)?;
    results.resize_with(count, || None);
    // Helpers find out in their own checks whether this thread was told to stop.
    share(&|| drop(cancel.check()), results.iter_mut().enumerate(), |(i, result)| {
        *result = Some(work(i)?);
        Ok(())
    })?;
    Ok(results.into_iter().flatten().collect())
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

/// As many chunks per thread balance unequal cores; with more, set-up costs would be visible.
const CHUNKS_PER_THREAD: usize = 4;

/// Rows per chunk, a multiple of `granularity`, for at most `most` chunks per thread: the smallest
/// chunks among those with which the thread that has most rows has fewest.
fn balanced_chunk(rows: usize, granularity: usize, threads: usize, most: usize) -> usize {
    let chunk = |each: usize| {
        rows.div_ceil(threads.saturating_mul(each)).max(1).next_multiple_of(granularity.max(1))
    };
    let longest = |chunk: usize| {
        let before_last = rows.div_ceil(chunk).saturating_sub(1);
        let full = before_last / threads * chunk;
        full + if before_last.is_multiple_of(threads) { rows - before_last * chunk } else { chunk }
    };
    let smaller_first = (1..=most.max(1)).rev().map(chunk);
    smaller_first.min_by_key(|&chunk| longest(chunk)).unwrap_or(rows)
}

/// Rows per chunk for work whose chunks should not have fewer than `least` rows, if that leaves
/// every thread a share of the `rows`.
///
/// # Errors
/// As [`num_threads`].
pub(crate) fn chunk_of_at_least(least: usize, rows: usize) -> Result<usize> {
    let threads = num_threads()?;
    let most = (rows / threads / least.max(1)).min(CHUNKS_PER_THREAD);
    Ok(balanced_chunk(rows, 1, threads, most))
}

/// Whether work of `cost` multiply-accumulates stays on the current thread.
fn is_serial(cost: usize) -> bool {
    /// Below this, handing work to another thread costs more than it saves.
    const SERIAL_BELOW: usize = 1 << 20;
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
    let threads = threads_for(cost)?;
    if threads == 1 {
        return work(0, out, second);
    }
    let chunk = balanced_chunk(rows, granularity, threads, CHUNKS_PER_THREAD);
    let chunks = out.chunks_mut(chunk * row_len).enumerate();
    if second_len == 0 {
        return share(&|| (), chunks, |(i, out)| work(i * chunk, out, &mut []));
    }
    let second = second.chunks_mut(chunk * second_len);
    share(&|| (), chunks.zip(second), |((i, out), second)| work(i * chunk, out, second))
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::parallel::{set_num_threads, testing, with_team};

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
    fn chunks_are_as_even_as_the_granularity_allows() {
        for (rows, granularity, threads, most, expected) in [
            (196, 14, 2, 4, 98),
            (56, 1, 2, 4, 7),
            (28, 1, 2, 4, 7),
            (14, 1, 2, 1, 7),
            (49, 7, 2, 4, 7),
            (3, 1, 5, 4, 1),
            (100, 64, 2, 4, 64),
            (7, 1, 1, 0, 7),
            (0, 4, 2, 4, 4),
            (49, 1, 16, 4, 1),
        ] {
            let found = balanced_chunk(rows, granularity, threads, most);
            assert_eq!(found, expected, "{rows} {granularity} {threads} {most}");
        }
    }

    /// Doubles every element in `loops` loops of one team; `pause` between them.
    fn double(loops: usize, pause: Duration) -> Vec<u64> {
        let mut out: Vec<u64> = (1..=97).collect();
        with_team(|| {
            for _ in 0..loops {
                for_each_rows(&mut out, 1, 3, usize::MAX, |_, rows| {
                    rows.iter_mut().for_each(|v| *v = v.wrapping_mul(2).wrapping_add(1));
                })
                .unwrap();
                thread::sleep(pause);
            }
        });
        out
    }

    #[test]
    fn loops_of_one_team_follow_each_other() {
        let _threads = testing::ThreadCount::lock();
        // With the pause, helpers sleep between the loops.
        for (loops, pause) in [(3000, 0), (20, 3)].map(|(n, ms)| (n, Duration::from_millis(ms))) {
            set_num_threads(1).unwrap();
            let expected = double(loops, Duration::ZERO);
            for threads in [2, 3, 5] {
                set_num_threads(threads).unwrap();
                assert_eq!(double(loops, pause), expected, "{threads} threads, {pause:?}");
            }
        }
    }

    #[test]
    fn callers_at_the_same_time_do_not_wait_for_each_other() {
        let _threads = testing::ThreadCount::lock();
        set_num_threads(3).unwrap();
        let expected = double(500, Duration::ZERO);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| assert_eq!(double(500, Duration::ZERO), expected));
            }
        });
    }

    #[test]
    fn work_inside_a_loop_stays_on_its_thread() {
        let _threads = testing::ThreadCount::lock();
        set_num_threads(4).unwrap();
        let mut out = vec![0u8; 64];
        for_each_rows(&mut out, 4, 1, usize::MAX, |_, rows| {
            let this = thread::current().id();
            for_each_rows(rows, 1, 1, usize::MAX, |_, row| {
                row.fill(u8::from(thread::current().id() == this));
            })
            .unwrap();
        })
        .unwrap();
        assert_eq!(out, vec![1; 64]);
    }

    #[test]
    fn an_error_ends_a_loop_and_the_next_one_works() {
        let _threads = testing::ThreadCount::lock();
        for threads in [1, 2, 4] {
            set_num_threads(threads).unwrap();
            let mut out = vec![0u8; 100];
            let failing = try_for_each_rows(&mut out, 1, 1, usize::MAX, |first, rows| {
                if (first..first + rows.len()).contains(&50) {
                    return Err(Error::Interrupted);
                }
                Ok(())
            });
            assert!(matches!(failing, Err(Error::Interrupted)));
            let squares = map_one_per_thread(&Cancellation::none(), 9, |i| match i {
                7 if threads == 4 => Err(Error::Interrupted),
                i => Ok(i * i),
            });
            match squares {
                Ok(squares) => assert_eq!(squares, [0, 1, 4, 9, 16, 25, 36, 49, 64]),
                Err(error) => assert!(matches!(error, Error::Interrupted) && threads == 4),
            }
        }
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller() {
        let _threads = testing::ThreadCount::lock();
        set_num_threads(3).unwrap();
        let caller = thread::current().id();
        for on_caller in [true, false] {
            let panicked = std::panic::catch_unwind(|| {
                let mut out = vec![0u8; 300];
                // The other threads wait for the panic, so that they do not take all rows.
                let happened = AtomicBool::new(false);
                for_each_rows(&mut out, 1, 1, usize::MAX, |_, _| {
                    if (thread::current().id() == caller) == on_caller {
                        happened.store(true, Ordering::Relaxed);
                        panic!("of this test");
                    }
                    while !happened.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                })
            });
            assert!(panicked.is_err(), "on the caller: {on_caller}");
            assert_eq!(double(2, Duration::ZERO)[0], 7);
        }
    }
}
