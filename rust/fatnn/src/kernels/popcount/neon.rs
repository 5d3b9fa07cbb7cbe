//! The popcount family for AArch64, whose `cnt` instruction counts the bits of each byte.
//!
//! Six instructions for 128 products: four logic instructions (see [`super`]; one `bsl` selects the
//! carry), `cnt`, and an addition of bytes. Byte counters hold 31 chunks before they must be
//! widened. Merging carries before counting them, as on AVX2, does not pay off: a full adder takes
//! three instructions and saves two. Two vectors of two channels and four rows fill the registers,
//! so the vectors of a panel are processed two at a time.
//!
//! Each bit plane of binary and two-bit activations takes two logic instructions, or one if weights
//! have no zeros, and two instructions to count and add. That is eight or six instructions for two
//! bit planes, and four or three for one.
//!
//! Tested under emulation only; its speed has not been measured on hardware.

use std::arch::aarch64::*;

use super::{PopcountMode, TERNARY, TiledLoop, for_each_part, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

const MR: usize = 4;
/// Vectors of two channels in a panel.
const NV: usize = 8;
/// Vectors that are in registers at the same time.
const VECTORS: usize = 2;
const NR: usize = NV * 2;
/// Bytes of a panel's weights per chunk, with mask.
const CHUNK_BYTES: usize = NV * vector_bytes(true);
/// Largest number of chunks that cannot overflow a byte counter: each adds up to eight.
const BYTE_CHUNKS: usize = 255 / 8;
/// Chunks that one call counts. They cannot overflow the 16-bit counters.
const MAX_CHUNKS: usize = 8 * BYTE_CHUNKS;

/// Bytes of a vector's weights: the signs and, if `masked`, the mask of zeros.
const fn vector_bytes(masked: bool) -> usize {
    if masked { 32 } else { 16 }
}

/// Layout of the packed weights.
const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: 2 };
/// The epilogue for tiles of `NR` columns.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel uses it, and the kernel only exists if `make` detected the feature.
    const { &unsafe { Epilogue::<isa::neon::Neon, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Neon;

/// Available with Advanced SIMD, which every AArch64 CPU that runs an operating system has.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&Neon)
}

impl private::Sealed for Neon {}

impl Kernel for Neon {
    fn name(&self) -> &'static str {
        "aarch64-popcount-neon"
    }

    fn isa(&self) -> Isa {
        Isa::Neon
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        let bits: [[&TiledLoop; 2]; 2] = [
            [&BitsLoop::<1, false>, &BitsLoop::<1, true>],
            [&BitsLoop::<2, false>, &BitsLoop::<2, true>],
        ];
        inner(operands, self, bits)
    }
}

impl TiledKernel for Neon {
    fn mr(&self) -> usize {
        MR
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: `self` exists, so `make` detected the feature.
        unsafe { run::<TERNARY, true>(tiles, acc) }
    }
}

