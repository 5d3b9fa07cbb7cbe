//! What all product-table kernels share: two channels at a time, their products looked up by a shuffle of bytes.
//!
//! **A group** is two consecutive channels of a tap: nine states, `(a + 1) + 3·(b + 1)`. The dot product of a group of
//! activations and a group of weights lies in `-2..=2`. A row of nine bytes, selected by the state of the one operand,
//! answers for every state of the other, and 16-byte shuffles (`vpshufb`, `tbl`) look a vector of indices up in it.
//!
//! **Two rows in one.** With the number of nonzero weights added, such a product is at most 4 and takes half a byte. So a row
//! holds two of them, for two states of the operand that selects: 81 rows of 16 bytes, 1.3 KB, and one shuffle does 128
//! multiply-accumulates per 32 bytes. Three steps, a *round*, are summed in bytes (3·4 ≤ 15). Then the nibbles must part: the
//! low ones are masked and summed in bytes, while for the high ones the round's sum is shifted right by four and summed in
//! 16-bit words, *unmasked*. A word of those sums is
//!
//! ```text
//! Z = H₀ + 16·L₁ + 256·H₁ (mod 2¹⁶)         L, H: sums of the low and high nibbles of the word's bytes 0 and 1
//! ```
//!
//! and since `L₁` is known, so are `H₀` and `H₁`, as long as none exceeds 255. A round is 3 shuffles, 2 additions and 4
//! operations of parting: nine for 384 multiply-accumulates per 32 bytes. (A table with one product a byte takes 12, and
//! twice the shuffles, for which many CPUs have one port; int8 products on AVX2 take 36.)
//!
//! **Overflow.** What was added to a channel's products is the number of its nonzero weights, so its sum is at most twice
//! that, which is known when weights are packed. Packing says, per (unit, tap), when sums of bytes must be spilled to 16-bit
//! ones, and those be widened to 32 bits ([`SPILL`], [`WIDEN`]): every two to four units, where the worst case would
//! be every 63 steps; and zeros that fill up the last group cost nothing.
//!
//! **Activations of two bits** have sixteen states in a group, which is what a 16-byte shuffle has indices for. With three times
//! the number of weights of -1 added, each product is at most 3 and a group's at most 6, so a round is two steps (12 ≤ 15):
//! seven operations for 256 multiply-accumulates per 32 bytes, against the six of ternary codes. Where activations select,
//! there are 256 rows, 4 KB.
//!
//! **Two ways to lay it over a convolution**, one inner loop:
//!
//! * [`channels`]: lanes are output channels. Weights are the indices; two neighbouring positions select the row.
//! * [`pixels`]: lanes are positions of a frame whose groups are planes of their own. Activations are the
//!   indices; two output channels select the row. For layers whose channels would not fill the lanes.
//!
//! **Weights**, per panel of `nr` channels, for every unit of 64 channels of the input, for every tap, 32 steps: of `nr`
//! indices (lanes = channels; a vector's even bytes hold the first half of its channels and its odd ones the second, for this
//! is how bytes become words), or of `nr / 2` selecting bytes (lanes = positions). Behind the steps one `i32` per channel:
//! minus its nonzero weights, plus `Σ w` for half-range activations (of two bits: minus three times its weights of -1); then a
//! byte per (unit, tap): its steps and two flags.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod channels;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod pixels;
pub(crate) mod scalar;

use super::packed_input::Pixels;
use super::{Layout, popcount};
use crate::codec::Act;
use crate::error::Result;
use crate::memory;

/// Steps in a unit of 64 channels: groups of two.
pub(crate) const STEPS: usize = popcount::CHANNELS / 2;
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

/// Nonzero weights that sums of bytes hold, and those of 16 bits.
fn held(act: Act) -> [u32; 2] {
    [u32::from(u8::MAX), u32::from(u16::MAX)].map(|sum| sum / if act == Act::Uint2 { 3 } else { 2 })
}

/// Steps of a (unit, tap), in its byte of the plan.
const STEPS_MASK: u8 = 63;
/// Set where 16-bit sums are to be widened behind a (unit, tap).
pub(crate) const WIDEN: u8 = 64;
/// Set where byte sums are to be spilled behind a (unit, tap).
const SPILL: u8 = 128;

