//! Depthwise convolution of int8: quantize rows, interleave, multiply.
//!
//! Input rows are quantized when the first window reaches them. A ring buffer holds the rows under
//! one or two output lines, so that later windows read them from the first- or second-level cache.
//! For every block of channels, the rows under a line are interleaved into *columns*, which kernels
//! read at a constant distance ([`crate::kernels::depthwise`]).

mod input;
mod multiply;
mod output;
mod ring;
mod thresholds;

use std::cell::RefCell;

pub(crate) use self::input::{ComputeBytes, ComputeLines, Input, InputLines};
use self::multiply::{LineInput, LineOutput};
pub(crate) use self::output::{LineQuantizer, Output};
use self::ring::RingState;
pub(crate) use self::thresholds::SumThresholds;
use super::ConvShape;
use super::int8::Constants;
use crate::epilogue::Elementwise;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::depthwise::MAX_LINES;
use crate::kernels::{CacheLine, DepthwiseKernel, apply_all};
use crate::pack::PackedWeights;
use crate::{memory, parallel};

/// A layer's weights, and what follows the products.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub weights: &'a PackedWeights<'a>,
    /// Its `relu` is ignored: `clamp` contains it.
    pub constants: &'a Constants,
    /// Minimum and maximum that the input is clamped to.
    pub bounds: [f32; 2],
    /// Minimum and maximum after the constants; NaN passes through.
    pub clamp: [f32; 2],
    /// Functions after the kernel's own epilogue.
    pub post: &'a [Elementwise],
}

/// Maximum bytes of input lines that are computed at a time, so that they stay in the second-level
/// cache.
const STRIP_BYTES: usize = 256 << 10;

/// Bounds that change nothing.
pub(crate) const UNBOUNDED: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// A depthwise convolution's sizes, computed once per shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    kernel: &'static dyn DepthwiseKernel,
    shape: ConvShape,
    /// Output channels per input channel.
    multiplier: usize,
    /// Number of output channels.
    channels: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Number of output lines that share columns.
    lines: usize,
    /// Number of input rows under the windows of these lines.
    span: usize,
    /// Bytes of a quantized input row.
    row_bytes: usize,
    /// Number of rows in the ring.
    slots: usize,
    /// Number of steps of a column.
    steps: usize,
    /// Number of columns under an output line, with padding.
    columns: usize,
    /// Number of columns of padding on the left.
    left: usize,
}

