//! What a layer costs on a kernel: a linear model, fitted to committed measurements.
//!
//! `benches/costs.rs` measures and fits, `benches/results/costs/` has what it measured on Zen 4,
//! and `docs/kernels.md` the regret. Kernels without a row in `costs.rs` have no prediction.

use super::choose::LayerShape;
use super::costs::COSTS;
use super::kernel::{Family, Kernel, Operands, UNIT_CHANNELS};
use crate::codec::{Act, WeightKind};

/// Features of a layer, each per output pixel: steps of all panels, panels, steps of one panel,
/// one.
pub const FEATURES: usize = 4;

/// A row of the table.
pub(super) struct Cost {
    pub kernel: &'static str,
    pub operands: Operands,
    /// Nanoseconds for one of each feature.
    pub nanoseconds: [f32; FEATURES],
}

/// A row, briefly.
pub(super) const fn row(
    kernel: &'static str,
    act: Act,
    weights: WeightKind,
    nanoseconds: [f32; FEATURES],
) -> Cost {
    Cost { kernel, operands: Operands { act, weights }, nanoseconds }
}

/// The features of a layer for a kernel; `None` of linear layers and for int8 kernels.
///
/// Channels of each tap are padded to units, so a window of many taps may cost more than a 1×1
/// window of as long a reduction.
pub fn features(kernel: &dyn Kernel, shape: LayerShape) -> Option<[f64; FEATURES]> {
    let LayerShape::Conv { out_channels, reduction, taps } = shape else { return None };
    let layout = kernel.layout();
    let channels = reduction / taps.max(1);
    let steps = match layout.family {
        Family::Int8 => return None,
        Family::Popcount | Family::Matrix => channels.div_ceil(UNIT_CHANNELS) * taps,
        Family::Table => channels.div_ceil(2) * taps,
    };
    // Where lanes are positions, a panel computes only the pairs of channels that exist.
    let panels = if layout.lanes_are_positions() {
        out_channels.next_multiple_of(4) as f64 / layout.nr as f64
    } else {
        out_channels.div_ceil(layout.lanes.max(16)) as f64
    };
    Some([panels * steps as f64, panels, steps as f64, 1.0])
}

/// The operands whose row stands for these: those that run the same loops.
fn measured(Operands { act, weights }: Operands) -> Operands {
    let act = if act == Act::Full { Act::Half } else { act };
    // Only kernels that count bits run weights without zeros faster, and only by one instruction.
    let ternary = weights == WeightKind::Binary && act != Act::Binary;
    Operands { act, weights: if ternary { WeightKind::Ternary } else { weights } }
}

/// Predicted nanoseconds per output pixel, on the CPU that the table was measured on; `None` where
/// it has no row.
pub fn predicted_time(kernel: &dyn Kernel, shape: LayerShape, operands: Operands) -> Option<f64> {
    let operands = measured(operands);
    let cost =
        COSTS.iter().find(|cost| cost.kernel == kernel.name() && cost.operands == operands)?;
    let features = features(kernel, shape)?;
    Some(features.iter().zip(cost.nanoseconds).map(|(feature, ns)| feature * f64::from(ns)).sum())
}