/// The state of two values.
const fn state(values: [i8; 2]) -> u8 {
    ((values[0] + 1) + 3 * (values[1] + 1)) as u8
}

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
        let (selecting, indices) = if by_weights { (STATES, activations) } else { (activations, STATES) };
        let mut table = Table([[0; 16]; _]);
        let mut i = 0;
        while i < selecting * selecting * indices {
            let (low, high, index) = (i / indices / selecting, i / indices % selecting, i % indices);
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

/// The dot product of a group of activations and one of weights, plus the nonzero weights; of activations of two bits, plus
/// three times the weights of -1.
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

/// [`super::FramedKernel::encode`] where a frame's byte is a position's state of a group. `states` is [`states`], or the same
/// in an instruction set's own words.
#[inline(always)]
pub(crate) fn encode(pixels: &Pixels<'_>, plane: &mut [u8], first: usize, states: impl Fn(&[u8; 16]) -> [u8; STEPS]) {
    let out = &mut plane.as_chunks_mut().0[first..first + pixels.count];
    for (i, out) in out.iter_mut().enumerate() {
        *out = states(pixels.unit(i));
    }
}

/// [`super::FramedKernel::clear`] of such a frame.
pub(crate) fn clear(of_levels: bool, count: usize, plane: &mut [u8], first: usize) {
    plane[first * STEPS..][..count * STEPS].fill(zeros(of_levels));
}

/// States of a unit's groups, from its planes `z` and `p` (see [`crate::codec`]).
#[inline(always)]
pub(crate) fn states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    // Codes from outside may be none; they must not become states that are none.
    let (p, z) = ((unit >> 64) as u64, unit as u64 & (unit >> 64) as u64);
    // A value plus one is `2·p - z`.
    let digits = |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 3 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| 2 * digits(p, i) - digits(z, i))
}

/// [`states`] of activations of two bits: all there are.
#[inline(always)]
pub(crate) fn uint2_states(unit: &[u8; 16]) -> [u8; STEPS] {
    let unit = u128::from_le_bytes(*unit);
    let digits = |bits: u64, i: usize| (bits >> (2 * i) & 1) as u8 + 4 * (bits >> (2 * i + 1) & 1) as u8;
    std::array::from_fn(|i| digits(unit as u64, i) + 2 * digits((unit >> 64) as u64, i))
}

/// The state of two codes of 0, or of two levels 0.
pub(crate) fn zeros(of_levels: bool) -> u8 {
    if of_levels { 0 } else { ZEROS }
}

/// Bytes of a panel over so many (unit, tap)s.
pub(crate) fn panel_bytes(layout: Layout, units: usize) -> usize {
    let step = if layout.lanes == PAIRED { layout.nr / PAIRED } else { layout.nr };
    (units * (STEPS * step + 1) + layout.nr * 4).next_multiple_of(64)
}

/// A panel taken apart.
pub(crate) struct Weights<'a> {
    /// Indices or selecting bytes.
    pub steps: &'a [u8],
    /// One `i32` per channel.
    pub constants: &'a [[u8; 4]],
    /// A byte per (unit, tap).
    pub plan: &'a [u8],
}

impl<'a> Weights<'a> {
    /// # Panics
    /// Where the panel is not of `units` (unit, tap)s.
    pub fn new(layout: Layout, units: usize, panel: &'a [u8]) -> Self {
        assert_eq!(panel.len(), panel_bytes(layout, units));
        let step = if layout.lanes == PAIRED { layout.nr / PAIRED } else { layout.nr };
        let (steps, rest) = panel.split_at(units * STEPS * step);
        let (constants, rest) = rest.split_at(layout.nr * 4);
        Weights { steps, constants: constants.as_chunks().0, plan: &rest[..units] }
    }

    /// The plan in stretches of at most `longest` (unit, tap)s, none of which goes on behind a [`WIDEN`]: first, plan, and
    /// whether sums are to be widened behind it.
    pub fn stretches(&self, longest: usize) -> impl Iterator<Item = (usize, &'a [u8], bool)> {
        let (plan, mut first) = (self.plan, 0);
        std::iter::from_fn(move || {
            let rest = plan.get(first..).filter(|rest| !rest.is_empty())?;
            let rest = &rest[..rest.len().min(longest)];
            let count = rest.iter().position(|byte| byte & WIDEN != 0).map_or(rest.len(), |at| at + 1);
            let (at, stretch) = (first, &rest[..count]);
            first += count;
            Some((at, stretch, first == plan.len() || stretch[count - 1] & WIDEN != 0))
        })
    }
}

/// Steps of a (unit, tap), never more than there are.
#[inline(always)]
pub(crate) fn steps(plan: u8) -> usize {
    usize::from(plan & STEPS_MASK).min(STEPS)
}

