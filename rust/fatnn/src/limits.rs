//! Limits on a network's memory and work. They are checked from sizes, before any allocation.

use std::cell::Cell;

use crate::error::{Error, Result};

/// Upper bounds on a network's memory and work. A file of a few hundred bytes can ask for any
/// amount of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of packed weights plus all values and working memory of one run. If images run
    /// separately, one image counts; per-thread memory counts once.
    pub max_bytes: u64,
    /// Multiply-accumulates per image. Operations without products count their elements.
    pub max_macs: u64,
}

impl Limits {
    /// Enough for every network that runs in a sensible time: 16 GiB, and 10¹² multiply-accumulates
    /// per image, two hundred times ResNet-50.
    pub const DEFAULT: Limits = Limits { max_bytes: 16 << 30, max_macs: 1_000_000_000_000 };
    /// No limits.
    pub const NONE: Limits = Limits { max_bytes: u64::MAX, max_macs: u64::MAX };

    pub(crate) fn check_bytes(&self, what: impl FnOnce() -> String, needed: u128) -> Result<()> {
        if needed <= u128::from(self.max_bytes) {
            return Ok(());
        }
        let (unit, argument, limit) = ("bytes", "max_bytes", self.max_bytes);
        Err(Error::Limit { what: what(), needed, unit, argument, limit })
    }

    pub(crate) fn check_macs(&self, what: impl FnOnce() -> String, needed: u128) -> Result<()> {
        if needed <= u128::from(self.max_macs) {
            return Ok(());
        }
        let (unit, argument, limit) = ("multiply-accumulates per image", "max_macs", self.max_macs);
        Err(Error::Limit { what: what(), needed, unit, argument, limit })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

/// Counts the memory of weights while a network is built.
#[derive(Debug)]
pub(crate) struct Budget {
    pub limits: Limits,
    spent: Cell<u128>,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Budget { limits, spent: Cell::new(0) }
    }

    /// Adds `bytes` to the count.
    ///
    /// # Errors
    /// [`Error::Limit`] if the sum exceeds the limit.
    pub fn spend(&self, bytes: u128) -> Result<()> {
        let total = self.spent.get().saturating_add(bytes);
        self.limits.check_bytes(|| "weights of this node and those before it".into(), total)?;
        self.spent.set(total);
        Ok(())
    }

    /// Bytes counted so far.
    pub fn spent(&self) -> u128 {
        self.spent.get()
    }
}
