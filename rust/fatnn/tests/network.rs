//! Whole networks through the public interface, compared with the reference operation by operation.

mod common;

use std::collections::BTreeMap;

use common::ThreadCount;
use common::example::{C, Example, example, image, node, one_bit_example, two_bit_example};
use fatnn::Error;
use fatnn::codec::WeightKind;
use fatnn::net::{Input, Network, Tensor};
use serde_json::{Value as Json, json};

#[test]
fn a_ternary_network_equals_the_reference() {
    equals_the_reference(&example());
}

#[test]
fn two_bit_and_binary_networks_equal_the_reference() {
    equals_the_reference(&two_bit_example());
    equals_the_reference(&one_bit_example());
}

#[test]
fn mismatched_activation_types_are_refused() {
    let example = two_bit_example();
    let json: Json = serde_json::from_str(&example.graph).unwrap();
    let build = |json: &Json, tensors: &BTreeMap<String, Tensor>| {
        Network::new(&json.to_string(), tensors).unwrap_err().to_string()
    };
    // A type that a later release might add.
    let mut other = json.clone();
    other["nodes"][1]["attrs"]["act"] = "uint4".into();
    assert!(
        build(&other, &example.tensors).contains("activations \"uint4\""),
        "{}",
        build(&other, &example.tensors)
    );
    // A convolution whose input has another coding; the wrong number of steps or thresholds.
    let mut other = json.clone();
    other["nodes"][2]["attrs"]["act"] = "half".into();
    let message = build(&other, &example.tensors);
    assert!(message.contains("layer of a") && message.contains("reads two-bit codes"), "{message}");
    for (name, tensor, says) in [
        ("steps", Tensor::F32(vec![2], vec![0.0, 1.0]), "steps must be 3 numbers, got 2"),
        ("t", Tensor::I32(vec![4, C], vec![0; 4 * C]), "(2 or 3, channels)"),
        ("t", Tensor::I32(vec![2, C], vec![0; 2 * C]), "makes ternary codes"),
        (
            "w1",
            Tensor::I8(vec![C, C, 3, 3], vec![1; C * C * 9]),
            "must be binary, ternary or two-bit, got int8",
        ),
    ] {
        let mut tensors = example.tensors.clone();
        tensors.insert(name.to_owned(), tensor);
        let message = build(&json, &tensors);
        assert!(message.contains(says), "{message}");
    }
}

/// Compares all input sizes, memory orders and numbers of threads.
fn equals_the_reference(example: &Example) {
    let net = Network::new(&example.graph, &example.tensors).unwrap();
    let count = ThreadCount::lock();
    for threads in [1, 2, 5] {
        count.set(threads);
        for (images, map) in [(1, [8, 8]), (3, [8, 8]), (1, [31, 30]), (2, [2, 5]), (0, [8, 8])] {
            let x = image(images, map, 3);
            let shape = [images, C, map[0], map[1]];
            let expected = example.expected(&x, images, map);
            let found = net.run(&[Input { shape: &shape, data: &x, channels_last: true }]).unwrap();
            assert_eq!(found[0].shape, [images, C, map[0] / 2, map[1] / 2]);
            assert_eq!(found[0].data, expected, "{threads} threads, {shape:?}");
            // The same image, channels-first.
            let pixels = map[0] * map[1];
            let first: Vec<f32> = (0..x.len())
                .map(|i| x[i / (C * pixels) * C * pixels + i % pixels * C + i / pixels % C])
                .collect();
            let again =
                net.run(&[Input { shape: &shape, data: &first, channels_last: false }]).unwrap();
            assert_eq!(found, again);
            let flat = found[0].channels_first().unwrap();
            assert_eq!(flat.len(), expected.len());
            if !flat.is_empty() {
                assert_eq!(flat[1], expected[C], "pixel 1 of channel 0");
            }
        }
    }
}

#[test]
fn later_runs_reuse_the_buffers() {
    let example = example();
    let net = Network::new(&example.graph, &example.tensors).unwrap();
    let x = image(1, [8, 8], 5);
    let run = || net.run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }]).unwrap();
    run();
    let bytes = net.buffer_bytes();
    assert!(bytes > 0);
    for _ in 0..5 {
        run();
        assert_eq!(net.buffer_bytes(), bytes);
    }
}

