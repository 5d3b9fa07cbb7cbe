//! AVX2 with FMA and POPCNT.

use std::arch::x86_64::*;

use super::{FLOATS, INT8, Int8Rows, Simd};
use crate::cpu::Features;
use crate::kernels::vector::VectorLoop;

/// Proves that the CPU has AVX2, FMA and POPCNT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

// SAFETY: `Features::avx2` is only true if the CPU has all three features.
unsafe impl Simd for Avx2 {
    fn new(features: Features) -> Option<Self> {
        features.avx2.then_some(Avx2(()))
    }

    unsafe fn new_unchecked() -> Self {
        Avx2(())
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
        #[target_feature(enable = "avx2,fma,popcnt")]
        fn compiled<L: VectorLoop>(simd: Avx2, work: L) -> L::Output {
            work.run(simd)
        }
        // SAFETY: as above.
        unsafe { compiled(self, work) }
    }
}

/// [`Simd::ge_mask`]: compares vectors and gathers the signs of the results.
#[target_feature(enable = "avx2")]
#[inline]
fn ge_mask<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    let below = |i: usize| {
        // SAFETY: both arrays have `NR` elements, and `i` is below `NR / 8`.
        unsafe {
            let (acc, threshold) =
                (acc.as_ptr().add(i * 8).cast(), threshold.as_ptr().add(i * 8).cast());
            _mm256_cmpgt_epi32(_mm256_loadu_si256(threshold), _mm256_loadu_si256(acc))
        }
    };
    // Pack four vectors of comparisons into one vector of bytes and gather its signs. Packing
    // interleaves 32-bit quarters, so put them in order first.
    let in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut bits = 0;
    for i in (0..NR / 8).step_by(4) {
        let first = _mm256_packs_epi32(below(i), below(i + 1));
        let second =
            if i + 2 < NR / 8 { _mm256_packs_epi32(below(i + 2), below(i + 3)) } else { first };
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), in_order);
        bits |= u64::from(_mm256_movemask_epi8(bytes) as u32) << (i * 8);
    }
    !bits & u64::MAX >> (64 - NR)
}

/// [`Simd::ge_mask_f32`].
#[target_feature(enable = "avx2")]
#[inline]
fn ge_mask_f32<const N: usize>(x: &[f32; N], threshold: f32) -> u64 {
    const { assert!(N.is_multiple_of(8) && N <= 64) };
    let threshold = _mm256_set1_ps(threshold);
    let mut bits = 0;
    for (i, x) in x.as_chunks::<8>().0.iter().enumerate() {
        // SAFETY: the array has eight elements.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
        let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, threshold));
        bits |= u64::from(mask as u8) << (i * 8);
    }
    bits
}

/// Counts the bits set in each byte.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn popcount_bytes(plane: __m256i) -> __m256i {
    let table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let nibble = _mm256_set1_epi8(15);
    let low = _mm256_shuffle_epi8(table, _mm256_and_si256(plane, nibble));
    let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(plane), nibble));
    _mm256_add_epi8(low, high)
}

/// Adds up the eight bytes of each 64-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn sum_bytes(counts: __m256i) -> __m256i {
    _mm256_sad_epu8(counts, _mm256_setzero_si256())
}

/// A full adder on bit planes: adds `a` and `b` to `sum` and returns the carries.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn full_add<const R: usize>(
    sum: &mut [__m256i; R],
    a: [__m256i; R],
    b: [__m256i; R],
) -> [__m256i; R] {
    let mut carries = a;
    for r in 0..R {
        let half = _mm256_xor_si256(a[r], sum[r]);
        carries[r] = _mm256_or_si256(_mm256_and_si256(a[r], sum[r]), _mm256_and_si256(half, b[r]));
        sum[r] = _mm256_xor_si256(half, b[r]);
    }
    carries
}

/// Adds the low 32 bits of four 64-bit lanes to four numbers.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn add_low_halves(out: &mut [i32], counts: __m256i) {
    let out: &mut [i32; 4] = out.try_into().expect("four elements");
    let low_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    let counts = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(counts, low_halves));
    let at = out.as_mut_ptr().cast();
    // SAFETY: `out` has four elements.
    unsafe { _mm_storeu_si128(at, _mm_add_epi32(_mm_loadu_si128(at), counts)) };
}

/// [`Simd::encode_rows`].
#[target_feature(enable = "avx2,fma")]
fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    mut done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    rows.check::<RESIDUAL>(out);
    let [inv_step, low, high, round] = rows.encoder.constants().map(|x| _mm256_set1_ps(x));
    let (floats, bytes, step_zero) = rows.residual();
    let [step, zero] = step_zero.map(|x| _mm256_set1_ps(x));
    let levels = thresholds.map(|threshold| _mm256_set1_epi32(threshold));
    let mut nan = 0;
    for (r, acc) in rows.acc.iter().enumerate() {
        let start = r * rows.pitch + rows.first;
        let mut masks = [0; THRESHOLDS];
        for at in (0..rows.channels).step_by(8) {
            let valid = (rows.channels - at).min(8);
            let range = start + at..start + at + valid;
            let below = (1u64 << valid) - 1;
            // SAFETY: the arrays have `NR` elements.
            let mut y = unsafe {
                let array = |x: &[f32; NR]| _mm256_loadu_ps(x.as_ptr().add(at));
                let acc = _mm256_loadu_si256(acc.as_ptr().add(at).cast());
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), array(rows.scale), array(rows.bias))
            };
            if RESIDUAL == FLOATS {
                let mut last = [0.0; 8];
                let x = first_of(&floats[range.clone()], &mut last);
                // SAFETY: the array has eight elements.
                y = _mm256_add_ps(y, unsafe { _mm256_loadu_ps(x.as_ptr()) });
                let unordered = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(y, y));
                nan |= (u64::from(unordered as u8) & below) << at;
            }
            if RESIDUAL == INT8 {
                let mut last = [0; 8];
                let x = first_of(&bytes[range.clone()], &mut last);
                // SAFETY: the array has eight elements.
                let x = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
                let x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x));
                y = _mm256_add_ps(y, _mm256_fmadd_ps(x, step, zero));
            }
            // `max` returns its second operand if one is NaN.
            let y = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(y, inv_step), low), high);
            let bits = _mm256_castps_si256(_mm256_add_ps(y, round));
            for (mask, level) in masks.iter_mut().zip(levels) {
                let under =
                    _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(level, bits)));
                *mask |= (u64::from(!under as u8) & below) << at;
            }
            // The last byte of every number, gathered within each half.
            let last_bytes = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
            );
            let halves = _mm256_shuffle_epi8(bits, last_bytes);
            let packed = _mm_unpacklo_epi32(
                _mm256_castsi256_si128(halves),
                _mm256_extracti128_si256::<1>(halves),
            );
            let packed = _mm_cvtsi128_si64(packed).to_le_bytes();
            let out = &mut out[range];
            match out.first_chunk_mut() {
                Some(out) => *out = packed,
                None => out.copy_from_slice(&packed[..valid]),
            }
        }
        done(r, masks);
    }
    nan
}

/// The first eight elements. If there are fewer, they are copied to `last`, which has zeros after
/// them.
#[inline(always)]
fn first_of<'a, T: Copy>(from: &'a [T], last: &'a mut [T; 8]) -> &'a [T; 8] {
    match from.first_chunk() {
        Some(whole) => whole,
        None => {
            last[..from.len()].copy_from_slice(from);
            last
        }
    }
}
