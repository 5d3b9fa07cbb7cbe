//! The popcount family for AVX-512 with VPOPCNTDQ (Ice Lake, Sapphire Rapids, Zen 4 and later).
//!
//! Five instructions for 512 products: two `vpternlogq`, one `vpxorq`, one `vpopcntq`, one
//! `vpaddq`. Two 512-bit ports need 2.5 cycles for them, 205 products per cycle, no matter which
//! port counts bits. The simple form (masked XOR, popcount and addition per bit plane) takes six
//! instructions, 171 products per cycle. Load ports broadcast activations from memory; a 4×2 tile
//! keeps them 60% busy. `s` and `k` of two vectors of weights stay in registers for four rows.
//!
//! **Binary and two-bit activations.** If weights may be zero, a bit plane takes three
//! instructions, because `(b ⊕ s) ∧ ¬k` is one `vpternlogq`. That is three for binary activations
//! and six for two-bit ones. (Merging bit planes with full adders gains nothing: an adder takes two
//! instructions and saves a popcount and an addition.) If weights have no zeros, a full adder takes
//! two bit planes before `b ⊕ s` is computed:
//!
//! ```text
//! t = ones ⊕ b ⊕ s      ones' = t ⊕ b' ⊕ s'      carry = t ? ¬ones' : ones
//! ```
//!
//! (If `t` is set, `ones` and the first bit plane differ, so the carry is the second bit plane,
//! `t ⊕ ones'`.) That is three instructions, a popcount and an addition for two bit planes: 2.5
//! instructions per bit plane instead of 3. So binary operands take half the instructions of
//! ternary codes. Two-bit weights take twice as many, as they have two panels. Ternary weights with
//! two-bit activations take 1.2 times as many.

use std::arch::x86_64::*;

use super::avx512_bits::{BitsLoop, count_masked, count_signs};
use super::{TERNARY, TiledLoop, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::prefetch;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

pub(super) const MR: usize = 4;
/// Vectors of eight channels in a panel.
pub(super) const NV: usize = 2;
pub(super) const NR: usize = NV * 8;
/// Bytes between use and prefetch of weights for a single row.
const PREFETCH_BYTES: usize = 16 * chunk_bytes(true);

/// Bytes of a vector's weights: the signs and, if `masked`, the mask of zeros.
pub(super) const fn vector_bytes(masked: bool) -> usize {
    if masked { 128 } else { 64 }
}

/// Bytes of a panel's weights per chunk.
pub(super) const fn chunk_bytes(masked: bool) -> usize {
    NV * vector_bytes(masked)
}

/// Layout of the packed weights.
pub(super) const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: 8 };
/// The epilogue for tiles of `NR` columns.
pub(super) const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel uses it, and the kernel only exists if `make` detected the features.
    const { &unsafe { Epilogue::<isa::avx512::Avx512, NR, { part_width(NR) }>::new() } }
};
/// Panels that share [`WIDE_EPILOGUE`], and their columns.
pub(super) const WIDE: usize = 4;
const WIDE_NR: usize = WIDE * NR;
/// The epilogue for `WIDE` panels. Its rows end in one store of 64 codes.
pub(super) const WIDE_EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: as above.
    const { &unsafe { Epilogue::<isa::avx512::Avx512, WIDE_NR, { part_width(WIDE_NR) }>::new() } }
};

#[derive(Debug)]
struct Avx512;

/// Available if the CPU has AVX-512 F, BW, DQ, VL and VPOPCNTDQ.
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
        let bits: [[&TiledLoop; 2]; 2] = [
            [&BitsLoop::<1, false>, &BitsLoop::<1, true>],
            [&BitsLoop::<2, false>, &BitsLoop::<2, true>],
        ];
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

    fn wide_epilogue(&self) -> Option<(usize, &'static dyn TileEpilogue)> {
        Some((WIDE, WIDE_EPILOGUE))
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: `self` exists, so `make` detected these features.
        unsafe { run::<MR, TERNARY, true>(tiles, acc) }
    }
}

/// Computes all tiles of `ROWS` rows: of ternary codes, or of `PLANES` bit planes. 64-bit counters
/// hold any number of chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
pub(super) fn run<const ROWS: usize, const PLANES: usize, const MASKED: bool>(
    tiles: &Tiles<'_>,
    acc: &mut [i32],
) {
    let (weights, constants) = tiles.panel::<NR>();
    // SAFETY: `constants` has four bytes for each of sixteen channels.
    let constants = unsafe { _mm512_loadu_si512(constants.as_ptr().cast()) };
    for (rows, acc) in tiles.rows::<ROWS>().zip(acc.chunks_mut(ROWS * tiles.pitch())) {
        // SAFETY: for every chunk, `Tiles::new` checked that the panel has `NV` vectors of signs,
        // and `NV` masks if `MASKED`, and that every row has a unit of 16 bytes.
        unsafe {
            // The driver fills the last tile by repeating its last row. If all rows are the same,
            // count once.
            let counts = if rows[0] == rows[ROWS - 1] {
                [tile::<1, PLANES, MASKED>([rows[0]], tiles.offsets(), weights.as_ptr())[0]; ROWS]
            } else {
                tile::<ROWS, PLANES, MASKED>(rows, tiles.offsets(), weights.as_ptr())
            };
            for (acc, counts) in acc.chunks_mut(tiles.pitch()).zip(counts) {
                store(&mut acc[..NR], constants, counts);
            }
        }
    }
}