/// A thread's memory, reused by later calls, so that only the first run allocates.
#[derive(Default)]
struct Scratch {
    /// The ring of quantized rows, then a row of zeros.
    rows: Vec<CacheLine>,
    columns: Vec<CacheLine>,
    /// Byte offset in `rows` of each row of a column.
    offsets: Vec<usize>,
    /// A row in which each channel is repeated `multiplier` times.
    repeated: Vec<f32>,
    /// Input lines that were computed.
    computed: Vec<f32>,
    /// The same as bytes.
    bytes: Vec<u8>,
    /// Output lines before they are quantized.
    floats: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            rows: Vec::new(),
            columns: Vec::new(),
            offsets: Vec::new(),
            repeated: Vec::new(),
            computed: Vec::new(),
            bytes: Vec::new(),
            floats: Vec::new(),
        })
    };
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
        // Checked so that later products do not overflow.
        shape.size("output", output, w.out_channels.saturating_mul(4))?;
        shape.size("input", shape.input, w.channels.saturating_mul(4))?;
        let lines = match dilation_y == 1 && stride_y < layout.shifts(kh) {
            true => MAX_LINES.min(output[0].max(1)),
            false => 1,
        };
        // Windows fit in the padded input, whose sides are below 2^31.
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
            row_bytes: row,
            slots,
            steps,
            columns,
            left: shape.padding[1].min(columns),
        })
    }

    /// Whether it reads lines that are already quantized ([`InputLines::Bytes`]).
    pub fn reads_bytes(&self) -> bool {
        self.multiplier == 1 && self.kernel.reads_bytes()
    }

    /// Number of input lines that are computed at a time, if the input is not in memory.
    pub fn strip_lines(&self, channels: usize) -> usize {
        let line = self.shape.input[1].saturating_mul(channels).saturating_mul(size_of::<f32>());
        (STRIP_BYTES / line.max(1)).clamp(1, self.shape.input[0].max(1))
    }

    /// Bytes of [`Geometry::strip_lines`] lines.
    pub fn strip_bytes(&self, channels: usize) -> u128 {
        let pixel = channels as u128 * size_of::<f32>() as u128;
        self.strip_lines(channels) as u128 * self.shape.input[1] as u128 * pixel
    }

    /// Bytes of a thread's memory, without computed input lines and output lines.
    pub fn thread_bytes(&self) -> u128 {
        let layout = self.kernel.layout();
        let columns = self.columns as u128 * self.steps as u128 * layout.step_bytes() as u128;
        let repeated = if self.multiplier > 1 {
            self.shape.input[1] as u128 * self.channels as u128 * 4
        } else {
            0
        };
        (self.slots as u128 + 1) * self.row_bytes as u128
            + columns
            + repeated
            + self.steps as u128 * layout.rows as u128 * 8
    }

    /// Bytes of the output lines that a thread computes before it quantizes them.
    pub fn output_bytes(&self) -> u128 {
        (self.lines as u128 * self.output[1] as u128 * self.channels as u128)
            .saturating_mul(size_of::<f32>() as u128)
    }

    /// Runs the convolution. Channels are last.
    pub fn run(&self, x: Input<'_>, layer: &Layer<'_>, out: Output<'_>) -> Result<()> {
        match self.run_lines(x, layer, out) {
            // One of the NaN: lines are computed out of order, and by several threads.
            Err(error @ Error::NotANumber { .. }) if x.makes_floats() => {
                self.find_nan(x, layer.weights.shape().channels, |_| true)?;
                Err(error)
            }
            done => done,
        }
    }

    fn run_lines(&self, x: Input<'_>, layer: &Layer<'_>, out: Output<'_>) -> Result<()> {
        let (inputs, [_, width]) = (layer.weights.shape().channels, self.output);
        let elements = self.shape.size("input", self.shape.input, inputs)?;
        match x.lines {
            InputLines::InMemory(x) => check_len("input", elements, x.len())?,
            InputLines::Computed { images, .. } | InputLines::Bytes { images, .. } => {
                check_len("images", self.shape.batch, images)?
            }
        }
        let outputs = self.shape.size("output", self.output, self.channels)?;
        out.check(outputs / self.channels, self.channels)?;
        if outputs == 0 {
            return Ok(());
        }
        if elements > 0 && !matches!(x.lines, InputLines::Bytes { .. }) {
            self.check_unread(x, inputs)?;
        }
        // A product costs more than in a dense layer; quantizer and epilogue cost extra per value.
        let cost = outputs
            .saturating_mul(layer.weights.shape().reduction().saturating_mul(4).saturating_add(64));
        let run = |first, out: Output<'_>| {
            SCRATCH.with_borrow_mut(|scratch| self.compute_lines(x, layer, first, scratch, out))
        };
        let (line, granularity) = (width * self.channels, self.granularity(x)?);
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

    /// Output lines that stay on one thread: a multiple of `self.lines`.
    ///
    /// If the input is computed, the lines that two parts of the output read are computed twice, so
    /// the parts are a share per thread, or so large that at most an eighth is computed twice.
    fn granularity(&self, x: Input<'_>) -> Result<usize> {
        if matches!(x.lines, InputLines::InMemory(_)) {
            return Ok(self.lines);
        }
        let stride = self.shape.stride[0];
        let reach = self.span - (self.lines - 1) * stride;
        let seldom = reach.saturating_sub(stride).saturating_mul(8).div_ceil(stride);
        let lines = parallel::chunk_of_at_least(seldom, self.shape.batch * self.output[0])?;
        Ok(lines.next_multiple_of(self.lines))
    }

    /// Looks for NaN in rows that no window reads, because a NaN anywhere in the input is an error.
    fn check_unread(&self, x: Input<'_>, channels: usize) -> Result<()> {
        let (height, stride) = (self.shape.input[0], self.shape.stride[0]);
        let reach = self.span - (self.lines - 1) * stride;
        let padding = self.shape.padding[0];
        let end = (self.output[0] - 1)
            .saturating_mul(stride)
            .saturating_add(reach)
            .saturating_sub(padding);
        if stride <= reach && end >= height {
            return Ok(());
        }
        self.find_nan(x, channels, |y| y >= end || (y + padding) % stride >= reach)
    }

    /// The error for the first NaN in the lines of all images that `wanted` selects.
    fn find_nan(
        &self,
        x: Input<'_>,
        channels: usize,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let [height, width] = self.shape.input;
        let (line, mut computed) = (width * channels, Vec::new());
        for number in (0..height * self.shape.batch).filter(|number| wanted(number % height)) {
            let row = x.line(number, line, channels, &mut computed)?;
            if row.iter().any(|x| x.is_nan()) {
                return Err(x.nan(number * line, row));
            }
        }
        Ok(())
    }

    /// Computes the lines of `out`. `first` is the number of the first one, over all images.
    fn compute_lines(
        &self,
        x: Input<'_>,
        layer: &Layer<'_>,
        first: usize,
        scratch: &mut Scratch,
        mut out: Output<'_>,
    ) -> Result<()> {
        let (layout, [height, width]) = (self.kernel.layout(), self.output);
        let end = first + out.pixels(self.channels) / width;
        let rows = CacheLine::bytes_mut(CacheLine::grow(
            &mut scratch.rows,
            (self.slots + 1) * self.row_bytes,
        )?);
        let column = self.steps * layout.step_bytes();
        let columns =
            CacheLine::bytes_mut(CacheLine::grow(&mut scratch.columns, self.columns * column)?);
        // Columns of padding, and the row of zeros, are the same for all lines.
        let zero = layout.element.zero();
        let real = self.shape.input[1].min(self.columns - self.left);
        columns[..self.left * column].fill(zero);
        columns[(self.left + real) * column..self.columns * column].fill(zero);
        rows[self.slots * self.row_bytes..][..self.row_bytes].fill(zero);
        let mut ring_state =
            RingState { image: usize::MAX, rows: 0..0, computed: 0..0, end: self.input_end(end) };
        let mut at = first;
        while at < end {
            let (image, y) = (at / height, at % height);
            let count = self.lines.min(height - y).min(end - at);
            let top = y * self.shape.stride[0];
            if let InputLines::Bytes { source, .. } = x.lines {
                self.fill_ring_with_bytes(
                    source,
                    (image, top),
                    &mut ring_state,
                    &mut scratch.bytes,
                    rows,
                )?;
            } else {
                let buffers = [&mut scratch.repeated, &mut scratch.computed];
                self.fill_ring(x, layer, (image, top), &mut ring_state, buffers, rows)?;
            }
            self.row_offsets(top, count, &mut scratch.offsets)?;
            let (columns, offsets) = (&mut *columns, scratch.offsets.as_slice());
            let input = LineInput { rows, offsets, columns, real_columns: real };
            let range = (at - first) * width..(at - first + count) * width;
            if let Some(codes) = out.codes(range.clone()) {
                self.multiply_lines(layer, input, count, codes);
            } else {
                let floats = out.floats(range.clone(), self.channels, &mut scratch.floats)?;
                self.multiply_lines(layer, input, count, LineOutput::Floats(&mut *floats));
                apply_all(layer.post, floats, self.channels)?;
                out.store(range, at * width, self.channels, &scratch.floats)?;
            }
            at += count;
        }
        Ok(())
    }

    /// End of the input lines that the output lines before number `end` read. Lines are numbered
    /// over all images.
    fn input_end(&self, end: usize) -> usize {
        let (image, y) = ((end - 1) / self.output[0], (end - 1) % self.output[0]);
        let reach = self.span - (self.lines - 1) * self.shape.stride[0];
        let bottom = (y * self.shape.stride[0] + reach).saturating_sub(self.shape.padding[0]);
        image * self.shape.input[0] + bottom.min(self.shape.input[0])
    }

    /// Computes the offset of each row of a column. `count` output lines read the columns; windows
    /// of the first one start at the padded row `top`.
    fn row_offsets(&self, top: usize, count: usize, offsets: &mut Vec<usize>) -> Result<()> {
        let (height, [padding, _]) = (self.shape.input[0], self.shape.padding);
        let read = self.shape.kernel[0] + (count - 1) * self.shape.stride[0];
        let rows = self.steps * self.kernel.layout().rows;
        offsets.clear();
        memory::reserve("addresses of a convolution", offsets, rows)?;
        offsets.extend((0..rows).map(|row| {
            // Rows that no window reads are multiplied by weights of 0, so any row will do.
            let y = if row < read {
                (top + row * self.shape.dilation[0]).checked_sub(padding)
            } else {
                None
            };
            let slot = y.filter(|y| *y < height).map_or(self.slots, |y| y % self.slots);
            slot * self.row_bytes
        }));
        Ok(())
    }
}
