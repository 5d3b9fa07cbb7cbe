//! Residual networks against the reference: additions in place, and quantizers fused after them.

mod common;

use std::collections::BTreeMap;

use common::{Random, ThreadCount, long, values};
use fatnn::codec::{Act, WeightKind};
use fatnn::conv::ConvShape;
use fatnn::kernels::Operands;
use fatnn::net::{Input, Network, Tensor};
use fatnn::pack::WeightShape;
use fatnn::quantize::PixelOrder;
use fatnn::{Error, reference};
use serde_json::json;

const BLOCKS: usize = 3;
const HALF: Operands = Operands { act: Act::Half, weights: WeightKind::Ternary };
const STEPS: [f32; 3] = [0.5, 2.0, 2.5];
/// Thresholds of binary codes: no input reaches the second.
const BINARY_STEPS: [f32; 2] = [0.5, f32::INFINITY];

/// `x → [quantize → 3×3 convolution, scale and bias, + residual, ReLU] × BLOCKS`. Each block's sum
/// is the input and the residual of the next one.
struct Stream {
    channels: usize,
    operands: Operands,
    weights: Vec<Vec<i8>>,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Stream {
    fn new(channels: usize, operands: Operands) -> Self {
        let mut random = Random(channels as u64);
        let weight =
            |block| values(operands.weights.codes(), channels * channels * 9, block as u64);
        let weights = (0..BLOCKS).map(weight).collect();
        let scale = (0..channels).map(|_| random.float() * 0.1).collect();
        let bias = (0..channels).map(|_| random.float()).collect();
        Stream { channels, operands, weights, scale, bias }
    }

    fn steps(&self) -> &'static [f32] {
        match self.operands.act {
            Act::Binary => &BINARY_STEPS,
            act => &STEPS[..act.coding().thresholds()],
        }
    }

    fn network(&self) -> Network {
        let c = self.channels;
        let node = |name: String, op: &str, inputs: Vec<String>, tensors: serde_json::Value| {
            let mut node = json!({"name": name, "op": op, "inputs": inputs, "tensors": tensors,
                "shape": [1, c, 8, 8],
                "layer": format!("layer of {name}"), "attrs": {"kernel": [3, 3], "stride": [1, 1],
                    "padding": [1, 1],
                "dilation": [1, 1], "groups": 1, "channels": c, "dims": 2, "out_groups": 1,
                "relu": true}});
            node["attrs"]["act"] = self.operands.act.name().into();
            node
        };
        let mut nodes = vec![
            json!({"name": "s0", "op": "input", "inputs": [], "tensors": {}, "shape": [1, c, 8, 8],
            "layer": "", "attrs": {"fixed": [], "channel_dim": 1}}),
        ];
        let mut tensors = BTreeMap::from([
            ("scale".to_owned(), Tensor::F32(vec![c], self.scale.clone())),
            ("bias".to_owned(), Tensor::F32(vec![c], self.bias.clone())),
            ("steps".to_owned(), Tensor::F32(vec![self.steps().len()], self.steps().to_vec())),
        ]);
        for (block, weight) in self.weights.iter().enumerate() {
            let (from, q, weight_name) =
                (format!("s{block}"), format!("q{block}"), format!("w{block}"));
            nodes.push(node(q.clone(), "quantize", vec![from.clone()], json!({"steps": "steps"})));
            let roles = json!({"weight": weight_name, "scale": "scale", "bias": "bias"});
            nodes.push(node(format!("s{}", block + 1), "conv_float", vec![q, from], roles));
            tensors.insert(
                weight_name,
                Tensor::Codes(self.operands.weights, vec![c, c, 3, 3], weight.clone()),
            );
        }
        let last = format!("s{BLOCKS}");
        let graph = json!({"nodes": nodes, "outputs": {"value": last}, "notes": []}).to_string();
        Network::new(&graph, &tensors).unwrap()
    }

    /// The sums of all blocks, by the reference.
    fn expected(&self, x: &[f32], images: usize, [h, w]: [usize; 2]) -> Vec<Vec<f32>> {
        let c = self.channels;
        let shape = ConvShape {
            batch: images,
            input: [h, w],
            kernel: [3; 2],
            stride: [1; 2],
            padding: [1; 2],
            dilation: [1; 2],
        };
        let of = WeightShape { out_channels: c, channels: c, kernel: [3; 2], groups: 1 };
        let mut sums = vec![x.to_vec()];
        for weight in &self.weights {
            let x = sums.last().unwrap();
            let q =
                reference::quantize(x, [images, h * w, c], PixelOrder::ChannelsLast, self.steps());
            let acc = reference::conv2d_acc(&q, weight, of, self.operands.act, &shape);
            sums.push(reference::to_float(
                &acc,
                c,
                Some(&self.scale),
                Some(&self.bias),
                Some(x),
                true,
            ));
        }
        sums
    }
}

