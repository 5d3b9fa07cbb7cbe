//! Fuses a depthwise int8 convolution into the quantizer that is its only reader. The quantizer
//! reads a line of floats while it is in cache, and only codes are written to memory.

use super::{FusedGraph, Outcome, Reason, is_depthwise, only_producer};
use crate::graph::op::Op;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let Op::Quantize { channels, .. } = graph.op(node) else { return Outcome::NoMatch };
    let Some(value) = graph.input(node, 0).filter(|&value| is_depthwise(graph, value)) else {
        return Outcome::NoMatch;
    };
    let producer = match only_producer(graph, value) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    if graph.node(node).is_none_or(|node| !node.before.is_empty()) {
        return Outcome::Refused(Reason::ProducerCannot);
    }
    let weight = graph.view(producer).tensor("weight");
    if weight.and_then(|weight| weight.shape().first()) != Some(channels) {
        return Outcome::Refused(Reason::DoesNotFit);
    }
    if graph.fuse_source(node, producer) { Outcome::Applied } else { Outcome::NoMatch }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_depthwise";

    #[test]
    fn a_depthwise_convolution_runs_inside_the_only_quantizer_of_its_floats() {
        let tensors = tensors();
        let nodes = [("d", "depthwise", &["x"][..]), ("q", "quantize", &["d"][..])];
        let block = graph(&nodes, &[]);
        let (last, fused) = outcome(PASS, &block, &tensors);
        assert_eq!(last, Outcome::Applied);
        let node = fused.node(2).unwrap();
        assert_eq!(node.source.as_ref().map(|source| source.node), Some(1));
        assert_eq!(node.inputs, [0]);
        assert!(fused.node(1).is_none());
    }

    #[test]
    fn floats_that_others_read_are_written() {
        let tensors = tensors();
        let nodes = [("d", "depthwise", &["x"][..]), ("q", "quantize", &["d"][..])];
        let returned = graph(&nodes, &["d"]);
        assert_eq!(outcome(PASS, &returned, &tensors).0, Outcome::Refused(Reason::OtherReaders));
        let dense = graph(&[("d", "conv2d_int8", &["x"]), ("q", "quantize", &["d"])], &[]);
        assert_eq!(outcome(PASS, &dense, &tensors).0, Outcome::NoMatch);
        let input = graph(&[("q", "quantize", &["x"])], &[]);
        assert_eq!(outcome(PASS, &input, &tensors).0, Outcome::NoMatch);
    }
}
