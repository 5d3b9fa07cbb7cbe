//! Convolutions on NumPy arrays.

use fatnn::codec::CodesLayout;
use fatnn::conv::{self, ConvShape, Int8Epilogue};
use fatnn::epilogue::{Dequantize, Requantize};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;
use numpy::Element;
use pyo3::prelude::*;

use crate::array::{ReadonlyArray, WritableArray, bytes_of};
use crate::codes::coding;
use crate::errors::{detached, guarded, input_error};

pub(crate) type Pair = [usize; 2];

/// Checks that sizes are the expected ones.
pub(crate) fn check_axes(
    what: &'static str,
    expected: &[usize],
    got: &[usize],
) -> fatnn::Result<()> {
    match expected == got {
        true => Ok(()),
        false => Err(fatnn::Error::Shape {
            what,
            expected: format!("{expected:?}"),
            got: format!("{got:?}"),
        }),
    }
}

/// Checks that the bytes per pixel of codes fit the channels of the weights.
fn check_codes(codes: &[usize], weights: WeightShape) -> fatnn::Result<()> {
    let layout = CodesLayout::new(weights.channels, weights.groups)?;
    check_axes("bytes a pixel of the codes", &[layout.pixel_bytes()], &codes[3..])
}

/// Checks that the output has the shape (batch, output height, output width, `last`).
fn check_out(out: &[usize], shape: &ConvShape, last: usize) -> fatnn::Result<()> {
    let [height, width] = shape.output()?;
    check_axes("shape of out", &[shape.batch, height, width, last], out)
}

/// The elements of an optional argument.
fn optional<'a, T: Element>(array: Option<&'a ReadonlyArray<'_, T>>) -> PyResult<Option<&'a [T]>> {
    array.map(ReadonlyArray::slice).transpose()
}

/// The shape of a convolution of `codes`, an array with the axes (batch, height, width, bytes).
pub(crate) fn conv_shape(
    codes: &ReadonlyArray<'_, u8>,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> ConvShape {
    let &[batch, height, width, _] = codes.shape() else { unreachable!("four axes were checked") };
    ConvShape { batch, input: [height, width], kernel, stride, padding, dilation }
}

/// Ternary convolution to codes; see `fatnn_rs.ops.conv_codes`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
pub(crate) fn conv_codes(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    thresholds: &Bound<'_, PyAny>,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    out_groups: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = ReadonlyArray::<u8>::new(codes, "codes", Some(4))?;
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let thresholds = ReadonlyArray::<i32>::new(thresholds, "thresholds", Some(2))?;
        let mut out = WritableArray::<u8>::new(out, "out", Some(4))?;
        let levels = thresholds.shape()[0];
        if !(2..=3).contains(&levels) {
            let shape = thresholds.shape();
            return Err(input_error(
                py,
                &format!("thresholds: expected shape (2 or 3, out_channels), got {shape:?}"),
            ));
        }
        let (thresholds, blob, input) = (thresholds.slice()?, weight.slice()?, codes.slice()?);
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let out = out.slice("out", &[bytes_of(thresholds), bytes_of(blob), bytes_of(input)])?;
        let shape = conv_shape(&codes, [0, 0], stride, padding, dilation);
        detached(py, || {
            let weights = PackedWeights::from_bytes(blob)?;
            let shape = ConvShape { kernel: weights.shape().kernel, ..shape };
            let layout =
                CodesLayout::new(weights.shape().out_channels, out_groups)?.with(coding(levels));
            check_codes(codes_shape, weights.shape())?;
            check_out(&out_shape, &shape, layout.pixel_bytes())?;
            conv::conv2d_codes(input, &weights, &shape, &Requantize { thresholds, layout }, out)
        })
    })
}

