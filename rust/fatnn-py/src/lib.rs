//! `fatnn_rs._core`: the core for Python. Each function checks its arrays, lets other Python threads run, calls the core and
//! maps its error; no arithmetic lives here. What the arguments mean is documented where users see it, in `fatnn_rs.ops`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fatnn::codec::{Act, CodesLayout, Coding, WeightKind};
use fatnn::conv::{self, ConvShape};
use fatnn::cpu::Features;
use fatnn::epilogue::{ToCodes, ToFloat};
use fatnn::int8::{self, Int8Epilogue, Int8Weights};
use fatnn::kernels::{Family, Operands};
use fatnn::net::{self, Tensor};
use fatnn::quantize::PixelOrder;
use fatnn::weights::{PackedWeights, WeightShape};
use fatnn::{kernels, memory, parallel, pool, quantize as quantizing};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{In, Out, array, bytes_of};
use crate::errors::{config_error, detached, guarded, input_error, raise};

mod array;
mod errors;
mod graph;
mod network;

type Pair = [usize; 2];

/// What this process runs on: architecture, features, kernels (best first), threads.
#[pyfunction]
fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    guarded(py, || {
        let info = PyDict::new(py);
        let usable = Features::usable().map_err(|e| raise(py, e))?;
        let kernels = kernels::available().map_err(|e| raise(py, e))?;
        info.set_item("arch", std::env::consts::ARCH)?;
        info.set_item("features_detected", Features::detected().names())?;
        info.set_item("features", usable.names())?;
        let names = |int8: bool| -> Vec<&str> {
            let wanted = kernels.iter().filter(|k| (k.layout().family == Family::Int8) == int8);
            wanted.map(|k| k.name()).collect()
        };
        info.set_item("kernels", names(false))?;
        info.set_item("int8_kernels", names(true))?;
        info.set_item("threads", parallel::num_threads().map_err(|e| raise(py, e))?)?;
        Ok(info)
    })
}

/// Name of the kernel that an int8 layer takes.
#[pyfunction]
fn int8_kernel_for(py: Python<'_>, linear: bool) -> PyResult<&'static str> {
    guarded(py, || int8::choose(linear).map(|kernel| kernel.name()).map_err(|e| raise(py, e)))
}

/// Name of the kernel that a ternary layer takes: a convolution with so many output channels per group and so long a reduction,
/// or a linear layer; for activations of the kind `act` and weights of the kind `weights`.
#[pyfunction]
#[pyo3(signature = (out_channels, reduction, linear, act = "half", weights = "ternary"))]
fn kernel_for(
    py: Python<'_>,
    out_channels: usize,
    reduction: usize,
    linear: bool,
    act: &str,
    weights: &str,
) -> PyResult<&'static str> {
    guarded(py, || {
        let kernel = Act::from_name(act).and_then(|act| {
            let operands = Operands { act, weights: WeightKind::from_name(weights)? };
            if linear {
                kernels::choose_for_linear(operands)
            } else {
                kernels::choose(out_channels, reduction, operands)
            }
        });
        kernel.map(|kernel| kernel.name()).map_err(|e| raise(py, e))
    })
}

/// How codes are written, as bindings say it.
fn coding(uint2: bool) -> Coding {
    if uint2 { Coding::Uint2 } else { Coding::Ternary }
}

