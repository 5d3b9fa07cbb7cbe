//! Stopping a run between its parts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::lock;
use crate::error::{Error, Result};

/// Lets the caller of a run stop it. Only the calling thread calls `go_on`, at most every
/// [`Cancellation::INTERVAL`], in [`Cancellation::check`].
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
            let mut asked = lock(&self.asked);
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
}
