//! Turns JSON into a [`Graph`]. The types of all fields are checked before nodes are built.
//!
//! ```text
//! {"nodes": [{"name": "conv1", "op": "conv_codes", "inputs": ["x_codes"],
//!             "layer": "layer1.0.conv1", "shape": [1, 64, 56, 56],
//!             "dtype": {"codes": "ternary", "channels": 64, "groups": 1},
//!             "attrs": {"stride": [1, 1], "act": "half", ...},
//!             "tensors": {"weight": "conv1.codes"}, "note": "..."}, ...],
//!  "outputs": {"value": "fc"}, "notes": ["..."], "arguments": [{...}, ...],
//!  "strides": {"fc.weight": [1, 10]}}
//! ```
//!
//! `dtype` is the type of the node's value: a name such as `"float32"`, or an object for codes. An
//! input may have any PyTorch type.
//!
//! `strides` has the strides, in elements, of the tensors that are not row-major in the model, as
//! they are in the file. PyTorch adds in another order there. The engine does not read them.
//!
//! `outputs` is a value, `{"list": [...]}`, `{"tuple": [...]}`, `{"dict": {...}}`,
//! `{"constant": ...}`, `{"ordered_dict": [[key, ...], ...]}` or
//! `{"dict_items": [[key, ...], ...]}`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use super::attrs::{Attr, AttrType, Attrs, LIMIT, MIN_VALUES, Presence};
use super::graph::{Graph, Layout, Node, Outputs, Source, ValueId};
use super::op::Op;
use super::ops::{OPS, OpInfo};
use super::tensor::MAX_RANK;
use super::{BuildError, types};
use crate::error::{Error, Result};

const GRAPH_FIELDS: [&str; 5] = ["nodes", "outputs", "notes", "arguments", "strides"];
const NODE_FIELDS: [&str; 9] =
    ["name", "op", "inputs", "attrs", "tensors", "layer", "dtype", "shape", "note"];

fn invalid(why: impl Into<String>) -> Error {
    Error::Graph { why: why.into() }
}

pub(super) fn graph(json: &Json, source: Source) -> Result<Graph> {
    let graph = json.as_object().ok_or_else(|| invalid("the graph is no object"))?;
    if let Some(key) = graph.keys().find(|key| !GRAPH_FIELDS.contains(&key.as_str())) {
        let keys: Vec<_> = graph.keys().collect();
        return Err(invalid(format!(
            "the graph holds the unknown field {key:?}: it must hold nodes, outputs, notes; \
             got {keys:?}"
        )));
    }
    let file = source == Source::File;
    if file && let Some(key) = GRAPH_FIELDS[..3].iter().find(|key| !graph.contains_key(**key)) {
        return Err(invalid(format!(
            "the graph must hold nodes, outputs, notes; {key:?} is missing"
        )));
    }
    let notes = match graph.get("notes") {
        None => Vec::new(),
        Some(notes) => strings(notes).ok_or_else(|| invalid("notes must be a list of strings"))?,
    };
    let arguments = graph.get("arguments");
    if arguments
        .is_some_and(|list| !list.as_array().is_some_and(|list| list.iter().all(Json::is_object)))
    {
        return Err(invalid("arguments must be a list of objects"));
    }
    let strides = tensor_strides(graph.get("strides"))?;
    let list = graph
        .get("nodes")
        .and_then(Json::as_array)
        .ok_or_else(|| invalid("nodes must be a list"))?;
    if file && list.is_empty() {
        return Err(invalid("nodes must be a list that is not empty"));
    }
    let mut reader = Reader { names: HashMap::new(), nodes: Vec::new(), source };
    for (position, node) in list.iter().enumerate() {
        let wrong = |why: String| invalid(format!("node {position} ({}): {why}", node["name"]));
        check_fields(node, source).map_err(wrong)?;
    }
    let (inputs, others): (Vec<_>, Vec<_>) =
        list.iter().enumerate().partition(|(_, node)| node["op"] == "input");
    for (position, node) in inputs.into_iter().chain(others) {
        reader.node(position, node)?;
    }
    let outputs = reader.outputs(&json["outputs"])?;
    Ok(Graph { nodes: reader.nodes, outputs, notes, arguments: arguments.cloned(), strides })
}

