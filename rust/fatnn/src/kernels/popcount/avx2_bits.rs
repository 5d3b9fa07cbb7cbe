//! The popcount family's loops for binary and two-bit activations on AVX2.
//!
//! Two-bit activations make two bit planes per chunk, of weight one and two, with four logic
//! operations. Full adders reduce the sixteen bit planes of eight chunks to three of weight eight.
//! That takes thirteen adders and three counts, 14.75 operations per chunk. Weights without zeros
//! need no mask, which saves two operations.
//!
//! Binary activations make one bit plane per chunk, with one or two logic operations. Eight of them
//! are merged into one of weight eight: seven adders and one count, 5.4 operations per chunk.

use std::arch::x86_64::*;

use super::PopcountMode;
use super::avx2::{EPILOGUE, LAYOUT, MR, PREFETCH_BYTES, chunk_bytes, run};
use crate::kernels::epilogue::TileEpilogue;
use crate::kernels::isa::avx2::{full_add, popcount_bytes, sum_bytes};
use crate::kernels::kernel::{Layout, prefetch, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

/// The inner loop for activations of `PLANES` bit planes.
pub(super) struct BitsLoop<const PLANES: usize, const MASKED: bool>;

/// Chunks whose bit planes are merged before they are counted.
const BITS_ROUND: usize = 8;
/// Largest numbers of chunks that cannot overflow byte counters. A round adds up to eight, or up to
/// 24 for two bit planes.
const ONE_PLANE_CHUNKS: usize = 255 / 8 * BITS_ROUND;
const TWO_PLANE_CHUNKS: usize = 255 / 24 * BITS_ROUND;

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
        // SAFETY: this inner loop belongs to `Avx2`, which only exists if `make` detected the
        // features.
        unsafe {
            if PLANES == 1 {
                run::<PLANES, MASKED, ONE_PLANE_CHUNKS>(tiles, acc);
            } else {
                run::<PLANES, MASKED, TWO_PLANE_CHUNKS>(tiles, acc);
            }
        }
    }
}

/// `Σ (x·w + [w = -1])` of one bit plane, for four channels in 64-bit lanes.
///
/// # Safety
/// `rows` must be readable for 16 bytes at every offset. For offset `i`, `weights` must be readable
/// for `vector_bytes(MASKED)` bytes at `i * chunk_bytes(MASKED)`.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn count_one<const R: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let (mut ones, mut twos, mut fours) = ([zero; R], [zero; R], [zero; R]);
    // Byte counters of bit planes of weight one and of weight eight.
    let (mut ones_counts, mut eights_counts) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<BITS_ROUND>();
    for offsets in rounds {
        // A bit plane of weight four that waits for another one.
        let mut waiting = [zero; R];
        for (half, offsets) in offsets.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the caller promises readable rows and weights.
            let [a, b, c, d] = unsafe {
                let plane = |i: usize| {
                    chunk_planes::<R, 1, MASKED>(
                        rows,
                        offsets[i],
                        weights.add(i * chunk_bytes(MASKED)),
                    )[0]
                };
                [plane(0), plane(1), plane(2), plane(3)]
            };
            let (ab, cd) = (full_add(&mut ones, a, b), full_add(&mut ones, c, d));
            let four = full_add(&mut twos, ab, cd);
            if half == 0 {
                waiting = four;
            } else {
                count_into(&mut eights_counts, full_add(&mut fours, waiting, four));
            }
            weights = weights.wrapping_add(4 * chunk_bytes(MASKED));
        }
    }
    for &offset in rest {
        // SAFETY: as above.
        let [plane] = unsafe { chunk_planes::<R, 1, MASKED>(rows, offset, weights) };
        count_into(&mut ones_counts, plane);
        weights = weights.wrapping_add(chunk_bytes(MASKED));
    }
    // A byte holds at most (8·2 + 8)·2 + 8 + 7·8 = 112.
    if rounds.is_empty() {
        ones_counts.map(|counts| sum_bytes(counts))
    } else {
        sums([ones, twos, fours], ones_counts, eights_counts)
    }
}

