//! Int8 layers on all kernels, against the reference, bit for bit.

mod common;

use std::collections::BTreeMap;

use common::ThreadCount;
use common::int8::{Layer, bits, floats, int8};
use fatnn::codec::WeightKind;
use fatnn::conv::{ConvShape, Int8Epilogue, conv2d_int8};
use fatnn::kernels::{self, OperandTypes};
use fatnn::net::{Input, Network, Tensor, load, save};
use fatnn::pack::{MAX_INT8_REDUCTION, PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;
use fatnn::{Error, reference};
use proptest::prelude::*;

#[test]
fn common_layer_shapes_equal_the_reference() {
    let linear = |images, c, n| Layer { batch: images, ..Layer::new([1, 1], c, n, 1, 1) };
    let layers = [
        Layer::new([37, 53], 3, 64, 7, 2),
        Layer::new([12, 600], 3, 8, 3, 1),
        Layer::new([32, 32], 3, 32, 3, 1),
        Layer::new([28, 28], 1, 20, 5, 1),
        Layer::new([14, 9], 70, 33, 3, 1),
        Layer::new([7, 7], 64, 65, 1, 1),
        Layer::new([9, 11], 64, 10, 1, 2),
        Layer::new([16, 16], 3, 16, 4, 4),
        Layer { kernel: [1, 9], padding: [0, 4], ..Layer::new([1, 700], 2, 12, 1, 1) },
        Layer { batch: 3, groups: 2, ..Layer::new([5, 6], 3, 5, 3, 1) },
        Layer { groups: 6, ..Layer::new([8, 8], 1, 1, 3, 2) },
        Layer { dilation: [2, 3], padding: [2, 3], ..Layer::new([9, 13], 5, 17, 3, 1) },
        Layer { dilation: [3, 1], ..Layer::new([9, 13], 20, 4, 3, 1) },
        Layer { padding: [4, 5], ..Layer::new([2, 3], 3, 4, 3, 2) },
        // Wide enough that blocks are one line, which reuses the columns of the line above.
        Layer { batch: 2, ..Layer::new([23, 110], 3, 20, 7, 2) },
        Layer { batch: 2, ..Layer::new([9, 71], 1, 4, 3, 1) },
        Layer { batch: 2, ..Layer::new([9, 71], 2, 4, 3, 1) },
        Layer::new([9, 72], 3, 4, 3, 1),
        Layer::new([9, 72], 4, 4, 5, 1),
        Layer::new([9, 72], 3, 4, 3, 2),
        Layer::new([19, 200], 3, 4, 5, 4),
        Layer { dilation: [2, 1], ..Layer::new([19, 80], 3, 4, 5, 1) },
        Layer { stride: [5, 1], ..Layer::new([19, 80], 3, 4, 3, 1) },
        Layer { padding: [2, 6], ..Layer::new([19, 80], 4, 4, 3, 1) },
        linear(1, 512, 1000),
        linear(1, 7, 1),
        linear(70, 129, 10),
    ];
    for (seed, layer) in layers.iter().enumerate() {
        layer.check(seed as u64 + 1);
    }
}

proptest! {
    #![proptest_config(common::proptest_config(120))]
    #[test]
    fn random_layers_equal_the_reference(
        batch in 1usize..4, input in prop::array::uniform2(1usize..20), channels in 1usize..40,
        out_channels in 1usize..70,
        groups in 1usize..3, kernel in prop::array::uniform2(1usize..5),
        stride in prop::array::uniform2(1usize..4),
        padding in prop::array::uniform2(0usize..4), dilation in prop::array::uniform2(1usize..3),
        seed in 0u64..1 << 40,
    ) {
        let layer = Layer { batch, input, channels, out_channels, groups, kernel, stride, padding,
            dilation };
        prop_assume!(layer.shape().output().is_ok());
        layer.check(seed);
    }
}

#[test]
fn the_largest_sums_are_exact() {
    for channels in [1, 4, 63, 64, 4096, MAX_INT8_REDUCTION] {
        let layer = Layer { batch: 3, ..Layer::new([1, 1], channels, 17, 1, 1) };
        let epilogue = Int8Epilogue { inv_step: 1.0, scale: &[1.0; 17], bias: None };
        for (a, b) in [(127i8, 127i8), (127, -127), (-127, 127), (-127, -127), (0, 127), (-127, 0)]
        {
            let x = vec![f32::from(a) * 2.0; layer.inputs()];
            let w = vec![b; layer.weights().len()];
            let expected = (channels as i32 * i32::from(a) * i32::from(b)) as f32;
            for kernel in kernels::detected_for(OperandTypes::Int8) {
                let found = layer.found(kernel, &x, PixelOrder::ChannelsLast, &w, &epilogue);
                assert!(
                    found.iter().all(|y| *y == expected),
                    "{}: {channels} times {a} · {b}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn codes_are_rounded_halves_to_even_and_clamped() {
    let inv_step = 0.37f32;
    let mut x: Vec<f32> = (-270..=270).map(|i| i as f32 * 0.5).collect();
    x.extend(x.clone().iter().map(|x| x / inv_step));
    x.extend([
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ]);
    x.extend(x.clone().iter().flat_map(|x| [x.next_up(), x.next_down()]));
    x.retain(|x| !x.is_nan());
    x.extend(floats(4000, 3).iter().map(|x| x * 400.0));
    let layer = Layer { batch: x.len(), ..Layer::new([1, 1], 1, 1, 1, 1) };
    let groups = (2..90).rev().find(|groups| x.len().is_multiple_of(*groups)).unwrap_or(1);
    let by_channel = Layer { batch: x.len() / groups, groups, ..layer };
    for inv_step in [1.0, inv_step, 1e-30, 1e30, f32::MAX] {
        let epilogue = Int8Epilogue { inv_step, scale: &[1.0], bias: None };
        let expected: Vec<f32> =
            reference::quantize_int8(&x, inv_step).iter().map(|q| f32::from(*q)).collect();
        for kernel in kernels::detected_for(OperandTypes::Int8) {
            assert_eq!(
                layer.found(kernel, &x, PixelOrder::ChannelsLast, &[1], &epilogue),
                expected,
                "{}",
                kernel.name()
            );
        }
        let (ones, scale) = (vec![1; groups], vec![1.0; groups]);
        let epilogue = Int8Epilogue { scale: &scale, ..epilogue };
        for kernel in by_channel.kernels() {
            let found = by_channel.found(kernel, &x, PixelOrder::ChannelsLast, &ones, &epilogue);
            assert_eq!(found, expected, "{}", kernel.name());
        }
    }
}

#[test]
fn bad_arguments_are_errors_that_name_them() {
    let layer = Layer::new([5, 5], 3, 4, 3, 1);
    let w = int8(layer.weights().len(), 1);
    for kernel in kernels::detected_for(OperandTypes::Int8) {
        let weights =
            PackedWeights::for_kernel(kernel, &w, layer.weights(), OperandTypes::Int8).unwrap();
        let x = floats(layer.inputs(), 2);
        let mut out = vec![0.0; 100];
        let mut run = |x: &[f32],
                       order,
                       inv_step,
                       scale: &[f32],
                       bias: Option<&[f32]>,
                       shape: &ConvShape,
                       len: usize| {
            let epilogue = Int8Epilogue { inv_step, scale, bias };
            conv2d_int8(x, order, &weights, shape, &epilogue, &mut out[..len])
                .map_err(|e| e.to_string())
        };
        let (last, shape) = (PixelOrder::ChannelsLast, layer.shape());
        assert_eq!(run(&x, last, 1.0, &[1.0; 4], None, &shape, 100), Ok(()));
        for inv_step in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(
                run(&x, last, inv_step, &[1.0; 4], None, &shape, 100)
                    .unwrap_err()
                    .contains("inv_step")
            );
        }
        assert!(run(&x, last, 1.0, &[1.0; 3], None, &shape, 100).unwrap_err().contains("scale"));
        assert!(
            run(&x, last, 1.0, &[1.0; 4], Some(&[1.0; 5]), &shape, 100)
                .unwrap_err()
                .contains("bias")
        );
        assert!(
            run(&x[1..], last, 1.0, &[1.0; 4], None, &shape, 100).unwrap_err().contains("input")
        );
        assert!(run(&x, last, 1.0, &[1.0; 4], None, &shape, 99).unwrap_err().contains("output"));
        let other = ConvShape { kernel: [3, 2], ..shape };
        assert!(run(&x, last, 1.0, &[1.0; 4], None, &other, 100).unwrap_err().contains("kernel"));
        for order in [last, PixelOrder::ChannelsFirst] {
            let mut x = x.clone();
            x[41] = f32::NAN;
            let epilogue = Int8Epilogue { inv_step: 1.0, scale: &[1.0; 4], bias: None };
            let error = conv2d_int8(&x, order, &weights, &shape, &epilogue, &mut out).unwrap_err();
            assert!(matches!(error, Error::NotANumber { index: 41, .. }), "{error}");
        }
    }
    let shape = |channels| WeightShape { out_channels: 1, channels, kernel: [1, 1], groups: 1 };
    let message =
        |w: &[i8], shape| PackedWeights::new(w, shape, OperandTypes::Int8).unwrap_err().to_string();
    assert!(message(&[1, -128], shape(2)).contains("-128 at element 1"));
    assert!(message(&[1, 2], shape(3)).contains("weight"));
    assert!(
        message(&vec![1; MAX_INT8_REDUCTION + 1], shape(MAX_INT8_REDUCTION + 1)).contains("133000")
    );
    let blob =
        PackedWeights::new(&[1, 2], shape(2), OperandTypes::Int8).unwrap().as_bytes().to_vec();
    assert!(PackedWeights::from_bytes(&blob).is_ok());
    for at in 0..64 {
        let mut damaged = blob.clone();
        damaged[at] ^= 1;
        let error = PackedWeights::from_bytes(&damaged).unwrap_err();
        assert!(matches!(error, Error::Packed { .. }), "byte {at}: {error}");
    }
    assert!(
        PackedWeights::from_bytes(&blob[..blob.len() - 1]).is_err()
            && PackedWeights::from_bytes(&[]).is_err()
    );
}

/// A stem with BatchNorm, ReLU and pooling, then a linear layer whose output is clamped.
fn network() -> (serde_json::Value, BTreeMap<String, Tensor>) {
    let node = |name: &str, op: &str, input: &str, shape: &[usize], attrs, tensors| {
        serde_json::json!({"name": name, "op": op, "inputs": [input], "shape": shape,
            "layer": format!("layer {name}"),
            "attrs": attrs, "tensors": tensors})
    };
    let none = serde_json::json!({});
    let conv =
        serde_json::json!({"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 1});
    let nodes = serde_json::json!([
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, 3, 9, 9],
            "layer": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        node("stem", "conv2d_int8", "x", &[1, 5, 5, 5], conv, serde_json::json!(
            {"weight": "w", "scale": "s", "inv_step": "i"})),
        node("bn", "batch_norm", "stem", &[1, 5, 5, 5], serde_json::json!({"eps": 1e-5}),
            serde_json::json!(
            {"mean": "mean", "var": "var", "weight": "gamma", "bias": "beta"})),
        node("act", "relu", "bn", &[1, 5, 5, 5], none.clone(), none.clone()),
        node("slope", "leaky_relu", "act", &[1, 5, 5, 5],
            serde_json::json!({"negative_slope": 0.5}), none.clone()),
        node("mean", "mean", "slope", &[1, 5],
            serde_json::json!({"dims": [2, 3], "keepdim": false}), none.clone()),
        node("head", "linear_int8", "mean", &[1, 7], none.clone(), serde_json::json!(
            {"weight": "hw", "scale": "hs", "bias": "hb", "inv_step": "hi"})),
        node("y", "hardtanh", "head", &[1, 7], serde_json::json!({"min_val": -2.0, "max_val": 2.0}),
            none),
    ]);
    let graph =
        serde_json::json!({"nodes": nodes, "outputs": {"tuple": [{"value": "y"}]}, "notes": []});
    let f32s = |values: Vec<f32>| Tensor::F32(vec![values.len()], values);
    let tensors = BTreeMap::from([
        ("w".to_owned(), Tensor::I8(vec![5, 3, 3, 3], int8(135, 1))),
        ("s".to_owned(), f32s(floats(5, 2).iter().map(|s| s * 1e-3).collect())),
        ("i".to_owned(), f32s(vec![90.0])),
        ("mean".to_owned(), f32s(floats(5, 3))),
        ("var".to_owned(), f32s(floats(5, 4).iter().map(|v| v.abs()).collect())),
        ("gamma".to_owned(), f32s(floats(5, 5))),
        ("beta".to_owned(), f32s(floats(5, 6))),
        ("hw".to_owned(), Tensor::I8(vec![7, 5], int8(35, 7))),
        ("hs".to_owned(), f32s(floats(7, 8).iter().map(|s| s * 1e-3).collect())),
        ("hb".to_owned(), f32s(floats(7, 9))),
        ("hi".to_owned(), f32s(vec![33.0])),
    ]);
    (graph, tensors)
}

/// [`network`], with stem and head by the reference, and the other operations one by one in the
/// engine.
fn network_by_hand(
    tensors: &BTreeMap<String, Tensor>,
    x: &[f32],
    images: usize,
    [h, w]: [usize; 2],
) -> Vec<f32> {
    let f = |name: &str| match &tensors[name] {
        Tensor::F32(_, values) => values.as_slice(),
        other => panic!("{other:?}"),
    };
    let i = |name: &str| match &tensors[name] {
        Tensor::I8(_, values) => values.as_slice(),
        other => panic!("{other:?}"),
    };
    let stem = Layer { batch: images, ..Layer::new([h, w], 3, 5, 3, 2) };
    let mut y =
        stem.expected(x, i("w"), &Int8Epilogue { inv_step: f("i")[0], scale: f("s"), bias: None });
    for (at, y) in y.iter_mut().enumerate() {
        let c = at % 5;
        let scale = 1.0 / (f("var")[c] + 1e-5).sqrt() * f("gamma")[c];
        *y = y.mul_add(scale, (-f("mean")[c]).mul_add(scale, f("beta")[c])).max(0.0);
    }
    let [oh, ow] = stem.shape().output().unwrap();
    let mut means = vec![0.0; images * 5];
    for (at, y) in y.iter().enumerate() {
        means[at / (oh * ow * 5) * 5 + at % 5] += y;
    }
    means.iter_mut().for_each(|m| *m /= (oh * ow) as f32);
    let head = Layer { batch: images, ..Layer::new([1, 1], 5, 7, 1, 1) };
    let epilogue = Int8Epilogue { inv_step: f("hi")[0], scale: f("hs"), bias: Some(f("hb")) };
    head.expected(&means, i("hw"), &epilogue).iter().map(|y| y.clamp(-2.0, 2.0)).collect()
}

#[test]
fn a_saved_network_equals_the_reference_on_all_sizes_and_threads() {
    let count = ThreadCount::lock();
    let (graph, tensors) = network();
    let path = std::env::temp_dir().join(format!("fatnn-int8-{}.safetensors", std::process::id()));
    save(&path, &graph.to_string(), &tensors).unwrap();
    let (_, loaded) = load(&path).unwrap();
    assert_eq!(loaded, tensors);
    let net = Network::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for threads in [1, 2, 5] {
        count.set(threads);
        for (images, map) in [(1, [9, 9]), (4, [9, 9]), (1, [300, 280]), (2, [1, 30])] {
            let x = floats(images * map[0] * map[1] * 3, 11);
            let shape = [images, 3, map[0], map[1]];
            let run =
                || net.run(&[Input { shape: &shape, data: &x, channels_last: true }]).unwrap();
            let found = run();
            let expected = network_by_hand(&tensors, &x, images, map);
            assert_eq!(bits(&found[0].data), bits(&expected), "{threads} threads, {shape:?}");
            assert_eq!(run(), found);
        }
        let empty = Input { shape: &[0, 3, 9, 9], data: &[], channels_last: true };
        assert!(net.run(&[empty]).unwrap()[0].data.is_empty());
    }
    let x = vec![f32::NAN; 243];
    let error = net
        .run(&[Input { shape: &[1, 3, 9, 9], data: &x, channels_last: true }])
        .unwrap_err()
        .to_string();
    assert!(error.contains("layer stem") && error.contains("NaN"), "{error}");
}

#[test]
fn damaged_graphs_are_errors_that_name_the_node() {
    let (graph, tensors) = network();
    let message = |graph: &serde_json::Value, tensors: &BTreeMap<String, Tensor>| {
        let network = Network::new(&graph.to_string(), tensors);
        network.err().unwrap_or_else(|| panic!("no error: {graph}")).to_string()
    };
    for (key, value) in [
        ("stride", serde_json::json!([0])),
        ("groups", serde_json::json!(0)),
        ("groups", serde_json::json!(2)),
        ("padding", serde_json::json!("same")),
    ] {
        let mut graph = graph.clone();
        graph["nodes"][1]["attrs"][key] = value.clone();
        assert!(message(&graph, &tensors).contains("\"stem\""), "{key} {value}");
    }
    let cases: [(&str, Tensor, &str); 7] = [
        ("w", Tensor::Codes(WeightKind::Ternary, vec![5, 3, 3, 3], vec![1; 135]), "int8"),
        ("w", Tensor::I8(vec![5, 27], vec![1; 135]), "shape"),
        ("w", Tensor::I8(vec![5, 3, 3, 3], vec![-128; 135]), "-128"),
        ("w", Tensor::I8(vec![5, 3, 3, 3], vec![1; 7]), "weight"),
        ("i", Tensor::F32(vec![2], vec![1.0, 1.0]), "inv_step"),
        ("i", Tensor::F32(vec![1], vec![-1.0]), "inv_step"),
        ("s", Tensor::F32(vec![4], vec![1.0; 4]), "scale"),
    ];
    for (name, tensor, words) in cases {
        let mut tensors = tensors.clone();
        tensors.insert(name.to_owned(), tensor);
        let message = message(&graph, &tensors);
        assert!(message.contains("\"stem\"") && message.contains(words), "{name}: {message}");
    }
    let mut missing = tensors.clone();
    missing.remove("hs");
    assert!(message(&graph, &missing).contains("\"head\""));
    let net = Network::new(&graph.to_string(), &tensors).unwrap();
    let x = [0.0; 4];
    let error = net
        .run(&[Input { shape: &[1, 4, 1, 1], data: &x, channels_last: true }])
        .unwrap_err()
        .to_string();
    assert!(error.contains("3 channels"), "{error}");
}

/// A convolution and max pooling. With `seen`, the convolution's value is also an output of the
/// network, so that pooling cannot be fused into it.
fn pooled(window: &serde_json::Value, seen: bool) -> Network {
    let conv =
        serde_json::json!({"stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1});
    let nodes = serde_json::json!([
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, 3, 9, 9],
            "layer": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        {"name": "conv", "op": "conv2d_int8", "inputs": ["x"], "shape": [1, 20, 5, 5],
            "layer": "conv", "attrs": conv,
            "tensors": {"weight": "w", "scale": "s", "inv_step": "i"}},
        {"name": "pool", "op": "max_pool2d", "inputs": ["conv"], "shape": [1, 20, 5, 5],
            "layer": "pool",
            "attrs": window, "tensors": {}},
        {"name": "y", "op": "relu", "inputs": ["pool"], "shape": [1, 20, 5, 5], "layer": "",
            "attrs": {}, "tensors": {}},
    ]);
    let outputs = if seen {
        serde_json::json!({"tuple": [{"value": "y"}, {"value": "conv"}]})
    } else {
        serde_json::json!({"tuple": [{"value": "y"}]})
    };
    let graph = serde_json::json!({"nodes": nodes, "outputs": outputs, "notes": []});
    let tensors = BTreeMap::from([
        ("w".to_owned(), Tensor::I8(vec![20, 3, 3, 3], int8(540, 1))),
        ("s".to_owned(), Tensor::F32(vec![20], floats(20, 2))),
        ("i".to_owned(), Tensor::F32(vec![1], vec![50.0])),
    ]);
    Network::new(&graph.to_string(), &tensors).unwrap()
}

#[test]
fn fused_pooling_equals_separate_pooling() {
    let count = ThreadCount::lock();
    for (kernel, stride, padding, dilation, ceil_mode) in [
        (3, [2, 2], 1, 1, false),
        (2, [2, 2], 0, 1, true),
        (3, [3, 1], 1, 1, true),
        (2, [1, 1], 1, 2, false),
        (3, [1, 2], 1, 2, false),
        (2, [4, 4], 0, 1, false),
    ] {
        let window = serde_json::json!({"kernel": [kernel, kernel], "stride": stride,
            "padding": [padding, padding],
            "dilation": [dilation, dilation], "ceil_mode": ceil_mode});
        let (apart, fused) = (pooled(&window, true), pooled(&window, false));
        for threads in [1, 5] {
            count.set(threads);
            // On the last input, a band has fewer lines than the convolution's output.
            for (images, map) in [(1, [9, 9]), (3, [23, 14]), (1, [300, 400])] {
                let shape = [images, 3, map[0], map[1]];
                let x = floats(shape.iter().product(), 5);
                let input = [Input { shape: &shape, data: &x, channels_last: true }];
                let (apart, fused) = (apart.run(&input).unwrap(), fused.run(&input).unwrap());
                assert_eq!(fused[0], apart[0], "{window}, {shape:?}, {threads} threads");
            }
        }
    }
}
