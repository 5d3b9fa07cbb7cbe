//! Quantization, packing and unpacking of codes, and pooling of codes.

use fatnn::codec::{Act, CodesLayout, Coding};
use fatnn::dtype::CodeType;
use fatnn::quantize::PixelOrder;
use fatnn::{memory, pool, quantize as quantizing, steps};
use numpy::PyArrayDyn;
use pyo3::prelude::*;

use crate::array::{ReadonlyArray, WritableArray, array, bytes_of};
use crate::conv::{Pair, check_axes, conv_shape};
use crate::errors::{detached, guarded, input_error, raise};

/// The bit encoding of codes that this number of thresholds produces.
pub(crate) fn coding(thresholds: usize) -> Coding {
    if thresholds == Coding::Uint2.thresholds() { Coding::Uint2 } else { Coding::Ternary }
}

/// The code type called `name`, and the layout of its codes.
fn codes_layout(
    name: &str,
    channels: usize,
    groups: usize,
) -> fatnn::Result<(CodeType, CodesLayout)> {
    let codes = CodeType::from_name(name)?;
    Ok((codes, CodesLayout::new(channels, groups)?.with(codes.coding())))
}

/// Checks that binary codes are -1 or 0. The core checks codes of other types.
fn check_type(codes: CodeType, layout: CodesLayout, packed: &[u8]) -> fatnn::Result<()> {
    if codes == CodeType::Binary { layout.check_for(Act::Binary, packed) } else { Ok(()) }
}

/// Bytes of packed codes per pixel.
#[pyfunction]
#[pyo3(signature = (channels, groups = 1))]
pub(crate) fn packed_bytes(py: Python<'_>, channels: usize, groups: usize) -> PyResult<usize> {
    guarded(py, || Ok(CodesLayout::new(channels, groups).map_err(|e| raise(py, e))?.pixel_bytes()))
}

/// Quantizes floats to packed codes; see `fatnn_rs.ops.quantize`.
#[pyfunction]
#[pyo3(signature = (x, batch, channels, pixels, channels_last, thresholds, groups, out))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
pub(crate) fn quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    batch: usize,
    channels: usize,
    pixels: usize,
    channels_last: bool,
    thresholds: Vec<f32>,
    groups: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let x = ReadonlyArray::<f32>::new(x, "x", None)?;
        let mut out = WritableArray::<u8>::new(out, "out", None)?;
        let x = x.slice()?;
        let out = out.slice("out", &[bytes_of(x)])?;
        let order =
            if channels_last { PixelOrder::ChannelsLast } else { PixelOrder::ChannelsFirst };
        detached(py, || {
            let layout = CodesLayout::new(channels, groups)?.with(coding(thresholds.len()));
            quantizing::quantize(x, batch, pixels, order, &thresholds, layout, out)
        })
    })
}

/// Quantizes floats by learned steps, for training; see `fatnn_rs.quant.fused`.
#[pyfunction]
#[pyo3(signature = (x, alphas, codes))]
pub(crate) fn quantize_steps(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    alphas: Vec<f32>,
    codes: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let x = ReadonlyArray::<f32>::new(x, "x", None)?;
        let mut codes = WritableArray::<f32>::new(codes, "codes", None)?;
        let x = x.slice()?;
        let codes = codes.slice("codes", &[bytes_of(x)])?;
        detached(py, || steps::quantize_steps(x, &alphas, codes))
    })
}

/// Writes the gradient of `x` to `to_x`, and returns those of `alphas`.
#[pyfunction]
#[pyo3(signature = (x, alphas, gradient, to_x))]
pub(crate) fn quantize_steps_gradient(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    alphas: Vec<f32>,
    gradient: &Bound<'_, PyAny>,
    to_x: &Bound<'_, PyAny>,
) -> PyResult<Vec<f32>> {
    guarded(py, || {
        let x = ReadonlyArray::<f32>::new(x, "x", None)?;
        let gradient = ReadonlyArray::<f32>::new(gradient, "gradient", None)?;
        let mut to_x = WritableArray::<f32>::new(to_x, "to_x", None)?;
        let (x, gradient) = (x.slice()?, gradient.slice()?);
        let to_x = to_x.slice("to_x", &[bytes_of(x), bytes_of(gradient)])?;
        detached(py, || steps::quantize_steps_gradient(x, &alphas, gradient, to_x))
    })
}

