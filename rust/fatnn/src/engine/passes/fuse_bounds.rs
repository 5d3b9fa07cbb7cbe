//! Fuses a ReLU, or another function that only clamps, into the depthwise int8 convolution that is
//! its only reader. Its quantizer clamps anyway, so the function is free.

use super::{FusedGraph, Outcome, is_depthwise, only_producer};
use crate::graph::op::Op;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let Some(source) = graph.input(node, 0).filter(|_| is_depthwise(graph, node)) else {
        return Outcome::NoMatch;
    };
    let bounds = matches!(graph.op(source), Op::Scalar(scalar) if scalar.bounds().is_some());
    let function = graph.node(source).filter(|function| bounds && function.elementwise.is_empty());
    let Some(input) = function.and_then(|function| function.inputs.first().copied()) else {
        return Outcome::NoMatch;
    };
    if let Err(reason) = only_producer(graph, source) {
        return Outcome::Refused(reason);
    }
    if let Some(node) = graph.node_mut(node) {
        (node.bounds, node.inputs[0]) = (Some(source), input);
    }
    graph.take(source);
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_bounds";

    #[test]
    fn bounds_run_inside_a_depthwise_convolution() {
        let tensors = tensors();
        let relu: (&str, &str, &[&str]) = ("r", "relu", &["x"]);
        let nodes = graph(&[relu, ("a", "depthwise", &["r"])], &[]);
        let (last, fused) = outcome(PASS, &nodes, &tensors);
        assert_eq!(last, Outcome::Applied);
        assert_eq!(fused.node(2).unwrap().bounds, Some(1));
        assert_eq!(fused.node(2).unwrap().inputs, [0]);
        assert!(fused.node(1).is_none());
        let refused = graph(&[relu, ("a", "depthwise", &["r"])], &["r"]);
        assert_eq!(outcome(PASS, &refused, &tensors).0, Outcome::Refused(Reason::OtherReaders));
        for nodes in [
            graph(&[relu, ("a", "conv2d_int8", &["r"])], &[]),
            graph(&[("s", "channel_scale", &["x"]), ("a", "depthwise", &["s"])], &[]),
            graph(&[("a", "depthwise", &["x"])], &[]),
        ] {
            assert_eq!(outcome(PASS, &nodes, &tensors).0, Outcome::NoMatch);
        }
    }
}
