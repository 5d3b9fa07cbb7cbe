//! The product-table family for AVX2: `vpshufb` looks 32 indices up.
//!
//! Nine instructions for 384 products per 32 bytes (see [`super`]) on three ports, two of which
//! shuffle. A tile of two selectors × two vectors has its sums in eight registers; larger ones
//! spill. `docs/kernels.md` has what was measured.

use std::arch::x86_64::*;

use super::STEPS;
use super::channels::channels_kernel;
use super::pixels::pixels_kernel;
use super::tile::Vector;
use crate::cpu::{Features, Isa};
use crate::kernels::isa::avx2::Avx2;
use crate::kernels::kernel::Kernel;

const LANES: usize = 32;

channels_kernel!(
    Channels, ChannelFrames, "x86_64-table-avx2", Isa::Avx2, Bytes, 2 by 2, (states, uint2_states), Avx2, "avx2"
);

pixels_kernel!(
    Pixels, PixelFrames, "x86_64-table-avx2-pixels", Isa::Avx2, Bytes, 2 by 2, (states, uint2_states), Avx2, "avx2"
);

/// Where the CPU has AVX2 (with FMA and POPCNT, as every such CPU).
pub(crate) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Channels)
}

/// As [`channels`].
pub(crate) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Pixels)
}

/// [`super::states`]: each bit of a plane becomes the sign of a byte, which is -1 or 0.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    let (z, p) = (spread(z), spread(p));
    let times = |bytes, factor: i8| _mm256_and_si256(bytes, _mm256_set1_epi8(factor));
    // `2·(p₀ + 3·p₁) - (z₀ + 3·z₁)`, of which `test` gives the negatives of the bits.
    let of_p = _mm256_add_epi8(times(test(p, FIRST), 2), times(test(p, FIRST << 1), 6));
    let of_z = _mm256_add_epi8(test(z, FIRST), times(test(z, FIRST << 1), -3));
    let mut states = [0; STEPS];
    // SAFETY: `states` has 32 bytes.
    unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_add_epi8(of_p, of_z)) };
    states
}

/// [`super::uint2_states`].
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn uint2_states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    let (low, high) = (spread(unit as u64), spread((unit >> 64) as u64));
    let bit = |mask, value: i8| _mm256_and_si256(mask, _mm256_set1_epi8(value));
    let first = _mm256_or_si256(bit(test(low, FIRST), 1), bit(test(high, FIRST), 2));
    let second = _mm256_or_si256(bit(test(low, FIRST << 1), 4), bit(test(high, FIRST << 1), 8));
    let mut states = [0; STEPS];
    // SAFETY: `states` has 32 bytes.
    unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_or_si256(first, second)) };
    states
}

/// Byte `i` gets the plane's byte `i / 4`, of which it wants bits `2·(i mod 4)` and the next.
#[target_feature(enable = "avx2")]
#[inline]
fn spread(plane: u64) -> __m256i {
    let of_byte = _mm256_setr_epi32(
        0,
        0x0101_0101,
        0x0202_0202,
        0x0303_0303,
        0x0404_0404,
        0x0505_0505,
        0x0606_0606,
        0x0707_0707,
    );
    _mm256_shuffle_epi8(_mm256_set1_epi64x(plane as i64), of_byte)
}

/// The first of the two bits that each byte wants, of four bytes.
const FIRST: u32 = 0x4010_0401;

/// Whether each byte has the bits that four bytes name: -1 or 0.
#[target_feature(enable = "avx2")]
#[inline]
fn test(bytes: __m256i, bits: u32) -> __m256i {
    let bits = _mm256_set1_epi32(bits as i32);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits)
}

/// A vector, which only exists where there is AVX2.
#[derive(Clone, Copy)]
struct Bytes(__m256i);

// SAFETY: loads and stores are as long as the trait says.
unsafe impl Vector for Bytes {
    const LANES: usize = LANES;
    /// Low nibbles in bytes, and the rest of 16-bit words.
    type Sums = [__m256i; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn nothing() -> Self::Sums {
        // SAFETY: this function's own contract.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so there is AVX2.
        Bytes(unsafe { _mm256_shuffle_epi8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Bytes(unsafe { _mm256_add_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn count(self, [low, rest]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *low = _mm256_add_epi8(*low, _mm256_and_si256(self.0, _mm256_set1_epi8(15)));
            *rest = _mm256_add_epi16(*rest, _mm256_srli_epi16::<4>(self.0));
        }
    }

    #[inline(always)]
    unsafe fn spill([low, rest]: Self::Sums, yet: bool, low_out: *mut u16, high_out: *mut u16) {
        // SAFETY: this function's own contract.
        unsafe {
            let byte = _mm256_set1_epi16(255);
            let (even, odd) = (_mm256_and_si256(low, byte), _mm256_srli_epi16::<8>(low));
            let high = _mm256_sub_epi16(rest, _mm256_slli_epi16::<4>(odd));
            let add = |words, to: *mut u16| {
                let to = to.cast::<__m256i>();
                let words =
                    if yet { _mm256_add_epi16(words, _mm256_loadu_si256(to)) } else { words };
                _mm256_storeu_si256(to, words);
            };
            add(even, low_out);
            add(odd, low_out.add(LANES / 2));
            add(_mm256_and_si256(high, byte), high_out);
            add(_mm256_srli_epi16::<8>(high), high_out.add(LANES / 2));
        }
    }
}