fn thread_count(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<usize> {
    let whole = !threads.is_instance_of::<pyo3::types::PyBool>();
    threads.extract::<usize>().ok().filter(|n| whole && (1..=parallel::MAX_THREADS).contains(n)).ok_or_else(|| {
        let got = threads.repr().map_or_else(|_| "something unprintable".into(), |r| r.to_string());
        let most = parallel::MAX_THREADS;
        config_error(py, &format!("number of threads: expected a whole number from 1 to {most}, got {got}"))
    })
}

/// Sets the number of threads of later calls.
#[pyfunction]
fn set_num_threads(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<()> {
    guarded(py, || parallel::set_num_threads(thread_count(py, threads)?).map_err(|e| raise(py, e)))
}

/// Sets the number of threads for as long as nothing else does.
#[pyfunction]
fn set_default_threads(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<()> {
    guarded(py, || parallel::set_default_threads(thread_count(py, threads)?).map_err(|e| raise(py, e)))
}

/// The number of threads of later calls.
#[pyfunction]
fn get_num_threads(py: Python<'_>) -> PyResult<usize> {
    guarded(py, || parallel::num_threads().map_err(|e| raise(py, e)))
}

/// Bytes of one pixel's packed codes.
#[pyfunction]
#[pyo3(signature = (channels, groups = 1))]
fn packed_bytes(py: Python<'_>, channels: usize, groups: usize) -> PyResult<usize> {
    guarded(py, || Ok(CodesLayout::new(channels, groups).map_err(|e| raise(py, e))?.pixel_bytes()))
}

/// Floats to packed codes; see `fatnn_rs.ops.quantize`.
#[pyfunction]
#[pyo3(signature = (x, batch, channels, pixels, channels_last, thresholds, groups, out))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
fn quantize(
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
        let x = In::<f32>::new(x, "x", None)?;
        let mut out = Out::<u8>::new(out, "out", None)?;
        let x = x.slice()?;
        let out = out.slice("out", &[bytes_of(x)])?;
        let order = if channels_last { PixelOrder::ChannelsLast } else { PixelOrder::ChannelsFirst };
        detached(py, || {
            let layout = CodesLayout::new(channels, groups)?.with(coding(thresholds.len() == 3));
            quantizing::quantize(x, batch, pixels, order, &thresholds, layout, out)
        })
    })
}

/// Codes (pixels, channels) to packed codes (pixels, bytes).
#[pyfunction]
#[pyo3(signature = (codes, groups = 1, uint2 = false))]
fn pack_codes<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    groups: usize,
    uint2: bool,
) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    guarded(py, || {
        let codes = In::<i8>::new(codes, "codes", Some(2))?;
        let &[pixels, channels] = codes.shape() else { unreachable!("two axes were checked") };
        let codes = codes.slice()?;
        let (bytes, packed) = py
            .detach(|| {
                let layout = CodesLayout::new(channels, groups)?.with(coding(uint2));
                let mut packed = memory::filled("packed codes", pixels.saturating_mul(layout.pixel_bytes()), 0)?;
                layout.pack(codes, &mut packed)?;
                Ok((layout.pixel_bytes(), packed))
            })
            .map_err(|e| raise(py, e))?;
        array(py, packed, vec![pixels, bytes]) // small: two sizes
    })
}

/// Packed codes (pixels, bytes) to codes (pixels, channels).
#[pyfunction]
#[pyo3(signature = (packed, channels, groups = 1, uint2 = false))]
fn unpack_codes<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyAny>,
    channels: usize,
    groups: usize,
    uint2: bool,
) -> PyResult<Bound<'py, PyArrayDyn<i8>>> {
    guarded(py, || {
        let packed = In::<u8>::new(packed, "packed", Some(2))?;
        let &[pixels, bytes] = packed.shape() else { unreachable!("two axes were checked") };
        let layout = CodesLayout::new(channels, groups).map_err(|e| raise(py, e))?.with(coding(uint2));
        if bytes != layout.pixel_bytes() {
            let expected = layout.pixel_bytes();
            return Err(input_error(
                py,
                &format!("packed: expected {expected} bytes a pixel for {channels} channels, got {bytes}"),
            ));
        }
        let packed = packed.slice()?;
        let codes = py
            .detach(|| {
                let mut codes = memory::filled("codes", pixels.saturating_mul(channels), 0)?;
                layout.unpack(packed, &mut codes).map(|()| codes)
            })
            .map_err(|e| raise(py, e))?;
        array(py, codes, vec![pixels, channels]) // small: two sizes
    })
}

