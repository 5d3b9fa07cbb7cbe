//! Packed weights: what a kernel reads, made when a network is loaded and never stored in a file.
//!
//! A packed blob begins with a header of 64 bytes (mark, version, layout, shape, operand types, a
//! checksum of these). So it can travel through places that only know arrays of bytes, and be checked
//! on the other side: "packed for another kernel" is an error, not wrong numbers.
//!
//! After the header come the panels of the first group, then those of the next. How a panel is laid out
//! is the kernel's ([`crate::kernels`]). Two-bit weights -3, -1, 1, 3 are twice one sign plus another,
//! `w = 2·high + low`: each panel is two of ternary weights, one after the other, and the product takes
//! twice the work.

use std::ops::Range;
use std::sync::Arc;

use crate::codec::{Act, CodesLayout};
use crate::dtype::WeightType;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{self, CacheLine, ColumnsKernel, Inner, Kernel, LayerShape, OperandTypes, Operands};
use crate::kernels::{PanelWeights, TapOrder};
use crate::memory;

/// Bytes before the first panel.
const HEADER: usize = 64;
/// Word of the header that holds the checksum of those before.
const CHECKSUM: usize = HEADER / 4 - 1;
const MAGIC: u32 = u32::from_le_bytes(*b"ftnw");
/// Of the header.
const VERSION: u32 = 2;
/// Accumulators stay exact in float32 below this, in magnitude.
const EXACT: usize = 1 << 24;
/// No reduction is longer, whatever the operands: levels and weights that are both up to 2.
const MAX_REDUCTION: usize = EXACT / 2;
/// Longest reduction (channels / groups × kernel) whose sums of int8 products fit `i32`.
pub const MAX_INT8_REDUCTION: usize = 133_000;

/// Shape of a weight: `out_channels × (channels / groups) × kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightShape {
    /// Output channels, over all groups.
    pub out_channels: usize,
    /// Input channels, over all groups.
    pub channels: usize,
    /// Height and width of the kernel; 1×1 for a linear layer.
    pub kernel: [usize; 2],
    /// Groups.
    pub groups: usize,
}

impl WeightShape {
    pub(crate) fn check(self) -> Result<Self> {
        CodesLayout::new(self.channels, self.groups)?;
        let [kh, kw] = self.kernel;
        if self.out_channels == 0 || !self.out_channels.is_multiple_of(self.groups) {
            return bad_value(
                "out_channels",
                format!("a positive multiple of the {} groups", self.groups),
                self.out_channels,
            );
        }
        let fits = (1..=u16::MAX as usize).contains(&kh)
            && (1..=u16::MAX as usize).contains(&kw)
            && self.out_channels <= u32::MAX as usize / 2
            && self.channels <= u32::MAX as usize / 2
            && self.reduction_checked().is_some_and(|k| k < MAX_REDUCTION);
        if !fits {
            return bad_value(
                "weight shape",
                format!("a reduction (channels / groups × kernel) of at least 1 and below {MAX_REDUCTION}"),
                format!("{self:?}"),
            );
        }
        Ok(self)
    }

    fn reduction_checked(self) -> Option<usize> {
        self.channels.checked_div(self.groups)?.checked_mul(self.kernel[0])?.checked_mul(self.kernel[1])
    }

    /// Multiply-accumulates per output channel and pixel.
    pub fn reduction(self) -> usize {
        self.reduction_checked().unwrap_or(usize::MAX)
    }

    /// What the choice of a kernel for a convolution with such weights depends on.
    pub fn layer(self) -> LayerShape {
        let out_channels = self.out_channels.checked_div(self.groups).unwrap_or(0);
        LayerShape::Conv {
            out_channels,
            reduction: self.reduction(),
            taps: self.kernel[0].saturating_mul(self.kernel[1]),
        }
    }

    /// Number of weights.
    pub fn len(self) -> usize {
        self.out_channels.saturating_mul(self.reduction())
    }

