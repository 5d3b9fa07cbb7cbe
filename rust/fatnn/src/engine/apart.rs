//! Whether a batch's results are those of its images, one after the other, so that images may run
//! one by one.

use crate::graph::op::{Norm, NormOver};
use crate::graph::{Graph, Node, Op};

/// What the first dimension of a value is.
#[derive(Clone, Copy, PartialEq)]
enum First {
    /// The batch: as many equal parts as there are images.
    Batch,
    /// The same in every run.
    Constant,
}

/// Whether every value has the batch first, or does not depend on it.
pub(super) fn images_apart(graph: &Graph) -> bool {
    let mut firsts: Vec<First> = Vec::new();
    for node in &graph.nodes {
        let read: Vec<(First, &Node)> =
            node.inputs.iter().map(|&v| (firsts[v], &graph.nodes[v])).collect();
        let input = matches!(node.op, Op::Input(_));
        if !input && read.iter().all(|(first, _)| *first == First::Constant) {
            firsts.push(First::Constant);
            continue;
        }
        if node.shape.is_empty() || !keeps(node, &read) {
            return false;
        }
        firsts.push(First::Batch);
    }
    graph.outputs.values().iter().all(|&value| firsts[value] == First::Batch)
}

/// Whether a node's result has the batch first where what it reads has.
fn keeps(node: &Node, read: &[(First, &Node)]) -> bool {
    let rank = read.first().map_or(0, |(_, from)| from.shape.len());
    let not_first = |dim: i64| if dim < 0 { dim + rank as i64 > 0 } else { dim > 0 };
    let elements = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
    // Every other value is the same for all images, or has the batch first as well.
    let beside = |(first, from): &(First, &Node)| match first {
        First::Batch => from.shape.len() == node.shape.len(),
        First::Constant => from.shape.len() < node.shape.len() || from.shape.first() == Some(&1),
    };
    match &node.op {
        Op::Flatten { start, .. } => not_first(*start),
        Op::Reshape { shape } => {
            let (from, made) = (elements(&read[0].1.shape), elements(&node.shape));
            matches!(shape.first(), Some(0 | -1)) && made > 0 && from.is_multiple_of(made)
        }
        Op::Squeeze { dim } => not_first(*dim),
        Op::Unsqueeze { dim } => {
            if *dim < 0 {
                dim + rank as i64 + 1 > 0
            } else {
                *dim > 0
            }
        }
        Op::ReshapeLike => read.iter().all(|(first, _)| *first == First::Batch),
        Op::Permute { dims } => dims.first() == Some(&0),
        Op::Slice(slice) => not_first(slice.dim),
        Op::Cat { dim } => not_first(*dim) && read.iter().all(|(first, _)| *first == First::Batch),
        Op::Expand { shape } => match read[0].0 {
            First::Batch => shape.len() == rank && shape.first() == Some(&-1),
            First::Constant => shape.first() == Some(&-2),
        },
        Op::Reduce { dims, .. } => !dims.is_empty() && dims.iter().all(|&dim| not_first(dim)),
        Op::Softmax { dim, .. } => not_first(*dim),
        Op::Norm(Norm { over: NormOver::Last(dims), .. }) => *dims < rank,
        Op::Matmul => rank > 2 && read.iter().all(beside),
        Op::Attention { .. } => rank > 2 && read.iter().all(beside),
        Op::Multihead { batch_first, .. } => {
            *batch_first && read.iter().all(|(first, _)| *first == First::Batch)
        }
        Op::Linear | Op::LinearInt8 => rank > 1,
        Op::Cumsum { dim } => not_first(*dim),
        Op::Binary(_) | Op::Compare(_) | Op::Logical(_) | Op::Where => read.iter().all(beside),
        _ => read.iter().all(|(first, _)| *first == First::Batch),
    }
}
