//! Rewrites of the graph. Each looks at one node and reports whether it fused it, and if not, why.
//!
//! A pass visits the nodes in order, so its time is linear in their number. Passes run in the order
//! of [`PASSES`].

mod fuse_before;
mod fuse_bounds;
mod fuse_depthwise;
mod fuse_elementwise;
mod fuse_int8;
mod fuse_max_pool;
mod fuse_quantizer;
mod fuse_shortcut;
mod fuse_source;

pub(super) use fuse_quantizer::quantizer;

use super::fused::FusedGraph;
use crate::graph::ValueId;
use crate::graph::op::{Conv, Op};

/// Why a rewrite that is meant for a node did not apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The node reads an input of the network.
    ReadsInput,
    /// Other nodes read the same value, or the network returns it.
    OtherReaders,
    /// The producer cannot run the node's operation.
    ProducerCannot,
    /// The producer already has a fused node of this kind.
    ProducerHasOne,
    /// The node's channels or thresholds do not fit the producer.
    DoesNotFit,
}

impl Reason {
    /// The reason, worded to follow "because"; "it" is the node.
    pub fn why(self) -> &'static str {
        match self {
            Reason::ReadsInput => "it reads an input of the network",
            Reason::OtherReaders => "others read the same value",
            Reason::ProducerCannot => "the producer of its input cannot run it",
            Reason::ProducerHasOne => "the producer of its input already has one",
            Reason::DoesNotFit => "its channels or thresholds do not fit the producer of its input",
        }
    }
}

/// The result of a rewrite at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The rewrite is not meant for such nodes.
    NoMatch,
    /// The node now runs inside another.
    Applied,
    /// The rewrite is meant for such nodes, but cannot apply here.
    Refused(Reason),
}

/// A named rewrite.
pub(crate) struct Pass {
    pub name: &'static str,
    pub apply: fn(&mut FusedGraph<'_>, usize) -> Outcome,
}

/// All passes, in the order in which they run.
pub(crate) const PASSES: &[Pass] = &[
    Pass { name: "fuse_elementwise", apply: fuse_elementwise::apply },
    Pass { name: "fuse_max_pool", apply: fuse_max_pool::apply },
    Pass { name: "fuse_bounds", apply: fuse_bounds::apply },
    Pass { name: "fuse_shortcut", apply: fuse_shortcut::apply },
    Pass { name: "fuse_int8", apply: fuse_int8::apply },
    Pass { name: "fuse_quantizer", apply: fuse_quantizer::apply },
    Pass { name: "fuse_before", apply: fuse_before::apply },
    Pass { name: "fuse_source", apply: fuse_source::apply },
    Pass { name: "fuse_depthwise", apply: fuse_depthwise::apply },
];

/// A pass that was refused at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissedFusion {
    pub pass: &'static str,
    pub node: usize,
    pub reason: Reason,
}

/// Runs all passes and returns the refusals.
pub(crate) fn run(graph: &mut FusedGraph<'_>) -> Vec<MissedFusion> {
    let mut refused = Vec::new();
    for pass in PASSES {
        for node in 0..graph.len() {
            if graph.node(node).is_none() {
                continue;
            }
            if let Outcome::Refused(reason) = (pass.apply)(graph, node) {
                refused.push(MissedFusion { pass: pass.name, node, reason });
            }
        }
    }
    // Drop refusals of nodes that a later pass fused, or into which it fused their producer.
    refused.retain(|refusal| graph.node(refusal.node).is_some_and(|node| node.source.is_none()));
    refused
}

/// Whether a node is a depthwise int8 convolution without fused pooling.
fn is_depthwise(graph: &FusedGraph<'_>, node: usize) -> bool {
    let Op::ConvInt8(Conv { groups, .. }) = graph.op(node) else { return false };
    let channels =
        graph.view(node).tensor("weight").and_then(|weight| weight.shape().get(1).copied());
    let pooled = graph.node(node).is_none_or(|node| node.max_pool.is_some());
    channels == Some(1) && *groups > 1 && !pooled
}

/// Whether only a depthwise int8 convolution reads a value. It can run functions of its input.
fn feeds_depthwise(graph: &FusedGraph<'_>, value: ValueId) -> bool {
    let reads = |&node: &usize| graph.input(node, 0) == Some(value);
    graph.readers(value) == 1
        && (value + 1..graph.len()).find(reads).is_some_and(|node| is_depthwise(graph, node))
}

