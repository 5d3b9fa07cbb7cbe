//! Depthwise convolution of int8: quantize rows, interleave, multiply.
//!
//! Rows of the input are quantized when the first window reaches them, into a ring that holds as
//! many as a line of windows (or two) spans: they are read again from the first- or second-level
//! cache. For every block of channels, the rows under a line of windows are interleaved into
//! *columns*, which kernels read at a constant distance ([`crate::kernels::depthwise`]).

mod input;
mod output;

use std::cell::RefCell;
use std::ops::Range;

pub(crate) use self::input::{Input, InputLines, Lines};
pub(crate) use self::output::{LineQuantizer, Output};
use super::ConvShape;
use super::int8::Constants;
use crate::epilogue::Elementwise;
use crate::error::{Result, bad_value, check_len};
use crate::kernels::depthwise::{Finish, Levels, MAX_LINES, Product, Rows};
use crate::kernels::{CacheLine, DepthwiseKernel, apply_all};
use crate::pack::PackedWeights;
use crate::{memory, parallel};

/// A layer's weights and what follows the sums.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub weights: &'a PackedWeights<'a>,
    /// Its ReLU is not looked at: `clamp` says it.
    pub constants: &'a Constants,
    /// Least and greatest value of the input, in order.
    pub bounds: [f32; 2],
    /// Least and greatest value after the constants; NaN passes through.
    pub clamp: [f32; 2],
    /// What the epilogue does not contain.
    pub post: &'a [Elementwise],
}

/// Bytes of lines that are made at a time: they stay in the second-level cache.
const STRIP_BYTES: usize = 256 << 10;

/// No bounds at all.
pub(crate) const UNBOUNDED: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// A depthwise convolution's sizes and addresses, worked out once for a shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    kernel: &'static dyn DepthwiseKernel,
    shape: ConvShape,
    /// Output channels of every input channel, and all of them.
    multiplier: usize,
    channels: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Lines of the output that share columns.
    lines: usize,
    /// Rows of the input under these lines' windows, and bytes of a quantized one.
    span: usize,
    row: usize,
    /// Rows in the ring.
    slots: usize,
    /// Steps of a column; columns under a line, and those of them on the left that are padding.
    steps: usize,
    columns: usize,
    left: usize,
}

/// A thread's memory, kept from call to call, so that a run allocates nothing after the first.
#[derive(Default)]
struct Scratch {
    /// Quantized rows, then a row of zeros.
    rows: Vec<CacheLine>,
    columns: Vec<CacheLine>,
    /// Where the rows of a column begin.
    offsets: Vec<usize>,
    /// A row whose channels are repeated.
    repeated: Vec<f32>,
    /// Lines of the input that were made on the way.
    made: Vec<f32>,
    /// Lines of the output that are quantized next.
    floats: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            rows: Vec::new(),
            columns: Vec::new(),
            offsets: Vec::new(),
            repeated: Vec::new(),
            made: Vec::new(),
            floats: Vec::new(),
        })
    };
}

/// Rows of one image that the ring holds.
struct RingState {
    image: usize,
    rows: Range<usize>,
    /// Lines of the input, of all images', that were made and are there.
    made: Range<usize>,
    /// The line, of all images', before which the last one is that this call wants.
    end: usize,
}