/// See [`Layout::pack_panel`].
pub(crate) fn pack_panel<'a>(
    layout: Layout,
    taps: usize,
    channels: usize,
    act: Act,
    channel: impl Fn(usize) -> Option<&'a [i8]>,
    panel: &mut [u8],
) -> Result<()> {
    let units = channels.div_ceil(popcount::CHANNELS);
    let depth = units * taps;
    let paired = layout.lanes == PAIRED;
    let (steps, rest) = panel.split_at_mut(depth * STEPS * if paired { layout.nr / PAIRED } else { layout.nr });
    let (constants, plan) = rest.split_at_mut(layout.nr * 4);
    steps.fill(if paired { selector(ZEROS, ZEROS) } else { ZEROS });
    constants.fill(0);
    plan.fill(0);
    let mut nonzero = memory::filled("counts of a panel's weights", layout.nr.saturating_mul(depth), 0u32)?;
    for j in 0..layout.nr {
        let Some(codes) = channel(j) else { continue };
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (g, group) in tap.chunks(2).enumerate() {
                let group = [group[0], group.get(1).copied().unwrap_or(0)];
                let at = g / STEPS * taps + t;
                let step = at * STEPS + g % STEPS;
                nonzero[at * layout.nr + j] += group.iter().filter(|&&w| w != 0).count() as u32;
                let (state, zeros) = (state(group), ZEROS);
                if paired {
                    let byte = &mut steps[step * layout.nr / PAIRED + j / PAIRED];
                    // The other channel's state is two zeros or already there.
                    let change = if j % PAIRED == 0 { selector(state, 0) } else { selector(0, state) };
                    let before = if j % PAIRED == 0 { selector(zeros, 0) } else { selector(0, zeros) };
                    *byte = *byte - before + change;
                } else {
                    let (vector, lane) = (j / layout.lanes, j % layout.lanes);
                    let half = layout.lanes / 2;
                    let lane = lane % half * 2 + lane / half;
                    steps[step * layout.nr + vector * layout.lanes + lane] = state;
                }
            }
        }
        let count = |of: fn(i8) -> bool| codes.iter().filter(|&&w| of(w)).count() as i32;
        let (negative, nonzero) = (count(|w| w < 0), count(|w| w != 0));
        let constant = match act {
            Act::Full => -nonzero,
            // The sum of all weights, less that.
            Act::Half | Act::Binary => -2 * negative,
            Act::Uint2 => -3 * negative,
        };
        constants[j * 4..j * 4 + 4].copy_from_slice(&constant.to_le_bytes());
    }
    // Nonzero weights of every channel since the last spill, and since the last widening.
    let mut since = memory::filled("counts of a panel's weights", layout.nr, [0; 2])?;
    for at in 0..depth {
        let of_unit = (channels - at / taps * popcount::CHANNELS).min(popcount::CHANNELS);
        plan[at] = of_unit.div_ceil(2) as u8;
        let here = &nonzero[at * layout.nr..][..layout.nr];
        for (level, flag) in [(0, SPILL), (1, WIDEN)] {
            let full = since.iter().zip(here).any(|(since, here)| since[level] + here > held(act)[level]);
            if full {
                plan[at - 1] |= flag;
                since.iter_mut().for_each(|since| since[level] = 0);
            }
        }
        for (since, here) in since.iter_mut().zip(here) {
            since.iter_mut().for_each(|since| *since += here);
        }
    }
    Ok(())
}

/// A vector of bytes, in the words of an instruction set.
///
/// # Safety
/// An implementation does with memory what its functions say, and nothing else.
pub(crate) unsafe trait Vector: Copy {
    /// Bytes.
    const LANES: usize;
    /// Sums of low and high nibbles that have not parted yet.
    type Sums: Copy;

    /// # Safety
    /// The CPU has the implementation's features; [`Vector::LANES`] bytes are readable.
    unsafe fn load(at: *const u8) -> Self;
    /// A row of a table in every 16 bytes.
    ///
    /// # Safety
    /// The CPU has the implementation's features; 16 bytes are readable.
    unsafe fn row(at: *const u8) -> Self;
    /// Sums of nothing.
    ///
    /// # Safety
    /// The CPU has the implementation's features.
    unsafe fn nothing() -> Self::Sums;
    /// The entries of a row that `indices`, all below 16, name. (What other bytes give is not said.)
    fn look_up(self, indices: Self) -> Self;
    /// Says that this address will be read; it may be any.
    fn prefetch(at: *const u8) {
        let _ = at;
    }
    /// Sums of bytes.
    fn add(self, other: Self) -> Self;
    /// Adds a round's nibbles.
    fn count(self, sums: &mut Self::Sums);
    /// Parts the sums: those of low nibbles and those of high ones, each as `LANES` words, first those of even bytes, are
    /// added to what is there, or stored where nothing is `yet`.
    ///
    /// # Safety
    /// `LANES` words are readable and writable at both addresses.
    unsafe fn spill(sums: Self::Sums, yet: bool, low: *mut u16, high: *mut u16);
}

