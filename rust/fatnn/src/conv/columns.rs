//! Convolution of int8: quantize, gather, multiply.
//!
//! The input is quantized once. Then, for a *block* of output pixels at a time, the image rows
//! under them are interleaved into *columns*, `[x][row of the window][channel]`: a window is then
//! one piece of memory, whatever the kernel's height, and the next one begins `stride` columns
//! further, so that a kernel reads overlapping rows at a constant distance. Three channels under a
//! 7×7 window become 147 bytes without a gap. Where windows do not overlap, or their taps are not
//! neighbours, they are copied one by one instead. Lines of short maps are put behind one another,
//! so that kernels see long products.
//!
//! Lines below each other share most image rows: the columns of a line become the next one's by
//! moving up.
//!
//! Everything behind the products (`scale`, `bias`, and the elementwise functions of a network that
//! follow) happens while a block is in cache; max pooling behind those, while a band of lines is.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ConvShape;
use super::depthwise::{self, UNBOUNDED};
use super::int8::{Constants, Int8Epilogue};
use super::pooling::PoolStep;
use crate::epilogue::Elementwise;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::columns::{ColumnsKernel, Int8Layout, Product, Rows};
use crate::kernels::int8::{COPY_SLACK, Finish, QuantizeInt8};
use crate::kernels::pooling::pooling;
use crate::kernels::{CacheLine, Level, OperandTypes, apply_all};
use crate::pack::PackedWeights;
use crate::quantize::PixelOrder;
use crate::transpose::transpose;
use crate::{memory, parallel};

/// Bytes of columns in a block: with a panel of weights, they stay in the second-level cache.
const BLOCK_BYTES: usize = 128 << 10;
/// Least output pixels in a block, where there are so many.
const MIN_BLOCK: usize = 64;
/// Most output pixels in a block.
const MAX_BLOCK: usize = 512;
/// Inputs that a thread quantizes at least.
const QUANTIZE_PIECE: usize = 4096;

/// Int8 convolution of floats to floats: `out` is `pixels × out_channels`, `x` is `batch × height ×
/// width` pixels in `order`.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Packed`] where the
/// weights are for other activations than int8; [`Error::Shape`] or [`Error::Value`] where sizes or
/// numbers do not fit; [`Error::Environment`] or [`Error::Threads`] where the pool cannot be had.
pub fn conv2d_int8(
    x: &[f32],
    order: PixelOrder,
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    epilogue: &Int8Epilogue<'_>,
    out: &mut [f32],
) -> Result<()> {
    let constants = &Constants::new(weights, epilogue)?;
    let channels = weights.shape().channels;
    let run = |x: &[f32], out: &mut [f32]| {
        if weights.operands() == OperandTypes::Int8Depthwise {
            let layer = depthwise::Layer {
                weights,
                constants,
                bounds: UNBOUNDED,
                clamp: UNBOUNDED,
                post: &[],
            };
            return depthwise::Geometry::new(weights, shape)?.run(
                depthwise::Input::of(x),
                &layer,
                out,
            );
        }
        let geometry = Geometry::new(weights, shape)?;
        let mut scratch = memory::filled("quantized inputs", geometry.scratch, 0)?;
        geometry.run(x, &Layer { weights, constants, post: &[] }, &mut scratch, out)
    };
    check_len("input", shape.size("input", shape.input, channels)?, x.len())?;
    let pixels = shape.input[0] * shape.input[1];
    if order == PixelOrder::ChannelsLast || pixels == 1 || x.is_empty() {
        return run(x, out);
    }
    let mut last = memory::filled("inputs with channels last", x.len(), 0.0)?;
    transpose(x, &mut last, channels, pixels);
    run(&last, out).map_err(|e| match e {
        // The index in the caller's memory.
        Error::NotANumber { what, .. } => {
            Error::NotANumber { what, index: x.iter().position(|v| v.is_nan()).unwrap_or(0) }
        }
        other => other,
    })
}

