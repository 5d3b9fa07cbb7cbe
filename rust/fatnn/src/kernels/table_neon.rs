//! The product-table family for AArch64: `tbl` looks 16 indices up.
//!
//! `usra` shifts right and adds in one instruction, byte by byte, so high nibbles come out exactly, and low ones are what is
//! left of the sum of whole bytes modulo 256: a round is 3 `tbl`, 3 `add` and one `usra` for 192 products per vector
//! (see [`super::table`]), 27 an instruction where popcount has 21.
//!
//! Tested under emulation only; no speed was measured on hardware yet.

use std::arch::aarch64::*;

use super::popcount_neon::{at_least, float_at_least};
use super::table::{Vector, states};
use super::table_channels::channels_kernel;
use super::table_pixels::pixels_kernel;
use super::{Kernel, epilogue_methods};
use crate::cpu::{Features, Isa};

const LANES: usize = 16;

channels_kernel!(
    Channels, "aarch64-table-neon", Isa::Neon, Bytes, 4 by 2, states, (at_least, float_at_least), "neon", "neon"
);

pixels_kernel!(
    Pixels, "aarch64-table-neon-pixels", Isa::Neon, Bytes, 4 by 2, states, (at_least, float_at_least), "neon", "neon"
);

/// Where there is Advanced SIMD: on every AArch64 CPU that runs an operating system.
pub(super) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&Channels)
}

/// As [`channels`].
pub(super) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&Pixels)
}

/// A vector, which only exists where there is Advanced SIMD.
#[derive(Clone, Copy)]
struct Bytes(uint8x16_t);

// SAFETY: loads and stores are as long as the trait says.
unsafe impl Vector for Bytes {
    const LANES: usize = LANES;
    /// Whole bytes modulo 256, and high nibbles.
    type Sums = [uint8x16_t; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { vld1q_u8(at) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: this function's own contract.
        Bytes(unsafe { vld1q_u8(at) })
    }

    #[inline(always)]
    unsafe fn nothing() -> Self::Sums {
        // SAFETY: this function's own contract.
        unsafe { [vdupq_n_u8(0); 2] }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so there is Advanced SIMD.
        Bytes(unsafe { vqtbl1q_u8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Bytes(unsafe { vaddq_u8(self.0, other.0) })
    }

    #[inline(always)]
    fn count(self, [whole, high]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *whole = vaddq_u8(*whole, self.0);
            *high = vsraq_n_u8::<4>(*high, self.0);
        }
    }

    #[inline(always)]
    unsafe fn spill([whole, high]: Self::Sums, yet: bool, low_out: *mut u16, high_out: *mut u16) {
        // SAFETY: this function's own contract.
        unsafe {
            let low = vsubq_u8(whole, vshlq_n_u8::<4>(high));
            let add = |bytes, to: *mut u16| {
                let words = vreinterpretq_u16_u8(bytes);
                let [even, odd] = [vandq_u16(words, vdupq_n_u16(255)), vshrq_n_u16::<8>(words)];
                for (words, to) in [(even, to), (odd, to.add(LANES / 2))] {
                    let words = if yet { vaddq_u16(words, vld1q_u16(to)) } else { words };
                    vst1q_u16(to, words);
                }
            };
            add(low, low_out);
            add(high, high_out);
        }
    }
}
