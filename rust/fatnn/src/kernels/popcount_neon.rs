//! The popcount family for AArch64, whose `cnt` counts the bits of bytes.
//!
//! Six instructions for 128 products: four of logic (see [`super::popcount`]; `bsl` selects the carry in one), `cnt`, and an
//! addition of bytes, which hold 31 steps before they are widened. Merging carries before counting them, as on AVX2, does
//! not pay: a full adder takes three instructions and saves two. Two vectors of two channels beside four rows fill the
//! registers; further vectors of the panel follow one another.
//!
//! Activations of two bits take eight: four of logic for two planes, of which both are counted and added.
//!
//! Tested under emulation only; no speed was measured on hardware yet.

use std::arch::aarch64::*;

use super::popcount::in_parts;
use super::{Family, Inner, Kernel, Layout, Seal, TiledKernel, Tiles, epilogue_methods};
use crate::codec::Act;
use crate::cpu::{Features, Isa};

const MR: usize = 4;
/// Vectors of two channels in a panel.
const NV: usize = 8;
/// Vectors that are in registers at a time.
const VECTORS: usize = 2;
const NR: usize = NV * 2;
/// Bytes of a panel's weights for one step.
const STEP_BYTES: usize = NV * 32;
/// Steps that a byte can count: eight bits each.
const BYTE_STEPS: usize = 255 / 8;
/// Steps that are counted at once: 16 bits hold more.
const MAX_STEPS: usize = 8 * BYTE_STEPS;

#[derive(Debug)]
struct Neon;

/// Where there is Advanced SIMD: on every AArch64 CPU that runs an operating system.
pub(super) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&Neon)
}

impl Kernel for Neon {
    fn name(&self) -> &'static str {
        "aarch64-popcount-neon"
    }

    fn isa(&self) -> Isa {
        Isa::Neon
    }

    fn layout(&self) -> Layout {
        Layout { family: Family::Popcount, nr: NR, lanes: 2 }
    }

    fn inner(&self, act: Act, _: Seal) -> Option<Inner<'_>> {
        Some(match act {
            Act::Full | Act::Half => Inner::Tiled(self),
            Act::Uint2 => Inner::Tiled(&Uint2),
        })
    }

    epilogue_methods!(NR, at_least, float_at_least, "neon");
}

impl TiledKernel for Neon {
    fn mr(&self) -> usize {
        MR
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: `self` exists, so `make` saw the feature.
        unsafe { run::<false>(tiles, acc) }
    }
}

/// All tiles: of ternary codes, or of two bits.
#[target_feature(enable = "neon")]
fn run<const UINT2: bool>(tiles: &Tiles<'_>, acc: &mut [i32]) {
    in_parts::<NR, MAX_STEPS>(tiles, acc, |offsets, weights, acc| {
        for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
            for v in (0..NV).step_by(VECTORS) {
                // SAFETY: `weights` holds `NV` pairs of vectors for every offset, and `Tiles::new` checked that every row
                // has a unit of 16 bytes at every offset.
                let counts = unsafe {
                    let weights = weights.as_ptr().add(v * 32);
                    if UINT2 { count_uint2(rows, offsets, weights) } else { count(rows, offsets, weights) }
                };
                for r in 0..MR {
                    let out = acc[r * NR + v * 2..][..4].as_mut_ptr();
                    // SAFETY: `out` has four elements.
                    unsafe { vst1q_s32(out, vaddq_s32(vld1q_s32(out), counts[r])) };
                }
            }
        }
    });
}

/// `Σ x·w + 64` per step, for four channels.
///
/// # Safety
/// `rows` are readable for 16 bytes at every offset, `weights` for 64 bytes at `STEP_BYTES` times every offset's index.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn count(rows: [*const u8; MR], offsets: &[usize], mut weights: *const u8) -> [int32x4_t; MR] {
    let mut ones = [[vdupq_n_u64(0); VECTORS]; MR];
    let mut wide = [[vdupq_n_u16(0); VECTORS]; MR];
    for offsets in offsets.chunks(BYTE_STEPS) {
        let mut twos = [[vdupq_n_u8(0); VECTORS]; MR];
        for &offset in offsets {
            let (mut s, mut k) = ([vdupq_n_u64(0); VECTORS], [vdupq_n_u64(0); VECTORS]);
            for v in 0..VECTORS {
                // SAFETY: this function's own contract.
                unsafe {
                    s[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32)));
                    k[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32 + 16)));
                }
            }
            for r in 0..MR {
                // SAFETY: as above.
                let zp = vreinterpretq_u64_u8(unsafe { vld1q_u8(rows[r].add(offset)) });
                let (z, p) = (vdupq_laneq_u64::<0>(zp), vdupq_laneq_u64::<1>(zp));
                for v in 0..VECTORS {
                    let o = vorrq_u64(z, k[v]);
                    let carry = vbslq_u64(o, ones[r][v], veorq_u64(p, s[v]));
                    ones[r][v] = veorq_u64(ones[r][v], o);
                    twos[r][v] = vaddq_u8(twos[r][v], vcntq_u8(vreinterpretq_u8_u64(carry)));
                }
            }
            weights = weights.wrapping_add(STEP_BYTES);
        }
        for r in 0..MR {
            for v in 0..VECTORS {
                wide[r][v] = vpadalq_u8(wide[r][v], twos[r][v]);
            }
        }
    }
    let mut counts = [vdupq_n_s32(0); MR];
    for r in 0..MR {
        let mut both = [vdupq_n_u32(0); VECTORS];
        for v in 0..VECTORS {
            let ones = vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u64(ones[r][v])));
            both[v] = vpaddlq_u16(vaddq_u16(vaddq_u16(wide[r][v], wide[r][v]), ones));
        }
        counts[r] = vreinterpretq_s32_u32(vpaddq_u32(both[0], both[1]));
    }
    counts
}

