//! The popcount family for AVX2, which has no popcount on vectors.
//!
//! A step makes one plane of carries from 256 products with six logic operations (see [`crate::kernels::popcount`]). Carries are
//! merged by full adders (five operations each) from four steps into one plane of weight eight, and only that is counted:
//! two table lookups of nibbles, seven operations. So 2.5 + 1.25 + 1.75 operations a step come on top: 11.5 for 256
//! products, of which CPUs do three or four a cycle. Counts stay in bytes for 31 rounds, 124 steps.
//!
//! A row's planes stay in registers from the first step to the last, two rows beside each other; vectors of channels follow
//! one another. Measured on Sapphire Rapids, one core: 208 GMAC/s at 48·4608·512, 185 at 784·1152·128, 155 to 207 in the 3×3
//! layers of a ResNet-18. One row, three rows, and eight steps into one count were 2 to 6% slower each, in most shapes;
//! two rows' registers just fit. A single row (a linear layer's, of one image) has its own loop: two rows at the same
//! address took 0.23 ms in 4096 → 4096 on Zen 3, one takes 0.13.
//!
//! Reductions of less than a round have nothing in the planes of higher weight, whose counts are left out then: half of the
//! time of 64 → 256 channels.
//!
//! Activations of two bits make two planes a step, of weight one and two, with four logic operations. Full adders take each
//! eight steps' sixteen planes down to three of weight eight: thirteen adders and three counts, 118 operations, 14.75 a step
//! against 11.5, so four levels should run at 0.78 of three levels' speed. Measured on Zen 3, interleaved: 0.75 to 0.77 where
//! reductions are long, 0.81 to 0.83 at 9 and 16 steps, where what a panel costs beside its steps weighs more. Where weights are
//! never zero the masks go, two operations of 14.75.
//!
//! Binary activations make one plane, of which eight steps' are merged into one of weight eight: seven adders and one count, 5.4 a
//! step, and one logic operation or two. So binary weights take 6.4 for 256 products and ternary ones 7.4: 1.8 and 1.55 times
//! ternary codes' speed. Measured on Zen 3: 1.8 and 1.5 where reductions are long, 1.4 and 1.3 at nine steps.

use std::arch::x86_64::*;

use crate::cpu::{Features, Isa};
use crate::kernels::popcount::{Loop, TERNARY, in_parts, inner};
use crate::kernels::{Counting, Family, Inner, Kernel, Layout, Operands, Seal, TiledKernel, Tiles, epilogue_methods};

const MR: usize = 2;
/// Vectors of four channels in a panel.
const NV: usize = 4;
const NR: usize = NV * 4;
/// Bytes of a panel's weights for one step.
const STEP_BYTES: usize = step_bytes(true);
/// How far ahead weights are asked for where a single row meets them, which is faster than they come by themselves (4096 → 4096:
/// 25 GB/s without, 31 with; half and twice the distance were no better).
const AHEAD: usize = 16 * STEP_BYTES;
/// Steps whose carries are merged before they are counted.
const ROUND: usize = 4;
/// Steps after which byte counters might overflow: a round adds up to eight.
const MAX_STEPS: usize = 255 / 8 * ROUND;

/// Bytes of a vector's weights: signs and, where they are `masked`, which are zero.
const fn vector_bytes(masked: bool) -> usize {
    if masked { 64 } else { 32 }
}

/// Bytes of a panel's weights for one step.
const fn step_bytes(masked: bool) -> usize {
    NV * vector_bytes(masked)
}

#[derive(Debug)]
struct Avx2;

/// Where the CPU has AVX2 (with FMA and POPCNT, as every such CPU).
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Avx2)
}

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "x86_64-popcount-avx2"
    }

    fn isa(&self) -> Isa {
        Isa::Avx2
    }

    fn layout(&self) -> Layout {
        Layout { family: Family::Popcount, nr: NR, lanes: 4 }
    }

    fn inner(&self, operands: Operands, _: Seal) -> Option<Inner<'_>> {
        let bits: [[&Loop; 2]; 2] = [[&Bits::<1, false>, &Bits::<1, true>], [&Bits::<2, false>, &Bits::<2, true>]];
        Some(inner(operands, self, bits))
    }

    epilogue_methods!(NR, at_least, float_at_least, "avx2,fma,popcnt");
}

impl TiledKernel for Avx2 {
    fn mr(&self) -> usize {
        MR
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: `self` exists, so `make` saw the features.
        unsafe { run::<TERNARY, true, MAX_STEPS>(tiles, acc) }
    }
}

