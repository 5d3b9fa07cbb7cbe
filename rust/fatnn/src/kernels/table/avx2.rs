//! The product-table family for AVX2. `vpshufb` looks up 32 indices.
//!
//! A round takes nine instructions for 384 products per 32 bytes (see [`super`]). They run on three
//! ports, two of which shuffle. A tile of two selecting bytes × two vectors keeps its sums in eight
//! registers; larger tiles spill. `docs/kernels.md` has measurements.

use std::arch::x86_64::*;

use super::GROUPS;
use super::channels::channels_kernel;
use super::pixels::pixels_kernel;
use super::tile::Vector;
use crate::cpu::{Features, Isa};
use crate::kernels::isa::avx2::Avx2;
use crate::kernels::kernel::Kernel;

const LANES: usize = 32;

channels_kernel!(
    ChannelsKernel, ChannelsLoop, "x86_64-table-avx2", Isa::Avx2, ByteVector,
    2 by 2, (states, uint2_states), Avx2, "avx2"
);

pixels_kernel!(
    PixelsKernel, PixelsLoop, "x86_64-table-avx2-pixels", Isa::Avx2, ByteVector,
    2 by 2, (states, uint2_states), Avx2, "avx2"
);

/// Available if the CPU has AVX2. Such CPUs also have FMA and POPCNT.
pub(crate) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&ChannelsKernel)
}

/// As [`channels`].
pub(crate) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&PixelsKernel)
}

/// [`super::states`]: expands each bit of a bit plane to a byte that is -1 or 0.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    let (z, p) = (expand(z), expand(p));
    let times = |bytes, factor: i8| _mm256_and_si256(bytes, _mm256_set1_epi8(factor));
    // `2·(p₀ + 3·p₁) - (z₀ + 3·z₁)`. `test_bits` returns -1 for a set bit, hence the signs.
    let of_p = _mm256_add_epi8(
        times(test_bits(p, FIRST_BITS), 2),
        times(test_bits(p, FIRST_BITS << 1), 6),
    );
    let of_z = _mm256_add_epi8(test_bits(z, FIRST_BITS), times(test_bits(z, FIRST_BITS << 1), -3));
    let mut states = [0; GROUPS];
    // SAFETY: `states` has 32 bytes.
    unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_add_epi8(of_p, of_z)) };
    states
}

/// [`super::uint2_states`].
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn uint2_states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    let (low, high) = (expand(unit as u64), expand((unit >> 64) as u64));
    let bit = |mask, value: i8| _mm256_and_si256(mask, _mm256_set1_epi8(value));
    let first =
        _mm256_or_si256(bit(test_bits(low, FIRST_BITS), 1), bit(test_bits(high, FIRST_BITS), 2));
    let second = _mm256_or_si256(
        bit(test_bits(low, FIRST_BITS << 1), 4),
        bit(test_bits(high, FIRST_BITS << 1), 8),
    );
    let mut states = [0; GROUPS];
    // SAFETY: `states` has 32 bytes.
    unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), _mm256_or_si256(first, second)) };
    states
}

/// Repeats each byte of a bit plane four times. Byte `i` of the result then has the two bits of
/// group `i`, at bits `2·(i mod 4)` and `2·(i mod 4) + 1`.
#[target_feature(enable = "avx2")]
#[inline]
fn expand(plane: u64) -> __m256i {
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

/// For four bytes, the mask of the first of the two bits that each of them needs.
const FIRST_BITS: u32 = 0x4010_0401;

/// -1 for every byte that has all its `bits` set, otherwise 0. `bits` are the masks of four bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn test_bits(bytes: __m256i, bits: u32) -> __m256i {
    let bits = _mm256_set1_epi32(bits as i32);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits)
}

/// A vector of bytes. It only exists if the CPU has AVX2.
#[derive(Clone, Copy)]
struct ByteVector(__m256i);

// SAFETY: loads and stores access exactly the bytes that the trait documents.
unsafe impl Vector for ByteVector {
    const LANES: usize = LANES;
    /// Sums of low nibbles as bytes, and sums of shifted 16-bit words, `Z` in [`super`].
    type Sums = [__m256i; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn zero_sums() -> Self::Sums {
        // SAFETY: the caller promises the features.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch accesses no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so the CPU has AVX2.
        ByteVector(unsafe { _mm256_shuffle_epi8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        ByteVector(unsafe { _mm256_add_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn add_round(self, [low, rest]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *low = _mm256_add_epi8(*low, _mm256_and_si256(self.0, _mm256_set1_epi8(15)));
            *rest = _mm256_add_epi16(*rest, _mm256_srli_epi16::<4>(self.0));
        }
    }

    #[inline(always)]
    unsafe fn spill(
        [low, rest]: Self::Sums,
        accumulate: bool,
        low_out: *mut u16,
        high_out: *mut u16,
    ) {
        // SAFETY: the caller promises the features, and readable and writable words.
        unsafe {
            let byte = _mm256_set1_epi16(255);
            let (even, odd) = (_mm256_and_si256(low, byte), _mm256_srli_epi16::<8>(low));
            let high = _mm256_sub_epi16(rest, _mm256_slli_epi16::<4>(odd));
            let add = |words, to: *mut u16| {
                let to = to.cast::<__m256i>();
                let words = if accumulate {
                    _mm256_add_epi16(words, _mm256_loadu_si256(to))
                } else {
                    words
                };
                _mm256_storeu_si256(to, words);
            };
            add(even, low_out);
            add(odd, low_out.add(LANES / 2));
            add(_mm256_and_si256(high, byte), high_out);
            add(_mm256_srli_epi16::<8>(high), high_out.add(LANES / 2));
        }
    }
}
