//! Whole networks through the public interface, against the reference operation by operation. No
//! Python anywhere.

mod common;

use std::collections::BTreeMap;

use common::{Random, codes, values};
use fatnn::codec::{Act, WeightKind};
use fatnn::conv::ConvShape;
use fatnn::graph::check::check;
use fatnn::graph::{Graph, Source};
use fatnn::net::{FORMAT_VERSION, Input, Network, Tensor, load, save};
use fatnn::pack::WeightShape;
use fatnn::quantize::PixelOrder;
use fatnn::{Error, parallel, reference};

const C: usize = 70;

/// Quantize, ternary convolution to codes, max pooling on codes, ternary convolution to floats with
/// ReLU, residual.
struct Example {
    graph: String,
    tensors: BTreeMap<String, Tensor>,
    w1: Vec<i8>,
    w2: Vec<i8>,
    thresholds: Vec<i32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    steps: Vec<f32>,
    act: Act,
}

fn node(
    name: &str,
    op: &str,
    inputs: &[&str],
    attrs: serde_json::Value,
    tensors: serde_json::Value,
) -> serde_json::Value {
    serde_json::json!({"name": name, "op": op, "inputs": inputs, "attrs": attrs, "tensors": tensors,
        "shape": [1, C, 8, 8], "layer": format!("layer of {name}"), "note": ""})
}

fn example() -> Example {
    let mut random = Random(7);
    let (w1, w2) = (codes(C * C * 9, 1), codes(C * C, 2));
    let low: Vec<i32> = (0..C).map(|_| random.below(60) as i32 - 30).collect();
    let high: Vec<i32> = low.iter().map(|low| low + random.below(40) as i32).collect();
    let thresholds = [low, high].concat();
    let scale: Vec<f32> = (0..C).map(|_| random.float()).collect();
    let bias: Vec<f32> = (0..C).map(|_| random.float() * 9.0).collect();
    let steps = vec![0.25, 1.5];
    let window = |kernel: usize, padding: usize, stride: usize, attrs: serde_json::Value| {
        let mut window = serde_json::json!({"kernel": [kernel, kernel], "stride": [stride, stride],
            "padding": [padding, padding], "dilation": [1, 1]});
        window.as_object_mut().unwrap().extend(attrs.as_object().unwrap().clone());
        window
    };
    let conv =
        serde_json::json!({"act": "half", "groups": 1, "channels": C, "dims": 2, "out_groups": 1});
    let to_float =
        serde_json::json!({"act": "half", "groups": 1, "channels": C, "dims": 2, "relu": false});
    let pool = serde_json::json!({"ceil_mode": false});
    let none = serde_json::json!({});
    let mut nodes = serde_json::json!([
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, C, 8, 8], "layer": "", "note": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        node("q", "quantize", &["x"], serde_json::json!({"channels": C, "groups": 1, "act": "half", "dims": 2}),
            serde_json::json!({"steps": "steps"})),
        node("a", "conv_codes", &["q"], window(3, 1, 1, conv), serde_json::json!({"weight": "w1", "thresholds": "t"})),
        node("p", "max_pool_codes", &["a"], window(2, 0, 2, pool.clone()), none.clone()),
        node("b", "conv_float", &["p"], window(1, 0, 1, to_float),
            serde_json::json!({"weight": "w2", "scale": "s", "bias": "b"})),
        node("pooled", "max_pool2d", &["x"], window(2, 0, 2, pool), none.clone()),
        node("sum", "add", &["b", "pooled"], none.clone(), none.clone()),
        node("y", "relu", &["sum"], none.clone(), none),
    ]);
    for node in nodes.as_array_mut().unwrap() {
        let codes = ["q", "a", "p"].contains(&node["name"].as_str().unwrap());
        let ternary = serde_json::json!({"codes": "ternary", "channels": C, "groups": 1});
        node["dtype"] = if codes { ternary } else { "float32".into() };
        if ["p", "b", "pooled", "sum", "y"].contains(&node["name"].as_str().unwrap()) {
            node["shape"] = serde_json::json!([1, C, 4, 4]);
        }
    }
    let graph =
        serde_json::json!({"nodes": nodes, "outputs": {"tuple": [{"value": "y"}]}, "notes": []})
            .to_string();
    let tensors = BTreeMap::from([
        ("w1".to_owned(), Tensor::Codes(WeightKind::Ternary, vec![C, C, 3, 3], w1.clone())),
        ("w2".to_owned(), Tensor::Codes(WeightKind::Ternary, vec![C, C, 1, 1], w2.clone())),
        ("t".to_owned(), Tensor::I32(vec![2, C], thresholds.clone())),
        ("s".to_owned(), Tensor::F32(vec![C], scale.clone())),
        ("b".to_owned(), Tensor::F32(vec![C], bias.clone())),
        ("steps".to_owned(), Tensor::F32(vec![2], steps.clone())),
    ]);
    Example { graph, tensors, w1, w2, thresholds, scale, bias, steps, act: Act::Half }
}

