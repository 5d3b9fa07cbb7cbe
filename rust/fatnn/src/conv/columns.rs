//! Int8 convolution: quantize, gather, multiply.
//!
//! The input is quantized once. Then a *block* of output pixels is computed at a time. Its image
//! rows are interleaved into *columns*, `[x][row of the window][channel]`, so that every window is
//! contiguous memory. The next window starts `stride` columns further, and kernels read overlapping
//! windows at a constant distance. For example, three channels under a 7×7 window are 147 bytes
//! without a gap. Windows that do not overlap, or that are dilated, are copied one by one. Several
//! short lines form one block, so that kernels get long products.
//!
//! Adjacent lines share most image rows, so the columns of the next line are made by moving rows
//! up.
//!
//! `scale`, `bias` and fused elementwise functions run while a block is in cache. Fused max pooling
//! runs while a band of lines is in cache (`columns_pooled.rs`).

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ConvShape;
use super::depthwise::{self, UNBOUNDED};
use super::int8::{Constants, Int8Epilogue};
use crate::epilogue::Elementwise;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::columns::{ColumnsKernel, Int8Layout, Product, Rows};
use crate::kernels::int8::{COPY_SLACK, Finish, QuantizeInt8};
use crate::kernels::{CacheLine, Level, OperandTypes, apply_all};
use crate::pack::PackedWeights;
use crate::quantize::PixelOrder;
use crate::transpose::transpose;
use crate::{memory, parallel};

/// Maximum bytes of columns in a block. Together with a panel of weights they fit in the
/// second-level cache.
const BLOCK_BYTES: usize = 128 << 10;
/// Minimum number of output pixels in a block, if the output has as many.
const MIN_BLOCK: usize = 64;
/// Maximum number of output pixels in a block.
const MAX_BLOCK: usize = 512;
/// Minimum number of values that a thread quantizes.
const MIN_QUANTIZE_CHUNK: usize = 4096;

/// Int8 convolution of floats to floats. `x` is `batch × height × width` pixels in `order`, `out`
/// is `pixels × out_channels`.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Packed`] if the weights
/// are not for int8 activations; [`Error::Shape`] or [`Error::Value`] if sizes or numbers do not
/// fit; [`Error::Environment`] or [`Error::Threads`] if the thread pool cannot be created.
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
                depthwise::Input::in_memory(x),
                &layer,
                depthwise::Output::Floats(out),
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
    let mut channels_last = memory::filled("inputs with channels last", x.len(), 0.0)?;
    transpose(x, &mut channels_last, channels, pixels);
    run(&channels_last, out).map_err(|e| match e {
        // The index in the caller's memory order.
        Error::NotANumber { what, .. } => {
            Error::NotANumber { what, index: x.iter().position(|v| v.is_nan()).unwrap_or(0) }
        }
        other => other,
    })
}

/// How a layer's output is split into blocks, computed once per shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    kernel: &'static dyn ColumnsKernel,
    pub(super) shape: ConvShape,
    /// Bytes of a pixel.
    pub(super) pixel_bytes: usize,
    /// Bytes of a pixel's channels of one group.
    pub(super) group_bytes: usize,
    /// Bytes of a column: `group_bytes` for each row of the window.
    pub(super) column: usize,
    /// Whether windows overlap and share columns.
    pub(super) shared: bool,
    /// Bytes from one window (a row of the product) to the next.
    pub(super) row: usize,
    /// Maximum number of pixels in a block of one line.
    segment: usize,
    /// Number of lines in a block of whole lines.
    lines: usize,
    /// Distance between the starts of two lines of a block, in windows.
    line_rows: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Bytes of scratch memory: the quantized input, then a row of zeros.
    pub scratch: usize,
    /// Byte offset of the row of zeros.
    pub(super) zeros: usize,
}

/// A layer's weights, and what follows the products.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub weights: &'a PackedWeights<'a>,
    pub constants: &'a Constants,
    /// Functions after the kernel's own epilogue.
    pub post: &'a [Elementwise],
}

/// A thread's columns, reused by later calls, so that only the first run allocates.
#[derive(Default)]
pub(super) struct Scratch {
    columns: Vec<CacheLine>,
    /// Byte offsets of the image rows of a window.
    offsets: Vec<usize>,
    /// The block whose columns are in `columns`, if the line below it can reuse them.
    above: Option<Block>,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { columns: Vec::new(), offsets: Vec::new(), above: None })
    };
}

