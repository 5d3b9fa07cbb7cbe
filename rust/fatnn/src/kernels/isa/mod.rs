//! Instruction sets: one file each, with the words that plain loops and kernels share.
//!
//! A value of a [`Simd`] type proves that the CPU has its features, so its methods are safe. A loop
//! over arrays is written once, as a [`super::vector::VectorLoop`], and compiled for every type
//! here; what compilers do not find by themselves (comparisons into bits) is a method of the trait.

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
/// [`Simd::new`] returns a value only where every feature that the methods use was detected.
pub(crate) unsafe trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// A value where the features are among those given.
    fn new(features: Features) -> Option<Self>;

    /// A value without a check.
    ///
    /// # Safety
    /// The features were detected: [`Simd::new`] has returned a value in this process.
    unsafe fn assume() -> Self;

    /// Bit `j` says whether `acc[j] >= threshold[j]`; `N` is a multiple of 16, at most 64.
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64;

    /// Bit `j` says whether `x[j] >= threshold`, which NaN never is; `N` as in [`Simd::ge_mask`].
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64;

    /// Runs a loop that is compiled with this instruction set.
    fn run<L: VectorLoop>(self, work: L) -> L::Output;
}
