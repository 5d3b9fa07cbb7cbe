//! Convolution in one and two dimensions. This module computes sizes and addresses; the kernels
//! compute the products (`tiled`, `packed_input`).
//!
//! Codes are channels-last. For tiled kernels, the input is first copied into a padded image (two
//! bits per value, so this is a small part of the work). Every window then has the same byte
//! offsets from its first tap, for any stride and dilation, and a row of the product is one
//! address. Kernels with an input layout of their own get parts of the padded input in that layout.

use crate::epilogue::{Dequantize, Requantize, Residual};
use crate::error::{Result, bad_value, check_len};
pub(crate) mod columns;
mod columns_pooled;
pub(crate) mod depthwise;
mod gather;
pub(crate) mod geometry;
mod int8;
pub(crate) mod int8_sink;
mod packed_input;
pub(crate) mod pooling;
pub(crate) mod tiled;

pub use self::columns::conv2d_int8;
pub(crate) use self::geometry::Geometry;
pub use self::int8::Int8Epilogue;
pub(crate) use self::int8::{Constants, Padded};

use self::tiled::{AccSink, FloatSink, Sink};
use crate::memory;
use crate::pack::PackedWeights;
use crate::window::AxisParams;

/// Sizes in elements or bytes are below this, so that sums of a few of them do not overflow.
const MAX_SIZE: usize = 1 << (usize::BITS - 4);

/// Sizes of a convolution over `batch × height × width` pixels. Height is 1 in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Number of images.
    pub batch: usize,
    /// Input height and width in pixels.
    pub input: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Distance between windows, in pixels.
    pub stride: [usize; 2],
    /// Zeros added on each side, in pixels.
    pub padding: [usize; 2],
    /// Distance between taps, in pixels.
    pub dilation: [usize; 2],
}

impl ConvShape {
    /// Row (axis 0) or column (axis 1) of the input under a tap of an output pixel; `None` if it is
    /// in the padding.
    pub(crate) fn input_at(&self, axis: usize, output: usize, tap: usize) -> Option<usize> {
        (output * self.stride[axis] + tap * self.dilation[axis])
            .checked_sub(self.padding[axis])
            .filter(|&at| at < self.input[axis])
    }

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
                            "a map that, with padding, is not smaller than the kernel's window of \
                             {reach}"
                        ),
                        format!("{name} {} with {} on each side", self.input[axis], params.padding),
                    );
                }
            }
        }
        Ok(out)
    }

    /// The window's parameters on an axis (0: height, 1: width).
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

/// `out[pixel, channel] = Σ w·x` as `i32`, where `x` is the level of a code. The type of
/// activations ([`Act`](crate::codec::Act)) that the weights were packed for says which level.
///
/// `codes` holds `batch × height × width` packed pixels: [`CodesLayout`](crate::codec::CodesLayout)
/// for the channels and groups of `weights.shape()`.
///
/// # Errors
/// [`crate::Error::Shape`] or [`crate::Error::Value`] if sizes do not fit; [`crate::Error::Value`]
/// if `codes` holds invalid bits for the weights' activation type; [`crate::Error::Environment`] or
/// [`crate::Error::Threads`] if the thread pool cannot be created.
pub fn conv2d_acc(
    codes: &[u8],
    weights: &PackedWeights<'_>,
    shape: &ConvShape,
    out: &mut [i32],
) -> Result<()> {
    run(codes, weights, shape, &AccSink { channels: weights.shape().out_channels }, out)
}

/// Convolution, then integer thresholds to codes. The level is the number of thresholds that the
/// accumulator reaches. `out` has the layout `to.layout`.
///
/// # Errors
/// As [`conv2d_acc`]; [`crate::Error::Value`] if a channel's thresholds decrease.
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

/// Convolution, then `fma(acc, scale, bias)`, residual and ReLU as in [`crate::epilogue`]. `out`
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
            "none: this function has no output for them",
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

/// Checks the thresholds for `n` output channels.
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
        return bad_value("thresholds", "no decrease within a channel", got);
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
    let mut padded = memory::filled("the padded input", geometry.padded_bytes, 0)?;
    geometry.run(codes, weights, sink, &mut padded, out, &mut [])
}