/// A rectangle of output pixels that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// First line, counted over all images.
    pub line: usize,
    /// First pixel in the line.
    pub x: usize,
    /// Number of lines.
    pub lines: usize,
    /// Pixels in each line.
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
        let pixel_bytes = w.channels * element;
        let group_bytes = pixel_bytes / w.groups;
        // Checked so that later products do not overflow.
        shape.size("output", output, w.out_channels.saturating_mul(4))?;
        let image = shape.size("input", shape.input, pixel_bytes)?;
        let column = kh * group_bytes;
        let shared = shape.dilation[1] == 1 && stride < kw;
        let row = if shared { stride.checked_mul(column) } else { kw.checked_mul(column) };
        // A row of zeros is as long as an image row. Copies may read past both ends.
        let row_bytes =
            shape.input[1].checked_mul(pixel_bytes).and_then(|n| n.checked_add(2 * COPY_SLACK));
        let (Some(row), Some(row_bytes)) = (row, row_bytes) else {
            return bad_value("input", "a size that fits in memory", format!("{shape:?}"));
        };
        let segment = (BLOCK_BYTES / row).clamp(MIN_BLOCK, MAX_BLOCK).min(output[1].max(1));
        let lines = if segment < output[1] { 1 } else { (MIN_BLOCK / output[1].max(1)).max(1) };
        let line_rows = if shared { output[1].max(1) - 1 + kw.div_ceil(stride) } else { output[1] };
        Ok(Geometry {
            kernel,
            shape: *shape,
            pixel_bytes,
            group_bytes,
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

    /// Bytes of one thread's columns.
    pub fn column_bytes(&self) -> u128 {
        let rows = self.lines as u128 * self.line_rows as u128 + self.segment as u128;
        (rows + self.kernel.layout().rows as u128) * self.row as u128
    }

    /// Runs the convolution on channels-last pixels. `scratch` has at least [`Geometry::scratch`]
    /// bytes, with unspecified contents.
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

    /// Computes whole lines of the output from line `first` on, counted over all images. `image` is
    /// the quantized input.
    pub fn lines(
        &self,
        image: &[u8],
        layer: &Layer<'_>,
        first: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let pixel = first * self.output[1];
        SCRATCH.with_borrow_mut(|scratch| self.pixels(image, layer, pixel, scratch, out))
    }

    /// Multiply-accumulates of the layer. One in int8 counts as four ternary ones.
    pub(super) fn cost(&self, layer: &Layer<'_>) -> usize {
        let w = layer.weights.shape();
        let pixels = self.shape.batch.saturating_mul(self.output[0]).saturating_mul(self.output[1]);
        pixels.saturating_mul(w.out_channels).saturating_mul(w.reduction()).saturating_mul(4)
    }

    /// The quantized input, followed by the row of zeros.
    pub(crate) fn quantize<'s>(
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
        let no_nan = AtomicBool::new(true);
        let quantize = |first: usize, out: &mut [u8]| {
            let x = &x[first..][..out.len() / element.bytes()];
            if !level.run(QuantizeInt8 {
                element,
                x,
                inv_step: layer.constants.inv_step,
                bounds: [-127.0, 127.0],
                out,
            }) {
                no_nan.store(false, Ordering::Relaxed);
            }
        };
        // Quantizing a value costs about as much as 32 products.
        parallel::for_each_rows(
            image,
            element.bytes(),
            MIN_QUANTIZE_CHUNK,
            x.len().saturating_mul(32),
            quantize,
        )?;
        if !no_nan.into_inner() {
            let index = x.iter().position(|v| v.is_nan()).unwrap_or(0);
            return Err(Error::NotANumber { what: "input", index });
        }
        Ok(scratch)
    }

    /// Computes consecutive output pixels from pixel `first` on, counted over all images.
    pub(super) fn pixels(
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

    /// Working memory for the columns of `count` windows.
    fn columns<'b>(
        &self,
        layout: &Int8Layout,
        reduction: usize,
        count: usize,
        columns: &'b mut Vec<CacheLine>,
    ) -> Result<&'b mut [u8]> {
        let depth = reduction.next_multiple_of(layout.depth) * layout.element.bytes();
        // Kernels read rows up to a multiple of `layout.rows`, and the last row up to a multiple of
        // `depth`.
        let size = (count + layout.rows) * self.row
            + self.column * self.shape.kernel[1]
            + depth
            + COPY_SLACK;
        Ok(CacheLine::bytes_mut(CacheLine::grow(columns, size)?))
    }
}
