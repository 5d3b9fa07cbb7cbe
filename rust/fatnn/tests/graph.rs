//! The table of operations, and the parsing and checks of graphs.

use std::collections::BTreeMap;

use fatnn::Error;
use fatnn::dtype::{CodeType, ValueType, WeightKind};
use fatnn::graph::check::check;
use fatnn::graph::cost::check_sizes;
use fatnn::graph::ops::{OPS, OpInfo};
use fatnn::graph::{Graph, Source, Tensor, Tensors, support};
use fatnn::net::{Limits, load};
use serde_json::{Value as Json, json};

fn node(name: &str, op: &str, inputs: &[&str], attrs: Json, shape: &[usize]) -> Json {
    json!({"name": name, "op": op, "inputs": inputs, "attrs": attrs, "tensors": {}, "shape": shape,
        "dtype": "float32",
        "layer": format!("layer of {name}"), "note": ""})
}

fn input(shape: &[usize]) -> Json {
    node("x", "input", &[], json!({"fixed": [], "channel_dim": 0}), shape)
}

fn text(nodes: &[Json], output: &str) -> String {
    json!({"nodes": nodes, "outputs": {"value": output}, "notes": []}).to_string()
}

fn sizes(text: &str, tensors: &Tensors, limits: Limits) -> fatnn::Result<Vec<Vec<usize>>> {
    let graph = Graph::parse(text, Source::File)?;
    let types = check(&graph, tensors, Source::File)?;
    check_sizes(&graph, tensors, &types, limits)
}

#[test]
fn table_names_are_unique_and_attribute_types_consistent() {
    for (i, row) in OPS.iter().enumerate() {
        assert!(OPS[..i].iter().all(|other| other.name != row.name), "{}", row.name);
        assert_eq!(OpInfo::named(row.name).map(|found| found.name), Some(row.name));
        for (j, attr) in row.attrs.iter().enumerate() {
            assert!(
                row.attrs[..j].iter().all(|other| other.name != attr.name),
                "{}: {}",
                row.name,
                attr.name
            );
            // For a mean, "dims" is a list; for other operations, a number.
            let same = OPS
                .iter()
                .filter_map(|row| row.attr(attr.name))
                .all(|other| other.kind == attr.kind);
            assert!(same || attr.name == "dims", "{}: {}", row.name, attr.name);
        }
    }
}