/// The producer of a value that nothing else reads.
fn only_producer(graph: &FusedGraph<'_>, value: ValueId) -> Result<usize, Reason> {
    match graph.op(value) {
        Op::Input(_) => Err(Reason::ReadsInput),
        _ if graph.readers(value) != 1 => Err(Reason::OtherReaders),
        _ if graph.node(value).is_none() => Err(Reason::ProducerCannot),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod testing {
    //! Graphs of a few nodes for the tests of passes.

    use std::collections::BTreeMap;

    use serde_json::{Value as Json, json};

    use super::{FusedGraph, Outcome, Pass};
    use crate::dtype::WeightKind;
    use crate::graph::{Graph, Source, Tensor, Tensors};

    pub fn tensors() -> Tensors {
        BTreeMap::from([
            (
                "w".to_owned(),
                Tensor::Codes(WeightKind::Binary, vec![64, 64, 1, 1], vec![1; 64 * 64]),
            ),
            ("dw".to_owned(), Tensor::I8(vec![64, 1, 1, 1], vec![1; 64])),
            ("i8".to_owned(), Tensor::I8(vec![64, 64, 1, 1], vec![1; 64 * 64])),
            ("f".to_owned(), Tensor::F32(vec![64, 64, 1, 1], vec![1.0; 64 * 64])),
            ("s".to_owned(), Tensor::F32(vec![2], vec![0.5, 1.5])),
            ("c".to_owned(), Tensor::F32(vec![64], vec![1.0; 64])),
            ("one".to_owned(), Tensor::F32(vec![1], vec![1.0])),
        ])
    }

    /// A node whose output is one image of 64 channels and 4 × 4 pixels.
    fn node(name: &str, op: &str, inputs: &[&str]) -> Json {
        let window = |kernel: usize| {
            json!({"kernel": [kernel, kernel], "stride": [1, 1], "padding": [0, 0],
                "dilation": [1, 1], "ceil_mode": false, "groups": 1, "act": "half",
                "channels": 64, "dims": 2, "relu": false})
        };
        let (attrs, tensors) = match op {
            "quantize" => (
                json!({"channels": 64, "groups": 1, "act": "half", "dims": 2}),
                json!({"steps": "s"}),
            ),
            "conv_float" => (window(1), json!({"weight": "w"})),
            "conv2d" => (window(1), json!({"weight": "f"})),
            "conv2d_int8" => (window(1), json!({"weight": "i8", "scale": "c", "inv_step": "one"})),
            "depthwise" => {
                let mut attrs = window(1);
                attrs["groups"] = json!(64);
                (attrs, json!({"weight": "dw", "scale": "c", "inv_step": "one"}))
            }
            "channel_scale" => (json!({}), json!({"scale": "c"})),
            "fake_quantize" => (json!({"step_size": 0.5, "low": 0, "high": 255}), json!({})),
            "input" => (json!({}), json!({})),
            _ => (window(2), json!({})),
        };
        let op = if op == "depthwise" { "conv2d_int8" } else { op };
        json!({"name": name, "op": op, "inputs": inputs, "attrs": attrs, "tensors": tensors,
            "shape": [1, 64, 4, 4]})
    }

    /// A graph of (name, operation, inputs) after an input `x`. It returns the last node and those
    /// in `returned`.
    pub fn graph(nodes: &[(&str, &str, &[&str])], returned: &[&str]) -> Graph {
        let mut all = vec![node("x", "input", &[])];
        all.extend(nodes.iter().map(|(name, op, inputs)| node(name, op, inputs)));
        let last = nodes[nodes.len() - 1].0;
        let outputs: Vec<Json> =
            returned.iter().copied().chain([last]).map(|name| json!({"value": name})).collect();
        let text = json!({"nodes": all, "outputs": {"list": outputs}}).to_string();
        Graph::parse(&text, Source::Description).unwrap()
    }

    /// Runs a pass over all nodes. Returns its outcome at the last one, and the graph.
    pub fn outcome<'a>(
        pass: &str,
        graph: &'a Graph,
        tensors: &'a Tensors,
    ) -> (Outcome, FusedGraph<'a>) {
        let Pass { apply, .. } = super::PASSES.iter().find(|found| found.name == pass).unwrap();
        let mut fused = FusedGraph::new(graph, tensors);
        let mut last = Outcome::NoMatch;
        for node in 0..fused.len() {
            if fused.node(node).is_some() {
                last = apply(&mut fused, node);
            }
        }
        (last, fused)
    }
}
