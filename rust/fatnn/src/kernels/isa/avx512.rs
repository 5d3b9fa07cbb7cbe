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
    if NR == 64 && rows.channels == NR {
        return encode_whole_rows::<NR, RESIDUAL, THRESHOLDS>(rows, thresholds, out, done);
    }
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

/// [`encode_rows`] for rows of 64 channels that all exist, after [`Int8Rows::check`]. Bytes are
/// rounded by a conversion, and compared and stored 64 at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
#[inline]
fn encode_whole_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    mut done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    const VECTORS: usize = 4;
    assert!(NR == VECTORS * 16 && rows.channels == NR);
    let [inv_step, _, high, _] = rows.encoder.constants().map(|x| _mm512_set1_ps(x));
    let (lowest, offset) = (rows.encoder.lowest_byte(), rows.encoder.offset());
    let (lowest, offset) = (_mm512_set1_epi8(lowest as i8), _mm512_set1_epi16(offset));
    let (floats, bytes, step_zero) = rows.residual();
    let [step, zero] = step_zero.map(|x| _mm512_set1_ps(x));
    // The last byte of a threshold's bits is that of the smallest value that reaches it, if any.
    let levels = thresholds.map(|bits| _mm512_set1_epi8(bits as i8));
    let possible = thresholds.map(|bits| if bits == i32::MAX { 0 } else { u64::MAX });
    // Packing works on lanes of 128 bits: four bytes of each vector in turn.
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let mut nan = 0;
    for (r, acc) in rows.acc.iter().enumerate() {
        let start = r * rows.pitch + rows.first;
        let mut codes = [_mm512_setzero_si512(); VECTORS];
        for (v, code) in codes.iter_mut().enumerate() {
            let at = v * 16;
            // SAFETY: `check` saw that the rows lie within all slices. The arrays have `NR`
            // elements.
            unsafe {
                let array = |x: &[f32; NR]| _mm512_loadu_ps(x.as_ptr().add(at));
                let acc = _mm512_loadu_si512(acc.as_ptr().add(at).cast());
                let mut y =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), array(rows.scale), array(rows.bias));
                if RESIDUAL == FLOATS {
                    y = _mm512_add_ps(y, _mm512_loadu_ps(floats.as_ptr().add(start + at)));
                    nan |= u64::from(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(y, y)) << at;
                }
                if RESIDUAL == INT8 {
                    let x = _mm_loadu_si128(bytes.as_ptr().add(start + at).cast());
                    let x = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
                    y = _mm512_add_ps(y, _mm512_fmadd_ps(x, step, zero));
                }
                // `min` returns its second operand if one is NaN. NaN and what is too small for an
                // integer become the smallest one, and the lowest byte when they are packed.
                *code = _mm512_cvtps_epi32(_mm512_min_ps(high, _mm512_mul_ps(y, inv_step)));
            }
        }
        let pair = |a, b| _mm512_adds_epi16(_mm512_packs_epi32(a, b), offset);
        let [a, b, c, d] = codes;
        let packed = _mm512_packus_epi16(pair(a, b), pair(c, d));
        let packed = _mm512_max_epu8(_mm512_permutexvar_epi32(order, packed), lowest);
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(start).cast(), packed) };
        let mut masks = possible;
        for (mask, level) in masks.iter_mut().zip(levels) {
            *mask &= _mm512_cmpge_epu8_mask(packed, level);
        }
        done(r, masks);
    }
    nan
}