#[test]
fn shape_rules_hold_for_all_ranks() {
    let cases = [
        (
            "mean",
            json!({"dims": [-1, 1], "keepdim": false, "layout": "any"}),
            vec![2, 3, 4, 5, 6],
            vec![2, 4, 5],
        ),
        ("mean", json!({"dims": [], "keepdim": true, "layout": "any"}), vec![2, 3], vec![1, 1]),
        ("amax", json!({"dims": [0], "keepdim": false}), vec![2, 3], vec![3]),
        (
            "norm",
            json!({"dims": [-1], "keepdim": true, "p": 2, "layout": "any"}),
            vec![2, 3],
            vec![2, 1],
        ),
        (
            "std",
            json!({"dims": [], "keepdim": false, "correction": 1, "layout": "any"}),
            vec![2, 3],
            vec![],
        ),
        ("addcmul", json!({"value": 0.5, "layout": "any|any|any"}), vec![2, 3], vec![2, 3]),
        (
            "layer_norm",
            json!({"dims": 2, "eps": 1e-5, "layout": "any"}),
            vec![2, 3, 4],
            vec![2, 3, 4],
        ),
        (
            "group_norm",
            json!({"groups": 3, "eps": 1e-5, "layout": "any"}),
            vec![2, 6, 4],
            vec![2, 6, 4],
        ),
        ("softmax", json!({"dim": -1, "layout": "any"}), vec![2, 3], vec![2, 3]),
        ("matmul", json!({"layout": "any|order:0,2,1"}), vec![2, 4, 4], vec![2, 4, 4]),
        ("attention", json!({"causal": true, "layout": "any"}), vec![5, 2, 4, 3], vec![5, 2, 4, 3]),
        ("flatten", json!({"start": -3, "end": -2}), vec![2, 3, 4, 5], vec![2, 12, 5]),
        ("flatten", json!({"start": 0, "end": -1}), vec![], vec![1]),
        ("flatten_leading", json!({}), vec![2, 3, 4, 5], vec![24, 5]),
        (
            "pad",
            json!({"pad": [1, 2, -1, 0], "mode": "constant", "value": 0.0}),
            vec![7, 5, 6],
            vec![7, 4, 9],
        ),
        (
            "pad",
            json!({"pad": [3, 3], "mode": "reflect", "value": 0.0}),
            vec![1, 2, 4],
            vec![1, 2, 10],
        ),
        ("cat", json!({"dim": -1}), vec![2, 3, 4], vec![2, 3, 8]),
        ("max_pool2d", window(3, 2, 1, true), vec![1, 2, 6, 6], vec![1, 2, 4, 4]),
        ("max_pool2d", window(3, 2, 1, false), vec![2, 6, 6], vec![2, 3, 3]),
        (
            "adaptive_avg_pool2d",
            json!({"size": [0, 3], "layout": "any"}),
            vec![1, 2, 7, 9],
            vec![1, 2, 7, 3],
        ),
    ];
    for (op, attrs, from, to) in cases {
        let reads: &[&str] = match op {
            "cat" | "matmul" => &["x", "x"],
            "attention" | "addcmul" => &["x", "x", "x"],
            _ => &["x"],
        };
        let graph =
            |to: &[usize]| text(&[input(&from), node("y", op, reads, attrs.clone(), to)], "y");
        let found = sizes(&graph(&to), &BTreeMap::new(), Limits::NONE).unwrap();
        assert_eq!(found[1], to, "{op} {attrs}");
        let other = [to.as_slice(), &[1]].concat();
        let error = sizes(&graph(&other), &BTreeMap::new(), Limits::NONE).unwrap_err().to_string();
        assert!(error.contains("layer of y") && error.contains("was declared"), "{error}");
    }
}

fn window(kernel: usize, stride: usize, padding: usize, ceil_mode: bool) -> Json {
    json!({"kernel": [kernel, kernel], "stride": [stride, stride], "padding": [padding, padding],
        "dilation": [1, 1],
        "ceil_mode": ceil_mode})
}

#[test]
fn shape_errors_name_the_layer() {
    let pad = |mode: &str, pad: &[i64]| json!({"pad": pad, "mode": mode, "value": 0.0});
    let cases = [
        ("flatten", json!({"start": 2, "end": 1}), "start 2 is after end 1"),
        ("flatten", json!({"start": 0, "end": 4}), "out of range"),
        ("mean", json!({"dims": [1, -3], "keepdim": true, "layout": "any"}), "stands twice"),
        ("softmax", json!({"dim": 4, "layout": "any"}), "out of range"),
        ("layer_norm", json!({"dims": 5, "eps": 1e-5, "layout": "any"}), "last dimensions"),
        ("layer_norm", json!({"dims": 1, "eps": -1e-5, "layout": "any"}), "negative"),
        ("group_norm", json!({"groups": 2, "eps": 1e-5, "layout": "any"}), "do not fit"),
        ("pad", pad("constant", &[-9, 0]), "leaves nothing"),
        ("pad", pad("reflect", &[6, 0, 0, 0]), "reflect padding"),
        ("pad", pad("mirror", &[1, 1]), "unknown mode"),
        ("max_pool2d", window(9, 1, 0, false), "does not fit a map"),
        ("max_pool2d", window(3, 1, 2, false), "at most half"),
        ("max_pool1d", window(3, 1, 0, false), "must have 1 numbers"),
        ("relu", json!({"slope": 1}), "expected the attributes"),
        ("leaky_relu", json!({"negative_slope": "1"}), "must be float"),
        ("fake_quantize", json!({"step_size": 0.0, "low": 0, "high": 255}), "positive number"),
        ("fake_quantize", json!({"step_size": 1e-45, "low": 0, "high": 255}), "reciprocal"),
        ("fake_quantize", json!({"step_size": 0.5, "low": -1, "high": 128}), "within -128..127"),
        ("fake_quantize", json!({"step_size": 0.5, "low": 3, "high": 2}), "3 to 2"),
        ("fold", json!({}), "unknown op"),
    ];
    for (op, attrs, words) in cases {
        let graph = text(&[input(&[2, 3, 6, 6]), node("y", op, &["x"], attrs, &[2, 3, 6, 6])], "y");
        let error = sizes(&graph, &BTreeMap::new(), Limits::NONE).unwrap_err().to_string();
        assert!(error.contains(words), "{op}: {error}");
        assert!(error.contains("layer of y") || error.contains("\"y\""), "{op}: {error}");
    }
}

