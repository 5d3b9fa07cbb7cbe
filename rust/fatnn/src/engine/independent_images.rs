//! Checks whether the images of a batch are independent. If so, they may run one by one, and the
//! batch's result is the concatenation of theirs.

use crate::graph::op::{Norm, NormOver};
use crate::graph::{Graph, Node, Op};

/// What the first dimension of a value means.
#[derive(Clone, Copy, PartialEq)]
enum FirstDim {
    /// The batch: one equal part per image.
    Batch,
    /// The value does not depend on the inputs.
    Constant,
}

/// Whether the first dimension of every value is the batch, or the value is a constant.
pub(super) fn independent_images(graph: &Graph) -> bool {
    let mut firsts: Vec<FirstDim> = Vec::new();
    for node in &graph.nodes {
        let read: Vec<(FirstDim, &Node)> =
            node.inputs.iter().map(|&v| (firsts[v], &graph.nodes[v])).collect();
        let input = matches!(node.op, Op::Input(_));
        if !input && read.iter().all(|(first, _)| *first == FirstDim::Constant) {
            firsts.push(FirstDim::Constant);
            continue;
        }
        if node.shape.is_empty() || !keeps_batch_first(node, &read) {
            return false;
        }
        firsts.push(FirstDim::Batch);
    }
    graph.outputs.values().iter().all(|&value| firsts[value] == FirstDim::Batch)
}

/// Whether a node keeps the batch as the first dimension. `read` has its inputs, at least one of
/// which has the batch first.
fn keeps_batch_first(node: &Node, read: &[(FirstDim, &Node)]) -> bool {
    let rank = read.first().map_or(0, |(_, from)| from.shape.len());
    let not_first = |dim: i64| if dim < 0 { dim + rank as i64 > 0 } else { dim > 0 };
    let elements = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
    // An input fits if it has the batch first, or if it broadcasts to all images.
    let aligned_with_batch = |(first, from): &(FirstDim, &Node)| match first {
        FirstDim::Batch => from.shape.len() == node.shape.len(),
        FirstDim::Constant => from.shape.len() < node.shape.len() || from.shape.first() == Some(&1),
    };
    match &node.op {
        Op::Flatten { start, .. } => not_first(*start),
        Op::Reshape { shape } => {
            let (from, to) = (elements(&read[0].1.shape), elements(&node.shape));
            matches!(shape.first(), Some(0 | -1)) && to > 0 && from.is_multiple_of(to)
        }
        Op::Squeeze { dim } => not_first(*dim),
        Op::Unsqueeze { dim } => {
            if *dim < 0 {
                dim + rank as i64 + 1 > 0
            } else {
                *dim > 0
            }
        }
        Op::ReshapeLike => read.iter().all(|(first, _)| *first == FirstDim::Batch),
        Op::Permute { dims } => dims.first() == Some(&0),
        Op::Slice(slice) => not_first(slice.dim),
        Op::Flip { dim } => not_first(*dim),
        Op::IndexSelect { dim } => {
            not_first(*dim) && read[0].0 == FirstDim::Batch && read[1].0 == FirstDim::Constant
        }
        Op::Cat { dim } => {
            not_first(*dim) && read.iter().all(|(first, _)| *first == FirstDim::Batch)
        }
        Op::Expand { shape } => match read[0].0 {
            FirstDim::Batch => shape.len() == rank && shape.first() == Some(&-1),
            FirstDim::Constant => shape.first() == Some(&-2),
        },
        Op::Reduce { dims, .. } => !dims.is_empty() && dims.iter().all(|&dim| not_first(dim)),
        Op::Softmax { dim, .. } => not_first(*dim),
        Op::Norm(Norm { over: NormOver::Last(dims), .. }) => *dims < rank,
        Op::Matmul => rank > 2 && read.iter().all(aligned_with_batch),
        Op::Attention { .. } => rank > 2 && read.iter().all(aligned_with_batch),
        // A mask of the scores must be one for all images; one of the keys has the batch first.
        Op::Multihead { batch_first, masks, .. } => {
            *batch_first
                && read.iter().enumerate().all(|(i, (first, from))| match first {
                    FirstDim::Constant => masks.scores && i == 3 && from.shape.len() == 2,
                    FirstDim::Batch => !(masks.scores && i == 3),
                })
        }
        Op::Linear | Op::LinearInt8 => rank > 1,
        Op::Cumsum { dim } => not_first(*dim),
        Op::Binary(_) | Op::Compare(_) | Op::Logical(_) | Op::Where | Op::Addcmul { .. } => {
            read.iter().all(aligned_with_batch)
        }
        _ => read.iter().all(|(first, _)| *first == FirstDim::Batch),
    }
}
