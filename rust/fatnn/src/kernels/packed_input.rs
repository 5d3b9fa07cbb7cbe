//! What kernels with a layout of their own read: a piece of a convolution's input, rewritten once
//! and then read for every tap and every output channel.
//!
//! **Positions.** The driver cuts the output into rectangles. The part of the input that a
//! rectangle sees becomes a frame: zero padding is materialised, and a stride is taken apart into
//! phases (every `stride`-th row and column, from each offset that some tap needs), so that every
//! convolution is one of stride 1. Output pixel `(y, x)` of the rectangle is *position* `y · width
//! + x`, `width` being the frame's; tap `(i, j)` of position `q` reads position `q + shift` of its
//! phase, whatever `q`. Positions past a row's end are computed like any other and dropped: 2 of 58
//! in a layer of 56×56.
//!
//! **Memory.** Per group, phase and unit of 64 channels a *plane* of
//! [`PackedInputKernel::unit_bytes`] for every position, and slack behind the last, so that a
//! kernel may compute whole blocks. The reduction runs over units first and taps second: nine taps
//! read the same few kilobytes.

use super::cache_line::CacheLine;
use super::epilogue::TileEpilogue;
use super::kernel::{Inner, Layout, OperandTypes, private};
use super::panels::PanelWeights;
use crate::codec::{Act, WeightKind};
use crate::error::Result;

/// A block of accumulators that [`PackedInputKernel::run`] is done with.
pub struct AccBlock<'a> {
    /// Position of the first row.
    pub first: usize,
    /// `acc[position][nr]`; rows of positions that nobody asked for are dropped, whatever they
    /// hold. The next block begins behind the last.
    pub acc: &'a [i32],
}

/// One unit of some pixels, as planes `z` and `p` (see [`crate::codec`]).
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// The first pixel's planes, and what lies behind them.
    pub planes: &'a [u8],
    /// Bytes from one pixel's planes to the next one's.
    pub step: usize,
    /// Pixels.
    pub count: usize,
    /// Channels of the unit that exist; nobody looks at the others.
    pub channels: usize,
}

impl<'a> Pixels<'a> {
    /// Planes of pixel `i`.
    ///
    /// # Panics
    /// Where there are none: a bug in the driver.
    #[inline(always)]
    pub(crate) fn unit(&self, i: usize) -> &'a [u8; 16] {
        self.planes[i * self.step..].first_chunk().expect("the driver gives whole pixels")
    }
}

/// The inner loop of a kernel that wants its input in a layout of its own.
pub trait PackedInputKernel: private::Sealed {
    /// Layout of the weights.
    fn layout(&self) -> Layout;

    /// What follows, for tiles of this width.
    fn epilogue(&self) -> &'static dyn TileEpilogue;

    /// Bytes of a panel of weights over `units` units, all taps counted.
    fn panel_bytes(&self, units: usize) -> usize;

    /// Packs one panel of [`PackedInputKernel::panel_bytes`] bytes.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()>;

    /// Bytes that 64 channels of a position take in a frame.
    fn unit_bytes(&self) -> usize;
    /// Bytes from one position to the next: a unit's, where the unit is not split further.
    fn position_bytes(&self) -> usize {
        self.unit_bytes()
    }
    /// Positions that are computed together.
    fn block(&self) -> usize;
    /// Bytes behind the last plane that the last block may read.
    fn slack(&self) -> usize {
        self.block() * self.position_bytes()
    }
    /// Writes a unit of some pixels into a plane of `positions` positions, from position `first`
    /// on.
    ///
    /// # Panics
    /// Where a slice is too short.
    fn pack_input(&self, pixels: &Pixels<'_>, plane: &mut [u8], first: usize, positions: usize);
    /// Writes zeros instead: level 0, or else code 0.
    ///
    /// # Panics
    /// As [`PackedInputKernel::pack_input`].
    fn pack_zeros(
        &self,
        of_levels: bool,
        count: usize,
        plane: &mut [u8],
        first: usize,
        positions: usize,
    );
    /// Called once for a plane all of whose positions were written.
    fn finish(&self, plane: &mut [u8]) {
        let _ = plane;
    }
    /// Accumulates all positions of `framed` against one panel of weights and hands them on block
    /// by block, in order.
    fn run(
        &self,
        framed: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    );
}

/// The inner loop for operands, of those for ternary codes and for activations of two bits.
pub(super) fn inner<'a>(
    operands: OperandTypes,
    ternary: &'a (dyn PackedInputKernel + Sync),
    uint2: &'a (dyn PackedInputKernel + Sync),
) -> Option<Inner<'a>> {
    let OperandTypes::Codes(operands) = operands else { return None };
    // Only the driver of tiled kernels adds two panels up.
    let inner = if operands.act == Act::Uint2 { uint2 } else { ternary };
    (operands.weights != WeightKind::TwoBit).then_some(Inner::PackedInput(inner))
}

