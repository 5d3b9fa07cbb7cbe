//! Packs weights for this CPU's kernels, and describes packed weights.

use fatnn::codec::{Act, WeightKind};
use fatnn::kernels::Operands;
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::{kernels, memory};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::ReadonlyArray;
use crate::errors::{detached, guarded, raise};

/// Packs weights (n, channels / groups, height, width) into a blob by `pack`.
fn packed_blob<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    pack: impl FnOnce(&[i8], WeightShape) -> fatnn::Result<Vec<u8>> + Send,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let weight = ReadonlyArray::<i8>::new(weight, "weight", Some(4))?;
    let &[out_channels, group_channels, height, width] = weight.shape() else {
        unreachable!("four axes were checked")
    };
    let shape = WeightShape {
        out_channels,
        channels: group_channels.saturating_mul(groups),
        kernel: [height, width],
        groups,
    };
    let weight = weight.slice()?;
    Ok(detached(py, || pack(weight, shape))?.into_pyarray(py))
}

/// The weight type called `name`. Without a name, the cheapest type that can represent `values`.
pub(crate) fn weight_kind(name: Option<&str>, values: &[i8]) -> fatnn::Result<WeightKind> {
    name.map_or_else(|| WeightKind::of(values), WeightKind::from_name)
}

/// Packs weight codes (n, channels / groups, height, width) for this CPU's kernel and activations
/// of type `act`. `weights` names their type, by default the cheapest that can represent them.
/// `kernel` selects a kernel by name; it must be the one that this process would run.
#[pyfunction]
#[pyo3(signature = (weight, groups, act, kernel = None, weights = None))]
pub(crate) fn prepack<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    act: &str,
    kernel: Option<&str>,
    weights: Option<&str>,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    guarded(py, || {
        let act = Act::from_name(act).map_err(|e| raise(py, e))?;
        let kernel = kernel.map(kernels::named).transpose().map_err(|e| raise(py, e))?;
        packed_blob(py, weight, groups, |codes, shape| {
            let operands = Operands { act, weights: weight_kind(weights, codes)? };
            let Some(kernel) = kernel else {
                return copied(PackedWeights::new(codes, shape, operands)?.as_bytes());
            };
            let blob =
                copied(PackedWeights::for_kernel(kernel, codes, shape, operands)?.as_bytes())?;
            // A blob stores the layout's id, not the kernel: several kernels may share a layout,
            // and environment variables may exclude some of them.
            let runs = PackedWeights::from_bytes(&blob).map(|packed| packed.kernel().name());
            match runs {
                Ok(name) if name == kernel.name() => Ok(blob),
                other => Err(fatnn::Error::Value {
                    what: "kernel",
                    expected: "the one that this process uses for the layout (FATNN_ISA and \
                               FATNN_KERNEL choose)"
                        .into(),
                    got: format!("{}, but {} would run", kernel.name(), other.unwrap_or("none")),
                }),
            }
        })
    })
}

/// Packs int8 weights (n, channels / groups, height, width) for this CPU's int8 kernel. `linear`
/// means weights of a linear layer.
#[pyfunction]
pub(crate) fn prepack_int8<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    groups: usize,
    linear: bool,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    guarded(py, || {
        let pack = if linear { PackedWeights::for_linear } else { PackedWeights::new };
        packed_blob(py, weight, groups, |weight, shape| {
            copied(pack(weight, shape, shape.int8_operands())?.as_bytes())
        })
    })
}

/// Describes a blob of packed weights: its shape, its operand types and the kernel that runs it.
#[pyfunction]
pub(crate) fn packed_info<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    guarded(py, || {
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let packed = PackedWeights::from_bytes(weight.slice()?).map_err(|e| raise(py, e))?;
        let (shape, info) = (packed.shape(), PyDict::new(py));
        info.set_item("out_channels", shape.out_channels)?;
        info.set_item("channels", shape.channels)?;
        info.set_item("kernel", shape.kernel)?;
        info.set_item("groups", shape.groups)?;
        info.set_item("act", packed.operands().act().map_or("int8", Act::name))?;
        info.set_item("weights", packed.operands().weights().name())?;
        info.set_item("isa", packed.kernel().isa().name())?;
        info.set_item("name", packed.kernel().name())?;
        Ok(info)
    })
}

/// Output channels and kernel size of a blob from `prepack` or, with `int8`, from `prepack_int8`.
#[pyfunction]
pub(crate) fn packed_shape(
    py: Python<'_>,
    weight: &Bound<'_, PyAny>,
    int8: bool,
) -> PyResult<(usize, (usize, usize))> {
    guarded(py, || {
        let weight = ReadonlyArray::<u8>::new(weight, "weight", Some(1))?;
        let blob = weight.slice()?;
        let shape = PackedWeights::from_bytes(blob).and_then(|packed| {
            if int8 { packed.check_int8() } else { packed.code_operands().map(|_| ()) }?;
            Ok(packed.shape())
        });
        let WeightShape { out_channels, kernel: [height, width], .. } =
            shape.map_err(|e| raise(py, e))?;
        Ok((out_channels, (height, width)))
    })
}

/// A copy of packed weights, for Python.
fn copied(blob: &[u8]) -> fatnn::Result<Vec<u8>> {
    memory::copied("packed weights", blob)
}
