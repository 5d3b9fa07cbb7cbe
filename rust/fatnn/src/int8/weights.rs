//! Int8 weights, laid out for a kernel. Like ternary ones, they are derived when a network is loaded, and travel as a blob that
//! begins with a header.

use super::choose;
use crate::codec::{Act, WeightKind};
use crate::error::{Result, bad_value, check_len};
use crate::kernels::columns::ColumnsKernel;
use crate::kernels::{self, Inner, Kernel, OperandTypes, PanelWeights};
use crate::memory;
use crate::weights::{Blob, HEADER, Header, WeightShape, damaged};

const MAGIC: u32 = u32::from_le_bytes(*b"ftn8");

/// Longest reduction (channels / groups × kernel) whose sums fit `i32` whatever the codes.
pub const MAX_REDUCTION: usize = 133_000;

/// Int8 weights laid out for a kernel.
#[derive(Clone, Debug)]
pub struct Int8Weights<'a> {
    blob: Blob<'a>,
    shape: WeightShape,
    kernel: &'static dyn Kernel,
    inner: &'static dyn ColumnsKernel,
}

/// A panel: which channels, and where its weights and its constants are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Output channels, over all groups, of its first channel.
    pub first: usize,
    /// Channels, and channels with padding.
    pub channels: usize,
    pub width: usize,
    /// Where it begins among the channels of all panels, with padding.
    pub padded: usize,
    bytes: usize,
}

fn check(shape: WeightShape) -> Result<WeightShape> {
    let shape = shape.check()?;
    match shape.reduction() {
        1..=MAX_REDUCTION => Ok(shape),
        got => {
            let expected = format!("a reduction (channels / groups × kernel) of at most {MAX_REDUCTION}");
            bad_value("int8 weight shape", expected, got)
        }
    }
}

impl Int8Weights<'static> {
    /// Packs int8 weights, ordered `out_channels, channels / groups, kernel height, kernel width` as in PyTorch, for the best
    /// kernel that this CPU has.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for an impossible shape or the value -128, [`crate::Error::Shape`] for a slice of another size,
    /// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
    pub fn new(weight: &[i8], shape: WeightShape) -> Result<Self> {
        Self::for_kernel(choose(false)?, weight, shape)
    }

    /// As [`Int8Weights::new`], for the best kernel for products with few rows: linear layers.
    ///
    /// # Errors
    /// As [`Int8Weights::new`].
    pub fn for_linear(weight: &[i8], shape: WeightShape) -> Result<Self> {
        Self::for_kernel(choose(true)?, weight, shape)
    }

    /// As [`Int8Weights::new`], for a given kernel: for tests and benchmarks.
    ///
    /// # Errors
    /// As [`Int8Weights::new`]; [`crate::Error::Value`] for a kernel of another family.
    pub fn for_kernel(kernel: &'static dyn Kernel, weight: &[i8], shape: WeightShape) -> Result<Self> {
        let shape = check(shape)?;
        check_len("weight", shape.len(), weight.len())?;
        if let Some(index) = weight.iter().position(|w| *w == i8::MIN) {
            return bad_value("weight", "values from -127 to 127", format!("-128 at index {index}"));
        }
        let mut packed = Int8Weights::empty(kernel, shape)?;
        let ([kh, kw], k) = (shape.kernel, shape.reduction());
        let group_channels = shape.channels / shape.groups;
        // A panel's weights in the order of activations: columns, rows, channels.
        let mut reordered = memory::filled("weights of a panel", packed.inner.layout().panel.saturating_mul(k), 0i8)?;
        let header = Header { layout: kernel.layout_id(), shape, act: Act::Full, weights: WeightKind::Ternary };
        packed.blob = Blob::new(&header, MAGIC, packed.total_bytes(), |bytes| {
            for group in 0..shape.groups {
                for panel in packed.panels(group) {
                    let from = weight[panel.first * k..].chunks_exact(k).take(panel.channels);
                    for (to, from) in reordered.chunks_exact_mut(k).zip(from) {
                        for (i, to) in to.iter_mut().enumerate() {
                            let (c, ky, kx) = (i % group_channels, i / group_channels % kh, i / group_channels / kh);
                            *to = from[(c * kh + ky) * kw + kx];
                        }
                    }
                    let layout = packed.inner.layout();
                    let len = layout.panel_bytes(k, panel.width);
                    let panel_weights = PanelWeights {
                        weights: &reordered,
                        taps: kh * kw,
                        inputs: group_channels,
                        count: panel.channels,
                        act: Act::Full,
                    };
                    layout.pack(&panel_weights, &mut bytes[panel.bytes..panel.bytes + len]);
                }
            }
            Ok(())
        })?;
        Ok(packed)
    }
}