/// Computes all tiles: of ternary codes, or of `PLANES` bit planes.
#[target_feature(enable = "neon")]
fn run<const PLANES: usize, const MASKED: bool>(tiles: &Tiles<'_>, acc: &mut [i32]) {
    let mode = if PLANES == TERNARY {
        PopcountMode::Ternary
    } else {
        PopcountMode::Bits { masked: MASKED }
    };
    for_each_part::<NR, MAX_CHUNKS>(mode, tiles, acc, |offsets, weights, acc| {
        for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
            for v in (0..NV).step_by(VECTORS) {
                // SAFETY: for every offset, `weights` has `NV` vectors of signs, and `NV` masks if
                // `MASKED`. `Tiles::new` checked that every row has a unit of 16 bytes at every
                // offset.
                let counts = unsafe {
                    let weights = weights.as_ptr().add(v * vector_bytes(MASKED));
                    match PLANES {
                        TERNARY => count(rows, offsets, weights),
                        _ => count_bits::<PLANES, MASKED>(rows, offsets, weights),
                    }
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

/// `Σ (x·w + 1)`, the padding of units included, for four channels.
///
/// # Safety
/// `rows` must be readable for 16 bytes at every offset. For offset `i`, `weights` must be readable
/// for 64 bytes at `i * CHUNK_BYTES`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn count(
    rows: [*const u8; MR],
    offsets: &[usize],
    mut weights: *const u8,
) -> [int32x4_t; MR] {
    let mut ones = [[vdupq_n_u64(0); VECTORS]; MR];
    let mut wide = [[vdupq_n_u16(0); VECTORS]; MR];
    for offsets in offsets.chunks(BYTE_CHUNKS) {
        let mut twos = [[vdupq_n_u8(0); VECTORS]; MR];
        for &offset in offsets {
            let (mut s, mut k) = ([vdupq_n_u64(0); VECTORS], [vdupq_n_u64(0); VECTORS]);
            for v in 0..VECTORS {
                // SAFETY: the caller promises readable weights.
                unsafe {
                    s[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32)));
                    k[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * 32 + 16)));
                }
            }
            for r in 0..MR {
                // SAFETY: the caller promises readable rows.
                let zp = vreinterpretq_u64_u8(unsafe { vld1q_u8(rows[r].add(offset)) });
                let (z, p) = (vdupq_laneq_u64::<0>(zp), vdupq_laneq_u64::<1>(zp));
                for v in 0..VECTORS {
                    let o = vorrq_u64(z, k[v]);
                    let carry = vbslq_u64(o, ones[r][v], veorq_u64(p, s[v]));
                    ones[r][v] = veorq_u64(ones[r][v], o);
                    twos[r][v] = vaddq_u8(twos[r][v], vcntq_u8(vreinterpretq_u8_u64(carry)));
                }
            }
            weights = weights.wrapping_add(CHUNK_BYTES);
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

/// The inner loop for activations of `PLANES` bit planes.
struct BitsLoop<const PLANES: usize, const MASKED: bool>;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for BitsLoop<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for BitsLoop<PLANES, MASKED> {
    fn mr(&self) -> usize {
        MR
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn mode(&self) -> PopcountMode {
        PopcountMode::Bits { masked: MASKED }
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: this inner loop belongs to `Neon`, which only exists if `make` detected the
        // feature.
        unsafe { run::<PLANES, MASKED>(tiles, acc) }
    }
}

/// `Σ (x·w + max·[w = -1])` for four channels, where `max` is the highest level: 1 or 3.
///
/// # Safety
/// `rows` must be readable for 16 bytes at every offset. For offset `i`, `weights` must be readable
/// for two vectors at `i * NV * vector_bytes(MASKED)`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn count_bits<const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; MR],
    offsets: &[usize],
    mut weights: *const u8,
) -> [int32x4_t; MR] {
    // 16 bits hold three times eight bits, for 248 chunks and two bytes each.
    let mut wide = [[vdupq_n_u16(0); VECTORS]; MR];
    for offsets in offsets.chunks(BYTE_CHUNKS) {
        let mut counts = [[[vdupq_n_u8(0); VECTORS]; MR]; PLANES];
        for &offset in offsets {
            let (mut s, mut k) = ([vdupq_n_u64(0); VECTORS], [vdupq_n_u64(0); VECTORS]);
            for v in 0..VECTORS {
                // SAFETY: the caller promises readable weights.
                unsafe {
                    s[v] = vreinterpretq_u64_u8(vld1q_u8(weights.add(v * vector_bytes(MASKED))));
                    if MASKED {
                        k[v] = vreinterpretq_u64_u8(vld1q_u8(
                            weights.add(v * vector_bytes(MASKED) + 16),
                        ));
                    }
                }
            }
            for r in 0..MR {
                // SAFETY: the caller promises readable rows.
                let planes = vreinterpretq_u64_u8(unsafe { vld1q_u8(rows[r].add(offset)) });
                let (first, second) = (vdupq_laneq_u64::<0>(planes), vdupq_laneq_u64::<1>(planes));
                for (i, counts) in counts.iter_mut().enumerate() {
                    // A single bit plane is the second one of ternary codes.
                    let bits = if i + 2 - PLANES == 0 { first } else { second };
                    for v in 0..VECTORS {
                        let bits = veorq_u64(bits, s[v]);
                        let bits = if MASKED { vbicq_u64(bits, k[v]) } else { bits };
                        counts[r][v] = vaddq_u8(counts[r][v], vcntq_u8(vreinterpretq_u8_u64(bits)));
                    }
                }
            }
            weights = weights.wrapping_add(NV * vector_bytes(MASKED));
        }
        for (i, counts) in counts.iter().enumerate() {
            for r in 0..MR {
                for v in 0..VECTORS {
                    for _ in 0..1 << i {
                        wide[r][v] = vpadalq_u8(wide[r][v], counts[r][v]);
                    }
                }
            }
        }
    }
    let mut counts = [vdupq_n_s32(0); MR];
    for r in 0..MR {
        counts[r] =
            vreinterpretq_s32_u32(vpaddq_u32(vpaddlq_u16(wide[r][0]), vpaddlq_u16(wide[r][1])));
    }
    counts
}