/// A network of one operation on two channels.
fn single(op: &str, attrs: &Json, tensors: &[(&str, Tensor)]) -> fatnn::Result<Network> {
    let named: BTreeMap<&str, &str> = tensors.iter().map(|(role, _)| (*role, *role)).collect();
    let graph = json!({"nodes": [
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, 2, 4, 4],
            "layer": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        {"name": "y", "op": op, "inputs": ["x"], "attrs": attrs, "tensors": named,
            "shape": [1, 2, 4, 4], "layer": ""},
    ], "outputs": {"value": "y"}, "notes": []});
    let tensors =
        tensors.iter().map(|(role, tensor)| ((*role).to_owned(), tensor.clone())).collect();
    Network::new(&graph.to_string(), &tensors)
}

#[test]
fn ceil_mode_pools_inputs_smaller_than_the_window() {
    let attrs = json!({"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0],
        "dilation": [1, 1],
        "ceil_mode": true});
    let net = single("max_pool2d", &attrs, &[]).unwrap();
    // Side of the input, and of PyTorch's output.
    for (side, out) in [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)] {
        let x: Vec<f32> = (0..side * side * 2).map(|i| i as f32).collect();
        let found = net
            .run(&[Input { shape: &[1, 2, side, side], data: &x, channels_last: true }])
            .unwrap();
        assert_eq!(found[0].shape, [1, 2, out, out], "side {side}");
        assert_eq!(found[0].data.last(), x.last());
    }
}

#[test]
fn sizes_beyond_memory_are_errors() {
    let huge = [1_000_000_000u64, (1 << 31) - 1];
    for size in huge {
        let pad = json!({"stride": [1, 1], "padding": [size, size], "dilation": [1, 1],
            "groups": 1});
        let weight = Tensor::F32(vec![2, 2, 1, 1], vec![1.0; 4]);
        let pool = json!({"kernel": [1, 1], "stride": [1, 1], "padding": [size, size],
            "dilation": [1, 1],
            "ceil_mode": true, "count_include_pad": true, "divisor": 0});
        let adaptive = json!({"size": [size, size]});
        for net in [
            single("conv2d", &pad, &[("weight", weight)]),
            single("max_pool2d", &pool, &[]),
            single("avg_pool2d", &pool, &[]),
            single("adaptive_avg_pool2d", &adaptive, &[]),
        ] {
            let x = [1.0; 32];
            let run = |net: Network| {
                net.run(&[Input { shape: &[1, 2, 4, 4], data: &x, channels_last: true }])
            };
            assert!(net.and_then(run).is_err());
        }
    }
    let net = single("relu", &json!({}), &[]).unwrap();
    for shape in [[0, 2, 1 << 40, 1], [usize::MAX, 2, 1, 1], [1 << 31, 2, 1 << 20, 1]] {
        assert!(
            net.run(&[Input { shape: &shape, data: &[], channels_last: true }]).is_err(),
            "{shape:?}"
        );
    }
    let empty = [("weight", Tensor::F32(vec![0], vec![]))];
    assert!(matches!(single("prelu", &json!({}), &empty), Err(Error::Graph { .. })));
}

#[test]
fn bad_inputs_are_errors_that_name_the_layer() {
    let example = example();
    let net = Network::new(&example.graph, &example.tensors).unwrap();
    let run = |shape: &[usize], len: usize| {
        let data = vec![0.0; len];
        net.run(&[Input { shape, data: &data, channels_last: true }]).unwrap_err().to_string()
    };
    assert!(run(&[1, C + 1, 8, 8], (C + 1) * 64).contains("70 channels"));
    assert!(run(&[1, C, 8], C * 8).contains("4 dimensions"));
    assert!(run(&[1, C, 8, 8], 5).contains("expected 4480 elements, got 5"));
    assert!(run(&[usize::MAX, C, 8, 8], 5).contains("fits in memory"));
    assert!(run(&[1, C, 1, 1], C).contains("layer of p"), "{}", run(&[1, C, 1, 1], C));
    assert!(net.run(&[]).unwrap_err().to_string().contains("inputs of the network"));
    let mut x = image(1, [8, 8], 4);
    x[77] = f32::NAN;
    let nan = net
        .run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }])
        .unwrap_err()
        .to_string();
    assert!(nan.contains("layer of q") && nan.contains("NaN"), "{nan}");
}

