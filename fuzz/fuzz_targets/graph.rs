//! Reads arbitrary text as a graph, then checks, compiles and runs it within limits. Nothing may
//! panic.
#![no_main]

use std::collections::BTreeMap;

use fatnn::graph::cost::check_sizes;
use fatnn::graph::{Graph, Source, Tensor, Tensors, check, shapes};
use fatnn::net::{Input, Limits, Network};
use libfuzzer_sys::fuzz_target;

/// Small limits, so that many graphs can be tried.
const LIMITS: Limits = Limits { max_bytes: 1 << 24, max_macs: 1 << 20 };

/// The tensors that graphs can name: float32 and int8 in a few shapes.
fn tensors() -> Tensors {
    let floats = |shape: &[usize]| Tensor::F32(shape.to_vec(), vec![0.5; shape.iter().product()]);
    let int8 = |shape: &[usize]| Tensor::I8(shape.to_vec(), vec![1; shape.iter().product()]);
    BTreeMap::from([
        ("f1".into(), floats(&[1])),
        ("f2".into(), floats(&[2])),
        ("f22".into(), floats(&[2, 2])),
        ("f2211".into(), floats(&[2, 2, 1, 1])),
        ("i22".into(), int8(&[2, 2])),
        ("i2211".into(), int8(&[2, 2, 1, 1])),
    ])
}

fuzz_target!(|text: &str| {
    let tensors = tensors();
    for source in [Source::File, Source::Description] {
        let Ok(graph) = Graph::parse(text, source) else { continue };
        shapes::in_every_run(&graph, &tensors);
        if let Ok(types) = check::check(&graph, &tensors, source) {
            let _ = check_sizes(&graph, &tensors, &types, LIMITS);
        }
    }
    let Ok(net) = Network::within(text, &tensors, LIMITS) else { return };
    let shapes: Vec<Vec<usize>> = net.inputs().map(|(_, shape)| shape.to_vec()).collect();
    let sizes = shapes.iter().map(|shape| shape.iter().product::<usize>());
    let data: Vec<Vec<f32>> =
        sizes.map(|n| (0..n).map(|i| (i % 7) as f32 - 3.0).collect()).collect();
    let inputs: Vec<Input<'_>> = shapes
        .iter()
        .zip(&data)
        .map(|(shape, data)| Input { shape, data, channels_last: false })
        .collect();
    let _ = net.run(&inputs);
});
