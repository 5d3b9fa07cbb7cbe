//! The popcount family's loops for bits on AVX2: activations of one bit or two.
//!
//! Two-bit activations make two planes a step, of weight one and two, with four logic operations.
//! Full adders take the sixteen planes of eight steps down to three of weight eight: thirteen
//! adders and three counts, 14.75 operations a step. Weights that are never zero need no mask: two
//! less.
//!
//! Binary activations make one plane. Eight of them are merged into one of weight eight: seven
//! adders and one count, 5.4 operations a step, and one logic operation or two.

use std::arch::x86_64::*;

use super::PopcountMode;
use super::avx2::{AHEAD, EPILOGUE, LAYOUT, MR, run, step_bytes};
use crate::kernels::epilogue::TileEpilogue;
use crate::kernels::isa::avx2::{count_bytes, full_add, sum_bytes};
use crate::kernels::kernel::{Layout, prefetch, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

/// The inner loop for bits, of `PLANES` planes.
pub(super) struct Bits<const PLANES: usize, const MASKED: bool>;

/// Steps whose planes are merged before they are counted.
const BITS_ROUND: usize = 8;
/// Steps after which byte counters might overflow: a round adds up to eight, or three times that.
const ONE_STEPS: usize = 255 / 8 * BITS_ROUND;
const TWO_STEPS: usize = 255 / 24 * BITS_ROUND;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for Bits<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for Bits<PLANES, MASKED> {
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
        // SAFETY: this inner loop is `Avx2`'s, which exists where `make` saw the features.
        unsafe {
            if PLANES == 1 {
                run::<PLANES, MASKED, ONE_STEPS>(tiles, acc);
            } else {
                run::<PLANES, MASKED, TWO_STEPS>(tiles, acc);
            }
        }
    }
}

/// `Σ (x·w + [w = -1])` of one plane, four channels in 64-bit lanes.
///
/// # Safety
/// `rows` are readable for 16 bytes at every offset, `weights` for [`vector_bytes`] at
/// [`step_bytes`] times every offset's index.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn count_one<const R: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let (mut ones, mut twos, mut fours) = ([zero; R], [zero; R], [zero; R]);
    // Counts of planes of weight one and eight.
    let (mut few, mut many) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<BITS_ROUND>();
    for offsets in rounds {
        // A plane of weight four that waits for another one.
        let mut waiting = [zero; R];
        for (half, offsets) in offsets.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: this function's own contract.
            let [a, b, c, d] = unsafe {
                let step = |i: usize| {
                    step_bits::<R, 1, MASKED>(rows, offsets[i], weights.add(i * step_bytes(MASKED)))
                        [0]
                };
                [step(0), step(1), step(2), step(3)]
            };
            let (ab, cd) = (full_add(&mut ones, a, b), full_add(&mut ones, c, d));
            let four = full_add(&mut twos, ab, cd);
            if half == 0 {
                waiting = four;
            } else {
                count_into(&mut many, full_add(&mut fours, waiting, four));
            }
            weights = weights.wrapping_add(4 * step_bytes(MASKED));
        }
    }
    for &offset in rest {
        // SAFETY: as above.
        let [plane] = unsafe { step_bits::<R, 1, MASKED>(rows, offset, weights) };
        count_into(&mut few, plane);
        weights = weights.wrapping_add(step_bytes(MASKED));
    }
    // At most (8·2 + 8)·2 + 8 + 7·8 = 112 in a byte.
    if rounds.is_empty() {
        few.map(|counts| sum_bytes(counts))
    } else {
        sums([ones, twos, fours], few, many)
    }
}

