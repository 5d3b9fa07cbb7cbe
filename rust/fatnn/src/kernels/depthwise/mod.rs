//! Depthwise convolution of int8: every output channel reads one input channel.
//!
//! Vector lanes are channels. One instruction also adds up several taps of a channel, which must be
//! next to each other in memory, but no input layout has them so. Kernels therefore read *columns*:
//! for each `x`, the pixels of [`DepthwiseLayout::rows`] image rows, interleaved by channel. If
//! a column has more rows than the window, several lines of the output share it: each line has its
//! own copy of the weights, shifted down by the line's distance to the first one.
//!
//! | instruction set | column | inner step |
//! | --- | --- | --- |
//! | AVX-512 VNNI | four rows of `u8` (code + 128) | `vpdpbusd`: 64 products |
//! | AVX2 | two rows of `i16` | `vpmaddwd`, `vpaddd`: 16 products |
//! | others | one row of `i16` | multiply and add, vectorized by the compiler |

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod plain;

use super::columns::Element;
use super::kernel::{Family, Inner, Layout, OperandTypes, UNIT_BYTES, private};
use super::panels::PanelWeights;
use crate::codec::{Coding, MAX_THRESHOLDS};

/// Maximum number of output lines that one call computes.
pub(crate) const MAX_LINES: usize = 2;

/// How a kernel's operands are laid out.
///
/// Columns are `[column][step][block][rows]`. A panel of weights, for one block of channels, is
/// `[shift][kernel width][step][block][rows]`. A step is `rows` rows of the window. If activations
/// are biased, the panel ends with an `i32` per channel, with which its sum starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseLayout {
    /// Identifies the layout in the header of packed weights.
    pub id: u32,
    /// Number of image rows that are interleaved.
    pub rows: usize,
    /// Channels in a block.
    pub block: usize,
    /// How activations are stored. Weights have the same size.
    pub element: Element,
}

impl DepthwiseLayout {
    /// Number of steps of a window of this height.
    pub(crate) fn steps(&self, height: usize) -> usize {
        height.div_ceil(self.rows)
    }

    /// Number of positions that a window of this height can have in the rows of a column.
    pub(crate) fn shifts(&self, height: usize) -> usize {
        self.steps(height) * self.rows - height + 1
    }

    /// Bytes of a step of a column, and of the weights that multiply it.
    pub(crate) fn step_bytes(&self) -> usize {
        self.rows * self.block * self.element.bytes()
    }

    /// Bytes of a quantized pixel with `channels` channels.
    pub(crate) fn pixel_bytes(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.block) * self.element.bytes()
    }

    /// Bytes of a panel of weights.
    pub(crate) fn panel_bytes(&self, [height, width]: [usize; 2]) -> usize {
        let weights = self.shifts(height) * width * self.steps(height) * self.step_bytes();
        weights + if self.element == Element::Biased { 4 * self.block } else { 0 }
    }

    /// The part that layouts of all families have.
    pub(super) fn common(&self) -> Layout {
        Layout { family: Family::Int8, nr: self.block, lanes: self.block }
    }

    /// Packs a panel. Taps of `weights` are row by row.
    fn pack(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        let [height, width] = weights.kernel;
        let (steps, size) = (self.steps(height), self.element.bytes());
        assert_eq!(panel.len(), self.panel_bytes(weights.kernel));
        panel.fill(0);
        let start = self.shifts(height) * width * steps * self.step_bytes();
        for j in 0..self.block {
            let Some(weight) = weights.channel(j) else { continue };
            assert_eq!(weight.len(), height * width);
            for (shift, y, x) in (0..self.shifts(height))
                .flat_map(|s| (0..height).flat_map(move |y| (0..width).map(move |x| (s, y, x))))
            {
                let (row, w) = (y + shift, weight[y * width + x]);
                let step = (shift * width + x) * steps + row / self.rows;
                let at = ((step * self.block + j) * self.rows + row % self.rows) * size;
                panel[at..at + size].copy_from_slice(&i16::from(w).to_le_bytes()[..size]);
            }
            if self.element == Element::Biased {
                let sum = weight.iter().fold(0i32, |sum, &w| sum + i32::from(w));
                panel[start + j * 4..][..4].copy_from_slice(&sum.wrapping_mul(-128).to_le_bytes());
            }
        }
    }
}

/// Turns the sums of a block into floats: `y = acc * scale + bias`, then, if given,
/// `fma(y, scale, bias)`, then a clamp. There is a constant for every channel of a block.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// One scale per channel.
    pub scale: &'a [f32],
    /// One bias per channel; -0.0 if there is none, because adding that changes nothing.
    pub bias: &'a [f32],
    /// A scale and a bias per channel: BatchNorm in evaluation mode.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Minimum and maximum; NaN passes through.
    pub clamp: [f32; 2],
    /// Channels of the block without padding.
    pub channels: usize,
}

