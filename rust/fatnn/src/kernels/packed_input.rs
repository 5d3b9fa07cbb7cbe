//! Interface of kernels that read the input in a layout of their own. The driver packs a part of
//! the input once. The kernel then reads it for every tap and every output channel.
//!
//! **Positions.** The driver splits the output into rectangles. For each one, it packs the part of
//! the input that the rectangle depends on, with the zero padding written out. A strided
//! convolution is split into phases, so that kernels only see stride 1. A phase consists of every
//! `stride`-th row and column from one offset; only the offsets that some tap needs are packed.
//! Output pixel `(y, x)` of the rectangle is *position* `y · width + x`, where `width` is the
//! packed width. Tap `(i, j)` of position `q` reads position `q + shift` of its phase, with the
//! same `shift` for every `q`. Positions past the end of an output row are computed too, and their
//! results ignored: 2 of 58 in a 56×56 layer.
//!
//! **Memory.** For each group, phase and unit there is one *slab*:
//! [`PackedInputKernel::unit_bytes`] bytes for each position. Slack after the last slab lets a
//! kernel compute whole blocks of positions. The reduction visits all taps of a unit before the
//! next unit, so that nine taps read the same few kilobytes.

use super::cache_line::CacheLine;
use super::epilogue::TileEpilogue;
use super::kernel::{Inner, Layout, OperandTypes, private};
use super::panels::PanelWeights;
use crate::codec::{Act, WeightKind};
use crate::error::Result;

/// A finished block of accumulators of [`PackedInputKernel::run`].
pub struct AccBlock<'a> {
    /// Position of the first row.
    pub first: usize,
    /// `acc[position][nr]`. Rows outside the requested positions are ignored. The next block begins
    /// right after this one.
    pub acc: &'a [i32],
}

/// One unit of several pixels, as bit planes `z` and `p` (see [`crate::codec`]).
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// Bytes from the bit planes of the first pixel on.
    pub planes: &'a [u8],
    /// Bytes from the bit planes of one pixel to those of the next.
    pub pitch: usize,
    /// Number of pixels.
    pub count: usize,
    /// Channels of the unit that exist. The others are ignored.
    pub channels: usize,
}

impl<'a> Pixels<'a> {
    /// Bit planes of pixel `i`.
    ///
    /// # Panics
    /// If there is no such pixel, which is a bug in the driver.
    #[inline(always)]
    pub(crate) fn unit(&self, i: usize) -> &'a [u8; 16] {
        self.planes[i * self.pitch..].first_chunk().expect("the driver gives whole pixels")
    }
}

/// An inner loop that reads the input in a layout of its own.
pub trait PackedInputKernel: private::Sealed {
    /// Layout of the packed weights.
    fn layout(&self) -> Layout;

    /// Epilogue for tiles of this kernel's width.
    fn epilogue(&self) -> &'static dyn TileEpilogue;

    /// Bytes of a panel of weights over `chunks` chunks of the reduction.
    fn panel_bytes(&self, chunks: usize) -> usize;

    /// Packs weights into a panel of [`PackedInputKernel::panel_bytes`] bytes.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is no memory for intermediate results.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()>;

    /// Bytes of one unit of one position in a slab.
    fn unit_bytes(&self) -> usize;
    /// Bytes from one position to the next. Less than a unit's if the kernel splits units further.
    fn position_bytes(&self) -> usize {
        self.unit_bytes()
    }
    /// Number of positions that the kernel computes together.
    fn block(&self) -> usize;
    /// Bytes after the last slab that the last block may read.
    fn slack(&self) -> usize {
        self.block() * self.position_bytes()
    }
    /// Packs one unit of several pixels into a slab of `positions` positions, from position `first`
    /// on.
    ///
    /// # Panics
    /// If a slice is too short.
    fn pack_input(&self, pixels: &Pixels<'_>, slab: &mut [u8], first: usize, positions: usize);
    /// Packs zeros instead: level 0 if `zero_level`, otherwise code 0.
    ///
    /// # Panics
    /// As [`PackedInputKernel::pack_input`].
    fn pack_zeros(
        &self,
        zero_level: bool,
        count: usize,
        slab: &mut [u8],
        first: usize,
        positions: usize,
    );
    /// Called once per slab, after all of its positions were written. `channels` of the unit exist.
    fn finish(&self, slab: &mut [u8], channels: usize) {
        let _ = (slab, channels);
    }
    /// Multiplies all positions of `input` by one panel of weights, and passes blocks of
    /// accumulators to `emit` in the order of their positions.
    fn run(
        &self,
        input: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    );
}

/// Selects between the inner loops for ternary (or binary) codes and for two-bit activations.
pub(super) fn inner<'a>(
    operands: OperandTypes,
    ternary: &'a (dyn PackedInputKernel + Sync),
    uint2: &'a (dyn PackedInputKernel + Sync),
) -> Option<Inner<'a>> {
    let OperandTypes::Codes(operands) = operands else { return None };
    // Two-bit weights need the sum of two panels, which only the driver of tiled kernels computes.
    let inner = if operands.act == Act::Uint2 { uint2 } else { ternary };
    (operands.weights != WeightKind::TwoBit).then_some(Inner::PackedInput(inner))
}