/// `Σ (x·w + 3·[w = -1])` of two planes, four channels in 64-bit lanes.
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
    // Counts of planes of weight one and eight.
    let (mut few, mut many) = ([zero; R], [zero; R]);
    let (rounds, rest) = offsets.as_chunks::<BITS_ROUND>();
    for offsets in rounds {
        // A plane of weight four that waits for another one.
        let mut waiting = [zero; R];
        for (half, offsets) in offsets.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: this function's own contract.
            let (low, high) = unsafe {
                let (low_a, high_a) = two_steps::<R, MASKED>(
                    rows,
                    [offsets[0], offsets[1]],
                    weights,
                    &mut ones,
                    &mut twos,
                );
                let next = weights.add(2 * step_bytes(MASKED));
                let (low_b, high_b) = two_steps::<R, MASKED>(
                    rows,
                    [offsets[2], offsets[3]],
                    next,
                    &mut ones,
                    &mut twos,
                );
                (full_add(&mut twos, low_a, low_b), full_add(&mut fours, high_a, high_b))
            };
            count_into(&mut many, high);
            if half == 0 {
                waiting = low;
            } else {
                count_into(&mut many, full_add(&mut fours, waiting, low));
            }
            weights = weights.wrapping_add(4 * step_bytes(MASKED));
        }
    }
    for &offset in rest {
        // SAFETY: as above.
        let [low, high] = unsafe { step_bits::<R, 2, MASKED>(rows, offset, weights) };
        count_into(&mut few, low);
        for r in 0..R {
            let high = count_bytes(high[r]);
            few[r] = _mm256_add_epi8(few[r], _mm256_add_epi8(high, high));
        }
        weights = weights.wrapping_add(step_bytes(MASKED));
    }
    // At most (8·2 + 8)·2 + 8 + 7·24 = 224 in a byte.
    if rounds.is_empty() {
        few.map(|counts| sum_bytes(counts))
    } else {
        sums([ones, twos, fours], few, many)
    }
}

/// The numbers of bits of planes of weight one, two and four, counts `few` of weight one and `many`
/// of weight eight, added up.
#[target_feature(enable = "avx2")]
#[inline]
fn sums<const R: usize>(
    [ones, twos, fours]: [[__m256i; R]; 3],
    few: [__m256i; R],
    many: [__m256i; R],
) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(count_bytes(fours[r])), count_bytes(twos[r]));
        let low = _mm256_add_epi8(_mm256_add_epi8(twice(low), count_bytes(ones[r])), few[r]);
        let high = _mm256_slli_epi64::<3>(sum_bytes(many[r]));
        sums[r] = _mm256_add_epi64(high, sum_bytes(low));
    }
    sums
}

/// Two steps of two planes: adds to `ones` and `twos`, returns the carries of weight two and of
/// weight four.
///
/// # Safety
/// As [`step_bits`], for both.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn two_steps<const R: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: [usize; 2],
    weights: *const u8,
    ones: &mut [__m256i; R],
    twos: &mut [__m256i; R],
) -> ([__m256i; R], [__m256i; R]) {
    // SAFETY: this function's own contract.
    let ([low_a, high_a], [low_b, high_b]) = unsafe {
        let next = weights.add(step_bytes(MASKED));
        (
            step_bits::<R, 2, MASKED>(rows, offsets[0], weights),
            step_bits::<R, 2, MASKED>(rows, offsets[1], next),
        )
    };
    (full_add(ones, low_a, low_b), full_add(twos, high_a, high_b))
}

/// The planes of a step, of weight one and, where there are `PLANES` two, of weight two.
///
/// # Safety
/// `rows` are readable for 16 bytes at `offset`, `weights` for [`vector_bytes`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn step_bits<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offset: usize,
    weights: *const u8,
) -> [[__m256i; R]; PLANES] {
    let mut planes = [[_mm256_setzero_si256(); R]; PLANES];
    if R == 1 {
        prefetch(weights.wrapping_add(AHEAD));
    }
    // SAFETY: this function's own contract.
    let s = unsafe { _mm256_loadu_si256(weights.cast()) };
    for r in 0..R {
        for (i, plane) in planes.iter_mut().enumerate() {
            // One plane is the second of ternary codes.
            // SAFETY: as above.
            let bits =
                unsafe { rows[r].add(offset).cast::<i64>().add(i + 2 - PLANES).read_unaligned() };
            let bits = _mm256_xor_si256(_mm256_set1_epi64x(bits), s);
            plane[r] = if MASKED {
                // SAFETY: as above.
                let k = unsafe { _mm256_loadu_si256(weights.add(32).cast()) };
                _mm256_andnot_si256(k, bits)
            } else {
                bits
            };
        }
    }
    planes
}

/// Adds the number of bits set in every byte of `planes` to `counts`.
#[target_feature(enable = "avx2")]
#[inline]
fn count_into<const R: usize>(counts: &mut [__m256i; R], planes: [__m256i; R]) {
    for r in 0..R {
        counts[r] = _mm256_add_epi8(counts[r], count_bytes(planes[r]));
    }
}
