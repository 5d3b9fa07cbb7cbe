//! The product-table family: a byte shuffle looks up the dot products of two channels at a time.
//!
//! **Groups.** A group is two consecutive channels of one tap. Two ternary values have nine states,
//! `(a + 1) + 3·(b + 1)`. The dot product of a group of activations and a group of weights is in
//! `-2..=2`. A table row holds the products of one state of one operand with every state of the
//! other operand. A 16-byte shuffle (`vpshufb`, `tbl`) then looks up a whole vector of states in
//! that row.
//!
//! **Two products per byte.** Adding the number of nonzero weights makes each product at most 4,
//! which fits half a byte. So one row holds products for two states of the operand that selects the
//! row. The table has 81 rows of 16 bytes, 1.3 KB. One shuffle does 128 multiply-accumulates per 32
//! bytes.
//!
//! **Rounds.** Three groups, a *round*, are added up as bytes (3·4 ≤ 15). Then the two nibbles of
//! each byte must be added to separate sums. The low nibbles are masked and summed as bytes. For
//! the high nibbles, the round's bytes are shifted right by four as 16-bit words and summed
//! *without a mask*. A 16-bit word of that sum is
//!
//! ```text
//! Z = H₀ + 16·L₁ + 256·H₁ (mod 2¹⁶)
//! ```
//!
//! where L and H are the sums of the low and high nibbles of the word's bytes 0 and 1. `L₁` is
//! known, so `H₀` and `H₁` follow, as long as no sum exceeds 255. A round takes 3 shuffles, 2
//! additions and 4 operations for the nibbles: nine for 384 multiply-accumulates per 32 bytes. (One
//! product per byte would take 12 instructions and twice the shuffles, for which many CPUs have one
//! port. Int8 products on AVX2 take 36.)
//!
//! **Overflow.** A channel's sum is at most twice the number of its nonzero weights, which is known
//! when weights are packed. So packing decides after which chunks byte sums must be spilled to
//! 16-bit sums ([`pack::SPILL`]), and 16-bit sums widened to 32 bits ([`pack::WIDEN`]). In practice
//! that is after two to four units; without counting weights, it would be after 63 groups. Zeros
//! that fill up the last group cost nothing.
//!
//! **Two-bit activations** have sixteen states per group, exactly as many as a 16-byte shuffle can
//! index. Here each weight of -1 adds 3, so that a product is at most 3 and a group at most 6. A
//! round is two groups (12 ≤ 15): seven operations for 256 multiply-accumulates per 32 bytes. If
//! activations select rows, the table has 256 rows, 4 KB.
//!
//! **Two variants** share one inner loop:
//!
//! * [`channels`]: lanes are output channels. Weights are the indices of the shuffle, and the
//!   activations of two adjacent positions select the row.
//! * [`pixels`]: lanes are output positions. The packed input has the states of one group at all
//!   positions next to each other. Activations are the indices, and the weights of two output
//!   channels select the row. For layers with too few channels to fill the lanes.
//!
//! **Packed weights.** A panel has three parts:
//!
//! 1. For every chunk of the reduction, 32 groups. If lanes are channels, a group has `nr` index
//!    bytes. In each vector, the even bytes are the first half of its channels, and the odd bytes
//!    the second half: after masking and shifting, sums are 16-bit words in the order of channels.
//!    If lanes are positions, a group has `nr / 2` bytes that select rows.
//! 2. One `i32` per channel: minus its number of nonzero weights, plus `Σ w` if activations are
//!    half-range or binary. For two-bit activations: minus three times its number of weights of -1.
//! 3. One byte per chunk: its number of groups and the two flags.

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