#[test]
fn limit_errors_name_the_first_node_above_the_limit() {
    let graph = text(&[input(&[2, 64]), node("y", "relu", &["x"], json!({}), &[2, 64])], "y");
    let run = |limits| sizes(&graph, &BTreeMap::new(), limits);
    assert!(run(Limits { max_bytes: 1024, max_macs: 128 }).is_ok());
    for limits in
        [Limits { max_bytes: 1023, max_macs: 128 }, Limits { max_bytes: 1024, max_macs: 127 }]
    {
        let error = run(limits).unwrap_err();
        assert!(
            matches!(error, Error::Limit { .. }) && error.to_string().contains("layer of y"),
            "{error}"
        );
    }
}

#[test]
fn value_types_follow_from_the_table() {
    let attrs = json!({"channels": 6, "groups": 2, "act": "half", "dims": 0});
    let mut quantize = node("q", "quantize", &["x"], attrs, &[1, 6]);
    quantize["tensors"] = json!({"steps": "s"});
    quantize["dtype"] = json!({"codes": "ternary", "channels": 6, "groups": 2});
    let tensors = BTreeMap::from([("s".to_owned(), Tensor::F32(vec![2], vec![0.0, 1.0]))]);
    let graph = |output: &str| {
        Graph::parse(&text(&[input(&[1, 6]), quantize.clone()], output), Source::File).unwrap()
    };
    let types = check(&graph("x"), &tensors, Source::File).unwrap();
    assert_eq!(
        types,
        [ValueType::F32, ValueType::Codes { codes: CodeType::Ternary, channels: 6, groups: 2 }]
    );
    let error = check(&graph("q"), &tensors, Source::File).unwrap_err().to_string();
    assert!(error.contains("the codes of \"q\""), "{error}");
    let error = check(&graph("x"), &BTreeMap::new(), Source::File).unwrap_err().to_string();
    assert!(error.contains("layer of q") && error.contains("tensor \"s\" is missing"), "{error}");
}

#[test]
fn a_node_s_dtype_must_match_its_rule() {
    let codes =
        |codes: &str, channels: usize| json!({"codes": codes, "channels": channels, "groups": 2});
    let tensors =
        BTreeMap::from([("s".to_owned(), Tensor::F32(vec![2], vec![0.0, f32::INFINITY]))]);
    let checked = |act: &str, dtype: Json, input_dtype: &str| {
        let mut nodes = [input(&[1, 6]), node("q", "quantize", &["x"], json!({}), &[1, 6])];
        nodes[0]["dtype"] = input_dtype.into();
        nodes[1]["attrs"] = json!({"channels": 6, "groups": 2, "act": act, "dims": 0});
        nodes[1]["tensors"] = json!({"steps": "s"});
        nodes[1]["dtype"] = dtype;
        let graph = Graph::parse(&text(&nodes, "x"), Source::File)?;
        check(&graph, &tensors, Source::File)
    };
    let codes_type = |codes| ValueType::Codes { codes, channels: 6, groups: 2 };
    let types = checked("binary", codes("binary", 6), "float32").unwrap();
    assert_eq!(types, [ValueType::F32, codes_type(CodeType::Binary)]);
    // A reader of ternary codes accepts binary codes.
    assert_eq!(
        checked("binary", codes("ternary", 6), "float32").unwrap()[1],
        codes_type(CodeType::Ternary)
    );
    for (act, dtype, input_dtype, words) in [
        (
            "half",
            codes("binary", 6),
            "float32",
            "makes ternary codes of (6, 2) (channels, groups), but its dtype says",
        ),
        ("half", codes("two-bit", 6), "float32", "but its dtype says two-bit codes"),
        ("half", codes("ternary", 8), "float32", "but its dtype says ternary codes of (8, 2)"),
        ("half", json!("float32"), "float32", "but its dtype says floats"),
        ("half", json!("int8"), "float32", "but its dtype says int8"),
        ("half", json!("float33"), "float32", "unknown dtype \"float33\""),
        ("half", json!({"codes": "ternary"}), "float32", "codes, channels and groups"),
        ("half", codes("quaternary", 6), "float32", "unknown codes \"quaternary\""),
        ("half", codes("ternary", 0), "float32", "codes, channels and groups"),
        ("half", json!(3), "float32", "codes, channels and groups"),
        ("half", codes("ternary", 6), "int64", "expected floats, got int64"),
    ] {
        let error = checked(act, dtype, input_dtype).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("\"q\""), "{error}");
    }
}