    /// Never: a checked shape has at least one weight.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// `Ok` where the sums of such a shape are exact: those of codes in float32, those of int8 in `i32`.
fn check_sums(operands: OperandTypes, shape: WeightShape) -> Result<()> {
    let longest = match operands {
        OperandTypes::Codes(Operands { act, weights }) => EXACT / (act.max_abs() * weights.max_abs()),
        OperandTypes::Int8 => MAX_INT8_REDUCTION,
    };
    if shape.reduction() <= longest {
        return Ok(());
    }
    let expected = format!("a reduction (channels / groups × kernel) of at most {longest} for {operands}");
    bad_value("weight shape", expected, format!("{} of {shape:?}", shape.reduction()))
}

/// `Ok` where all weights are of the type that is given for them.
fn check_values(operands: OperandTypes, values: &[i8]) -> Result<()> {
    match operands {
        OperandTypes::Codes(operands) => operands.weights.check("weight", values),
        OperandTypes::Int8 => match values.iter().position(|&w| w == i8::MIN) {
            None => Ok(()),
            Some(at) => bad_value("weight", "int8 weights, from -127 to 127", format!("-128 at element {at}")),
        },
    }
}

/// FNV-1a over the header's words before the checksum: changes with every single one of them.
fn checksum(header: &[u32; HEADER / 4]) -> u32 {
    header[..CHECKSUM].iter().fold(0x811c_9dc5, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193))
}

/// What is wrong with a blob.
fn damaged(why: &str) -> Error {
    Error::Packed { why: why.into() }
}

/// What the header of a blob says.
#[derive(Clone, Copy, Debug)]
struct Header {
    /// The layout's number, which kernels of the same operands give it.
    layout: u32,
    /// Not checked yet where it was read.
    shape: WeightShape,
    operands: OperandTypes,
}

/// Number in the header of int8 activations, after those of [`Act::ALL`].
const INT8_ACT: usize = Act::ALL.len();

impl Header {
    fn words(&self) -> [u32; HEADER / 4] {
        let s = self.shape;
        let number = |at: Option<usize>| at.unwrap_or(usize::MAX) as u32;
        let act = self.operands.act().map_or(Some(INT8_ACT), |act| Act::ALL.iter().position(|a| *a == act));
        let weights = WeightType::ALL.iter().position(|weights| *weights == self.operands.weights());
        let mut header = [0; HEADER / 4];
        header[..10].copy_from_slice(&[
            MAGIC,
            VERSION,
            self.layout,
            s.out_channels as u32,
            s.channels as u32,
            s.kernel[0] as u32,
            s.kernel[1] as u32,
            s.groups as u32,
            number(act),
            number(weights),
        ]);
        header[CHECKSUM] = checksum(&header);
        header
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let (words, _) = bytes.get(..HEADER).ok_or_else(|| damaged("they are too short to hold a header"))?.as_chunks();
        let header: [u32; HEADER / 4] = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        let [magic, version, layout, out_channels, channels, kh, kw, groups, act, weights, ..] = header;
        if magic != MAGIC {
            return Err(damaged("they do not begin with the mark of packed weights"));
        }
        if version != VERSION {
            return Err(damaged(&format!("expected version {VERSION} of their header, got {version}")));
        }
        let (act, weights) = (act as usize, WeightType::ALL.get(weights as usize).copied());
        let operands = match (Act::ALL.get(act), weights) {
            (Some(&act), Some(weights)) => weights.codes().map(|weights| Operands { act, weights }.into()),
            (None, Some(WeightType::Int8)) if act == INT8_ACT => Some(OperandTypes::Int8),
            _ => None,
        };
        let (Some(operands), true) = (operands, header[CHECKSUM] == checksum(&header)) else {
            return Err(damaged("their header is damaged"));
        };
        let shape = WeightShape {
            out_channels: out_channels as usize,
            channels: channels as usize,
            kernel: [kh as usize, kw as usize],
            groups: groups as usize,
        };
        Ok(Header { layout, shape, operands })
    }
}

