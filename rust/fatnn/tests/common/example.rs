//! An example network, its variants, and its output by the reference.

use std::collections::BTreeMap;

use fatnn::codec::{Act, WeightKind};
use fatnn::conv::ConvShape;
use fatnn::net::Tensor;
use fatnn::pack::WeightShape;
use fatnn::quantize::PixelOrder;
use fatnn::reference;
use serde_json::{Value as Json, json};

use super::{Random, codes, values};

/// Channels of every layer.
pub const C: usize = 70;

/// A network and its parameters: quantize, ternary convolution to codes, max pooling of codes,
/// ternary convolution to floats, residual (a float max pooling of the input), ReLU.
pub struct Example {
    pub graph: String,
    pub tensors: BTreeMap<String, Tensor>,
    pub w1: Vec<i8>,
    pub w2: Vec<i8>,
    pub thresholds: Vec<i32>,
    pub scale: Vec<f32>,
    pub bias: Vec<f32>,
    pub steps: Vec<f32>,
    pub act: Act,
}

pub fn node(name: &str, op: &str, inputs: &[&str], attrs: Json, tensors: Json) -> Json {
    json!({"name": name, "op": op, "inputs": inputs, "attrs": attrs, "tensors": tensors,
        "shape": [1, C, 8, 8], "layer": format!("layer of {name}"), "note": ""})
}

pub fn example() -> Example {
    let mut random = Random(7);
    let (w1, w2) = (codes(C * C * 9, 1), codes(C * C, 2));
    let low: Vec<i32> = (0..C).map(|_| random.below(60) as i32 - 30).collect();
    let high: Vec<i32> = low.iter().map(|low| low + random.below(40) as i32).collect();
    let thresholds = [low, high].concat();
    let scale: Vec<f32> = (0..C).map(|_| random.float()).collect();
    let bias: Vec<f32> = (0..C).map(|_| random.float() * 9.0).collect();
    let steps = vec![0.25, 1.5];
    let window = |kernel: usize, padding: usize, stride: usize, attrs: Json| {
        let mut window = json!({"kernel": [kernel, kernel], "stride": [stride, stride],
            "padding": [padding, padding], "dilation": [1, 1]});
        window.as_object_mut().unwrap().extend(attrs.as_object().unwrap().clone());
        window
    };
    let conv = json!({"act": "half", "groups": 1, "channels": C, "dims": 2, "out_groups": 1});
    let to_float = json!({"act": "half", "groups": 1, "channels": C, "dims": 2, "relu": false});
    let pool = json!({"ceil_mode": false});
    let none = json!({});
    let mut nodes = json!([
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, C, 8, 8],
            "layer": "", "note": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        node("q", "quantize", &["x"], json!({"channels": C, "groups": 1, "act": "half",
            "dims": 2}),
            json!({"steps": "steps"})),
        node("a", "conv_codes", &["q"], window(3, 1, 1, conv), json!({"weight": "w1",
            "thresholds": "t"})),
        node("p", "max_pool_codes", &["a"], window(2, 0, 2, pool.clone()), none.clone()),
        node("b", "conv_float", &["p"], window(1, 0, 1, to_float),
            json!({"weight": "w2", "scale": "s", "bias": "b"})),
        node("pooled", "max_pool2d", &["x"], window(2, 0, 2, pool), none.clone()),
        node("sum", "add", &["b", "pooled"], none.clone(), none.clone()),
        node("y", "relu", &["sum"], none.clone(), none),
    ]);
    for node in nodes.as_array_mut().unwrap() {
        let codes = ["q", "a", "p"].contains(&node["name"].as_str().unwrap());
        let ternary = json!({"codes": "ternary", "channels": C, "groups": 1});
        node["dtype"] = if codes { ternary } else { "float32".into() };
        if ["p", "b", "pooled", "sum", "y"].contains(&node["name"].as_str().unwrap()) {
            node["shape"] = json!([1, C, 4, 4]);
        }
    }
    let graph =
        json!({"nodes": nodes, "outputs": {"tuple": [{"value": "y"}]}, "notes": []}).to_string();
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
    /// The network's output by the reference; `x` is channels-last.
    pub fn expected(&self, x: &[f32], images: usize, [h, w]: [usize; 2]) -> Vec<f32> {
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

/// [`example`] with activations of type `act`.
pub fn example_with(act: Act) -> Example {
    let mut example = example();
    let mut json: Json = serde_json::from_str(&example.graph).unwrap();
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

/// [`example`] with binary activations, and binary weights in the first convolution.
pub fn one_bit_example() -> Example {
    let mut example = example_with(Act::Binary);
    example.w1 = values(WeightKind::Binary.codes(), C * C * 9, 1);
    // Nothing reaches the second threshold.
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

/// [`example`] with two-bit activations, and two-bit weights in the first convolution.
pub fn two_bit_example() -> Example {
    let mut example = example_with(Act::Uint2);
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

pub fn image(images: usize, [h, w]: [usize; 2], seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..images * h * w * C).map(|_| random.float() * 3.0).collect()
}
