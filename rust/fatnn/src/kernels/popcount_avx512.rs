//! The popcount family for AVX-512 with VPOPCNTDQ (Ice Lake, Sapphire Rapids, Zen 4 and later).
//!
//! Five instructions per 512 products: two `vpternlogq`, one `vpxorq`, one `vpopcntq`, one `vpaddq`. On two 512-bit ports that is 2.5
//! cycles, 205 products a cycle, whatever the port of the popcount; the straightforward form (gated XOR, popcount, add per
//! plane) needs six, 171 a cycle. Activations are broadcast from memory by the load ports, which a 4×2 tile keeps
//! 60% busy; two vectors of weights' `s` and `k` stay in registers for the four rows.

use std::arch::x86_64::*;

use super::{Family, Inner, Kernel, Layout, Operands, Seal, TiledKernel, Tiles, epilogue_methods};
use crate::codec::Act;
use crate::cpu::{Features, Isa};

const MR: usize = 4;
/// Vectors of eight channels in a panel.
const NV: usize = 2;
const NR: usize = NV * 8;

#[derive(Debug)]
struct Avx512;

/// Where the CPU has AVX-512 F, BW, DQ, VL and VPOPCNTDQ.
pub(super) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vpopcntdq).then_some(&Avx512)
}

impl Kernel for Avx512 {
    fn name(&self) -> &'static str {
        "x86_64-popcount-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> Layout {
        Layout { family: Family::Popcount, nr: NR, lanes: 8 }
    }

    fn inner(&self, operands: Operands, _: Seal) -> Option<Inner<'_>> {
        (operands.act != Act::Uint2).then_some(Inner::Tiled(self))
    }

    epilogue_methods!(NR, at_least, float_at_least, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
}

impl TiledKernel for Avx512 {
    fn mr(&self) -> usize {
        MR
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        for (rows, acc) in tiles.rows().zip(acc.as_chunks_mut().0) {
            // SAFETY: `self` exists, so `make` saw these features.
            unsafe { run(tiles, rows, acc) }
        }
    }
}

/// `a ⊕ (b ∨ c)`.
const XOR_OR: i32 = 0x1E;
/// `a ≠ b ? a : c`.
const CARRY: i32 = 0xB2;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
fn run(tiles: &Tiles<'_>, rows: [*const u8; MR], acc: &mut [i32; MR * NR]) {
    let mut w = tiles.panel().as_ptr();
    let mut ones = [[_mm512_setzero_si512(); NV]; MR];
    let mut twos = [[_mm512_setzero_si512(); NV]; MR];
    for &tap in tiles.taps() {
        let mut at = rows.map(|row| row.wrapping_add(tap));
        for _ in 0..tiles.units() {
            let mut s = [_mm512_setzero_si512(); NV];
            let mut k = [_mm512_setzero_si512(); NV];
            for v in 0..NV {
                // SAFETY: `Tiles::new` checked that the panel holds `taps × units` blocks of `NV` pairs of vectors.
                unsafe {
                    s[v] = _mm512_loadu_si512(w.cast());
                    k[v] = _mm512_loadu_si512(w.add(64).cast());
                }
                w = w.wrapping_add(128);
            }
            for r in 0..MR {
                // SAFETY: `Tiles::new` checked that every row has `units` units of 16 bytes at every tap.
                let (z, p) = unsafe {
                    let at = at[r].cast::<i64>();
                    (_mm512_set1_epi64(at.read_unaligned()), _mm512_set1_epi64(at.add(1).read_unaligned()))
                };
                at[r] = at[r].wrapping_add(16);
                for v in 0..NV {
                    let old = ones[r][v];
                    ones[r][v] = _mm512_ternarylogic_epi64::<XOR_OR>(old, z, k[v]);
                    let carry = _mm512_ternarylogic_epi64::<CARRY>(old, ones[r][v], _mm512_xor_si512(p, s[v]));
                    twos[r][v] = _mm512_add_epi64(twos[r][v], _mm512_popcnt_epi64(carry));
                }
            }
        }
    }
    // SAFETY: behind the units the panel holds `NR` offsets of four bytes.
    let offset = unsafe { _mm512_loadu_si512(w.cast()) };
    // The low halves of sixteen 64-bit lanes, in order: one shuffle where two narrowing moves would take four.
    let low_halves = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    for r in 0..MR {
        let count = std::array::from_fn::<_, NV, _>(|v| {
            _mm512_add_epi64(_mm512_add_epi64(twos[r][v], twos[r][v]), _mm512_popcnt_epi64(ones[r][v]))
        });
        let sum = _mm512_add_epi32(_mm512_permutex2var_epi32(count[0], low_halves, count[1]), offset);
        let out = &mut acc[r * NR..][..NR];
        // SAFETY: `out` has sixteen elements.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
}

/// [`crate::epilogue::at_least`]: comparisons into masks.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn at_least<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    const { assert!(NR.is_multiple_of(16) && NR <= 64) };
    let mut bits = 0;
    for (i, (acc, threshold)) in acc.as_chunks::<16>().0.iter().zip(threshold.as_chunks::<16>().0).enumerate() {
        // SAFETY: both arrays have sixteen elements.
        let (acc, threshold) =
            unsafe { (_mm512_loadu_si512(acc.as_ptr().cast()), _mm512_loadu_si512(threshold.as_ptr().cast())) };
        bits |= u64::from(_mm512_cmpge_epi32_mask(acc, threshold)) << (i * 16);
    }
    bits
}

/// [`crate::quantize::at_least`].
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn float_at_least(x: &[f32; 16], threshold: f32) -> u16 {
    // SAFETY: the array has sixteen elements.
    let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
    _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(threshold))
}
