//! The popcount family for AVX2, which has no vector popcount.
//!
//! A chunk of 256 products makes one bit plane of carries with six logic operations (see
//! [`super`]). Full adders of five operations each merge the carries of four chunks into one bit
//! plane of weight eight. Only that plane is counted, with two table lookups of nibbles: seven
//! operations. Together that is 11.5 operations for 256 products. Byte counters hold 31 rounds of
//! four chunks.
//!
//! The bit planes of two rows stay in registers during the whole reduction, and vectors of channels
//! are processed one after another. A single row has its own loop. Reductions shorter than a round
//! leave the bit planes of higher weight empty, so these are not counted.
//!
//! `avx2_bits.rs` has the loops for binary and two-bit activations. `docs/kernels.md` has
//! measurements.

use std::arch::x86_64::*;

use super::avx2_bits::{BitsLoop, count_one, count_two};
use super::{PopcountMode, TERNARY, TiledLoop, for_each_part, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa::{
    self,
    avx2::{add_low_halves, full_add, popcount_bytes, sum_bytes},
};
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, prefetch, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

pub(super) const MR: usize = 2;
/// Vectors of four channels in a panel.
pub(super) const NV: usize = 4;
pub(super) const NR: usize = NV * 4;
/// Bytes of a panel's weights per chunk, with mask.
const CHUNK_BYTES: usize = chunk_bytes(true);
/// Bytes between use and prefetch of weights for a single row. Hardware prefetchers alone are
/// slower.
pub(super) const PREFETCH_BYTES: usize = 16 * CHUNK_BYTES;
/// Chunks whose carries are merged before they are counted.
const ROUND: usize = 4;
/// Largest number of chunks that cannot overflow byte counters: each round adds up to eight.
const MAX_CHUNKS: usize = 255 / 8 * ROUND;

/// Bytes of a vector's weights: the signs and, if `masked`, the mask of zeros.
pub(super) const fn vector_bytes(masked: bool) -> usize {
    if masked { 64 } else { 32 }
}

/// Bytes of a panel's weights per chunk.
pub(super) const fn chunk_bytes(masked: bool) -> usize {
    NV * vector_bytes(masked)
}

/// Layout of the packed weights.
pub(super) const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: 4 };
/// The epilogue for tiles of `NR` columns.
pub(super) const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel uses it, and the kernel only exists if `make` detected the features.
    const { &unsafe { Epilogue::<isa::avx2::Avx2, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Avx2;

/// Available if the CPU has AVX2. Such CPUs also have FMA and POPCNT.
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
        let bits: [[&TiledLoop; 2]; 2] = [
            [&BitsLoop::<1, false>, &BitsLoop::<1, true>],
            [&BitsLoop::<2, false>, &BitsLoop::<2, true>],
        ];
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
        // SAFETY: `self` exists, so `make` detected the features.
        unsafe { run::<TERNARY, true, MAX_CHUNKS>(tiles, acc) }
    }
}

/// Computes all tiles, `CHUNKS` chunks at a time: of ternary codes, or of `PLANES` bit planes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn run<const PLANES: usize, const MASKED: bool, const CHUNKS: usize>(
    tiles: &Tiles<'_>,
    acc: &mut [i32],
) {
    let mode = if PLANES == TERNARY {
        PopcountMode::Ternary
    } else {
        PopcountMode::Bits { masked: MASKED }
    };
    for_each_part::<NR, CHUNKS>(mode, tiles, acc, |offsets, weights, acc| {
        for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
            for v in 0..NV {
                // SAFETY: for every offset, `weights` has `NV` vectors of signs, and `NV` masks if
                // `MASKED`. `Tiles::new` checked that every row has a unit of 16 bytes at every
                // offset.
                let counts = unsafe {
                    let weights = weights.as_ptr().add(v * vector_bytes(MASKED));
                    // The driver fills up the last tile by repeating its last row, so the counts
                    // are equal.
                    if rows[0] == rows[1] {
                        [count_vector::<1, PLANES, MASKED>([rows[0]], offsets, weights)[0]; MR]
                    } else {
                        count_vector::<MR, PLANES, MASKED>(rows, offsets, weights)
                    }
                };
                for r in 0..MR {
                    add_low_halves(&mut acc[r * NR + v * 4..][..4], counts[r]);
                }
            }
        }
    });
}

