//! Inserts a [`Dequantize`] node where an operation cannot read floats that are stored as bytes.
//! All such readers of a value share it.

use std::collections::HashMap;
use std::sync::Arc;

use super::network::NetNode;
use super::ops::int8_values::Dequantize;
use crate::error::Result;
use crate::memory;

/// Inserts the nodes. Returns all nodes, and the number of values including outputs of new nodes.
pub(super) fn insert(nodes: Vec<NetNode>, mut values: usize) -> Result<(Vec<NetNode>, usize)> {
    // Every value that is stored as bytes → that value as floats, if there is a node for it.
    let mut floats: HashMap<usize, Option<usize>> = HashMap::new();
    let mut all = memory::reserved("nodes of the network", nodes.len())?;
    for mut node in nodes {
        for i in 0..node.inputs.len() {
            let value = node.inputs[i];
            let Some(made) = floats.get_mut(&value) else { continue };
            if node.operation.reads_int8(i) {
                continue;
            }
            node.inputs[i] = *made.get_or_insert_with(|| {
                values += 1;
                all.push(NetNode {
                    name: format!("{} (as floats)", node.name),
                    label: node.label.clone(),
                    operation: Arc::new(Dequantize),
                    inputs: vec![value], // small: one
                    output: values - 1,
                    int8: None,
                    quantizer: None,
                });
                values - 1
            });
        }
        if node.int8.is_some() {
            floats.insert(node.output, None);
        }
        all.push(node);
    }
    Ok((all, values))
}
