//! What all popcount kernels share: the layout of both operands, and the arithmetic they implement.
//!
//! **Arithmetic** (FATNN, ICCV 2021, §3; here with planes). An activation code `x ∈ {-1, 0, 1}` has
//! planes `z = [x = 0]` and `p = [x ≥ 0]`; a weight has planes `s = [w = -1]` and `k = [w = 0]`.
//! With `o = z ∨ k`, which says that the product is 0, and `q = p ⊕ s`, which where it is not 0
//! says that it is 1, every product plus one is two bits,
//!
//! ```text
//! x·w + 1  =  [o] + 2·[q ∧ ¬o]        so        Σ x·w = pop(o) + 2·pop(q ∧ ¬o) - N
//! ```
//!
//! (the paper's `popcount(TM(x, w)) - N`, with the two bits of `TM` added up). The two planes are
//! never both set, and that makes an adder almost free: a plane `ones` is carried along, and
//!
//! ```text
//! ones' = ones ⊕ o                            sum bit of  ones + o
//! carry = o ? ones : q                        its carry and q ∧ ¬o, of which one at most is set
//! Σ x·w = 2 · Σ pop(carry) + pop(ones) - N
//! ```
//!
//! so that a step has one plane to count instead of two, and mode is what is scarce. It takes three
//! ternary-logic operations, one popcount and one addition; six logic operations where there are
//! only those of two operands.
//!
//! **Activations of two bits**, `x = b₀ + 2·b₁ ∈ {0, 1, 2, 3}`, have binary planes instead. For a
//! plane of zeros and ones, `(b ⊕ s) ∧ ¬k` is `b·w + [w = -1]`, so
//!
//! ```text
//! Σ x·w = pop((b₀ ⊕ s) ∧ ¬k) + 2·pop((b₁ ⊕ s) ∧ ¬k) - 3·pop(s)
//! ```
//!
//! from the same weights: four levels for two passes over bits, as three of them take. There is no
//! adder of the kind above, for both planes may be set: both are counted. **Activations of one
//! bit**, 0 and 1, are one such plane, and one pass: as ternary codes they are -1 and 0, of which
//! `p` is that bit. And **weights that are never zero** need no `∧ ¬k`: binary ones, and the two
//! signs that weights of two bits are made of (`w = 2·high + low`), whose product takes the passes
//! of both. So with `N` values, passes over so many bits:
//!
//! | | binary activations | ternary | two bits |
//! | --- | --- | --- | --- |
//! | binary weights | N | 2 N | 2 N |
//! | ternary weights | N | 2 N | 2 N |
//! | weights of two bits | 2 N | 4 N | 4 N |
//!
//! **Lanes are output channels**: each 64-bit lane belongs to one channel, activations are
//! broadcast. So there is no horizontal sum at the end, and the reduction needs no padding beyond a
//! multiple of 64 channels.
//!
//! **Activations**, per pixel, group and 64 channels: `z`, `p` (or `b₀`, `b₁`) as two little-endian
//! 64-bit words. **Weights**, per panel of `nr` channels: for every unit of the reduction and every
//! vector of `lanes` channels, first the `lanes` words of `s`, then those of `k` (but
//! [`PopcountMode::Bits`] that are not masked); behind the units one `i32` per channel, which the
//! kernel adds to the count: `-N`, plus `Σ w` for half-range activations, whose level is the code
//! plus one; `-3·pop(s)` for bits of two planes, `-pop(s)` for one. `N` counts whole words: the
//! weights that fill the last one up are zeros, for which every activation will do; where there is
//! no `k`, signs of 0, for activations that have no bit set there.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_bits;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
pub(crate) mod scalar;

use super::kernel::{Inner, Layout, OperandTypes};
use super::panels::PanelWeights;
use super::tiled::{TiledKernel, Tiles};
use crate::codec::{Act, WeightKind};

/// Channels in a unit.
pub(crate) const CHANNELS: usize = 64;
/// Bytes of a unit: two planes of 64 bits.
pub(crate) const UNIT_BYTES: usize = 16;

/// What an inner loop counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopcountMode {
    /// FATNN's planes of ternary codes.
    Ternary,
    /// The bits of levels: one plane, or two.
    Bits {
        /// Whether weights may be zero.
        masked: bool,
    },
}

