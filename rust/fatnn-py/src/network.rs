//! `fatnn_rs._core.Network`: a whole network in one call.

use std::path::PathBuf;

use fatnn::kernels::Family;
use fatnn::net::{self, Input, Observed};
use numpy::{IntoPyArray, PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::In;
use crate::errors::{input_error, raise};

/// A network that runs in Rust as a whole.
#[pyclass(frozen, module = "fatnn_rs._core")]
pub(crate) struct Network {
    net: net::Network,
}

#[pymethods]
impl Network {
    /// Builds a network from a graph's JSON text and its arrays, of which `plain_int8` means what it does to `save`; `family`:
    /// that of the kernels that its ternary products take, what suits the CPU by default.
    #[new]
    #[pyo3(signature = (graph, tensors, plain_int8 = Vec::new(), family = None))]
    fn new(
        py: Python<'_>,
        graph: &str,
        tensors: &Bound<'_, PyDict>,
        plain_int8: Vec<String>,
        family: Option<&str>,
    ) -> PyResult<Self> {
        let tensors = crate::tensors(tensors, &plain_int8)?;
        let family = family.map(Family::from_name).transpose().map_err(|e| raise(py, e))?;
        let net = py.detach(|| match family {
            Some(family) => net::Network::for_family(graph, &tensors, family),
            None => net::Network::new(graph, &tensors),
        });
        Ok(Network { net: net.map_err(|e| raise(py, e))? })
    }

    /// Reads a network from a file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let net = py.detach(|| net::Network::load(path)).map_err(|e| raise(py, e))?;
        Ok(Network { net })
    }

    /// Name and shape at conversion of every input.
    #[getter]
    fn inputs(&self) -> Vec<(String, Vec<usize>)> {
        self.net.inputs().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
    }

    /// Name and shape at conversion of every output.
    #[getter]
    fn outputs(&self) -> Vec<(String, Vec<usize>)> {
        self.net.outputs().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect()
    }

    /// Every product, in order: the node's name, the kernel that it runs on, and bytes of its weights as that has them.
    #[getter]
    fn products(&self) -> Vec<(String, &'static str, usize)> {
        self.net.products().map(|(node, kernel, bytes)| (node.to_owned(), kernel, bytes)).collect()
    }

    /// Bytes of the buffers that are kept for later runs.
    #[getter]
    fn buffer_bytes(&self) -> usize {
        self.net.buffer_bytes()
    }

    /// Runs the network on float32 arrays whose memory is channels-first (shape as PyTorch has it) or, where `channels_last`
    /// says so, channels-last (shape (images, ..., channels)). Outputs are channels-last.
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        channels_last: Vec<bool>,
    ) -> PyResult<Vec<Bound<'py, PyArrayDyn<f32>>>> {
        self.run_with(py, &inputs, &channels_last, None)
    }

    /// As `run`; also returns, for every node that ran: its name, nanoseconds, and its packed codes (images, height, width,
    /// bytes), or `None` where it made floats.
    #[allow(clippy::type_complexity, reason = "the Python signature")]
    fn run_observed<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        channels_last: Vec<bool>,
    ) -> PyResult<(Vec<Bound<'py, PyArrayDyn<f32>>>, Vec<(String, u64, Option<Bound<'py, PyArrayDyn<u8>>>)>)> {
        let mut seen = Vec::new();
        let mut observe = |value: Observed<'_>| {
            let nanoseconds = u64::try_from(value.nanoseconds).unwrap_or(u64::MAX);
            let codes = value.codes.map(|(codes, layout)| (value.pixels(), layout.pixel_bytes(), codes.to_vec()));
            seen.push((value.node.to_owned(), nanoseconds, codes));
        };
        let outputs = self.run_with(py, &inputs, &channels_last, Some(&mut observe))?;
        let seen = seen
            .into_iter()
            .map(|(node, nanoseconds, codes)| {
                let array = codes.map(|([n, h, w], bytes, codes)| codes.into_pyarray(py).reshape(vec![n, h, w, bytes]));
                Ok((node, nanoseconds, array.transpose()?))
            })
            .collect::<PyResult<_>>()?;
        Ok((outputs, seen))
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
        let names: Vec<&str> = self.net.inputs().map(|(name, _)| name).collect();
        let arrays = inputs
            .iter()
            .enumerate()
            .map(|(i, array)| In::<f32>::new(array, &format!("input {:?}", names.get(i).unwrap_or(&"?")), None))
            .collect::<PyResult<Vec<_>>>()?;
        let shapes: Vec<Vec<usize>> = arrays
            .iter()
            .zip(channels_last)
            .map(|(array, &last)| {
                let mut shape = array.shape().to_vec();
                if last && shape.len() > 2 {
                    shape[1..].rotate_right(1);
                }
                shape
            })
            .collect();
        let inputs: Vec<Input<'_>> = arrays
            .iter()
            .zip(&shapes)
            .zip(channels_last)
            .map(|((array, shape), &channels_last)| Input { shape, data: array.slice(), channels_last })
            .collect();
        let run = || match observe {
            None => self.net.run(&inputs),
            Some(observe) => self.net.run_observed(&inputs, observe),
        };
        let outputs = py.detach(run).map_err(|e| raise(py, e))?;
        outputs
            .into_iter()
            .map(|output| {
                let mut shape = output.shape;
                shape[1..].rotate_left(1);
                output.data.into_pyarray(py).reshape(shape)
            })
            .collect()
    }
}
