//! What `fatnn inspect` and `net.report` show of a graph.

use super::cost;
use super::graph::{Graph, NodeView, Tensors};
use super::op::Op;
use super::ops::Products;
use super::tensor::Tensor;

/// A node.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub node: String,
    /// The layer that it came from; the node's name where there is none.
    pub layer: String,
    /// Its operation.
    pub op: String,
    /// Shape of its value at conversion.
    pub shape: Vec<usize>,
    /// What it multiplies.
    pub products: Products,
    /// What it reads and makes: `codes -> float` and the like.
    pub signature: String,
    /// Multiply-accumulates at conversion; 0 where it multiplies nothing.
    pub macs: u64,
    /// Bytes of its weights in a file, where they are codes.
    pub code_bytes: u64,
    /// Bytes of its weights in a file, where they are int8.
    pub int8_bytes: u64,
    /// What was fused, or why it runs as it does.
    pub note: String,
}

/// Every node of a graph but its inputs.
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
