//! The popcount family for AVX-512 with VPOPCNTDQ (Ice Lake, Sapphire Rapids, Zen 4 and later).
//!
//! Five instructions per 512 products: two `vpternlogq`, one `vpxorq`, one `vpopcntq`, one
//! `vpaddq`. On two 512-bit ports that is 2.5 cycles, 205 products a cycle, whatever the port of
//! the popcount; the straightforward form (gated XOR, popcount, add per plane) needs six, 171 a
//! cycle. Activations are broadcast from memory by the load ports, which a 4×2 tile keeps 60% busy;
//! two vectors of weights' `s` and `k` stay in registers for the four rows.
//!
//! **Bits.** A plane of masked weights takes three instructions, `(b ⊕ s) ∧ ¬k` being one
//! `vpternlogq`: three for binary activations, six for two bits. (Merging planes by full adders
//! gains nothing: each takes two instructions, and saves a popcount and an addition.) Where weights
//! are never zero, a full adder takes two planes as they come, before `b ⊕ s` is made,
//!
//! ```text
//! t = ones ⊕ b ⊕ s      ones' = t ⊕ b' ⊕ s'      carry = t ? ¬ones' : ones
//! ```
//!
//! (where `t` is set, `ones` and the first plane differ, and the carry is the second plane, `t ⊕
//! ones'`): three instructions, popcount and addition for two planes, 2.5 a plane instead of 3. So
//! binary operands take half of ternary codes' instructions, two bits on either side (two panels)
//! twice as many, and ternary weights with activations of two bits 1.2 times.

use std::arch::x86_64::*;

use super::{Loop, PopcountMode, TERNARY, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::prefetch;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

const MR: usize = 4;
/// Vectors of eight channels in a panel.
const NV: usize = 2;
const NR: usize = NV * 8;
/// How far ahead weights are asked for where a single row meets them.
const AHEAD: usize = 16 * step_bytes(true);

/// Bytes of a vector's weights: signs and, where they are `masked`, which are zero.
const fn vector_bytes(masked: bool) -> usize {
    if masked { 128 } else { 64 }
}

/// Bytes of a panel's weights for one step.
const fn step_bytes(masked: bool) -> usize {
    NV * vector_bytes(masked)
}

/// Layout of the weights.
const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: 8 };
/// What follows a tile.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel has it, which exists where `make` saw the features.
    const { &unsafe { Epilogue::<isa::avx512::Avx512, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Avx512;

/// Where the CPU has AVX-512 F, BW, DQ, VL and VPOPCNTDQ.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vpopcntdq).then_some(&Avx512)
}

impl private::Sealed for Avx512 {}

impl Kernel for Avx512 {
    fn name(&self) -> &'static str {
        "x86_64-popcount-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
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

impl TiledKernel for Avx512 {
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
        // SAFETY: `self` exists, so `make` saw these features.
        unsafe { run::<MR, TERNARY, true>(tiles, acc) }
    }
}

/// The inner loop for bits, of `PLANES` planes.
struct Bits<const PLANES: usize, const MASKED: bool>;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for Bits<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for Bits<PLANES, MASKED> {
    fn mr(&self) -> usize {
        // Both planes' adders and counters of four rows would fill all registers.
        if PLANES == 2 && !MASKED { MR / 2 } else { MR }
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
        // SAFETY: this inner loop is `Avx512`'s, which exists where `make` saw the features.
        unsafe {
            if PLANES == 2 && !MASKED {
                run::<{ MR / 2 }, PLANES, MASKED>(tiles, acc);
            } else {
                run::<MR, PLANES, MASKED>(tiles, acc);
            }
        }
    }
}

/// All tiles of `ROWS` rows: of ternary codes, or of bits of `PLANES` planes. (Counters of 64 bits
/// hold any number of steps.)
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
fn run<const ROWS: usize, const PLANES: usize, const MASKED: bool>(
    tiles: &Tiles<'_>,
    acc: &mut [i32],
) {
    let (weights, constants) = tiles.panel::<NR>();
    // SAFETY: four bytes for each of sixteen channels.
    let constants = unsafe { _mm512_loadu_si512(constants.as_ptr().cast()) };
    for (rows, acc) in tiles.rows::<ROWS>().zip(acc.chunks_exact_mut(ROWS * NR)) {
        // SAFETY: `Tiles::new` checked that the panel holds `NV` vectors of signs, and as many
        // masks unless it is not `MASKED`, for every step, and that every row has a unit of 16
        // bytes there.
        unsafe {
            // The driver fills the last tile by repeating a row, whose counts are the same.
            let counts = if rows[0] == rows[ROWS - 1] {
                [tile::<1, PLANES, MASKED>([rows[0]], tiles.steps(), weights.as_ptr())[0]; ROWS]
            } else {
                tile::<ROWS, PLANES, MASKED>(rows, tiles.steps(), weights.as_ptr())
            };
            for (acc, counts) in acc.as_chunks_mut().0.iter_mut().zip(counts) {
                store(acc, constants, counts);
            }
        }
    }
}

/// The counts of a panel's channels, by what is counted.
///
/// # Safety
/// `rows` are readable for 16 bytes at every offset, `weights` for [`step_bytes`] at as many times
/// every offset's index.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
#[inline]
unsafe fn tile<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    weights: *const u8,
) -> [[__m512i; NV]; R] {
    // SAFETY: this function's own contract.
    unsafe {
        match (PLANES, MASKED) {
            (TERNARY, _) => count(rows, offsets, weights),
            (_, true) => count_masked::<R, PLANES>(rows, offsets, weights),
            (_, false) => count_signs::<R, PLANES>(rows, offsets, weights),
        }
    }
}