impl Example {
    /// The same by obvious loops; `x` is channels-last.
    fn expected(&self, x: &[f32], images: usize, [h, w]: [usize; 2]) -> Vec<f32> {
        let shape = |input, kernel: usize, padding, stride| ConvShape {
            batch: images,
            input,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 2],
            dilation: [1; 2],
        };
        let weight = |kernel: usize| WeightShape {
            out_channels: C,
            channels: C,
            kernel: [kernel; 2],
            groups: 1,
        };
        let q = reference::quantize(x, [images, h * w, C], PixelOrder::ChannelsLast, &self.steps);
        let acc = reference::conv2d_acc(&q, &self.w1, weight(3), self.act, &shape([h, w], 3, 1, 1));
        let pooling = shape([h, w], 2, 0, 2);
        let half = [h / 2, w / 2];
        let p = reference::max_pool(
            &reference::to_codes(&acc, &self.thresholds, C, self.act.coding()),
            C,
            &pooling,
            half,
        );
        let acc = reference::conv2d_acc(&p, &self.w2, weight(1), self.act, &shape(half, 1, 0, 1));
        let b = reference::to_float(&acc, C, Some(&self.scale), Some(&self.bias), None, false);
        let at = |n: usize, y: usize, x: usize, c: usize| ((n * h + y) * w + x) * C + c;
        let value = |i: usize| {
            let (c, ox, oy, n) =
                (i % C, i / C % half[1], i / C / half[1] % half[0], i / C / half[1] / half[0]);
            let corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
                .map(|(dy, dx)| x[at(n, 2 * oy + dy, 2 * ox + dx, c)]);
            (b[i] + corners.into_iter().fold(f32::NEG_INFINITY, f32::max)).max(0.0)
        };
        (0..b.len()).map(value).collect()
    }
}

/// The same with activations of another kind.
fn example_of(act: Act) -> Example {
    let mut example = example();
    let mut json: serde_json::Value = serde_json::from_str(&example.graph).unwrap();
    for node in json["nodes"].as_array_mut().unwrap() {
        if node["attrs"].get("act").is_some() {
            node["attrs"]["act"] = act.name().into();
        }
        if node["dtype"].get("codes").is_some() {
            node["dtype"]["codes"] = act.code_type().name().into();
        }
    }
    example.graph = json.to_string();
    example.act = act;
    example
}

/// The same with binary activations and, in the first convolution, binary weights.
fn example_of_one_bit() -> Example {
    let mut example = example_of(Act::Binary);
    example.w1 = values(WeightKind::Binary.codes(), C * C * 9, 1);
    // What the second threshold separates does not occur.
    example.steps[1] = f32::INFINITY;
    example.thresholds[C..].fill(i32::MAX);
    example.tensors.insert(
        "w1".to_owned(),
        Tensor::Codes(WeightKind::Binary, vec![C, C, 3, 3], example.w1.clone()),
    );
    example.tensors.insert("t".to_owned(), Tensor::I32(vec![2, C], example.thresholds.clone()));
    example.tensors.insert("steps".to_owned(), Tensor::F32(vec![2], example.steps.clone()));
    example
}

/// The same with activations of two bits and, in the first convolution, weights of two bits.
fn example_of_two_bits() -> Example {
    let mut example = example_of(Act::Uint2);
    example.w1 = values(WeightKind::TwoBit.codes(), C * C * 9, 1);
    example.steps.push(2.0);
    let third: Vec<i32> = example.thresholds[C..].iter().map(|high| high + 25).collect();
    example.thresholds.extend(third);
    example.tensors.insert(
        "w1".to_owned(),
        Tensor::Codes(WeightKind::TwoBit, vec![C, C, 3, 3], example.w1.clone()),
    );
    example.tensors.insert("t".to_owned(), Tensor::I32(vec![3, C], example.thresholds.clone()));
    example.tensors.insert("steps".to_owned(), Tensor::F32(vec![3], example.steps.clone()));
    example
}

fn image(images: usize, [h, w]: [usize; 2], seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..images * h * w * C).map(|_| random.float() * 3.0).collect()
}

#[test]
fn a_network_equals_the_reference_for_every_size_order_and_number_of_threads() {
    equals_the_reference(&example());
}

#[test]
fn a_network_of_two_bits_equals_the_reference() {
    equals_the_reference(&example_of_two_bits());
    equals_the_reference(&example_of_one_bit());
}

