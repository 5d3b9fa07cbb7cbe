//! Fuses max pooling into the int8 convolution whose output only it reads. Lines are pooled while
//! they are in cache.

use super::{FusedGraph, Outcome, Reason, only_producer};
use crate::graph::op::{Conv, Op};

pub(super) fn apply(graph: &mut FusedGraph<'_>, node: usize) -> Outcome {
    let (Op::MaxPool(_), Some(source)) = (graph.op(node), graph.input(node, 0)) else {
        return Outcome::NoMatch;
    };
    let producer = match only_producer(graph, source) {
        Ok(producer) => producer,
        Err(reason) => return Outcome::Refused(reason),
    };
    if !matches!(graph.op(producer), Op::ConvInt8(Conv { axes: 2, .. })) {
        return Outcome::Refused(Reason::ProducerCannot);
    }
    match graph.node_mut(producer) {
        Some(producer) if producer.max_pool.is_none() => producer.max_pool = Some(node),
        _ => return Outcome::Refused(Reason::ProducerHasOne),
    }
    graph.fuse_into_producer(node, producer);
    Outcome::Applied
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, outcome, tensors};
    use super::*;

    #[test]
    fn a_pool_runs_inside_an_int8_convolution() {
        let tensors = tensors();
        let int8 = graph(&[("a", "conv2d_int8", &["x"]), ("p", "max_pool2d", &["a"])], &[]);
        let (last, fused) = outcome("fuse_max_pool", &int8, &tensors);
        assert_eq!(last, Outcome::Applied);
        assert_eq!(fused.node(1).unwrap().max_pool, Some(2));
        let float = graph(&[("a", "conv2d", &["x"]), ("p", "max_pool2d", &["a"])], &[]);
        let (last, _) = outcome("fuse_max_pool", &float, &tensors);
        assert_eq!(last, Outcome::Refused(Reason::ProducerCannot));
        let twice = graph(
            &[
                ("a", "conv2d_int8", &["x"]),
                ("p", "max_pool2d", &["a"]),
                ("r", "max_pool2d", &["p"]),
            ],
            &[],
        );
        let (last, _) = outcome("fuse_max_pool", &twice, &tensors);
        assert_eq!(last, Outcome::Refused(Reason::ProducerHasOne));
    }
}
