//! What all product-table kernels share: two channels at a time, their products looked up by a
//! shuffle of bytes.
//!
//! **A group** is two consecutive channels of a tap: nine states, `(a + 1) + 3·(b + 1)`. The dot
//! product of a group of activations and a group of weights lies in `-2..=2`. A row of nine bytes,
//! selected by the state of the one operand, answers for every state of the other, and 16-byte
//! shuffles (`vpshufb`, `tbl`) look a vector of indices up in it.
//!
//! **Two rows in one.** With the number of nonzero weights added, such a product is at most 4 and
//! takes half a byte. So a row holds two of them, for two states of the operand that selects: 81
//! rows of 16 bytes, 1.3 KB, and one shuffle does 128 multiply-accumulates per 32 bytes. Three
//! steps, a *round*, are summed in bytes (3·4 ≤ 15). Then the nibbles must part: the low ones are
//! masked and summed in bytes, while for the high ones the round's sum is shifted right by four and
//! summed in 16-bit words, *unmasked*. A word of those sums is
//!
//! ```text
//! Z = H₀ + 16·L₁ + 256·H₁ (mod 2¹⁶)         L, H: sums of the low and high nibbles of the word's bytes 0 and 1
//! ```
//!
//! and since `L₁` is known, so are `H₀` and `H₁`, as long as none exceeds 255. A round is 3
//! shuffles, 2 additions and 4 operations of parting: nine for 384 multiply-accumulates per 32
//! bytes. (A table with one product a byte takes 12, and twice the shuffles, for which many CPUs
//! have one port; int8 products on AVX2 take 36.)
//!
//! **Overflow.** What was added to a channel's products is the number of its nonzero weights, so
//! its sum is at most twice that, which is known when weights are packed. Packing says, per (unit,
//! tap), when sums of bytes must be spilled to 16-bit ones, and those be widened to 32 bits
//! ([`SPILL`], [`WIDEN`]): every two to four units, where the worst case would be every 63 steps;
//! and zeros that fill up the last group cost nothing.
//!
//! **Activations of two bits** have sixteen states in a group, which is what a 16-byte shuffle has
//! indices for. With three times the number of weights of -1 added, each product is at most 3 and a
//! group's at most 6, so a round is two steps (12 ≤ 15): seven operations for 256
//! multiply-accumulates per 32 bytes, against the six of ternary codes. Where activations select,
//! there are 256 rows, 4 KB.
//!
//! **Two ways to lay it over a convolution**, one inner loop:
//!
//! * [`channels`]: lanes are output channels. Weights are the indices; two neighbouring positions
//!   select the row.
//! * [`pixels`]: lanes are positions of a frame whose groups are planes of their own. Activations
//!   are the indices; two output channels select the row. For layers whose channels would not fill
//!   the lanes.
//!
//! **Weights**, per panel of `nr` channels, for every unit of 64 channels of the input, for every
//! tap, 32 steps: of `nr` indices (lanes = channels; a vector's even bytes hold the first half of
//! its channels and its odd ones the second, for this is how bytes become words), or of `nr / 2`
//! selecting bytes (lanes = positions). Behind the steps one `i32` per channel: minus its nonzero
//! weights, plus `Σ w` for half-range activations (of two bits: minus three times its weights of
//! -1); then a byte per (unit, tap): its steps and two flags.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod channels;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
mod pack;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod pixels;
pub(crate) mod scalar;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod tile;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod transpose;

use super::kernel::UNIT_CHANNELS;
use super::packed_input::Pixels;

/// Steps in a unit of 64 channels: groups of two.
pub(crate) const STEPS: usize = UNIT_CHANNELS / 2;
/// `Layout::lanes` where lanes are positions: output channels in a byte.
pub(crate) const PAIRED: usize = 2;
/// States of a group of ternary values, and of two bits each.
pub(crate) const STATES: usize = 9;
pub(crate) const UINT2_STATES: usize = 16;
/// The state of two zeros.
pub(crate) const ZEROS: u8 = 4;
/// A row's address is this often its selecting byte, which is so often its number.
pub(crate) const SCALE: usize = 8;
const ROW: usize = 16 / SCALE;
/// The same where activations of two bits select: all bytes do.
pub(crate) const UINT2_SCALE: usize = 16;
/// Steps whose sums fit half a byte.
pub(crate) const ROUND: usize = 3;
/// The same with activations of two bits.
pub(crate) const UINT2_ROUND: usize = 2;

