//! The popcount family for AVX2, which has no popcount on vectors.
//!
//! A step makes one plane of carries from 256 products with six logic operations (see [`super`]).
//! Full adders (five operations) merge the carries of four steps into one plane of weight eight,
//! and only that is counted: two table lookups of nibbles, seven operations. So 11.5 operations for
//! 256 products. Counts stay in bytes for 31 rounds, 124 steps.
//!
//! A row's planes stay in registers from the first step to the last, two rows next to each other;
//! vectors of channels follow one another. A single row has its own loop. Reductions of less than a
//! round have nothing in the planes of higher weight, whose counts are left out.
//!
//! `avx2_bits.rs` has the loops for bits, `docs/kernels.md` what was measured.

use std::arch::x86_64::*;

use super::avx2_bits::{Bits, count_one, count_two};
use super::{Loop, PopcountMode, TERNARY, in_parts, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa::{
    self,
    avx2::{add_low_halves, count_bytes, full_add, sum_bytes},
};
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, prefetch, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

pub(super) const MR: usize = 2;
/// Vectors of four channels in a panel.
pub(super) const NV: usize = 4;
pub(super) const NR: usize = NV * 4;
/// Bytes of a panel's weights for one step.
const STEP_BYTES: usize = step_bytes(true);
/// How far ahead weights are prefetched for a single row, which is faster than they come by
/// themselves.
pub(super) const AHEAD: usize = 16 * STEP_BYTES;
/// Steps whose carries are merged before they are counted.
const ROUND: usize = 4;
/// Steps after which byte counters might overflow: a round adds up to eight.
const MAX_STEPS: usize = 255 / 8 * ROUND;

/// Bytes of a vector's weights: signs and, where they are `masked`, which are zero.
pub(super) const fn vector_bytes(masked: bool) -> usize {
    if masked { 64 } else { 32 }
}

/// Bytes of a panel's weights for one step.
pub(super) const fn step_bytes(masked: bool) -> usize {
    NV * vector_bytes(masked)
}

/// Layout of the weights.
pub(super) const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: 4 };
/// What follows a tile.
pub(super) const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel has it, which exists where `make` saw the features.
    const { &unsafe { Epilogue::<isa::avx2::Avx2, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Avx2;

/// Where the CPU has AVX2 (with FMA and POPCNT, as every such CPU).
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Avx2)
}

impl private::Sealed for Avx2 {}

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "x86_64-popcount-avx2"
    }

    fn isa(&self) -> Isa {
        Isa::Avx2
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        let bits: [[&Loop; 2]; 2] =
            [[&Bits::<1, false>, &Bits::<1, true>], [&Bits::<2, false>, &Bits::<2, true>]];
        inner(operands, self, bits)
    }
}

impl TiledKernel for Avx2 {
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
        // SAFETY: `self` exists, so `make` saw the features.
        unsafe { run::<TERNARY, true, MAX_STEPS>(tiles, acc) }
    }
}

/// All tiles, `STEPS` at a time: of ternary codes, or of bits of `PLANES` planes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn run<const PLANES: usize, const MASKED: bool, const STEPS: usize>(
    tiles: &Tiles<'_>,
    acc: &mut [i32],
) {
    let mode = if PLANES == TERNARY {
        PopcountMode::Ternary
    } else {
        PopcountMode::Bits { masked: MASKED }
    };
    in_parts::<NR, STEPS>(mode, tiles, acc, |offsets, weights, acc| {
        for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
            for v in 0..NV {
                // SAFETY: `weights` holds `NV` vectors of signs, and as many masks unless it is not
                // `MASKED`, for every offset, and `Tiles::new` checked that every row has a unit of
                // 16 bytes at every offset.
                let counts = unsafe {
                    let weights = weights.as_ptr().add(v * vector_bytes(MASKED));
                    // The driver fills the last tile by repeating a row, whose counts are the same.
                    if rows[0] == rows[1] {
                        [vector::<1, PLANES, MASKED>([rows[0]], offsets, weights)[0]; MR]
                    } else {
                        vector::<MR, PLANES, MASKED>(rows, offsets, weights)
                    }
                };
                for r in 0..MR {
                    add_low_halves(&mut acc[r * NR + v * 4..][..4], counts[r]);
                }
            }
        }
    });
}

