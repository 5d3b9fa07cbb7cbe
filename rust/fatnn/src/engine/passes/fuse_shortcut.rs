//! Fuses a shortcut convolution that only the residual add reads into the convolution that adds it,
//! so its output stays in cache.

use super::{FusedGraph, Outcome, Reason, only_producer};
use crate::graph::op::Op;

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let (Op::ConvFloat { .. }, Some(residual)) = (graph.op(node), graph.input(node, 1)) else {
        return Outcome::NoMatch;
    };
    let producer = match only_producer(graph, residual) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    let Op::ConvFloat { .. } = graph.op(producer) else {
        return Outcome::Refused(Reason::ProducerCannot);
    };
    let plain = |node: &super::super::fused::FusedNode| {
        node.inputs.len() == 1
            && node.shortcut.is_none()
            && node.quantizer.is_none()
            && node.int8.is_none()
    };
    if !graph.node(producer).is_some_and(plain)
        || graph.node(node).is_none_or(|node| node.shortcut.is_some())
    {
        return Outcome::Refused(Reason::ProducerHasOne);
    }
    let Some(shortcut) = graph.take(producer) else { return Outcome::NoMatch };
    if let Some(node) = graph.node_mut(node) {
        node.inputs[1] = shortcut.inputs[0];
        node.shortcut = Some(Box::new(shortcut));
    }
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    type Nodes<'a> = &'a [(&'a str, &'a str, &'a [&'a str])];

    #[test]
    fn a_shortcut_runs_inside_the_add() {
        let tensors = tensors();
        let nodes: Nodes = &[
            ("q", "quantize", &["x"]),
            ("s", "conv_float", &["q"]),
            ("y", "conv_float", &["q", "s"]),
        ];
        let block = graph(nodes, &[]);
        let (last, fused) = outcome("fuse_shortcut", &block, &tensors);
        assert_eq!(last, Outcome::Applied);
        assert!(fused.node(2).is_none());
        let sum = fused.node(3).unwrap();
        assert_eq!((sum.inputs.as_slice(), sum.shortcut.as_ref().unwrap().node), (&[1, 1][..], 2));
        let read = graph(nodes, &["s"]);
        assert_eq!(
            outcome("fuse_shortcut", &read, &tensors).0,
            Outcome::Refused(Reason::OtherReaders)
        );
        let identity = graph(&[("q", "quantize", &["x"]), ("y", "conv_float", &["q", "x"])], &[]);
        assert_eq!(
            outcome("fuse_shortcut", &identity, &tensors).0,
            Outcome::Refused(Reason::ReadsInput)
        );
        let float: Nodes =
            &[("q", "quantize", &["x"]), ("s", "conv2d", &["x"]), ("y", "conv_float", &["q", "s"])];
        let float = graph(float, &[]);
        assert_eq!(
            outcome("fuse_shortcut", &float, &tensors).0,
            Outcome::Refused(Reason::ProducerCannot)
        );
        let chain: Nodes = &[
            ("q", "quantize", &["x"]),
            ("s", "conv_float", &["q"]),
            ("t", "conv_float", &["q", "s"]),
            ("y", "conv_float", &["q", "t"]),
        ];
        let chain = graph(chain, &[]);
        assert_eq!(
            outcome("fuse_shortcut", &chain, &tensors).0,
            Outcome::Refused(Reason::ProducerHasOne)
        );
    }
}
