//! The helping threads of the process, and on which CPUs they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use placement::Placement;

/// A pool of threads that help the threads that call us.
pub(super) struct Helpers {
    pool: rayon::ThreadPool,
    threads: usize,
    /// Teams that have asked for helpers and not ended yet.
    teams: AtomicUsize,
    /// Requests that no thread has answered yet, also of teams that have ended.
    requests: Arc<AtomicUsize>,
    placement: Arc<Placement>,
}

impl Helpers {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// The reason why the system did not start them.
    pub fn new(threads: usize) -> Result<Self, String> {
        let placement = Arc::<Placement>::default();
        let of_thread = placement.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("fatnn-{i}"))
            .start_handler(move |_| of_thread.register())
            .build()
            .map_err(|e| e.to_string())?;
        let (teams, requests) = (AtomicUsize::new(0), Arc::default());
        Ok(Helpers { pool, threads, teams, requests, placement })
    }

    /// Called by a team before it asks for the first time.
    pub fn count_team(&self) {
        if self.teams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.placement.keep_off_this_cpu();
        }
    }

    /// Called at the end of a team that was counted.
    pub fn uncount_team(&self) {
        self.teams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls `help` on `count` threads, as soon as they are free.
    ///
    /// Asks for fewer if many requests wait already, and returns for how many: while one run holds
    /// all threads, others may come and go in any number.
    pub fn ask(&self, count: usize, help: impl Fn() + Clone + Send + 'static) -> usize {
        let waiting = self.requests.load(Ordering::Relaxed);
        let count = count.min((4 * self.threads).saturating_sub(waiting));
        if count > 0 {
            self.requests.fetch_add(count, Ordering::Relaxed);
            let requests = self.requests.clone();
            self.pool.spawn(move || spread(count, &requests, help));
        }
        count
    }
}

/// Calls `help` on this thread of the pool and on `count - 1` others. Each thread wakes at most two
/// others, so that nobody has to wake them all.
fn spread(count: usize, requests: &Arc<AtomicUsize>, help: impl Fn() + Clone + Send + 'static) {
    requests.fetch_sub(1, Ordering::Relaxed);
    let others = count - 1;
    for part in [others / 2, others - others / 2] {
        if part > 0 {
            let (requests, help) = (requests.clone(), help.clone());
            rayon::spawn(move || spread(part, &requests, help));
        }
    }
    help();
}

/// Other systems choose the CPUs.
#[cfg(not(target_os = "linux"))]
mod placement {
    #[derive(Default)]
    pub struct Placement;

    impl Placement {
        pub fn register(&self) {}

        pub fn keep_off_this_cpu(&self) {}
    }
}

#[cfg(target_os = "linux")]
mod placement {
    use std::sync::Mutex;

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    use crate::parallel::lock;

    /// Keeps helpers off the CPU of the thread that they help.
    ///
    /// Linux wakes a thread on its last CPU or on that of the thread that wakes it. In a virtual
    /// machine it does not prefer a CPU that has slept for a while, because its host has halted it.
    /// A helper that once got to the caller's CPU then stays there, while another CPU is idle.
    #[derive(Default)]
    pub struct Placement(Mutex<State>);

    #[derive(Default)]
    struct State {
        helpers: Vec<Pid>,
        /// What this number of helpers was last told: the caller's CPUs, and that to keep off.
        told: Option<(usize, CpuSet, usize)>,
    }

    /// With more helpers, telling them costs more than it saves.
    const MAX_HELPERS: usize = 7;

    impl Placement {
        /// Called by every helper as it starts.
        pub fn register(&self) {
            lock(&self.0).helpers.push(gettid());
        }

        /// Lets the helpers run on all CPUs that the calling thread may use, except the one that
        /// it is on. Does nothing if there are fewer other CPUs than helpers, and ignores a
        /// refusal by the system.
        pub fn keep_off_this_cpu(&self) {
            let mut state = lock(&self.0);
            let (count, cpu) = (state.helpers.len(), sched_getcpu());
            if count > MAX_HELPERS || cpu >= CpuSet::MAX_CPU {
                return;
            }
            let Ok(mine) = sched_getaffinity(None) else { return };
            let told = Some((count, mine, cpu));
            if state.told == told {
                return;
            }
            let mut cpus = mine;
            cpus.unset(cpu);
            if (cpus.count() as usize) < count.max(1) {
                return;
            }
            for &helper in &state.helpers {
                let _ = sched_setaffinity(Some(helper), &cpus);
            }
            state.told = told;
        }
    }

    #[cfg(test)]
    mod tests {
        use std::sync::mpsc::channel;

        use super::*;

        #[test]
        fn helpers_keep_off_the_callers_cpu() {
            let placement = Placement::default();
            let (ready, is_ready) = channel();
            let (finish, is_finished) = channel::<()>();
            std::thread::scope(|scope| {
                let placement = &placement;
                scope.spawn(move || {
                    placement.register();
                    ready.send(gettid()).unwrap();
                    is_finished.recv().unwrap_err();
                });
                let helper = is_ready.recv().unwrap();
                let mine = sched_getaffinity(None).unwrap();
                // The second time, this thread may use all of its CPUs again.
                for limit in [2, CpuSet::MAX_CPU] {
                    let mut some = CpuSet::new();
                    (0..CpuSet::MAX_CPU)
                        .filter(|&i| mine.is_set(i))
                        .take(limit)
                        .for_each(|i| some.set(i));
                    sched_setaffinity(None, &some).unwrap();
                    // Again if the scheduler moved this thread meanwhile.
                    for _ in 0..100 {
                        let cpu = sched_getcpu();
                        placement.keep_off_this_cpu();
                        let cpus = sched_getaffinity(Some(helper)).unwrap();
                        if cpu == sched_getcpu() && some.count() > 1 {
                            assert!(!cpus.is_set(cpu));
                            assert_eq!(cpus.count(), some.count() - 1);
                            break;
                        }
                    }
                }
                drop(finish);
            });
        }
    }
}
