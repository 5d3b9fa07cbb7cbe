//! `fatnn_rs._core.Network`: runs a whole network in one call.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use fatnn::kernels::Family;
use fatnn::memory;
use fatnn::net::{self, Array, Input, Limits, Observed};
use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{ReadonlyArray, array};
use crate::errors::{detached, guarded, input_error, raise};

/// A network that runs in Rust.
#[pyclass(frozen, module = "fatnn_rs._core")]
pub(crate) struct Network {
    net: net::Network,
}

/// A node that ran: its name, nanoseconds, and its packed codes (images, height, width, bytes).
type NodeRun<'py> = (String, u64, Option<Bound<'py, PyArrayDyn<u8>>>);

/// Limits from Python's arguments; `None` means no limit.
pub(crate) fn limits(max_bytes: Option<u64>, max_macs: Option<u64>) -> Limits {
    let Limits { max_bytes: all_bytes, max_macs: all_macs } = Limits::NONE;
    Limits { max_bytes: max_bytes.unwrap_or(all_bytes), max_macs: max_macs.unwrap_or(all_macs) }
}

#[pymethods]
impl Network {
    /// Builds a network from a graph's JSON text and its arrays; `dtypes` is as for `save`.
    /// `family` selects the kernel family of its ternary products; by default the CPU decides.
    /// `max_bytes` and `max_macs` limit its cost, when it is built and in every run; `None` means
    /// no limit.
    #[new]
    #[pyo3(signature = (
        graph, tensors, dtypes = None, family = None, max_bytes = None, max_macs = None
    ))]
    fn new(
        py: Python<'_>,
        graph: &str,
        tensors: &Bound<'_, PyDict>,
        dtypes: Option<crate::file::Dtypes>,
        family: Option<&str>,
        max_bytes: Option<u64>,
        max_macs: Option<u64>,
    ) -> PyResult<Self> {
        guarded(py, || {
            let tensors = crate::file::typed_tensors(tensors, dtypes)?;
            let family = family.map(Family::from_name).transpose().map_err(|e| raise(py, e))?;
            let net = detached(py, || match family {
                Some(family) => net::Network::for_family(graph, &tensors, family),
                None => net::Network::within(graph, &tensors, limits(max_bytes, max_macs)),
            })?;
            Ok(Network { net })
        })
    }

    /// Reads a network from a file. By default it has the limits for files.
    #[staticmethod]
    #[pyo3(signature = (
        path,
        max_bytes = Some(Limits::DEFAULT.max_bytes),
        max_macs = Some(Limits::DEFAULT.max_macs)
    ))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        max_bytes: Option<u64>,
        max_macs: Option<u64>,
    ) -> PyResult<Self> {
        guarded(py, || {
            let net =
                detached(py, || net::Network::load_within(path, limits(max_bytes, max_macs)))?;
            Ok(Network { net })
        })
    }

    /// Name of every input, and its shape at conversion.
    #[getter]
    fn inputs(&self) -> Vec<(String, Vec<usize>)> {
        self.net.inputs().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect() // small
    }

    /// Type of every input: `"float32"`, `"int32"`, `"int64"` or `"bool"`.
    #[getter]
    fn input_types(&self) -> Vec<&'static str> {
        self.net.input_types().collect() // small: a few
    }

    /// Name of every output, and its shape at conversion.
    #[getter]
    fn outputs(&self) -> Vec<(String, Vec<usize>)> {
        self.net.outputs().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect() // small
    }

    /// Every product, in order: the node's name, the kernel's name, and the bytes of the packed
    /// weights.
    #[getter]
    fn products(&self) -> Vec<(String, &'static str, usize)> {
        self.net.products().map(|(node, kernel, bytes)| (node.to_owned(), kernel, bytes)).collect()
    }

    /// Every fusion that was possible for a node but did not apply: the layer (or node), the name
    /// of the pass, and the reason.
    #[getter]
    fn not_fused(&self) -> Vec<(String, &'static str, &'static str)> {
        self.net
            .not_fused()
            .iter()
            .map(|refused| (refused.layer.clone(), refused.pass, refused.reason))
            .collect()
    }

    /// Bytes of the buffers that are kept for later runs.
    #[getter]
    fn buffer_bytes(&self) -> usize {
        self.net.buffer_bytes()
    }

    /// Frees the buffers that are kept for later runs.
    fn drop_buffers(&self) {
        self.net.drop_buffers();
    }

    /// Runs the network on arrays of the inputs' types. A float32 array has PyTorch's shape, or
    /// the shape (images, ..., channels) if its flag in `channels_last` is set. Outputs have
    /// PyTorch's shapes, with strides of either memory order. Signals are handled between nodes, so
    /// Ctrl-C ends a long run.
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        channels_last: Vec<bool>,
    ) -> PyResult<Vec<Bound<'py, PyArrayDyn<f32>>>> {
        guarded(py, || self.run_with(py, &inputs, &channels_last, None))
    }

    /// Like `run`. Also returns for every node that ran: its name, its nanoseconds, and its packed
    /// codes (images, height, width, bytes), or `None` if its value is not codes.
    #[allow(clippy::type_complexity, reason = "the Python signature")]
    fn run_observed<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        channels_last: Vec<bool>,
    ) -> PyResult<(Vec<Bound<'py, PyArrayDyn<f32>>>, Vec<NodeRun<'py>>)> {
        guarded(py, || {
            let mut observed = Vec::new();
            let mut observe = |value: Observed<'_>| {
                let nanoseconds = u64::try_from(value.nanoseconds).unwrap_or(u64::MAX);
                let copied = |codes| memory::copied("observed codes", codes);
                let codes = value
                    .codes
                    .map(|(codes, layout)| (value.pixels(), layout.pixel_bytes(), copied(codes)));
                observed.push((value.node.to_owned(), nanoseconds, codes));
            };
            let outputs = self.run_with(py, &inputs, &channels_last, Some(&mut observe))?;
            let mut runs = Vec::new();
            for (node, nanoseconds, codes) in observed {
                let codes = match codes {
                    None => None,
                    Some(([n, h, w], bytes, codes)) => {
                        Some(array(py, codes.map_err(|e| raise(py, e))?, [n, h, w, bytes].into())?)
                    }
                };
                runs.push((node, nanoseconds, codes));
            }
            Ok((outputs, runs))
        })
    }
}

