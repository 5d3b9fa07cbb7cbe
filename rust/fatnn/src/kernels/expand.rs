//! Expands packed codes to one byte per value, for kernels of int8 products on AVX-512.

use std::arch::x86_64::*;

use super::kernel::UNIT_CHANNELS;
use super::packed_input::Pixels;

/// Ternary codes: -1, 0, 1.
pub(super) const CODES: u8 = 0;
/// Levels of ternary or binary codes: the code plus one.
pub(super) const LEVELS: u8 = 1;
/// Two-bit activations.
pub(super) const UINT2: u8 = 2;

/// Expands activations of a `KIND` to the values that they stand for, one unit per pixel.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn expand<const KIND: u8>(pixels: &Pixels<'_>, out: &mut [u8]) {
    let (one, two, minus_one) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2), _mm512_set1_epi8(-1));
    for (i, out) in out.as_chunks_mut::<UNIT_CHANNELS>().0.iter_mut().enumerate() {
        let unit = u128::from_le_bytes(*pixels.unit(i));
        // Bit planes `z` and `p`, or the low and the high bit.
        let (first, second) = (unit as u64, (unit >> 64) as u64);
        let byte = match KIND {
            CODES => _mm512_maskz_mov_epi8(!first, _mm512_mask_blend_epi8(second, minus_one, one)),
            LEVELS => _mm512_maskz_mov_epi8(second, _mm512_mask_blend_epi8(first, two, one)),
            _ => _mm512_or_si512(
                _mm512_maskz_mov_epi8(first, one),
                _mm512_maskz_mov_epi8(second, two),
            ),
        };
        // SAFETY: `out` has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), byte) };
    }
}
