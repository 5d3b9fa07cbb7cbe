//! Predicts the time of a layer on a kernel: a linear model, fitted to committed measurements.
//!
//! `benches/costs.rs` measures and fits. `benches/results/costs/` has its measurements on Zen 4,
//! and `docs/kernels.md` says how much time choices by the model lose. Kernels without a row in
//! `costs.rs` have no prediction.

use super::choose::LayerShape;
use super::costs::COSTS;
use super::kernel::{Family, Kernel, Operands, UNIT_CHANNELS};
use crate::codec::{Act, WeightKind};

/// Features per output pixel: iterations of the inner loop over all panels, panels, iterations over
/// one panel, and 1. An iteration is one chunk of the reduction, or one group of two channels in
/// table kernels.
pub const FEATURES: usize = 4;

/// Measured cost of one kernel and one pair of operand types.
pub(super) struct Cost {
    pub kernel: &'static str,
    pub operands: Operands,
    /// Nanoseconds that each feature costs when its value is 1.
    pub nanoseconds: [f32; FEATURES],
}

/// A row of the cost table.
pub(super) const fn row(
    kernel: &'static str,
    act: Act,
    weights: WeightKind,
    nanoseconds: [f32; FEATURES],
) -> Cost {
    Cost { kernel, operands: Operands { act, weights }, nanoseconds }
}

/// The features of a layer on a kernel. `None` for linear layers and int8 kernels.
///
/// The channels of each tap are padded to whole units. A 3×3 window may therefore cost more than a
/// 1×1 window with an equally long reduction.
pub fn features(kernel: &dyn Kernel, shape: LayerShape) -> Option<[f64; FEATURES]> {
    let LayerShape::Conv { out_channels, reduction, taps } = shape else { return None };
    let layout = kernel.layout();
    let channels = reduction / taps.max(1);
    let iterations = match layout.family {
        Family::Int8 | Family::Dot => return None,
        Family::Popcount | Family::Matrix => channels.div_ceil(UNIT_CHANNELS) * taps,
        Family::Table => channels.div_ceil(2) * taps,
    };
    // If lanes are positions, a panel computes only the pairs of channels that exist.
    let panels = if layout.lanes_are_positions() {
        out_channels.next_multiple_of(4) as f64 / layout.nr as f64
    } else {
        out_channels.div_ceil(layout.lanes.max(16)) as f64
    };
    Some([panels * iterations as f64, panels, iterations as f64, 1.0])
}

/// Maps operands to those that were measured with the same inner loop.
fn measured_operands(Operands { act, weights }: Operands) -> Operands {
    let act = if act == Act::Full { Act::Half } else { act };
    // Only popcount kernels run weights without zeros faster, and only by one instruction.
    let ternary = weights == WeightKind::Binary && act != Act::Binary;
    Operands { act, weights: if ternary { WeightKind::Ternary } else { weights } }
}

/// Predicted nanoseconds per output pixel on the CPU that the table was measured on. `None` if the
/// table has no row for this kernel and these operands.
pub fn predicted_time(kernel: &dyn Kernel, shape: LayerShape, operands: Operands) -> Option<f64> {
    let operands = measured_operands(operands);
    let cost =
        COSTS.iter().find(|cost| cost.kernel == kernel.name() && cost.operands == operands)?;
    let features = features(kernel, shape)?;
    Some(features.iter().zip(cost.nanoseconds).map(|(feature, ns)| feature * f64::from(ns)).sum())
}
