//! Checks that a graph is well-formed and finds the types of its values.
//!
//! [`Graph::parse`] has already checked the types of fields and attributes. This module checks each
//! node against its tensors and its inputs. Every message names the node and its layer.

use super::graph::{Graph, NodeView, Source, Tensors};
use super::op::Op;
use super::ops::OpInfo;
use crate::dtype::{TensorType, ValueType};
use crate::error::{Error, Result};
use crate::scalar::Scalar;

/// Checks a graph and returns the types of its values.
///
/// In a graph from a file, unused tensors are an error too. The value of an operation that this
/// release does not know is assumed to be float.
///
/// # Errors
/// [`Error::Graph`] naming the first error.
pub fn check(graph: &Graph, tensors: &Tensors, source: Source) -> Result<Vec<ValueType>> {
    // Types after an unknown operation are only assumed, so a mismatch there is not an error.
    let mut unknown = false;
    let mut types: Vec<ValueType> = Vec::new();
    for node in &graph.nodes {
        let view = NodeView { node, tensors };
        let inputs: Vec<ValueType> = node.inputs.iter().map(|&value| types[value]).collect();
        types.push(match node.info {
            None => {
                unknown = true;
                ValueType::F32
            }
            Some(info) => match node_type(view, info, &inputs, source) {
                Ok(kind) => kind,
                Err(_)
                    if unknown
                        && info.makes_codes
                        && !inputs.iter().any(|kind| kind.is_codes()) =>
                {
                    ValueType::F32
                }
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
            return Err(Error::Graph { why: format!("no node uses the tensors {unread:?}") });
        }
    }
    for (name, strides) in &graph.strides {
        let rank = tensors.get(name).map(|tensor| tensor.shape().len());
        if rank != Some(strides.len()) {
            let got = rank.map_or("no tensor of that name".into(), |n| format!("{n} dimensions"));
            return Err(Error::Graph {
                why: format!("strides: {name:?} has {} strides, but {got}", strides.len()),
            });
        }
    }
    let mut codes = None;
    graph.outputs.for_each(&mut |value| {
        if types[value].is_codes() && codes.is_none() {
            codes = Some(&graph.nodes[value].name);
        }
    });
    match codes {
        Some(name) if !unknown => Err(Error::Graph {
            why: format!("outputs: expected float values, got the codes of {name:?}"),
        }),
        _ => Ok(types),
    }
}

/// Checks a node and returns the type of its value.
fn node_type(
    view: NodeView<'_>,
    info: &OpInfo,
    inputs: &[ValueType],
    source: Source,
) -> Result<ValueType, String> {
    if !info.reads(inputs.len()) {
        return Err(format!("reads {} values", inputs.len()));
    }
    for (i, kind) in inputs.iter().enumerate() {
        let wanted = info.reads_codes && i == 0;
        let plain = info.reads_plain || wanted || *kind == ValueType::F32;
        if kind.is_codes() != wanted || matches!(kind, ValueType::Other(_)) || !plain {
            let what = if wanted { "codes" } else { "floats" };
            return Err(format!("input {i}: expected {what}, got {kind}"));
        }
    }
    check_tensors(view, info, source)?;
    if source == Source::File {
        check_as_file(view)?;
    }
    let found = (info.types)(view, inputs)?;
    match view.node.dtype {
        Some(declared) if !found.fits(declared) => {
            Err(format!("makes {found}, but its dtype says {declared}"))
        }
        declared => Ok(declared.unwrap_or(found)),
    }
}

/// Checks that required tensors exist and that all have the types of their roles.
fn check_tensors(view: NodeView<'_>, info: &OpInfo, source: Source) -> Result<(), String> {
    let node = view.node;
    for (name, tensor) in &node.tensors {
        let Some(role) = info.role(name) else {
            // The engine ignores roles that it does not know.
            if source == Source::Description {
                continue;
            }
            return Err(format!("unknown tensor role {name:?}"));
        };
        let found =
            view.tensors.get(tensor).ok_or_else(|| format!("tensor {tensor:?} is missing"))?;
        found.check().map_err(|e| format!("tensor {tensor:?}, its {name}: {e}"))?;
        let (got, wanted) = (found.dtype(), role.dtypes);
        if !wanted.contains(&got) {
            return Err(format!(
                "tensor role {name:?}: tensor {tensor:?} must be {}, got {}",
                TensorType::names(wanted),
                got.name()
            ));
        }
    }
    match info.tensors.iter().find(|role| role.required && !node.tensors.contains_key(role.name)) {
        Some(role) => Err(format!(
            "tensor role {:?} is missing: it must be there, as {}",
            role.name,
            TensorType::names(role.dtypes)
        )),
        None => Ok(()),
    }
}

/// Checks for files only: errors that packing or PyTorch would otherwise report later.
fn check_as_file(view: NodeView<'_>) -> Result<(), String> {
    match &view.node.op {
        Op::Input(input) => {
            if !view.node.tensors.is_empty() {
                return Err("an input must not have tensors".into());
            }
            if input.batch.is_some() && view.node.shape.is_empty() {
                return Err("batch needs an input with at least one dimension".into());
            }
        }
        Op::Scalar(Scalar::Hardtanh { min, max }) if min > max => {
            return Err(format!("min_val cannot be greater than max_val, got {min} and {max}"));
        }
        _ => (),
    }
    Ok(())
}
