//! The types of a graph's fields: what every field of a file must be, checked before anything is built from it.
//!
//! What fields mean together (sizes, groups, kinds of values) is checked where nodes become operations, and whether shapes fit
//! by `Network::measure`, at the shapes that the network was converted at. `fatnn_rs.convert.schema` checks the same in Python.

use serde_json::Value as Json;

use super::ops::LIMIT;

/// What an attribute is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Below 2³¹ in magnitude.
    Integer,
    Integers,
    /// That float32 holds.
    Number,
    Flag,
    Text,
}

/// Every attribute that an operation of this crate reads or Python does: a name means one thing in all of them.
const ATTRIBUTES: &[(&str, Kind)] = &[
    ("act", Kind::Text),
    ("batch", Kind::Integers),
    ("ceil_mode", Kind::Flag),
    ("channel_dim", Kind::Integer),
    ("channels", Kind::Integer),
    ("count_include_pad", Kind::Flag),
    ("dilation", Kind::Integers),
    ("dim", Kind::Integer),
    ("dims", Kind::Integer),
    ("divisor", Kind::Integer),
    ("dtype", Kind::Text),
    ("end", Kind::Integer),
    ("eps", Kind::Number),
    ("fixed", Kind::Integers),
    ("groups", Kind::Integer),
    ("half_range", Kind::Flag),
    ("keepdim", Kind::Flag),
    ("kernel", Kind::Integers),
    ("layout", Kind::Text),
    ("max_val", Kind::Number),
    ("min_val", Kind::Number),
    ("mode", Kind::Text),
    ("negative_slope", Kind::Number),
    ("out_groups", Kind::Integer),
    ("pad", Kind::Integers),
    ("padding", Kind::Integers),
    ("relu", Kind::Flag),
    ("shared", Kind::Flag),
    ("size", Kind::Integers),
    ("start", Kind::Integer),
    ("stride", Kind::Integers),
    ("trailing", Kind::Integer),
    ("value", Kind::Number),
];

impl Kind {
    fn holds(self, value: &Json) -> bool {
        let integer = |value: &Json| value.as_i64().is_some_and(|n| n.unsigned_abs() < LIMIT);
        match self {
            Kind::Integer => integer(value),
            Kind::Integers => value.as_array().is_some_and(|list| list.iter().all(integer)),
            Kind::Number => value.as_f64().is_some_and(|x| (x as f32).is_finite()),
            Kind::Flag => value.is_boolean(),
            Kind::Text => value.is_string(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Integer => "an integer",
            Kind::Integers => "a list of integers",
            Kind::Number => "a number",
            Kind::Flag => "true or false",
            Kind::Text => "a string",
        }
    }
}

/// Checks the types of all fields.
///
/// # Errors
/// Which field is not what it must be.
pub(super) fn check(graph: &Json) -> Result<(), String> {
    let graph = graph.as_object().ok_or("the graph is no object")?;
    if let Some(key) = graph.keys().find(|key| !["nodes", "outputs", "notes", "arguments"].contains(&key.as_str())) {
        return Err(format!("the graph holds {key:?}, which is not known"));
    }
    let strings = |list: &Json| list.as_array().is_some_and(|list| list.iter().all(Json::is_string));
    if graph.get("notes").is_some_and(|notes| !strings(notes)) {
        return Err("notes must be a list of strings".into());
    }
    // How Python calls the network; arrays come in the order of the inputs here.
    if graph.get("arguments").is_some_and(|list| !list.as_array().is_some_and(|list| list.iter().all(Json::is_object)))
    {
        return Err("arguments must be a list of objects".into());
    }
    let nodes = graph.get("nodes").and_then(Json::as_array).ok_or("the graph has no list of nodes")?;
    for (position, node) in nodes.iter().enumerate() {
        let wrong = |why: String| format!("node {position} ({}): {why}", node["name"]);
        let fields = node.as_object().ok_or_else(|| wrong("it is no object".into()))?;
        for (key, value) in fields {
            let (holds, what) = match key.as_str() {
                "name" => (value.as_str().is_some_and(|name| !name.is_empty()), "a string that is not empty"),
                "op" | "layer" | "note" => (value.is_string(), "a string"),
                "inputs" => (strings(value), "a list of strings"),
                "attrs" => (value.is_object(), "an object"),
                "tensors" => {
                    (value.as_object().is_some_and(|named| named.values().all(Json::is_string)), "an object of strings")
                }
                "shape" => {
                    let size = |d: &Json| d.as_u64().is_some_and(|d| d < LIMIT);
                    (value.as_array().is_some_and(|list| list.iter().all(size)), "a list of sizes below 2³¹")
                }
                _ => (false, "no field of a node"),
            };
            if !holds {
                return Err(wrong(format!("{key:?} must be {what}")));
            }
        }
        for (key, value) in node["attrs"].as_object().into_iter().flatten() {
            // A mean's are a list.
            let list = key == "dims" && node["op"] == "mean";
            let kind = match ATTRIBUTES.iter().find(|(name, _)| name == key) {
                Some(_) if list => Kind::Integers,
                Some((_, kind)) => *kind,
                // Operations read what they know, and refuse what they cannot run.
                None => continue,
            };
            if !kind.holds(value) {
                return Err(wrong(format!("attribute {key:?} must be {}", kind.name())));
            }
        }
        check_ranges(node).map_err(wrong)?;
    }
    Ok(())
}

/// Attributes that are never below a number, whoever runs the operation.
fn check_ranges(node: &Json) -> Result<(), String> {
    let attrs = &node["attrs"];
    for (key, least) in [
        ("kernel", 1),
        ("stride", 1),
        ("dilation", 1),
        ("padding", 0),
        ("size", 0),
        ("fixed", 0),
        ("groups", 1),
        ("out_groups", 1),
        ("channels", 1),
        ("channel_dim", 0),
        ("trailing", 0),
    ] {
        let mut numbers = match &attrs[key] {
            Json::Array(list) => list.iter().filter_map(Json::as_i64).collect(),
            other => other.as_i64().into_iter().collect::<Vec<_>>(),
        }
        .into_iter();
        if numbers.any(|n| n < least) {
            return Err(format!("attribute {key:?} must be at least {least}, got {}", attrs[key]));
        }
    }
    let layout = attrs["layout"].as_str().unwrap_or("any");
    if !["any", "contiguous", "channels_last"].contains(&layout) {
        return Err(format!("unknown layout {layout:?}"));
    }
    if node["op"] == "input" {
        let rank = node["shape"].as_array().map_or(0, Vec::len) as u64;
        let outside = attrs["fixed"].as_array().is_some_and(|list| list.iter().any(|d| d.as_u64() >= Some(rank)));
        if outside || attrs["channel_dim"].as_u64().is_some_and(|dim| dim >= rank.max(1)) {
            return Err("a dimension of the input is out of range".into());
        }
    }
    Ok(())
}
