//! The inner loops of the AVX-512 popcount kernel for binary and two-bit activations.

use std::arch::x86_64::*;

use super::avx512::{
    EPILOGUE, LAYOUT, MR, NV, WIDE, WIDE_EPILOGUE, add_counts, chunk_bytes, double_add, plane,
    prefetch_ahead, run, vector_bytes, vectors,
};
use super::{PopcountMode, TiledKernel};
use crate::kernels::epilogue::TileEpilogue;
use crate::kernels::kernel::{Layout, private};
use crate::kernels::tiled::Tiles;

/// `(a ⊕ b) ∧ ¬c`.
const XOR_ANDNOT: i32 = 0x14;
/// `a ⊕ b ⊕ c`.
const XOR: i32 = 0x96;
/// `a ? ¬b : c`.
const CARRY_OF_TWO: i32 = 0x3A;

/// The inner loop for activations of `PLANES` bit planes.
pub(super) struct BitsLoop<const PLANES: usize, const MASKED: bool>;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for BitsLoop<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for BitsLoop<PLANES, MASKED> {
    fn mr(&self) -> usize {
        // With four rows, the adders and counters of both bit planes would fill all registers.
        if PLANES == 2 && !MASKED { MR / 2 } else { MR }
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

    fn mode(&self) -> PopcountMode {
        PopcountMode::Bits { masked: MASKED }
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        // SAFETY: this inner loop belongs to `Avx512`, which only exists if `make` detected the
        // features.
        unsafe {
            if PLANES == 2 && !MASKED {
                run::<{ MR / 2 }, PLANES, MASKED>(tiles, acc);
            } else {
                run::<MR, PLANES, MASKED>(tiles, acc);
            }
        }
    }
}

/// `Σ (x·w + max·[w = -1])` for weights that may be zero, where `max` is the highest level: 1 or 3.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
pub(super) unsafe fn count_masked<const R: usize, const PLANES: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [[__m512i; NV]; R] {
    let mut counts = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    for &offset in offsets {
        if R == 1 {
            prefetch_ahead(weights);
        }
        // SAFETY: the caller promises readable weights.
        let (s, k) = unsafe {
            (vectors(weights, 0, vector_bytes(true)), vectors(weights, 64, vector_bytes(true)))
        };
        // As in `count`, a row's bits are counted after the logic of the next row.
        let mut pending = [[_mm512_setzero_si512(); NV]; PLANES];
        for r in 0..R {
            let mut next = [s; PLANES];
            for (i, next) in next.iter_mut().enumerate() {
                // A single bit plane is the second one of ternary codes.
                // SAFETY: the caller promises readable rows.
                let b = unsafe { plane(rows[r].add(offset), i + 2 - PLANES) };
                for v in 0..NV {
                    next[v] = _mm512_ternarylogic_epi64::<XOR_ANDNOT>(b, next[v], k[v]);
                }
            }
            if r > 0 {
                for (counts, pending) in counts.iter_mut().zip(pending) {
                    add_counts(&mut counts[r - 1], pending);
                }
            }
            pending = next;
        }
        for (counts, pending) in counts.iter_mut().zip(pending) {
            add_counts(&mut counts[R - 1], pending);
        }
        weights = weights.wrapping_add(chunk_bytes(true));
    }
    weighted(counts)
}

/// `Σ (x·w + max·[w = -1])` for weights without zeros, two chunks at a time.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
pub(super) unsafe fn count_signs<const R: usize, const PLANES: usize>(
    rows: [*const u8; R],
    offsets: &[usize],
    mut weights: *const u8,
) -> [[__m512i; NV]; R] {
    let mut ones = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    let mut twos = [[[_mm512_setzero_si512(); NV]; R]; PLANES];
    let (pairs, rest) = offsets.as_chunks::<2>();
    for offsets in pairs {
        if R == 1 {
            prefetch_ahead(weights);
        }
        // SAFETY: the caller promises readable weights.
        let (s, t) = unsafe {
            let next = weights.add(chunk_bytes(false));
            (vectors(weights, 0, vector_bytes(false)), vectors(next, 0, vector_bytes(false)))
        };
        for r in 0..R {
            for i in 0..PLANES {
                // SAFETY: the caller promises readable rows.
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
        weights = weights.wrapping_add(2 * chunk_bytes(false));
    }
    for i in 0..PLANES {
        for r in 0..R {
            // SAFETY: the caller promises readable rows and weights; after the pairs, at most one
            // chunk is left.
            let last = rest.first().map(|&offset| unsafe {
                (
                    plane(rows[r].add(offset), i + 2 - PLANES),
                    vectors(weights, 0, vector_bytes(false)),
                )
            });
            for v in 0..NV {
                twos[i][r][v] = double_add(twos[i][r][v], _mm512_popcnt_epi64(ones[i][r][v]));
                if let Some((b, s)) = last {
                    let bits = _mm512_xor_si512(b, s[v]);
                    twos[i][r][v] = _mm512_add_epi64(twos[i][r][v], _mm512_popcnt_epi64(bits));
                }
            }
        }
    }
    weighted(twos)
}

/// Adds up the counts of bit planes, of weight one and two.
#[target_feature(enable = "avx512f")]
#[inline]
fn weighted<const R: usize, const PLANES: usize>(
    counts: [[[__m512i; NV]; R]; PLANES],
) -> [[__m512i; NV]; R] {
    let mut sums = counts[0];
    for counts in &counts[1..] {
        for r in 0..R {
            for v in 0..NV {
                sums[r][v] = double_add(counts[r][v], sums[r][v]);
            }
        }
    }
    sums
}