impl<'a> Int8Weights<'a> {
    /// Weights without their bytes.
    fn empty(kernel: &'static dyn Kernel, shape: WeightShape) -> Result<Self> {
        match kernel.inner(OperandTypes::Int8) {
            Some(Inner::Columns(inner)) => Ok(Int8Weights { blob: Blob::Borrowed(&[]), shape, kernel, inner }),
            _ => bad_value("kernel", "one that runs int8 operands", kernel.name()),
        }
    }

    /// The inner loop that will run them.
    pub(crate) fn inner(&self) -> &'static dyn ColumnsKernel {
        self.inner
    }

    /// Bytes that weights of a shape take for a kernel.
    pub(crate) fn packed_bytes(kernel: &'static dyn Kernel, shape: WeightShape) -> Result<usize> {
        Ok(Int8Weights::empty(kernel, check(shape)?)?.total_bytes())
    }

    /// Checks and borrows a blob that [`Int8Weights::as_bytes`] gave.
    ///
    /// # Errors
    /// [`crate::Error::Packed`] where the blob is damaged or meant for another CPU's kernel.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        let header = Header::read(bytes, MAGIC, "packed int8 weights")?;
        let kernel = kernels::for_layout(header.layout, OperandTypes::Int8)?;
        let shape = check(header.shape).map_err(|e| damaged(&format!("their header is damaged ({e})")))?;
        let packed = Int8Weights::empty(kernel, shape)?;
        Ok(Int8Weights { blob: Blob::borrow(bytes, packed.total_bytes())?, ..packed })
    }

    /// The blob, header included. Keep it where it begins a cache line (64 bytes) if you can: that is faster.
    pub fn as_bytes(&self) -> &[u8] {
        self.blob.bytes()
    }

    /// Shape of the weights.
    pub fn shape(&self) -> WeightShape {
        self.shape
    }

    /// The kernel that will run them.
    pub fn kernel(&self) -> &'static dyn Kernel {
        self.kernel
    }

    fn total_bytes(&self) -> usize {
        HEADER.saturating_add(self.group_bytes().saturating_mul(self.shape.groups))
    }

    /// Channels of a group, padding included.
    fn group_width(&self) -> usize {
        let (layout, channels) = (self.inner.layout(), self.shape.out_channels / self.shape.groups);
        channels / layout.panel * layout.panel + layout.width(channels % layout.panel)
    }

    fn group_bytes(&self) -> usize {
        let layout = self.inner.layout();
        // The same for every channel, whatever its panel.
        layout.panel_bytes(self.shape.reduction(), layout.lanes) / layout.lanes * self.group_width()
    }

    /// Channels of all groups, padding included.
    pub(crate) fn padded_channels(&self) -> usize {
        self.group_width() * self.shape.groups
    }

    /// The panels of a group.
    pub(crate) fn panels(&self, group: usize) -> impl Iterator<Item = Panel> + use<> {
        let (layout, channels) = (self.inner.layout(), self.shape.out_channels / self.shape.groups);
        let (reduction, width, bytes) = (self.shape.reduction(), self.group_width(), self.group_bytes());
        (0..channels).step_by(layout.panel).map(move |at| {
            let here = layout.panel.min(channels - at);
            Panel {
                first: group * channels + at,
                channels: here,
                width: layout.width(here),
                padded: group * width + at,
                bytes: HEADER + group * bytes + layout.panel_bytes(reduction, layout.lanes) / layout.lanes * at,
            }
        })
    }

    pub(crate) fn panel_bytes(&self, panel: &Panel) -> &[u8] {
        let len = self.inner.layout().panel_bytes(self.shape.reduction(), panel.width);
        &self.blob.bytes()[panel.bytes..panel.bytes + len]
    }
}
