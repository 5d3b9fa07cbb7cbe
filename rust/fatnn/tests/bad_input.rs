//! Extreme sizes and invalid codes from callers and files: errors, never a panic.

mod common;

use std::collections::BTreeMap;

use common::graphs::{graph, input, node, ones, single};
use common::{codes, ternary};
use fatnn::codec::{Act, CodesLayout, Coding, WeightKind};
use fatnn::conv::{ConvShape, conv2d_acc};
use fatnn::net::{Input, Limits, Network, Output, Tensor};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::pool::max_pool_codes;
use fatnn::{Error, kernels};
use serde_json::json;

#[test]
fn empty_inputs_never_panic() {
    let window = json!({"kernel": [2, 2], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
        "groups": 1,
        "ceil_mode": true, "count_include_pad": true, "divisor": 0, "act": "half", "channels": 2,
        "dims": 2,
        "out_groups": 1, "relu": false, "size": [2, 2], "start": 1, "end": -1, "keepdim": true,
        "pad": [1, 1],
        "mode": "constant", "value": 0.0, "eps": 1e-5, "min_val": 0.0, "max_val": 1.0,
        "negative_slope": 0.1, "dim": 2, "p": 2, "correction": 1});
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
        "norm",
        "var",
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
            "sum" | "amax" | "norm" | "var" => attrs["dims"] = json!([0, 2]),
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
fn extreme_numbers_in_public_structs_are_errors() {
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
    // Extreme numbers in the public structs.
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
fn dims_that_do_not_fit_the_input_are_errors() {
    let conv = |dims: usize, padding: usize| {
        let attrs = json!({"kernel": [1, 1], "stride": [1, 1], "padding": [padding, padding],
            "dilation": [1, 1], "groups": 1,
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
fn all_readers_reject_invalid_codes() {
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
    // A bit of `z` without `p` in either word; a bit of a channel beyond the last.
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
    // +1 is not a binary code. All pairs of bits are two-bit codes.
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