impl PopcountMode {
    /// Bytes that 64 weights take in a panel: their signs, and which of them are zero.
    fn weight_bytes(self) -> usize {
        if self == (PopcountMode::Bits { masked: false }) { 8 } else { 16 }
    }
}

/// Bytes of a panel over `units` units: their weights, and one `i32` per channel.
pub(super) fn panel_bytes(layout: Layout, mode: PopcountMode, units: usize) -> usize {
    // A reduction is at most 2²³ long, so this does not overflow.
    units * layout.nr * mode.weight_bytes() + layout.nr * 4
}

/// See [`super::TiledKernel::pack_panel`].
pub(super) fn pack_panel(
    layout: Layout,
    mode: PopcountMode,
    weights: &PanelWeights<'_>,
    panel: &mut [u8],
) {
    let &PanelWeights { taps, inputs: channels, act, .. } = weights;
    let units = channels.div_ceil(CHANNELS);
    let unit_stride = layout.nr * mode.weight_bytes();
    let offsets = taps * units * unit_stride;
    panel.fill(0);
    for j in 0..layout.nr {
        let Some(codes) = weights.channel(j) else { continue };
        let (vector, lane) = (j / layout.lanes, j % layout.lanes);
        let (mut sum, mut negative) = (0i32, 0i32);
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (u, unit) in tap.chunks(CHANNELS).enumerate() {
                let (mut s, mut k) = (0u64, u64::MAX);
                for (bit, &w) in unit.iter().enumerate() {
                    s |= u64::from(w < 0) << bit;
                    k ^= u64::from(w != 0) << bit;
                }
                sum += k.count_zeros() as i32 - 2 * s.count_ones() as i32;
                negative += s.count_ones() as i32;
                let at = (t * units + u) * unit_stride
                    + vector * layout.lanes * mode.weight_bytes()
                    + lane * 8;
                panel[at..at + 8].copy_from_slice(&s.to_le_bytes());
                if mode != (PopcountMode::Bits { masked: false }) {
                    panel[at + layout.lanes * 8..at + layout.lanes * 8 + 8]
                        .copy_from_slice(&k.to_le_bytes());
                }
            }
        }
        let count = (taps * units * CHANNELS) as i32;
        let offset = match (mode, act) {
            (PopcountMode::Bits { .. }, _) => -(act.max_abs() as i32) * negative,
            (PopcountMode::Ternary, Act::Full) => -count,
            (PopcountMode::Ternary, _) => sum - count,
        };
        panel[offsets + j * 4..offsets + j * 4 + 4].copy_from_slice(&offset.to_le_bytes());
    }
}

/// Where inner loops of bits say how many planes there are.
pub(crate) const TERNARY: usize = 0;

/// An inner loop.
pub(crate) type Loop = dyn TiledKernel + Sync;

/// The inner loop for operands: that for ternary activations, or one of those for bits, of one
/// plane or of two, first for weights that are never zero.
pub(crate) fn inner<'a>(
    operands: OperandTypes,
    ternary: &'a Loop,
    [one, two]: [[&'a Loop; 2]; 2],
) -> Option<Inner<'a>> {
    let OperandTypes::Codes(operands) = operands else { return None };
    let masked = usize::from(operands.weights == WeightKind::Ternary);
    Some(Inner::Tiled(match operands.act {
        Act::Full | Act::Half => ternary,
        Act::Binary => one[masked],
        Act::Uint2 => two[masked],
    }))
}

/// What kernels whose counters hold `STEPS` steps do outside of them: writes the channels'
/// constants to every row of `acc`, then calls `part(offsets, weights, acc)` for pieces of the
/// reduction, one after another, to add theirs. `offsets` are those of the steps' activations from
/// a row's start, `weights` has the words of `NR` channels for each.
#[inline(always)]
pub(crate) fn in_parts<const NR: usize, const STEPS: usize>(
    mode: PopcountMode,
    tiles: &Tiles<'_>,
    acc: &mut [i32],
    mut part: impl FnMut(&[usize], &[u8], &mut [i32]),
) {
    let (weights, constants) = tiles.panel::<NR>();
    for acc in acc.as_chunks_mut::<NR>().0 {
        for (acc, constant) in acc.iter_mut().zip(constants) {
            *acc = i32::from_le_bytes(*constant);
        }
    }
    let weights = weights.chunks(STEPS * NR * mode.weight_bytes());
    for (offsets, weights) in tiles.steps().chunks(STEPS).zip(weights) {
        part(offsets, weights, acc);
    }
}