#[test]
fn kinds_of_activations_that_do_not_fit_are_refused() {
    let example = example_of_two_bits();
    let json: serde_json::Value = serde_json::from_str(&example.graph).unwrap();
    let build = |json: &serde_json::Value, tensors: &BTreeMap<String, Tensor>| {
        Network::new(&json.to_string(), tensors).unwrap_err().to_string()
    };
    // A kind that a later release might have.
    let mut other = json.clone();
    other["nodes"][1]["attrs"]["act"] = "uint4".into();
    assert!(
        build(&other, &example.tensors).contains("activations \"uint4\""),
        "{}",
        build(&other, &example.tensors)
    );
    // A convolution that reads another coding than its input has; steps and thresholds of another
    // number.
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

fn equals_the_reference(example: &Example) {
    let net = Network::new(&example.graph, &example.tensors).unwrap();
    for threads in [1, 2, 5] {
        parallel::set_num_threads(threads).unwrap();
        for (images, map) in [(1, [8, 8]), (3, [8, 8]), (1, [31, 30]), (2, [2, 5]), (0, [8, 8])] {
            let x = image(images, map, 3);
            let shape = [images, C, map[0], map[1]];
            let expected = example.expected(&x, images, map);
            let found = net.run(&[Input { shape: &shape, data: &x, channels_last: true }]).unwrap();
            assert_eq!(found[0].shape, [images, C, map[0] / 2, map[1] / 2]);
            assert_eq!(found[0].data, expected, "{threads} threads, {shape:?}");
            // The same image, channels first.
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
fn buffers_are_kept_and_reused() {
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

#[test]
fn a_file_runs_without_python() {
    for (example, name) in [(example(), "ternary"), (example_of_two_bits(), "two-bits")] {
        runs_from_a_file(&example, name);
    }
}

fn runs_from_a_file(example: &Example, name: &str) {
    let path = std::env::temp_dir()
        .join(format!("fatnn-network-{name}-{}.safetensors", std::process::id()));
    save(&path, &example.graph, &example.tensors).unwrap();
    assert_eq!(load(&path).unwrap(), (example.graph.clone(), example.tensors.clone()));
    let net = Network::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let x = image(1, [8, 8], 6);
    let out = net.run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }]).unwrap();
    assert_eq!(out[0].data, example.expected(&x, 1, [8, 8]));
    assert_eq!(net.inputs().map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
    assert_eq!(net.outputs().map(|(name, _)| name).collect::<Vec<_>>(), ["y"]);
}

fn golden(name: &str, version: u64) -> std::path::PathBuf {
    let file = format!("tests/golden/{name}-v{version}.safetensors");
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// What the golden files hold.
fn golden_examples() -> [(&'static str, Example); 3] {
    [
        ("network", example()),
        ("network-two-bits", example_of_two_bits()),
        ("network-one-bit", example_of_one_bit()),
    ]
}

#[test]
#[ignore = "writes golden files: only when the version of the format changes"]
fn write_the_golden_files() {
    for (name, example) in golden_examples() {
        save(golden(name, FORMAT_VERSION), &example.graph, &example.tensors).unwrap();
    }
}

/// Written once, by the first release of the format: what users have on their disks.
#[test]
fn the_golden_files_still_load_and_are_still_written_so() {
    for (name, example) in golden_examples() {
        let file = golden(name, FORMAT_VERSION);
        let (graph, tensors) = load(&file).unwrap();
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parsed(&graph), parsed(&example.graph));
        assert_eq!(tensors, example.tensors);
        let types =
            check(&Graph::parse(&graph, Source::File).unwrap(), &tensors, Source::File).unwrap();
        assert_eq!(types.iter().filter(|dtype| dtype.is_codes()).count(), 3);
        let path = std::env::temp_dir()
            .join(format!("fatnn-golden-{name}-{}.safetensors", std::process::id()));
        save(&path, &graph, &tensors).unwrap();
        let again = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(again == std::fs::read(&file).unwrap(), "the same network gives other bytes");
    }
}

#[test]
fn golden_files_of_version_1_give_the_same_tensors_and_results() {
    for (name, example) in golden_examples() {
        let file = golden(name, 1);
        let (graph, tensors) = load(&file).unwrap();
        assert_eq!(tensors, example.tensors);
        let parsed: serde_json::Value = serde_json::from_str(&graph).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&example.graph).unwrap();
        for (node, expected) in
            parsed["nodes"].as_array().unwrap().iter().zip(expected["nodes"].as_array().unwrap())
        {
            assert_eq!(node["dtype"], expected["dtype"], "{}", node["name"]);
        }
        let x = image(2, [8, 8], 3);
        let found = Network::load(&file).unwrap().run(&[Input {
            shape: &[2, C, 8, 8],
            data: &x,
            channels_last: true,
        }]);
        assert_eq!(found.unwrap()[0].data, example.expected(&x, 2, [8, 8]));
    }
}

/// A graph of one operation on two channels.
fn single(
    op: &str,
    attrs: &serde_json::Value,
    tensors: &[(&str, Tensor)],
) -> fatnn::Result<Network> {
    let named: BTreeMap<&str, &str> = tensors.iter().map(|(role, _)| (*role, *role)).collect();
    let graph = serde_json::json!({"nodes": [
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, 2, 4, 4], "layer": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        {"name": "y", "op": op, "inputs": ["x"], "attrs": attrs, "tensors": named, "shape": [1, 2, 4, 4], "layer": ""},
    ], "outputs": {"value": "y"}, "notes": []});
    let tensors =
        tensors.iter().map(|(role, tensor)| ((*role).to_owned(), tensor.clone())).collect();
    Network::new(&graph.to_string(), &tensors)
}

#[test]
fn pooling_in_ceil_mode_may_have_a_window_larger_than_the_map() {
    let attrs = serde_json::json!({"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1],
        "ceil_mode": true});
    let net = single("max_pool2d", &attrs, &[]).unwrap();
    // PyTorch's sizes: side of the map, side of the result.
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
        let pad = serde_json::json!({"stride": [1, 1], "padding": [size, size], "dilation": [1, 1], "groups": 1});
        let weight = Tensor::F32(vec![2, 2, 1, 1], vec![1.0; 4]);
        let pool = serde_json::json!({"kernel": [1, 1], "stride": [1, 1], "padding": [size, size], "dilation": [1, 1],
            "ceil_mode": true, "count_include_pad": true, "divisor": 0});
        let adaptive = serde_json::json!({"size": [size, size]});
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
    let net = single("relu", &serde_json::json!({}), &[]).unwrap();
    for shape in [[0, 2, 1 << 40, 1], [usize::MAX, 2, 1, 1], [1 << 31, 2, 1 << 20, 1]] {
        assert!(
            net.run(&[Input { shape: &shape, data: &[], channels_last: true }]).is_err(),
            "{shape:?}"
        );
    }
    let empty = [("weight", Tensor::F32(vec![0], vec![]))];
    assert!(matches!(single("prelu", &serde_json::json!({}), &empty), Err(Error::Graph { .. })));
}

#[test]
fn what_does_not_fit_is_an_error_that_names_the_place() {
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
    assert!(net.run::<Input<'_>>(&[]).unwrap_err().to_string().contains("inputs of the network"));
    let mut x = image(1, [8, 8], 4);
    x[77] = f32::NAN;
    let nan = net
        .run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }])
        .unwrap_err()
        .to_string();
    assert!(nan.contains("layer of q") && nan.contains("NaN"), "{nan}");
}

