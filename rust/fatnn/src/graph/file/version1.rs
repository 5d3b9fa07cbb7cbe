//! Converts files of version 1 to graphs and tensors of the current version.
//!
//! Version 1 differed as follows:
//!
//! - The metadata listed packed tensors in two lists, `ternary` and `two_bit`. Binary weights were
//!   in the list `ternary`; only their values show that they are binary.
//! - Nodes did not declare the type of their value. Inputs had theirs in the attribute `dtype`.
//! - `half_range` and `act` together gave the meaning of codes, and pooling of two-bit codes had an
//!   `act`.
//! - The operation `flatten_leading` was called `rows`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use super::read::Packed;
use crate::dtype::{ActType, CodeType, TensorType, ValueType, WeightKind};
use crate::graph::attrs::LIMIT;
use crate::graph::tensor::Tensor;
use crate::graph::types;

pub(super) const VERSION: u64 = 1;

/// Reads the two lists of packed tensors. Files without two-bit weights have no list `two_bit`.
pub(super) fn packed_tensors(entry: &Json) -> Option<Packed> {
    let mut packed = Packed::new();
    for (list, kind) in [("ternary", WeightKind::Ternary), ("two_bit", WeightKind::TwoBit)] {
        if kind == WeightKind::TwoBit && entry[list].is_null() {
            continue;
        }
        let shapes: BTreeMap<String, Vec<usize>> =
            serde_json::from_value(entry[list].clone()).ok()?;
        for (name, shape) in shapes {
            if packed.insert(name, (TensorType::Codes(kind), shape)).is_some() {
                return None;
            }
        }
    }
    Some(packed)
}

/// Name of a type in the digest.
pub(super) fn type_name(dtype: TensorType) -> &'static str {
    match dtype {
        TensorType::F32 => "f32",
        TensorType::I32 => "i32",
        TensorType::I64 => "i64",
        TensorType::I8 => "i8",
        TensorType::Bool => "bool",
        TensorType::Codes(WeightKind::TwoBit) => "two_bit",
        TensorType::Codes(_) => "ternary",
    }
}