/// The bytes of packed weights.
#[derive(Clone, Debug)]
enum Blob<'a> {
    Borrowed(&'a [u8]),
    /// So many bytes, from the beginning of a cache line: measured, vectors that straddle lines cost up to an eighth.
    Owned(Arc<Vec<CacheLine>>, usize),
}

impl Blob<'static> {
    /// A blob of `len` bytes: the header, then what `fill` writes into the zeros after it, given all of them.
    fn new(header: &Header, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut lines = memory::filled("packed weights", len.div_ceil(size_of::<CacheLine>()), CacheLine::ZERO)?;
        let bytes = &mut CacheLine::bytes_mut(&mut lines)[..len];
        for (slot, value) in bytes[..HEADER].chunks_exact_mut(4).zip(header.words()) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        fill(bytes)?;
        Ok(Blob::Owned(Arc::new(lines), len))
    }
}

impl<'a> Blob<'a> {
    /// Borrows a blob that should have so many bytes.
    fn borrow(bytes: &'a [u8], expected: usize) -> Result<Self> {
        match bytes.len() {
            got if got == expected => Ok(Blob::Borrowed(bytes)),
            got => Err(damaged(&format!("expected {expected} bytes, got {got}"))),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Blob::Borrowed(bytes) => bytes,
            Blob::Owned(lines, len) => &CacheLine::bytes(lines)[..*len],
        }
    }
}

/// How weights of one shape are cut into panels for one kernel.
#[derive(Clone, Copy, Debug)]
struct Panels {
    /// Output channels of a group, and of a panel, at most.
    group_channels: usize,
    channels: usize,
    /// Panels for each one of output channels: two of two-bit weights.
    planes: usize,
    /// Channels of a group, padding included.
    group_width: usize,
    /// Bytes of a panel of `channels` channels, of the last one of a group, and of a group, all planes.
    full_bytes: usize,
    last_bytes: usize,
    group_bytes: usize,
}

impl Panels {
    fn new(inner: Inner<'_>, shape: WeightShape, operands: OperandTypes) -> Self {
        let (group_channels, channels) = (shape.out_channels / shape.groups, inner.panel_channels());
        let (taps, inputs) = (shape.kernel[0] * shape.kernel[1], shape.channels / shape.groups);
        let planes = 1 + usize::from(operands.weights() == WeightType::TwoBit);
        let full = (group_channels - 1) / channels;
        let last = group_channels - full * channels;
        let bytes = |channels| inner.panel_bytes(taps, inputs, channels);
        let (full_bytes, last_bytes) = (bytes(channels), bytes(last));
        Panels {
            group_channels,
            channels,
            planes,
            group_width: full * inner.panel_width(channels) + inner.panel_width(last),
            full_bytes,
            last_bytes,
            group_bytes: full_bytes.saturating_mul(full).saturating_add(last_bytes).saturating_mul(planes),
        }
    }

    fn count(&self) -> usize {
        self.group_channels.div_ceil(self.channels)
    }

    /// Where a panel's plane is in the blob.
    #[inline]
    fn range(&self, group: usize, panel: usize, plane: usize) -> Range<usize> {
        let size = if panel + 1 == self.count() { self.last_bytes } else { self.full_bytes };
        let start = HEADER + group * self.group_bytes + panel * self.planes * self.full_bytes + plane * size;
        start..start + size
    }
}

