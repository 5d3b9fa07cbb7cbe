//! The product-table family for AVX-512 with BW (Skylake-X and later). `vpshufb` looks up 64
//! indices.
//!
//! A round takes nine instructions for 768 products per 64 bytes (see [`super`]). They run on the
//! two 512-bit ports, only one of which shuffles. This kernel is for CPUs without `vpopcntq` and
//! for short reductions.
//!
//! VBMI has wider tables: `vpermi2b` could look up groups of four channels, 256 products with one
//! addition. But it takes three micro-ops on Intel, and each of its rows takes two loads of 64
//! bytes.

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
    ChannelsKernel, ChannelsLoop, "x86_64-table-avx512", Isa::Avx512, ByteVector,
    4 by 1, (states, uint2_states), Avx512, "avx512f,avx512bw"
);

pixels_kernel!(
    PixelsKernel, PixelsLoop, "x86_64-table-avx512-pixels", Isa::Avx512, ByteVector,
    4 by 1, (states, uint2_states), Avx512, "avx512f,avx512bw"
);

/// Available if the CPU has AVX-512 F, BW, DQ and VL.
pub(crate) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx512.then_some(&ChannelsKernel)
}

/// As [`channels`].
pub(crate) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.avx512.then_some(&PixelsKernel)
}

/// A vector of bytes. It only exists if the CPU has AVX-512 BW.
#[derive(Clone, Copy)]
struct ByteVector(__m512i);

// SAFETY: loads and stores access exactly the bytes that the trait documents.
unsafe impl Vector for ByteVector {
    const LANES: usize = LANES;
    /// Sums of low nibbles as bytes, and sums of shifted 16-bit words, `Z` in [`super`].
    type Sums = [__m512i; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { _mm512_loadu_si512(at.cast()) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn zero_sums() -> Self::Sums {
        // SAFETY: the caller promises the features.
        unsafe { [_mm512_setzero_si512(); 2] }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a prefetch accesses no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so the CPU has AVX-512 BW.
        ByteVector(unsafe { _mm512_shuffle_epi8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        ByteVector(unsafe { _mm512_add_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn add_round(self, [low, rest]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *low = _mm512_add_epi8(*low, _mm512_and_si512(self.0, _mm512_set1_epi8(15)));
            *rest = _mm512_add_epi16(*rest, _mm512_srli_epi16::<4>(self.0));
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
            let byte = _mm512_set1_epi16(255);
            let (even, odd) = (_mm512_and_si512(low, byte), _mm512_srli_epi16::<8>(low));
            let high = _mm512_sub_epi16(rest, _mm512_slli_epi16::<4>(odd));
            let add = |words, to: *mut u16| {
                let to = to.cast::<__m512i>();
                let words = if accumulate {
                    _mm512_add_epi16(words, _mm512_loadu_si512(to))
                } else {
                    words
                };
                _mm512_storeu_si512(to, words);
            };
            add(even, low_out);
            add(odd, low_out.add(LANES / 2));
            add(_mm512_and_si512(high, byte), high_out);
            add(_mm512_srli_epi16::<8>(high), high_out.add(LANES / 2));
        }
    }
}
