//! AVX-512 F, BW, DQ and VL, and everything that AVX2 has.

use std::arch::x86_64::*;

use super::{FLOATS, INT8, Int8Rows, Simd};
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

    #[inline(always)]
    fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
        self,
        rows: &Int8Rows<'_, NR>,
        thresholds: &[i32; THRESHOLDS],
        out: &mut [u8],
        done: impl FnMut(usize, [u64; THRESHOLDS]),
    ) -> u64 {
        // SAFETY: as above.
        unsafe { encode_rows::<NR, RESIDUAL, THRESHOLDS>(rows, thresholds, out, done) }
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

/// [`Simd::encode_rows`]. The compiler does not vectorise the plain loop: it has many arrays.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    mut done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    rows.check::<RESIDUAL>(out);
    let [inv_step, low, high, round] = rows.encoder.constants().map(|x| _mm512_set1_ps(x));
    let (floats, bytes, step_zero) = rows.residual();
    let [step, zero] = step_zero.map(|x| _mm512_set1_ps(x));
    let levels = thresholds.map(|threshold| _mm512_set1_epi32(threshold));
    let mut nan = 0;
    for (r, acc) in rows.acc.iter().enumerate() {
        let start = r * rows.pitch + rows.first;
        let mut masks = [0; THRESHOLDS];
        // Whole vectors are a loop of constant length, which is unrolled.
        let mut vector = |at: usize, valid: __mmask16| {
            // SAFETY: `check` saw that the rows lie within all slices; `valid` excludes channels
            // that do not exist. The arrays have `NR` elements.
            unsafe {
                let array = |x: &[f32; NR]| _mm512_loadu_ps(x.as_ptr().add(at));
                let acc = _mm512_loadu_si512(acc.as_ptr().add(at).cast());
                let mut y =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), array(rows.scale), array(rows.bias));
                if RESIDUAL == FLOATS {
                    let x = _mm512_maskz_loadu_ps(valid, floats.as_ptr().add(start + at));
                    y = _mm512_add_ps(y, x);
                    let unordered = _mm512_mask_cmp_ps_mask::<_CMP_UNORD_Q>(valid, y, y);
                    nan |= u64::from(unordered) << at;
                }
                if RESIDUAL == INT8 {
                    let x = _mm_maskz_loadu_epi8(valid, bytes.as_ptr().add(start + at).cast());
                    let x = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
                    y = _mm512_add_ps(y, _mm512_fmadd_ps(x, step, zero));
                }
                // `max` returns its second operand if one is NaN.
                let y = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(y, inv_step), low), high);
                let bits = _mm512_castps_si512(_mm512_add_ps(y, round));
                let to = out.as_mut_ptr().add(start + at);
                match valid {
                    u16::MAX => _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(bits)),
                    _ => _mm_mask_storeu_epi8(to.cast(), valid, _mm512_cvtepi32_epi8(bits)),
                }
                for (mask, level) in masks.iter_mut().zip(levels) {
                    let reached = _mm512_mask_cmpge_epi32_mask(valid, bits, level);
                    *mask |= u64::from(reached) << at;
                }
            }
        };
        if rows.channels == NR {
            (0..NR).step_by(16).for_each(|at| vector(at, u16::MAX));
        } else {
            for at in (0..rows.channels).step_by(16) {
                vector(at, ((1u32 << (rows.channels - at).min(16)) - 1) as u16);
            }
        }
        done(r, masks);
    }
    nan
}
