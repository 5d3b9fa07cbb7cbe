//! The helping threads of the process, and on which CPUs they run.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool of threads that help the threads that call us.
pub(super) struct Helpers {
    pool: rayon::ThreadPool,
    /// Teams that have helpers now.
    teams: AtomicUsize,
    #[cfg(target_os = "linux")]
    placement: std::sync::Arc<placement::Placement>,
}

impl Helpers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The reason why the system did not start them.
    pub fn new(count: usize) -> Result<Self, String> {
        let builder = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("fatnn-{i}"));
        #[cfg(target_os = "linux")]
        let placement = std::sync::Arc::<placement::Placement>::default();
        #[cfg(target_os = "linux")]
        let builder = {
            let placement = placement.clone();
            builder.start_handler(move |_| placement.register())
        };
        let pool = builder.build().map_err(|e| e.to_string())?;
        Ok(Helpers {
            pool,
            teams: AtomicUsize::new(0),
            #[cfg(target_os = "linux")]
            placement,
        })
    }

    /// Calls `help` on `count` of the threads, as soon as they are free.
    pub fn join_team(&self, count: usize, help: impl Fn() + Clone + Send + 'static) {
        let _others = self.teams.fetch_add(1, Ordering::Relaxed);
        #[cfg(target_os = "linux")]
        if _others == 0 {
            self.placement.keep_off_this_cpu();
        }
        for _ in 0..count {
            let help = help.clone();
            self.pool.spawn(help);
        }
    }

    /// Says that a team that called [`Helpers::join_team`] has ended.
    pub fn leave_team(&self) {
        self.teams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(target_os = "linux")]
mod placement {
    use std::sync::{Mutex, PoisonError};

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

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
        /// The CPU that this number of helpers was last told to keep off.
        off: Option<(usize, usize)>,
    }

    impl Placement {
        /// Called by every helper as it starts.
        pub fn register(&self) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).helpers.push(gettid());
        }

        /// Lets the helpers run on all CPUs that the calling thread may use, except the one that
        /// it is on. Does nothing if there is no other. A refusal by the system is ignored.
        pub fn keep_off_this_cpu(&self) {
            let cpu = sched_getcpu();
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let off = Some((cpu, state.helpers.len()));
            if state.off == off || cpu >= CpuSet::MAX_CPU {
                return;
            }
            let Ok(mut cpus) = sched_getaffinity(None) else { return };
            cpus.unset(cpu);
            if cpus.count() == 0 {
                return;
            }
            for &helper in &state.helpers {
                let _ = sched_setaffinity(Some(helper), &cpus);
            }
            state.off = off;
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
                // Again if the scheduler moved this thread meanwhile.
                for _ in 0..100 {
                    let cpu = sched_getcpu();
                    placement.keep_off_this_cpu();
                    let cpus = sched_getaffinity(Some(helper)).unwrap();
                    if cpu == sched_getcpu() {
                        assert_eq!(cpus.is_set(cpu), mine.count() == 1);
                        assert_eq!(cpus.count().max(2), mine.count().max(3) - 1);
                        break;
                    }
                }
                drop(finish);
            });
        }
    }
}