#[test]
fn sums_and_their_codes_equal_the_reference() {
    let count = ThreadCount::lock();
    let every_act = Act::ALL.map(|act| (act, WeightKind::Ternary)).into_iter();
    let every_act = every_act.chain([Act::Half, Act::Uint2].map(|act| (act, WeightKind::TwoBit)));
    let every_act = every_act.chain([(Act::Binary, WeightKind::Binary)]);
    let cases = [5, 16, 64, 70].map(|channels| (channels, every_act.clone())).into_iter();
    let cases = cases.flat_map(|(channels, acts)| acts.map(move |of| (channels, of)));
    let wide = [Act::Half, Act::Uint2].map(|act| (192, (act, WeightKind::Ternary)));
    for (channels, (act, weights)) in cases.chain(wide) {
        let stream = Stream::new(channels, Operands { act, weights });
        let net = stream.network();
        for (threads, images, map) in
            [(1, 1, [8, 8]), (2, 3, [7, 7]), (1, 1, [1, 33]), (3, 2, [40, 12])]
        {
            // The reference is slow on the largest input; a few channels cover how it is split.
            if map == [40, 12] && channels > 16 && !long() {
                continue;
            }
            count.set(threads);
            let mut random = Random(9);
            let x: Vec<f32> =
                (0..images * map[0] * map[1] * channels).map(|_| random.float() * 3.0).collect();
            let shape = [images, channels, map[0], map[1]];
            let input = [Input { shape: &shape, data: &x, channels_last: true }];
            let expected = stream.expected(&x, images, map);
            let mut seen = BTreeMap::new();
            let out = net
                .run_observed(&input, &mut |value| {
                    let codes = value.codes.map(|(packed, layout)| {
                        let mut codes = vec![0; images * map[0] * map[1] * channels];
                        layout.unpack(packed, &mut codes).unwrap();
                        codes
                    });
                    seen.insert(value.node.to_owned(), (value.floats.map(<[f32]>::to_vec), codes));
                })
                .unwrap();
            assert_eq!(
                out[0].data, expected[BLOCKS],
                "{channels} channels, {shape:?}, {threads} threads"
            );
            assert_eq!(
                net.run(&input).unwrap(),
                out,
                "a second run, whose buffers hold the first's values"
            );
            for block in 0..BLOCKS {
                let (floats, _) = &seen[&format!("s{}", block + 1)];
                assert_eq!(floats.as_ref().unwrap(), &expected[block + 1]);
                let pixels = map[0] * map[1];
                let sizes = [images, pixels, channels];
                let q = reference::quantize(
                    &expected[block],
                    sizes,
                    PixelOrder::ChannelsLast,
                    stream.steps(),
                );
                let (_, codes) = &seen[&format!("q{block}")];
                assert_eq!(codes.as_ref().unwrap(), &q, "codes of block {block}");
            }
        }
    }
}

#[test]
fn nan_errors_name_the_quantizer() {
    let mut stream = Stream::new(70, HALF);
    stream.bias[69] = f32::NAN;
    let x = vec![0.0; 70 * 4];
    let input = [Input { shape: &[1, 70, 2, 2], data: &x, channels_last: true }];
    let error = stream.network().run(&input).unwrap_err();
    let Error::Node { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::NotANumber { .. }), "{error}");
    assert!(error.to_string().contains("layer of q1"), "{error}");
}

#[test]
fn a_large_batch_equals_its_images_run_separately() {
    let count = ThreadCount::lock();
    let (channels, images, map) = (64, 5, [24, 24]);
    let net = Stream::new(channels, HALF).network();
    let len = channels * map[0] * map[1];
    let mut random = Random(3);
    let x: Vec<f32> = (0..images * len).map(|_| random.float() * 3.0).collect();
    let alone: Vec<f32> = x
        .chunks_exact(len)
        .flat_map(|x| {
            let shape = [1, channels, map[0], map[1]];
            net.run(&[Input { shape: &shape, data: x, channels_last: true }])
                .unwrap()
                .remove(0)
                .data
        })
        .collect();
    let shape = [images, channels, map[0], map[1]];
    let input = [Input { shape: &shape, data: &x, channels_last: true }];
    for threads in [1, 2, 5, 8] {
        count.set(threads);
        let batch = net.run(&input).unwrap();
        assert_eq!(batch[0].shape, shape, "{threads} threads");
        assert_eq!(batch[0].data, alone, "{threads} threads");
        // Observed runs do not split the batch.
        assert_eq!(net.run_observed(&input, &mut |_| ()).unwrap(), batch);
    }
}
