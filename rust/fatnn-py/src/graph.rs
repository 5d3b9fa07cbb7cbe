//! The table of operations, checks and reports of `fatnn::graph`, as plain Python data.

use std::collections::HashMap;

use fatnn::graph::attrs::Presence;
use fatnn::graph::ops::{OPS, OpInfo};
use fatnn::graph::size::Size;
use fatnn::graph::{Graph, Source, Tensor, Tensors, check, cost, report, shapes, support};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::{detached, guarded, raise};
use crate::file::Dtypes;
use crate::network::limits;

/// Every operation that a graph may hold, one dictionary each.
#[pyfunction]
pub(crate) fn ops(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    guarded(py, || OPS.iter().map(|row| op_info(py, row)).collect())
}

fn op_info<'py>(py: Python<'py>, row: &OpInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", row.name)?;
    dict.set_item("inputs", row.inputs)?;
    let attrs = PyDict::new(py);
    for attr in row.attrs {
        attrs.set_item(attr.name, (attr.kind.name(), attr.presence == Presence::Optional))?;
    }
    dict.set_item("attrs", attrs)?;
    let tensors = PyDict::new(py);
    for role in row.tensors {
        let dtypes = PyTuple::new(py, role.dtypes.iter().map(|dtype| dtype.name()))?;
        tensors.set_item(role.name, (dtypes, role.required))?;
    }
    dict.set_item("tensors", tensors)?;
    dict.set_item("reads_codes", row.reads_codes)?;
    dict.set_item("reads_plain", row.reads_plain)?;
    dict.set_item("makes_codes", row.makes_codes)?;
    dict.set_item("signature", row.signature())?;
    dict.set_item("exactness", row.exactness.name())?;
    dict.set_item("products", row.products.name())?;
    dict.set_item("form", row.form.name())?;
    dict.set_item("in_files", row.in_files)?;
    dict.set_item("in_engine", row.in_engine())?;
    Ok(dict)
}

/// Checks that a graph and its tensors are well-formed and run within limits at the shapes of the
/// conversion.
#[pyfunction]
#[pyo3(signature = (graph, tensors, dtypes = None, max_bytes = None, max_macs = None))]
pub(crate) fn check_graph(
    py: Python<'_>,
    graph: &str,
    tensors: &Bound<'_, PyDict>,
    dtypes: Option<Dtypes>,
    max_bytes: Option<u64>,
    max_macs: Option<u64>,
) -> PyResult<()> {
    guarded(py, || {
        let tensors = crate::file::typed_tensors(tensors, dtypes)?;
        detached(py, || parse_and_check(graph, &tensors, max_bytes, max_macs))
    })
}

/// Parses a graph from a file, and checks it and its tensors.
pub(crate) fn parse_and_check(
    graph: &str,
    tensors: &Tensors,
    max_bytes: Option<u64>,
    max_macs: Option<u64>,
) -> fatnn::Result<()> {
    let graph = Graph::parse(graph, Source::File)?;
    let types = check::check(&graph, tensors, Source::File)?;
    cost::check_sizes(&graph, tensors, &types, limits(max_bytes, max_macs)).map(|_| ())
}

/// The reason why the engine cannot run an operation on inputs of these shapes, or `None` if it
/// can. `attrs` is the JSON object of its attributes.
#[pyfunction]
pub(crate) fn engine_refusal(
    py: Python<'_>,
    op: &str,
    attrs: &str,
    shapes: Vec<Vec<usize>>,
) -> PyResult<Option<String>> {
    guarded(py, || {
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        support::refusal(op, attrs, &shapes).map_err(|e| raise(py, e))
    })
}

/// The shape of every value, by name, for any input size. A size that depends on the inputs is a
/// negative number; equal numbers mean sizes that are equal in every run. `tensors` has the shapes
/// of the graph's tensors.
#[pyfunction]
pub(crate) fn shapes_in_every_run(
    py: Python<'_>,
    graph: &str,
    tensors: HashMap<String, Vec<usize>>,
) -> PyResult<HashMap<String, Vec<i64>>> {
    guarded(py, || {
        detached(py, || {
            let graph = Graph::parse(graph, Source::Description)?;
            let tensors = tensors
                .into_iter()
                .map(|(name, shape)| (name, Tensor::F32(shape, Vec::new())))
                .collect();
            let mut free: HashMap<Size, i64> = HashMap::new();
            let mut number = |size: Size| match size {
                Size::Known(size) => size as i64,
                Size::Free { .. } => {
                    let next = -1 - free.len() as i64;
                    *free.entry(size).or_insert(next)
                }
            };
            let shapes = shapes::in_every_run(&graph, &tensors);
            let named = graph.nodes.iter().zip(shapes);
            Ok(named
                .map(|(node, shape)| {
                    (node.name.clone(), shape.into_iter().map(&mut number).collect())
                })
                .collect())
        })
    })
}

/// Multiply-accumulates of an operation, from the shapes of its value, weight and first input; 0 if
/// it has no products. `input_products` is the attribute of that name.
#[pyfunction]
#[pyo3(signature = (op, shape, weight = None, read = None, input_products = None))]
pub(crate) fn macs(
    py: Python<'_>,
    op: &str,
    shape: Vec<usize>,
    weight: Option<Vec<usize>>,
    read: Option<Vec<usize>>,
    input_products: Option<usize>,
) -> PyResult<u128> {
    let read = read.unwrap_or_default();
    guarded(py, || {
        cost::macs_of(op, &shape, weight.as_deref(), &read, input_products)
            .map_err(|e| raise(py, e))
    })
}

/// The rows of a graph's report: a dictionary for every node that is not an input.
#[pyfunction]
#[pyo3(signature = (graph, tensors, dtypes = None))]
pub(crate) fn graph_report<'py>(
    py: Python<'py>,
    graph: &str,
    tensors: &Bound<'py, PyDict>,
    dtypes: Option<Dtypes>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    guarded(py, || {
        let tensors = crate::file::typed_tensors(tensors, dtypes)?;
        let rows = detached(py, || {
            let graph = Graph::parse(graph, Source::Description)?;
            check::check(&graph, &tensors, Source::Description)?;
            Ok(report::rows(&graph, &tensors))
        })?;
        let row = |row: report::Row| {
            let dict = PyDict::new(py);
            dict.set_item("node", row.node)?;
            dict.set_item("layer", row.layer)?;
            dict.set_item("op", row.op)?;
            dict.set_item("shape", PyTuple::new(py, row.shape)?)?;
            dict.set_item("products", row.products.name())?;
            dict.set_item("signature", row.signature)?;
            dict.set_item("macs", row.macs)?;
            dict.set_item("packed_bytes", row.code_bytes + row.int8_bytes)?;
            dict.set_item("note", row.note)?;
            Ok(dict)
        };
        rows.into_iter().map(row).collect()
    })
}
