//! Fuses a ternary 1×1 convolution to floats, or a dense int8 convolution, into the depthwise int8
//! convolution that is its only reader, a few lines at a time. The floats stay in cache; in an
//! inverted residual block there are six times as many as the block's input has.

use super::{FusedGraph, Outcome, Reason, is_depthwise, only_producer};
use crate::graph::ConvParams;
use crate::graph::op::{CodesConv, Conv, Op};

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let Some(value) = graph.input(node, 0).filter(|_| is_depthwise(graph, node)) else {
        return Outcome::NoMatch;
    };
    let params = match graph.op(value) {
        Op::ConvFloat { conv: CodesConv { params, axes: 2, .. }, .. } => Some(*params),
        Op::ConvInt8(Conv { groups: 1, axes: 2, .. }) => None,
        _ => return Outcome::NoMatch,
    };
    let producer = match only_producer(graph, value) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    let weight = graph.view(producer).tensor("weight");
    let pixel = weight.is_some_and(|weight| matches!(weight.shape(), [_, _, 1, 1]));
    let plain = graph.node(producer).is_some_and(|node| {
        let rounds = node.quantizer.is_some() || node.int8.is_some();
        node.inputs.len() == 1 && !rounds && node.max_pool.is_none()
    });
    // An int8 convolution quantizes its whole input first, so it may have any window. If the reader
    // skipped lines, they would be computed only to look for NaN.
    let by_lines = match params {
        Some(ConvParams { stride, padding, .. }) => pixel && stride == [1, 1] && padding == [0, 0],
        None => reads_all_lines(graph, node),
    };
    if !plain || !by_lines {
        return Outcome::Refused(Reason::ProducerCannot);
    }
    if graph.fuse_source(node, producer) { Outcome::Applied } else { Outcome::NoMatch }
}

/// Whether windows of a depthwise convolution leave no line between them unread.
fn reads_all_lines(graph: &FusedGraph<'_>, node: usize) -> bool {
    let Op::ConvInt8(Conv { params, .. }) = graph.op(node) else { return false };
    let height =
        graph.view(node).tensor("weight").and_then(|weight| weight.shape().get(2).copied());
    height.is_some_and(|height| params.stride[0] <= height && params.dilation[0] == 1)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_source";

    #[test]
    fn a_pixelwise_convolution_runs_inside_a_depthwise_one() {
        let tensors = tensors();
        let nodes: [(&str, &str, &[&str]); 3] =
            [("q", "quantize", &["x"]), ("e", "conv_float", &["q"]), ("a", "depthwise", &["e"])];
        let block = graph(&nodes, &[]);
        let (last, fused) = outcome(PASS, &block, &tensors);
        assert_eq!(last, Outcome::Applied);
        let node = fused.node(3).unwrap();
        assert_eq!((node.inputs.as_slice(), node.source.as_ref().unwrap().node), (&[1][..], 2));
        assert!(fused.node(2).is_none());
        assert_eq!(
            outcome(PASS, &graph(&nodes, &["e"]), &tensors).0,
            Outcome::Refused(Reason::OtherReaders)
        );
        let sum: [(&str, &str, &[&str]); 3] =
            [nodes[0], ("e", "conv_float", &["q", "x"]), nodes[2]];
        assert_eq!(
            outcome(PASS, &graph(&sum, &[]), &tensors).0,
            Outcome::Refused(Reason::ProducerCannot)
        );
        let dense: [(&str, &str, &[&str]); 3] = [nodes[0], nodes[1], ("a", "conv2d_int8", &["e"])];
        for nodes in [graph(&dense, &[]), graph(&[("a", "depthwise", &["x"])], &[])] {
            assert_eq!(outcome(PASS, &nodes, &tensors).0, Outcome::NoMatch);
        }
    }

    #[test]
    fn an_int8_convolution_runs_inside_a_depthwise_one() {
        let tensors = tensors();
        let nodes: [(&str, &str, &[&str]); 2] =
            [("stem", "conv2d_int8", &["x"]), ("a", "depthwise", &["stem"])];
        let block = graph(&nodes, &[]);
        let (last, fused) = outcome(PASS, &block, &tensors);
        assert_eq!(last, Outcome::Applied);
        let node = fused.node(2).unwrap();
        assert_eq!((node.inputs.as_slice(), node.source.as_ref().unwrap().node), (&[0][..], 1));
        let returned = graph(&nodes, &["stem"]);
        assert_eq!(outcome(PASS, &returned, &tensors).0, Outcome::Refused(Reason::OtherReaders));
        // A depthwise source would compute every line more than once.
        let both = graph(&[("stem", "depthwise", &["x"]), nodes[1]], &[]);
        assert_eq!(outcome(PASS, &both, &tensors).0, Outcome::NoMatch);
    }

    #[test]
    fn rounded_values_of_a_depthwise_convolution_stay_inside_it() {
        let tensors = tensors();
        let nodes: [(&str, &str, &[&str]); 5] = [
            ("q", "quantize", &["x"]),
            ("e", "conv_float", &["q"]),
            ("i", "fake_quantize", &["e"]),
            ("h", "hardswish", &["i"]),
            ("a", "depthwise", &["h"]),
        ];
        let block = graph(&nodes, &[]);
        let mut fused = FusedGraph::new(&block, &tensors);
        super::super::run(&mut fused);
        let node = fused.node(5).unwrap();
        assert_eq!((node.before.as_slice(), node.inputs.as_slice()), (&[3, 4][..], &[1][..]));
        assert_eq!(node.source.as_ref().map(|source| (source.node, source.int8)), Some((2, None)));
        // With another reader, the convolution stores bytes.
        let block = graph(&nodes, &["h"]);
        let mut fused = FusedGraph::new(&block, &tensors);
        super::super::run(&mut fused);
        assert_eq!(fused.node(2).and_then(|node| node.int8), Some(3));
    }
}
