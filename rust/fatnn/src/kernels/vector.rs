//! Plain loops over arrays: the one way to compile a loop for every instruction set.
//!
//! A loop is a [`VectorLoop`]: a struct with its operands, and a `run` that is `#[inline(always)]`
//! and leaves vectors to the compiler. [`Level::run`] calls the copy that was compiled with the
//! best features there are. Results are equal on every level: Rust contracts no floats.

use super::isa::Simd;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use super::isa::neon::Neon;
use super::isa::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::isa::{avx2::Avx2, avx512::Avx512};
use crate::cpu::Features;
use crate::error::Result;

/// A loop and its operands.
///
/// `run` must be `#[inline(always)]`, as must everything in it that is to use vectors, and should
/// not pass closures to functions of other crates, which would be compiled without the features.
pub(crate) trait VectorLoop {
    /// What it returns.
    type Output;

    /// Runs the loop, with the words of an instruction set.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction set that plain loops are run with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(Neon),
    Scalar(Scalar),
}

impl Level {
    /// The best of those that the CPU has and `FATNN_ISA` allows.
    ///
    /// # Errors
    /// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
    pub fn usable() -> Result<Self> {
        let best = Self::all(Features::usable()?).next();
        Ok(best.unwrap_or(Level::Scalar(Scalar)))
    }

    /// Every level that such a CPU has, best first.
    pub fn all(features: Features) -> impl Iterator<Item = Self> {
        let levels = [
            #[cfg(target_arch = "x86_64")]
            Avx512::new(features).map(Level::Avx512),
            #[cfg(target_arch = "x86_64")]
            Avx2::new(features).map(Level::Avx2),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Neon::new(features).map(Level::Neon),
            Scalar::new(features).map(Level::Scalar),
        ];
        levels.into_iter().flatten()
    }

    /// Runs a loop.
    #[inline]
    pub fn run<L: VectorLoop>(self, work: L) -> L::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(simd) => simd.run(work),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.run(work),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Level::Neon(simd) => simd.run(work),
            Level::Scalar(simd) => simd.run(work),
        }
    }
}