impl Geometry {
    pub fn new(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Self> {
        let (w, kernel) = (weights.shape(), weights.depthwise_inner()?);
        if w.kernel != shape.kernel {
            let got = format!("{:?}", shape.kernel);
            return bad_value("kernel", format!("{:?}, as the weights were packed", w.kernel), got);
        }
        let (output, layout) = (shape.output()?, kernel.layout());
        let ([kh, kw], [stride_y, stride], [dilation_y, dilation]) =
            (shape.kernel, shape.stride, shape.dilation);
        // Sizes that later products stay below.
        shape.size("output", output, w.out_channels.saturating_mul(4))?;
        shape.size("input", shape.input, w.channels.saturating_mul(4))?;
        let lines = match dilation_y == 1 && stride_y < layout.shifts(kh) {
            true => MAX_LINES.min(output[0].max(1)),
            false => 1,
        };
        // Windows are no larger than the padded input, whose sides are counted in 31 bits.
        let reach = (kh - 1).saturating_mul(dilation_y).saturating_add(1);
        let span = reach.saturating_add((lines - 1).saturating_mul(stride_y));
        let reach_x = (kw - 1).saturating_mul(dilation).saturating_add(1);
        let columns = output[1].saturating_sub(1).saturating_mul(stride).saturating_add(reach_x);
        let steps = layout.steps(kh);
        let (slots, pixel) = (span.min(shape.input[0]), layout.pixel_bytes(w.out_channels));
        let row = memory::product([shape.input[1], pixel]).filter(|row| *row < usize::MAX / 2);
        let ring = row.and_then(|row| memory::product([slots + 1, row]));
        let block = memory::product([columns, steps, layout.step_bytes()]);
        let (Some(row), Some(_), Some(_)) = (row, ring, block) else {
            return bad_value("input", "a size that fits in memory", format!("{shape:?}"));
        };
        Ok(Geometry {
            kernel,
            shape: *shape,
            multiplier: w.out_channels / w.groups,
            channels: w.out_channels,
            output,
            lines,
            span,
            row,
            slots,
            steps,
            columns,
            left: shape.padding[1].min(columns),
        })
    }

    /// Lines of the input that are made at a time, where they are.
    pub fn strip_lines(&self, channels: usize) -> usize {
        let line = self.shape.input[1].saturating_mul(channels).saturating_mul(size_of::<f32>());
        (STRIP_BYTES / line.max(1)).clamp(1, self.shape.input[0].max(1))
    }

    /// Bytes of these lines.
    pub fn strip_bytes(&self, channels: usize) -> u128 {
        let pixel = channels as u128 * size_of::<f32>() as u128;
        self.strip_lines(channels) as u128 * self.shape.input[1] as u128 * pixel
    }

    /// Bytes of a thread's memory, but for lines that are made.
    pub fn thread_bytes(&self) -> u128 {
        let layout = self.kernel.layout();
        let columns = self.columns as u128 * self.steps as u128 * layout.step_bytes() as u128;
        let repeated = if self.multiplier > 1 {
            self.shape.input[1] as u128 * self.channels as u128 * 4
        } else {
            0
        };
        (self.slots as u128 + 1) * self.row as u128
            + columns
            + repeated
            + self.steps as u128 * layout.rows as u128 * 8
    }

    /// Bytes of the output lines that a thread computes before it quantizes them.
    pub fn output_bytes(&self) -> u128 {
        (self.lines as u128 * self.output[1] as u128 * self.channels as u128)
            .saturating_mul(size_of::<f32>() as u128)
    }

    /// Runs the convolution on pixels whose channels are last.
    pub fn run(&self, x: Input<'_>, layer: &Layer<'_>, out: Output<'_>) -> Result<()> {
        let (inputs, [_, width]) = (layer.weights.shape().channels, self.output);
        let elements = self.shape.size("input", self.shape.input, inputs)?;
        match x.lines {
            InputLines::Here(x) => check_len("input", elements, x.len())?,
            InputLines::Made(images, _) => check_len("images", self.shape.batch, images)?,
        }
        let outputs = self.shape.size("output", self.output, self.channels)?;
        out.check(outputs / self.channels, self.channels)?;
        if outputs == 0 {
            return Ok(());
        }
        if elements > 0 {
            self.check_unread(x, inputs)?;
        }
        // A product costs more than a dense one, and every value is quantized and finished.
        let cost = outputs
            .saturating_mul(layer.weights.shape().reduction().saturating_mul(4).saturating_add(64));
        let run = |first, out: Output<'_>| {
            SCRATCH.with_borrow_mut(|scratch| self.lines(x, layer, first, scratch, out))
        };
        let (line, granularity) = (width * self.channels, self.lines);
        match out {
            Output::Floats(out) => {
                parallel::try_for_each_rows(out, line, granularity, cost, |first, out| {
                    run(first, Output::Floats(out))
                })
            }
            Output::Codes(out, to) => {
                let line = width * to.layout.pixel_bytes();
                parallel::try_for_each_rows(out, line, granularity, cost, |first, out| {
                    run(first, Output::Codes(out, to))
                })
            }
        }
    }

