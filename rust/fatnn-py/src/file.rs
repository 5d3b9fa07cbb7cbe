//! The canonical file, and arrays as the core's tensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fatnn::codec::WeightKind;
use fatnn::memory;
use fatnn::net::{self, Tensor};
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{In, array};
use crate::errors::{detached, guarded, input_error, raise};
use crate::graph;

/// Writes the canonical file; arrays may be float32, int32, int64, or int8: ternary codes or, where one is ±3, weights of two
/// bits, but for those named in `plain_int8`, which are any int8.
#[pyfunction]
#[pyo3(signature = (path, graph, tensors, plain_int8 = None))]
pub(crate) fn save(
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
pub(crate) fn load(
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