/// How a layer's output is cut into blocks, worked out once for a shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    kernel: &'static dyn ColumnsKernel,
    pub(super) shape: ConvShape,
    /// Bytes of a pixel's channels, of those of a group, and of a column (or of a column's share of
    /// a copied window).
    pub(super) pixel: usize,
    pub(super) part: usize,
    pub(super) column: usize,
    /// Whether windows share columns.
    pub(super) shared: bool,
    /// Bytes between the rows of a product.
    pub(super) row: usize,
    /// Pixels in a block, of one line; lines in a block of whole lines.
    segment: usize,
    lines: usize,
    /// Rows of a product from one line of a block to the next.
    line_rows: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Bytes of scratch memory: the quantized input, then a row of zeroes.
    pub scratch: usize,
    pub(super) zeros: usize,
}

/// A layer's weights and what follows the products.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub weights: &'a PackedWeights<'a>,
    pub constants: &'a Constants,
    /// What the epilogue does not contain.
    pub post: &'a [Elementwise],
}

/// A thread's columns, kept from call to call, so that a run allocates nothing after the first.
#[derive(Default)]
struct Scratch {
    columns: Vec<CacheLine>,
    /// Byte offsets of a window's image rows.
    offsets: Vec<usize>,
    /// The block whose columns are there, while they can be rolled into those of the line below.
    above: Option<Block>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { columns: Vec::new(), offsets: Vec::new(), above: None })
    };
}

/// Floats of a band, next to what its first pooled line wants: a quarter of the second-level cache.
const BAND_FLOATS: usize = 64 << 10;
/// Pooled lines in a thread's piece, where there are enough.
const POOLED_LINES: usize = 4;

thread_local! {
    /// Lines of the output that pooling reads.
    static BAND: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Consecutive output pixels that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// The first one's line, over all images, and its place there.
    pub line: usize,
    pub x: usize,
    /// Lines, and pixels in each.
    pub lines: usize,
    pub width: usize,
}

