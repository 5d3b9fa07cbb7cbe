//! The product-table family for AVX-512 with BW (Skylake-X and later): `vpshufb` looks 64 indices
//! up.
//!
//! Nine instructions for 768 products per 64 bytes (see [`super`]) on the two ports that take 512
//! bits, one of which shuffles. It is for CPUs without `vpopcntq`, and for short reductions.
//!
//! VBMI has wider tables: `vpermi2b` looks up groups of four channels, 256 products with one
//! addition, but is three micro-ops on Intel, and each of its rows is two loads of 64 bytes.

use std::arch::x86_64::*;

use super::avx2::{states, uint2_states};
use super::channels::channels_kernel;
use super::pixels::pixels_kernel;
use super::tile::Vector;
use crate::cpu::{Features, Isa};
use crate::kernels::isa::avx512::Avx512;
use crate::kernels::kernel::Kernel;

const LANES: usize = 64;

channels_kernel!(
    Channels, ChannelFrames, "x86_64-table-avx512", Isa::Avx512, Bytes, 4 by 1, (states, uint2_states), Avx512, "avx512f,avx512bw"
);

pixels_kernel!(
    Pixels, PixelFrames, "x86_64-table-avx512-pixels", Isa::Avx512, Bytes, 4 by 1, (states, uint2_states), Avx512, "avx512f,avx512bw"
);

/// Where the CPU has AVX-512 F, BW, DQ and VL.
pub(crate) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx512.then_some(&Channels)
}

/// As [`channels`].
pub(crate) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx512.then_some(&Pixels)
}

/// A vector, which only exists where there is AVX-512 BW.
#[derive(Clone, Copy)]
struct Bytes(__m512i);

// SAFETY: loads and stores are as long as the trait says.
unsafe impl Vector for Bytes {
    const LANES: usize = LANES;
    /// Low nibbles in bytes, and the rest of 16-bit words.
    type Sums = [__m512i; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { _mm512_loadu_si512(at.cast()) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn nothing() -> Self::Sums {
        // SAFETY: this function's own contract.
        unsafe { [_mm512_setzero_si512(); 2] }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so there is AVX-512 BW.
        Bytes(unsafe { _mm512_shuffle_epi8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Bytes(unsafe { _mm512_add_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn count(self, [low, rest]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *low = _mm512_add_epi8(*low, _mm512_and_si512(self.0, _mm512_set1_epi8(15)));
            *rest = _mm512_add_epi16(*rest, _mm512_srli_epi16::<4>(self.0));
        }
    }

    #[inline(always)]
    unsafe fn spill([low, rest]: Self::Sums, yet: bool, low_out: *mut u16, high_out: *mut u16) {
        // SAFETY: this function's own contract.
        unsafe {
            let byte = _mm512_set1_epi16(255);
            let (even, odd) = (_mm512_and_si512(low, byte), _mm512_srli_epi16::<8>(low));
            let high = _mm512_sub_epi16(rest, _mm512_slli_epi16::<4>(odd));
            let add = |words, to: *mut u16| {
                let to = to.cast::<__m512i>();
                let words =
                    if yet { _mm512_add_epi16(words, _mm512_loadu_si512(to)) } else { words };
                _mm512_storeu_si512(to, words);
            };
            add(even, low_out);
            add(odd, low_out.add(LANES / 2));
            add(_mm512_and_si512(high, byte), high_out);
            add(_mm512_srli_epi16::<8>(high), high_out.add(LANES / 2));
        }
    }
}