/// The counts of one vector of channels: of ternary codes, or of `PLANES` bit planes.
///
/// # Safety
/// As [`count`] or [`count_one`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count_vector<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    weights: *const u8,
) -> [__m256i; R] {
    // SAFETY: the caller makes the same promises.
    unsafe {
        match PLANES {
            TERNARY => count(rows, offsets, weights),
            1 => count_one::<R, MASKED>(rows, offsets, weights),
            _ => count_two::<R, MASKED>(rows, offsets, weights),
        }
    }
}

/// `Σ (x·w + 1)`, the padding of units included, for four channels in 64-bit lanes.
///
/// # Safety
/// `rows` must be readable for 16 bytes at every offset. For offset `i`, `weights` must be readable
/// for 64 bytes at `i * CHUNK_BYTES`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count<const R: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let (mut ones, mut twos, mut fours) = ([zero; R], [zero; R], [zero; R]);
    // Byte counters of bit planes of weight two and of weight eight.
    let (mut twos_counts, mut eights_counts) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<ROUND>();
    for offsets in rounds {
        // SAFETY: the caller promises readable rows and weights.
        let carries = unsafe {
            let a = chunk_carries(rows, offsets[0], weights, &mut ones);
            let b = chunk_carries(rows, offsets[1], weights.add(CHUNK_BYTES), &mut ones);
            let ab = full_add(&mut twos, a, b);
            let c = chunk_carries(rows, offsets[2], weights.add(2 * CHUNK_BYTES), &mut ones);
            let d = chunk_carries(rows, offsets[3], weights.add(3 * CHUNK_BYTES), &mut ones);
            full_add(&mut fours, ab, full_add(&mut twos, c, d))
        };
        for r in 0..R {
            eights_counts[r] = _mm256_add_epi8(eights_counts[r], popcount_bytes(carries[r]));
        }
        weights = weights.wrapping_add(ROUND * CHUNK_BYTES);
    }
    for &offset in rest {
        // SAFETY: as above.
        let carries = unsafe { chunk_carries(rows, offset, weights, &mut ones) };
        for r in 0..R {
            twos_counts[r] = _mm256_add_epi8(twos_counts[r], popcount_bytes(carries[r]));
        }
        weights = weights.wrapping_add(CHUNK_BYTES);
    }
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(twos_counts[r]), popcount_bytes(ones[r]));
        sums[r] = if rounds.is_empty() {
            sum_bytes(low)
        } else {
            // A byte holds at most (8·2 + 8 + 3·8)·2 + 8 = 104.
            let merged = _mm256_add_epi8(twice(popcount_bytes(fours[r])), popcount_bytes(twos[r]));
            let high = _mm256_slli_epi64::<3>(sum_bytes(eights_counts[r]));
            _mm256_add_epi64(high, sum_bytes(_mm256_add_epi8(low, twice(merged))))
        };
    }
    sums
}

/// The carries of one chunk, after adding it to `ones`.
///
/// # Safety
/// `rows` must be readable for 16 bytes at `offset`, and `weights` for 64 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn chunk_carries<const R: usize>(
    rows: [*const u8; R],
    offset: usize,
    weights: *const u8,
    ones: &mut [__m256i; R],
) -> [__m256i; R] {
    if R == 1 {
        prefetch(weights.wrapping_add(PREFETCH_BYTES));
    }
    let mut carries = [_mm256_setzero_si256(); R];
    // SAFETY: the caller promises readable weights.
    let (s, k) =
        unsafe { (_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())) };
    for r in 0..R {
        // SAFETY: the caller promises readable rows.
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
