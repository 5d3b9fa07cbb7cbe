//! AVX-512 F, BW, DQ and VL, and everything that AVX2 has.

use std::arch::x86_64::*;

use super::{FLOATS, INT8, Int8Rows, Simd};
use crate::cpu::Features;
use crate::kernels::vector::VectorLoop;
use crate::scalar::Encoder;

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
    fn load<const N: usize>(self, x: &[f32], count: usize) -> [f32; N] {
        // SAFETY: as above.
        unsafe { load(x, count) }
    }

    #[inline(always)]
    fn store<const N: usize>(self, to: &mut [f32], y: &[f32; N], count: usize) {
        // SAFETY: as above.
        unsafe { store(to, y, count) }
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

/// The elements of vector `i` that are among the first `count`.
fn mask_of(i: usize, count: usize) -> __mmask16 {
    ((1u32 << count.saturating_sub(i * 16).min(16)) - 1) as __mmask16
}

/// [`Simd::load`]: masked loads.
#[target_feature(enable = "avx512f")]
#[inline]
fn load<const N: usize>(x: &[f32], count: usize) -> [f32; N] {
    const { assert!(N.is_multiple_of(16)) };
    let (x, mut row) = (&x[..count], [0.0; N]);
    for (i, row) in row.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // SAFETY: reads only elements of `x`, because those beyond `count` are masked; the row has
        // sixteen elements.
        unsafe {
            let from = x.as_ptr().wrapping_add(i * 16);
            _mm512_storeu_ps(row.as_mut_ptr(), _mm512_maskz_loadu_ps(mask_of(i, count), from));
        }
    }
    row
}

/// [`Simd::store`]: masked stores.
#[target_feature(enable = "avx512f")]
#[inline]
fn store<const N: usize>(to: &mut [f32], y: &[f32; N], count: usize) {
    const { assert!(N.is_multiple_of(16)) };
    let to = &mut to[..count];
    for (i, y) in y.as_chunks::<16>().0.iter().enumerate() {
        // SAFETY: `y` has sixteen elements; writes only elements of `to`, because those beyond
        // `count` are masked.
        unsafe {
            let to = to.as_mut_ptr().wrapping_add(i * 16);
            _mm512_mask_storeu_ps(to, mask_of(i, count), _mm512_loadu_ps(y.as_ptr()));
        }
    }
}

/// An [`Encoder`] for 64 values at a time.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct ByteEncoder {
    inv_step: __m512,
    high: __m512,
    offset: __m512i,
    lowest: __m512i,
    order: __m512i,
}

impl ByteEncoder {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub fn new(encoder: &Encoder) -> Self {
        let [inv_step, _, high, _] = encoder.constants().map(|x| _mm512_set1_ps(x));
        ByteEncoder {
            inv_step,
            high,
            offset: _mm512_set1_epi16(encoder.offset()),
            lowest: _mm512_set1_epi8(encoder.lowest_byte() as i8),
            // Packing works on lanes of 128 bits: four bytes of each vector in turn.
            order: _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0),
        }
    }

    /// Rounds values to codes that [`ByteEncoder::pack`] takes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub fn code(&self, x: __m512) -> __m512i {
        // `min` returns its second operand if one is NaN. NaN and what is too small for an integer
        // become the smallest one, and the lowest byte when they are packed.
        _mm512_cvtps_epi32(_mm512_min_ps(self.high, _mm512_mul_ps(x, self.inv_step)))
    }

    /// The bytes of four vectors of codes.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub fn pack(&self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.offset);
        let cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.offset);
        let packed = _mm512_permutexvar_epi32(self.order, _mm512_packus_epi16(ab, cd));
        _mm512_max_epu8(packed, self.lowest)
    }
}

/// [`Simd::encode_rows`]: bytes are rounded by a conversion, and packed, compared and stored 64 at a
/// time. The compiler does not vectorise the plain loop: it has many arrays.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    rows.check::<RESIDUAL>(out);
    if NR == 64 && rows.channels == NR {
        return encode_checked::<NR, RESIDUAL, THRESHOLDS, true>(rows, thresholds, out, done);
    }
    encode_checked::<NR, RESIDUAL, THRESHOLDS, false>(rows, thresholds, out, done)
}

/// [`encode_rows`] after [`Int8Rows::check`]. If `WHOLE`, all of 64 channels exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
#[inline]
fn encode_checked<
    const NR: usize,
    const RESIDUAL: u8,
    const THRESHOLDS: usize,
    const WHOLE: bool,
>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    mut done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    let encoder = ByteEncoder::new(&rows.encoder);
    let (floats, bytes, step_zero) = rows.residual();
    let [step, zero] = step_zero.map(|x| _mm512_set1_ps(x));
    let exist = if WHOLE { u64::MAX } else { !u64::MAX.unbounded_shl(rows.channels as u32) };
    // The last byte of a threshold's bits is that of the smallest value that reaches it, if any.
    let levels = thresholds.map(|bits| _mm512_set1_epi8(bits as i8));
    let possible = thresholds.map(|bits| if bits == i32::MAX { 0 } else { exist });
    let mut nan = 0;
    for (r, acc) in rows.acc.iter().enumerate() {
        let start = r * rows.pitch + rows.first;
        let mut codes = [_mm512_setzero_si512(); 4];
        for (v, code) in codes.iter_mut().enumerate().take(NR / 16) {
            let (at, valid) = (v * 16, (exist >> (v * 16)) as u16);
            if !WHOLE && valid == 0 {
                break;
            }
            // SAFETY: `check` saw that the rows lie within all slices; `valid` excludes channels
            // that do not exist. The arrays have `NR` elements.
            unsafe {
                let array = |x: &[f32; NR]| _mm512_loadu_ps(x.as_ptr().add(at));
                let acc = _mm512_loadu_si512(acc.as_ptr().add(at).cast());
                let mut y =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), array(rows.scale), array(rows.bias));
                if RESIDUAL == FLOATS {
                    let x = floats.as_ptr().wrapping_add(start + at);
                    let x =
                        if WHOLE { _mm512_loadu_ps(x) } else { _mm512_maskz_loadu_ps(valid, x) };
                    y = _mm512_add_ps(y, x);
                    let unordered = _mm512_mask_cmp_ps_mask::<_CMP_UNORD_Q>(valid, y, y);
                    nan |= u64::from(unordered) << at;
                }
                if RESIDUAL == INT8 {
                    let x = bytes.as_ptr().wrapping_add(start + at);
                    let x = if WHOLE {
                        _mm_loadu_si128(x.cast())
                    } else {
                        _mm_maskz_loadu_epi8(valid, x.cast())
                    };
                    let x = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
                    y = _mm512_add_ps(y, _mm512_fmadd_ps(x, step, zero));
                }
                *code = encoder.code(y);
            }
        }
        let packed = encoder.pack(codes);
        let to = out.as_mut_ptr().wrapping_add(start);
        // SAFETY: as above.
        unsafe {
            match WHOLE {
                true => _mm512_storeu_si512(to.cast(), packed),
                false => _mm512_mask_storeu_epi8(to.cast(), exist, packed),
            }
        }
        let mut masks = possible;
        for (mask, level) in masks.iter_mut().zip(levels) {
            *mask &= _mm512_cmpge_epu8_mask(packed, level);
        }
        done(r, masks);
    }
    nan
}
