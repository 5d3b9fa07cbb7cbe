//! Plain loops over arrays, each compiled for every instruction set.
//!
//! A loop is a [`VectorLoop`]: a struct with the operands, and a `run` that is `#[inline(always)]`
//! and that the compiler vectorises. [`Level::run`] calls the copy compiled for the best
//! instruction set. All copies give equal results, because Rust never fuses multiplications and
//! additions by itself.

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
/// `run`, and everything in it that should use vectors, must be `#[inline(always)]`. It should not
/// pass closures to functions of other crates: those are compiled without the CPU features.
pub(crate) trait VectorLoop {
    /// What the loop returns.
    type Output;

    /// Runs the loop. `simd` has the operations that instruction sets express differently.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction set that plain loops run on.
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
    /// The best instruction set that the CPU has and `FATNN_ISA` allows.
    ///
    /// # Errors
    /// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
    pub fn usable() -> Result<Self> {
        let best = Self::all(Features::usable()?).next();
        Ok(best.unwrap_or(Level::Scalar(Scalar)))
    }

    /// Every instruction set that `features` include, best first.
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

    /// Runs the copy of the loop that is compiled for this instruction set.
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