/// Weights (n, channels / groups, height, width) to the blob that `pack` makes.
fn packed_blob<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    pack: impl FnOnce(&[i8], WeightShape) -> fatnn::Result<Vec<u8>> + Send,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let weight = In::<i8>::new(weight, "weight", Some(4))?;
    let &[out_channels, group_channels, height, width] = weight.shape() else { unreachable!("four axes were checked") };
    let shape =
        WeightShape { out_channels, channels: group_channels.saturating_mul(groups), kernel: [height, width], groups };
    let weight = weight.slice()?;
    Ok(detached(py, || pack(weight, shape))?.into_pyarray(py))
}

/// Weight codes (n, channels / groups, height, width), ternary or of two bits, to the blob that this CPU's kernel wants for
/// activations of the kind `act`; or that the kernel named `kernel` wants, which has to be one that would run it.
#[pyfunction]
#[pyo3(signature = (weight, groups, act, kernel = None))]
fn prepack<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    act: &str,
    kernel: Option<&str>,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    guarded(py, || {
        let act = Act::from_name(act).map_err(|e| raise(py, e))?;
        let kernel = kernel.map(kernels::named).transpose().map_err(|e| raise(py, e))?;
        packed_blob(py, weight, groups, |codes, shape| {
            let Some(kernel) = kernel else { return copied(PackedWeights::new(codes, shape, act)?.as_bytes()) };
            let blob = copied(PackedWeights::for_kernel(kernel, codes, shape, act)?.as_bytes())?;
            // Blobs carry the layout's number, which kernels may share, and the environment may have excluded.
            let runs = PackedWeights::from_bytes(&blob).map(|packed| packed.kernel().name());
            match runs {
                Ok(name) if name == kernel.name() => Ok(blob),
                other => Err(fatnn::Error::Value {
                    what: "kernel",
                    expected: "one that this process takes for its layout (FATNN_ISA and FATNN_KERNEL choose)".into(),
                    got: format!("{}, in whose place {} would run", kernel.name(), other.unwrap_or("none")),
                }),
            }
        })
    })
}

/// The kernels that this process may run for such weights and activations of the kind `act`, best first, each as a dictionary of
/// its name, family, isa and, where it counts bits, passes over them; where several share a layout of weights, the best of them.
#[pyfunction]
fn kernels_for<'py>(py: Python<'py>, weight: &Bound<'py, PyAny>, act: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
    guarded(py, || {
        let weight = In::<i8>::new(weight, "weight", None)?;
        let values = weight.slice()?;
        let operands = Act::from_name(act).and_then(|act| Operands::of(values, act)).map_err(|e| raise(py, e))?;
        let mut layouts = Vec::new();
        let mut found = Vec::new();
        for kernel in kernels::available().map_err(|e| raise(py, e))? {
            if !operands.supported_by(*kernel) || layouts.contains(&kernel.layout()) {
                continue;
            }
            layouts.push(kernel.layout());
            let row = PyDict::new(py);
            row.set_item("name", kernel.name())?;
            row.set_item("family", kernel.layout().family.name())?;
            row.set_item("isa", kernel.isa().name())?;
            row.set_item("passes", operands.bit_passes(*kernel))?;
            found.push(row);
        }
        Ok(found)
    })
}

/// What a blob of packed weights holds: its shape, operands and the kernel that runs it.
#[pyfunction]
fn packed_info<'py>(py: Python<'py>, weight: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    guarded(py, || {
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let packed = PackedWeights::from_bytes(weight.slice()?).map_err(|e| raise(py, e))?;
        let (shape, info) = (packed.shape(), PyDict::new(py));
        info.set_item("out_channels", shape.out_channels)?;
        info.set_item("channels", shape.channels)?;
        info.set_item("kernel", shape.kernel)?;
        info.set_item("groups", shape.groups)?;
        info.set_item("act", packed.act().name())?;
        info.set_item("weights", packed.kind().name())?;
        info.set_item("isa", packed.kernel().isa().name())?;
        info.set_item("name", packed.kernel().name())?;
        Ok(info)
    })
}