/// The inner loop for activations of two bits.
struct Uint2;

impl TiledKernel for Uint2 {
    fn mr(&self) -> usize {
        MR
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: this inner loop is `Neon`'s, which exists where `make` saw the feature.
        unsafe { run::<true>(tiles, acc) }
    }
}

/// `Σ (x·w + 3·[w = -1])`, for four channels.
///
/// # Safety
/// As [`count`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn count_uint2(rows: [*const u8; MR], offsets: &[usize], mut weights: *const u8) -> [int32x4_t; MR] {
    // Three times eight bits for each of 248 steps and two bytes: 16 bits hold them.
    let mut wide = [[vdupq_n_u16(0); VECTORS]; MR];
    for offsets in offsets.chunks(BYTE_STEPS) {
        let (mut ones, mut twos) = ([[vdupq_n_u8(0); VECTORS]; MR], [[vdupq_n_u8(0); VECTORS]; MR]);
        for &offset in offsets {
            let (mut s, mut k) = ([vdupq_n_u64(0); VECTORS], [vdupq_n_u64(0); VECTORS]);
            for v in 0..VECTORS {
                // SAFETY: this function's own contract.
                unsafe {
                    s[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32)));
                    k[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32 + 16)));
                }
            }
            for r in 0..MR {
                // SAFETY: as above.
                let planes = vreinterpretq_u64_u8(unsafe { vld1q_u8(rows[r].add(offset)) });
                let (b0, b1) = (vdupq_laneq_u64::<0>(planes), vdupq_laneq_u64::<1>(planes));
                for v in 0..VECTORS {
                    let (low, high) = (vbicq_u64(veorq_u64(b0, s[v]), k[v]), vbicq_u64(veorq_u64(b1, s[v]), k[v]));
                    ones[r][v] = vaddq_u8(ones[r][v], vcntq_u8(vreinterpretq_u8_u64(low)));
                    twos[r][v] = vaddq_u8(twos[r][v], vcntq_u8(vreinterpretq_u8_u64(high)));
                }
            }
            weights = weights.wrapping_add(STEP_BYTES);
        }
        for r in 0..MR {
            for v in 0..VECTORS {
                wide[r][v] = vpadalq_u8(vpadalq_u8(vpadalq_u8(wide[r][v], ones[r][v]), twos[r][v]), twos[r][v]);
            }
        }
    }
    let mut counts = [vdupq_n_s32(0); MR];
    for r in 0..MR {
        counts[r] = vreinterpretq_s32_u32(vpaddq_u32(vpaddlq_u16(wide[r][0]), vpaddlq_u16(wide[r][1])));
    }
    counts
}

/// [`crate::epilogue::at_least`].
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn at_least<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(4) && NR <= 32) };
    let mut bits = vdupq_n_u32(0);
    for (i, (acc, threshold)) in acc.as_chunks::<4>().0.iter().zip(threshold.as_chunks::<4>().0).enumerate() {
        // SAFETY: both arrays have four elements.
        let (acc, threshold) = unsafe { (vld1q_s32(acc.as_ptr()), vld1q_s32(threshold.as_ptr())) };
        bits = vorrq_u32(bits, vandq_u32(vcgeq_s32(acc, threshold), four_bits(i)));
    }
    u64::from(vaddvq_u32(bits))
}

/// [`crate::quantize::at_least`].
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn float_at_least(x: &[f32; 16], threshold: f32) -> u16 {
    let threshold = vdupq_n_f32(threshold);
    let mut bits = vdupq_n_u32(0);
    for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: the array has four elements.
        let x = unsafe { vld1q_f32(x.as_ptr()) };
        bits = vorrq_u32(bits, vandq_u32(vcgeq_f32(x, threshold), four_bits(i)));
    }
    vaddvq_u32(bits) as u16
}

/// Bits `4 i` to `4 i + 3`, one in each lane.
#[target_feature(enable = "neon")]
#[inline]
fn four_bits(i: usize) -> uint32x4_t {
    const BITS: [u32; 4] = [1, 2, 4, 8];
    // SAFETY: the array has four elements.
    let bits = unsafe { vld1q_u32(BITS.as_ptr()) };
    vshlq_u32(bits, vdupq_n_s32(4 * i as i32))
}