/// `Σ (x·w + 3·[w = -1])` of two bit planes, for four channels in 64-bit lanes.
///
/// # Safety
/// As [`count_one`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn count_two<const R: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let (mut ones, mut twos, mut fours) = ([zero; R], [zero; R], [zero; R]);
    // Byte counters of bit planes of weight one and of weight eight.
    let (mut ones_counts, mut eights_counts) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<BITS_ROUND>();
    for offsets in rounds {
        // A bit plane of weight four that waits for another one.
        let mut waiting = [zero; R];
        for (half, offsets) in offsets.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the caller promises readable rows and weights.
            let (low, high) = unsafe {
                let (low_a, high_a) = add_two_chunks::<R, MASKED>(
                    rows,
                    [offsets[0], offsets[1]],
                    weights,
                    &mut ones,
                    &mut twos,
                );
                let next = weights.add(2 * chunk_bytes(MASKED));
                let (low_b, high_b) = add_two_chunks::<R, MASKED>(
                    rows,
                    [offsets[2], offsets[3]],
                    next,
                    &mut ones,
                    &mut twos,
                );
                (full_add(&mut twos, low_a, low_b), full_add(&mut fours, high_a, high_b))
            };
            count_into(&mut eights_counts, high);
            if half == 0 {
                waiting = low;
            } else {
                count_into(&mut eights_counts, full_add(&mut fours, waiting, low));
            }
            weights = weights.wrapping_add(4 * chunk_bytes(MASKED));
        }
    }
    for &offset in rest {
        // SAFETY: as above.
        let [low, high] = unsafe { chunk_planes::<R, 2, MASKED>(rows, offset, weights) };
        count_into(&mut ones_counts, low);
        for r in 0..R {
            let high = popcount_bytes(high[r]);
            ones_counts[r] = _mm256_add_epi8(ones_counts[r], _mm256_add_epi8(high, high));
        }
        weights = weights.wrapping_add(chunk_bytes(MASKED));
    }
    // A byte holds at most (8·2 + 8)·2 + 8 + 7·24 = 224.
    if rounds.is_empty() {
        ones_counts.map(|counts| sum_bytes(counts))
    } else {
        sums([ones, twos, fours], ones_counts, eights_counts)
    }
}

/// Adds up the bits of bit planes of weight one, two and four, and byte counters of weight one and
/// of weight eight.
#[target_feature(enable = "avx2")]
#[inline]
fn sums<const R: usize>(
    [ones, twos, fours]: [[__m256i; R]; 3],
    ones_counts: [__m256i; R],
    eights_counts: [__m256i; R],
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(popcount_bytes(fours[r])), popcount_bytes(twos[r]));
        let low =
            _mm256_add_epi8(_mm256_add_epi8(twice(low), popcount_bytes(ones[r])), ones_counts[r]);
        let high = _mm256_slli_epi64::<3>(sum_bytes(eights_counts[r]));
        sums[r] = _mm256_add_epi64(high, sum_bytes(low));
    }
    sums
}

/// Adds two chunks of two bit planes to `ones` and `twos`. Returns the carries of weight two and of
/// weight four.
///
/// # Safety
/// As [`chunk_planes`], for both chunks.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn add_two_chunks<const R: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: [usize; 2],
    weights: *const u8,
    ones: &mut [__m256i; R],
    twos: &mut [__m256i; R],
) -> ([__m256i; R], [__m256i; R]) {
    // SAFETY: the caller promises readable rows and weights.
    let ([low_a, high_a], [low_b, high_b]) = unsafe {
        let next = weights.add(chunk_bytes(MASKED));
        (
            chunk_planes::<R, 2, MASKED>(rows, offsets[0], weights),
            chunk_planes::<R, 2, MASKED>(rows, offsets[1], next),
        )
    };
    (full_add(ones, low_a, low_b), full_add(twos, high_a, high_b))
}

/// The bit planes of a chunk: of weight one and, if `PLANES` is two, of weight two.
///
/// # Safety
/// `rows` must be readable for 16 bytes at `offset`, and `weights` for `vector_bytes(MASKED)`
/// bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn chunk_planes<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offset: usize,
    weights: *const u8,
) -> [[__m256i; R]; PLANES] {
    let mut planes = [[_mm256_setzero_si256(); R]; PLANES];
    if R == 1 {
        prefetch(weights.wrapping_add(PREFETCH_BYTES));
    }
    // SAFETY: the caller promises readable weights.
    let s = unsafe { _mm256_loadu_si256(weights.cast()) };
    for r in 0..R {
        for (i, plane) in planes.iter_mut().enumerate() {
            // A single bit plane is the second one of ternary codes.
            // SAFETY: the caller promises readable rows.
            let bits =
                unsafe { rows[r].add(offset).cast::<i64>().add(i + 2 - PLANES).read_unaligned() };
            let bits = _mm256_xor_si256(_mm256_set1_epi64x(bits), s);
            plane[r] = if MASKED {
                // SAFETY: with a mask, the caller promises 64 readable bytes of weights.
                let k = unsafe { _mm256_loadu_si256(weights.add(32).cast()) };
                _mm256_andnot_si256(k, bits)
            } else {
                bits
            };
        }
    }
    planes
}

/// Adds the number of bits set in each byte of `planes` to `counts`.
#[target_feature(enable = "avx2")]
#[inline]
fn count_into<const R: usize>(counts: &mut [__m256i; R], planes: [__m256i; R]) {
    for r in 0..R {
        counts[r] = _mm256_add_epi8(counts[r], popcount_bytes(planes[r]));
    }
}
