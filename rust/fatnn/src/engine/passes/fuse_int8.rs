//! Fuses a `fake_quantize` into the ternary convolution to floats that is its only producer. The
//! convolution then stores its output as bytes. A ReLU may run in between.

use super::{FusedGraph, Outcome, Reason, feeds_depthwise, only_producer};
use crate::graph::op::Op;
use crate::scalar::Scalar;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let (Op::Scalar(Scalar::FakeQuantize(_)), Some(value)) = (graph.op(node), graph.input(node, 0))
    else {
        return Outcome::NoMatch;
    };
    // It runs on the input of that convolution instead (`fuse_before`).
    if feeds_depthwise(graph, node) {
        return Outcome::NoMatch;
    }
    // The convolution would not run what was fused into this node.
    if graph.node(node).is_some_and(|own| !own.elementwise.is_empty() || own.max_pool.is_some()) {
        return Outcome::Refused(Reason::DoesNotFit);
    }
    let producer = match only_producer(graph, value) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    let Op::ConvFloat { .. } = graph.op(producer) else {
        return Outcome::Refused(Reason::ProducerCannot);
    };
    // The epilogue does not look for NaN that constants make.
    let view = graph.view(producer);
    let finite = |role| {
        view.optional_floats(role)
            .is_ok_and(|values| values.is_none_or(|values| values.iter().all(|x| x.is_finite())))
    };
    if !finite("scale") || !finite("bias") {
        return Outcome::Refused(Reason::DoesNotFit);
    }
    // An output of the network is floats.
    if graph.is_output(node) {
        return Outcome::Refused(Reason::OtherReaders);
    }
    match graph.node_mut(producer) {
        Some(conv) if conv.int8.is_none() && conv.quantizer.is_none() => conv.int8 = Some(node),
        _ => return Outcome::Refused(Reason::ProducerHasOne),
    }
    graph.fuse_into_producer(node, producer);
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_int8";

    #[test]
    fn a_convolution_stores_its_output_as_bytes() {
        let tensors = tensors();
        let nodes: [(&str, &str, &[&str]); 4] = [
            ("q", "quantize", &["x"]),
            ("y", "conv_float", &["q"]),
            ("i", "fake_quantize", &["y"]),
            ("r", "quantize", &["i"]),
        ];
        let block = graph(&nodes, &[]);
        let (_, fused) = outcome(PASS, &block, &tensors);
        assert_eq!(fused.node(2).unwrap().int8, Some(3));
        assert!(fused.node(3).is_none());
        assert_eq!(fused.input(4, 0), Some(2));
        let refused = |nodes: &[(&str, &str, &[&str])], returned: &[&str]| {
            outcome(PASS, &graph(nodes, returned), &tensors).0
        };
        let other = Outcome::Refused(Reason::OtherReaders);
        assert_eq!(refused(&nodes[..3], &[]), other);
        assert_eq!(refused(&nodes[..3], &["y"]), other);
        let float: [(&str, &str, &[&str]); 2] =
            [("y", "conv2d", &["x"]), ("i", "fake_quantize", &["y"])];
        assert_eq!(refused(&float, &[]), Outcome::Refused(Reason::ProducerCannot));
        assert_eq!(
            refused(&[("i", "fake_quantize", &["x"])], &[]),
            Outcome::Refused(Reason::ReadsInput)
        );
    }
}