#[test]
fn damaged_graphs_are_errors_and_never_panics() {
    for example in [example(), example_of_two_bits()] {
        damage(&example);
    }
}

fn damage(example: &Example) {
    let json: serde_json::Value = serde_json::from_str(&example.graph).unwrap();
    let mut tried = 0;
    // Every value anywhere in the graph, replaced by several that make no sense there.
    let mut paths = Vec::new();
    collect(&json, String::new(), &mut paths);
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

/// JSON pointers to every value.
fn collect(json: &serde_json::Value, at: String, paths: &mut Vec<String>) {
    match json {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(k, v)| collect(v, format!("{at}/{k}"), paths))
        }
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| collect(v, format!("{at}/{i}"), paths))
        }
        _ => {}
    }
    if !at.is_empty() {
        paths.push(at);
    }
}

#[test]
fn what_only_pytorch_runs_and_sizes_that_are_fixed_are_named() {
    let example = example();
    let mut json: serde_json::Value = serde_json::from_str(&example.graph).unwrap();
    // A network captured for one width.
    json["nodes"][0]["attrs"]["fixed"] = serde_json::json!([1, 3]);
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
    // An operation that the engine does not have for such attributes.
    json["nodes"][4]["shape"] = serde_json::json!([1, C, 1, 1]);
    json["nodes"][5]["inputs"][0] = "flat".into();
    let cut = serde_json::json!({"pad": [-1, 0], "mode": "constant", "value": 0.0});
    let flat = node("flat", "pad", &["x"], cut, serde_json::json!({}));
    json["nodes"].as_array_mut().unwrap().insert(5, flat);
    let Err(Error::Unsupported { what }) = Network::new(&json.to_string(), &example.tensors) else {
        panic!("not refused")
    };
    assert!(
        what.contains("\"flat\": operation \"pad\" (padding that cuts, or of the batch)"),
        "{what}"
    );
}
