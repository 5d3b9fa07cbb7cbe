//! What a network may cost, and what callers and files may ask for: nothing panics, nothing is
//! allocated that a limit forbids.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{codes, ternary};
use fatnn::codec::{Act, CodesLayout, Coding, WeightKind};
use fatnn::conv::{ConvShape, conv2d_acc};
use fatnn::net::{Input, Limits, Network, Output, Tensor};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::pool::max_pool_codes;
use fatnn::{Error, kernels, parallel};
use serde_json::{Value, json};

fn input(shape: &[usize]) -> Value {
    json!({"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": shape, "layer": "",
        "attrs": {"fixed": [], "channel_dim": 1}})
}

fn node(name: &str, op: &str, read: &[&str], attrs: Value, tensors: Value) -> Value {
    json!({"name": name, "op": op, "inputs": read, "attrs": attrs, "tensors": tensors, "shape": [1, 2, 4, 4],
        "layer": format!("layer of {name}"), "note": ""})
}

fn graph(nodes: &[Value], output: &str) -> String {
    json!({"nodes": nodes, "outputs": {"value": output}, "notes": []}).to_string()
}

/// A graph of one operation on two channels.
fn single(
    op: &str,
    attrs: Value,
    tensors: &[(&str, Tensor)],
    limits: Limits,
) -> fatnn::Result<Network> {
    let named: BTreeMap<&str, &str> = tensors.iter().map(|(role, _)| (*role, *role)).collect();
    let nodes = [input(&[1, 2, 4, 4]), node("y", op, &["x"], attrs, json!(named))];
    let tensors =
        tensors.iter().map(|(role, tensor)| ((*role).to_owned(), tensor.clone())).collect();
    Network::within(&graph(&nodes, "y"), &tensors, limits)
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::F32(shape.to_vec(), vec![1.0; shape.iter().product()])
}

#[test]
fn small_files_that_ask_for_much_are_refused_before_anything_is_allocated() {
    let limits = Limits { max_bytes: 1 << 20, max_macs: 1_000_000 };
    let pad = json!({"stride": [1, 1], "padding": [8192, 8192], "dilation": [1, 1], "groups": 1});
    let around = json!({"stride": [1, 1], "padding": [100, 100], "dilation": [1, 1], "groups": 1});
    let ternary = |kernel: usize| {
        json!({"kernel": [kernel, kernel], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1,
            "act": "half", "channels": 1, "dims": 2, "out_groups": 1, "relu": false})
    };
    let cases = [
        ("adaptive_avg_pool2d", json!({"size": [1 << 23, 4]}), vec![], "max_bytes"),
        ("adaptive_avg_pool2d", json!({"size": [4, 1 << 23]}), vec![], "max_bytes"),
        ("conv2d", pad, vec![("weight", ones(&[2, 2, 1, 1]))], "max_bytes"),
        (
            "pad",
            json!({"pad": [9999, 9999, 9999, 9999], "mode": "constant", "value": 0.0}),
            vec![],
            "max_bytes",
        ),
        ("conv2d", around, vec![("weight", ones(&[2, 2, 5, 5]))], "max_macs"),
    ];
    let before = Instant::now();
    for (op, attrs, tensors, argument) in cases {
        let error = single(op, attrs.clone(), &tensors, limits).unwrap_err();
        let Error::Limit { argument: got, .. } = error else { panic!("{op} {attrs}: {error}") };
        let text = error.to_string();
        assert!(
            got == argument && text.contains("layer of y") && text.contains(argument),
            "{op}: {text}"
        );
    }
    // Weights count before they are packed: a kernel of 2000 by 2000, which takes 64 channels for
    // every one.
    let nodes = [
        input(&[1, 1, 2000, 2000]),
        node(
            "q",
            "quantize",
            &["x"],
            json!({"channels": 1, "groups": 1, "act": "half", "dims": 2}),
            json!({"steps": "s"}),
        ),
        node("y", "conv_float", &["q"], ternary(2000), json!({"weight": "w"})),
    ];
    let tensors = BTreeMap::from([
        ("s".to_owned(), Tensor::F32(vec![2], vec![0.0, 1.0])),
        (
            "w".to_owned(),
            Tensor::Codes(WeightKind::Ternary, vec![1, 1, 2000, 2000], codes(4_000_000, 1)),
        ),
    ]);
    let error = Network::within(&graph(&nodes, "y"), &tensors, limits).unwrap_err();
    assert!(matches!(error, Error::Limit { argument: "max_bytes", .. }), "{error}");
    assert!(error.to_string().contains("\"y\""), "{error}");
    assert!(before.elapsed() < Duration::from_secs(5));
    // A run at larger inputs than were noted.
    let net = single("relu", json!({}), &[], limits).unwrap();
    let x = vec![1.0; 2 * 512 * 512];
    let error =
        net.run(&[Input { shape: &[1, 2, 512, 512], data: &x, channels_last: true }]).unwrap_err();
    assert!(
        error.to_string().contains("max_bytes") && error.to_string().contains("layer of y"),
        "{error}"
    );
    assert!(
        net.run(&[Input { shape: &[1, 2, 8, 8], data: &x[..128], channels_last: true }]).is_ok()
    );
    // Per image: a batch costs no more of them.
    let net =
        single("relu", json!({}), &[], Limits { max_macs: 2 * 2 * 16, ..Limits::NONE }).unwrap();
    assert!(
        net.run(&[Input { shape: &[64, 2, 4, 4], data: &x[..2048], channels_last: true }]).is_ok()
    );
}