/// The place of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    pub group: usize,
    /// Its number in the group.
    pub index: usize,
    /// Output channels, over all groups, of its first channel.
    pub first: usize,
    /// Channels, and channels with padding.
    pub channels: usize,
    pub width: usize,
    /// Where it begins among the channels of all panels, with padding.
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
    /// Packs `values`, ordered `out_channels, channels / groups, kernel height, kernel width` as in
    /// PyTorch, for the best kernel that this CPU has for a convolution of the shape and operands.
    ///
    /// # Errors
    /// [`Error::Value`] for an impossible shape, or one whose sums would not be exact, or a value that
    /// is none of the operands' weight type; [`Error::Shape`] for a slice of another size;
    /// [`Error::Environment`] as [`kernels::available`].
    pub fn new(values: &[i8], shape: WeightShape, operands: impl Into<OperandTypes>) -> Result<Self> {
        let (shape, operands) = (shape.check()?, operands.into());
        Self::for_kernel(kernels::choose_for(shape.layer(), operands)?, values, shape, operands)
    }

    /// As [`PackedWeights::new`], for a linear layer, which has as few rows as a batch has images.
    ///
    /// # Errors
    /// As [`PackedWeights::new`].
    pub fn for_linear(values: &[i8], shape: WeightShape, operands: impl Into<OperandTypes>) -> Result<Self> {
        let operands = operands.into();
        Self::for_kernel(kernels::choose_for(LayerShape::Linear, operands)?, values, shape, operands)
    }

    /// As [`PackedWeights::new`], for a given kernel: for tests and benchmarks.
    ///
    /// # Errors
    /// As [`PackedWeights::new`]; [`Error::Value`] where the kernel cannot run these operands.
    pub fn for_kernel(
        kernel: &'static dyn Kernel,
        values: &[i8],
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<Self> {
        let operands = operands.into();
        let mut packed = PackedWeights::empty(kernel, shape, operands)?;
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
        // Where each tap of a row-by-row window goes.
        let to_tap = |tap: usize| match self.inner.tap_order() {
            TapOrder::Rows => tap,
            TapOrder::Columns => tap % kw * kh + tap / kw,
        };
        let order = memory::collected("order of a window's taps", (0..taps).map(to_tap))?;
        let panel_values = self.panels.channels.saturating_mul(k);
        let mut reordered = memory::filled("weights of a panel", panel_values, 0i8)?;
        let planes = self.panels.planes;
        let mut signs = memory::filled("weights of a panel", if planes == 2 { panel_values } else { 0 }, 0i8)?;
        let act = self.operands.act().unwrap_or(Act::Full);
        for panel in (0..shape.groups).flat_map(|group| self.panels(group)) {
            let from = values[panel.first * k..].chunks_exact(k).take(panel.channels);
            for (to, from) in reordered.chunks_exact_mut(k).zip(from) {
                for (c, from) in from.chunks_exact(taps).enumerate() {
                    for (&t, &value) in order.iter().zip(from) {
                        to[t * inputs + c] = value;
                    }
                }
            }
            let mut pack = |plane: usize, weights: &[i8]| {
                let range = self.panels.range(panel.group, panel.index, plane);
                let weights = PanelWeights { weights, taps, inputs, count: panel.channels, act };
                self.inner.pack_panel(&weights, &mut bytes[range])
            };
            if planes == 1 {
                pack(0, &reordered)?;
                continue;
            }
            // w = 2·high + low, both of them signs.
            for (plane, sign) in [i8::signum as fn(i8) -> i8, |w| w - 2 * w.signum()].into_iter().enumerate() {
                for (to, &from) in signs.iter_mut().zip(&reordered) {
                    *to = sign(from);
                }
                pack(plane, &signs)?;
            }
        }
        Ok(())
    }

    /// Weights without their bytes.
    fn empty(kernel: &'static dyn Kernel, shape: WeightShape, operands: OperandTypes) -> Result<Self> {
        let shape = shape.check()?;
        check_sums(operands, shape)?;
        let Some(inner) = kernel.inner(operands) else {
            return bad_value("kernel", format!("one that runs {operands}"), kernel.name());
        };
        let panels = Panels::new(inner, shape, operands);
        Ok(PackedWeights { blob: Blob::Borrowed(&[]), shape, operands, kernel, inner, panels })
    }

    /// Bytes that such weights take for a kernel.
    pub(crate) fn packed_bytes(
        kernel: &'static dyn Kernel,
        shape: WeightShape,
        operands: impl Into<OperandTypes>,
    ) -> Result<usize> {
        Ok(PackedWeights::empty(kernel, shape, operands.into())?.total_bytes())
    }
}

