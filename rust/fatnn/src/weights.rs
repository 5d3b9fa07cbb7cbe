//! Packed weights: what a kernel wants, derived from codes when a network is loaded, never stored in a file.
//!
//! A packed blob begins with a header of 64 bytes (magic, layout, shape, a checksum of these), so that it can travel
//! through places that only know arrays of bytes and be checked on the other side: "packed for another kernel" is an error,
//! not wrong numbers.
//!
//! Weights are ternary, or have two bits, -3, -1, 1, 3, which are twice one sign plus another: two panels of ordinary ternary
//! weights then stand behind each other, `w = 2·high + low`, and the product takes twice the work.

use std::sync::Arc;

use crate::codec::{Act, CodesLayout, WeightKind};
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{self, CacheLine, Inner, Kernel, Layout, Operands, PanelWeights, UNIT_CHANNELS};
use crate::memory;

/// Bytes before the first panel.
pub(crate) const HEADER: usize = 64;
/// Word of the header that holds the checksum of those before.
const CHECKSUM: usize = HEADER / 4 - 1;
const MAGIC: u32 = u32::from_le_bytes(*b"ftnw");
/// Accumulators stay exact in float32 below this, in magnitude.
const EXACT: usize = 1 << 24;
/// No reduction is longer, whatever the operands: levels and weights that are both up to 2.
const MAX_REDUCTION: usize = EXACT / 2;

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

    /// Number of weights.
    pub fn len(self) -> usize {
        self.out_channels.saturating_mul(self.reduction())
    }

    /// Never: a checked shape has at least one weight.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Operands {
    /// Those of such weights and activations of the kind `act`.
    ///
    /// # Errors
    /// As [`WeightKind::of`].
    pub fn of(weights: &[i8], act: Act) -> Result<Self> {
        Ok(Operands { act, weights: WeightKind::of(weights)? })
    }

    /// `Ok` where the accumulators of such a shape are exact in float32.
    fn check(self, shape: WeightShape) -> Result<()> {
        let most = self.act.max_abs() * self.weights.max_abs();
        match shape.reduction().saturating_mul(most) <= EXACT {
            true => Ok(()),
            false => {
                let longest = EXACT / most;
                bad_value(
                    "weight shape",
                    format!("a reduction of at most {longest} for {self:?}"),
                    format!("{shape:?}"),
                )
            }
        }
    }
}

/// FNV-1a over the header's words before the checksum: changes with every single one of them.
fn checksum(header: &[u32; HEADER / 4]) -> u32 {
    header[..CHECKSUM].iter().fold(0x811c_9dc5, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193))
}

/// What is wrong with a blob.
pub(crate) fn damaged(why: &str) -> Error {
    Error::Packed { why: why.into() }
}

/// What the header of a blob says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// The layout's number, in its kernels' table.
    pub layout: u32,
    /// Not checked yet where it was read.
    pub shape: WeightShape,
    pub act: Act,
    pub weights: WeightKind,
}

impl Header {
    fn words(&self, magic: u32) -> [u32; HEADER / 4] {
        let s = self.shape;
        let mut header = [0; HEADER / 4];
        header[..9].copy_from_slice(&[
            magic,
            self.layout,
            s.out_channels as u32,
            s.channels as u32,
            s.kernel[0] as u32,
            s.kernel[1] as u32,
            s.groups as u32,
            self.act as u32,
            self.weights as u32,
        ]);
        header[CHECKSUM] = checksum(&header);
        header
    }

    /// Reads the header of a blob of `what`.
    pub fn read(bytes: &[u8], magic: u32, what: &str) -> Result<Self> {
        let (words, _) = bytes.get(..HEADER).ok_or_else(|| damaged("they are too short to hold a header"))?.as_chunks();
        let header: [u32; HEADER / 4] = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        let [found, layout, out_channels, channels, kh, kw, groups, act, weights, ..] = header;
        if found != magic {
            return Err(damaged(&format!("they do not begin with the mark of {what}")));
        }
        let (act, weights) = (Act::ALL.get(act as usize), WeightKind::ALL.get(weights as usize));
        let (Some(&act), Some(&weights), true) = (act, weights, header[CHECKSUM] == checksum(&header)) else {
            return Err(damaged("their header is damaged"));
        };
        let shape = WeightShape {
            out_channels: out_channels as usize,
            channels: channels as usize,
            kernel: [kh as usize, kw as usize],
            groups: groups as usize,
        };
        Ok(Header { layout, shape, act, weights })
    }
}

/// The bytes of packed weights.
#[derive(Clone, Debug)]
pub(crate) enum Blob<'a> {
    Borrowed(&'a [u8]),
    /// So many bytes, from the beginning of a cache line: measured, vectors that straddle lines cost up to an eighth.
    Owned(Arc<Vec<CacheLine>>, usize),
}

