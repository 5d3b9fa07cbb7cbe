//! Instruction sets, one file each, with the operations that plain loops and kernels share.
//!
//! A value of a [`Simd`] type proves that the CPU has its features, so its methods are safe. A loop
//! over arrays is written once, as a [`super::vector::VectorLoop`], and compiled for each of these
//! types. The trait also has the operation that compilers do not vectorise well: comparing into a
//! bit mask.

use super::vector::VectorLoop;
use crate::cpu::Features;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
pub(crate) mod scalar;

/// An instruction set that this CPU has.
///
/// # Safety
/// [`Simd::new`] must return a value only if every feature that the methods use was detected.
pub(crate) unsafe trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// A value, if `features` include this instruction set.
    fn new(features: Features) -> Option<Self>;

    /// A value, without checking features.
    ///
    /// # Safety
    /// The features must have been detected: [`Simd::new`] returned a value in this process.
    unsafe fn new_unchecked() -> Self;

    /// Bit `j` is set if `acc[j] >= threshold[j]`. `N` is a multiple of 16, at most 64.
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64;

    /// Bit `j` is set if `x[j] >= threshold`, and not set for NaN. `N` as in [`Simd::ge_mask`].
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64;

    /// Runs a loop, compiled for this instruction set.
    fn run<L: VectorLoop>(self, work: L) -> L::Output;
}
