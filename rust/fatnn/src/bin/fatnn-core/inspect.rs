//! `fatnn-core inspect`.

use std::path::Path;

use fatnn::Error;
use fatnn::graph::op::Op;
use fatnn::graph::ops::Products;
use fatnn::graph::report::{Row, rows};
use fatnn::graph::{Graph, Source};
use fatnn::net::{self, Network};
use serde_json::{Value as Json, json};

use crate::{Failure, table};

/// A table or JSON. If only PyTorch can run the network, the output says why.
pub(crate) fn inspect(file: &Path, as_json: bool) -> Result<String, Failure> {
    let (graph, tensors) = net::load(file)?;
    let missing = match Network::new(&graph, &tensors) {
        Ok(_) => None,
        Err(Error::Unsupported { what }) => Some(what),
        // A network beyond the limits can still be described.
        Err(limit @ Error::Limit { .. }) => Some(limit.to_string()),
        Err(Error::Graph { why }) => return Err(Error::Format { path: file.into(), why }.into()),
        Err(other) => return Err(other.into()),
    };
    let graph = Graph::parse(&graph, Source::Description)?;
    let rows = rows(&graph, &tensors);
    let file_bytes =
        std::fs::metadata(file).map_err(|source| Error::Io { path: file.into(), source })?.len();
    let sum = |value: fn(&Row) -> u64, kind: Option<Products>| {
        rows.iter()
            .filter(|row| kind.is_none_or(|k| row.products == k))
            .map(value)
            .fold(0, u64::saturating_add)
    };
    let layers = |kind: Products| rows.iter().filter(|row| row.products == kind).count();
    let (ternary_layers, int8_layers) = (layers(Products::Codes), layers(Products::Int8));
    let [macs_ternary, macs_int8, macs_float] = [Products::Codes, Products::Int8, Products::Float]
        .map(|kind| sum(|row| row.macs, Some(kind)));
    let (ternary_bytes, int8_bytes) =
        (sum(|row| row.code_bytes, None), sum(|row| row.int8_bytes, None));
    if as_json {
        let row = |row: &Row| {
            json!({
                "node": row.node,
                "layer": row.layer,
                "op": row.op,
                "shape": row.shape,
                "macs": row.macs,
                "ternary_bytes": row.code_bytes,
                "int8_bytes": row.int8_bytes,
                "note": row.note,
            })
        };
        let inputs = graph.nodes.iter().filter(|node| matches!(node.op, Op::Input(_)));
        let inputs: Vec<Json> = inputs.map(|n| json!({"name": n.name, "shape": n.shape})).collect();
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
            let (macs, bytes) =
                (table::count(row.macs), table::count(row.code_bytes + row.int8_bytes));
            [
                row.layer.clone(),
                row.op.clone(),
                table::shape(&row.shape),
                macs,
                bytes,
                row.note.clone(),
            ]
        })
        .collect();
    let mut text = table::render(["node", "op", "shape", "MACs", "bytes", "note"], &cells, &[3, 4]);
    text += &format!(
        "\n{ternary_layers} ternary layers: {} of {} MACs; \
         ternary weights take {} of the file's {} bytes",
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