/// The byte that selects the row of two states.
pub(crate) const fn selector(low: u8, high: u8) -> u8 {
    (low * STATES as u8 + high) * ROW as u8
}

/// The same of activations of two bits.
pub(crate) const fn uint2_selector(low: u8, high: u8) -> u8 {
    low * UINT2_STATES as u8 + high
}

/// A row for every byte, used or not, so that none selects anything outside.
#[repr(C, align(64))]
pub(crate) struct Table([[u8; 16]; u8::MAX as usize + 1]);

impl Table {
    /// Ternary codes, which select.
    pub(crate) const BY_ACTIVATIONS: &Table = &Table::new(false, false);
    /// Ternary codes, selected by weights.
    pub(crate) const BY_WEIGHTS: &Table = &Table::new(false, true);
    /// Activations of two bits, which select.
    pub(crate) const UINT2_BY_ACTIVATIONS: &Table = &Table::new(true, false);
    /// Activations of two bits, selected by weights.
    pub(crate) const UINT2_BY_WEIGHTS: &Table = &Table::new(true, true);

    const fn new(uint2: bool, by_weights: bool) -> Self {
        let activations = if uint2 { UINT2_STATES } else { STATES };
        let (selecting, indices) =
            if by_weights { (STATES, activations) } else { (activations, STATES) };
        let mut table = Table([[0; 16]; _]);
        let mut i = 0;
        while i < selecting * selecting * indices {
            let (low, high, index) =
                (i / indices / selecting, i / indices % selecting, i % indices);
            let (by_low, by_high) = if by_weights {
                (entry(index as u8, low as u8, uint2), entry(index as u8, high as u8, uint2))
            } else {
                (entry(low as u8, index as u8, uint2), entry(high as u8, index as u8, uint2))
            };
            // A selecting byte times its scale, in rows.
            table.0[low * selecting + high][index] = by_low + 16 * by_high;
            i += 1;
        }
        table
    }
}

/// The dot product of a group of activations and one of weights, plus the nonzero weights; of
/// activations of two bits, plus three times the weights of -1.
pub(crate) const fn entry(activations: u8, weights: u8, uint2: bool) -> u8 {
    let w = [weights as i8 % 3 - 1, weights as i8 / 3 - 1];
    let x = if uint2 {
        [activations as i8 % 4, activations as i8 / 4]
    } else {
        [activations as i8 % 3 - 1, activations as i8 / 3 - 1]
    };
    let (mut sum, mut i) = (0, 0);
    while i < 2 {
        let added = if !uint2 {
            w[i] * w[i]
        } else if w[i] < 0 {
            3
        } else {
            0
        };
        sum += x[i] * w[i] + added;
        i += 1;
    }
    sum as u8
}

/// [`super::PackedInputKernel::pack_input`] where a frame's byte is a position's state of a group.
/// `states` is [`states`], or the same in an instruction set's own words.
#[inline(always)]
pub(crate) fn pack_input(
    pixels: &Pixels<'_>,
    plane: &mut [u8],
    first: usize,
    states: impl Fn(&[u8; 16]) -> [u8; STEPS],
) {
    let out = &mut plane.as_chunks_mut().0[first..first + pixels.count];
    for (i, out) in out.iter_mut().enumerate() {
        *out = states(pixels.unit(i));
    }
}

/// [`super::PackedInputKernel::pack_zeros`] of such a frame.
pub(crate) fn pack_zeros(of_levels: bool, count: usize, plane: &mut [u8], first: usize) {
    plane[first * STEPS..][..count * STEPS].fill(zeros(of_levels));
}

/// States of a unit's groups, from its planes `z` and `p` (see [`crate::codec`]).
#[inline(always)]
pub(crate) fn states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    // Codes from outside may be none; they must not become states that are none.
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    // A value plus one is `2·p - z`.
    let digits =
        |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 3 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| 2 * digits(p, i) - digits(z, i))
}

/// [`states`] of activations of two bits: all there are.
#[inline(always)]
pub(crate) fn uint2_states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    let digits =
        |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 4 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| digits(unit as u64, i) + 2 * digits((unit >> 64) as u64, i))
}

/// The state of two codes of 0, or of two levels 0.
pub(crate) fn zeros(of_levels: bool) -> u8 {
    if of_levels { 0 } else { ZEROS }
}
