//! AArch64 Advanced SIMD. Tested under emulation; its speed has not been measured on hardware.

use std::arch::aarch64::*;

use super::Simd;
use crate::cpu::Features;
use crate::kernels::vector::VectorLoop;

/// Proves that the CPU has Advanced SIMD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

// SAFETY: `Features::neon` is only true if the CPU has the one feature that is used.
unsafe impl Simd for Neon {
    fn new(features: Features) -> Option<Self> {
        features.neon.then_some(Neon(()))
    }

    unsafe fn new_unchecked() -> Self {
        Neon(())
    }

    #[inline(always)]
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64 {
        // SAFETY: `self` exists, so the feature was detected.
        unsafe { ge_mask(acc, threshold) }
    }

    #[inline(always)]
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64 {
        // SAFETY: as above.
        unsafe { ge_mask_f32(x, threshold) }
    }

    #[inline]
    fn run<L: VectorLoop>(self, work: L) -> L::Output {
        #[target_feature(enable = "neon")]
        fn compiled<L: VectorLoop>(simd: Neon, work: L) -> L::Output {
            work.run(simd)
        }
        // SAFETY: as above.
        unsafe { compiled(self, work) }
    }
}

/// [`Simd::ge_mask`]: every vector contributes four bits.
#[target_feature(enable = "neon")]
#[inline]
fn ge_mask<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(4) && NR <= 32) };
    let mut bits = vdupq_n_u32(0);
    for (i, (acc, threshold)) in
        acc.as_chunks::<4>().0.iter().zip(threshold.as_chunks::<4>().0).enumerate()
    {
        // SAFETY: both arrays have four elements.
        let (acc, threshold) = unsafe { (vld1q_s32(acc.as_ptr()), vld1q_s32(threshold.as_ptr())) };
        bits = vorrq_u32(bits, vandq_u32(vcgeq_s32(acc, threshold), four_bits(i)));
    }
    u64::from(vaddvq_u32(bits))
}

/// [`Simd::ge_mask_f32`].
#[target_feature(enable = "neon")]
#[inline]
fn ge_mask_f32<const N: usize>(x: &[f32; N], threshold: f32) -> u64 {
    const { assert!(N.is_multiple_of(4) && N <= 64) };
    let threshold = vdupq_n_f32(threshold);
    let mut halves = [0, 0];
    for (half, x) in halves.iter_mut().zip(x.chunks(32)) {
        let mut bits = vdupq_n_u32(0);
        for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the array has four elements.
            let x = unsafe { vld1q_f32(x.as_ptr()) };
            bits = vorrq_u32(bits, vandq_u32(vcgeq_f32(x, threshold), four_bits(i)));
        }
        *half = u64::from(vaddvq_u32(bits));
    }
    halves[0] | halves[1] << 32
}

/// One bit per lane: bits `4 i` to `4 i + 3`.
#[target_feature(enable = "neon")]
#[inline]
fn four_bits(i: usize) -> uint32x4_t {
    const BITS: [u32; 4] = [1, 2, 4, 8];
    // SAFETY: the array has four elements.
    let bits = unsafe { vld1q_u32(BITS.as_ptr()) };
    vshlq_u32(bits, vdupq_n_s32(4 * i as i32))
}
