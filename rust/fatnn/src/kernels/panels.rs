//! How kernels lay out weights. The output channels of a group are split into panels, and one call
//! of the inner loop multiplies one panel.
//!
//! | inner loop | channels of a panel | order of taps |
//! | --- | --- | --- |
//! | tiled, packed input | always `nr`; missing channels are zeros | row by row |
//! | columns | up to `nr`; the last one: those that exist, in whole vectors | column by column |
//! | depthwise | a block of the output channels of all groups | row by row |
//!
//! Each trait packs its own panels. This file has what they share.

use super::kernel::{Inner, UNIT_CHANNELS};
use crate::codec::Act;
use crate::error::Result;

/// Which taps of a window are next to each other in memory, in activations and in weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapOrder {
    /// The taps of one row of the window.
    Rows,
    /// The taps of one column of the window.
    Columns,
}

/// The unpacked weights of one panel.
#[derive(Clone, Copy, Debug)]
pub struct PanelWeights<'a> {
    /// `channels[count][taps][inputs]`. Taps are in the order in which the kernel reads
    /// activations.
    pub(crate) weights: &'a [i8],
    /// Height and width of the window.
    pub(crate) kernel: [usize; 2],
    /// Taps of the window: height × width.
    pub(crate) taps: usize,
    /// Input channels per group.
    pub(crate) inputs: usize,
    /// Output channels that exist.
    pub(crate) count: usize,
    /// What the codes of activations stand for. Kernels of int8 activations ignore it.
    pub(crate) act: Act,
}

impl<'a> PanelWeights<'a> {
    /// The weights of channel `j` of the panel, or `None` if the panel has no such channel.
    pub(crate) fn channel(&self, j: usize) -> Option<&'a [i8]> {
        let k = self.taps * self.inputs;
        (j < self.count).then(|| &self.weights[j * k..(j + 1) * k])
    }
}

impl Inner<'_> {
    /// Whether panels cover the output channels of all groups, as if there were only one group.
    pub(crate) fn joins_groups(&self) -> bool {
        matches!(self, Inner::Depthwise(_))
    }

    /// Largest number of output channels in a panel.
    pub(crate) fn panel_channels(&self) -> usize {
        match self {
            Inner::Tiled(tiled) => tiled.layout().nr,
            Inner::PackedInput(packed) => packed.layout().nr,
            Inner::Columns(columns) => columns.layout().panel,
            Inner::Depthwise(depthwise) => depthwise.layout().block,
        }
    }

    /// Channels of a panel with padding, if `channels` of them exist.
    pub(crate) fn panel_width(&self, channels: usize) -> usize {
        match self {
            Inner::Tiled(_) | Inner::PackedInput(_) | Inner::Depthwise(_) => self.panel_channels(),
            Inner::Columns(columns) => columns.layout().width(channels),
        }
    }

    /// Bytes of a panel. `channels` output channels exist; the window has `kernel` pixels of
    /// `inputs` channels each.
    pub(crate) fn panel_bytes(&self, kernel: [usize; 2], inputs: usize, channels: usize) -> usize {
        let taps = kernel[0] * kernel[1];
        let chunks = taps * inputs.div_ceil(UNIT_CHANNELS);
        match self {
            Inner::Tiled(tiled) => tiled.panel_bytes(chunks),
            Inner::PackedInput(packed) => packed.panel_bytes(chunks),
            Inner::Columns(columns) => {
                columns.layout().panel_bytes(taps * inputs, self.panel_width(channels))
            }
            Inner::Depthwise(depthwise) => depthwise.layout().panel_bytes(kernel),
        }
    }

    /// Order of the taps in a panel.
    pub(crate) fn tap_order(&self) -> TapOrder {
        match self {
            Inner::Tiled(_) | Inner::PackedInput(_) | Inner::Depthwise(_) => TapOrder::Rows,
            Inner::Columns(_) => TapOrder::Columns,
        }
    }

    /// Packs weights into a panel of [`Inner::panel_bytes`] bytes.
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