/// Output channels and kernel of a blob that `prepack` or, for `int8`, `prepack_int8` made.
#[pyfunction]
fn packed_shape(py: Python<'_>, weight: &Bound<'_, PyAny>, int8: bool) -> PyResult<(usize, (usize, usize))> {
    guarded(py, || {
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let blob = weight.slice()?;
        let shape = match int8 {
            true => Int8Weights::from_bytes(blob).map(|packed| packed.shape()),
            false => PackedWeights::from_bytes(blob).map(|packed| packed.shape()),
        };
        let WeightShape { out_channels, kernel: [height, width], .. } = shape.map_err(|e| raise(py, e))?;
        Ok((out_channels, (height, width)))
    })
}

/// `Ok` where sizes are those expected.
fn check_axes(what: &'static str, expected: &[usize], got: &[usize]) -> fatnn::Result<()> {
    match expected == got {
        true => Ok(()),
        false => Err(fatnn::Error::Shape { what, expected: format!("{expected:?}"), got: format!("{got:?}") }),
    }
}

/// `Ok` where codes have as many bytes a pixel as the weights' channels take.
fn check_codes(codes: &[usize], weights: WeightShape) -> fatnn::Result<()> {
    let layout = CodesLayout::new(weights.channels, weights.groups)?;
    check_axes("bytes a pixel of the codes", &[layout.pixel_bytes()], &codes[3..])
}

/// `Ok` where the output is (batch, output height, output width, `last`).
fn check_out(out: &[usize], shape: &ConvShape, last: usize) -> fatnn::Result<()> {
    let [height, width] = shape.output()?;
    check_axes("shape of out", &[shape.batch, height, width, last], out)
}

/// The elements of an argument that may be absent.
fn optional<'a, T: Element>(array: Option<&'a In<'_, T>>) -> PyResult<Option<&'a [T]>> {
    array.map(In::slice).transpose()
}

/// A copy of packed weights, for Python.
fn copied(blob: &[u8]) -> fatnn::Result<Vec<u8>> {
    memory::copied("packed weights", blob)
}

/// The shape of a convolution over `codes`, whose array has the axes (batch, height, width, bytes).
fn conv_shape(codes: &In<'_, u8>, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> ConvShape {
    let &[batch, height, width, _] = codes.shape() else { unreachable!("four axes were checked") };
    ConvShape { batch, input: [height, width], kernel, stride, padding, dilation }
}

/// Ternary convolution to codes; see `fatnn_rs.ops.conv_codes`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
fn conv_codes(
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
        let codes = In::<u8>::new(codes, "codes", Some(4))?;
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let thresholds = In::<i32>::new(thresholds, "thresholds", Some(2))?;
        let mut out = Out::<u8>::new(out, "out", Some(4))?;
        let levels = thresholds.shape()[0];
        if !(2..=3).contains(&levels) {
            let shape = thresholds.shape();
            return Err(input_error(py, &format!("thresholds: expected shape (2 or 3, out_channels), got {shape:?}")));
        }
        let (thresholds, blob, input) = (thresholds.slice()?, weight.slice()?, codes.slice()?);
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let out = out.slice("out", &[bytes_of(thresholds), bytes_of(blob), bytes_of(input)])?;
        let shape = conv_shape(&codes, [0, 0], stride, padding, dilation);
        detached(py, || {
            let weights = PackedWeights::from_bytes(blob)?;
            let shape = ConvShape { kernel: weights.shape().kernel, ..shape };
            let layout = CodesLayout::new(weights.shape().out_channels, out_groups)?.with(coding(levels == 3));
            check_codes(codes_shape, weights.shape())?;
            check_out(&out_shape, &shape, layout.pixel_bytes())?;
            conv::conv2d_codes(input, &weights, &shape, &ToCodes { thresholds, layout }, out)
        })
    })
}

