//! Fuses a quantizer into the convolution whose floats it reads. Codes are computed while the
//! floats are in registers. Other nodes may read the floats, too; if none does, the floats are not
//! stored.

use super::{FusedGraph, Outcome, Reason};
use crate::codec::CodesLayout;
use crate::epilogue::Quantizer;
use crate::graph::NodeView;
use crate::graph::op::Op;

/// The quantizer of a node, in the form that an epilogue needs; `None` if it is not a valid one.
pub(in super::super) fn quantizer(view: NodeView<'_>) -> Option<Quantizer> {
    let Op::Quantize { act, channels, groups, .. } = &view.node.op else { return None };
    let layout = CodesLayout::new(*channels, *groups).ok()?.with(act.coding());
    Quantizer::new(view.floats("steps").ok()?, layout).ok()
}

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let (Op::Quantize { channels, .. }, Some(source)) = (graph.op(node), graph.input(node, 0))
    else {
        return Outcome::NoMatch;
    };
    match graph.op(source) {
        Op::Input(_) => return Outcome::Refused(Reason::ReadsInput),
        Op::ConvFloat { .. } => (),
        _ => return Outcome::Refused(Reason::ProducerCannot),
    }
    let out_channels =
        graph.view(source).tensor("weight").and_then(|weight| weight.shape().first().copied());
    if out_channels != Some(*channels) || quantizer(graph.view(node)).is_none() {
        return Outcome::Refused(Reason::DoesNotFit);
    }
    let only_codes = graph.readers(source) == 1;
    match graph.node_mut(source) {
        Some(producer) if producer.quantizer.is_none() => {
            producer.quantizer = Some(node);
            producer.only_codes = only_codes;
        }
        _ => return Outcome::Refused(Reason::ProducerHasOne),
    }
    graph.take(node);
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    type Nodes<'a> = &'a [(&'a str, &'a str, &'a [&'a str])];

    #[test]
    fn one_quantizer_runs_inside_a_convolution() {
        let tensors = tensors();
        let nodes: Nodes = &[
            ("q", "quantize", &["x"]),
            ("a", "conv_float", &["q"]),
            ("r", "quantize", &["a"]),
            ("y", "conv_float", &["r", "a"]),
        ];
        let block = graph(nodes, &[]);
        let (_, fused) = outcome("fuse_quantizer", &block, &tensors);
        let conv = fused.node(2).unwrap();
        assert_eq!((conv.quantizer, conv.only_codes), (Some(3), false));
        assert!(fused.node(3).is_none() && fused.node(4).is_some());
        let block = graph(&nodes[..3], &[]);
        let (_, fused) = outcome("fuse_quantizer", &block, &tensors);
        assert!(fused.node(2).unwrap().only_codes);
        assert_eq!(
            outcome("fuse_quantizer", &graph(&nodes[..1], &[]), &tensors).0,
            Outcome::Refused(Reason::ReadsInput)
        );
        let twice = graph(&[nodes[0], nodes[1], nodes[2], ("s", "quantize", &["a"])], &[]);
        assert_eq!(
            outcome("fuse_quantizer", &twice, &tensors).0,
            Outcome::Refused(Reason::ProducerHasOne)
        );
        let float = graph(&[("a", "conv2d", &["x"]), ("r", "quantize", &["a"])], &[]);
        assert_eq!(
            outcome("fuse_quantizer", &float, &tensors).0,
            Outcome::Refused(Reason::ProducerCannot)
        );
        let mut other = super::super::testing::tensors();
        other.insert("s".to_owned(), crate::graph::Tensor::F32(vec![2], vec![1.0, f32::NAN]));
        let block = graph(&nodes[..3], &[]);
        assert_eq!(
            outcome("fuse_quantizer", &block, &other).0,
            Outcome::Refused(Reason::DoesNotFit)
        );
    }
}