/// Converts a graph's text to the current version. Every code tensor gets the narrowest kind that
/// holds its values.
///
/// Text that is not a graph is returned unchanged; [`crate::graph::Graph::parse`] reports the error.
///
/// # Errors
/// The node that is not valid in version 1, and why.
pub(super) fn upgrade_graph(
    graph: &str,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<String, String> {
    for tensor in tensors.values_mut() {
        if let Tensor::Codes(kind, _, values) = tensor {
            *kind = WeightKind::of(values).map_err(|e| e.to_string())?;
        }
    }
    let Ok(mut json) = serde_json::from_str::<Json>(graph) else { return Ok(graph.to_owned()) };
    let Some(nodes) = json.get_mut("nodes").and_then(Json::as_array_mut) else {
        return Ok(graph.to_owned());
    };
    let mut types = HashMap::new();
    for (position, node) in nodes.iter_mut().enumerate() {
        let name = node["name"].to_string();
        let Some(fields) = node.as_object_mut() else { continue };
        let dtype = upgrade_node(fields, &types, tensors)
            .map_err(|why| format!("node {position} ({name}): {why}"))?;
        if let Some(name) = fields.get("name").and_then(Json::as_str) {
            types.insert(name.to_owned(), dtype);
        }
    }
    Ok(json.to_string())
}

/// Converts a node and returns the type of its value, or float32 if the type is not known here.
fn upgrade_node(
    node: &mut Map<String, Json>,
    types: &HashMap<String, ValueType>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<ValueType, String> {
    if node.contains_key("dtype") {
        return Err("unknown fields [\"dtype\"]".into());
    }
    let op = node.get("op").and_then(Json::as_str).unwrap_or_default().to_owned();
    let first =
        node.get("inputs").and_then(|inputs| inputs[0].as_str()).and_then(|name| types.get(name));
    let read = first.copied().unwrap_or(ValueType::F32);
    let thresholds =
        node.get("tensors").and_then(|named| named["thresholds"].as_str()).map(str::to_owned);
    let mut none = Map::new();
    let attrs = node.get_mut("attrs").and_then(Json::as_object_mut).unwrap_or(&mut none);
    let number = |attrs: &Map<String, Json>, key: &str| {
        let number = attrs.get(key).and_then(Json::as_u64).filter(|n| (1..LIMIT).contains(n));
        number.map(|n| n as usize)
    };
    let codes = |codes: CodeType, channels: Option<usize>, groups: Option<usize>| match (
        channels, groups,
    ) {
        (Some(channels), Some(groups)) => ValueType::Codes { codes, channels, groups },
        // The later check of the graph reports the error.
        _ => ValueType::F32,
    };
    let dtype = match op.as_str() {
        "flatten_leading" => return Err(format!("unknown op {op:?}")),
        "input" => match attrs.remove("dtype") {
            Some(Json::String(name)) => {
                ValueType::of_input(&name).map_err(|_| format!("unknown dtype {name:?}"))?
            }
            _ => return Err("attribute \"dtype\" must be str (a string)".into()),
        },
        "quantize" => {
            let act = act(attrs)?;
            codes(act.code_type(), number(attrs, "channels"), number(attrs, "groups"))
        }
        "conv_codes" => {
            act(attrs)?;
            match thresholds.and_then(|name| tensors.get(&name)) {
                Some(Tensor::I32(shape, values)) if shape.len() == 2 => codes(
                    types::codes_of(shape[0], values),
                    Some(shape[1]),
                    number(attrs, "out_groups"),
                ),
                _ => ValueType::F32,
            }
        }
        "conv_float" => {
            act(attrs)?;
            ValueType::F32
        }
        "max_pool_codes" => {
            let two_bit = matches!(read, ValueType::Codes { codes: CodeType::TwoBit, .. });
            if attrs.remove("act").is_some_and(|act| act == ActType::Uint2.name()) != two_bit {
                return Err(format!("reads codes of another kind: {read}"));
            }
            read
        }
        _ => ValueType::F32,
    };
    if op == "rows" {
        node.insert("op".into(), "flatten_leading".into());
    }
    node.insert("dtype".into(), types::to_json(dtype));
    Ok(dtype)
}

/// Replaces `half_range` and `act` of version 1 with the current `act`.
fn act(attrs: &mut Map<String, Json>) -> Result<ActType, String> {
    let half_range = attrs.remove("half_range").and_then(|flag| flag.as_bool());
    let half_range = half_range.ok_or("attribute \"half_range\" must be bool (true or false)")?;
    let act = match (attrs.remove("act"), half_range) {
        (None, true) => ActType::Half,
        (None, false) => ActType::Full,
        (Some(Json::String(name)), true) if name == ActType::Uint2.name() => ActType::Uint2,
        (Some(Json::String(name)), true) if name == ActType::Binary.name() => ActType::Binary,
        (Some(other), _) => return Err(format!("unknown activations {other}")),
    };
    attrs.insert("act".into(), act.name().into());
    Ok(act)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn upgraded_node(node: &Json) -> Result<Json, String> {
        let graph = json!({"nodes": [node]}).to_string();
        let text = upgrade_graph(&graph, &mut BTreeMap::new())?;
        Ok(serde_json::from_str::<Json>(&text).unwrap()["nodes"][0].clone())
    }

    #[test]
    fn attributes_get_their_current_names() {
        for (half_range, act, now) in [
            (true, None, "half"),
            (false, None, "full"),
            (true, Some("uint2"), "uint2"),
            (true, Some("binary"), "binary"),
        ] {
            let mut attrs = json!({"half_range": half_range, "channels": 5, "groups": 1});
            if let Some(act) = act {
                attrs["act"] = act.into();
            }
            let node =
                upgraded_node(&json!({"name": "q", "op": "quantize", "attrs": attrs})).unwrap();
            assert_eq!(node["attrs"], json!({"act": now, "channels": 5, "groups": 1}));
            let codes = ActType::from_name(now).unwrap().code_type().name();
            assert_eq!(node["dtype"], json!({"codes": codes, "channels": 5, "groups": 1}));
        }
        let node = upgraded_node(&json!({"name": "x", "op": "input", "attrs": {"dtype": "int64"}}))
            .unwrap();
        assert_eq!(node, json!({"name": "x", "op": "input", "attrs": {}, "dtype": "int64"}));
        let node = upgraded_node(&json!({"name": "y", "op": "rows"})).unwrap();
        assert_eq!(node, json!({"name": "y", "op": "flatten_leading", "dtype": "float32"}));
    }

    #[test]
    fn nodes_of_a_later_version_are_refused() {
        for (node, words) in [
            (json!({"name": "y", "op": "relu", "dtype": "float32"}), "unknown fields"),
            (json!({"name": "y", "op": "flatten_leading"}), "unknown op"),
            (json!({"name": "y", "op": "quantize", "attrs": {"act": "half"}}), "half_range"),
            (
                json!({"name": "y", "op": "conv_float",
                       "attrs": {"half_range": true, "act": "half"}}),
                "\"half\"",
            ),
            (
                json!({"name": "y", "op": "conv_codes",
                       "attrs": {"half_range": false, "act": "uint2"}}),
                "uint2",
            ),
            (
                json!({"name": "y", "op": "max_pool_codes", "attrs": {"act": "uint2"}}),
                "of another kind",
            ),
            (json!({"name": "y", "op": "input", "attrs": {}}), "\"dtype\""),
        ] {
            let message = upgraded_node(&node).unwrap_err();
            assert!(message.contains(words) && message.contains("node 0 (\"y\")"), "{message}");
        }
    }

    #[test]
    fn text_that_is_not_a_graph_is_unchanged() {
        for text in ["{", "[]", "3", "{\"nodes\": {}}"] {
            assert_eq!(upgrade_graph(text, &mut BTreeMap::new()).unwrap(), text);
        }
    }

    #[test]
    fn weights_get_their_narrowest_kind() {
        let ternary =
            |values: &[i8]| Tensor::Codes(WeightKind::Ternary, vec![values.len()], values.to_vec());
        let mut tensors = BTreeMap::from([
            ("signs".to_owned(), ternary(&[-1, 1])),
            ("trits".to_owned(), ternary(&[-1, 0])),
            ("wide".to_owned(), Tensor::Codes(WeightKind::TwoBit, vec![2], vec![3, 1])),
        ]);
        upgrade_graph("{}", &mut tensors).unwrap();
        let kinds = [
            ("signs", WeightKind::Binary),
            ("trits", WeightKind::Ternary),
            ("wide", WeightKind::TwoBit),
        ];
        for (name, kind) in kinds {
            assert_eq!(tensors[name].dtype(), TensorType::Codes(kind));
        }
    }
}