/// Groups in a unit.
pub(crate) const GROUPS: usize = UNIT_CHANNELS / 2;
/// `Layout::lanes` if lanes are positions: output channels per selecting byte.
pub(crate) const PAIRED: usize = 2;
/// States of a group of two ternary values.
pub(crate) const STATES: usize = 9;
/// States of a group of two two-bit values.
pub(crate) const UINT2_STATES: usize = 16;
/// The state of two zeros.
pub(crate) const ZERO_STATE: u8 = 4;
/// The address of a table row is its selecting byte times this.
pub(crate) const SCALE: usize = 8;
/// The selecting byte of a table row is its number times this.
const SELECTOR_SCALE: usize = 16 / SCALE;
/// As [`SELECTOR_SCALE`], for two-bit activations that select rows: every byte value selects a row.
pub(crate) const UINT2_SCALE: usize = 16;
/// Groups whose products fit half a byte when added up.
pub(crate) const ROUND: usize = 3;
/// The same for two-bit activations.
pub(crate) const UINT2_ROUND: usize = 2;

/// The byte that selects the row for two states.
pub(crate) const fn selector(low: u8, high: u8) -> u8 {
    (low * STATES as u8 + high) * SELECTOR_SCALE as u8
}

/// The same for two-bit activations.
pub(crate) const fn uint2_selector(low: u8, high: u8) -> u8 {
    low * UINT2_STATES as u8 + high
}

/// The table. It has a row for every byte value, used or not, so no byte selects anything outside.
#[repr(C, align(64))]
pub(crate) struct Table([[u8; 16]; u8::MAX as usize + 1]);

impl Table {
    /// For ternary codes: activations select the row, weights are the indices.
    pub(crate) const BY_ACTIVATIONS: &Table = &Table::new(false, false);
    /// For ternary codes: weights select the row, activations are the indices.
    pub(crate) const BY_WEIGHTS: &Table = &Table::new(false, true);
    /// For two-bit activations: activations select the row.
    pub(crate) const UINT2_BY_ACTIVATIONS: &Table = &Table::new(true, false);
    /// For two-bit activations: weights select the row.
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
                (
                    biased_product(index as u8, low as u8, uint2),
                    biased_product(index as u8, high as u8, uint2),
                )
            } else {
                (
                    biased_product(low as u8, index as u8, uint2),
                    biased_product(high as u8, index as u8, uint2),
                )
            };
            // The row number is the selecting byte divided by `SELECTOR_SCALE`.
            table.0[low * selecting + high][index] = by_low + 16 * by_high;
            i += 1;
        }
        table
    }
}

/// The dot product of a group of activations and a group of weights, plus the number of nonzero
/// weights. For two-bit activations: plus three times the number of weights of -1.
pub(crate) const fn biased_product(activations: u8, weights: u8, uint2: bool) -> u8 {
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

/// [`super::PackedInputKernel::pack_input`] for a slab with one byte per position and group: the
/// group's state. `states` is [`states`] or the version for an instruction set.
#[inline(always)]
pub(crate) fn pack_input(
    pixels: &Pixels<'_>,
    slab: &mut [u8],
    first: usize,
    states: impl Fn(&[u8; 16]) -> [u8; GROUPS],
) {
    let out = &mut slab.as_chunks_mut().0[first..first + pixels.count];
    for (i, out) in out.iter_mut().enumerate() {
        *out = states(pixels.unit(i));
    }
}

/// [`super::PackedInputKernel::pack_zeros`] for such a slab.
pub(crate) fn pack_zeros(zero_level: bool, count: usize, slab: &mut [u8], first: usize) {
    slab[first * GROUPS..][..count * GROUPS].fill(zero_state(zero_level));
}

/// The states of all groups of a unit, from its bit planes `z` and `p` (see [`crate::codec`]).
#[inline(always)]
pub(crate) fn states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    // Input may contain invalid codes. Masking `z` keeps them from becoming invalid states.
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    // A value plus one is `2·p - z`.
    let digits =
        |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 3 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| 2 * digits(p, i) - digits(z, i))
}

/// [`states`] for two-bit activations. Every pair of bits is a valid code.
#[inline(always)]
pub(crate) fn uint2_states(unit: &[u8; 16]) -> [u8; GROUPS] {
    let unit = u128::from_le_bytes(*unit);
    let digits =
        |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 4 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| digits(unit as u64, i) + 2 * digits((unit >> 64) as u64, i))
}

/// The state of two codes 0, or of two levels 0.
pub(crate) fn zero_state(zero_level: bool) -> u8 {
    if zero_level { 0 } else { ZERO_STATE }
}