/// The counts of a panel's channels: of ternary codes, or of `PLANES` bit planes.
///
/// # Safety
/// `rows` must be readable for 16 bytes at every offset. For offset `i`, `weights` must be readable
/// for `chunk_bytes(MASKED)` bytes at `i * chunk_bytes(MASKED)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
#[inline]
pub(super) unsafe fn tile<const R: usize, const PLANES: usize, const MASKED: bool>(
    rows: [*const u8; R],
    offsets: &[usize],
    weights: *const u8,
) -> [[__m512i; NV]; R] {
    // SAFETY: the caller makes the same promises.
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

/// Loads the vectors of a chunk that are `at` bytes into each vector's weights: the signs, or the
/// masks.
///
/// # Safety
/// `weights` must be readable for `NV` vectors of weights of `vector_bytes` bytes each, from byte
/// `at` on.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn vectors(weights: *const u8, at: usize, vector_bytes: usize) -> [__m512i; NV] {
    let mut vectors = [_mm512_setzero_si512(); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller promises readable weights.
        *vector = unsafe { _mm512_loadu_si512(weights.add(v * vector_bytes + at).cast()) };
    }
    vectors
}

/// Loads bit plane `i` of two and broadcasts it to all lanes.
///
/// # Safety
/// At `at`, 16 bytes must be readable.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn plane(at: *const u8, i: usize) -> __m512i {
    // SAFETY: the caller promises 16 readable bytes.
    _mm512_set1_epi64(unsafe { at.cast::<i64>().add(i).read_unaligned() })
}

/// `Σ (x·w + 1)`, the padding of units included.
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
    let (first, rest) = match offsets.split_first() {
        Some((&first, rest)) => (first, rest),
        None => return twos,
    };
    // The first chunk takes fewer instructions, because `ones` and `twos` are still 0.
    // SAFETY: the caller promises readable rows and weights.
    unsafe {
        let s = vectors(weights, 0, vector_bytes(true));
        let k = vectors(weights, 64, vector_bytes(true));
        for r in 0..R {
            let (z, p) = (plane(rows[r].add(first), 0), plane(rows[r].add(first), 1));
            for v in 0..NV {
                ones[r][v] = _mm512_or_si512(z, k[v]);
                let both = _mm512_andnot_si512(ones[r][v], _mm512_xor_si512(p, s[v]));
                twos[r][v] = _mm512_popcnt_epi64(both);
            }
        }
    }
    for &offset in rest {
        weights = weights.wrapping_add(chunk_bytes(true));
        if R == 1 {
            prefetch_ahead(weights);
        }
        // SAFETY: the caller promises readable weights.
        let (s, k) = unsafe {
            (vectors(weights, 0, vector_bytes(true)), vectors(weights, 64, vector_bytes(true)))
        };
        // A row's carries are counted after the logic of the next row. Zen 4 needs 21 cycles for a
        // chunk of four rows in this order, and 23 if each carry is counted at once.
        let mut carries = [_mm512_setzero_si512(); NV];
        for r in 0..R {
            // SAFETY: the caller promises readable rows.
            let (z, p) = unsafe { (plane(rows[r].add(offset), 0), plane(rows[r].add(offset), 1)) };
            let old = ones[r];
            for v in 0..NV {
                ones[r][v] = _mm512_ternarylogic_epi64::<XOR_OR>(old[v], z, k[v]);
            }
            let mut next = s;
            for next in &mut next {
                *next = _mm512_xor_si512(p, *next);
            }
            for v in 0..NV {
                next[v] = _mm512_ternarylogic_epi64::<CARRY>(old[v], ones[r][v], next[v]);
            }
            if r > 0 {
                add_counts(&mut twos[r - 1], carries);
            }
            carries = next;
        }
        add_counts(&mut twos[R - 1], carries);
    }
    for r in 0..R {
        for v in 0..NV {
            twos[r][v] = double_add(twos[r][v], _mm512_popcnt_epi64(ones[r][v]));
        }
    }
    twos
}

/// Adds the number of bits in each lane.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
pub(super) fn add_counts(counts: &mut [__m512i; NV], bits: [__m512i; NV]) {
    let mut counted = bits;
    for counted in &mut counted {
        *counted = _mm512_popcnt_epi64(*counted);
    }
    for (counts, counted) in counts.iter_mut().zip(counted) {
        *counts = _mm512_add_epi64(*counts, counted);
    }
}

/// `2·a + b`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn double_add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_add_epi64(a, a), b)
}

/// Prefetches the weights that are used `PREFETCH_BYTES` later: one chunk with masks, or two
/// without.
#[inline(always)]
pub(super) fn prefetch_ahead(weights: *const u8) {
    for line in 0..chunk_bytes(true) / 64 {
        prefetch(weights.wrapping_add(PREFETCH_BYTES + line * 64));
    }
}

/// Sets a row of sixteen accumulators to the constants plus the low 32 bits of sixteen 64-bit
/// counts.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(acc: &mut [i32], constants: __m512i, counts: [__m512i; NV]) {
    // One shuffle in order; two narrowing moves would take four instructions.
    let low_halves = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let counts = _mm512_permutex2var_epi32(counts[0], low_halves, counts[1]);
    assert!(acc.len() == NR);
    // SAFETY: `acc` has sixteen elements.
    unsafe { _mm512_storeu_si512(acc.as_mut_ptr().cast(), _mm512_add_epi32(constants, counts)) };
}