/// How the input is quantized: `round(clamp(x * inv_step, bounds))`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeParams {
    pub(crate) inv_step: f32,
    /// Lower and upper bound before rounding, both in -127..=127.
    pub(crate) bounds: [f32; 2],
}

impl QuantizeParams {
    /// Parameters for an input that is first clamped to `bounds`. Multiplying by a positive number
    /// and rounding keep the order of values, so clamping the product gives the same codes.
    pub(crate) fn new(inv_step: f32, bounds: [f32; 2]) -> Self {
        let level = |bound: f32| match bound.is_infinite() {
            // `inv_step` may be flushed to zero, and infinity times zero is NaN.
            true => 127f32.copysign(bound),
            false => (bound * inv_step).clamp(-127.0, 127.0),
        };
        QuantizeParams { inv_step, bounds: bounds.map(level) }
    }
}

/// The quantized image rows that are interleaved into columns, for one block of channels.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    /// For each row of a column, the byte offset of the first pixel's block.
    pub(crate) offsets: &'a [usize],
    /// Number of pixels.
    pub(crate) count: usize,
    /// Bytes from one pixel to the next.
    pub(crate) pitch: usize,
    /// Channels of the block without padding.
    pub(crate) channels: usize,
}

impl Rows<'_> {
    /// Checks sizes. Returns the number of steps of a column.
    ///
    /// # Panics
    /// If a read of the rows or a write to `out` would leave its slice, which is a bug in the
    /// caller.
    fn check(&self, layout: &DepthwiseLayout, out: &[u8]) -> usize {
        let block = layout.block * layout.element.bytes();
        assert!(
            (1..=layout.block).contains(&self.channels)
                && self.offsets.len().is_multiple_of(layout.rows)
        );
        let steps = self.offsets.len() / layout.rows;
        let columns =
            self.count.checked_mul(steps).and_then(|n| n.checked_mul(layout.step_bytes()));
        assert!(columns.is_some_and(|end| end <= out.len()));
        if self.count > 0 {
            let last =
                (self.count - 1).checked_mul(self.pitch).and_then(|at| at.checked_add(block));
            let last = last.expect("rows are in memory");
            assert!(
                self.offsets
                    .iter()
                    .all(|at| at.checked_add(last).is_some_and(|end| end <= self.bytes.len()))
            );
        }
        steps
    }
}

/// Turns the sums of a block into codes. There is a number for every channel of a block.
#[derive(Clone, Copy, Debug)]
pub struct SumLevels<'a> {
    /// -1 for channels whose sums are inverted before they are compared, otherwise 0.
    pub(crate) flip: &'a [i32],
    /// How the codes are written as bits.
    pub(crate) coding: Coding,
    /// For each level above the lowest one, the smallest sum that reaches it.
    pub(crate) levels: [&'a [i32]; MAX_THRESHOLDS],
}

/// For loops that write floats.
#[cfg(target_arch = "x86_64")]
const NO_LEVELS: SumLevels<'static> =
    SumLevels { flip: &[], coding: Coding::Ternary, levels: [&[]; MAX_THRESHOLDS] };

/// The bits of codes with `LEVELS` levels above the lowest one; see [`Coding::planes`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn planes<const LEVELS: usize>(reached: [u64; MAX_THRESHOLDS]) -> [u64; 2] {
    match LEVELS {
        2 => Coding::Ternary.planes(reached),
        _ => Coding::Uint2.planes(reached),
    }
}

/// The operands of one call: columns, a panel of weights and the epilogue.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Columns of a block, from the first window's first one.
    pub(crate) columns: &'a [u8],
    pub(crate) panel: &'a [u8],
    /// Height and width of the window.
    pub(crate) kernel: [usize; 2],
    /// Columns from one window to the next.
    pub(crate) stride: usize,
    /// Columns from one tap to the next.
    pub(crate) dilation: usize,
    /// Number of output lines.
    pub(crate) lines: usize,
    /// Image rows from one line's windows to the next line's.
    pub(crate) shift: usize,
    /// Output pixels in a line.
    pub(crate) width: usize,
    /// Bytes from one output pixel to the next.
    pub(crate) pixel_pitch: usize,
    /// Bytes from one output line to the next.
    pub(crate) line_pitch: usize,
    pub(crate) finish: Finish<'a>,
}