#[test]
fn weights_outside_their_type_are_named() {
    let mut conv = node("y", "conv_float", &["q"], json!({}), &[1, 6, 1, 1]);
    conv["attrs"] = json!({"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0],
        "dilation": [1, 1], "groups": 1,
        "act": "half", "channels": 6, "dims": 2, "relu": false});
    conv["tensors"] = json!({"weight": "w"});
    let mut quantize = node("q", "quantize", &["x"], json!({}), &[1, 6, 1, 1]);
    quantize["attrs"] = json!({"channels": 6, "groups": 1, "act": "half", "dims": 2});
    quantize["tensors"] = json!({"steps": "s"});
    quantize["dtype"] = json!({"codes": "ternary", "channels": 6, "groups": 1});
    let graph = text(&[input(&[1, 6, 1, 1]), quantize, conv], "y");
    let checked = |weight: Tensor| {
        let steps = Tensor::F32(vec![2], vec![0.0, 1.0]);
        let tensors = BTreeMap::from([("s".to_owned(), steps), ("w".to_owned(), weight)]);
        check(&Graph::parse(&graph, Source::Description).unwrap(), &tensors, Source::Description)
    };
    for kind in WeightKind::ALL {
        let mut values: Vec<i8> = (0..36).map(|i| kind.codes()[i % kind.codes().len()]).collect();
        checked(Tensor::Codes(kind, vec![6, 6, 1, 1], values.clone())).unwrap();
        values[20] = 2;
        let error = checked(Tensor::Codes(kind, vec![6, 6, 1, 1], values)).unwrap_err().to_string();
        for words in ["layer of y", "tensor \"w\"", kind.name(), "got 2 at element 20"] {
            assert!(error.contains(words), "{error}");
        }
    }
    let error = checked(Tensor::I8(vec![6, 6, 1, 1], vec![1; 36])).unwrap_err().to_string();
    assert!(error.contains("tensor \"w\" must be binary, ternary or two-bit, got int8"), "{error}");
}

#[test]
fn unsupported_nodes_are_named() {
    let refused = |op, attrs: Json, shape: &[usize]| {
        support::refusal(op, &attrs.to_string(), &[shape]).unwrap()
    };
    let mean = |dims: &[i64]| json!({"dims": dims, "keepdim": true});
    assert_eq!(refused("mean", mean(&[2, 3]), &[1, 2, 3, 4]), None);
    assert_eq!(refused("mean", mean(&[1]), &[1, 2, 3, 4]), None);
    assert!(
        refused("mean", mean(&[2, 3]), &[1, 2, 3])
            .unwrap()
            .contains("dimensions [2, 3] of a value")
    );
    assert_eq!(refused("relu", json!({}), &[1, 2, 3, 4, 5]), None);
    assert!(refused("relu", json!({}), &[1; 9]).unwrap().contains("shapes"));
    assert!(
        refused("prelu", json!({"shared": true}), &[1, 2, 3, 4, 5]).unwrap().contains("shapes")
    );
    assert!(refused("add", json!({}), &[1, 2]).unwrap().contains("reads 1"));
    assert!(support::refusal("fold", "{}", &[&[1, 2]]).is_err());
}

