//! Fuses an elementwise function into the producer of its input if nothing else reads that input.

use super::{FusedGraph, Outcome, Reason, feeds_depthwise, only_producer};
use crate::graph::op::Op;
use crate::scalar::Scalar;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let op = graph.op(node);
    let elementwise = |node: usize| graph.view(node).node.is_elementwise();
    let Some(source) = graph.input(node, 0).filter(|_| elementwise(node)) else {
        return Outcome::NoMatch;
    };
    let producer = match only_producer(graph, source) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    let takes = match graph.op(producer) {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::DepthToSpace(_)
        | Op::Linear
        | Op::ConvInt8(_)
        | Op::LinearInt8
        | Op::Binary(_) => true,
        // Its epilogue has a ReLU and no other function.
        Op::ConvFloat { .. } => *op == Op::Scalar(Scalar::Relu),
        // It runs in the convolution's epilogue instead (`fuse_int8`), or both run as a table on
        // the input of a depthwise convolution (`fuse_before`).
        Op::Scalar(Scalar::FakeQuantize(_)) => {
            !follows_ternary_conv(graph, producer) || feeds_depthwise(graph, node)
        }
        _ => elementwise(producer),
    };
    let takes = takes && one_channel_dim(graph, producer, node);
    let Some(producer_node) =
        graph.node_mut(producer).filter(|node| takes && node.max_pool.is_none())
    else {
        return Outcome::Refused(Reason::ProducerCannot);
    };
    producer_node.elementwise.push(node);
    graph.fuse_into_producer(node, producer);
    Outcome::Applied
}

/// Whether a node is the only reader of a ternary convolution to floats.
fn follows_ternary_conv(graph: &FusedGraph<'_>, node: usize) -> bool {
    let value = graph.input(node, 0).filter(|&value| only_producer(graph, value).is_ok());
    value.is_some_and(|value| matches!(graph.op(value), Op::ConvFloat { .. }))
}

/// Whether a function's channel dimension is the contiguous one in the producer's output.
fn one_channel_dim(graph: &FusedGraph<'_>, producer: usize, function: usize) -> bool {
    let dim_of = |node: usize| graph.view(node).node.channel_dim();
    let Some(dim) = dim_of(function) else { return true };
    match graph.op(producer) {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::DepthToSpace(_)
        | Op::ConvInt8(_)
        | Op::ConvFloat { .. } => dim == 1,
        Op::Linear | Op::LinearInt8 => dim + 1 == graph.view(producer).node.shape.len(),
        _ => {
            let fused = graph.node(producer).into_iter().flat_map(|node| &node.elementwise);
            fused.chain([&producer]).filter_map(|&node| dim_of(node)).all(|other| other == dim)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_elementwise";

    #[test]
    fn functions_run_where_their_value_is_made() {
        let tensors = tensors();
        let graph = graph(
            &[
                ("a", "conv2d", &["x"]),
                ("b", "relu", &["a"]),
                ("c", "channel_scale", &["b"]),
                ("d", "relu", &["c"]),
            ],
            &[],
        );
        let (last, fused) = outcome(PASS, &graph, &tensors);
        assert_eq!(last, Outcome::Applied);
        assert_eq!(fused.node(1).unwrap().elementwise, [2, 3, 4]);
        assert_eq!(fused.finish().1, [1]);
    }

    #[test]
    fn reasons() {
        let tensors = tensors();
        let refused = |nodes: &[(&str, &str, &[&str])], returned: &[&str]| {
            outcome(PASS, &graph(nodes, returned), &tensors).0
        };
        assert_eq!(refused(&[("a", "relu", &["x"])], &[]), Outcome::Refused(Reason::ReadsInput));
        let conv: (&str, &str, &[&str]) = ("a", "conv2d", &["x"]);
        assert_eq!(
            refused(&[conv, ("b", "relu", &["a"])], &["a"]),
            Outcome::Refused(Reason::OtherReaders)
        );
        let pool: (&str, &str, &[&str]) = ("a", "max_pool2d", &["x"]);
        assert_eq!(
            refused(&[pool, ("b", "relu", &["a"])], &[]),
            Outcome::Refused(Reason::ProducerCannot)
        );
        let codes: [(&str, &str, &[&str]); 2] =
            [("q", "quantize", &["x"]), ("a", "conv_float", &["q"])];
        let with = |op| [codes[0], codes[1], ("b", op, &["a"])];
        assert_eq!(refused(&with("channel_scale"), &[]), Outcome::Refused(Reason::ProducerCannot));
        assert_eq!(refused(&with("relu"), &[]), Outcome::Applied);
        assert_eq!(refused(&[conv], &[]), Outcome::NoMatch);
    }
}
