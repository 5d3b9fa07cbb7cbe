//! CPU features, the choice of kernels, and the number of threads.

use fatnn::codec::{Act, WeightKind};
use fatnn::cpu::Features;
use fatnn::kernels::{self, Family, LayerShape, OperandTypes, Operands};
use fatnn::parallel;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::ReadonlyArray;
use crate::errors::{config_error, guarded, raise};
use crate::weights::weight_kind;

/// Describes the CPU and this process: architecture, features, kernels (best first), threads.
#[pyfunction]
pub(crate) fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
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

/// Name of the kernel for an int8 layer: a linear layer, a depthwise convolution, or another
/// convolution.
#[pyfunction]
#[pyo3(signature = (linear, depthwise = false))]
pub(crate) fn int8_kernel_for(
    py: Python<'_>,
    linear: bool,
    depthwise: bool,
) -> PyResult<&'static str> {
    let operands = if depthwise { OperandTypes::Int8Depthwise } else { OperandTypes::Int8 };
    let conv = LayerShape::Conv { out_channels: 1, reduction: 1, taps: 1 };
    let shape = if linear { LayerShape::Linear } else { conv };
    guarded(py, || {
        kernels::choose_for(shape, operands).map(|kernel| kernel.name()).map_err(|e| raise(py, e))
    })
}

/// Name of the kernel for a layer on codes: a linear layer, or a convolution with `out_channels`
/// output channels per group, a reduction of length `reduction` and `taps` taps. `act` and
/// `weights` are the types of activations and weights.
#[pyfunction]
#[pyo3(signature = (out_channels, reduction, linear, act = "half", weights = "ternary", taps = 1))]
pub(crate) fn kernel_for(
    py: Python<'_>,
    out_channels: usize,
    reduction: usize,
    linear: bool,
    act: &str,
    weights: &str,
    taps: usize,
) -> PyResult<&'static str> {
    guarded(py, || {
        let kernel = Act::from_name(act).and_then(|act| {
            let operands = Operands { act, weights: WeightKind::from_name(weights)? };
            let conv = LayerShape::Conv { out_channels, reduction, taps };
            kernels::choose_for(if linear { LayerShape::Linear } else { conv }, operands)
        });
        kernel.map(|kernel| kernel.name()).map_err(|e| raise(py, e))
    })
}

/// The kernels that can run weights `weight` with activations of type `act`, best first. `weights`
/// names the type of the weights, by default the cheapest that can represent them. Each kernel is a
/// dictionary of its name, family, isa and, if it counts bits, its passes over them. Of kernels
/// that share a layout of weights, only the best is listed.
#[pyfunction]
#[pyo3(signature = (weight, act, weights = None))]
pub(crate) fn kernels_for<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    act: &str,
    weights: Option<&str>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    guarded(py, || {
        let weight = ReadonlyArray::<i8>::new(weight, "weight", None)?;
        let values = weight.slice()?;
        let operands = Act::from_name(act)
            .and_then(|act| Ok(Operands { act, weights: weight_kind(weights, values)? }))
            .map_err(|e| raise(py, e))?;
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

fn thread_count(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<usize> {
    let whole = !threads.is_instance_of::<pyo3::types::PyBool>();
    threads
        .extract::<usize>()
        .ok()
        .filter(|n| whole && (1..=parallel::MAX_THREADS).contains(n))
        .ok_or_else(|| {
            let got =
                threads.repr().map_or_else(|_| "something unprintable".into(), |r| r.to_string());
            let most = parallel::MAX_THREADS;
            config_error(
                py,
                &format!("number of threads: expected a whole number from 1 to {most}, got {got}"),
            )
        })
}

/// Sets the number of threads for later calls.
#[pyfunction]
pub(crate) fn set_num_threads(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<()> {
    guarded(py, || parallel::set_num_threads(thread_count(py, threads)?).map_err(|e| raise(py, e)))
}

/// Sets the default number of threads, which `set_num_threads` and the environment override.
#[pyfunction]
pub(crate) fn set_default_threads(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<()> {
    guarded(py, || {
        parallel::set_default_threads(thread_count(py, threads)?).map_err(|e| raise(py, e))
    })
}

/// The number of threads for later calls.
#[pyfunction]
pub(crate) fn get_num_threads(py: Python<'_>) -> PyResult<usize> {
    guarded(py, || parallel::num_threads().map_err(|e| raise(py, e)))
}