#[test]
fn golden_files_parse_and_pass_the_checks() {
    for version in ["v1", "v2"] {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let (text, tensors) = load(golden.join(format!("network-{version}.safetensors"))).unwrap();
        let graph = Graph::parse(&text, Source::Description).unwrap();
        check(&graph, &tensors, Source::Description).unwrap();
        assert!(support::unsupported(&graph, &tensors).is_empty());
        assert_eq!(graph.input_count(), 1);
    }
}

/// Every node after the first reads the one before it.
fn chain(operations: &[(&str, Json, &[usize])]) -> Vec<Vec<fatnn::graph::size::Size>> {
    let mut nodes = vec![input(&[2, 4, 8, 8])];
    for (i, (op, attrs, shape)) in operations.iter().enumerate() {
        let before = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
        nodes.push(node(&format!("n{i}"), op, &[&before], attrs.clone(), shape));
    }
    let graph = Graph::parse(&text(&nodes, "x"), Source::Description).unwrap();
    fatnn::graph::shapes::in_every_run(&graph, &Tensors::new())
}

#[test]
fn equal_size_expressions_mean_equal_shapes() {
    let pad = |n: i64| json!({"pad": [n, n, n, n], "mode": "constant", "value": 0.0});
    // Padding by 1 and then a window of 3 keep the size.
    let shapes = chain(&[
        ("pad", pad(1), &[2, 4, 10, 10]),
        ("max_pool2d", window(3, 1, 0, false), &[2, 4, 8, 8]),
    ]);
    assert_eq!(shapes[0], shapes[2]);
    // Two strides of 2 differ from one of 4, and rounding up from rounding down.
    let twice = chain(&[
        ("max_pool2d", window(2, 2, 0, false), &[2, 4, 4, 4]),
        ("max_pool2d", window(2, 2, 0, true), &[2, 4, 2, 2]),
        ("mean", json!({"dims": [2, 3], "keepdim": true}), &[2, 4, 1, 1]),
        ("mean", json!({"dims": [2, 3], "keepdim": false}), &[2, 4]),
        ("relu", json!({}), &[2, 4]),
    ]);
    assert!((1..4).all(|i| twice[i] != twice[0] && twice[i] != twice[i - 1]));
    assert_eq!(
        twice[3].iter().map(|size| size.known()).collect::<Vec<_>>(),
        [None, None, Some(1), Some(1)]
    );
    assert_eq!(twice[4], twice[3][..2]);
    assert_eq!(twice[5], twice[4]);
}

#[test]
fn size_expressions_of_long_chains_stay_fast() {
    let mut nodes = vec![input(&[2, 4, 8, 8])];
    for i in 0..5000 {
        let before = if i == 0 { "x".to_owned() } else { format!("n{}", i - 1) };
        nodes.push(node(
            &format!("n{i}"),
            "cat",
            &[&before, &before],
            json!({"dim": 1}),
            &[2, 8, 8, 8],
        ));
    }
    let graph = Graph::parse(&text(&nodes, "x"), Source::Description).unwrap();
    let shapes = fatnn::graph::shapes::in_every_run(&graph, &Tensors::new());
    assert_eq!(shapes[0][2], shapes[5000][2]);
    assert_ne!(shapes[4999][1], shapes[5000][1]);
}

#[test]
fn a_node_without_inputs_next_to_an_unknown_one_is_an_error() {
    let unknown = node("u", "no such operation", &["x"], json!({}), &[2, 2]);
    let text = text(&[input(&[2, 2]), unknown, node("h", "relu", &[], json!({}), &[2, 2])], "h");
    let graph = Graph::parse(&text, Source::Description).unwrap();
    let types = check(&graph, &Tensors::new(), Source::Description);
    let sizes = types.and_then(|types| check_sizes(&graph, &Tensors::new(), &types, Limits::NONE));
    assert!(sizes.unwrap_err().to_string().contains("reads 0 values"));
}