/// Ternary convolution to float32; see `fatnn_rs.ops.conv_float`.
#[pyfunction]
#[pyo3(signature = (codes, weight, scale, bias, residual, relu, stride, padding, dilation, out))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
fn conv_float(
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
        let codes = In::<u8>::new(codes, "codes", Some(4))?;
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let scale = scale.map(|s| In::<f32>::new(s, "scale", Some(1))).transpose()?;
        let bias = bias.map(|b| In::<f32>::new(b, "bias", Some(1))).transpose()?;
        let residual = residual.map(|r| In::<f32>::new(r, "residual", Some(4))).transpose()?;
        let mut out = Out::<f32>::new(out, "out", Some(4))?;
        if let Some(residual) = &residual
            && residual.shape() != out.shape()
        {
            let (expected, got) = (out.shape(), residual.shape());
            return Err(input_error(py, &format!("residual: expected shape {expected:?}, got {got:?}")));
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
            let to = ToFloat { scale, bias, relu, channels: weights.shape().out_channels, codes: None };
            conv::conv2d_float(input, &weights, &shape, to, residual, out)
        })
    })
}

/// Ternary convolution to its int32 accumulators; see `fatnn_rs.ops.conv_acc`.
#[pyfunction]
fn conv_acc(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = In::<u8>::new(codes, "codes", Some(4))?;
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let mut out = Out::<i32>::new(out, "out", Some(4))?;
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

/// Max pooling on packed codes; see `fatnn_rs.ops.max_pool_codes`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
fn max_pool_codes(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    channels: usize,
    groups: usize,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    uint2: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    guarded(py, || {
        let codes = In::<u8>::new(codes, "codes", Some(4))?;
        let mut out = Out::<u8>::new(out, "out", Some(4))?;
        let shape = conv_shape(&codes, kernel, stride, padding, dilation);
        let (height, width) = (out.shape()[1], out.shape()[2]);
        let (codes_shape, out_shape) = (codes.shape(), out.shape());
        let input = codes.slice()?;
        let out = out.slice("out", &[bytes_of(input)])?;
        detached(py, || {
            let layout = CodesLayout::new(channels, groups)?.with(coding(uint2));
            let bytes = layout.pixel_bytes();
            check_axes("bytes a pixel of the codes", &[bytes], &codes_shape[3..])?;
            check_axes("images and bytes a pixel of out", &[shape.batch, bytes], &[out_shape[0], out_shape[3]])?;
            pool::max_pool_codes(input, layout, &shape, [height, width], out)
        })
    })
}

/// Int8 weights (n, channels / groups, height, width) to the blob that this CPU's int8 kernel wants; `linear` says that they are
/// a linear layer's.
#[pyfunction]
fn prepack_int8<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    linear: bool,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    guarded(py, || {
        let pack = if linear { Int8Weights::for_linear } else { Int8Weights::new };
        packed_blob(py, weight, groups, |weight, shape| copied(pack(weight, shape)?.as_bytes()))
    })
}

/// Int8 convolution of floats to floats; see `fatnn_rs.ops.conv_int8`. `x` has the axes (batch, channels, height, width), or
/// (batch, height, width, channels) where `channels_last` says so; `out` has its channels last.
#[pyfunction]
#[pyo3(signature = (x, weight, scale, bias, inv_step, stride, padding, dilation, channels_last, out))]
#[allow(clippy::too_many_arguments, reason = "the Python signature")]
fn conv_int8(
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
        let x = In::<f32>::new(x, "x", Some(4))?;
        let weight = In::<u8>::new(weight, "weight", Some(1))?;
        let scale = In::<f32>::new(scale, "scale", Some(1))?;
        let bias = bias.map(|b| In::<f32>::new(b, "bias", Some(1))).transpose()?;
        let mut out = Out::<f32>::new(out, "out", Some(4))?;
        let &[batch, a, b, c] = x.shape() else { unreachable!("four axes were checked") };
        let (order, channels, input) = match channels_last {
            true => (PixelOrder::ChannelsLast, c, [a, b]),
            false => (PixelOrder::ChannelsFirst, a, [b, c]),
        };
        let (x, blob, scale, bias) = (x.slice()?, weight.slice()?, scale.slice()?, optional(bias.as_ref())?);
        let out_shape = out.shape();
        let inputs = [bytes_of(x), bytes_of(blob), bytes_of(scale), bytes_of(bias.unwrap_or(&[]))];
        let out = out.slice("out", &inputs)?;
        detached(py, || {
            let weights = Int8Weights::from_bytes(blob)?;
            if weights.shape().channels != channels {
                return Err(fatnn::Error::Shape {
                    what: "channels of x",
                    expected: weights.shape().channels.to_string(),
                    got: channels.to_string(),
                });
            }
            let shape = ConvShape { batch, input, kernel: weights.shape().kernel, stride, padding, dilation };
            check_out(&out_shape, &shape, weights.shape().out_channels)?;
            int8::conv2d_int8(x, order, &weights, &shape, &Int8Epilogue { inv_step, scale, bias }, out)
        })
    })
}

