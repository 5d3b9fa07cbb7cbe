//! Shortcut convolutions fused into the convolution that adds them, against the reference.

mod common;

use std::collections::BTreeMap;

use common::{Random, ThreadCount, values};
use fatnn::codec::{Act, WeightKind};
use fatnn::conv::ConvShape;
use fatnn::kernels::Family;
use fatnn::net::{Input, Network, Tensor};
use fatnn::pack::WeightShape;
use fatnn::quantize::PixelOrder;
use fatnn::{Error, reference};
use serde_json::{Value, json};

const STEPS: [f32; 2] = [0.5, 2.0];

/// Quantize `x`; a 3×3 and a 1×1 convolution of the codes, both with `stride`, scale and bias;
/// their sum; ReLU; quantize.
struct Block {
    channels: usize,
    out_channels: usize,
    stride: usize,
    weights: [Vec<i8>; 2],
    scales: [Vec<f32>; 2],
    biases: [Vec<f32>; 2],
}

/// The values by the reference: the shortcut, the sum, the sum's codes.
struct Expected {
    shortcut: Vec<f32>,
    sum: Vec<f32>,
    codes: Vec<i8>,
}

impl Block {
    fn new(channels: usize, out_channels: usize, stride: usize) -> Self {
        let mut random = Random((channels + out_channels) as u64);
        let weights = [9, 1].map(|taps| {
            values(WeightKind::Ternary.codes(), out_channels * channels * taps, taps as u64)
        });
        let mut floats =
            |factor: f32| (0..out_channels).map(|_| random.float() * factor).collect::<Vec<f32>>();
        let scales = [floats(0.1), floats(0.3)];
        let biases = [floats(1.0), floats(1.0)];
        Block { channels, out_channels, stride, weights, scales, biases }
    }

    /// The graph. With `read`, the shortcut is also an output.
    fn graph(&self, read: bool, shortcut_stride: usize) -> (String, BTreeMap<String, Tensor>) {
        let (c, n, s) = (self.channels, self.out_channels, self.stride);
        let square = |side: usize| json!([side, side]);
        let of = |read: usize, kernel: usize, stride: usize, relu: bool| {
            json!({"kernel": square(kernel), "stride": square(stride),
                "padding": square(kernel / 2), "dilation": [1, 1],
                "groups": 1, "act": "half", "channels": read, "dims": 2, "out_groups": 1,
                    "relu": relu})
        };
        let node = |name: &str,
                    op: &str,
                    inputs: &[&str],
                    tensors: Value,
                    channels: usize,
                    attrs: Value| {
            json!({"name": name, "op": op, "inputs": inputs, "tensors": tensors,
                "shape": [1, channels, 8, 8],
                "layer": format!("layer of {name}"), "attrs": attrs})
        };
        let product = |i: usize| {
            json!({"weight": format!("w{i}"), "scale": format!("s{i}"),
            "bias": format!("b{i}")})
        };
        let nodes = [
            node("x", "input", &[], json!({}), c, json!({"fixed": [], "channel_dim": 1})),
            node("q", "quantize", &["x"], json!({"steps": "steps"}), c, of(c, 1, 1, false)),
            node("shortcut", "conv_float", &["q"], product(1), n, of(c, 1, shortcut_stride, false)),
            node("sum", "conv_float", &["q", "shortcut"], product(0), n, of(c, 3, s, true)),
            node("codes", "quantize", &["sum"], json!({"steps": "steps"}), n, of(n, 1, 1, false)),
            node("pooled", "max_pool_codes", &["codes"], json!({}), n, {
                let mut attrs = of(n, 1, 1, false);
                attrs["ceil_mode"] = false.into();
                attrs
            }),
        ];
        let outputs = if read { vec!["sum", "shortcut"] } else { vec!["sum"] };
        let outputs: Vec<Value> = outputs.into_iter().map(|name| json!({"value": name})).collect();
        let mut tensors =
            BTreeMap::from([("steps".to_owned(), Tensor::F32(vec![2], STEPS.to_vec()))]);
        for (i, kernel) in [3, 1].into_iter().enumerate() {
            let weight = Tensor::Codes(
                WeightKind::Ternary,
                vec![n, c, kernel, kernel],
                self.weights[i].clone(),
            );
            tensors.insert(format!("w{i}"), weight);
            tensors.insert(format!("s{i}"), Tensor::F32(vec![n], self.scales[i].clone()));
            tensors.insert(format!("b{i}"), Tensor::F32(vec![n], self.biases[i].clone()));
        }
        (json!({"nodes": nodes, "outputs": {"list": outputs}, "notes": []}).to_string(), tensors)
    }

