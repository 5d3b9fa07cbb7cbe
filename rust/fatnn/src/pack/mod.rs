//! Packed weights: the memory that a kernel reads. They are made when a network is loaded and never
//! stored in a file.
//!
//! A packed blob starts with a header of 64 bytes (magic number, version, layout, shape, operand
//! types, checksum). A blob may pass through code that only knows byte arrays; the header is
//! checked afterwards, so weights packed for another kernel are an error rather than wrong results.
//!
//! After the header come the panels of the first group, then those of the next one. The kernel
//! defines the layout of a panel ([`crate::kernels`]). Two-bit weights -3, -1, 1, 3 are split into
//! two signs, `w = 2·high + low`. Their panel is two ternary panels, one after the other, and costs
//! twice the work.

mod blob;
mod shape;

use std::ops::Range;

use self::blob::{Blob, HEADER, Header, damaged};
pub use self::shape::{MAX_INT8_REDUCTION, WeightShape};
use self::shape::{check_operands, check_sums, check_values};
use crate::codec::{Act, CodesLayout};
use crate::dtype::WeightType;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{
    self, ColumnsKernel, DepthwiseKernel, Inner, Kernel, LayerShape, OperandTypes, Operands,
};
use crate::kernels::{PanelWeights, TapOrder};
use crate::memory;

/// How the weights are split into panels.
#[derive(Clone, Copy, Debug)]
struct Panels {
    /// Number of groups; 1 if a panel spans all groups.
    groups: usize,
    /// Output channels per group.
    group_channels: usize,
    /// Output channels per full panel.
    channels: usize,
    /// Ternary panels per panel: 2 for two-bit weights (high, then low), else 1.
    parts: usize,
    /// Output channels per group, padding included.
    group_width: usize,
    /// Bytes of one part of a full panel.
    full_bytes: usize,
    /// Bytes of one part of a group's last panel.
    last_bytes: usize,
    /// Bytes of a group, all parts.
    group_bytes: usize,
}

impl Panels {
    fn new(inner: Inner<'_>, shape: WeightShape, operands: OperandTypes) -> Self {
        let groups = if inner.joins_groups() { 1 } else { shape.groups };
        let (group_channels, channels) = (shape.out_channels / groups, inner.panel_channels());
        let inputs = shape.channels / shape.groups;
        let parts = 1 + usize::from(operands.weights() == WeightType::TwoBit);
        let full = (group_channels - 1) / channels;
        let last = group_channels - full * channels;
        let bytes = |channels| inner.panel_bytes(shape.kernel, inputs, channels);
        let (full_bytes, last_bytes) = (bytes(channels), bytes(last));
        Panels {
            groups,
            group_channels,
            channels,
            parts,
            group_width: full * inner.panel_width(channels) + inner.panel_width(last),
            full_bytes,
            last_bytes,
            group_bytes: full_bytes
                .saturating_mul(full)
                .saturating_add(last_bytes)
                .saturating_mul(parts),
        }
    }

    fn count(&self) -> usize {
        self.group_channels.div_ceil(self.channels)
    }

    /// The byte range of one part of a panel in the blob.
    #[inline]
    fn range(&self, group: usize, panel: usize, part: usize) -> Range<usize> {
        let size = if panel + 1 == self.count() { self.last_bytes } else { self.full_bytes };
        let start =
            HEADER + group * self.group_bytes + panel * self.parts * self.full_bytes + part * size;
        start..start + size
    }
}

/// The position of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Number of the group.
    pub group: usize,
    /// Number of the panel in its group.
    pub index: usize,
    /// First output channel, counted over all groups.
    pub first: usize,
    /// Output channels.
    pub channels: usize,
    /// Output channels, padding included.
    pub width: usize,
    /// First output channel, counted over all groups with the padding of their panels.
    pub padded: usize,
}

/// Weights of any type, laid out for a kernel.
#[derive(Clone, Debug)]
pub struct PackedWeights<'a> {
    blob: Blob<'a>,
    shape: WeightShape,
    operands: OperandTypes,
    kernel: &'static dyn Kernel,
    inner: Inner<'static>,
    panels: Panels,
}