/// `a ⊕ (b ∨ c)`.
const XOR_OR: i32 = 0x1E;
/// `a ≠ b ? a : c`.
const CARRY: i32 = 0xB2;
/// `(a ⊕ b) ∧ ¬c`.
const XOR_ANDNOT: i32 = 0x14;
/// `a ⊕ b ⊕ c`.
const XOR: i32 = 0x96;
/// `a ? ¬b : c`.
const CARRY_OF_TWO: i32 = 0x3A;

/// A step's vectors `at` those of signs, or of masks.
///
/// # Safety
/// `weights` is readable for a step of vectors of `vector_bytes`, from `at` bytes on.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn vectors(weights: *const u8, at: usize, vector_bytes: usize) -> [__m512i; NV] {
    let mut vectors = [_mm512_setzero_si512(); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: this function's own contract.
        *vector = unsafe { _mm512_loadu_si512(weights.add(v * vector_bytes + at).cast()) };
    }
    vectors
}

/// Plane `i` of two at an address, in every lane.
///
/// # Safety
/// The address is readable for 16 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn plane(at: *const u8, i: usize) -> __m512i {
    // SAFETY: this function's own contract.
    _mm512_set1_epi64(unsafe { at.cast::<i64>().add(i).read_unaligned() })
}

/// `Σ x·w + 64` per step.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
unsafe fn count<const R: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [[__m512i; NV]; R] {
    let mut ones = [[_mm512_setzero_si512(); NV]; R];
    let mut twos = [[_mm512_setzero_si512(); NV]; R];
    for &offset in offsets {
        if R == 1 {
            ahead(weights);
        }
        // SAFETY: this function's own contract.
        let (s, k) = unsafe {
            (vectors(weights, 0, vector_bytes(true)), vectors(weights, 64, vector_bytes(true)))
        };
        for r in 0..R {
            // SAFETY: as above.
            let (z, p) = unsafe { (plane(rows[r].add(offset), 0), plane(rows[r].add(offset), 1)) };
            for v in 0..NV {
                let old = ones[r][v];
                ones[r][v] = _mm512_ternarylogic_epi64::<XOR_OR>(old, z, k[v]);
                let carry =
                    _mm512_ternarylogic_epi64::<CARRY>(old, ones[r][v], _mm512_xor_si512(p, s[v]));
                twos[r][v] = _mm512_add_epi64(twos[r][v], _mm512_popcnt_epi64(carry));
            }
        }
        weights = weights.wrapping_add(step_bytes(true));
    }
    for r in 0..R {
        for v in 0..NV {
            twos[r][v] = twice_and(twos[r][v], _mm512_popcnt_epi64(ones[r][v]));
        }
    }
    twos
}