/// Ternary convolution to float32; see `fatnn_rs.ops.conv_float`.
#[pyfunction]
#[pyo3(signature = (codes, weight, scale, bias, residual, relu, stride, padding, dilation, out))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
pub(crate) fn conv_float(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    scale: Option<&Bound<'_, PyAny>>,
    bias: Option<&Bound<'_, PyAny>>,
    residual: Option<&Bound<'_, PyAny>>,
    relu: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = ReadonlyArray::<u8>::new(codes, "codes", Some(4))?;
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let scale = scale.map(|s| ReadonlyArray::<f32>::new(s, "scale", Some(1))).transpose()?;
        let bias = bias.map(|b| ReadonlyArray::<f32>::new(b, "bias", Some(1))).transpose()?;
        let residual =
            residual.map(|r| ReadonlyArray::<f32>::new(r, "residual", Some(4))).transpose()?;
        let mut out = WritableArray::<f32>::new(out, "out", Some(4))?;
        if let Some(residual) = &residual
            && residual.shape() != out.shape()
        {
            let (expected, got) = (out.shape(), residual.shape());
            return Err(input_error(
                py,
                &format!("residual: expected shape {expected:?}, got {got:?}"),
            ));
        }
        let shape = conv_shape(&codes, [0, 0], stride, padding, dilation);
        let (input, blob) = (codes.slice()?, weight.slice()?);
        let (scale, bias) = (optional(scale.as_ref())?, optional(bias.as_ref())?);
        let residual = optional(residual.as_ref())?;
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let floats = [scale, bias, residual].map(|values| bytes_of(values.unwrap_or(&[])));
        let [a, b, c] = floats;
        let out = out.slice("out", &[bytes_of(input), bytes_of(blob), a, b, c])?;
        detached(py, || {
            let weights = PackedWeights::from_bytes(blob)?;
            let shape = ConvShape { kernel: weights.shape().kernel, ..shape };
            check_codes(codes_shape, weights.shape())?;
            check_out(&out_shape, &shape, weights.shape().out_channels)?;
            let to = Dequantize {
                scale,
                bias,
                relu,
                channels: weights.shape().out_channels,
                codes: None,
            };
            conv::conv2d_float(input, &weights, &shape, to, residual, out)
        })
    })
}

/// Ternary convolution to its int32 accumulators; see `fatnn_rs.ops.conv_acc`.
#[pyfunction]
pub(crate) fn conv_acc(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = ReadonlyArray::<u8>::new(codes, "codes", Some(4))?;
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let mut out = WritableArray::<i32>::new(out, "out", Some(4))?;
        let shape = conv_shape(&codes, [0, 0], stride, padding, dilation);
        let (input, blob) = (codes.slice()?, weight.slice()?);
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let out = out.slice("out", &[bytes_of(input), bytes_of(blob)])?;
        detached(py, || {
            let weights = PackedWeights::from_bytes(blob)?;
            let shape = ConvShape { kernel: weights.shape().kernel, ..shape };
            check_codes(codes_shape, weights.shape())?;
            check_out(&out_shape, &shape, weights.shape().out_channels)?;
            conv::conv2d_acc(input, &weights, &shape, out)
        })
    })
}

/// Int8 convolution of floats to floats; see `fatnn_rs.ops.conv_int8`. `x` has the axes (batch,
/// channels, height, width) or, with `channels_last`, (batch, height, width, channels). `out` is
/// always channels-last.
#[pyfunction]
#[pyo3(signature = (
    x, weight, scale, bias, inv_step, stride, padding, dilation, channels_last, out
))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
pub(crate) fn conv_int8(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    bias: Option<&Bound<'_, PyAny>>,
    inv_step: f32,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    channels_last: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let x = ReadonlyArray::<f32>::new(x, "x", Some(4))?;
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let scale = ReadonlyArray::<f32>::new(scale, "scale", Some(1))?;
        let bias = bias.map(|b| ReadonlyArray::<f32>::new(b, "bias", Some(1))).transpose()?;
        let mut out = WritableArray::<f32>::new(out, "out", Some(4))?;
        let &[batch, a, b, c] = x.shape() else { unreachable!("four axes were checked") };
        let (order, channels, input) = match channels_last {
            true => (PixelOrder::ChannelsLast, c, [a, b]),
            false => (PixelOrder::ChannelsFirst, a, [b, c]),
        };
        let (x, blob, scale, bias) =
            (x.slice()?, weight.slice()?, scale.slice()?, optional(bias.as_ref())?);
        let out_shape = out.shape();
        let inputs = [bytes_of(x), bytes_of(blob), bytes_of(scale), bytes_of(bias.unwrap_or(&[]))];
        let out = out.slice("out", &inputs)?;
        detached(py, || {
            let weights = PackedWeights::from_bytes(blob)?;
            if weights.shape().channels != channels {
                return Err(fatnn::Error::Shape {
                    what: "channels of x",
                    expected: weights.shape().channels.to_string(),
                    got: channels.to_string(),
                });
            }
            let shape = ConvShape {
                batch,
                input,
                kernel: weights.shape().kernel,
                stride,
                padding,
                dilation,
            };
            check_out(&out_shape, &shape, weights.shape().out_channels)?;
            conv::conv2d_int8(
                x,
                order,
                &weights,
                &shape,
                &Int8Epilogue { inv_step, scale, bias },
                out,
            )
        })
    })
}
