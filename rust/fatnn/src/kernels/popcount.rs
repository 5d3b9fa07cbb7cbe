//! What all popcount kernels share: the layout of both operands, and the arithmetic they implement.
//!
//! **Arithmetic** (FATNN, ICCV 2021, §3; here with planes). An activation code `x ∈ {-1, 0, 1}` has thermometer planes
//! `p = [x ≥ 0]` and `x₂ = [x ≥ 1]`; a weight has a sign plane `s = [w = -1]` and a mask `n = [w ≠ 0]`. With the gated XOR
//! `g(b) = (b ⊕ s) ∧ n`,
//!
//! ```text
//! Σ x·w = pop g(p) + pop g(x₂) - |n|
//! ```
//!
//! which is two XORs, two popcounts and two additions per word. The two gated planes have a cheap sum, though:
//! `g(p) ⊕ g(x₂) = (p ⊕ x₂) ∧ n = z ∧ n` with `z = [x = 0]`, so activations are stored as `(z, p)` and a full adder that
//! carries a plane `ones` along needs three logic operations instead of six:
//!
//! ```text
//! ones' = ones ⊕ (z ∧ n)                      sum bit of  ones + g(p) + g(x₂)
//! carry = (ones ≠ ones') ? ones : g(p)        its carry: where exactly one of the two planes is set, `ones` decides
//! Σ     = 2 · Σ pop(carry) + pop(ones) - |n|
//! ```
//!
//! so a step takes three ternary-logic operations, one popcount and one addition for what took two, two and two: a sixth
//! less in all, and half the popcounts, which are the scarce ones (one port on Intel and on AMD, against two for logic).
//!
//! **Lanes are output channels**: each 64-bit lane belongs to one channel, activations are broadcast. So there is no
//! horizontal sum at the end, and the reduction needs no padding beyond a multiple of 64 channels.
//!
//! **Activations**, per pixel, group and 64 channels: `z`, `p` as two little-endian 64-bit words.
//! **Weights**, per panel of `nr` channels: for every unit of the reduction and every vector of `lanes` channels, first
//! the `lanes` words of `s`, then those of `n`; behind the units one `i32` per channel, which the kernel adds to the count:
//! `-|n|`, plus `Σ w` for half-range activations, whose level is the code plus one.

use super::Layout;

/// Channels in a unit.
pub(super) const CHANNELS: usize = 64;
/// Bytes of a unit: two planes of 64 bits.
pub(super) const UNIT_BYTES: usize = 16;

/// See [`Layout::pack_panel`].
pub(super) fn pack_panel<'a>(
    layout: Layout,
    taps: usize,
    channels: usize,
    half_range: bool,
    channel: impl Fn(usize) -> Option<&'a [i8]>,
    panel: &mut [u8],
) {
    let units = channels.div_ceil(CHANNELS);
    let unit_stride = layout.nr * UNIT_BYTES;
    let offsets = taps * units * unit_stride;
    panel.fill(0);
    for j in 0..layout.nr {
        let Some(codes) = channel(j) else { continue };
        let (vector, lane) = (j / layout.lanes, j % layout.lanes);
        let (mut nonzero, mut sum) = (0i32, 0i32);
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (u, unit) in tap.chunks(CHANNELS).enumerate() {
                let (mut s, mut n) = (0u64, 0u64);
                for (bit, &w) in unit.iter().enumerate() {
                    s |= u64::from(w < 0) << bit;
                    n |= u64::from(w != 0) << bit;
                }
                nonzero += n.count_ones() as i32;
                sum += n.count_ones() as i32 - 2 * s.count_ones() as i32;
                let at = (t * units + u) * unit_stride + vector * layout.lanes * UNIT_BYTES + lane * 8;
                panel[at..at + 8].copy_from_slice(&s.to_le_bytes());
                panel[at + layout.lanes * 8..at + layout.lanes * 8 + 8].copy_from_slice(&n.to_le_bytes());
            }
        }
        let offset = if half_range { sum - nonzero } else { -nonzero };
        panel[offsets + j * 4..offsets + j * 4 + 4].copy_from_slice(&offset.to_le_bytes());
    }
}
