//! The rows that `fatnn inspect` and `net.report` show.

use super::cost;
use super::graph::{Graph, NodeView, Tensors};
use super::op::Op;
use super::ops::Products;
use super::tensor::Tensor;

/// One node in a report.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the node.
    pub node: String,
    /// Name of the layer that the node came from; the node's name if there is none.
    pub layer: String,
    /// Name of the operation.
    pub op: String,
    /// Shape of the value at conversion.
    pub shape: Vec<usize>,
    /// Weight type of the products.
    pub products: Products,
    /// Types of first input and output, such as `codes -> float`.
    pub signature: String,
    /// Multiply-accumulates at conversion; 0 if the operation has no products.
    pub macs: u64,
    /// Bytes of the weights in a file if they are codes, otherwise 0.
    pub code_bytes: u64,
    /// Bytes of the weights in a file if they are int8, otherwise 0.
    pub int8_bytes: u64,
    /// Remark, such as what was fused into the node.
    pub note: String,
}

/// One row for every node of a graph except its inputs.
pub fn rows(graph: &Graph, tensors: &Tensors) -> Vec<Row> {
    let nodes = graph.nodes.iter().filter(|node| !matches!(node.op, Op::Input(_)));
    let read = |node: &super::Node| {
        let first = node.inputs.first().and_then(|&value| graph.nodes.get(value));
        first.map(|node| node.shape.as_slice()).unwrap_or_default()
    };
    nodes.map(|node| row(NodeView { node, tensors }, read(node))).collect()
}

fn row(view: NodeView<'_>, read: &[usize]) -> Row {
    let node = view.node;
    let weight = view.tensor("weight");
    let (code_bytes, int8_bytes) = match weight {
        Some(weight @ Tensor::Codes(..)) => (weight.file_bytes(), 0),
        Some(weight @ Tensor::I8(..)) => (0, weight.file_bytes()),
        _ => (0, 0),
    };
    let layer = if node.layer.is_empty() { &node.name } else { &node.layer };
    Row {
        node: node.name.clone(),
        layer: layer.clone(),
        op: node.op_name().to_owned(),
        shape: node.shape.clone(),
        products: node.info.map_or(Products::None, |info| info.products),
        signature: node.info.map_or_else(|| "float -> float".into(), super::ops::OpInfo::signature),
        macs: u64::try_from(cost::macs(node, read, &node.shape, weight)).unwrap_or(u64::MAX),
        code_bytes: code_bytes as u64,
        int8_bytes: int8_bytes as u64,
        note: node.note.clone(),
    }
}
