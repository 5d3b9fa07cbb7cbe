//! How weights of the table family are packed, and taken apart again.

use super::{PAIRED, STEPS, ZEROS, selector};
use crate::codec::Act;
use crate::error::Result;
use crate::kernels::kernel::{Layout, UNIT_CHANNELS};
use crate::kernels::panels::PanelWeights;
use crate::memory;

/// Nonzero weights that sums of bytes hold, and those of 16 bits.
fn held(act: Act) -> [u32; 2] {
    [u32::from(u8::MAX), u32::from(u16::MAX)].map(|sum| sum / if act == Act::Uint2 { 3 } else { 2 })
}

/// Steps of a (unit, tap), in its byte of the plan.
const STEPS_MASK: u8 = 63;
/// Set where 16-bit sums are to be widened behind a (unit, tap).
pub(crate) const WIDEN: u8 = 64;
/// Set where byte sums are to be spilled behind a (unit, tap).
pub(crate) const SPILL: u8 = 128;

/// The state of two values.
const fn state(values: [i8; 2]) -> u8 {
    ((values[0] + 1) + 3 * (values[1] + 1)) as u8
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

    /// The plan in stretches of at most `longest` (unit, tap)s, none of which goes on behind a
    /// [`WIDEN`]: first, plan, and whether sums are to be widened behind it.
    pub fn stretches(&self, longest: usize) -> impl Iterator<Item = (usize, &'a [u8], bool)> {
        let (plan, mut first) = (self.plan, 0);
        std::iter::from_fn(move || {
            let rest = plan.get(first..).filter(|rest| !rest.is_empty())?;
            let rest = &rest[..rest.len().min(longest)];
            let count =
                rest.iter().position(|byte| byte & WIDEN != 0).map_or(rest.len(), |at| at + 1);
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
    let (steps, rest) =
        panel.split_at_mut(depth * STEPS * if paired { layout.nr / PAIRED } else { layout.nr });
    let (constants, plan) = rest.split_at_mut(layout.nr * 4);
    steps.fill(if paired { selector(ZEROS, ZEROS) } else { ZEROS });
    constants.fill(0);
    plan.fill(0);
    let mut nonzero =
        memory::filled("counts of a panel's weights", layout.nr.saturating_mul(depth), 0u32)?;
    for j in 0..layout.nr {
        let Some(codes) = weights.channel(j) else { continue };
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
                    let change =
                        if j % PAIRED == 0 { selector(state, 0) } else { selector(0, state) };
                    let before =
                        if j % PAIRED == 0 { selector(zeros, 0) } else { selector(0, zeros) };
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
        let of_unit = (channels - at / taps * UNIT_CHANNELS).min(UNIT_CHANNELS);
        plan[at] = of_unit.div_ceil(2) as u8;
        let here = &nonzero[at * layout.nr..][..layout.nr];
        for (level, flag) in [(0, SPILL), (1, WIDEN)] {
            let full =
                since.iter().zip(here).any(|(since, here)| since[level] + here > held(act)[level]);
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
