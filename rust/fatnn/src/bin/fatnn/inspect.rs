//! `fatnn inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use fatnn::Error;
use fatnn::codec::{trits, two_bit};
use fatnn::net::{self, Network, Tensor};
use serde_json::{Value as Json, json};

use crate::{Failure, table};

/// A node of the file's graph, as people want to see it.
pub(crate) struct Row {
    /// In the graph.
    pub node: String,
    /// The layer it came from, else the node.
    pub layer: String,
    pub op: String,
    pub shape: Vec<u64>,
    macs: u64,
    ternary_bytes: u64,
    int8_bytes: u64,
    note: String,
}

/// What a layer multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ternary,
    Int8,
    Float,
}

impl Row {
    fn kind(&self) -> Kind {
        match self.op.as_str() {
            "conv_codes" | "conv_float" => Kind::Ternary,
            op if op.ends_with("_int8") => Kind::Int8,
            _ => Kind::Float,
        }
    }
}

/// Every node of a graph but its inputs; empty where the graph is not one of ours.
pub(crate) fn rows(graph: &Json, tensors: &BTreeMap<String, Tensor>) -> Vec<Row> {
    let nodes = graph["nodes"].as_array().into_iter().flatten();
    nodes.filter(|node| node["op"] != "input").map(|node| row(node, tensors)).collect()
}

fn row(node: &Json, tensors: &BTreeMap<String, Tensor>) -> Row {
    let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let (name, op, layer) = (text("name"), text("op"), text("layer"));
    let shape: Vec<u64> = node["shape"].as_array().into_iter().flatten().filter_map(Json::as_u64).collect();
    let weight = node["tensors"]["weight"].as_str().and_then(|name| tensors.get(name));
    let product = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(1u64, u64::saturating_mul);
    let macs = match weight {
        Some(weight)
            if matches!(op.trim_end_matches("_int8"), "conv_codes" | "conv_float" | "conv1d" | "conv2d" | "linear") =>
        {
            product(&mut shape.iter().copied().chain(weight.shape().iter().skip(1).map(|&d| d as u64)))
        }
        _ => 0,
    };
    let ternary_bytes = match weight {
        Some(Tensor::Ternary(_, codes)) => trits::encoded_len(codes.len()) as u64,
        Some(Tensor::TwoBit(_, weights)) => two_bit::encoded_len(weights.len()) as u64,
        _ => 0,
    };
    let int8_bytes = match weight {
        Some(Tensor::I8(_, values)) => values.len() as u64,
        _ => 0,
    };
    let layer = if layer.is_empty() { name.clone() } else { layer };
    Row { node: name, layer, op, shape, macs, ternary_bytes, int8_bytes, note: text("note") }
}

/// The table, or JSON. A network that only PyTorch can run is shown too, with the reason.
pub(crate) fn inspect(file: &Path, as_json: bool) -> Result<String, Failure> {
    let (graph, tensors) = net::load(file)?;
    let missing = match Network::new(&graph, &tensors) {
        Ok(_) => None,
        Err(Error::Unsupported { what }) => Some(what),
        // It can be described all the same.
        Err(limit @ Error::Limit { .. }) => Some(limit.to_string()),
        Err(Error::Graph { why }) => return Err(Error::Format { path: file.into(), why }.into()),
        Err(other) => return Err(other.into()),
    };
    let graph: Json = serde_json::from_str(&graph)?;
    let rows = rows(&graph, &tensors);
    let file_bytes = std::fs::metadata(file).map_err(|source| Error::Io { path: file.into(), source })?.len();
    let sum = |value: fn(&Row) -> u64, kind: Option<Kind>| {
        rows.iter().filter(|row| kind.is_none_or(|k| row.kind() == k)).map(value).fold(0, u64::saturating_add)
    };
    let layers = |kind: Kind| rows.iter().filter(|row| row.kind() == kind).count();
    let (ternary_layers, int8_layers) = (layers(Kind::Ternary), layers(Kind::Int8));
    let [macs_ternary, macs_int8, macs_float] =
        [Kind::Ternary, Kind::Int8, Kind::Float].map(|kind| sum(|row| row.macs, Some(kind)));
    let (ternary_bytes, int8_bytes) = (sum(|row| row.ternary_bytes, None), sum(|row| row.int8_bytes, None));
    if as_json {
        let row = |row: &Row| {
            json!({"node": row.node, "layer": row.layer, "op": row.op, "shape": row.shape, "macs": row.macs,
                "ternary_bytes": row.ternary_bytes, "int8_bytes": row.int8_bytes, "note": row.note})
        };
        let inputs: Vec<&Json> =
            graph["nodes"].as_array().into_iter().flatten().filter(|n| n["op"] == "input").collect();
        let inputs: Vec<Json> = inputs.iter().map(|n| json!({"name": n["name"], "shape": n["shape"]})).collect();
        return Ok(serde_json::to_string_pretty(&json!({
            "file_bytes": file_bytes,
            "ternary_layers": ternary_layers,
            "macs_ternary": macs_ternary,
            "int8_layers": int8_layers,
            "macs_int8": macs_int8,
            "macs_float": macs_float,
            "ternary_bytes": ternary_bytes,
            "int8_bytes": int8_bytes,
            "runs_without_torch": missing.is_none(),
            "needs_torch_for": missing,
            "inputs": inputs,
            "nodes": rows.iter().map(row).collect::<Vec<_>>(),
        }))?);
    }
    let cells: Vec<[String; 6]> = rows
        .iter()
        .map(|row| {
            let (macs, bytes) = (table::count(row.macs), table::count(row.ternary_bytes + row.int8_bytes));
            [row.layer.clone(), row.op.clone(), table::shape(&row.shape), macs, bytes, row.note.clone()]
        })
        .collect();
    let mut text = table::render(["node", "op", "shape", "MACs", "bytes", "note"], &cells, &[3, 4]);
    text += &format!(
        "\n{ternary_layers} ternary layers: {} of {} MACs; ternary weights take {} of the file's {} bytes",
        table::commas(macs_ternary),
        table::commas(macs_ternary.saturating_add(macs_int8).saturating_add(macs_float)),
        table::commas(ternary_bytes),
        table::commas(file_bytes)
    );
    if int8_layers > 0 {
        text += &format!(
            "\n{int8_layers} int8 layers: {} MACs; int8 weights take {} bytes",
            table::commas(macs_int8),
            table::commas(int8_bytes)
        );
    }
    if let Some(what) = missing {
        text += &format!("\nneeds PyTorch for: {what}");
    }
    Ok(text)
}
