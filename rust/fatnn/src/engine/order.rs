//! The memory order of each value. It is decided when a network is compiled, from what its
//! operations ask for.
//!
//! If an operation asks for a value in the other order, a [`Reorder`] node is inserted. All readers
//! that ask for that order share it.

use std::collections::HashMap;

use super::network::NetNode;
use super::ops::shape::Reorder;
use super::value::{Order, OrderAndRank};
use crate::dtype::ValueType;
use crate::error::Result;
use crate::graph::Graph;
use crate::memory;

/// Nodes, including the inserted [`Reorder`] nodes.
pub(super) struct OrderedNodes {
    pub nodes: Vec<NetNode>,
    /// The memory order of each input of the network.
    pub inputs: Vec<Order>,
    /// Number of values, including outputs of [`Reorder`] nodes.
    pub values: usize,
}

/// Decides the order of every value and inserts [`Reorder`] nodes.
pub(super) fn assign(
    graph: &Graph,
    nodes: Vec<NetNode>,
    types: &[ValueType],
) -> Result<OrderedNodes> {
    let ordered = |value: usize| OrderAndRank {
        order: Order::RowMajor,
        rank: graph.nodes[value].shape.len(),
    };
    let mut values: Vec<OrderAndRank> = (0..graph.nodes.len()).map(ordered).collect();
    let inputs: Vec<Order> = (0..graph.input_count())
        .map(|value| match types[value] {
            ValueType::F32 => wanted_of_input(value, values[value].rank, &nodes, graph),
            // Integers and masks are never images.
            _ if values[value].rank == 2 => Order::ChannelsLast,
            _ => Order::RowMajor,
        })
        .collect();
    for (value, &order) in values.iter_mut().zip(&inputs) {
        value.order = order;
    }
    let mut all_nodes = memory::reserved("nodes of the network", nodes.len())?;
    let mut reordered: HashMap<usize, usize> = HashMap::new();
    for mut node in nodes {
        let read: Vec<OrderAndRank> = node.inputs.iter().map(|&value| values[value]).collect();
        let (wanted, order) = node.operation.orders(&read);
        for (input, wanted) in node.inputs.iter_mut().zip(wanted) {
            let from = values[*input];
            if from.rank == 2 || from.order == wanted {
                continue;
            }
            let value = *input;
            *input = match reordered.get(&value) {
                Some(&other) => other,
                None => {
                    let output = values.len();
                    values.push(OrderAndRank { order: wanted, ..from });
                    reordered.insert(value, output);
                    let name = graph.nodes.get(value).map_or("", |node| node.name.as_str());
                    all_nodes.push(NetNode {
                        name: format!("{name} (reordered)"),
                        label: node.label.clone(),
                        operation: std::sync::Arc::new(Reorder(wanted)),
                        inputs: vec![value], // small: one
                        output,
                        int8: None,
                        quantizer: None,
                    });
                    output
                }
            };
        }
        for value in node.written() {
            values[value].order = order;
        }
        all_nodes.push(node);
    }
    Ok(OrderedNodes { nodes: all_nodes, inputs, values: values.len() })
}

/// The order for an input of the network. Readers that accept only one order decide, channels last
/// first. Otherwise rank-4 inputs are channels last and all others row-major.
fn wanted_of_input(value: usize, rank: usize, nodes: &[NetNode], graph: &Graph) -> Order {
    if rank == 2 {
        return Order::ChannelsLast;
    }
    if !(3..=4).contains(&rank) {
        return Order::RowMajor;
    }
    let mut insist = [false; 2];
    for node in nodes.iter().filter(|node| node.inputs.contains(&value)) {
        let wants = |order: Order| {
            let at = |&input: &usize| OrderAndRank { order, rank: graph.nodes[input].shape.len() };
            let (wanted, _) =
                node.operation.orders(&node.inputs.iter().map(at).collect::<Vec<_>>());
            node.inputs
                .iter()
                .zip(wanted)
                .filter(|(input, _)| **input == value)
                .map(|(_, order)| order)
                .next()
        };
        let (last, rows) = (wants(Order::ChannelsLast), wants(Order::RowMajor));
        if last == rows {
            insist[usize::from(last == Some(Order::RowMajor))] = true;
        }
    }
    match insist {
        [true, _] => Order::ChannelsLast,
        [false, true] => Order::RowMajor,
        _ if rank == 4 => Order::ChannelsLast,
        _ => Order::RowMajor,
    }
}