/// Strides of tensors by name.
fn tensor_strides(json: Option<&Json>) -> Result<BTreeMap<String, Vec<u64>>> {
    let wrong = || invalid("strides must be an object of lists of integers that are not negative");
    let stride = |item: &Json| item.as_i64().and_then(|n| n.try_into().ok()).ok_or_else(wrong);
    let Some(json) = json else { return Ok(BTreeMap::new()) };
    let named = json.as_object().ok_or_else(wrong)?;
    named
        .iter()
        .map(|(name, list)| {
            let list = list.as_array().ok_or_else(wrong)?;
            Ok((name.clone(), list.iter().map(stride).collect::<Result<_>>()?))
        })
        .collect()
}

/// The items of a JSON list of strings; `None` if the value is anything else.
fn strings(list: &Json) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Checks the types of a node's fields and attributes.
fn check_fields(node: &Json, source: Source) -> Result<(), String> {
    let fields = node.as_object().ok_or("it is no object")?;
    for (key, value) in fields {
        let list_of_strings =
            || value.as_array().is_some_and(|list| list.iter().all(Json::is_string));
        let (holds, what) = match key.as_str() {
            "name" => {
                (value.as_str().is_some_and(|name| !name.is_empty()), "a string that is not empty")
            }
            "op" | "layer" | "note" => (value.is_string(), "a string"),
            "inputs" => (list_of_strings(), "a list of strings"),
            "attrs" => (value.is_object(), "an object"),
            "tensors" => {
                let named = value.as_object();
                (
                    named.is_some_and(|named| named.values().all(Json::is_string)),
                    "an object of strings",
                )
            }
            "dtype" => {
                types::from_json(value)?;
                (true, "")
            }
            "shape" => {
                let size = |d: &Json| d.as_u64().is_some_and(|d| d < LIMIT);
                (
                    value.as_array().is_some_and(|list| list.iter().all(size)),
                    "a list of sizes below 2³¹",
                )
            }
            _ => return Err(format!("unknown fields {:?}", [key])),
        };
        if !holds {
            return Err(format!("{key:?} must be {what}"));
        }
    }
    let wanted = NODE_FIELDS
        .iter()
        .filter(|key| source == Source::File || ["name", "op", "shape"].contains(*key));
    if let Some(key) = wanted.copied().find(|key| !fields.contains_key(*key)) {
        return Err(format!("{key:?} must be there"));
    }
    let info = node["op"].as_str().and_then(OpInfo::named);
    let rank = node["shape"].as_array().map_or(0, Vec::len);
    if source == Source::File && info.is_some() && rank > MAX_RANK {
        return Err(format!("\"shape\" must have at most {MAX_RANK} dimensions, got {rank}"));
    }
    let none = Map::new();
    check_attrs(node["attrs"].as_object().unwrap_or(&none), info, source, rank)
}

/// Finds the attribute `name`: that of the operation if it has one, otherwise that of any
/// operation, preferably one whose type accepts the value.
fn attr(info: Option<&OpInfo>, name: &str, value: &Json) -> Option<&'static Attr> {
    let mut others = OPS.iter().filter_map(|row| row.attr(name));
    info.and_then(|info| info.attr(name))
        .or_else(|| others.clone().find(|attr| attr.kind.accepts(value)))
        .or_else(|| others.next())
}

