//! Whether a graph is well-formed, and the types of its values.
//!
//! [`Graph::parse`] has checked the types of fields and attributes. Here nodes are checked with their
//! tensors and with what they read. Every message names the node and its layer.

use super::graph::{Graph, NodeView, Source, Tensors};
use super::op::Op;
use super::ops::OpInfo;
use super::tensor::Tensor;
use crate::codec::two_bit;
use crate::dtype::{CodeType, INPUT_TYPES, TensorType, ValueType};
use crate::error::{Error, Result};
use crate::scalar::Scalar;

/// Checks a graph; the types of its values.
///
/// A graph from a file is also checked for what the engine would find when it packs weights, and for tensors
/// that no node names. Operations that this release does not know are taken to make floats.
///
/// # Errors
/// [`Error::Graph`] naming the first thing that is wrong.
pub fn check(graph: &Graph, tensors: &Tensors, source: Source) -> Result<Vec<ValueType>> {
    // After a node of an unknown operation types are unknown too, and so are no errors.
    let mut unknown = false;
    let mut types: Vec<ValueType> = Vec::new();
    for node in &graph.nodes {
        let view = NodeView { node, tensors };
        let read: Vec<ValueType> = node.inputs.iter().map(|&value| types[value]).collect();
        types.push(match node.info {
            None => {
                unknown = true;
                ValueType::F32
            }
            Some(info) => match node_type(view, info, &read, source) {
                Ok(kind) => kind,
                Err(_) if unknown && info.makes_codes && !read.iter().any(|kind| kind.is_codes()) => ValueType::F32,
                Err(why) if !unknown || source == Source::File => return Err(node.invalid(why)),
                Err(_) => ValueType::F32,
            },
        });
    }
    if source == Source::File {
        let named: std::collections::BTreeSet<&String> =
            graph.nodes.iter().flat_map(|node| node.tensors.values()).collect();
        let unread: Vec<_> = tensors.keys().filter(|name| !named.contains(name)).take(5).collect();
        if !unread.is_empty() {
            return Err(Error::Graph { why: format!("tensors that no node names: {unread:?}") });
        }
    }
    let mut codes = None;
    graph.outputs.for_each(&mut |value| {
        if types[value].is_codes() && codes.is_none() {
            codes = Some(&graph.nodes[value].name);
        }
    });
    match codes {
        Some(name) if !unknown => {
            Err(Error::Graph { why: format!("outputs: {name:?} is codes, no structure of float values") })
        }
        _ => Ok(types),
    }
}

/// Checks a node; the type of its value.
fn node_type(view: NodeView<'_>, info: &OpInfo, read: &[ValueType], source: Source) -> Result<ValueType, String> {
    if !info.reads(read.len()) {
        return Err(format!("reads {} values", read.len()));
    }
    for (i, kind) in read.iter().enumerate() {
        let wanted = info.reads_codes && i == 0;
        if kind.is_codes() != wanted {
            let what = if wanted { "an input of codes" } else { "inputs of floats" };
            return Err(format!("reads codes where it must not, or not: expected {what}, got {kind}"));
        }
    }
    check_tensors(view, info, source)?;
    if source == Source::File {
        check_as_file(view, read)?;
    }
    (info.types)(view, read)
}

/// Roles, and the types of their tensors.
fn check_tensors(view: NodeView<'_>, info: &OpInfo, source: Source) -> Result<(), String> {
    let node = view.node;
    for (name, tensor) in &node.tensors {
        let Some(role) = info.role(name) else {
            // The engine reads the roles that it knows.
            if source == Source::Description {
                continue;
            }
            return Err(format!("unknown tensor role {name:?}"));
        };
        let found = view.tensors.get(tensor).ok_or_else(|| format!("tensor {tensor:?} is missing"))?;
        found.check().map_err(|e| format!("tensor {tensor:?}, its {name}: {e}"))?;
        let got = found.dtype();
        if got != role.dtype {
            let wanted = match role.dtype {
                TensorType::Codes => "ternary codes or weights of two bits",
                other => other.name(),
            };
            return Err(format!(
                "tensor {name:?} must be there, as {wanted}: tensor {tensor:?} must be {}, got {}",
                role.dtype.array_name(),
                got.name()
            ));
        }
    }
    match info.tensors.iter().find(|role| role.required && !node.tensors.contains_key(role.name)) {
        Some(role) => {
            Err(format!("tensor role {:?} is missing: it must be there, as {}", role.name, role.dtype.name()))
        }
        None => Ok(()),
    }
}

/// What packing weights or PyTorch would find later.
fn check_as_file(view: NodeView<'_>, read: &[ValueType]) -> Result<(), String> {
    match &view.node.op {
        Op::Input(input) => {
            if !INPUT_TYPES.iter().any(|(name, _)| *name == input.dtype) {
                return Err(format!("unknown dtype {:?}", input.dtype));
            }
            if !view.node.tensors.is_empty() {
                return Err("an input reads nothing".into());
            }
            if input.batch.is_some() && view.node.shape.is_empty() {
                return Err("batch must be a least, a most and a factor".into());
            }
        }
        Op::ConvCodes { .. } | Op::ConvFloat { .. } => match view.tensor("weight") {
            Some(Tensor::TwoBit(_, values)) => {
                two_bit::check("weight", values)
                    .map_err(|e| format!("weight holds values outside -3, -1, 1, 3 ({e})"))?;
            }
            Some(Tensor::Ternary(_, values)) => {
                crate::codec::check_codes("weight", values)
                    .map_err(|e| format!("weight holds values outside -1, 0, 1 ({e})"))?;
            }
            _ => (),
        },
        Op::Scalar(Scalar::Hardtanh { min, max }) if min > max => {
            return Err(format!("min_val cannot be greater than max_val, got {min} and {max}"));
        }
        Op::MaxPoolCodes { two_bit, .. } => {
            let reads_two_bit = matches!(read[0], ValueType::Codes { codes: CodeType::TwoBit, .. });
            if reads_two_bit != *two_bit {
                return Err(format!("reads codes of another kind: {}", read[0]));
            }
        }
        _ => (),
    }
    Ok(())
}

/// Names of the tensors that nodes use as plain int8 values. Arrays do not tell them from codes. A text that is
/// no graph names none: who reads it reports that.
pub fn plain_int8(graph: &str) -> Vec<String> {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(graph) else { return Vec::new() };
    let mut names = Vec::new();
    for node in json["nodes"].as_array().into_iter().flatten() {
        let Some(info) = node["op"].as_str().and_then(OpInfo::named) else { continue };
        for role in info.tensors.iter().filter(|role| role.dtype == TensorType::I8) {
            names.extend(node["tensors"][role.name].as_str().map(str::to_owned));
        }
    }
    names
}