impl PackedWeights<'static> {
    /// Packs `values` for the best kernel that this CPU has for a convolution of this shape and
    /// these operands. `values` has PyTorch's order: `out_channels, channels / groups, kernel
    /// height, kernel width`.
    ///
    /// # Errors
    /// [`Error::Value`] if the shape is invalid, if its sums would not be exact, or if a value is
    /// not of the operands' weight type; [`Error::Shape`] if `values` has the wrong length;
    /// [`Error::Environment`] as [`kernels::available`].
    pub fn new(
        values: &[i8],
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<Self> {
        let (shape, operands) = (shape.check()?, operands.into());
        Self::for_kernel(kernels::choose_for(shape.layer(), operands)?, values, shape, operands)
    }

    /// As [`PackedWeights::new`], for a linear layer: it has only one row per image.
    ///
    /// # Errors
    /// As [`PackedWeights::new`].
    pub fn for_linear(
        values: &[i8],
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<Self> {
        let operands = operands.into();
        Self::for_kernel(
            kernels::choose_for(LayerShape::Linear, operands)?,
            values,
            shape,
            operands,
        )
    }

    /// As [`PackedWeights::new`], for a given kernel. For tests and benchmarks.
    ///
    /// # Errors
    /// As [`PackedWeights::new`]; [`Error::Value`] if the kernel cannot run these operands.
    pub fn for_kernel(
        kernel: &'static dyn Kernel,
        values: &[i8],
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<Self> {
        let operands = operands.into();
        let mut packed = PackedWeights::unpacked(kernel, shape, operands)?;
        check_len("weight", shape.len(), values.len())?;
        check_values(operands, values)?;
        let header = Header { layout: kernel.layout_id(), shape, operands };
        packed.blob = Blob::new(&header, packed.total_bytes(), |bytes| packed.pack(values, bytes))?;
        Ok(packed)
    }

    /// Packs all panels into a blob.
    fn pack(&self, values: &[i8], bytes: &mut [u8]) -> Result<()> {
        let (shape, [kh, kw], k) = (self.shape, self.shape.kernel, self.shape.reduction());
        let (taps, inputs) = (kh * kw, shape.channels / shape.groups);
        // From a tap in row-major order to its place in the kernel's order.
        let to_tap = |tap: usize| match self.inner.tap_order() {
            TapOrder::Rows => tap,
            TapOrder::Columns => tap % kw * kh + tap / kw,
        };
        let order = memory::collected("order of a window's taps", (0..taps).map(to_tap))?;
        let panel_values = self.panels.channels.saturating_mul(k);
        let mut reordered = memory::filled("weights of a panel", panel_values, 0i8)?;
        let parts = self.panels.parts;
        let mut signs =
            memory::filled("weights of a panel", if parts == 2 { panel_values } else { 0 }, 0i8)?;
        let act = self.operands.act().unwrap_or(Act::Full);
        for panel in self.all_panels() {
            let from = values[panel.first * k..].chunks_exact(k).take(panel.channels);
            for (to, from) in reordered.chunks_exact_mut(k).zip(from) {
                for (c, from) in from.chunks_exact(taps).enumerate() {
                    for (&t, &value) in order.iter().zip(from) {
                        to[t * inputs + c] = value;
                    }
                }
            }
            let mut pack = |part: usize, weights: &[i8]| {
                let range = self.panels.range(panel.group, panel.index, part);
                let weights = PanelWeights {
                    weights,
                    kernel: [kh, kw],
                    taps,
                    inputs,
                    count: panel.channels,
                    act,
                };
                self.inner.pack_panel(&weights, &mut bytes[range])
            };
            if parts == 1 {
                pack(0, &reordered)?;
                continue;
            }
            // `w = 2·high + low`, where both are signs.
            for (part, sign) in
                [i8::signum as fn(i8) -> i8, |w| w - 2 * w.signum()].into_iter().enumerate()
            {
                for (to, &from) in signs.iter_mut().zip(&reordered) {
                    *to = sign(from);
                }
                pack(part, &signs)?;
            }
        }
        Ok(())
    }

    /// Checks everything but the values, and leaves the blob empty.
    fn unpacked(
        kernel: &'static dyn Kernel,
        shape: WeightShape,
        operands: OperandTypes,
    ) -> Result<Self> {
        let shape = shape.check()?;
        check_operands(operands, shape)?;
        check_sums(operands, shape)?;
        let Some(inner) = kernel.inner(operands) else {
            return bad_value("kernel", format!("one that runs {operands}"), kernel.name());
        };
        let panels = Panels::new(inner, shape, operands);
        Ok(PackedWeights { blob: Blob::Borrowed(&[]), shape, operands, kernel, inner, panels })
    }

    /// The size of the blob that packing would make.
    pub(crate) fn packed_bytes(
        kernel: &'static dyn Kernel,
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<usize> {
        Ok(PackedWeights::unpacked(kernel, shape, operands.into())?.total_bytes())
    }
}

impl<'a> PackedWeights<'a> {
    /// Checks and borrows a blob from [`PackedWeights::as_bytes`].
    ///
    /// # Errors
    /// [`Error::Packed`] if the blob is damaged or packed for a kernel of another CPU.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        let Header { layout, shape, operands } = Header::read(bytes)?;
        let kernel = kernels::for_layout(layout, operands)?;
        let packed = PackedWeights::unpacked(kernel, shape, operands)
            .map_err(|e| damaged(&format!("their header is damaged ({e})")))?;
        Ok(PackedWeights { blob: Blob::borrow(bytes, packed.total_bytes())?, ..packed })
    }

    /// The blob, header included. Kernels are faster if it starts at a cache line (64 bytes).
    pub fn as_bytes(&self) -> &[u8] {
        self.blob.bytes()
    }

    /// The weights' shape.
    pub fn shape(&self) -> WeightShape {
        self.shape
    }

    /// The types of activations and weights.
    pub fn operands(&self) -> OperandTypes {
        self.operands
    }

    /// The kernel that these weights are packed for.
    pub fn kernel(&self) -> &'static dyn Kernel {
        self.kernel
    }

    /// The kernel's inner loop.
    pub(crate) fn inner(&self) -> Inner<'static> {
        self.inner
    }

    /// The operand types, if activations are codes.
    ///
    /// # Errors
    /// [`Error::Packed`] if they are int8.
    pub fn code_operands(&self) -> Result<Operands> {
        match self.operands {
            OperandTypes::Codes(operands) => Ok(operands),
            OperandTypes::Int8 | OperandTypes::Int8Depthwise => {
                Err(self.operand_error("packed codes"))
            }
        }
    }

    /// The inner loop for int8 activations.
    ///
    /// # Errors
    /// [`Error::Packed`] if they are codes.
    pub(crate) fn int8_inner(&self) -> Result<&'static dyn ColumnsKernel> {
        match self.inner {
            Inner::Columns(columns) => Ok(columns),
            Inner::Tiled(_) | Inner::PackedInput(_) | Inner::Depthwise(_) => {
                Err(self.operand_error("int8 activations"))
            }
        }
    }

    /// The inner loop for an int8 depthwise convolution.
    ///
    /// # Errors
    /// [`Error::Packed`] if the weights are not for a depthwise convolution.
    pub(crate) fn depthwise_inner(&self) -> Result<&'static dyn DepthwiseKernel> {
        match self.inner {
            Inner::Depthwise(depthwise) => Ok(depthwise),
            _ => Err(self.operand_error("a depthwise convolution")),
        }
    }

    /// `Ok` if the activations are int8.
    ///
    /// # Errors
    /// [`Error::Packed`] if they are codes.
    pub fn check_int8(&self) -> Result<()> {
        if self.operands.act().is_none() {
            Ok(())
        } else {
            Err(self.operand_error("int8 activations"))
        }
    }

    fn operand_error(&self, expected: &str) -> Error {
        damaged(&format!("expected weights for {expected}, got ones for {}", self.operands))
    }

    /// The layout of the codes that a convolution with these weights reads.
    pub(crate) fn codes_layout(&self) -> Result<CodesLayout> {
        let coding = self.code_operands()?.act.coding();
        Ok(CodesLayout::new(self.shape.channels, self.shape.groups)?.with(coding))
    }

    /// Bytes of all panels and the header.
    pub(crate) fn total_bytes(&self) -> usize {
        self.panels.group_bytes.saturating_mul(self.panels.groups).saturating_add(HEADER)
    }

    /// A panel; the high part for two-bit weights.
    pub(crate) fn panel(&self, group: usize, panel: usize) -> &[u8] {
        &self.blob.bytes()[self.panels.range(group, panel, 0)]
    }

    /// The bytes after a panel, up to as many as it has: the panel that is usually used next.
    pub(crate) fn after_panel(&self, group: usize, panel: usize) -> &[u8] {
        let (bytes, panel) = (self.blob.bytes(), self.panels.range(group, panel, 0));
        &bytes[panel.end..bytes.len().min(panel.end + panel.len())]
    }

    /// The low part of a panel of two-bit weights; `None` for other weights.
    pub(crate) fn low_panel(&self, group: usize, panel: usize) -> Option<&[u8]> {
        (self.panels.parts == 2).then(|| &self.blob.bytes()[self.panels.range(group, panel, 1)])
    }

    /// The positions of a group's panels.
    pub(crate) fn panels(&self, group: usize) -> impl Iterator<Item = Panel> + use<> {
        let (panels, inner) = (self.panels, self.inner);
        (0..panels.count()).map(move |index| {
            let at = index * panels.channels;
            let channels = panels.channels.min(panels.group_channels - at);
            Panel {
                group,
                index,
                first: group * panels.group_channels + at,
                channels,
                width: inner.panel_width(channels),
                padded: group * panels.group_width + at,
            }
        })
    }

    /// The positions of all panels.
    pub(crate) fn all_panels(&self) -> impl Iterator<Item = Panel> + '_ {
        (0..self.panels.groups).flat_map(|group| self.panels(group))
    }

    /// Output channels of all groups, padding included.
    pub(crate) fn padded_channels(&self) -> usize {
        self.panels.group_width * self.panels.groups
    }

    pub(crate) fn groups(&self) -> usize {
        self.shape.groups
    }

    pub(crate) fn group_out_channels(&self) -> usize {
        self.panels.group_channels
    }

    pub(crate) fn panels_per_group(&self) -> usize {
        self.panels.count()
    }

    pub(crate) fn macs_per_row(&self) -> usize {
        self.shape.len()
    }
}