/// All tiles, `STEPS` at a time: of ternary codes, or of bits of `PLANES` planes.
#[target_feature(enable = "avx2")]
fn run<const PLANES: usize, const MASKED: bool, const STEPS: usize>(tiles: &Tiles<'_>, acc: &mut [i32]) {
    let counting = if PLANES == TERNARY { Counting::Ternary } else { Counting::Bits { masked: MASKED } };
    in_parts::<NR, STEPS>(counting, tiles, acc, |offsets, weights, acc| {
        for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
            for v in 0..NV {
                // SAFETY: `weights` holds `NV` vectors of signs, and as many masks unless it is not `MASKED`, for every offset, and
                // `Tiles::new` checked that every row has a unit of 16 bytes at every offset.
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
                    add_to(&mut acc[r * NR + v * 4..][..4], counts[r]);
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
/// `rows` are readable for 16 bytes at every offset, `weights` for 64 bytes at `STEP_BYTES` times every offset's index.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count<const R: usize>(rows: [*const u8; R], offsets: &[usize], mut weights: *const u8) -> [__m256i; R] {
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
            many[r] = _mm256_add_epi8(many[r], bytes(carries[r]));
        }
        weights = weights.wrapping_add(ROUND * STEP_BYTES);
    }
    for &offset in rest {
        // SAFETY: as above.
        let carries = unsafe { step(rows, offset, weights, &mut ones) };
        for r in 0..R {
            few[r] = _mm256_add_epi8(few[r], bytes(carries[r]));
        }
        weights = weights.wrapping_add(STEP_BYTES);
    }
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(few[r]), bytes(ones[r]));
        sums[r] = if rounds.is_empty() {
            in_lanes(low)
        } else {
            // At most (8·2 + 8 + 3·8)·2 + 8 = 104 in a byte.
            let merged = _mm256_add_epi8(twice(bytes(fours[r])), bytes(twos[r]));
            let high = _mm256_slli_epi64::<3>(in_lanes(many[r]));
            _mm256_add_epi64(high, in_lanes(_mm256_add_epi8(low, twice(merged))))
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
        crate::kernels::prefetch(weights.wrapping_add(AHEAD));
    }
    let mut carries = [_mm256_setzero_si256(); R];
    // SAFETY: this function's own contract.
    let (s, k) = unsafe { (_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())) };
    for r in 0..R {
        // SAFETY: as above.
        let (z, p) = unsafe {
            let at = rows[r].add(offset).cast::<i64>();
            (_mm256_set1_epi64x(at.read_unaligned()), _mm256_set1_epi64x(at.add(1).read_unaligned()))
        };
        let o = _mm256_or_si256(z, k);
        let q = _mm256_xor_si256(p, s);
        carries[r] = _mm256_or_si256(_mm256_and_si256(o, ones[r]), _mm256_andnot_si256(o, q));
        ones[r] = _mm256_xor_si256(ones[r], o);
    }
    carries
}

/// Adds two planes to `sum`, returns the carries.
#[target_feature(enable = "avx2")]
#[inline]
fn full_add<const R: usize>(sum: &mut [__m256i; R], a: [__m256i; R], b: [__m256i; R]) -> [__m256i; R] {
    let mut carries = a;
    for r in 0..R {
        let half = _mm256_xor_si256(a[r], sum[r]);
        carries[r] = _mm256_or_si256(_mm256_and_si256(a[r], sum[r]), _mm256_and_si256(half, b[r]));
        sum[r] = _mm256_xor_si256(half, b[r]);
    }
    carries
}

/// The inner loop for bits, of `PLANES` planes.
struct Bits<const PLANES: usize, const MASKED: bool>;

/// Steps whose planes are merged before they are counted.
const BITS_ROUND: usize = 8;
/// Steps after which byte counters might overflow: a round adds up to eight, or three times that.
const ONE_STEPS: usize = 255 / 8 * BITS_ROUND;
const TWO_STEPS: usize = 255 / 24 * BITS_ROUND;

impl<const PLANES: usize, const MASKED: bool> TiledKernel for Bits<PLANES, MASKED> {
    fn mr(&self) -> usize {
        MR
    }

    fn counting(&self) -> Counting {
        Counting::Bits { masked: MASKED }
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
/// `rows` are readable for 16 bytes at every offset, `weights` for [`vector_bytes`] at [`step_bytes`] times every offset's
/// index.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count_one<const R: usize, const MASKED: bool>(
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
                let step =
                    |i: usize| step_bits::<R, 1, MASKED>(rows, offsets[i], weights.add(i * step_bytes(MASKED)))[0];
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
    if rounds.is_empty() { few.map(|counts| in_lanes(counts)) } else { sums([ones, twos, fours], few, many) }
}

/// `Σ (x·w + 3·[w = -1])` of two planes, four channels in 64-bit lanes.
///
/// # Safety
/// As [`count_one`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn count_two<const R: usize, const MASKED: bool>(
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
                let (low_a, high_a) =
                    two_steps::<R, MASKED>(rows, [offsets[0], offsets[1]], weights, &mut ones, &mut twos);
                let next = weights.add(2 * step_bytes(MASKED));
                let (low_b, high_b) =
                    two_steps::<R, MASKED>(rows, [offsets[2], offsets[3]], next, &mut ones, &mut twos);
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
            let high = bytes(high[r]);
            few[r] = _mm256_add_epi8(few[r], _mm256_add_epi8(high, high));
        }
        weights = weights.wrapping_add(step_bytes(MASKED));
    }
    // At most (8·2 + 8)·2 + 8 + 7·24 = 224 in a byte.
    if rounds.is_empty() { few.map(|counts| in_lanes(counts)) } else { sums([ones, twos, fours], few, many) }
}

