//! The product-table family for AArch64. `tbl` looks up 16 indices.
//!
//! `usra` shifts right and adds in one instruction, per byte, so sums of high nibbles are exact.
//! The low nibbles follow from the sum of whole bytes modulo 256. A round takes three `tbl`, three
//! `add` and one `usra` for 192 products per vector (see [`super`]): 27 products per instruction,
//! while the popcount kernel has 21.
//!
//! Tested under emulation only; its speed has not been measured on hardware.

use std::arch::aarch64::*;

use super::GROUPS;
use super::channels::channels_kernel;
use super::pixels::pixels_kernel;
use super::tile::Vector;
use crate::cpu::{Features, Isa};
use crate::kernels::isa::neon::Neon;
use crate::kernels::kernel::Kernel;

const LANES: usize = 16;

channels_kernel!(
    ChannelsKernel, ChannelsLoop, "aarch64-table-neon", Isa::Neon, ByteVector,
    4 by 2, (states, uint2_states), Neon, "neon"
);

pixels_kernel!(
    PixelsKernel, PixelsLoop, "aarch64-table-neon-pixels", Isa::Neon, ByteVector,
    4 by 2, (states, uint2_states), Neon, "neon"
);

/// Available with Advanced SIMD, which every AArch64 CPU that runs an operating system has.
pub(crate) fn channels(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&ChannelsKernel)
}

/// As [`channels`].
pub(crate) fn pixels(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&PixelsKernel)
}

/// [`super::states`]: expands each bit of a bit plane to a byte that is -1 or 0.
#[target_feature(enable = "neon")]
#[inline]
fn states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    let vector = |bytes: [u8; 16]| {
        // SAFETY: the array has 16 bytes.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    };
    let [first, second] = [1, 2].map(|bit| vector(std::array::from_fn(|i| bit << (i % 4 * 2))));
    let times = |bytes, factor: i8| vandq_u8(bytes, vdupq_n_u8(factor as u8));
    let mut states = [0; GROUPS];
    for (half, states) in states.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Repeats each byte of this half of the bit plane four times. Byte `i` then has the two
        // bits of group `i` of the half, at bits `2·(i mod 4)` and `2·(i mod 4) + 1`.
        let of_byte = vector(std::array::from_fn(|i| (half * 4 + i / 4) as u8));
        let expand = |bits: u64| vqtbl1q_u8(vreinterpretq_u8_u64(vdupq_n_u64(bits)), of_byte);
        let (z, p) = (expand(z), expand(p));
        // `2·(p₀ + 3·p₁) - (z₀ + 3·z₁)`. `vtst` returns -1 for a set bit, hence the signs.
        let of_p = vaddq_u8(times(vtstq_u8(p, first), 2), times(vtstq_u8(p, second), 6));
        let of_z = vaddq_u8(vtstq_u8(z, first), times(vtstq_u8(z, second), -3));
        // SAFETY: `states` has 16 bytes.
        unsafe { vst1q_u8(states.as_mut_ptr(), vaddq_u8(of_p, of_z)) };
    }
    states
}

/// [`super::uint2_states`].
#[target_feature(enable = "neon")]
#[inline]
fn uint2_states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    let vector = |bytes: [u8; 16]| {
        // SAFETY: the array has 16 bytes.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    };
    let [first, second] = [1, 2].map(|bit| vector(std::array::from_fn(|i| bit << (i % 4 * 2))));
    let bit = |bytes, wanted, value| vandq_u8(vtstq_u8(bytes, wanted), vdupq_n_u8(value));
    let mut states = [0; GROUPS];
    for (half, states) in states.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // As in `states`.
        let of_byte = vector(std::array::from_fn(|i| (half * 4 + i / 4) as u8));
        let expand = |bits: u64| vqtbl1q_u8(vreinterpretq_u8_u64(vdupq_n_u64(bits)), of_byte);
        let (low, high) = (expand(unit as u64), expand((unit >> 64) as u64));
        let of_first = vorrq_u8(bit(low, first, 1), bit(high, first, 2));
        let of_second = vorrq_u8(bit(low, second, 4), bit(high, second, 8));
        // SAFETY: `states` has 16 bytes.
        unsafe { vst1q_u8(states.as_mut_ptr(), vorrq_u8(of_first, of_second)) };
    }
    states
}

/// A vector of bytes. It only exists if the CPU has Advanced SIMD.
#[derive(Clone, Copy)]
struct ByteVector(uint8x16_t);

// SAFETY: loads and stores access exactly the bytes that the trait documents.
unsafe impl Vector for ByteVector {
    const LANES: usize = LANES;
    /// Sums of whole bytes modulo 256, and sums of high nibbles.
    type Sums = [uint8x16_t; 2];

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { vld1q_u8(at) })
    }

    #[inline(always)]
    unsafe fn row(at: *const u8) -> Self {
        // SAFETY: the caller promises readable bytes and the features.
        ByteVector(unsafe { vld1q_u8(at) })
    }

    #[inline(always)]
    unsafe fn zero_sums() -> Self::Sums {
        // SAFETY: the caller promises the features.
        unsafe { [vdupq_n_u8(0); 2] }
    }

    #[inline(always)]
    fn look_up(self, indices: Self) -> Self {
        // SAFETY: `self` exists, so the CPU has Advanced SIMD.
        ByteVector(unsafe { vqtbl1q_u8(self.0, indices.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        ByteVector(unsafe { vaddq_u8(self.0, other.0) })
    }

    #[inline(always)]
    fn add_round(self, [whole, high]: &mut Self::Sums) {
        // SAFETY: as above.
        unsafe {
            *whole = vaddq_u8(*whole, self.0);
            *high = vsraq_n_u8::<4>(*high, self.0);
        }
    }

    #[inline(always)]
    unsafe fn spill(
        [whole, high]: Self::Sums,
        accumulate: bool,
        low_out: *mut u16,
        high_out: *mut u16,
    ) {
        // SAFETY: the caller promises the features, and readable and writable words.
        unsafe {
            let low = vsubq_u8(whole, vshlq_n_u8::<4>(high));
            let add = |bytes, to: *mut u16| {
                let words = vreinterpretq_u16_u8(bytes);
                let [even, odd] = [vandq_u16(words, vdupq_n_u16(255)), vshrq_n_u16::<8>(words)];
                for (words, to) in [(even, to), (odd, to.add(LANES / 2))] {
                    let words = if accumulate { vaddq_u16(words, vld1q_u16(to)) } else { words };
                    vst1q_u16(to, words);
                }
            };
            add(low, low_out);
            add(high, high_out);
        }
    }
}