    /// Looks for NaN in rows that no window reads: an input with NaN is refused wherever it is.
    fn check_unread(&self, x: Input<'_>, channels: usize) -> Result<()> {
        let ([height, width], stride) = (self.shape.input, self.shape.stride[0]);
        let reach = self.span - (self.lines - 1) * stride;
        let padding = self.shape.padding[0];
        let end = (self.output[0] - 1)
            .saturating_mul(stride)
            .saturating_add(reach)
            .saturating_sub(padding);
        if stride <= reach && end >= height {
            return Ok(());
        }
        let (line, mut made) = (width * channels, Vec::new());
        for number in 0..height * self.shape.batch {
            let y = number % height;
            if y >= end || (y + padding) % stride >= reach {
                let row = x.line(number, line, channels, &mut made)?;
                if row.iter().any(|x| x.is_nan()) {
                    return Err(x.nan(number * line, row));
                }
            }
        }
        Ok(())
    }

    /// Computes lines of the output, the first of which is number `first` of all images'.
    fn lines(
        &self,
        x: Input<'_>,
        layer: &Layer<'_>,
        first: usize,
        scratch: &mut Scratch,
        mut out: Output<'_>,
    ) -> Result<()> {
        let (layout, [height, width]) = (self.kernel.layout(), self.output);
        let line = width * self.channels;
        let end = first + out.pixels(self.channels) / width;
        let rows =
            CacheLine::bytes_mut(CacheLine::grow(&mut scratch.rows, (self.slots + 1) * self.row)?);
        let column = self.steps * layout.step_bytes();
        let columns =
            CacheLine::bytes_mut(CacheLine::grow(&mut scratch.columns, self.columns * column)?);
        // Columns of padding, and the row of zeros, are the same for all lines.
        let zero = layout.element.zero();
        let real = self.shape.input[1].min(self.columns - self.left);
        columns[..self.left * column].fill(zero);
        columns[(self.left + real) * column..self.columns * column].fill(zero);
        rows[self.slots * self.row..][..self.row].fill(zero);
        let mut ring_state =
            RingState { image: usize::MAX, rows: 0..0, made: 0..0, end: self.read_before(end) };
        let mut at = first;
        while at < end {
            let (image, y) = (at / height, at % height);
            let count = self.lines.min(height - y).min(end - at);
            let top = y * self.shape.stride[0];
            let buffers = [&mut scratch.repeated, &mut scratch.made];
            self.fill_ring(x, layer, (image, top), &mut ring_state, buffers, rows)?;
            self.offsets(top, count, &mut scratch.offsets)?;
            let range = (at - first) * width..(at - first + count) * width;
            let floats = out.floats(range.clone(), self.channels, &mut scratch.floats)?;
            for panel in layer.weights.panels(0) {
                let source = Rows {
                    bytes: rows,
                    offsets: &scratch.offsets,
                    count: real,
                    pitch: layout.pixel_bytes(self.channels),
                    channels: panel.channels,
                };
                self.kernel.interleave(&source, &mut columns[self.left * column..]);
                let constants = layer.constants;
                let finish = Finish {
                    scale: constants.scale.of(&panel),
                    bias: constants.bias.of(&panel),
                    affine: constants
                        .affine
                        .as_ref()
                        .map(|(scale, bias)| (scale.of(&panel), bias.of(&panel))),
                    clamp: layer.clamp,
                    channels: panel.channels,
                };
                let product = Product {
                    columns,
                    panel: layer.weights.panel(0, panel.index),
                    kernel: self.shape.kernel,
                    stride: self.shape.stride[1],
                    dilation: self.shape.dilation[1],
                    lines: count,
                    shift: self.shape.stride[0],
                    width,
                    pixel: self.channels,
                    line,
                    finish,
                };
                self.kernel.multiply(&product, &mut floats[panel.first..]);
                let block = layout.block * layout.element.bytes();
                scratch.offsets.iter_mut().for_each(|offset| *offset += block);
            }
            apply_all(layer.post, floats, self.channels)?;
            out.store(range, at * width, self.channels, &scratch.floats)?;
            at += count;
        }
        Ok(())
    }

