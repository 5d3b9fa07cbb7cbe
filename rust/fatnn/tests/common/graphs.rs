//! Small graphs.

use std::collections::BTreeMap;

use fatnn::net::{Limits, Network, Tensor};
use serde_json::{Value, json};

/// The input node `x`.
pub fn input(shape: &[usize]) -> Value {
    json!({"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": shape, "layer": "",
        "attrs": {"fixed": [], "channel_dim": 1}})
}

/// A node of the layer `layer of NAME`.
pub fn node(name: &str, op: &str, read: &[&str], attrs: Value, tensors: Value) -> Value {
    json!({"name": name, "op": op, "inputs": read, "attrs": attrs, "tensors": tensors,
        "shape": [1, 2, 4, 4], "layer": format!("layer of {name}"), "note": ""})
}

/// A graph's text.
pub fn graph(nodes: &[Value], output: &str) -> String {
    json!({"nodes": nodes, "outputs": {"value": output}, "notes": []}).to_string()
}

/// A network of one operation, `y`, on two channels.
pub fn single(
    op: &str,
    attrs: Value,
    tensors: &[(&str, Tensor)],
    limits: Limits,
) -> fatnn::Result<Network> {
    let named: BTreeMap<&str, &str> = tensors.iter().map(|(role, _)| (*role, *role)).collect();
    let nodes = [input(&[1, 2, 4, 4]), node("y", op, &["x"], attrs, json!(named))];
    let tensors =
        tensors.iter().map(|(role, tensor)| ((*role).to_owned(), tensor.clone())).collect();
    Network::within(&graph(&nodes, "y"), &tensors, limits)
}

/// A tensor of ones.
pub fn ones(shape: &[usize]) -> Tensor {
    Tensor::F32(shape.to_vec(), vec![1.0; shape.iter().product()])
}