impl Geometry {
    pub fn new(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Self> {
        let (w, kernel) = (weights.shape(), weights.int8_inner()?);
        if w.kernel != shape.kernel {
            let got = format!("{:?}", shape.kernel);
            return bad_value("kernel", format!("{:?}, as the weights were packed", w.kernel), got);
        }
        let output = shape.output()?;
        let ([kh, kw], stride) = (shape.kernel, shape.stride[1]);
        let element = kernel.layout().element.bytes();
        let pixel = w.channels * element;
        let part = pixel / w.groups;
        // Sizes that later products stay below.
        shape.size("output", output, w.out_channels.saturating_mul(4))?;
        let image = shape.size("input", shape.input, pixel)?;
        let column = kh * part;
        let shared = shape.dilation[1] == 1 && stride < kw;
        let row = if shared { stride.checked_mul(column) } else { kw.checked_mul(column) };
        // The row of zeroes is as long as an image's; reads may pass either's end.
        let row_bytes =
            shape.input[1].checked_mul(pixel).and_then(|n| n.checked_add(2 * COPY_SLACK));
        let (Some(row), Some(row_bytes)) = (row, row_bytes) else {
            return bad_value("input", "a size that fits in memory", format!("{shape:?}"));
        };
        let segment = (BLOCK_BYTES / row).clamp(MIN_BLOCK, MAX_BLOCK).min(output[1].max(1));
        let lines = if segment < output[1] { 1 } else { (MIN_BLOCK / output[1].max(1)).max(1) };
        let line_rows = if shared { output[1].max(1) - 1 + kw.div_ceil(stride) } else { output[1] };
        Ok(Geometry {
            kernel,
            shape: *shape,
            pixel,
            part,
            column,
            shared,
            row,
            segment,
            lines,
            line_rows,
            output,
            scratch: image.saturating_add(row_bytes),
            zeros: image.saturating_add(COPY_SLACK),
        })
    }

    /// Bytes of a thread's columns.
    pub fn column_bytes(&self) -> u128 {
        let rows = self.lines as u128 * self.line_rows as u128 + self.segment as u128;
        (rows + self.kernel.layout().rows as u128) * self.row as u128
    }

    /// Runs the convolution on pixels whose channels are last. `scratch` has at least
    /// [`Geometry::scratch`] bytes, whatever they are.
    pub fn run(
        &self,
        x: &[f32],
        layer: &Layer<'_>,
        scratch: &mut [u8],
        out: &mut [f32],
    ) -> Result<()> {
        let n = layer.weights.shape().out_channels;
        check_len("output", self.shape.size("output", self.output, n)?, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let image = self.quantize(x, layer, scratch)?;
        let granularity = if self.lines > 1 { self.lines * self.output[1] } else { self.segment };
        parallel::try_for_each_rows(out, n, granularity, self.cost(layer), |first, out| {
            SCRATCH.with_borrow_mut(|scratch| self.pixels(image, layer, first, scratch, out))
        })
    }

    /// Runs the convolution and pools its output, a few lines at a time: nothing of what only
    /// pooling reads leaves the cache.
    pub fn run_pooled(
        &self,
        x: &[f32],
        layer: &Layer<'_>,
        pool: &PoolStep,
        scratch: &mut [u8],
        out: &mut [f32],
    ) -> Result<()> {
        let ([height, width], [out_h, out_w]) = (self.output, pool.output());
        let n = layer.weights.shape().out_channels;
        check_len("output", self.shape.size("output", pool.output(), n)?, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let image = self.quantize(x, layer, scratch)?;
        let (line, pooling) = (width * n, pooling()?);
        // A piece computes a line or more of its own beyond what it pools.
        let granularity =
            POOLED_LINES.min((self.shape.batch * out_h).div_ceil(parallel::num_threads()?));
        parallel::try_for_each_rows(out, out_w * n, granularity, self.cost(layer), |first, out| {
            BAND.with_borrow_mut(|band| {
                // What `band` holds: lines of one image.
                let (mut of, mut held) = (usize::MAX, 0..0);
                let count = out.len() / (out_w * n);
                for (i, out) in out.chunks_exact_mut(out_w * n).enumerate() {
                    let (number, y) = ((first + i) / out_h, (first + i) % out_h);
                    let wanted = pool.lines(y);
                    // (With padding and dilation a later window may begin above an earlier one.)
                    let above = wanted.start < held.start;
                    if of != number || above || wanted.end > held.end {
                        // Windows overlap: lines that are there already move to the front.
                        let kept = if of == number && !above {
                            wanted.start.clamp(held.start, held.end)..held.end
                        } else {
                            0..0
                        };
                        let from = (kept.start - held.start.min(kept.start)) * line;
                        let start = if kept.is_empty() { wanted.start } else { kept.start };
                        // Not beyond what this piece will want.
                        let last = pool.lines((y + count - i).min(out_h) - 1).end;
                        let end = (wanted.end + (BAND_FLOATS / line)).min(last).max(wanted.end);
                        let (have, need) = (kept.len() * line, (end - start) * line);
                        band.copy_within(from..from + have, 0);
                        memory::grow("lines of a convolution before pooling", band, need, 0.0)?;
                        let at = (number * height + start) * width + kept.len() * width;
                        SCRATCH.with_borrow_mut(|scratch| {
                            self.pixels(image, layer, at, scratch, &mut band[have..need])
                        })?;
                        (of, held) = (number, start..end);
                    }
                    for (x, out) in out.chunks_exact_mut(n).enumerate() {
                        pool.pixel(&pooling, band, held.start, [y, x], out);
                    }
                }
                Ok(())
            })
        })
    }

    /// Products of the whole layer; an int8 product costs about four ternary ones.
    fn cost(&self, layer: &Layer<'_>) -> usize {
        let w = layer.weights.shape();
        let pixels = self.shape.batch.saturating_mul(self.output[0]).saturating_mul(self.output[1]);
        pixels.saturating_mul(w.out_channels).saturating_mul(w.reduction()).saturating_mul(4)
    }

    /// The quantized input, and the row of zeroes.
    fn quantize<'s>(
        &self,
        x: &[f32],
        layer: &Layer<'_>,
        scratch: &'s mut [u8],
    ) -> Result<&'s [u8]> {
        let level = Level::usable()?;
        check_len(
            "input",
            self.shape.size("input", self.shape.input, layer.weights.shape().channels)?,
            x.len(),
        )?;
        let element = self.kernel.layout().element;
        let scratch = &mut scratch[..self.scratch];
        let (image, zeros) = scratch.split_at_mut(x.len() * element.bytes());
        zeros.fill(element.zero());
        let numbers = AtomicBool::new(true);
        let quantize = |first: usize, out: &mut [u8]| {
            let x = &x[first..][..out.len() / element.bytes()];
            if !level.run(QuantizeInt8 {
                element,
                x,
                inv_step: layer.constants.inv_step,
                bounds: [-127.0, 127.0],
                out,
            }) {
                numbers.store(false, Ordering::Relaxed);
            }
        };
        // A value costs about as much as this many products.
        parallel::for_each_rows(
            image,
            element.bytes(),
            QUANTIZE_PIECE,
            x.len().saturating_mul(32),
            quantize,
        )?;
        if !numbers.into_inner() {
            let index = x.iter().position(|v| v.is_nan()).unwrap_or(0);
            return Err(Error::NotANumber { what: "input", index });
        }
        Ok(scratch)
    }

    /// Computes consecutive output pixels, the first of which is number `first` of all images'.
    fn pixels(
        &self,
        image: &[u8],
        layer: &Layer<'_>,
        first: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        let (n, out_w) = (layer.weights.shape().out_channels, self.output[1]);
        let (mut at, end) = (first, first + out.len() / n);
        scratch.above = None;
        while at < end {
            let (line, x) = (at / out_w, at % out_w);
            let whole = if x == 0 { ((end - at) / out_w).min(self.lines) } else { 0 };
            let block = match whole {
                0 | 1 => {
                    Block { line, x, lines: 1, width: self.segment.min(out_w - x).min(end - at) }
                }
                lines => Block { line, x, lines, width: out_w },
            };
            let pixels = block.lines * block.width;
            let out = &mut out[(at - first) * n..][..pixels * n];
            self.block(image, layer.weights, layer.constants, &block, scratch, out)?;
            apply_all(layer.post, out, n)?;
            at += pixels;
        }
        Ok(())
    }

    /// Computes a block.
    fn block(
        &self,
        image: &[u8],
        weights: &PackedWeights<'_>,
        constants: &Constants,
        block: &Block,
        Scratch { columns, offsets, above }: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        let layout = self.kernel.layout();
        let shape = weights.shape();
        let count = (block.lines - 1) * self.line_rows + block.width;
        let columns = self.columns(layout, shape.reduction(), count, columns)?;
        for group in 0..shape.groups {
            for line in 0..block.lines {
                let columns = &mut columns[line * self.line_rows * self.row..];
                self.gather(image, layout, group, block, line, (offsets, *above), columns);
            }
            *above = (shape.groups == 1 && block.lines == 1).then_some(*block);
            for panel in weights.panels(group) {
                let rows = Rows {
                    bytes: columns,
                    stride: self.row,
                    lines: block.lines,
                    period: self.line_rows,
                    length: block.width,
                };
                let finish = Finish {
                    scale: constants.scale.of(&panel),
                    bias: constants.bias.of(&panel),
                    affine: constants
                        .affine
                        .as_ref()
                        .map(|(scale, bias)| (scale.of(&panel), bias.of(&panel))),
                    relu: constants.relu,
                    channels: panel.channels,
                    pitch: shape.out_channels,
                };
                let product = Product::new(
                    layout,
                    rows,
                    shape.reduction(),
                    weights.panel(group, panel.index),
                    finish,
                );
                self.kernel.multiply(&product, &mut out[panel.first..]);
            }
        }
        Ok(())
    }

    /// Memory for the columns of `count` rows of products.
    fn columns<'b>(
        &self,
        layout: &Int8Layout,
        reduction: usize,
        count: usize,
        columns: &'b mut Vec<CacheLine>,
    ) -> Result<&'b mut [u8]> {
        let depth = reduction.next_multiple_of(layout.depth) * layout.element.bytes();
        // Rows up to the kernel's multiple are read, whatever they hold; so is one row's reduction
        // up to the depth.
        let size = (count + layout.rows) * self.row
            + self.column * self.shape.kernel[1]
            + depth
            + COPY_SLACK;
        Ok(CacheLine::bytes_mut(CacheLine::grow(columns, size)?))
    }
}