/// An array of one of the types of inputs.
enum InputArray<'py> {
    F32(ReadonlyArray<'py, f32>),
    I32(ReadonlyArray<'py, i32>),
    I64(ReadonlyArray<'py, i64>),
    /// As `u8`: a NumPy array of bool may hold bytes other than 0 and 1.
    Bool(ReadonlyArray<'py, u8>),
}

impl<'py> InputArray<'py> {
    fn new(array: &Bound<'py, PyAny>, name: &str, dtype: &str) -> PyResult<Self> {
        Ok(match dtype {
            "int32" => InputArray::I32(ReadonlyArray::new(array, name, None)?),
            "int64" => InputArray::I64(ReadonlyArray::new(array, name, None)?),
            "bool" => {
                ReadonlyArray::<bool>::new(array, name, None)?;
                InputArray::Bool(ReadonlyArray::new(
                    &array.call_method1("view", ("uint8",))?,
                    name,
                    None,
                )?)
            }
            _ => InputArray::F32(ReadonlyArray::new(array, name, None)?),
        })
    }

    fn shape(&self) -> &[usize] {
        match self {
            InputArray::F32(array) => array.shape(),
            InputArray::I32(array) => array.shape(),
            InputArray::I64(array) => array.shape(),
            InputArray::Bool(array) => array.shape(),
        }
    }

    fn as_array<'a>(&'a self, shape: &'a [usize], channels_last: bool) -> PyResult<Array<'a>> {
        Ok(match self {
            InputArray::F32(array) => Input { shape, data: array.slice()?, channels_last }.into(),
            InputArray::I32(array) => Array::I32(shape, array.slice()?),
            InputArray::I64(array) => Array::I64(shape, array.slice()?),
            InputArray::Bool(array) => Array::Bool(shape, array.slice()?),
        })
    }
}

impl Network {
    fn run_with<'py>(
        &self,
        py: Python<'py>,
        inputs: &[Bound<'py, PyAny>],
        channels_last: &[bool],
        observe: Option<&mut (dyn FnMut(Observed<'_>) + Send)>,
    ) -> PyResult<Vec<Bound<'py, PyArrayDyn<f32>>>> {
        if inputs.len() != channels_last.len() {
            return Err(input_error(py, "channels_last: expected one flag per input"));
        }
        let names = self.net.inputs().map(|(name, _)| name);
        let declared: Vec<(&str, &str)> = names.zip(self.net.input_types()).collect(); // small
        let arrays = inputs
            .iter()
            .enumerate()
            .map(|(i, array)| {
                let (name, dtype) = declared.get(i).copied().unwrap_or(("?", "float32"));
                InputArray::new(array, &format!("input {name:?}"), dtype)
            })
            .collect::<PyResult<Vec<_>>>()?;
        let shapes: Vec<Vec<usize>> = arrays
            .iter()
            .zip(channels_last)
            .map(|(array, &last)| {
                let mut shape = array.shape().to_vec(); // small: at most 64 sizes
                if last && shape.len() > 2 && matches!(array, InputArray::F32(_)) {
                    shape[1..].rotate_right(1);
                }
                shape
            })
            .collect();
        let inputs = arrays
            .iter()
            .zip(&shapes)
            .zip(channels_last)
            .map(|((array, shape), &channels_last)| array.as_array(shape, channels_last))
            .collect::<PyResult<Vec<Array<'_>>>>()?;
        // The exception of a signal handler, usually KeyboardInterrupt.
        let raised = Mutex::new(None);
        let go_on = || match Python::attach(|py| py.check_signals()) {
            Ok(()) => true,
            Err(error) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                false
            }
        };
        let done = py.detach(|| match observe {
            None => self.net.run_while(&inputs, &go_on),
            Some(observe) => self.net.run_observed(&inputs, observe),
        });
        if let Some(error) = raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let outputs = done.map_err(|e| match e {
            // The network is within the limits, so the inputs' sizes exceed them.
            limit @ fatnn::Error::Limit { .. } => input_error(py, &limit.to_string()),
            other => raise(py, other),
        })?;
        outputs
            .into_iter()
            .map(|output| {
                let (rank, mut shape) = (output.shape.len(), output.shape);
                if !output.channels_last || rank < 3 {
                    return array(py, output.data, shape);
                }
                shape[1..].rotate_left(1);
                let mut axes: Vec<usize> = (0..rank).collect();
                axes[1..].rotate_right(1);
                let output = array(py, output.data, shape)?;
                Ok(output.call_method1("transpose", (axes,))?.cast_into()?)
            })
            .collect()
    }
}
