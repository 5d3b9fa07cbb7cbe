//! Limits of networks, and the time to build and to stop large ones.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::graphs::{graph, input, node, ones, single};
use common::{ThreadCount, codes};
use fatnn::Error;
use fatnn::codec::WeightKind;
use fatnn::net::{Input, Limits, Network, Tensor};
use serde_json::{Value, json};

#[test]
fn limits_are_checked_before_allocations() {
    let limits = Limits { max_bytes: 1 << 20, max_macs: 1_000_000 };
    let pad = json!({"stride": [1, 1], "padding": [8192, 8192], "dilation": [1, 1], "groups": 1});
    let around = json!({"stride": [1, 1], "padding": [100, 100], "dilation": [1, 1], "groups": 1});
    let ternary = |kernel: usize| {
        json!({"kernel": [kernel, kernel], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
            "groups": 1,
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
    // Weights are counted before packing, which pads each channel of this 2000×2000 kernel to 64.
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
    // A run with larger inputs than the graph's.
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
    // The limit is per image, so the batch does not matter.
    let net =
        single("relu", json!({}), &[], Limits { max_macs: 2 * 2 * 16, ..Limits::NONE }).unwrap();
    assert!(
        net.run(&[Input { shape: &[64, 2, 4, 4], data: &x[..2048], channels_last: true }]).is_ok()
    );
}

#[test]
fn building_and_planning_take_linear_time() {
    const NODES: usize = 20_000;
    // Chains that fuse, chains that do not, and values that all live until the end.
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
fn a_run_stops_between_nodes_on_request() {
    let count = ThreadCount::lock();
    let attrs = json!({"stride": [1, 1], "padding": [2, 2], "dilation": [1, 1], "groups": 1});
    // Without a stop, a fast CPU takes more than a second; one node takes little even if emulated.
    let mut nodes = vec![input(&[1, 16, 64, 64])];
    for i in 0..1600 {
        let read = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
        nodes.push(node(
            &format!("n{i}"),
            "conv2d",
            &[&read],
            attrs.clone(),
            json!({"weight": "w"}),
        ));
    }
    let tensors = BTreeMap::from([("w".to_owned(), ones(&[16, 16, 5, 5]))]);
    let net = Network::new(&graph(&nodes, "n1599"), &tensors).unwrap();
    let x = vec![1e-9; 3 * 16 * 64 * 64];
    for (threads, images) in [(1, 1), (2, 1), (1, 3), (2, 3)] {
        count.set(threads);
        let asked = AtomicUsize::new(0);
        let caller = std::thread::current().id();
        let go_on = || {
            assert_eq!(std::thread::current().id(), caller, "only the caller is asked");
            asked.fetch_add(1, Ordering::Relaxed) < 2
        };
        let shape = [images, 16, 64, 64];
        let inputs =
            [Input { shape: &shape, data: &x[..shape.iter().product()], channels_last: true }];
        let before = Instant::now();
        let stopped = net.run_while(&inputs, &go_on).map(|outputs| outputs.len());
        assert!(
            matches!(stopped, Err(Error::Interrupted)),
            "{threads} threads, {images} images: {stopped:?}"
        );
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
        assert!(asked.load(Ordering::Relaxed) >= 3);
    }
}
