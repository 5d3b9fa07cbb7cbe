//! Convolution, one- and two-dimensional: geometry only. The inner loop is the product's (`gemm`,
//! `frame`).
//!
//! Codes are channels-last. For kernels that read them as they are, an image with padding is first
//! copied into a frame of zero-codes (a quarter of a byte per value: a fraction of a percent of the
//! work); after that every window is the same set of offsets from its corner, whatever the stride
//! or dilation, and a product's row is just the address of a corner. Kernels with a layout of their
//! own get frames in that layout, piece by piece.

use crate::codec::{Act, CodesLayout};
use crate::epilogue::{Dequantize, Requantize, Residual};
use crate::error::{Result, bad_value, check_len};
pub(crate) mod columns;
pub(crate) mod depthwise;
mod gather;
mod int8;
mod packed_input;
pub(crate) mod pooling;
pub(crate) mod tiled;

pub use self::columns::conv2d_int8;
pub use self::int8::Int8Epilogue;
pub(crate) use self::int8::{Constants, Padded};

use self::packed_input::{FramePlan, Input, Job};
use self::tiled::{AccSink, FloatSink, OutputChunk, Rows, Sink};
use crate::kernels::{Inner, PackedInputKernel, UNIT_BYTES};
use crate::memory;
use crate::pack::PackedWeights;
use crate::window::AxisParams;

/// Sizes, in elements or bytes, stay below this, so that sums of a few of them can be counted.
const MAX_SIZE: usize = 1 << (usize::BITS - 4);

/// Geometry of a convolution over `batch × height × width` pixels; one-dimensional ones have height
/// 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input height and width in pixels.
    pub input: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Zeros added on each side.
    pub padding: [usize; 2],
    /// Distance of taps.
    pub dilation: [usize; 2],
}

impl ConvShape {
    /// Output height and width.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if stride, dilation or kernel is 0, or the window is larger than
    /// the padded input.
    pub fn output(&self) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for (axis, out) in out.iter_mut().enumerate() {
            let (params, name) = (self.axis(axis), ["height", "width"][axis]);
            if params.kernel == 0 || params.stride == 0 || params.dilation == 0 {
                return bad_value(
                    "kernel, stride and dilation",
                    "at least 1 each",
                    format!("{self:?}"),
                );
            }
            let padded = params.padding.saturating_mul(2).saturating_add(self.input[axis]);
            match params.count(self.input[axis]) {
                Some(count) if padded < 1 << 31 => *out = count,
                _ => {
                    let reach = params.reach();
                    return bad_value(
                        "input",
                        format!(
                            "a map that, with padding, is not smaller than the kernel's window of {reach}"
                        ),
                        format!("{name} {} with {} on each side", self.input[axis], params.padding),
                    );
                }
            }
        }
        Ok(out)
    }

    /// Its window on an axis: height, width.
    pub(crate) fn axis(&self, axis: usize) -> AxisParams {
        AxisParams {
            kernel: self.kernel[axis],
            stride: self.stride[axis],
            padding: self.padding[axis],
            dilation: self.dilation[axis],
        }
    }

    /// `batch × height × width × elements`.
    pub(crate) fn size(
        &self,
        what: &'static str,
        [height, width]: [usize; 2],
        elements: usize,
    ) -> Result<usize> {
        match memory::product([self.batch, height, width, elements]) {
            Some(size) if size < MAX_SIZE => Ok(size),
            _ => bad_value(
                what,
                "a size that fits in memory",
                format!("{} × {height} × {width}", self.batch),
            ),
        }
    }
}

/// `out[pixel, channel] = Σ w·x` as `i32`, `x` the level that a code stands for in the kind of
/// activations that the weights were packed for ([`Act`]).
///
/// `codes` holds `batch × height × width` pixels in the layout of `weights.shape()`'s channels and
/// groups.
///
/// # Errors
/// [`crate::Error::Shape`] or [`crate::Error::Value`] if sizes do not fit;
/// [`crate::Error::Value`] if `codes` holds bits that no code of the weights' kind of
/// activations has; [`crate::Error::Environment`] or [`crate::Error::Threads`] if the pool
/// cannot be had.
pub fn conv2d_acc(
    codes: &[u8],
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    out: &mut [i32],
) -> Result<()> {
    run(codes, weights, shape, &AccSink { channels: weights.shape().out_channels }, out)
}