#[test]
fn building_and_planning_are_linear_in_nodes() {
    const NODES: usize = 20_000;
    // Chains that fuse, chains that do not, and values that all live to the end.
    let kinds: [(&str, Value, Value); 3] = [
        ("relu", json!({}), json!({})),
        (
            "avg_pool2d",
            json!({"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "ceil_mode": false,
            "count_include_pad": true, "divisor": 0}),
            json!({}),
        ),
        (
            "conv2d",
            json!({"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
            json!({"weight": "w"}),
        ),
    ];
    let tensors = BTreeMap::from([("w".to_owned(), ones(&[2, 2, 1, 1]))]);
    let x = [1.0; 2];
    for (op, attrs, named) in kinds {
        let mut nodes = vec![input(&[1, 2, 1, 1])];
        for i in 0..NODES {
            let read = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
            nodes.push(node(&format!("n{i}"), op, &[&read], attrs.clone(), named.clone()));
        }
        let text = graph(&nodes, &format!("n{}", NODES - 1));
        let before = Instant::now();
        let net = Network::new(&text, &tensors).unwrap();
        net.run(&[Input { shape: &[1, 2, 1, 1], data: &x, channels_last: true }]).unwrap();
        assert!(before.elapsed() < Duration::from_secs(10), "{op}: {:?}", before.elapsed());
    }
    let mut nodes = vec![input(&[1, 2, 1, 1])];
    nodes.extend((0..NODES).map(|i| node(&format!("n{i}"), "relu", &["x"], json!({}), json!({}))));
    for i in 0..NODES - 1 {
        let sum = if i == 0 { "n0".to_owned() } else { format!("s{}", i - 1) };
        nodes.push(node(
            &format!("s{i}"),
            "add",
            &[&sum, &format!("n{}", i + 1)],
            json!({}),
            json!({}),
        ));
    }
    let before = Instant::now();
    let net = Network::new(&graph(&nodes, &format!("s{}", NODES - 2)), &tensors).unwrap();
    let found = net.run(&[Input { shape: &[1, 2, 1, 1], data: &x, channels_last: true }]).unwrap();
    assert_eq!(found[0].data, [NODES as f32; 2]);
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
}

#[test]
fn a_run_stops_between_nodes_when_it_is_told_to() {
    let attrs = json!({"stride": [1, 1], "padding": [2, 2], "dilation": [1, 1], "groups": 1});
    let mut nodes = vec![input(&[1, 8, 64, 64])];
    for i in 0..400 {
        let read = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
        nodes.push(node(
            &format!("n{i}"),
            "conv2d",
            &[&read],
            attrs.clone(),
            json!({"weight": "w"}),
        ));
    }
    let tensors = BTreeMap::from([("w".to_owned(), ones(&[8, 8, 5, 5]))]);
    let net = Network::new(&graph(&nodes, "n399"), &tensors).unwrap();
    let x = vec![1e-9; 3 * 8 * 64 * 64];
    for (threads, images) in [(1, 1), (2, 1), (1, 3), (2, 3)] {
        parallel::set_num_threads(threads).unwrap();
        let asked = AtomicUsize::new(0);
        let caller = std::thread::current().id();
        let go_on = || {
            assert_eq!(std::thread::current().id(), caller, "only the caller is asked");
            asked.fetch_add(1, Ordering::Relaxed) < 2
        };
        let shape = [images, 8, 64, 64];
        let inputs =
            [Input { shape: &shape, data: &x[..images * 8 * 64 * 64], channels_last: true }];
        let before = Instant::now();
        let stopped = net.run_while(&inputs, &go_on);
        assert!(
            matches!(stopped, Err(Error::Interrupted)),
            "{threads} threads, {images} images: {stopped:?}"
        );
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
        assert!(asked.load(Ordering::Relaxed) >= 3);
    }
}

#[test]
fn maps_without_pixels_never_panic() {
    let window = json!({"kernel": [2, 2], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1,
        "ceil_mode": true, "count_include_pad": true, "divisor": 0, "act": "half", "channels": 2, "dims": 2,
        "out_groups": 1, "relu": false, "size": [2, 2], "start": 1, "end": -1, "keepdim": true, "pad": [1, 1],
        "mode": "constant", "value": 0.0, "eps": 1e-5, "min_val": 0.0, "max_val": 1.0, "negative_slope": 0.1, "dim": 2});
    let vector = ones(&[2]);
    let tensors = |op: &str| match op {
        "conv2d" => vec![("weight", ones(&[3, 2, 2, 2])), ("bias", ones(&[3]))],
        "conv2d_int8" => {
            vec![
                ("weight", Tensor::I8(vec![3, 2, 2, 2], vec![1; 24])),
                ("scale", ones(&[3])),
                ("inv_step", ones(&[1])),
            ]
        }
        "batch_norm" => vec![("mean", vector.clone()), ("var", vector.clone())],
        "quantize" => vec![("steps", Tensor::F32(vec![2], vec![0.0, 1.0]))],
        "prelu" => vec![("weight", vector.clone())],
        "affine" => vec![("scale", vector.clone()), ("bias", vector.clone())],
        _ => vec![],
    };
    for op in [
        "flatten",
        "conv2d",
        "conv2d_int8",
        "batch_norm",
        "affine",
        "relu",
        "hardtanh",
        "leaky_relu",
        "prelu",
        "pad",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "mean",
        "sum",
        "amax",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "softmax",
        "log_softmax",
        "sigmoid",
    ] {
        let mut attrs = window.clone();
        match op {
            "mean" => attrs["dims"] = json!([2, 3]),
            "sum" | "amax" => attrs["dims"] = json!([0, 2]),
            _ => (),
        }
        let net = single(op, attrs, &tensors(op), Limits::DEFAULT).unwrap();
        for shape in [[1, 2, 0, 2], [1, 2, 2, 0], [1, 2, 0, 0], [0, 2, 3, 3], [2, 2, 0, 7]] {
            for channels_last in [false, true] {
                match net.run(&[Input { shape: &shape, data: &[], channels_last }]) {
                    Ok(outputs) => assert!(outputs[0].channels_first().is_ok(), "{op} {shape:?}"),
                    Err(error) => {
                        assert!(!matches!(error, Error::Memory { .. }), "{op} {shape:?}: {error}")
                    }
                }
            }
        }
    }
}

#[test]
fn structs_made_by_hand_are_errors_and_never_panics() {
    for (shape, values) in [
        (vec![], 1),
        (vec![1], 1),
        (vec![1, 2], 3),
        (vec![0, 2], 1),
        (vec![1, 0, 5], 1),
        (vec![usize::MAX, 2, 2], 4),
    ] {
        let output = Output { shape: shape.clone(), data: vec![1.0; values], channels_last: true };
        assert!(matches!(output.channels_first(), Err(Error::Shape { .. })), "{shape:?}");
    }
    let output =
        Output { shape: vec![1, 2, 2], data: vec![1.0, 2.0, 3.0, 4.0], channels_last: true };
    assert_eq!(output.channels_first().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    for (channels, groups) in
        [(1 << 60, 1 << 60), (usize::MAX, usize::MAX), (usize::MAX, 1), (1 << 59, 1 << 10)]
    {
        assert!(
            matches!(CodesLayout::new(channels, groups), Err(Error::Value { .. })),
            "{channels} {groups}"
        );
    }
    assert_eq!(CodesLayout::new(1 << 20, 1 << 20).unwrap().pixel_bytes(), 16 << 20);
    // Any numbers in the public structs.
    let layout = CodesLayout::new(3, 1).unwrap();
    let weight = WeightShape { out_channels: 2, channels: 3, kernel: [1, 1], groups: 1 };
    let packed = PackedWeights::new(&codes(6, 1), weight, ternary(Act::Half)).unwrap();
    let numbers = [0, 1, 2, usize::MAX, usize::MAX / 2, 1 << 31, 1 << 40];
    for &a in &numbers {
        for &b in &numbers {
            for &c in &numbers {
                let pairs = [[a, b], [b, c], [c, a]];
                for i in 0..3 {
                    let [input, stride, padding] =
                        [pairs[i], pairs[(i + 1) % 3], pairs[(i + 2) % 3]];
                    let shape = ConvShape {
                        batch: a,
                        input,
                        kernel: [1, 1],
                        stride,
                        padding,
                        dilation: [c, b],
                    };
                    let _ = shape.output();
                    let _ = conv2d_acc(&[0; 16], &packed, &shape, &mut [0; 2]);
                    let _ = max_pool_codes(
                        &[0; 16],
                        layout,
                        &ConvShape { kernel: [b, a], ..shape },
                        [c, a],
                        &mut [0; 16],
                    );
                    let odd =
                        WeightShape { out_channels: a, channels: b, kernel: [c, a], groups: c };
                    let _ = (odd.len(), odd.is_empty(), odd.reduction());
                    assert!(
                        PackedWeights::new(&[1, 0], odd, ternary(Act::Full)).is_err()
                            || odd.len() == 2
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_at_the_edge_of_their_type_are_errors() {
    for number in [
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(-1),
        json!(1u64 << 31),
        json!(0.5),
    ] {
        for key in ["stride", "padding", "dilation", "groups"] {
            let mut attrs =
                json!({"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1});
            attrs[key] = if key == "groups" { number.clone() } else { json!([number, number]) };
            let built =
                single("conv2d", attrs, &[("weight", ones(&[2, 2, 1, 1]))], Limits::DEFAULT);
            assert!(matches!(built, Err(Error::Graph { .. })), "{key} {number}");
        }
        let flatten =
            single("flatten", json!({"start": number, "end": number}), &[], Limits::DEFAULT);
        assert_eq!(flatten.is_err(), number != json!(-1), "{number}");
    }
    for eps in [json!(-1e308), json!(1e308), json!(-1e-9)] {
        let tensors = [("mean", ones(&[2])), ("var", ones(&[2]))];
        assert!(matches!(
            single("batch_norm", json!({"eps": eps}), &tensors, Limits::DEFAULT),
            Err(Error::Graph { .. })
        ));
    }
    let sizes = [("mean", ones(&[2])), ("var", ones(&[3]))];
    assert!(single("batch_norm", json!({"eps": 1e-5}), &sizes, Limits::DEFAULT).is_err());
    let sizes = [("mean", ones(&[3])), ("var", ones(&[3]))];
    assert!(
        single("batch_norm", json!({"eps": 1e-5}), &sizes, Limits::DEFAULT).is_err(),
        "three channels on two"
    );
    for broken in [vec![1; 65], vec![0, 1 << 62], vec![1 << 32, 1 << 32]] {
        let tensors = [("mean", Tensor::F32(broken.clone(), vec![1.0; 2])), ("var", ones(&[2]))];
        assert!(matches!(
            single("batch_norm", json!({"eps": 1e-5}), &tensors, Limits::DEFAULT),
            Err(Error::Graph { .. })
        ));
    }
}

#[test]
fn dims_that_do_not_fit_the_map_are_errors() {
    let conv = |dims: usize, padding: usize| {
        let attrs = json!({"kernel": [1, 1], "stride": [1, 1], "padding": [padding, padding], "dilation": [1, 1], "groups": 1,
            "act": "half", "channels": 2, "dims": dims, "out_groups": 1, "relu": false});
        let quantize = json!({"channels": 2, "groups": 1, "act": "half", "dims": 1});
        let mut x = input(&[1, 2, 5]);
        x["shape"] = json!([1, 2, 5]);
        let nodes = [
            x,
            node("q", "quantize", &["x"], quantize, json!({"steps": "s"})),
            node("y", "conv_float", &["q"], attrs, json!({"weight": "w"})),
        ];
        let tensors = BTreeMap::from([
            ("s".to_owned(), Tensor::F32(vec![2], vec![0.0, 1.0])),
            ("w".to_owned(), Tensor::Codes(WeightKind::Ternary, vec![1, 2, 1, 1], vec![1, 1])),
        ]);
        Network::new(&graph(&nodes, "y"), &tensors)
    };
    assert!(conv(1, 0).is_ok());
    for (dims, padding) in [(0, 0), (0, 1), (1, 2), (2, 0), (2, 2), (3, 0)] {
        assert!(
            matches!(conv(dims, padding), Err(Error::Graph { .. })),
            "dims {dims}, padding {padding}"
        );
    }
}

#[test]
fn words_that_are_no_codes_are_refused_by_every_reader() {
    let weight = WeightShape { out_channels: 2, channels: 70, kernel: [1, 1], groups: 1 };
    let layout = CodesLayout::new(70, 1).unwrap();
    let shape = ConvShape {
        batch: 1,
        input: [1, 2],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        dilation: [1, 1],
    };
    let good = vec![0u8; 64];
    // A bit of `z` in either word, without `p`; a bit of a channel that does not exist.
    for (at, bit) in [(32, 1), (48, 1), (32 + 16, 1 << 6), (32 + 24, 1 << 7)] {
        let mut bad = good.clone();
        bad[at] |= bit;
        for kernel in kernels::detected_for(ternary(Act::Full)) {
            for act in [Act::Full, Act::Half, Act::Binary] {
                let packed =
                    PackedWeights::for_kernel(kernel, &codes(140, 3), weight, ternary(act))
                        .unwrap();
                assert!(
                    conv2d_acc(&good, &packed, &shape, &mut [0; 4]).is_ok(),
                    "{}",
                    kernel.name()
                );
                let error = conv2d_acc(&bad, &packed, &shape, &mut [0; 4]).unwrap_err().to_string();
                assert!(error.contains("pixel 1"), "{} {at}: {error}", kernel.name());
            }
        }
        assert!(layout.unpack(&bad, &mut [0; 140]).is_err());
        assert!(max_pool_codes(&bad, layout, &shape, [1, 2], &mut [0; 64]).is_err());
    }
    // Binary codes are -1 and 0: +1 is none of them. Every pair of bits is a code of two.
    let mut one = good.clone();
    one[8] = 1;
    let of = |act| PackedWeights::new(&codes(140, 3), weight, ternary(act)).unwrap();
    assert!(conv2d_acc(&one, &of(Act::Half), &shape, &mut [0; 4]).is_ok());
    assert!(conv2d_acc(&one, &of(Act::Binary), &shape, &mut [0; 4]).is_err());
    one[8] = 0;
    one[0] = 1;
    assert!(conv2d_acc(&one, &of(Act::Uint2), &shape, &mut [0; 4]).is_ok());
    assert!(layout.with(Coding::Uint2).check(&one).is_ok() && layout.check(&one).is_err());
}