/// Writes the canonical file; arrays may be float32, int32, int64, or int8: ternary codes or, where one is ±3, weights of two
/// bits, but for those named in `plain_int8`, which are any int8.
#[pyfunction]
#[pyo3(signature = (path, graph, tensors, plain_int8 = None))]
fn save(
    py: Python<'_>,
    path: PathBuf,
    graph: &str,
    tensors: &Bound<'_, PyDict>,
    plain_int8: Option<Vec<String>>,
) -> PyResult<()> {
    guarded(py, || {
        let stored = typed_tensors(graph, tensors, plain_int8)?;
        detached(py, || net::save(path, graph, &stored))
    })
}

/// A dictionary of arrays as the core's tensors. Which int8 ones are plain integers, `plain_int8` says, or else the graph.
pub(crate) fn typed_tensors(
    graph: &str,
    arrays: &Bound<'_, PyDict>,
    plain_int8: Option<Vec<String>>,
) -> PyResult<BTreeMap<String, Tensor>> {
    match plain_int8 {
        Some(names) => tensors(arrays, &names),
        None => {
            let int8 = |name: &String| {
                let array = arrays.get_item(name).ok().flatten();
                let dtype = array.and_then(|array| array.getattr("dtype").ok()?.getattr("name").ok());
                dtype.is_some_and(|dtype| dtype.extract::<String>().is_ok_and(|dtype| dtype == "int8"))
            };
            let mut names = graph::plain_int8(graph).map_err(|e| raise(arrays.py(), e))?;
            // What is missing or of another type is named where it is used.
            names.retain(int8);
            tensors(arrays, &names)
        }
    }
}

/// A dictionary of arrays as the core's tensors; int8 ones are weights' codes but where `plain_int8` names them.
fn tensors(arrays: &Bound<'_, PyDict>, plain_int8: &[String]) -> PyResult<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, value) in arrays {
        let name: String = name.extract()?;
        let tensor = tensor(&value, &name)?;
        tensors.insert(name, tensor);
    }
    for name in plain_int8 {
        match tensors.get_mut(name) {
            Some(tensor @ (Tensor::Ternary(..) | Tensor::TwoBit(..))) => {
                let whole = std::mem::replace(tensor, Tensor::I8(Vec::new(), Vec::new()));
                if let Tensor::Ternary(shape, values) | Tensor::TwoBit(shape, values) = whole {
                    *tensor = Tensor::I8(shape, values);
                }
            }
            // Named twice.
            Some(Tensor::I8(..)) => (),
            _ => {
                let message = format!("plain_int8: expected names of int8 tensors, got {name:?}");
                return Err(input_error(arrays.py(), &message));
            }
        }
    }
    Ok(tensors)
}

/// A copy of an array: shape and elements.
fn owned<T: Element + Copy>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<(Vec<usize>, Vec<T>)> {
    let array = In::<T>::new(value, name, None)?;
    let copied = |slice: &[T]| memory::copied("a tensor", slice).map_err(|e| raise(value.py(), e));
    Ok((array.shape().to_vec(), copied(array.slice()?)?)) // small: at most 64 sizes
}