/// The counts of a vector of channels, by what is counted.
///
/// # Safety
/// As [`count`] or [`count_one`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn vector<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    weights: *const u8,
) -> [__m256i; R] {
    // SAFETY: this function's own contract.
    unsafe {
        match PLANES {
            TERNARY => count(rows, offsets, weights),
            1 => count_one::<R, MASKED>(rows, offsets, weights),
            _ => count_two::<R, MASKED>(rows, offsets, weights),
        }
    }
}

/// `Σ x·w + 64` per step, four channels in 64-bit lanes.
///
/// # Safety
/// `rows` are readable for 16 bytes at every offset, `weights` for 64 bytes at `STEP_BYTES` times
/// every offset's index.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count<const R: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let (mut ones, mut twos, mut fours) = ([zero; R], [zero; R], [zero; R]);
    // Counts of planes of weight two and eight.
    let (mut few, mut many) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<ROUND>();
    for offsets in rounds {
        // SAFETY: this function's own contract.
        let carries = unsafe {
            let a = step(rows, offsets[0], weights, &mut ones);
            let b = step(rows, offsets[1], weights.add(STEP_BYTES), &mut ones);
            let ab = full_add(&mut twos, a, b);
            let c = step(rows, offsets[2], weights.add(2 * STEP_BYTES), &mut ones);
            let d = step(rows, offsets[3], weights.add(3 * STEP_BYTES), &mut ones);
            full_add(&mut fours, ab, full_add(&mut twos, c, d))
        };
        for r in 0..R {
            many[r] = _mm256_add_epi8(many[r], count_bytes(carries[r]));
        }
        weights = weights.wrapping_add(ROUND * STEP_BYTES);
    }
    for &offset in rest {
        // SAFETY: as above.
        let carries = unsafe { step(rows, offset, weights, &mut ones) };
        for r in 0..R {
            few[r] = _mm256_add_epi8(few[r], count_bytes(carries[r]));
        }
        weights = weights.wrapping_add(STEP_BYTES);
    }
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(few[r]), count_bytes(ones[r]));
        sums[r] = if rounds.is_empty() {
            sum_bytes(low)
        } else {
            // At most (8·2 + 8 + 3·8)·2 + 8 = 104 in a byte.
            let merged = _mm256_add_epi8(twice(count_bytes(fours[r])), count_bytes(twos[r]));
            let high = _mm256_slli_epi64::<3>(sum_bytes(many[r]));
            _mm256_add_epi64(high, sum_bytes(_mm256_add_epi8(low, twice(merged))))
        };
    }
    sums
}

/// One step: adds to `ones`, returns the carries.
///
/// # Safety
/// `rows` are readable for 16 bytes at `offset`, `weights` for 64 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn step<const R: usize>(
    rows: [*const u8; R],
    offset: usize,
    weights: *const u8,
    ones: &mut [__m256i; R],
) -> [__m256i; R] {
    if R == 1 {
        prefetch(weights.wrapping_add(AHEAD));
    }
    let mut carries = [_mm256_setzero_si256(); R];
    // SAFETY: this function's own contract.
    let (s, k) =
        unsafe { (_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())) };
    for r in 0..R {
        // SAFETY: as above.
        let (z, p) = unsafe {
            let at = rows[r].add(offset).cast::<i64>();
            (
                _mm256_set1_epi64x(at.read_unaligned()),
                _mm256_set1_epi64x(at.add(1).read_unaligned()),
            )
        };
        let o = _mm256_or_si256(z, k);
        let q = _mm256_xor_si256(p, s);
        carries[r] = _mm256_or_si256(_mm256_and_si256(o, ones[r]), _mm256_andnot_si256(o, q));
        ones[r] = _mm256_xor_si256(ones[r], o);
    }
    carries
}
