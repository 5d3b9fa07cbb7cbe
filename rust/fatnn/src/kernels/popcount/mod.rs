//! The popcount family: what its kernels share, which is the arithmetic and the layout of operands.
//!
//! **Ternary codes** (FATNN, ICCV 2021, §3; here with bit planes). An activation code
//! `x ∈ {-1, 0, 1}` has bit planes `z = [x = 0]` and `p = [x ≥ 0]`. A weight has bit planes
//! `s = [w = -1]` and `k = [w = 0]`. Let `o = z ∨ k`, which is set if the product is 0, and
//! `q = p ⊕ s`, which tells products of 1 from products of -1. Then every product plus one is a
//! two-bit number:
//!
//! ```text
//! x·w + 1  =  [o] + 2·[q ∧ ¬o]        so        Σ x·w = pop(o) + 2·pop(q ∧ ¬o) - N
//! ```
//!
//! Here `pop` counts bits and `N` is the number of products. (The paper's `popcount(TM(x, w)) - N`,
//! with the two bits of `TM` counted separately.)
//!
//! **One bit plane to count.** Counting bits is the bottleneck. `o` and `q ∧ ¬o` are never both
//! set, which makes an adder almost free. It keeps a bit plane `ones` from chunk to chunk:
//!
//! ```text
//! ones' = ones ⊕ o                            sum bit of  ones + o
//! carry = o ? ones : q                        carry of  ones + o,  or  q ∧ ¬o:  at most one is set
//! Σ x·w = 2 · Σ pop(carry) + pop(ones) - N
//! ```
//!
//! So each chunk has only one bit plane to count. It takes three ternary-logic operations, one
//! popcount and one addition, or six logic operations on CPUs whose logic instructions have two
//! operands.
//!
//! **Two-bit activations**, `x = b₀ + 2·b₁ ∈ {0, 1, 2, 3}`, have their two bits as bit planes. For
//! a bit plane `b`, the bit `(b ⊕ s) ∧ ¬k` is `b·w + [w = -1]`, so
//!
//! ```text
//! Σ x·w = pop((b₀ ⊕ s) ∧ ¬k) + 2·pop((b₁ ⊕ s) ∧ ¬k) - 3·pop(s)
//! ```
//!
//! Weights are the same as for ternary codes. Four levels take two passes over the bits, as many as
//! three levels. Both bit planes may be set, so the adder above does not apply and both are
//! counted.
//!
//! **Binary activations**, 0 and 1, are one such bit plane and take one pass. As ternary codes they
//! are -1 and 0, and `p` is their bit.
//!
//! **Weights without zeros** need no `∧ ¬k`. These are binary weights, and the two panels of signs
//! that make up two-bit weights (`w = 2·high + low`), each of which takes its own passes. With `N`
//! products, the passes add up to this many bits:
//!
//! | | binary activations | ternary | two-bit |
//! | --- | --- | --- | --- |
//! | binary weights | N | 2 N | 2 N |
//! | ternary weights | N | 2 N | 2 N |
//! | two-bit weights | 2 N | 4 N | 4 N |
//!
//! **Lanes are output channels.** Each 64-bit lane belongs to one channel, and activations are
//! broadcast to all lanes. So there is no horizontal sum at the end, and the reduction is only
//! padded to a multiple of 64 channels.
//!
//! **Activations.** Each unit is two little-endian 64-bit words: `z` and `p`, or `b₀` and `b₁`.
//!
//! **Packed weights.** For every chunk of the reduction and every vector of `lanes` channels, a
//! panel has first the `lanes` words of `s`, then those of `k`. If weights have no zeros and
//! activations are binary or two-bit, there is no `k`. After all chunks there is one `i32` per
//! channel, which the kernel adds to the channel's count:
//!
//! - ternary codes: `-N`, plus `Σ w` for half-range activations, whose level is the code plus one;
//! - two-bit activations: `-3·pop(s)`;
//! - binary activations: `-pop(s)`.
//!
//! `N` includes the padding of the last word. Padding weights are zeros, so their activations do
//! not matter. Without `k`, padding weights have sign 0, and the padding bits of activations must
//! be 0.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_bits;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bits;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod taps;

use super::kernel::{Family, Inner, Kernel, Layout, OperandTypes};
use super::panels::PanelWeights;
use super::tiled::{TiledKernel, Tiles};
use crate::codec::{Act, WeightKind};

/// Channels in a unit.
pub(crate) const UNIT_CHANNELS: usize = 64;
/// Bytes of a unit: two bit planes of 64 bits.
pub(crate) const UNIT_BYTES: usize = 16;

/// Layout of the weights of the kernel that merges taps (`taps.rs`).
const TAPS_LAYOUT: Layout = Layout { family: Family::Popcount, nr: 64, lanes: 8 };

/// Most input channels of a tap for which two taps share a word.
pub(super) const MAX_MERGED_CHANNELS: usize = 32;

