//! Packing and unpacking the weights of the table family.

use super::{GROUPS, PAIRED, ZERO_STATE, selector};
use crate::codec::Act;
use crate::error::Result;
use crate::kernels::kernel::{Layout, UNIT_CHANNELS};
use crate::kernels::panels::PanelWeights;
use crate::memory;

/// Largest numbers of nonzero weights of a channel for which byte sums and 16-bit sums cannot
/// overflow.
fn max_nonzero(act: Act) -> [u32; 2] {
    [u32::from(u8::MAX), u32::from(u16::MAX)].map(|sum| sum / if act == Act::Uint2 { 3 } else { 2 })
}

/// Mask of the number of groups, in the byte of a chunk.
const GROUPS_MASK: u8 = 63;
/// Set if 16-bit sums must be widened to 32 bits after the chunk.
pub(crate) const WIDEN: u8 = 64;
/// Set if byte sums must be spilled to 16-bit sums after the chunk.
pub(crate) const SPILL: u8 = 128;

/// The state of two weights.
const fn state(values: [i8; 2]) -> u8 {
    ((values[0] + 1) + 3 * (values[1] + 1)) as u8
}

/// Bytes of a panel over `chunks` chunks of the reduction.
pub(crate) fn panel_bytes(layout: Layout, chunks: usize) -> usize {
    let group_bytes = if layout.lanes == PAIRED { layout.nr / PAIRED } else { layout.nr };
    (chunks * (GROUPS * group_bytes + 1) + layout.nr * 4).next_multiple_of(64)
}

/// The parts of a packed panel.
pub(crate) struct Weights<'a> {
    /// Indices, or bytes that select rows.
    pub groups: &'a [u8],
    /// One little-endian `i32` per channel.
    pub constants: &'a [[u8; 4]],
    /// One byte per chunk: its number of groups and the flags [`SPILL`] and [`WIDEN`].
    pub plan: &'a [u8],
}

impl<'a> Weights<'a> {
    /// # Panics
    /// If the panel does not have `chunks` chunks.
    pub fn new(layout: Layout, chunks: usize, panel: &'a [u8]) -> Self {
        assert_eq!(panel.len(), panel_bytes(layout, chunks));
        let group_bytes = if layout.lanes == PAIRED { layout.nr / PAIRED } else { layout.nr };
        let (groups, rest) = panel.split_at(chunks * GROUPS * group_bytes);
        let (constants, rest) = rest.split_at(layout.nr * 4);
        Weights { groups, constants: constants.as_chunks().0, plan: &rest[..chunks] }
    }

    /// Splits the plan into segments of at most `longest` chunks. A segment ends at a chunk with
    /// [`WIDEN`]. Yields the first chunk, the plan, and whether 16-bit sums must be widened after
    /// the segment.
    pub fn segments(&self, longest: usize) -> impl Iterator<Item = (usize, &'a [u8], bool)> {
        let (plan, mut first) = (self.plan, 0);
        std::iter::from_fn(move || {
            let rest = plan.get(first..).filter(|rest| !rest.is_empty())?;
            let rest = &rest[..rest.len().min(longest)];
            let count =
                rest.iter().position(|byte| byte & WIDEN != 0).map_or(rest.len(), |at| at + 1);
            let (at, segment) = (first, &rest[..count]);
            first += count;
            Some((at, segment, first == plan.len() || segment[count - 1] & WIDEN != 0))
        })
    }
}

/// The number of groups in a chunk, never more than a unit has.
#[inline(always)]
pub(crate) fn groups(plan: u8) -> usize {
    usize::from(plan & GROUPS_MASK).min(GROUPS)
}

/// See [`super::super::PackedInputKernel::pack_panel`].
pub(crate) fn pack_panel(
    layout: Layout,
    weights: &PanelWeights<'_>,
    panel: &mut [u8],
) -> Result<()> {
    let &PanelWeights { taps, inputs: channels, act, .. } = weights;
    let units = channels.div_ceil(UNIT_CHANNELS);
    let depth = units * taps;
    let paired = layout.lanes == PAIRED;
    let (groups, rest) =
        panel.split_at_mut(depth * GROUPS * if paired { layout.nr / PAIRED } else { layout.nr });
    let (constants, plan) = rest.split_at_mut(layout.nr * 4);
    groups.fill(if paired { selector(ZERO_STATE, ZERO_STATE) } else { ZERO_STATE });
    constants.fill(0);
    plan.fill(0);
    let mut nonzero =
        memory::filled("counts of a panel's weights", layout.nr.saturating_mul(depth), 0u32)?;
    for j in 0..layout.nr {
        let Some(codes) = weights.channel(j) else { continue };
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (g, group) in tap.chunks(2).enumerate() {
                let group = [group[0], group.get(1).copied().unwrap_or(0)];
                let at = g / GROUPS * taps + t;
                let group_index = at * GROUPS + g % GROUPS;
                nonzero[at * layout.nr + j] += group.iter().filter(|&&w| w != 0).count() as u32;
                let (state, zero) = (state(group), ZERO_STATE);
                if paired {
                    let byte = &mut groups[group_index * layout.nr / PAIRED + j / PAIRED];
                    // The nibble of the other channel is still that of two zeros, or already final.
                    let change =
                        if j % PAIRED == 0 { selector(state, 0) } else { selector(0, state) };
                    let before =
                        if j % PAIRED == 0 { selector(zero, 0) } else { selector(0, zero) };
                    *byte = *byte - before + change;
                } else {
                    let (vector, lane) = (j / layout.lanes, j % layout.lanes);
                    let half = layout.lanes / 2;
                    let lane = lane % half * 2 + lane / half;
                    groups[group_index * layout.nr + vector * layout.lanes + lane] = state;
                }
            }
        }
        let count = |of: fn(i8) -> bool| codes.iter().filter(|&&w| of(w)).count() as i32;
        let (negative, nonzero) = (count(|w| w < 0), count(|w| w != 0));
        let constant = match act {
            Act::Full => -nonzero,
            // `-nonzero + Σ w`, since `Σ w = nonzero - 2·negative`.
            Act::Half | Act::Binary => -2 * negative,
            Act::Uint2 => -3 * negative,
        };
        constants[j * 4..j * 4 + 4].copy_from_slice(&constant.to_le_bytes());
    }
    // Nonzero weights of every channel since the last spill, and since the last widening.
    let mut since = memory::filled("counts of a panel's weights", layout.nr, [0; 2])?;
    for at in 0..depth {
        let of_unit = (channels - at / taps * UNIT_CHANNELS).min(UNIT_CHANNELS);
        plan[at] = of_unit.div_ceil(2) as u8;
        let of_chunk = &nonzero[at * layout.nr..][..layout.nr];
        for (level, flag) in [(0, SPILL), (1, WIDEN)] {
            let full = since
                .iter()
                .zip(of_chunk)
                .any(|(since, count)| since[level] + count > max_nonzero(act)[level]);
            if full {
                plan[at - 1] |= flag;
                since.iter_mut().for_each(|since| since[level] = 0);
            }
        }
        for (since, count) in since.iter_mut().zip(of_chunk) {
            since.iter_mut().for_each(|since| *since += count);
        }
    }
    Ok(())
}
