//! AVX-512 F, BW, DQ and VL, and everything that AVX2 has.

use std::arch::x86_64::*;

use super::Simd;
use crate::cpu::Features;
use crate::kernels::vector::VectorLoop;

/// Proves that the CPU has AVX-512 F, BW, DQ, VL, AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

// SAFETY: `Features::avx512` is only true if the CPU has all of these features.
unsafe impl Simd for Avx512 {
    fn new(features: Features) -> Option<Self> {
        features.avx512.then_some(Avx512(()))
    }

    unsafe fn new_unchecked() -> Self {
        Avx512(())
    }

    #[inline(always)]
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64 {
        // SAFETY: `self` exists, so the features were detected.
        unsafe { ge_mask(acc, threshold) }
    }

    #[inline(always)]
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64 {
        // SAFETY: as above.
        unsafe { ge_mask_f32(x, threshold) }
    }

    #[inline]
    fn run<L: VectorLoop>(self, work: L) -> L::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn compiled<L: VectorLoop>(simd: Avx512, work: L) -> L::Output {
            work.run(simd)
        }
        // SAFETY: as above.
        unsafe { compiled(self, work) }
    }
}

/// [`Simd::ge_mask`]: compares into mask registers.
#[target_feature(enable = "avx512f")]
#[inline]
fn ge_mask<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    let mut bits = 0;
    for (i, (acc, threshold)) in
        acc.as_chunks::<16>().0.iter().zip(threshold.as_chunks::<16>().0).enumerate()
    {
        // SAFETY: both arrays have sixteen elements.
        let (acc, threshold) = unsafe {
            (_mm512_loadu_si512(acc.as_ptr().cast()), _mm512_loadu_si512(threshold.as_ptr().cast()))
        };
        bits |= u64::from(_mm512_cmpge_epi32_mask(acc, threshold)) << (i * 16);
    }
    bits
}

/// [`Simd::ge_mask_f32`].
#[target_feature(enable = "avx512f")]
#[inline]
fn ge_mask_f32<const N: usize>(x: &[f32; N], threshold: f32) -> u64 {
    const { assert!(N.is_multiple_of(16) && N <= 64) };
    let threshold = _mm512_set1_ps(threshold);
    let mut bits = 0;
    for (i, x) in x.as_chunks::<16>().0.iter().enumerate() {
        // SAFETY: the array has sixteen elements.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        bits |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, threshold)) << (i * 16);
    }
    bits
}