impl Product<'_> {
    /// Checks sizes. `written` is the number of bytes that are written per pixel, in `out` bytes.
    ///
    /// # Panics
    /// If a read of an operand or a write to the output would leave its slice, which is a bug in
    /// the caller.
    fn check(&self, layout: &DepthwiseLayout, written: usize, out: usize) {
        let (finish, [height, width]) = (&self.finish, self.kernel);
        let constants = finish.affine.map_or([finish.scale; 2], |(scale, bias)| [scale, bias]);
        assert!(
            [finish.scale, finish.bias]
                .into_iter()
                .chain(constants)
                .all(|c| c.len() == layout.block)
        );
        assert!(
            (1..=layout.block).contains(&finish.channels)
                && written <= self.pixel_pitch
                && self.width > 0
        );
        assert!(height > 0 && width > 0 && self.panel.len() == layout.panel_bytes(self.kernel));
        assert!(self.lines == 1 || (self.lines == 2 && self.shift < layout.shifts(height)));
        let (last, tap) =
            ((self.width - 1).checked_mul(self.stride), (width - 1).checked_mul(self.dilation));
        let columns = last.zip(tap).and_then(|(last, tap)| last.checked_add(tap)?.checked_add(1));
        let bytes = columns.and_then(|n| n.checked_mul(layout.steps(height) * layout.step_bytes()));
        assert!(bytes.is_some_and(|bytes| bytes <= self.columns.len()));
        let line =
            (self.width - 1).checked_mul(self.pixel_pitch).and_then(|at| at.checked_add(written));
        let end =
            line.and_then(|end| end.checked_add((self.lines - 1).checked_mul(self.line_pitch)?));
        assert!(end.is_some_and(|end| end <= out));
    }

    /// [`Product::check`] for an output of floats.
    fn check_floats(&self, layout: &DepthwiseLayout, out: &[f32]) {
        self.check(layout, self.finish.channels * size_of::<f32>(), size_of_val(out));
    }

    /// [`Product::check`] for an output of codes. Each of the unit's two words gets a bit per
    /// channel.
    fn check_codes(&self, layout: &DepthwiseLayout, lanes: usize, to: &SumLevels<'_>, out: &[u8]) {
        let bits = self.finish.channels.next_multiple_of(lanes);
        assert!(layout.block <= 64 && lanes.is_multiple_of(8));
        let levels = to.levels.iter().take(to.coding.thresholds());
        assert!(levels.chain([&to.flip]).all(|levels| levels.len() == layout.block));
        self.check(layout, UNIT_BYTES / 2 + bits / 8, out.len());
    }
}

/// The inner loops of a kernel for depthwise convolution.
pub trait DepthwiseKernel: private::Sealed + Sync + std::fmt::Debug {
    /// Layout of its operands.
    fn layout(&self) -> &'static DepthwiseLayout;

    /// Packs a panel of weights.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        self.layout().pack(weights, panel);
    }

    /// Quantizes pixels of `channels` channels: `round(clamp(x * inv_step, bounds))`, ties to even.
    /// Returns whether no value was NaN. `out` has `DepthwiseLayout::pixel_bytes` for each pixel,
    /// with channels in the kernel's own order.
    fn quantize(&self, x: &[f32], channels: usize, params: &QuantizeParams, out: &mut [u8])
    -> bool;

    /// Whether it has [`DepthwiseKernel::arrange`].
    fn reads_bytes(&self) -> bool {
        false
    }

    /// Takes pixels of `channels` bytes (code + 128) in place of [`DepthwiseKernel::quantize`].
    fn arrange(&self, bytes: &[u8], channels: usize, out: &mut [u8]) {
        let _ = (bytes, channels, out);
        unreachable!("only called if `reads_bytes`");
    }

    /// Writes one column per pixel to `out`, for one block of channels.
    fn interleave(&self, rows: &Rows<'_>, out: &mut [u8]);

    /// Multiplies a block of channels and writes the floats of `Finish`. `out` starts at the first
    /// pixel, with the block's first channel.
    fn multiply(&self, product: &Product<'_>, out: &mut [f32]);

    /// As [`DepthwiseKernel::multiply`], but writes codes by thresholds of the sums. `out` starts
    /// at the first pixel, with the byte of the block's first channel in its unit, and is zero.
    fn multiply_to_codes(&self, product: &Product<'_>, to: &SumLevels<'_>, out: &mut [u8]);
}

/// The inner loop for depthwise int8 operands.
fn inner<'a>(operands: OperandTypes, kernel: &'a dyn DepthwiseKernel) -> Option<Inner<'a>> {
    (operands == OperandTypes::Int8Depthwise).then_some(Inner::Depthwise(kernel))
}