/// The numbers of bits of planes of weight one, two and four, counts `few` of weight one and `many` of weight eight, added up.
#[target_feature(enable = "avx2")]
#[inline]
fn sums<const R: usize>([ones, twos, fours]: [[__m256i; R]; 3], few: [__m256i; R], many: [__m256i; R]) -> [__m256i; R] {
    let zero = _mm256_setzero_si256();
    let mut sums = [zero; R];
    for r in 0..R {
        let twice = |v| _mm256_add_epi8(v, v);
        let low = _mm256_add_epi8(twice(bytes(fours[r])), bytes(twos[r]));
        let low = _mm256_add_epi8(_mm256_add_epi8(twice(low), bytes(ones[r])), few[r]);
        let high = _mm256_slli_epi64::<3>(in_lanes(many[r]));
        sums[r] = _mm256_add_epi64(high, in_lanes(low));
    }
    sums
}

/// Sums of eight bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn in_lanes(counts: __m256i) -> __m256i {
    _mm256_sad_epu8(counts, _mm256_setzero_si256())
}

/// Two steps of two planes: adds to `ones` and `twos`, returns the carries of weight two and of weight four.
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
        (step_bits::<R, 2, MASKED>(rows, offsets[0], weights), step_bits::<R, 2, MASKED>(rows, offsets[1], next))
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
        crate::kernels::prefetch(weights.wrapping_add(AHEAD));
    }
    // SAFETY: this function's own contract.
    let s = unsafe { _mm256_loadu_si256(weights.cast()) };
    for r in 0..R {
        for (i, plane) in planes.iter_mut().enumerate() {
            // One plane is the second of ternary codes.
            // SAFETY: as above.
            let bits = unsafe { rows[r].add(offset).cast::<i64>().add(i + 2 - PLANES).read_unaligned() };
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
        counts[r] = _mm256_add_epi8(counts[r], bytes(planes[r]));
    }
}

/// Adds the low halves of four 64-bit lanes to four numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn add_to(out: &mut [i32], counts: __m256i) {
    let out: &mut [i32; 4] = out.try_into().expect("four elements");
    let low_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    let counts = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(counts, low_halves));
    let at = out.as_mut_ptr().cast();
    // SAFETY: `out` has four elements.
    unsafe { _mm_storeu_si128(at, _mm_add_epi32(_mm_loadu_si128(at), counts)) };
}

/// The number of bits set in every byte.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes(plane: __m256i) -> __m256i {
    let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let nibble = _mm256_set1_epi8(15);
    let low = _mm256_shuffle_epi8(table, _mm256_and_si256(plane, nibble));
    let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(plane), nibble));
    _mm256_add_epi8(low, high)
}

/// [`crate::epilogue::at_least`].
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn at_least<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    let below = |i: usize| {
        // SAFETY: both arrays have `NR` elements, of which every pair of vectors asked for is a part.
        unsafe {
            let (acc, threshold) = (acc.as_ptr().add(i * 8).cast(), threshold.as_ptr().add(i * 8).cast());
            _mm256_cmpgt_epi32(_mm256_loadu_si256(threshold), _mm256_loadu_si256(acc))
        }
    };
    // Four vectors of comparisons become one of bytes, whose signs are one number: their quarters come interleaved.
    let in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut bits = 0;
    for i in (0..NR / 8).step_by(4) {
        let first = _mm256_packs_epi32(below(i), below(i + 1));
        let second = if i + 2 < NR / 8 { _mm256_packs_epi32(below(i + 2), below(i + 3)) } else { first };
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), in_order);
        bits |= u64::from(_mm256_movemask_epi8(bytes) as u32) << (i * 8);
    }
    !bits & u64::MAX >> (64 - NR)
}

/// [`crate::quantize::at_least`].
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn float_at_least<const N: usize>(x: &[f32; N], threshold: f32) -> u64 {
    const { assert!(N.is_multiple_of(8) && N <= 64) };
    let threshold = _mm256_set1_ps(threshold);
    let mut bits = 0;
    for (i, x) in x.as_chunks::<8>().0.iter().enumerate() {
        // SAFETY: the array has eight elements.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
        let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, threshold));
        bits |= u64::from(mask as u8) << (i * 8);
    }
    bits
}