/// Sums of products per channel, of two arrays of pixels with that many channels.
#[pyfunction]
#[pyo3(signature = (a, b, channels))]
pub(crate) fn channel_dots(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    channels: usize,
) -> PyResult<Vec<f32>> {
    guarded(py, || {
        let a = ReadonlyArray::<f32>::new(a, "a", None)?;
        let b = ReadonlyArray::<f32>::new(b, "b", None)?;
        let (a, b) = (a.slice()?, b.slice()?);
        detached(py, || steps::channel_dots(a, b, channels))
    })
}

/// Packs codes (pixels, channels) to (pixels, bytes).
#[pyfunction]
#[pyo3(signature = (codes, groups = 1, code_type = "ternary"))]
pub(crate) fn pack_codes<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    groups: usize,
    code_type: &str,
) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    guarded(py, || {
        let codes = ReadonlyArray::<i8>::new(codes, "codes", Some(2))?;
        let &[pixels, channels] = codes.shape() else { unreachable!("two axes were checked") };
        let codes = codes.slice()?;
        let (bytes, packed) = py
            .detach(|| {
                let (of, layout) = codes_layout(code_type, channels, groups)?;
                if of == CodeType::Binary
                    && let Some(at) =
                        codes.iter().position(|code| !Act::Binary.codes().contains(code))
                {
                    let got = format!("{} at element {at}", codes[at]);
                    return Err(fatnn::Error::Value {
                        what: "codes",
                        expected: "codes -1 or 0".into(),
                        got,
                    });
                }
                let mut packed =
                    memory::filled("packed codes", pixels.saturating_mul(layout.pixel_bytes()), 0)?;
                layout.pack(codes, &mut packed)?;
                Ok((layout.pixel_bytes(), packed))
            })
            .map_err(|e| raise(py, e))?;
        array(py, packed, vec![pixels, bytes]) // small: two sizes
    })
}

/// Unpacks codes (pixels, bytes) to (pixels, channels).
#[pyfunction]
#[pyo3(signature = (packed, channels, groups = 1, code_type = "ternary"))]
pub(crate) fn unpack_codes<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyAny>,
    channels: usize,
    groups: usize,
    code_type: &str,
) -> PyResult<Bound<'py, PyArrayDyn<i8>>> {
    guarded(py, || {
        let packed = ReadonlyArray::<u8>::new(packed, "packed", Some(2))?;
        let &[pixels, bytes] = packed.shape() else { unreachable!("two axes were checked") };
        let (of, layout) = codes_layout(code_type, channels, groups).map_err(|e| raise(py, e))?;
        if bytes != layout.pixel_bytes() {
            let expected = layout.pixel_bytes();
            return Err(input_error(
                py,
                &format!(
                    "packed: expected {expected} bytes a pixel for {channels} channels, got {bytes}"
                ),
            ));
        }
        let packed = packed.slice()?;
        let codes = py
            .detach(|| {
                let mut codes = memory::filled("codes", pixels.saturating_mul(channels), 0)?;
                check_type(of, layout, packed)?;
                layout.unpack(packed, &mut codes).map(|()| codes)
            })
            .map_err(|e| raise(py, e))?;
        array(py, codes, vec![pixels, channels]) // small: two sizes
    })
}

/// Max pooling of packed codes; see `fatnn_rs.ops.max_pool_codes`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
pub(crate) fn max_pool_codes(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    channels: usize,
    groups: usize,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    code_type: &str,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = ReadonlyArray::<u8>::new(codes, "codes", Some(4))?;
        let mut out = WritableArray::<u8>::new(out, "out", Some(4))?;
        let shape = conv_shape(&codes, kernel, stride, padding, dilation);
        let (height, width) = (out.shape()[1], out.shape()[2]);
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let input = codes.slice()?;
        let out = out.slice("out", &[bytes_of(input)])?;
        detached(py, || {
            let (of, layout) = codes_layout(code_type, channels, groups)?;
            let bytes = layout.pixel_bytes();
            check_axes("bytes a pixel of the codes", &[bytes], &codes_shape[3..])?;
            check_axes(
                "images and bytes a pixel of out",
                &[shape.batch, bytes],
                &[out_shape[0], out_shape[3]],
            )?;
            check_type(of, layout, input)?;
            pool::max_pool_codes(input, layout, &shape, [height, width], out)
        })
    })
}