/// Convolution, then integer thresholds to codes: the level is the number of thresholds that the
/// accumulator reaches. `out` is in `to.layout`.
///
/// # Errors
/// As [`conv2d_acc`]; [`crate::Error::Value`] if a channel's threshold is below the one before.
pub fn conv2d_codes(
    codes: &[u8],
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    to: &Requantize<'_>,
    out: &mut [u8],
) -> Result<()> {
    check_thresholds(weights.shape().out_channels, to)?;
    run(codes, weights, shape, to, out)
}

/// Convolution, then `fma(acc, scale, bias)`, residual and ReLU as [`crate::epilogue`] says. `out`
/// and `residual` are `pixels × out_channels`.
///
/// # Errors
/// As [`conv2d_acc`].
pub fn conv2d_float(
    codes: &[u8],
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    to: Dequantize<'_>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    let n = weights.shape().out_channels;
    check_len("output channels", n, to.channels)?;
    if to.codes.is_some() {
        return bad_value(
            "codes next to the output",
            "none: there is nowhere to put them",
            "a quantizer",
        );
    }
    if let Some(scale) = to.scale {
        check_len("scale", n, scale.len())?;
    }
    if let Some(bias) = to.bias {
        check_len("bias", n, bias.len())?;
    }
    if let Some(residual) = residual {
        check_len("residual", out.len(), residual.len())?;
    }
    run(
        codes,
        weights,
        shape,
        &FloatSink::new(to, residual.map_or(Residual::None, Residual::Of)),
        out,
    )
}

/// Checks thresholds for `n` output channels.
pub(crate) fn check_thresholds(n: usize, to: &Requantize<'_>) -> Result<()> {
    check_len("channels of the output layout", n, to.layout.channels())?;
    check_len(
        "thresholds",
        n.saturating_mul(to.layout.coding().thresholds()),
        to.thresholds.len(),
    )?;
    if let Some(at) = (n..to.thresholds.len()).find(|&at| to.thresholds[at - n] > to.thresholds[at])
    {
        let got = format!(
            "{} and then {} for channel {}",
            to.thresholds[at - n],
            to.thresholds[at],
            at % n
        );
        return bad_value("thresholds", "none below the one before", got);
    }
    Ok(())
}

fn run<S: Sink>(
    codes: &[u8],
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    sink: &S,
    out: &mut [S::Elem],
) -> Result<()> {
    let geometry = Geometry::new(weights, shape)?;
    geometry.check(codes, sink, out, &[])?;
    geometry.layout.check_for(weights.code_operands()?.act, codes)?;
    let mut frame = memory::filled("the padded input", geometry.frame_bytes, 0)?;
    geometry.run(codes, weights, sink, &mut frame, out, &mut [])
}

/// Every byte of a pixel of zeros: no bit is set for level 0, both planes are for code 0 of the
/// full range.
fn zero_planes(act: Act) -> u8 {
    match act {
        Act::Full => 0xFF,
        Act::Half | Act::Uint2 | Act::Binary => 0x00,
    }
}

/// A convolution's addresses, worked out once for a shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    shape: ConvShape,
    layout: CodesLayout,
    /// Of a frame's zeros.
    zero: u8,
    /// Height and width with padding.
    padded: [usize; 2],
    /// Bytes of the padded input; 0 where there is no padding.
    pub frame_bytes: usize,
    /// Output height and width.
    pub output: [usize; 2],
    /// Byte offsets of a window's units: those of a tap's channels behind each other.
    steps: Vec<usize>,
    /// For kernels that want frames of their own.
    plan: Option<FramePlan>,
}

/// Sizes of a convolution, counted before anything is allocated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Output height and width.
    pub output: [usize; 2],
    /// Height and width with padding.
    padded: [usize; 2],
    /// See [`Geometry::frame_bytes`].
    pub frame_bytes: usize,
    /// Bytes of a geometry, and of a thread's frame.
    pub table_bytes: u128,
}