impl Blob<'static> {
    /// A blob of `len` bytes: the header, then what `fill` writes into the zeros behind it, given all of them.
    pub fn new(header: &Header, magic: u32, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut lines = memory::filled("packed weights", len.div_ceil(size_of::<CacheLine>()), CacheLine::ZERO)?;
        let bytes = &mut CacheLine::bytes_mut(&mut lines)[..len];
        for (slot, value) in bytes[..HEADER].chunks_exact_mut(4).zip(header.words(magic)) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        fill(bytes)?;
        Ok(Blob::Owned(Arc::new(lines), len))
    }
}

impl<'a> Blob<'a> {
    /// Borrows a blob that should have so many bytes.
    pub fn borrow(bytes: &'a [u8], expected: usize) -> Result<Self> {
        match bytes.len() {
            got if got == expected => Ok(Blob::Borrowed(bytes)),
            got => Err(damaged(&format!("expected {expected} bytes, got {got}"))),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Blob::Borrowed(bytes) => bytes,
            Blob::Owned(lines, len) => &CacheLine::bytes(lines)[..*len],
        }
    }
}

/// Ternary weights, or weights of two bits, laid out for a kernel.
#[derive(Clone, Debug)]
pub struct PackedWeights<'a> {
    blob: Blob<'a>,
    shape: WeightShape,
    operands: Operands,
    layout: Layout,
    kernel: &'static dyn Kernel,
}

impl PackedWeights<'static> {
    /// Packs `codes` (all of -1, 0, 1, or all of -3, -1, 1, 3), ordered `out_channels, channels / groups, kernel height, kernel
    /// width` as in PyTorch, for the best kernel that this CPU has for a convolution of the shape and activations of the kind
    /// `act`.
    ///
    /// # Errors
    /// [`Error::Value`] for an impossible shape, or one whose sums float32 could not hold, or a code that is none,
    /// [`Error::Shape`] for a slice of another size, [`Error::Environment`] as [`kernels::available`].
    pub fn new(codes: &[i8], shape: WeightShape, act: Act) -> Result<Self> {
        let shape = shape.check()?;
        let operands = Operands::of(codes, act)?;
        let kernel = kernels::choose(shape.out_channels / shape.groups, shape.reduction(), operands)?;
        Self::for_kernel(kernel, codes, shape, act)
    }

    /// As [`PackedWeights::new`], for a linear layer, which has as few rows as a batch has images.
    ///
    /// # Errors
    /// As [`PackedWeights::new`].
    pub fn for_linear(codes: &[i8], shape: WeightShape, act: Act) -> Result<Self> {
        let operands = Operands::of(codes, act)?;
        Self::for_kernel(kernels::choose_for_linear(operands)?, codes, shape, act)
    }

    /// As [`PackedWeights::new`], for a given kernel: for tests and benchmarks.
    ///
    /// # Errors
    /// As [`PackedWeights::new`]; [`Error::Value`] where the kernel cannot run these operands.
    pub fn for_kernel(kernel: &'static dyn Kernel, codes: &[i8], shape: WeightShape, act: Act) -> Result<Self> {
        Self::for_operands(kernel, codes, shape, Operands::of(codes, act)?)
    }

    /// As [`PackedWeights::for_kernel`], for weights whose kind is known and checked.
    ///
    /// # Errors
    /// As [`PackedWeights::for_kernel`].
    pub(crate) fn for_operands(
        kernel: &'static dyn Kernel,
        codes: &[i8],
        shape: WeightShape,
        operands: Operands,
    ) -> Result<Self> {
        let (shape, act) = (shape.check()?, operands.act);
        check_len("weight", shape.len(), codes.len())?;
        operands.check(shape)?;
        if !operands.supported_by(kernel) {
            return bad_value("kernel", format!("one that runs {operands:?}"), kernel.name());
        }
        let layout = kernel.layout();
        let mut packed = PackedWeights { blob: Blob::Borrowed(&[]), shape, operands, layout, kernel };
        let (taps, group_channels, k) =
            (shape.kernel[0] * shape.kernel[1], shape.channels / shape.groups, shape.reduction());
        // One output channel's codes, taps before channels: the order in which activations are walked.
        let panel_codes = layout.nr.saturating_mul(k);
        let mut reordered = memory::filled("weights of a panel", panel_codes, 0i8)?;
        // w = 2·high + low, both of them signs.
        let two_bit = operands.weights == WeightKind::TwoBit;
        let mut signs = memory::filled("weights of a panel", if two_bit { panel_codes } else { 0 }, 0i8)?;
        let header = Header { layout: kernel.layout_id(), shape, act, weights: operands.weights };
        packed.blob = Blob::new(&header, MAGIC, packed.total_bytes(), |bytes| {
            for group in 0..shape.groups {
                for panel in 0..packed.panels_per_group() {
                    let first = group * packed.group_out_channels() + panel * layout.nr;
                    let count = layout.nr.min(packed.group_out_channels() - panel * layout.nr);
                    for (to, from) in reordered.chunks_exact_mut(k).zip(codes[first * k..].chunks_exact(k)).take(count)
                    {
                        for (c, from) in from.chunks_exact(taps).enumerate() {
                            for (t, &code) in from.iter().enumerate() {
                                to[t * group_channels + c] = code;
                            }
                        }
                    }
                    let mut pack = |plane: usize, codes: &[i8]| {
                        let range = packed.panel_range(group, panel, plane);
                        let weights = PanelWeights { weights: codes, taps, inputs: group_channels, count, act };
                        packed.inner().pack_panel(&weights, &mut bytes[range])
                    };
                    if !two_bit {
                        pack(0, &reordered)?;
                        continue;
                    }
                    for (plane, sign) in [i8::signum as fn(i8) -> i8, |w| w - 2 * w.signum()].into_iter().enumerate() {
                        for (to, &from) in signs.iter_mut().zip(&reordered) {
                            *to = sign(from);
                        }
                        pack(plane, &signs)?;
                    }
                }
            }
            Ok(())
        })?;
        Ok(packed)
    }
}