/// A frame, checked so that kernels need no bounds of their own.
#[derive(Clone, Copy)]
pub struct PackedInput<'a> {
    frame: &'a [u8],
    offsets: &'a [usize],
    positions: usize,
    plane_positions: usize,
    row: [usize; 2],
}

impl<'a> PackedInput<'a> {
    /// `offsets` are the bytes where every (unit, tap) of position 0 begins; `positions` of the
    /// `plane_positions` that a plane has are to be computed, and of every `row[1]` of these, a row
    /// of the frame, the first `row[0]` are wanted.
    ///
    /// # Panics
    /// Where a block that begins below `positions` would leave the frame, or there is nothing to
    /// reduce: a bug in the driver.
    pub(crate) fn new(
        kernel: &dyn PackedInputKernel,
        frame: &'a [u8],
        offsets: &'a [usize],
        [positions, plane_positions]: [usize; 2],
        row: [usize; 2],
    ) -> Self {
        let blocks = positions.next_multiple_of(kernel.block());
        // In a plane that is split further, the last part begins so far behind its start.
        let last = plane_positions * (kernel.unit_bytes() - kernel.position_bytes());
        let reach = last + blocks * kernel.position_bytes();
        assert!(!offsets.is_empty() && positions > 0);
        for &offset in offsets {
            assert!(offset <= frame.len() && reach <= frame.len() - offset, "frame too small");
        }
        PackedInput { frame, offsets, positions, plane_positions, row }
    }

    /// Start of the frame: at every offset there are [`PackedInput::positions`] positions, rounded
    /// up to whole blocks.
    #[inline(always)]
    pub(crate) fn start(&self) -> *const u8 {
        self.frame.as_ptr()
    }

    /// Byte offset of every (unit, tap) for position 0, taps of a unit behind each other.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> &'a [usize] {
        self.offsets
    }

    /// Positions in a plane.
    #[inline(always)]
    pub(crate) fn plane_positions(&self) -> usize {
        self.plane_positions
    }

    /// Positions in a row that are wanted, from its first on, and those in a row; the results of
    /// others are dropped.
    #[inline(always)]
    pub(crate) fn row(&self) -> [usize; 2] {
        self.row
    }

    /// Positions to compute.
    #[inline(always)]
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}

/// A panel of weights.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    bytes: &'a [u8],
    channels: usize,
}

impl<'a> Panel<'a> {
    /// A panel of a reduction over `units` units (all taps counted), of which `channels` output
    /// channels exist.
    ///
    /// # Panics
    /// Where it has the wrong size: a bug in the driver.
    pub(crate) fn new(
        kernel: &dyn PackedInputKernel,
        units: usize,
        bytes: &'a [u8],
        channels: usize,
    ) -> Self {
        assert_eq!(bytes.len(), kernel.panel_bytes(units), "panel of another size");
        assert!((1..=kernel.layout().nr).contains(&channels));
        Panel { bytes, channels }
    }

    /// The weights, as the family packed them.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Output channels that exist; accumulators of others are never looked at.
    #[inline(always)]
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }
}
