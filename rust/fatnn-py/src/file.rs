//! Reads and writes network files, and converts between arrays and the core's tensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fatnn::dtype::TensorType;
use fatnn::memory;
use fatnn::net::{self, Tensor};
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{ReadonlyArray, array};
use crate::errors::{detached, guarded, input_error, raise};
use crate::graph;

/// Type names by tensor name.
pub(crate) type Dtypes = BTreeMap<String, String>;

/// Writes a network file. Arrays are float32, int32, int64, int8 or bool. `dtypes` has the types of
/// int8 arrays that are `"binary"`, `"ternary"` or `"two-bit"` weights.
#[pyfunction]
#[pyo3(signature = (path, graph, tensors, dtypes = None))]
pub(crate) fn save(
    py: Python<'_>,
    path: PathBuf,
    graph: &str,
    tensors: &Bound<'_, PyDict>,
    dtypes: Option<Dtypes>,
) -> PyResult<()> {
    guarded(py, || {
        let stored = typed_tensors(tensors, dtypes)?;
        detached(py, || net::save(path, graph, &stored))
    })
}

/// Converts a dictionary of arrays to the core's tensors. A tensor that is not in `dtypes` has the
/// type of its array.
pub(crate) fn typed_tensors(
    arrays: &Bound<'_, PyDict>,
    dtypes: Option<Dtypes>,
) -> PyResult<BTreeMap<String, Tensor>> {
    let py = arrays.py();
    let mut dtypes = dtypes.unwrap_or_default();
    let mut tensors = BTreeMap::new();
    for (name, value) in arrays {
        let name: String = name.extract()?;
        let dtype = dtypes.remove(&name);
        let dtype = dtype.map(|dtype| TensorType::from_name(&dtype)).transpose();
        let dtype = dtype.map_err(|e| input_error(py, &format!("tensor {name:?}: {e}")))?;
        let tensor = with_dtype(&name, tensor(&value, &name)?, dtype)
            .map_err(|why| input_error(py, &why))?;
        tensors.insert(name, tensor);
    }
    match dtypes.keys().next() {
        Some(name) => {
            Err(input_error(py, &format!("dtypes: expected names of tensors, got {name:?}")))
        }
        None => Ok(tensors),
    }
}

/// Gives an int8 tensor its type of weight codes. Its values are checked when the tensor is used.
fn with_dtype(name: &str, tensor: Tensor, dtype: Option<TensorType>) -> Result<Tensor, String> {
    match (tensor, dtype) {
        (Tensor::I8(shape, values), Some(TensorType::Codes(kind))) => {
            Ok(Tensor::Codes(kind, shape, values))
        }
        (tensor, Some(dtype)) if tensor.dtype() != dtype => Err(format!(
            "tensor {name:?}: expected an array of {} for dtype {:?}, got {}",
            dtype.array_name(),
            dtype.name(),
            tensor.dtype().name()
        )),
        (tensor, _) => Ok(tensor),
    }
}

/// A copy of an array: shape and elements.
fn copied_array<T: Element + Copy>(
    value: &Bound<'_, PyAny>,
    name: &str,
) -> PyResult<(Vec<usize>, Vec<T>)> {
    let array = ReadonlyArray::<T>::new(value, name, None)?;
    let copied = |slice: &[T]| memory::copied("a tensor", slice).map_err(|e| raise(value.py(), e));
    Ok((array.shape().to_vec(), copied(array.slice()?)?)) // small: at most 64 sizes
}

fn tensor(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    let dtype =
        value.getattr("dtype").and_then(|d| d.getattr("name")).and_then(|n| n.extract::<String>());
    match dtype.as_deref() {
        Ok("float32") => {
            copied_array(value, name).map(|(shape, values)| Tensor::F32(shape, values))
        }
        Ok("int32") => copied_array(value, name).map(|(shape, values)| Tensor::I32(shape, values)),
        Ok("int64") => copied_array(value, name).map(|(shape, values)| Tensor::I64(shape, values)),
        Ok("int8") => copied_array(value, name).map(|(shape, values)| Tensor::I8(shape, values)),
        // As `u8`: a NumPy array of bool may hold bytes other than 0 and 1.
        Ok("bool") => copied_array(&value.call_method1("view", ("uint8",))?, name)
            .map(|(shape, values)| Tensor::Bool(shape, values)),
        other => Err(input_error(
            value.py(),
            &format!(
                "tensor {name:?}: expected a NumPy array of float32, int32, int64, int8 or bool, \
                 got {}",
                other.map_or_else(|_| "no array".to_owned(), |d| format!("dtype {d}"))
            ),
        )),
    }
}

/// The content of a file: the graph's JSON text, arrays by name, and `dtypes` as for `save`.
type FileContent<'py> = (String, Bound<'py, PyDict>, Dtypes);

/// Reads a network file. With `check`, also checks the graph as `check_graph` does, but without
/// copying the tensors.
#[pyfunction]
#[pyo3(signature = (path, check = false, max_bytes = None, max_macs = None))]
pub(crate) fn load(
    py: Python<'_>,
    path: PathBuf,
    check: bool,
    max_bytes: Option<u64>,
    max_macs: Option<u64>,
) -> PyResult<FileContent<'_>> {
    guarded(py, || {
        let (graph, tensors) = detached(py, || {
            let (graph, tensors) = net::load(&path)?;
            if check {
                graph::parse_and_check(&graph, &tensors, max_bytes, max_macs).map_err(
                    |e| match e {
                        fatnn::Error::Graph { why } => fatnn::Error::Format { path, why },
                        other => other,
                    },
                )?;
            }
            Ok((graph, tensors))
        })?;
        let (arrays, mut dtypes) = (PyDict::new(py), Dtypes::new());
        for (name, tensor) in tensors {
            if let Tensor::Codes(kind, ..) = &tensor {
                dtypes.insert(name.clone(), kind.name().to_owned());
            }
            match tensor {
                Tensor::F32(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::I32(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::I64(shape, v) => arrays.set_item(name, array(py, v, shape)?)?,
                Tensor::Bool(shape, v) => {
                    arrays.set_item(name, array(py, v, shape)?.call_method1("view", ("bool",))?)?
                }
                Tensor::I8(shape, v) | Tensor::Codes(_, shape, v) => {
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
        Ok((graph, arrays, dtypes))
    })
}

/// Bytes of a tensor in a file, by its type and number of elements.
#[pyfunction]
pub(crate) fn file_bytes(py: Python<'_>, dtype: &str, elements: usize) -> PyResult<usize> {
    guarded(py, || Ok(TensorType::from_name(dtype).map_err(|e| raise(py, e))?.file_bytes(elements)))
}