    fn expected(&self, x: &[f32], images: usize, map: [usize; 2]) -> Expected {
        let (c, n) = (self.channels, self.out_channels);
        let q =
            reference::quantize(x, [images, map[0] * map[1], c], PixelOrder::ChannelsLast, &STEPS);
        let sums = |i: usize, kernel: usize| {
            let shape = ConvShape {
                batch: images,
                input: map,
                kernel: [kernel; 2],
                stride: [self.stride; 2],
                padding: [kernel / 2; 2],
                dilation: [1; 2],
            };
            let of = WeightShape { out_channels: n, channels: c, kernel: [kernel; 2], groups: 1 };
            reference::conv2d_acc(&q, &self.weights[i], of, Act::Half, &shape)
        };
        let float = |i: usize, acc: &[i32], residual: Option<&[f32]>, relu| {
            reference::to_float(
                acc,
                n,
                Some(&self.scales[i]),
                Some(&self.biases[i]),
                residual,
                relu,
            )
        };
        let shortcut = float(1, &sums(1, 1), None, false);
        let sum = float(0, &sums(0, 3), Some(&shortcut), true);
        let codes = reference::quantize(
            &sum,
            [images, sum.len() / n / images, n],
            PixelOrder::ChannelsLast,
            &STEPS,
        );
        Expected { shortcut, sum, codes }
    }
}

#[test]
fn a_fused_shortcut_equals_the_reference() {
    let count = ThreadCount::lock();
    for (channels, out_channels, stride) in
        [(64, 128, 2), (5, 70, 1), (16, 32, 2), (130, 64, 1), (192, 256, 2)]
    {
        let block = Block::new(channels, out_channels, stride);
        for (threads, images, map) in
            [(1, 1, [8, 8]), (2, 3, [7, 9]), (1, 2, [33, 5]), (3, 1, [56, 56])]
        {
            count.set(threads);
            let mut random = Random(9);
            let x: Vec<f32> =
                (0..images * map[0] * map[1] * channels).map(|_| random.float() * 3.0).collect();
            let shape = [images, channels, map[0], map[1]];
            let input = [Input { shape: &shape, data: &x, channels_last: true }];
            let expected = block.expected(&x, images, map);
            let families = Family::ALL.into_iter().map(Some).chain([None]);
            for (family, read) in families.flat_map(|family| [(family, false), (family, true)]) {
                let (graph, tensors) = block.graph(read, stride);
                let net = match family.map(|family| Network::for_family(&graph, &tensors, family)) {
                    None => Network::new(&graph, &tensors).unwrap(),
                    Some(Ok(net)) => net,
                    Some(Err(Error::Unsupported { what })) => {
                        eprintln!("skipped {family:?} on this CPU: {what}");
                        continue;
                    }
                    Some(Err(error)) => panic!("{error}"),
                };
                let at = format!(
                    "{channels} to {out_channels}, {shape:?}, {threads} threads, {family:?}, \
                     read {read}"
                );
                let mut codes = vec![0; expected.codes.len()];
                let mut seen = Vec::new();
                let out = net
                    .run_observed(&input, &mut |value| {
                        if let ("codes", Some((packed, layout))) = (value.node, value.codes) {
                            layout.unpack(packed, &mut codes).unwrap();
                        }
                        seen.push(value.node.to_owned());
                    })
                    .unwrap();
                assert_eq!(out[0].data, expected.sum, "{at}");
                assert_eq!(codes, expected.codes, "{at}");
                assert_eq!(net.run(&input).unwrap(), out, "{at}: a second run");
                // Fused only if nothing else reads it; its weights are reported in any case.
                assert_eq!(seen.iter().any(|node| node == "shortcut"), read, "{at}");
                if read {
                    assert_eq!(out[1].data, expected.shortcut, "{at}");
                }
                assert_eq!(
                    net.products().map(|(node, ..)| node).collect::<Vec<_>>(),
                    ["shortcut", "sum"],
                    "{at}"
                );
            }
        }
    }
}

#[test]
fn a_shortcut_of_another_shape_is_refused() {
    let block = Block::new(64, 64, 2);
    let (graph, tensors) = block.graph(false, 1);
    let error = Network::new(&graph, &tensors).unwrap_err().to_string();
    assert!(error.contains("layer of sum") && error.contains("residual"), "{error}");
    assert!(error.contains("[1, 64, 4, 4]") && error.contains("[1, 64, 8, 8]"), "{error}");
}

#[test]
fn nan_errors_after_a_shortcut_name_the_quantizer() {
    let mut block = Block::new(64, 70, 1);
    block.biases[1][69] = f32::NAN;
    let (graph, tensors) = block.graph(false, 1);
    let x = vec![0.0; 64 * 64];
    let net = Network::new(&graph, &tensors).unwrap();
    let error =
        net.run(&[Input { shape: &[1, 64, 8, 8], data: &x, channels_last: true }]).unwrap_err();
    let Error::Node { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::NotANumber { .. }), "{error}");
    assert!(error.to_string().contains("layer of codes"), "{error}");
}

#[test]
fn the_network_reports_what_was_not_fused() {
    let block = Block::new(4, 4, 1);
    for (read, expected) in [
        (false, vec![("layer of q", "fuse_quantizer", "it reads an input of the network")]),
        (
            true,
            vec![
                ("layer of sum", "fuse_shortcut", "others read the same value"),
                ("layer of q", "fuse_quantizer", "it reads an input of the network"),
            ],
        ),
    ] {
        let (graph, tensors) = block.graph(read, 1);
        let net = Network::new(&graph, &tensors).unwrap();
        let found =
            net.not_fused().iter().map(|found| (found.layer.as_str(), found.pass, found.reason));
        assert!(found.eq(expected.iter().copied()), "{:?}", net.not_fused());
    }
}