/// Checks the names, types and minimum values of attributes.
fn check_attrs(
    attrs: &Map<String, Json>,
    info: Option<&OpInfo>,
    source: Source,
    rank: usize,
) -> Result<(), String> {
    if let Some(info) = info.filter(|_| source == Source::File) {
        let unknown = attrs.keys().any(|key| info.attr(key).is_none());
        let missing = info
            .attrs
            .iter()
            .any(|attr| attr.presence != Presence::Optional && !attrs.contains_key(attr.name));
        if unknown || missing {
            let wanted: Vec<_> = info.attrs.iter().map(|attr| attr.name).collect();
            let got: Vec<_> = attrs.keys().collect();
            return Err(format!("expected the attributes {wanted:?}, got {got:?}"));
        }
    }
    for (key, value) in attrs {
        // No operation has this attribute, so none reads it.
        let Some(attr) = attr(info, key, value) else { continue };
        if !attr.kind.accepts(value) {
            return Err(format!(
                "attribute {key:?} must be {} ({}), got {value}",
                attr.kind.name(),
                attr.kind.description()
            ));
        }
        let numbers: &[Json] = match (attr.kind, value) {
            (AttrType::Ints, Json::Array(list)) => list,
            (AttrType::Int, _) => std::slice::from_ref(value),
            _ => &[],
        };
        if let Some((_, min)) = MIN_VALUES.iter().find(|(name, _)| name == key)
            && numbers.iter().any(|n| n.as_i64().is_some_and(|n| n < *min))
        {
            return Err(format!("attribute {key:?} must be at least {min}, got {value}"));
        }
    }
    if source == Source::File {
        if attrs.get("trailing").and_then(Json::as_u64).is_some_and(|n| n > MAX_RANK as u64) {
            return Err(format!("attribute \"trailing\" must be at most {MAX_RANK}"));
        }
        if attrs.get("eps").and_then(Json::as_f64).is_some_and(|eps| eps < 0.0) {
            return Err("attribute \"eps\" must not be negative".into());
        }
    }
    if info.is_some_and(|info| info.name == "input") {
        let rank = rank as u64;
        let fixed = attrs.get("fixed").and_then(Json::as_array).into_iter().flatten();
        if fixed.filter_map(Json::as_u64).any(|d| d >= rank)
            || attrs.get("channel_dim").and_then(Json::as_u64).is_some_and(|dim| dim >= rank.max(1))
        {
            return Err("fixed or channel_dim is out of range for the input's dimensions".into());
        }
    }
    layout(attrs).map(|_| ())
}

fn layout(attrs: &Map<String, Json>) -> Result<Layout, String> {
    layout_of(attrs.get("layout").and_then(Json::as_str))
}

fn layout_of(name: Option<&str>) -> Result<Layout, String> {
    match name {
        None | Some("any") => Ok(Layout::Any),
        Some("contiguous") => Ok(Layout::Contiguous),
        Some("channels_last") => Ok(Layout::ChannelsLast),
        // One layout per input: only PyTorch uses it, so the names are only checked.
        Some(several) if several.contains('|') => {
            several.split('|').try_for_each(|one| layout_of(Some(one)).map(|_| ()))?;
            Ok(Layout::Any)
        }
        Some(other) => {
            order(other).map(Layout::Order).ok_or_else(|| format!("unknown layout {other:?}"))
        }
    }
}

/// The dimensions of a layout such as `order:0,2,1`; `None` unless each is listed once.
fn order(text: &str) -> Option<Vec<usize>> {
    let dims: Vec<usize> = text
        .strip_prefix("order:")?
        .split(',')
        .map(|dim| dim.parse().ok())
        .collect::<Option<_>>()?;
    let listed = |dim| dims.contains(&dim);
    (dims.len() <= MAX_RANK && (0..dims.len()).all(listed)).then_some(dims)
}

/// Builds nodes from JSON and remembers their names.
struct Reader {
    names: HashMap<String, ValueId>,
    nodes: Vec<Node>,
    source: Source,
}