/// Whether a kernel merges taps of few channels.
pub(super) fn merges_taps(kernel: &dyn Kernel) -> bool {
    kernel.layout() == TAPS_LAYOUT
}

/// What an inner loop counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopcountMode {
    /// The bit planes of ternary codes, as FATNN defines them.
    Ternary,
    /// One or two bit planes, which are the bits of binary or two-bit activations.
    Bits {
        /// Whether weights may be zero, so that panels have a mask of zeros.
        masked: bool,
    },
}

impl PopcountMode {
    /// Bytes that 64 weights take in a panel: their signs and, if there is one, the mask of zeros.
    fn weight_bytes(self) -> usize {
        if self == (PopcountMode::Bits { masked: false }) { 8 } else { 16 }
    }
}

/// Bytes of a panel over `chunks` chunks of the reduction: the weights and one `i32` per channel.
pub(super) fn panel_bytes(layout: Layout, mode: PopcountMode, chunks: usize) -> usize {
    // A reduction is at most 2²³ long, so this does not overflow.
    chunks * layout.nr * mode.weight_bytes() + layout.nr * 4
}

/// See [`super::TiledKernel::pack_panel`].
pub(super) fn pack_panel(
    layout: Layout,
    mode: PopcountMode,
    weights: &PanelWeights<'_>,
    panel: &mut [u8],
) {
    let &PanelWeights { taps, inputs: channels, act, .. } = weights;
    let units = channels.div_ceil(UNIT_CHANNELS);
    let chunk_stride = layout.nr * mode.weight_bytes();
    let constants_at = taps * units * chunk_stride;
    panel.fill(0);
    for j in 0..layout.nr {
        let Some(codes) = weights.channel(j) else { continue };
        let (vector, lane) = (j / layout.lanes, j % layout.lanes);
        let (mut sum, mut negative) = (0i32, 0i32);
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (u, unit) in tap.chunks(UNIT_CHANNELS).enumerate() {
                let (mut s, mut k) = (0u64, u64::MAX);
                for (bit, &w) in unit.iter().enumerate() {
                    s |= u64::from(w < 0) << bit;
                    k ^= u64::from(w != 0) << bit;
                }
                sum += k.count_zeros() as i32 - 2 * s.count_ones() as i32;
                negative += s.count_ones() as i32;
                let at = (t * units + u) * chunk_stride
                    + vector * layout.lanes * mode.weight_bytes()
                    + lane * 8;
                panel[at..at + 8].copy_from_slice(&s.to_le_bytes());
                if mode != (PopcountMode::Bits { masked: false }) {
                    panel[at + layout.lanes * 8..at + layout.lanes * 8 + 8]
                        .copy_from_slice(&k.to_le_bytes());
                }
            }
        }
        let count = (taps * units * UNIT_CHANNELS) as i32;
        let constant = match (mode, act) {
            (PopcountMode::Bits { .. }, _) => -(act.max_abs() as i32) * negative,
            (PopcountMode::Ternary, Act::Full) => -count,
            (PopcountMode::Ternary, _) => sum - count,
        };
        panel[constants_at + j * 4..constants_at + j * 4 + 4]
            .copy_from_slice(&constant.to_le_bytes());
    }
}

/// The value of `PLANES` that stands for ternary codes, in loops that are generic over bit planes.
pub(crate) const TERNARY: usize = 0;

/// An inner loop of this family.
pub(crate) type TiledLoop = dyn TiledKernel + Sync;

/// Selects the inner loop for operands: `ternary`, or a loop for one or two bit planes. Each
/// pair has the loop for weights without zeros, then the loop with a mask.
pub(crate) fn inner<'a>(
    operands: OperandTypes,
    ternary: &'a TiledLoop,
    [one_plane, two_planes]: [[&'a TiledLoop; 2]; 2],
) -> Option<Inner<'a>> {
    let OperandTypes::Codes(operands) = operands else { return None };
    let masked = usize::from(operands.weights == WeightKind::Ternary);
    Some(Inner::Tiled(match operands.act {
        Act::Full | Act::Half => ternary,
        Act::Binary => one_plane[masked],
        Act::Uint2 => two_planes[masked],
    }))
}

/// The part of a product that is common to kernels whose counters hold at most `CHUNKS` chunks.
/// Writes the channels' constants to every row of `acc`. Then calls `part(offsets, weights, acc)`
/// for one part of the reduction after another, which adds its counts to `acc`. `offsets` are those
/// of the part's activations from the start of a row; `weights` has the words of `NR` channels for
/// each.
#[inline(always)]
pub(crate) fn for_each_part<const NR: usize, const CHUNKS: usize>(
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
    let weights = weights.chunks(CHUNKS * NR * mode.weight_bytes());
    for (offsets, weights) in tiles.offsets().chunks(CHUNKS).zip(weights) {
        part(offsets, weights, acc);
    }
}