/// `Σ (x·w + most·[w = -1])`, `most` being the highest level of the planes, of weights that may be
/// zero.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
unsafe fn count_masked<const R: usize, const PLANES: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [[__m512i; NV]; R] {
    let mut counts = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    for &offset in offsets {
        if R == 1 {
            ahead(weights);
        }
        // SAFETY: this function's own contract.
        let (s, k) = unsafe {
            (vectors(weights, 0, vector_bytes(true)), vectors(weights, 64, vector_bytes(true)))
        };
        for r in 0..R {
            for (i, counts) in counts.iter_mut().enumerate() {
                // One plane is the second of ternary codes.
                // SAFETY: as above.
                let b = unsafe { plane(rows[r].add(offset), i + 2 - PLANES) };
                for v in 0..NV {
                    let bits = _mm512_ternarylogic_epi64::<XOR_ANDNOT>(b, s[v], k[v]);
                    counts[r][v] = _mm512_add_epi64(counts[r][v], _mm512_popcnt_epi64(bits));
                }
            }
        }
        weights = weights.wrapping_add(step_bytes(true));
    }
    weighted(counts)
}

/// `Σ (x·w + most·[w = -1])` of weights that are never zero, two steps at a time.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
unsafe fn count_signs<const R: usize, const PLANES: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [[__m512i; NV]; R] {
    let mut ones = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    let mut twos = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    let (pairs, rest) = offsets.as_chunks::<2>();
    for offsets in pairs {
        if R == 1 {
            ahead(weights);
        }
        // SAFETY: this function's own contract.
        let (s, t) = unsafe {
            let next = weights.add(step_bytes(false));
            (vectors(weights, 0, vector_bytes(false)), vectors(next, 0, vector_bytes(false)))
        };
        for r in 0..R {
            for i in 0..PLANES {
                // SAFETY: as above.
                let [a, b] =
                    offsets.map(|offset| unsafe { plane(rows[r].add(offset), i + 2 - PLANES) });
                for v in 0..NV {
                    let old = ones[i][r][v];
                    let half = _mm512_ternarylogic_epi64::<XOR>(old, a, s[v]);
                    ones[i][r][v] = _mm512_ternarylogic_epi64::<XOR>(half, b, t[v]);
                    let carry = _mm512_ternarylogic_epi64::<CARRY_OF_TWO>(half, ones[i][r][v], old);
                    twos[i][r][v] = _mm512_add_epi64(twos[i][r][v], _mm512_popcnt_epi64(carry));
                }
            }
        }
        weights = weights.wrapping_add(2 * step_bytes(false));
    }
    for i in 0..PLANES {
        for r in 0..R {
            // SAFETY: as above; behind the pairs there is one step or none.
            let last = rest.first().map(|&offset| unsafe {
                (
                    plane(rows[r].add(offset), i + 2 - PLANES),
                    vectors(weights, 0, vector_bytes(false)),
                )
            });
            for v in 0..NV {
                twos[i][r][v] = twice_and(twos[i][r][v], _mm512_popcnt_epi64(ones[i][r][v]));
                if let Some((b, s)) = last {
                    let bits = _mm512_xor_si512(b, s[v]);
                    twos[i][r][v] = _mm512_add_epi64(twos[i][r][v], _mm512_popcnt_epi64(bits));
                }
            }
        }
    }
    weighted(twos)
}

/// The counts of one plane, or those of two, of weight one and two, added up.
#[target_feature(enable = "avx512f")]
#[inline]
fn weighted<const R: usize, const PLANES: usize>(
    counts: [[[__m512i; NV]; R]; PLANES],
) -> [[__m512i; NV]; R] {
    let mut sums = counts[0];
    for counts in &counts[1..] {
        for r in 0..R {
            for v in 0..NV {
                sums[r][v] = twice_and(counts[r][v], sums[r][v]);
            }
        }
    }
    sums
}

/// `2·a + b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn twice_and(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_add_epi64(a, a), b)
}

/// Asks for as many weights of a few steps later as a step of masked ones has, or two of others.
#[inline(always)]
fn ahead(weights: *const u8) {
    for line in 0..step_bytes(true) / 64 {
        prefetch(weights.wrapping_add(AHEAD + line * 64));
    }
}

/// Sets a row's sixteen numbers to the constants plus the low halves of sixteen 64-bit lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(acc: &mut [i32; NR], constants: __m512i, counts: [__m512i; NV]) {
    // In order: one shuffle where two narrowing moves would take four.
    let low_halves = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let counts = _mm512_permutex2var_epi32(counts[0], low_halves, counts[1]);
    // SAFETY: `acc` has sixteen elements.
    unsafe { _mm512_storeu_si512(acc.as_mut_ptr().cast(), _mm512_add_epi32(constants, counts)) };
}