impl Reader {
    fn node(&mut self, position: usize, json: &Json) -> Result<()> {
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let (name, op, layer) = (text("name"), text("op"), text("layer"));
        let wrong = |why: String| {
            let layer = if layer.is_empty() { String::new() } else { format!(", layer {layer:?}") };
            invalid(format!("node {name:?} ({op}{layer}): {why}"))
        };
        let none = Map::new();
        let attrs = json["attrs"].as_object().unwrap_or(&none);
        let info = OpInfo::named(&op).filter(|row| row.in_files || self.source != Source::File);
        let built = match info {
            None => Err(BuildError::Unsupported("this release does not have it".into())),
            Some(info) => (info.build)(&Attrs(attrs)),
        };
        let built = match built {
            Ok(built) => built,
            Err(BuildError::Unsupported(why)) => match (self.source, info) {
                (Source::File, None) => return Err(wrong(format!("unknown op {op:?}"))),
                (Source::File, Some(_)) => return Err(wrong(format!("unknown {why}"))),
                _ => Op::Other { name: op.clone(), why },
            },
            Err(BuildError::Invalid(why)) => return Err(wrong(why)),
            Err(BuildError::Failed(error)) => return Err(error),
        };
        let mut inputs = Vec::new();
        for input in strings(&json["inputs"]).unwrap_or_default() {
            // `nodes` has inputs first, but in a file they too must come before their readers.
            let before = |value: &&ValueId| {
                self.source != Source::File || self.nodes[**value].position < position
            };
            let known = self.names.get(&input).filter(before);
            inputs.push(
                *known.ok_or_else(|| {
                    wrong(format!("reads {input:?}, which no node before it makes"))
                })?,
            );
        }
        let named = json["tensors"].as_object().into_iter().flatten();
        let tensors: BTreeMap<String, String> = named
            .filter_map(|(role, name)| Some((role.clone(), name.as_str()?.to_owned())))
            .collect();
        let sizes = json["shape"].as_array().into_iter().flatten().filter_map(Json::as_u64);
        let shape = sizes.map(|size| size as usize).collect();
        let layout = layout(attrs).map_err(wrong)?;
        let dtype = json.get("dtype").map(types::from_json).transpose().map_err(wrong)?;
        if self.names.insert(name.clone(), self.nodes.len()).is_some() {
            return Err(wrong("its name is not unique".into()));
        }
        let info = if matches!(built, Op::Other { .. }) { None } else { info };
        let note = text("note");
        self.nodes.push(Node {
            name,
            op: built,
            info,
            inputs,
            tensors,
            layer,
            dtype,
            shape,
            note,
            layout,
            position,
        });
        Ok(())
    }

    fn outputs(&self, json: &Json) -> Result<Outputs> {
        let shown = || {
            let text = json.to_string();
            if text.chars().count() > 200 {
                text.chars().take(200).chain("...".chars()).collect()
            } else {
                text
            }
        };
        let wrong = || invalid(format!("outputs: unknown structure {}", shown()));
        let object = json.as_object().filter(|o| o.len() == 1).ok_or_else(wrong)?;
        let (kind, inner) = object.iter().next().ok_or_else(wrong)?;
        let all = |items: &[Json]| {
            items.iter().map(|item| self.outputs(item)).collect::<Result<Vec<_>>>()
        };
        let pairs = |items: &[Json]| {
            let pair = |item: &Json| match item.as_array().map(Vec::as_slice) {
                Some([Json::String(key), item]) => Ok((key.clone(), self.outputs(item)?)),
                _ => {
                    Err(invalid(format!("outputs: {kind:?} must hold pairs of a key and an item")))
                }
            };
            items.iter().map(pair).collect::<Result<Vec<_>>>()
        };
        Ok(match (kind.as_str(), inner) {
            ("value", Json::String(name)) => match self.names.get(name) {
                Some(value) => Outputs::Value(*value),
                None => return Err(invalid(format!("outputs: no node is named {name:?}"))),
            },
            ("constant", value) => {
                if self.source == Source::File && (value.is_array() || value.is_object()) {
                    return Err(invalid("outputs: a constant must not be a list or an object"));
                }
                Outputs::Constant(value.clone())
            }
            ("list", Json::Array(items)) => Outputs::List(all(items)?),
            ("tuple", Json::Array(items)) => Outputs::Tuple(all(items)?),
            ("dict", Json::Object(items)) => {
                let item = |(key, item): (&String, &Json)| Ok((key.clone(), self.outputs(item)?));
                Outputs::Dict(items.iter().map(item).collect::<Result<Vec<_>>>()?)
            }
            ("dict_items", Json::Array(items)) => Outputs::DictItems(pairs(items)?),
            ("ordered_dict", Json::Array(items)) => Outputs::OrderedDict(pairs(items)?),
            _ => return Err(wrong()),
        })
    }
}

/// Builds a single operation from its name and attributes.
///
/// # Errors
/// [`Error::Graph`] if the operation is unknown or an attribute is missing or wrong.
pub(super) fn op(name: &str, attrs: &Map<String, Json>) -> Result<(Op, &'static OpInfo)> {
    let info = OpInfo::named(name).ok_or_else(|| invalid(format!("unknown op {name:?}")))?;
    match (info.build)(&Attrs(attrs)) {
        Ok(op) => Ok((op, info)),
        Err(BuildError::Invalid(why) | BuildError::Unsupported(why)) => {
            Err(invalid(format!("{name}: {why}")))
        }
        Err(BuildError::Failed(error)) => Err(error),
    }
}