fn tensor(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    let dtype = value.getattr("dtype").and_then(|d| d.getattr("name")).and_then(|n| n.extract::<String>());
    match dtype.as_deref() {
        Ok("float32") => owned(value, name).map(|(shape, values)| Tensor::F32(shape, values)),
        Ok("int32") => owned(value, name).map(|(shape, values)| Tensor::I32(shape, values)),
        Ok("int64") => owned(value, name).map(|(shape, values)| Tensor::I64(shape, values)),
        Ok("int8") => owned(value, name).map(|(shape, values)| {
            // What is neither is named where it is used as one.
            let two_bit = matches!(WeightKind::of(&values), Ok(WeightKind::TwoBit));
            if two_bit { Tensor::TwoBit(shape, values) } else { Tensor::Ternary(shape, values) }
        }),
        other => Err(input_error(
            value.py(),
            &format!(
                "tensor {name:?}: expected a NumPy array of float32, int32, int64 or int8 codes, got {}",
                other.map_or_else(|_| "no array".to_owned(), |d| format!("dtype {d}"))
            ),
        )),
    }
}

/// Reads the canonical file: the graph's JSON text and the arrays by name; weights' codes and plain int8 all as int8. With
/// `check`, also checks the graph as `check_graph` does, without a copy of the tensors.
#[pyfunction]
#[pyo3(signature = (path, check = false, max_bytes = None, max_macs = None))]
fn load(
    py: Python<'_>,
    path: PathBuf,
    check: bool,
    max_bytes: Option<u64>,
    max_macs: Option<u64>,
) -> PyResult<(String, Bound<'_, PyDict>)> {
    guarded(py, || {
        let (graph, tensors) = detached(py, || {
            let (graph, tensors) = net::load(&path)?;
            if check {
                graph::checked(&graph, &tensors, max_bytes, max_macs).map_err(|e| match e {
                    fatnn::Error::Graph { why } => fatnn::Error::Format { path, why },
                    other => other,
                })?;
            }
            Ok((graph, tensors))
        })?;
        let arrays = PyDict::new(py);
        for (name, tensor) in tensors {
            match tensor {
                Tensor::F32(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::I32(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::I64(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::I8(shape, v) | Tensor::Ternary(shape, v) | Tensor::TwoBit(shape, v) => {
                    arrays.set_item(name, array(py, v, shape)?)?
                }
                _ => {
                    return Err(input_error(
                        py,
                        &format!("tensor {name:?}: of a type that these bindings do not know"),
                    ));
                }
            }
        }
        Ok((graph, arrays))
    })
}

/// The Rust core of fatnn-rs.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("FORMAT_VERSION", net::FORMAT_VERSION)?;
    module.add("MAX_BYTES", net::Limits::DEFAULT.max_bytes)?;
    module.add("MAX_MACS", net::Limits::DEFAULT.max_macs)?;
    module.add_class::<network::Network>()?;
    for function in [
        wrap_pyfunction!(cpu_info, module)?,
        wrap_pyfunction!(int8_kernel_for, module)?,
        wrap_pyfunction!(kernel_for, module)?,
        wrap_pyfunction!(kernels_for, module)?,
        wrap_pyfunction!(set_num_threads, module)?,
        wrap_pyfunction!(set_default_threads, module)?,
        wrap_pyfunction!(get_num_threads, module)?,
        wrap_pyfunction!(packed_bytes, module)?,
        wrap_pyfunction!(quantize, module)?,
        wrap_pyfunction!(pack_codes, module)?,
        wrap_pyfunction!(unpack_codes, module)?,
        wrap_pyfunction!(prepack, module)?,
        wrap_pyfunction!(packed_info, module)?,
        wrap_pyfunction!(packed_shape, module)?,
        wrap_pyfunction!(conv_codes, module)?,
        wrap_pyfunction!(conv_float, module)?,
        wrap_pyfunction!(conv_acc, module)?,
        wrap_pyfunction!(max_pool_codes, module)?,
        wrap_pyfunction!(prepack_int8, module)?,
        wrap_pyfunction!(conv_int8, module)?,
        wrap_pyfunction!(save, module)?,
        wrap_pyfunction!(load, module)?,
        wrap_pyfunction!(graph::ops, module)?,
        wrap_pyfunction!(graph::check_graph, module)?,
        wrap_pyfunction!(graph::engine_refusal, module)?,
        wrap_pyfunction!(graph::macs, module)?,
        wrap_pyfunction!(graph::graph_report, module)?,
    ] {
        module.add_function(function)?;
    }
    Ok(())
}
