//! How kernels lay out weights: the output channels of a group are cut into panels, each of which
//! one call of the inner loop multiplies.
//!
//! | inner loop | a panel holds | order of taps |
//! | --- | --- | --- |
//! | tiled, packed input | always as many channels as the layout has, zeros where there are fewer | rows |
//! | columns | as many as the layout has, the last one only as many as exist, rounded up to lanes | columns |
//! | depthwise | a block of the output channels of all groups | rows |
//!
//! Each trait packs its own panels; this file is what they have in common.

use super::kernel::{Inner, UNIT_CHANNELS};
use crate::codec::Act;
use crate::error::Result;

/// Which taps of a window follow each other in memory, for activations and for weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapOrder {
    /// Those of a row.
    Rows,
    /// Those of a column.
    Columns,
}

/// The weights of one panel, as they are to be packed.
#[derive(Clone, Copy, Debug)]
pub struct PanelWeights<'a> {
    /// `channels[count][taps][inputs]`, taps in the order in which activations are walked.
    pub(crate) weights: &'a [i8],
    /// Height and width of the window, and its taps.
    pub(crate) kernel: [usize; 2],
    pub(crate) taps: usize,
    /// Input channels of the group.
    pub(crate) inputs: usize,
    /// Output channels that exist.
    pub(crate) count: usize,
    /// What the codes of activations stand for. Kernels of int8 activations do not look at it.
    pub(crate) act: Act,
}

impl<'a> PanelWeights<'a> {
    /// The weights of channel `j` of the panel, or `None` past the last channel.
    pub(crate) fn channel(&self, j: usize) -> Option<&'a [i8]> {
        let k = self.taps * self.inputs;
        (j < self.count).then(|| &self.weights[j * k..(j + 1) * k])
    }
}

impl Inner<'_> {
    /// Whether panels go over the output channels of all groups, as if there were one group.
    pub(crate) fn joins_groups(&self) -> bool {
        matches!(self, Inner::Depthwise(_))
    }

    /// Output channels in a panel, at most.
    pub(crate) fn panel_channels(&self) -> usize {
        match self {
            Inner::Tiled(tiled) => tiled.layout().nr,
            Inner::PackedInput(packed) => packed.layout().nr,
            Inner::Columns(columns) => columns.layout().panel,
            Inner::Depthwise(depthwise) => depthwise.layout().block,
        }
    }

    /// Channels, padding included, of a panel in which `channels` exist.
    pub(crate) fn panel_width(&self, channels: usize) -> usize {
        match self {
            Inner::Tiled(_) | Inner::PackedInput(_) | Inner::Depthwise(_) => self.panel_channels(),
            Inner::Columns(columns) => columns.layout().width(channels),
        }
    }

    /// Bytes of a panel in which `channels` exist, of windows of `kernel` pixels of `inputs`
    /// channels.
    pub(crate) fn panel_bytes(&self, kernel: [usize; 2], inputs: usize, channels: usize) -> usize {
        let taps = kernel[0] * kernel[1];
        let units = taps * inputs.div_ceil(UNIT_CHANNELS);
        match self {
            Inner::Tiled(tiled) => tiled.panel_bytes(units),
            Inner::PackedInput(packed) => packed.panel_bytes(units),
            Inner::Columns(columns) => {
                columns.layout().panel_bytes(taps * inputs, self.panel_width(channels))
            }
            Inner::Depthwise(depthwise) => depthwise.layout().panel_bytes(kernel),
        }
    }

    /// The order of taps in a panel.
    pub(crate) fn tap_order(&self) -> TapOrder {
        match self {
            Inner::Tiled(_) | Inner::PackedInput(_) | Inner::Depthwise(_) => TapOrder::Rows,
            Inner::Columns(_) => TapOrder::Columns,
        }
    }

    /// Packs a panel of [`Inner::panel_bytes`] bytes.
    pub(crate) fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()> {
        match self {
            Inner::Tiled(tiled) => tiled.pack_panel(weights, panel),
            Inner::PackedInput(packed) => return packed.pack_panel(weights, panel),
            Inner::Columns(columns) => columns.pack_panel(weights, panel),
            Inner::Depthwise(depthwise) => depthwise.pack_panel(weights, panel),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Inner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Inner::Tiled(_) => "Tiled",
            Inner::PackedInput(_) => "PackedInput",
            Inner::Columns(_) => "Columns",
            Inner::Depthwise(_) => "Depthwise",
        })
    }
}
