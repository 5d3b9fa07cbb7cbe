//! Reads arbitrary text as a graph, then checks, compiles and runs it within limits. Nothing may
//! panic.
#![no_main]

use std::collections::BTreeMap;

use fatnn::graph::cost::check_sizes;
use fatnn::graph::{Graph, Source, Tensor, Tensors, check, shapes};
use fatnn::net::{Array, Input, Limits, Network};
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
        ("l2".into(), Tensor::I64(vec![2], vec![0, -1])),
        ("n2".into(), Tensor::I32(vec![2], vec![i32::MIN, 1])),
        ("b2".into(), Tensor::Bool(vec![2], vec![0, 1])),
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
    let integers: Vec<Vec<i64>> =
        data.iter().map(|data| data.iter().map(|x| *x as i64).collect()).collect();
    let narrow: Vec<Vec<i32>> =
        data.iter().map(|data| data.iter().map(|x| *x as i32).collect()).collect();
    let masks: Vec<Vec<u8>> =
        data.iter().map(|data| data.iter().map(|x| *x as u8).collect()).collect();
    let array = |(i, dtype): (usize, &'static str)| match dtype {
        "int64" => Array::I64(&shapes[i], &integers[i]),
        "int32" => Array::I32(&shapes[i], &narrow[i]),
        "bool" => Array::Bool(&shapes[i], &masks[i]),
        _ => Input { shape: &shapes[i], data: &data[i], channels_last: false }.into(),
    };
    let inputs: Vec<Array<'_>> = net.input_types().enumerate().map(array).collect();
    let _ = net.run(&inputs);
});