#[test]
fn damaged_graphs_never_panic() {
    for example in [example(), two_bit_example()] {
        damaged_never_panics(&example);
    }
}

fn damaged_never_panics(example: &Example) {
    let json: Json = serde_json::from_str(&example.graph).unwrap();
    let mut tried = 0;
    // Replace every value of the graph by several wrong ones.
    let mut paths = Vec::new();
    collect_pointers(&json, String::new(), &mut paths);
    for path in paths {
        for wrong in ["null", "-1", "0", "4294967297", "\"x\"", "[]", "[1]", "{}", "true", "1e300"]
        {
            let mut damaged = json.clone();
            *damaged.pointer_mut(&path).unwrap() = serde_json::from_str(wrong).unwrap();
            tried += 1;
            if let Ok(net) = Network::new(&damaged.to_string(), &example.tensors) {
                let x = image(1, [8, 8], 9);
                let _ = net.run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }]);
            }
        }
    }
    assert!(tried > 1000, "{tried}");
    for (name, tensor) in &example.tensors {
        let mut tensors = example.tensors.clone();
        tensors.remove(name);
        assert!(
            matches!(Network::new(&example.graph, &tensors), Err(Error::Graph { .. })),
            "{name}"
        );
        let cut = match tensor {
            Tensor::F32(..) => Tensor::F32(vec![1], vec![1.0]),
            Tensor::I32(..) => Tensor::I32(vec![2, 1], vec![1, 2]),
            _ => Tensor::Codes(WeightKind::Ternary, vec![1, C, 1, 1], vec![1; C]),
        };
        tensors.insert(name.clone(), cut);
        assert!(Network::new(&example.graph, &tensors).is_err(), "{name}");
    }
}

/// Collects the JSON pointers of all values.
fn collect_pointers(json: &Json, at: String, paths: &mut Vec<String>) {
    match json {
        Json::Object(map) => {
            map.iter().for_each(|(k, v)| collect_pointers(v, format!("{at}/{k}"), paths))
        }
        Json::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(i, v)| collect_pointers(v, format!("{at}/{i}"), paths)),
        _ => {}
    }
    if !at.is_empty() {
        paths.push(at);
    }
}

#[test]
fn fixed_sizes_and_unsupported_operations_are_named() {
    let example = example();
    let mut json: Json = serde_json::from_str(&example.graph).unwrap();
    // A network converted for one width only.
    json["nodes"][0]["attrs"]["fixed"] = json!([1, 3]);
    let net = Network::new(&json.to_string(), &example.tensors).unwrap();
    let run = |map: [usize; 2]| {
        let x = image(2, map, 3);
        net.run(&[Input { shape: &[2, C, map[0], map[1]], data: &x, channels_last: true }])
    };
    assert!(run([4, 8]).is_ok());
    let wrong = run([8, 6]).unwrap_err().to_string();
    assert!(
        wrong.contains("one shape only: expected [any, 70, any, 8], got [2, 70, 8, 6]"),
        "{wrong}"
    );
    // An operation that the engine lacks for these attributes.
    json["nodes"][4]["shape"] = json!([1, C, 1, 1]);
    json["nodes"][5]["inputs"][0] = "flat".into();
    let cut = json!({"pad": [-1, 0], "mode": "constant", "value": 0.0});
    let flat = node("flat", "pad", &["x"], cut, json!({}));
    json["nodes"].as_array_mut().unwrap().insert(5, flat);
    let Err(Error::Unsupported { what }) = Network::new(&json.to_string(), &example.tensors) else {
        panic!("not refused")
    };
    assert!(
        what.contains("\"flat\": operation \"pad\" (padding that cuts, or of the batch)"),
        "{what}"
    );
}