impl Geometry {
    /// Checks that the shape is one that the weights can be run on.
    pub fn sizes(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Sizes> {
        let w = weights.shape();
        let layout = weights.codes_layout()?;
        if w.kernel != shape.kernel {
            return bad_value(
                "kernel",
                format!("{:?}, as the weights were packed", w.kernel),
                format!("{:?}", shape.kernel),
            );
        }
        let output = shape.output()?;
        let pixel = layout.pixel_bytes();
        let padded = [shape.input[0] + 2 * shape.padding[0], shape.input[1] + 2 * shape.padding[1]];
        let bytes = shape.size("padded input", padded, pixel)?;
        let taps = shape.kernel[0].saturating_mul(shape.kernel[1]);
        let (frame_bytes, table_bytes) = match weights.inner() {
            Inner::Tiled(_) | Inner::Columns(_) | Inner::Depthwise(_) => {
                let units = layout.group_bytes() / UNIT_BYTES;
                (if shape.padding == [0, 0] { 0 } else { bytes }, taps as u128 * units as u128 * 8)
            }
            Inner::PackedInput(packed) => {
                let unit_bytes = layout.group_units().saturating_mul(packed.unit_bytes());
                let Some(frame) = FramePlan::frame_bytes(shape, output[1], unit_bytes) else {
                    let got =
                        format!("dilation {:?} of a kernel of {:?}", shape.dilation, shape.kernel);
                    return bad_value(
                        "convolution",
                        "a window whose part of the input fits in memory",
                        got,
                    );
                };
                (
                    0,
                    FramePlan::bytes(shape)
                        + taps as u128 * layout.group_units() as u128 * 8
                        + frame as u128,
                )
            }
        };
        Ok(Sizes { output, padded, frame_bytes, table_bytes })
    }

    pub fn new(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Self> {
        let Sizes { output, padded, frame_bytes, .. } = Self::sizes(weights, shape)?;
        let layout = weights.codes_layout()?;
        let pixel = layout.pixel_bytes();
        let plan = match weights.inner() {
            Inner::Tiled(_) | Inner::Columns(_) | Inner::Depthwise(_) => None,
            Inner::PackedInput(_) => Some(FramePlan::new(shape)?),
        };
        let taps = shape.kernel[0] * shape.kernel[1];
        // Kernels with frames of their own have their own offsets.
        let units = if plan.is_some() { 0 } else { layout.group_bytes() / UNIT_BYTES };
        let mut steps = memory::reserved("addresses of a convolution", taps.saturating_mul(units))?;
        for (y, x) in (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| (y, x))) {
            let tap = (y * shape.dilation[0] * padded[1] + x * shape.dilation[1]) * pixel;
            steps.extend((0..units).map(|unit| tap + unit * UNIT_BYTES));
        }
        Ok(Geometry {
            shape: *shape,
            layout,
            zero: zero_planes(weights.code_operands()?.act),
            padded,
            frame_bytes,
            output,
            steps,
            plan,
        })
    }

    /// Runs the convolution. `frame` has at least `frame_bytes` bytes, whatever they are;
    /// `codes_out` takes the codes that the sink makes next to the output, where it does.
    pub fn run<S: Sink>(
        &self,
        codes: &[u8],
        weights: &PackedWeights<'_>,
        sink: &S,
        frame: &mut [u8],
        out: &mut [S::Elem],
        codes_out: &mut [u8],
    ) -> Result<()> {
        self.check(codes, sink, out, codes_out)?;
        if out.is_empty() {
            return Ok(());
        }
        let piece = OutputChunk { out, codes_out };
        let (shape, pixel) = (&self.shape, self.layout.pixel_bytes());
        let tiled = match weights.inner() {
            Inner::Tiled(tiled) => tiled,
            Inner::Columns(_) | Inner::Depthwise(_) => return weights.code_operands().map(|_| ()),
            Inner::PackedInput(kernel) => {
                return packed_input::run([self.job(kernel, codes, weights, sink)], piece);
            }
        };
        let codes = if self.frame_bytes == 0 {
            codes
        } else {
            let frame = &mut frame[..self.frame_bytes];
            self.copy_padded(codes, frame);
            frame
        };
        let [height, width] = self.padded;
        let [out_h, out_w] = self.output;
        let [stride_y, stride_x] = shape.stride;
        let base = |row: usize| {
            let (image, at) = (row / (out_h * out_w), row % (out_h * out_w));
            let (y, x) = (at / out_w, at % out_w);
            ((image * height + y * stride_y) * width + x * stride_x) * pixel
        };
        let rows = Rows { codes, base, steps: &self.steps, group_bytes: self.layout.group_bytes() };
        tiled::run(tiled, weights, &rows, sink, piece)
    }

    /// Runs two convolutions that write the same output, the second's sink adding to what the
    /// first's has written there: as one after the other, but that the first's results need not
    /// leave the cache where the kernel can help it. `codes`, `weights` and `sinks` are the first's
    /// and the second's; `frame` and `codes_out` as for [`Geometry::run`], for both.
    pub fn run_sum<S: Sink>(
        [first, second]: [&Geometry; 2],
        codes: [&[u8]; 2],
        weights: [&PackedWeights<'_>; 2],
        sinks: [&S; 2],
        frame: &mut [u8],
        out: &mut [S::Elem],
        codes_out: &mut [u8],
    ) -> Result<()> {
        if let [Inner::PackedInput(a), Inner::PackedInput(b)] = weights.map(PackedWeights::inner)
            && weights[0].kernel().name() == weights[1].kernel().name()
        {
            first.check(codes[0], sinks[0], out, &[])?;
            second.check(codes[1], sinks[1], out, codes_out)?;
            if out.is_empty() {
                return Ok(());
            }
            let jobs = [
                first.job(a, codes[0], weights[0], sinks[0]),
                second.job(b, codes[1], weights[1], sinks[1]),
            ];
            return packed_input::run(jobs, OutputChunk { out, codes_out });
        }
        first.run(codes[0], weights[0], sinks[0], frame, out, &mut [])?;
        second.run(codes[1], weights[1], sinks[1], frame, out, codes_out)
    }

    fn check<S: Sink>(
        &self,
        codes: &[u8],
        sink: &S,
        out: &[S::Elem],
        codes_out: &[u8],
    ) -> Result<()> {
        let (shape, pixel) = (&self.shape, self.layout.pixel_bytes());
        check_len("packed codes", shape.size("input", shape.input, pixel)?, codes.len())?;
        check_len("output", shape.size("output", self.output, sink.row_len())?, out.len())?;
        check_len(
            "codes next to the output",
            shape.size("output", self.output, sink.codes_len())?,
            codes_out.len(),
        )
    }

    fn job<'a, S>(
        &'a self,
        kernel: &'a (dyn PackedInputKernel + Sync),
        codes: &'a [u8],
        weights: &'a PackedWeights<'a>,
        sink: &'a S,
    ) -> Job<'a, S> {
        let plan =
            self.plan.as_ref().expect("a geometry is used with the weights that it was made for");
        let input =
            Input { codes, layout: self.layout, shape: self.shape, plan, output: self.output };
        Job { kernel, weights, input, sink }
    }

    /// Copies the codes into a frame of zero-codes.
    fn copy_padded(&self, codes: &[u8], frame: &mut [u8]) {
        let [h, w] = self.shape.input;
        let [pad_y, pad_x] = self.shape.padding;
        let pixel = self.layout.pixel_bytes();
        let [height, width] = self.padded;
        frame.fill(self.zero);
        if h > 0 && w > 0 {
            let images = codes.chunks_exact(h * w * pixel);
            for (frame, image) in frame.chunks_exact_mut(height * width * pixel).zip(images) {
                for (y, row) in image.chunks_exact(w * pixel).enumerate() {
                    let at = ((y + pad_y) * width + pad_x) * pixel;
                    frame[at..at + row.len()].copy_from_slice(row);
                }
            }
        }
    }
}