/// Where the operands of one tile are: `P` selecting bytes and `N` vectors of indices for every step.
pub(crate) struct Tile<'a, const P: usize> {
    pub table: &'a Table,
    /// Selecting bytes of the first step at offset 0, and bytes from step to step.
    pub rows: [*const u8; P],
    pub row_step: usize,
    /// Indices of the first step at offset 0, and bytes from step to step.
    pub indices: *const u8,
    pub index_step: usize,
    /// Sums of the selectors' low and high states, `N × LANES` each.
    pub sums: [[*mut u16; 2]; P],
}

impl<const P: usize> Tile<'_, P> {
    /// Adds a stretch of the reduction to the 16-bit sums, or stores it where there is nothing `yet`. `offsets` are those of
    /// every (unit, tap)'s selecting bytes and indices.
    ///
    /// # Safety
    /// The CPU has the features of `V`. From each offset on, there are as many steps as `plan` says, each of a byte at each
    /// address of `rows` and of `N` vectors at `indices`; `sums` are readable and writable.
    #[inline(always)]
    pub unsafe fn run<V: Vector, const N: usize, const ROUND: usize, const SCALE: usize>(
        &self,
        plan: &[u8],
        offsets: impl Iterator<Item = (usize, usize)>,
        mut yet: bool,
    ) {
        const { assert!(ROUND <= 3 && SCALE <= 16) };
        // SAFETY: the caller vouches for the features.
        let nothing = unsafe { [[V::nothing(); N]; P] };
        let mut sums = nothing;
        let last = plan.len() - 1;
        for (i, (&plan, (row, index))) in plan.iter().zip(offsets).enumerate() {
            let mut rows = self.rows.map(|at| at.wrapping_add(row));
            let mut indices = self.indices.wrapping_add(index);
            let steps = steps(plan);
            // SAFETY: the caller vouches for `steps` steps.
            unsafe {
                for _ in 0..steps / ROUND {
                    self.round::<V, N, ROUND, SCALE>(rows, indices, &mut sums);
                    rows = rows.map(|at| at.wrapping_add(ROUND * self.row_step));
                    indices = indices.wrapping_add(ROUND * self.index_step);
                }
                match steps % ROUND {
                    1 => self.round::<V, N, 1, SCALE>(rows, indices, &mut sums),
                    2 => self.round::<V, N, 2, SCALE>(rows, indices, &mut sums),
                    _ => {}
                }
            }
            if plan & SPILL != 0 || i == last {
                for (sums, out) in sums.iter().zip(&self.sums) {
                    for (n, &sums) in sums.iter().enumerate() {
                        let [low, high] = out.map(|out| out.wrapping_add(n * V::LANES));
                        // SAFETY: the caller vouches for `N` vectors of sums.
                        unsafe { V::spill(sums, yet, low, high) };
                    }
                }
                sums = nothing;
                yet = true;
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`], for `S` steps.
    #[inline(always)]
    unsafe fn round<V: Vector, const N: usize, const S: usize, const SCALE: usize>(
        &self,
        rows: [*const u8; P],
        indices: *const u8,
        sums: &mut [[V::Sums; N]; P],
    ) {
        let table = (&raw const *self.table).cast::<u8>();
        for (p, sums) in sums.iter_mut().enumerate() {
            let row = |s: usize| {
                // SAFETY: the caller vouches for the byte; a row of the table begins `SCALE` times as far as any byte says.
                unsafe { V::row(table.add(SCALE * usize::from(*rows[p].add(s * self.row_step)))) }
            };
            let rows: [V; S] = std::array::from_fn(row);
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller vouches for the indices.
                let product =
                    |s: usize| unsafe { rows[s].look_up(V::load(indices.add(s * self.index_step + n * V::LANES))) };
                (1..S).fold(product(0), |sum, s| sum.add(product(s))).count(sums);
            }
        }
    }
}