impl<'a> PackedWeights<'a> {
    /// Checks and borrows a blob that [`PackedWeights::as_bytes`] gave.
    ///
    /// # Errors
    /// [`Error::Packed`] where the blob is damaged or meant for another CPU's kernel.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        let Header { layout, shape, operands } = Header::read(bytes)?;
        let kernel = kernels::for_layout(layout, operands)?;
        let packed = PackedWeights::empty(kernel, shape, operands)
            .map_err(|e| damaged(&format!("their header is damaged ({e})")))?;
        Ok(PackedWeights { blob: Blob::borrow(bytes, packed.total_bytes())?, ..packed })
    }

    /// The blob, header included. Keep it where it begins a cache line (64 bytes) if you can: that is faster.
    pub fn as_bytes(&self) -> &[u8] {
        self.blob.bytes()
    }

    /// Shape of the weights.
    pub fn shape(&self) -> WeightShape {
        self.shape
    }

    /// The types of what they are multiplied with, and of themselves.
    pub fn operands(&self) -> OperandTypes {
        self.operands
    }

    /// The kernel that will run them.
    pub fn kernel(&self) -> &'static dyn Kernel {
        self.kernel
    }

    /// The inner loop that will run them.
    pub(crate) fn inner(&self) -> Inner<'static> {
        self.inner
    }

    /// The operands, where activations are codes.
    ///
    /// # Errors
    /// [`Error::Packed`] where they are int8.
    pub fn code_operands(&self) -> Result<Operands> {
        match self.operands {
            OperandTypes::Codes(operands) => Ok(operands),
            OperandTypes::Int8 => Err(self.unfit("packed codes")),
        }
    }

    /// The inner loop over int8 activations.
    ///
    /// # Errors
    /// [`Error::Packed`] where they are codes.
    pub(crate) fn int8_inner(&self) -> Result<&'static dyn ColumnsKernel> {
        match self.inner {
            Inner::Columns(columns) => Ok(columns),
            Inner::Tiled(_) | Inner::PackedInput(_) => Err(self.unfit("int8 activations")),
        }
    }

    /// `Ok` where activations are int8.
    ///
    /// # Errors
    /// [`Error::Packed`] where they are codes.
    pub fn check_int8(&self) -> Result<()> {
        self.int8_inner().map(|_| ())
    }

    fn unfit(&self, expected: &str) -> Error {
        damaged(&format!("expected weights for {expected}, got ones for {}", self.operands))
    }

    /// The layout of the codes that a convolution with these weights reads.
    pub(crate) fn codes_layout(&self) -> Result<CodesLayout> {
        let coding = self.code_operands()?.act.coding();
        Ok(CodesLayout::new(self.shape.channels, self.shape.groups)?.with(coding))
    }

    fn total_bytes(&self) -> usize {
        self.panels.group_bytes.saturating_mul(self.shape.groups).saturating_add(HEADER)
    }

    /// A panel; of two-bit weights, that of the high ones.
    pub(crate) fn panel(&self, group: usize, panel: usize) -> &[u8] {
        &self.blob.bytes()[self.panels.range(group, panel, 0)]
    }

    /// The panel of low bits, where weights have two.
    pub(crate) fn low_panel(&self, group: usize, panel: usize) -> Option<&[u8]> {
        (self.panels.planes == 2).then(|| &self.blob.bytes()[self.panels.range(group, panel, 1)])
    }

    /// The places of a group's panels.
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

    /// Channels of all groups, padding included.
    pub(crate) fn padded_channels(&self) -> usize {
        self.panels.group_width * self.shape.groups
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