    /// The line of the input, of all images', before which the last one is that lines of the output
    /// before number `end` read.
    fn read_before(&self, end: usize) -> usize {
        let (image, y) = ((end - 1) / self.output[0], (end - 1) % self.output[0]);
        let reach = self.span - (self.lines - 1) * self.shape.stride[0];
        let bottom = (y * self.shape.stride[0] + reach).saturating_sub(self.shape.padding[0]);
        image * self.shape.input[0] + bottom.min(self.shape.input[0])
    }

    /// Quantizes what is not in the ring yet of the rows under lines whose windows begin at the
    /// padded row `top`.
    fn fill_ring(
        &self,
        x: Input<'_>,
        layer: &Layer<'_>,
        (image, top): (usize, usize),
        ring_state: &mut RingState,
        [repeated, made]: [&mut Vec<f32>; 2],
        rows: &mut [u8],
    ) -> Result<()> {
        let ([height, width], padding) = (self.shape.input, self.shape.padding[0]);
        let wanted =
            top.saturating_sub(padding)..(top + self.span).saturating_sub(padding).min(height);
        let from = if ring_state.image == image {
            ring_state.rows.end.max(wanted.start)
        } else {
            wanted.start
        };
        let inputs = layer.weights.shape().channels;
        let levels = Levels::new(layer.constants.inv_step, layer.bounds);
        for y in from..wanted.end {
            let (number, line) = (image * height + y, width * inputs);
            if !x.here() && !ring_state.made.contains(&number) {
                // No line of another image, and none that nobody wants.
                let last =
                    ((image + 1) * height).min(ring_state.end.max(image * height + wanted.end));
                let count = self.strip_lines(inputs).min(last - number);
                memory::grow("lines of an input", made, count * line, 0.0)?;
                x.make(number, line, inputs, &mut made[..count * line])?;
                ring_state.made = number..number + count;
            }
            let row = match x.lines {
                InputLines::Here(x) if ring_state.made.is_empty() => &x[number * line..][..line],
                _ => &made[(number - ring_state.made.start) * line..][..line],
            };
            let out = &mut rows[y % self.slots * self.row..][..self.row];
            let numbers = if self.multiplier == 1 {
                self.kernel.quantize(row, self.channels, &levels, out)
            } else {
                memory::grow("repeated channels", repeated, width * self.channels, 0.0)?;
                let repeated = &mut repeated[..width * self.channels];
                for (out, x) in repeated.chunks_exact_mut(self.multiplier).zip(row) {
                    out.fill(*x);
                }
                self.kernel.quantize(repeated, self.channels, &levels, out)
            };
            if !numbers {
                return Err(x.nan((image * height + y) * line, row));
            }
        }
        (ring_state.image, ring_state.rows) = (image, wanted);
        Ok(())
    }

    /// Where the rows of a column begin, under `count` lines whose windows begin at the padded row
    /// `top`.
    fn offsets(&self, top: usize, count: usize, offsets: &mut Vec<usize>) -> Result<()> {
        let (height, [padding, _]) = (self.shape.input[0], self.shape.padding);
        let read = self.shape.kernel[0] + (count - 1) * self.shape.stride[0];
        let rows = self.steps * self.kernel.layout().rows;
        offsets.clear();
        memory::reserve("addresses of a convolution", offsets, rows)?;
        offsets.extend((0..rows).map(|row| {
            // What no window reads meets weights that are 0.
            let y = if row < read {
                (top + row * self.shape.dilation[0]).checked_sub(padding)
            } else {
                None
            };
            let slot = y.filter(|y| *y < height).map_or(self.slots, |y| y % self.slots);
            slot * self.row
        }));
        Ok(())
    }
}