impl<'a> PackedWeights<'a> {
    /// Bytes that weights of a checked shape take for a kernel that runs the operands.
    pub(crate) fn packed_bytes(kernel: &'static dyn Kernel, shape: WeightShape, operands: Operands) -> usize {
        if !operands.supported_by(kernel) {
            return 0;
        }
        let layout = kernel.layout();
        PackedWeights { blob: Blob::Borrowed(&[]), shape, operands, layout, kernel }.total_bytes()
    }

    /// Checks and borrows a blob that [`PackedWeights::as_bytes`] gave.
    ///
    /// # Errors
    /// [`Error::Packed`] where the blob is damaged or meant for another CPU's kernel.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        let header = Header::read(bytes, MAGIC, "packed weights")?;
        let operands = Operands { act: header.act, weights: header.weights };
        let kernel = kernels::for_layout(header.layout, operands)?;
        let shape = header.shape.check().and_then(|shape| operands.check(shape).map(|()| shape));
        let shape = shape.map_err(|e| damaged(&format!("their header is damaged ({e})")))?;
        let layout = kernel.layout();
        let packed = PackedWeights { blob: Blob::Borrowed(&[]), shape, operands, layout, kernel };
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

    /// The kind of activations.
    pub fn act(&self) -> Act {
        self.operands.act
    }

    /// What the weights are.
    pub fn kind(&self) -> WeightKind {
        self.operands.weights
    }

    /// The layout of the codes that a convolution with these weights reads.
    pub(crate) fn codes_layout(&self) -> Result<CodesLayout> {
        Ok(CodesLayout::new(self.shape.channels, self.shape.groups)?.with(self.act().coding()))
    }

    /// The kernel that will run them.
    pub fn kernel(&self) -> &'static dyn Kernel {
        self.kernel
    }

    /// The inner loop that will run them.
    pub(crate) fn inner(&self) -> Inner<'static> {
        self.kernel.inner(self.operands.into()).expect("checked when they were packed or borrowed")
    }

    /// Panels for each one of output channels.
    fn planes(&self) -> usize {
        1 + usize::from(self.kind() == WeightKind::TwoBit)
    }

    fn total_bytes(&self) -> usize {
        let panels = self.shape.groups.saturating_mul(self.panels_per_group()).saturating_mul(self.planes());
        panels.saturating_mul(self.panel_bytes()).saturating_add(HEADER)
    }

    fn panel_bytes(&self) -> usize {
        self.inner().panel_bytes(self.shape.kernel[0] * self.shape.kernel[1] * self.units_per_tap())
    }

    fn panel_range(&self, group: usize, panel: usize, plane: usize) -> std::ops::Range<usize> {
        let size = self.panel_bytes();
        let start = HEADER + ((group * self.panels_per_group() + panel) * self.planes() + plane) * size;
        start..start + size
    }

    /// A panel; of weights of two bits, that of the high ones.
    pub(crate) fn panel(&self, group: usize, panel: usize) -> &[u8] {
        &self.blob.bytes()[self.panel_range(group, panel, 0)]
    }

    /// The panel of low bits, where weights have two.
    pub(crate) fn low_panel(&self, group: usize, panel: usize) -> Option<&[u8]> {
        (self.kind() == WeightKind::TwoBit).then(|| &self.blob.bytes()[self.panel_range(group, panel, 1)])
    }

    pub(crate) fn groups(&self) -> usize {
        self.shape.groups
    }

    pub(crate) fn group_out_channels(&self) -> usize {
        self.shape.out_channels / self.shape.groups
    }

    pub(crate) fn panels_per_group(&self) -> usize {
        self.group_out_channels().div_ceil(self.layout.nr)
    }

    pub(crate) fn units_per_tap(&self) -> usize {
        (self.shape.channels / self.shape.groups).div_ceil(UNIT_CHANNELS)
    }

    pub(crate) fn macs_per_row(&self) -> usize {
        self.shape.len()
    }
}