/// Packed input, checked so that kernels need no bounds checks of their own.
#[derive(Clone, Copy)]
pub struct PackedInput<'a> {
    bytes: &'a [u8],
    offsets: &'a [usize],
    positions: usize,
    slab_positions: usize,
    row_widths: [usize; 2],
}

impl<'a> PackedInput<'a> {
    /// `offsets` has the first byte of position 0 for every chunk of the reduction. A slab has
    /// `slab_positions` positions, of which the first `positions` are computed. A packed row has
    /// `row_widths[1]` positions, of which the first `row_widths[0]` are output pixels.
    ///
    /// # Panics
    /// If a block that begins before `positions` would read outside `bytes`, or if there is nothing
    /// to compute, which is a bug in the driver.
    pub(crate) fn new(
        kernel: &dyn PackedInputKernel,
        bytes: &'a [u8],
        offsets: &'a [usize],
        [positions, slab_positions]: [usize; 2],
        row_widths: [usize; 2],
    ) -> Self {
        let blocks = positions.next_multiple_of(kernel.block());
        // If a kernel splits units, the last part of a unit begins this many bytes into its slab.
        let last = slab_positions * (kernel.unit_bytes() - kernel.position_bytes());
        let reach = last + blocks * kernel.position_bytes();
        assert!(!offsets.is_empty() && positions > 0);
        for &offset in offsets {
            assert!(
                offset <= bytes.len() && reach <= bytes.len() - offset,
                "packed input too small"
            );
        }
        PackedInput { bytes, offsets, positions, slab_positions, row_widths }
    }

    /// First byte of the packed input. [`PackedInput::positions`] positions, rounded up to whole
    /// blocks, are readable from each offset.
    #[inline(always)]
    pub(crate) fn start(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// Byte offset of position 0 for every chunk of the reduction. Taps of the same unit are
    /// consecutive.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> &'a [usize] {
        self.offsets
    }

    /// Positions in a slab.
    #[inline(always)]
    pub(crate) fn slab_positions(&self) -> usize {
        self.slab_positions
    }

    /// `[output, all]`: a packed row has `all` positions. The first `output` of them are output
    /// pixels; the results of the rest are ignored.
    #[inline(always)]
    pub(crate) fn row_widths(&self) -> [usize; 2] {
        self.row_widths
    }

    /// Positions to compute.
    #[inline(always)]
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}

/// A packed panel of weights.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    bytes: &'a [u8],
    channels: usize,
}

impl<'a> Panel<'a> {
    /// A panel with a reduction of `chunks` chunks and `channels` output channels before padding.
    ///
    /// # Panics
    /// If its size is wrong, which is a bug in the driver.
    pub(crate) fn new(
        kernel: &dyn PackedInputKernel,
        chunks: usize,
        bytes: &'a [u8],
        channels: usize,
    ) -> Self {
        assert_eq!(bytes.len(), kernel.panel_bytes(chunks), "panel has another size");
        assert!((1..=kernel.layout().nr).contains(&channels));
        Panel { bytes, channels }
    }

    /// The weights as the family packed them.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of output channels. The rest of the panel is padding, whose accumulators are ignored.
    #[inline(always)]
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }
}
