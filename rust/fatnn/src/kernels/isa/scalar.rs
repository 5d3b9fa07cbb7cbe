//! Portable Rust, compiled with the target's default features only.

use super::Simd;
use crate::cpu::Features;
use crate::kernels::vector::VectorLoop;

/// Needs no CPU features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

// SAFETY: no method needs a feature.
unsafe impl Simd for Scalar {
    fn new(_: Features) -> Option<Self> {
        Some(Scalar)
    }

    unsafe fn new_unchecked() -> Self {
        Scalar
    }

    #[inline(always)]
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64 {
        let mut bits = 0;
        for j in 0..N {
            bits |= u64::from(acc[j] >= threshold[j]) << j;
        }
        bits
    }

    #[inline(always)]
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64 {
        let mut bits = 0;
        for (j, &x) in x.iter().enumerate() {
            bits |= u64::from(x >= threshold) << j;
        }
        bits
    }

    #[inline]
    fn run<L: VectorLoop>(self, work: L) -> L::Output {
        work.run(self)
    }
}
