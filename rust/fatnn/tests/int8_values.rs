//! Floats that are stored as bytes between layers, against the reference.

mod common;

use std::collections::BTreeMap;

use common::graphs::{graph, input, node};
use common::{Random, ThreadCount, values};
use fatnn::codec::{Act, WeightKind};
use fatnn::conv::ConvShape;
use fatnn::kernels::Family;
use fatnn::net::{Input, Network, Tensor};
use fatnn::pack::WeightShape;
use fatnn::quantize::PixelOrder;
use fatnn::{Error, reference};
use serde_json::{Value, json};

/// Step size, lowest and highest code of every rounded value.
const INT8: [(f32, i32, i32); 3] = [(0.03, 0, 255), (0.07, -128, 127), (0.25, -5, 9)];

/// Three sums, each rounded to int8:
///
/// * `a`: a 3×3 convolution of the codes of `x`, plus a 1×1 convolution of them (a shortcut);
/// * `b`: a 3×3 convolution of the codes of `a`, plus `a`;
/// * `c`: a 3×3 convolution of the codes of `b`, without a residual.
///
/// The output is `b + |c|`. `a` is read as a residual and by a quantizer, `b` also as floats.
struct Blocks {
    channels: usize,
    act: Act,
    relu: bool,
    weights: Vec<Vec<i8>>,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Blocks {
    fn new(channels: usize, act: Act, relu: bool) -> Self {
        let mut random = Random(channels as u64);
        let taps = [9, 1, 9, 9].into_iter().enumerate();
        let weights = taps.map(|(i, taps)| {
            values(WeightKind::Ternary.codes(), channels * channels * taps, i as u64)
        });
        Blocks {
            channels,
            act,
            relu,
            weights: weights.collect(),
            scale: (0..channels).map(|_| random.float() * 0.1).collect(),
            bias: (0..channels).map(|_| random.float() * 4.0).collect(),
        }
    }

    fn steps(&self) -> &'static [f32] {
        &[0.5, 2.0, 2.5][..self.act.coding().thresholds()]
    }

    fn graph(&self) -> (String, BTreeMap<String, Tensor>) {
        let c = self.channels;
        let conv = |name: &str, read: &[&str], weight: usize| {
            let kernel = if weight == 1 { 1 } else { 3 };
            let attrs = json!({"kernel": [kernel, kernel], "stride": [1, 1],
                "padding": [kernel / 2, kernel / 2], "dilation": [1, 1], "groups": 1,
                "act": self.act.name(), "channels": c, "dims": 2, "relu": self.relu});
            let roles = json!({"weight": format!("w{weight}"), "scale": "scale", "bias": "bias"});
            node(name, "conv_float", read, attrs, roles)
        };
        let codes = |name: &str, read: &str| {
            let attrs = json!({"channels": c, "groups": 1, "act": self.act.name(), "dims": 2});
            node(name, "quantize", &[read], attrs, json!({"steps": "steps"}))
        };
        let int8 = |name: &str, read: &str, i: usize| {
            let (step, low, high) = INT8[i];
            let attrs = json!({"step_size": step, "low": low, "high": high});
            node(name, "fake_quantize", &[read], attrs, json!({}))
        };
        let nodes = [
            input(&[1, c, 8, 8]),
            codes("qx", "x"),
            conv("shortcut", &["qx"], 1),
            conv("sum", &["qx", "shortcut"], 0),
            int8("a", "sum", 0),
            codes("qa", "a"),
            conv("next", &["qa", "a"], 2),
            int8("b", "next", 1),
            codes("qb", "b"),
            conv("last", &["qb"], 3),
            int8("c", "last", 2),
            node("m", "abs", &["c"], json!({}), json!({})),
            node("y", "add", &["b", "m"], json!({}), json!({})),
        ];
        let nodes = nodes.map(|mut node: Value| {
            node["shape"] = json!([1, c, 8, 8]);
            node
        });
        let mut tensors = BTreeMap::from([
            ("steps".to_owned(), Tensor::F32(vec![self.steps().len()], self.steps().to_vec())),
            ("scale".to_owned(), Tensor::F32(vec![c], self.scale.clone())),
            ("bias".to_owned(), Tensor::F32(vec![c], self.bias.clone())),
        ]);
        for (i, weight) in self.weights.iter().enumerate() {
            let kernel = if i == 1 { 1 } else { 3 };
            let weight =
                Tensor::Codes(WeightKind::Ternary, vec![c, c, kernel, kernel], weight.clone());
            tensors.insert(format!("w{i}"), weight);
        }
        (graph(&nodes, "y"), tensors)
    }

