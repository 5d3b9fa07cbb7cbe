//! Depthwise convolution of int8: every output channel reads one input channel.
//!
//! A window's products of one channel are neighbours in no layout that a convolution's input has,
//! so lanes are channels, and the taps that one instruction adds up are interleaved: pixels of
//! [`DepthwiseLayout::rows`] image rows that lie below each other, channel by channel, in
//! *columns*. Where the rows of a column are more than the window is high, lines of the output
//! share columns: each line has a copy of the weights, shifted down by its distance.
//!
//! | instruction set | a column | inner step |
//! | --- | --- | --- |
//! | AVX-512 VNNI | four rows of `u8` (code + 128) | `vpdpbusd`: 64 products |
//! | AVX2 | two rows of `i16` | `vpmaddwd`, `vpaddd`: 16 products |
//! | others | one row of `i16` | what compilers make of a product and an addition |

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod plain;

use super::columns::Element;
use super::kernel::{Family, Inner, Layout, OperandTypes, private};
use super::panels::PanelWeights;

/// Lines of the output that one call computes, at most.
pub(crate) const MAX_LINES: usize = 2;

/// How a kernel's operands are laid out.
///
/// Columns lie as `[column][step][block][rows]`; a panel of weights, for one block of channels, as
/// `[shift][kernel width][step][block][rows]`, where a step is so many rows of the window. Where
/// activations are biased, an `i32` per channel follows, with which sums begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseLayout {
    /// Tells layouts apart at the head of packed weights.
    pub id: u32,
    /// Image rows that are interleaved.
    pub rows: usize,
    /// Channels in a block.
    pub block: usize,
    /// Type of activations, and size of weights.
    pub element: Element,
}

impl DepthwiseLayout {
    /// Steps of a window of this height.
    pub(crate) fn steps(&self, height: usize) -> usize {
        height.div_ceil(self.rows)
    }

    /// Places that a window of this height has in the rows of a column.
    pub(crate) fn shifts(&self, height: usize) -> usize {
        self.steps(height) * self.rows - height + 1
    }

    /// Bytes of a step of a column, and of the weights that it meets.
    pub(crate) fn step_bytes(&self) -> usize {
        self.rows * self.block * self.element.bytes()
    }

    /// Bytes of a row's pixel in so many channels.
    pub(crate) fn pixel_bytes(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.block) * self.element.bytes()
    }

    /// Bytes of a panel of weights.
    pub(crate) fn panel_bytes(&self, [height, width]: [usize; 2]) -> usize {
        let weights = self.shifts(height) * width * self.steps(height) * self.step_bytes();
        weights + if self.element == Element::Biased { 4 * self.block } else { 0 }
    }

    /// What of it all families have.
    pub(super) fn common(&self) -> Layout {
        Layout { family: Family::Int8, nr: self.block, lanes: self.block }
    }

    /// Packs a panel, whose weights are in the order of rows.
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

/// What follows the sums of a block: `acc * scale`, `+ bias`, then `fma(y, scale, bias)` where it
/// is given, then bounds. Constants are as many as a block has channels.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// Per channel.
    pub scale: &'a [f32],
    /// Per channel; -0.0, which changes nothing, where there is none.
    pub bias: &'a [f32],
    /// A scale and a bias per channel: BatchNorm in evaluation mode.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Least and greatest value; NaN passes through.
    pub clamp: [f32; 2],
    /// Channels of the block that exist.
    pub channels: usize,
}

/// How floats become codes.
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    pub(crate) inv_step: f32,
    /// Of codes, not rounded yet: inside -127 to 127, in order.
    pub(crate) bounds: [f32; 2],
}

impl Levels {
    /// For inputs that are clamped to bounds before: products by a positive number keep their
    /// order, and so does rounding, so it makes no difference to clamp after the product.
    pub(crate) fn new(inv_step: f32, bounds: [f32; 2]) -> Self {
        let level = |bound: f32| match bound.is_infinite() {
            // Flushed to zero, the step's inverse would make this NaN.
            true => 127f32.copysign(bound),
            false => (bound * inv_step).clamp(-127.0, 127.0),
        };
        Levels { inv_step, bounds: bounds.map(level) }
    }
}

/// Rows of an image in blocks of quantized channels, some of which are to become columns.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where the block of the first pixel begins in every row of a column.
    pub(crate) offsets: &'a [usize],
    /// Pixels, and bytes from one to the next.
    pub(crate) count: usize,
    pub(crate) pitch: usize,
    /// Channels of the block that exist.
    pub(crate) channels: usize,
}

impl Rows<'_> {
    /// Steps of a column.
    ///
    /// # Panics
    /// Where reading the rows, or writing their columns, would leave the slices: a bug in the
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

/// Lines of columns, a panel of weights and what becomes of their products, whose sizes fit each
/// other.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Columns of a block: those under the first window begin here.
    pub(crate) columns: &'a [u8],
    pub(crate) panel: &'a [u8],
    pub(crate) kernel: [usize; 2],
    /// Columns from one window to the next, and from one tap to the next.
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    /// Lines of the output, and rows from the window of one to that of the next.
    pub(crate) lines: usize,
    pub(crate) shift: usize,
    /// Pixels of a line; floats from one to the next, and from line to line.
    pub(crate) width: usize,
    pub(crate) pixel: usize,
    pub(crate) line: usize,
    pub(crate) finish: Finish<'a>,
}

impl Product<'_> {
    /// # Panics
    /// Where reading operands, or writing results, would leave the slices: a bug in the caller.
    fn check(&self, layout: &DepthwiseLayout, out: &[f32]) {
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
                && finish.channels <= self.pixel
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
            (self.width - 1).checked_mul(self.pixel).and_then(|at| at.checked_add(finish.channels));
        let end = line.and_then(|end| end.checked_add((self.lines - 1).checked_mul(self.line)?));
        assert!(end.is_some_and(|end| end <= out.len()));
    }
}

/// The inner loops of a kernel for depthwise convolution.
pub trait DepthwiseKernel: private::Sealed + Sync + std::fmt::Debug {
    /// Layout of what it reads.
    fn layout(&self) -> &'static DepthwiseLayout;

    /// Packs a panel.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        self.layout().pack(weights, panel);
    }

    /// Quantizes pixels of so many channels: `round(clamp(x * inv_step, bounds))`, halves to even.
    /// `out` has `DepthwiseLayout::pixel_bytes` for each, in an order of channels that only the
    /// kernel knows. Whether none was NaN.
    fn quantize(&self, x: &[f32], channels: usize, levels: &Levels, out: &mut [u8]) -> bool;

    /// Makes columns of a block of channels: as many as there are pixels, from where `out` begins.
    fn interleave(&self, rows: &Rows<'_>, out: &mut [u8]);

    /// Products of a block of channels, to floats: see `Finish`. `out` begins with the first
    /// channel of the block in the first pixel.
    fn multiply(&self, product: &Product<'_>, out: &mut [f32]);
}

/// The inner loop for depthwise int8 operands.
fn inner<'a>(operands: OperandTypes, kernel: &'a dyn DepthwiseKernel) -> Option<Inner<'a>> {
    (operands == OperandTypes::Int8Depthwise).then_some(Inner::Depthwise(kernel))
}
