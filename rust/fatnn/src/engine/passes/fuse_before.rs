//! Fuses elementwise functions into the quantizer or depthwise int8 convolution that is their only
//! reader, if no producer could take them. Values are read once, a few pixels at a time, and become
//! codes while they are in cache.

use super::{FusedGraph, Outcome, is_depthwise, only_producer};
use crate::graph::op::Op;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let reads = matches!(graph.op(node), Op::Quantize { .. }) || is_depthwise(graph, node);
    let Some(source) = graph.input(node, 0).filter(|_| reads) else { return Outcome::NoMatch };
    let elementwise = |node: usize| graph.view(node).node.is_elementwise();
    let Some(function) = graph.node(source).filter(|_| elementwise(source)) else {
        return Outcome::NoMatch;
    };
    // Only functions whose channels are dimension 1, or that have none.
    let channels = |&node: &usize| graph.view(node).node.channel_dim().is_none_or(|dim| dim == 1);
    let functions: Vec<usize> =
        std::iter::once(source).chain(function.elementwise.iter().copied()).collect();
    let Some(&input) = function.inputs.first().filter(|_| functions.iter().all(channels)) else {
        return Outcome::NoMatch;
    };
    if let Err(reason) = only_producer(graph, source) {
        return Outcome::Refused(reason);
    }
    if let Some(node) = graph.node_mut(node) {
        (node.before, node.inputs[0]) = (functions, input);
    }
    graph.take(source);
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    const PASS: &str = "fuse_before";

    #[test]
    fn functions_run_inside_what_quantizes_their_values() {
        let tensors = tensors();
        let scale: (&str, &str, &[&str]) = ("s", "channel_scale", &["x"]);
        for reader in ["depthwise", "quantize"] {
            let nodes = graph(&[scale, ("a", reader, &["s"])], &[]);
            let (last, fused) = outcome(PASS, &nodes, &tensors);
            assert_eq!(last, Outcome::Applied);
            let node = fused.node(2).unwrap();
            assert_eq!((node.before.as_slice(), node.inputs.as_slice()), (&[1][..], &[0][..]));
            assert!(fused.node(1).is_none());
            let read = graph(&[scale, ("a", reader, &["s"])], &["s"]);
            assert_eq!(outcome(PASS, &read, &tensors).0, Outcome::Refused(Reason::OtherReaders));
        }
        for nodes in [
            graph(&[scale, ("a", "conv2d_int8", &["s"])], &[]),
            graph(&[("p", "max_pool2d", &["x"]), ("a", "quantize", &["p"])], &[]),
            graph(&[("a", "quantize", &["x"])], &[]),
        ] {
            assert_eq!(outcome(PASS, &nodes, &tensors).0, Outcome::NoMatch);
        }
    }
}