    /// The values of every rounded node, the codes of them, and the output.
    fn expected(&self, x: &[f32], images: usize, map: [usize; 2]) -> BTreeMap<&str, Vec<f32>> {
        let c = self.channels;
        let codes = |x: &[f32]| {
            let sizes = [images, map[0] * map[1], c];
            reference::quantize(x, sizes, PixelOrder::ChannelsLast, self.steps())
        };
        let conv = |q: &[i8], weight: usize, residual: Option<&[f32]>| {
            let kernel = if weight == 1 { 1 } else { 3 };
            let shape = ConvShape {
                batch: images,
                input: map,
                kernel: [kernel; 2],
                stride: [1; 2],
                padding: [kernel / 2; 2],
                dilation: [1; 2],
            };
            let of = WeightShape { out_channels: c, channels: c, kernel: [kernel; 2], groups: 1 };
            let acc = reference::conv2d_acc(q, &self.weights[weight], of, self.act, &shape);
            let (scale, bias) = (Some(&self.scale[..]), Some(&self.bias[..]));
            reference::to_float(&acc, c, scale, bias, residual, self.relu)
        };
        let int8 = |x: &[f32], i: usize| {
            let (step, low, high) = INT8[i];
            reference::fake_quantize(x, step, low as f32, high as f32)
        };
        let as_floats = |q: &[i8]| q.iter().map(|&q| f32::from(q)).collect::<Vec<f32>>();
        let qx = codes(x);
        let a = int8(&conv(&qx, 0, Some(&conv(&qx, 1, None))), 0);
        let qa = codes(&a);
        let b = int8(&conv(&qa, 2, Some(&a)), 1);
        let qb = codes(&b);
        let last = int8(&conv(&qb, 3, None), 2);
        let y = b.iter().zip(&last).map(|(b, c)| b + c.abs()).collect();
        let (qa, qb) = (as_floats(&qa), as_floats(&qb));
        BTreeMap::from([("a", a), ("b", b), ("c", last), ("qa", qa), ("qb", qb), ("y", y)])
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn values_of_every_family_and_thread_count_equal_the_reference() {
    let count = ThreadCount::lock();
    let acts = [Act::Half, Act::Full, Act::Uint2];
    let cases = [3, 16, 64, 70, 130].into_iter().zip(acts.into_iter().cycle());
    for (i, (channels, act)) in cases.enumerate() {
        let blocks = Blocks::new(channels, act, i % 2 == 0);
        let (graph, tensors) = blocks.graph();
        for (threads, images, map) in [(1, 1, [8, 8]), (2, 3, [7, 9]), (3, 1, [33, 5])] {
            count.set(threads);
            let mut random = Random(9);
            let x: Vec<f32> =
                (0..images * map[0] * map[1] * channels).map(|_| random.float() * 3.0).collect();
            let shape = [images, channels, map[0], map[1]];
            let given = [Input { shape: &shape, data: &x, channels_last: true }];
            let expected = blocks.expected(&x, images, map);
            for family in Family::ALL.into_iter().map(Some).chain([None]) {
                let net = match family.map(|family| Network::for_family(&graph, &tensors, family)) {
                    None => Network::new(&graph, &tensors).unwrap(),
                    Some(Ok(net)) => net,
                    Some(Err(Error::Unsupported { what })) => {
                        eprintln!("skipped {family:?} on this CPU: {what}");
                        continue;
                    }
                    Some(Err(error)) => panic!("{error}"),
                };
                let at = format!("{channels} {act:?}, {shape:?}, {threads} threads, {family:?}");
                let mut compared = 0;
                let out = net
                    .run_observed(&given, &mut |value| {
                        let Some(expected) = expected.get(value.node) else { return };
                        let found: Vec<f32> = if let Some((bytes, quantizer)) = value.int8 {
                            quantizer.values(bytes).collect()
                        } else if let Some((packed, layout)) = value.codes {
                            let mut codes = vec![0; expected.len()];
                            layout.unpack(packed, &mut codes).unwrap();
                            codes.iter().map(|&q| f32::from(q)).collect()
                        } else {
                            value.floats.unwrap().to_vec()
                        };
                        assert_eq!(bits(&found), bits(expected), "{}: {at}", value.node);
                        compared += 1;
                    })
                    .unwrap();
                assert_eq!(compared, 6, "{at}");
                assert_eq!(bits(&out[0].data), bits(&expected["y"]), "{at}");
                assert_eq!(net.run(&given).unwrap(), out, "{at}: a second run");
            }
        }
    }
}

#[test]
fn nan_is_an_error_that_names_the_layer() {
    // NaN in a shortcut, and in the convolution that adds it.
    for weight in ["shortcut_bias", "bias"] {
        let (graph, mut tensors) = Blocks::new(70, Act::Half, true).graph();
        let mut bias = vec![0.0; 70];
        bias[69] = f32::NAN;
        let graph = graph.replacen("\"bias\":\"bias\"", "\"bias\":\"shortcut_bias\"", 1);
        tensors.insert("shortcut_bias".into(), Tensor::F32(vec![70], vec![0.0; 70]));
        tensors.insert(weight.into(), Tensor::F32(vec![70], bias));
        let net = Network::new(&graph, &tensors).unwrap();
        let x = vec![0.0; 70 * 64];
        let given = [Input { shape: &[1, 70, 8, 8], data: &x, channels_last: true }];
        let error = net.run(&given).unwrap_err();
        let Error::Node { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(**source, Error::NotANumber { index: 69, .. }), "{error}");
    }
}
