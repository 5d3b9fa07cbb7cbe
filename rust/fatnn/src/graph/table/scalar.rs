//! Table rows of elementwise functions.

use super::{F32, LAYOUT, ROW, always, role};
use crate::graph::BuildError;
use crate::graph::attrs::AttrType::{Float, Int};
use crate::graph::attrs::Attrs;
use crate::graph::op::Op;
use crate::graph::ops::{Exactness, Form, OpInfo};
use crate::graph::support;
use crate::scalar::{Int8Quantizer, Scalar};

const SCALAR: OpInfo = OpInfo { form: Form::Scalar, support: Some(support::any_rank), ..ROW };
// PyTorch's results for these may differ in the last bit with the position in memory, so their
// memory format matters. That includes square roots.
const APPROXIMATE: OpInfo =
    OpInfo { exactness: Exactness::Transcendental, attrs: &[LAYOUT], ..SCALAR };

pub(super) const SCALARS: &[OpInfo] = &[
    OpInfo { name: "relu", build: |_| Ok(Op::Scalar(Scalar::Relu)), ..SCALAR },
    OpInfo {
        name: "hardtanh",
        attrs: &[always("min_val", Float), always("max_val", Float)],
        build: |a| {
            Ok(Op::Scalar(Scalar::Hardtanh { min: a.float("min_val")?, max: a.float("max_val")? }))
        },
        ..SCALAR
    },
    OpInfo {
        name: "leaky_relu",
        attrs: &[always("negative_slope", Float)],
        build: |a| Ok(Op::Scalar(Scalar::LeakyRelu { negative_slope: a.float("negative_slope")? })),
        ..SCALAR
    },
    OpInfo { name: "hardswish", build: |_| Ok(Op::Scalar(Scalar::Hardswish)), ..SCALAR },
    OpInfo { name: "hardsigmoid", build: |_| Ok(Op::Scalar(Scalar::Hardsigmoid)), ..SCALAR },
    OpInfo {
        name: "clamp_min",
        attrs: &[always("min", Float)],
        build: |a| Ok(Op::Scalar(Scalar::ClampMin { min: a.float("min")? })),
        ..SCALAR
    },
    OpInfo {
        name: "clamp_max",
        attrs: &[always("max", Float)],
        build: |a| Ok(Op::Scalar(Scalar::ClampMax { max: a.float("max")? })),
        ..SCALAR
    },
    OpInfo { name: "abs", build: |_| Ok(Op::Scalar(Scalar::Abs)), ..SCALAR },
    OpInfo { name: "neg", build: |_| Ok(Op::Scalar(Scalar::Neg)), ..SCALAR },
    OpInfo { name: "square", build: |_| Ok(Op::Scalar(Scalar::Square)), ..SCALAR },
    OpInfo { name: "sqrt", build: |_| Ok(Op::Scalar(Scalar::Sqrt)), ..APPROXIMATE },
    OpInfo { name: "rsqrt", build: |_| Ok(Op::Scalar(Scalar::Rsqrt)), ..SCALAR },
    OpInfo { name: "reciprocal", build: |_| Ok(Op::Scalar(Scalar::Reciprocal)), ..SCALAR },
    OpInfo { name: "exp", build: |_| Ok(Op::Scalar(Scalar::Exp)), ..APPROXIMATE },
    OpInfo { name: "log", build: |_| Ok(Op::Scalar(Scalar::Log)), ..APPROXIMATE },
    OpInfo { name: "sigmoid", build: |_| Ok(Op::Scalar(Scalar::Sigmoid)), ..APPROXIMATE },
    OpInfo { name: "tanh", build: |_| Ok(Op::Scalar(Scalar::Tanh)), ..APPROXIMATE },
    OpInfo { name: "silu", build: |_| Ok(Op::Scalar(Scalar::Silu)), ..APPROXIMATE },
    OpInfo { name: "gelu", build: |_| Ok(Op::Scalar(Scalar::Gelu)), ..APPROXIMATE },
    OpInfo { name: "gelu_tanh", build: |_| Ok(Op::Scalar(Scalar::GeluTanh)), ..APPROXIMATE },
    OpInfo { name: "mish", build: |_| Ok(Op::Scalar(Scalar::Mish)), ..APPROXIMATE },
    OpInfo { name: "floor", build: |_| Ok(Op::Scalar(Scalar::Floor)), ..SCALAR },
    OpInfo { name: "ceil", build: |_| Ok(Op::Scalar(Scalar::Ceil)), ..SCALAR },
    OpInfo { name: "round", build: |_| Ok(Op::Scalar(Scalar::Round)), ..SCALAR },
    OpInfo { name: "trunc", build: |_| Ok(Op::Scalar(Scalar::Trunc)), ..SCALAR },
    OpInfo { name: "frac", build: |_| Ok(Op::Scalar(Scalar::Frac)), ..SCALAR },
    OpInfo { name: "sign", build: |_| Ok(Op::Scalar(Scalar::Sign)), ..SCALAR },
    OpInfo { name: "expm1", build: |_| Ok(Op::Scalar(Scalar::Expm1)), ..APPROXIMATE },
    OpInfo { name: "exp2", build: |_| Ok(Op::Scalar(Scalar::Exp2)), ..APPROXIMATE },
    OpInfo { name: "log1p", build: |_| Ok(Op::Scalar(Scalar::Log1p)), ..APPROXIMATE },
    OpInfo { name: "log2", build: |_| Ok(Op::Scalar(Scalar::Log2)), ..APPROXIMATE },
    OpInfo { name: "log10", build: |_| Ok(Op::Scalar(Scalar::Log10)), ..APPROXIMATE },
    OpInfo { name: "erf", build: |_| Ok(Op::Scalar(Scalar::Erf)), ..APPROXIMATE },
    OpInfo { name: "sin", build: |_| Ok(Op::Scalar(Scalar::Sin)), ..APPROXIMATE },
    OpInfo { name: "cos", build: |_| Ok(Op::Scalar(Scalar::Cos)), ..APPROXIMATE },
    OpInfo { name: "selu", build: |_| Ok(Op::Scalar(Scalar::Selu)), ..APPROXIMATE },
    OpInfo { name: "log_sigmoid", build: |_| Ok(Op::Scalar(Scalar::LogSigmoid)), ..APPROXIMATE },
    OpInfo {
        name: "pow",
        attrs: &[always("exponent", Float), LAYOUT],
        build: |a| Ok(Op::Scalar(Scalar::Pow { exponent: a.float("exponent")? })),
        ..APPROXIMATE
    },
    OpInfo {
        name: "elu",
        attrs: &[always("alpha", Float), LAYOUT],
        build: |a| Ok(Op::Scalar(Scalar::Elu { alpha: a.float("alpha")? })),
        ..APPROXIMATE
    },
    OpInfo {
        name: "fake_quantize",
        attrs: &[always("step_size", Float), always("low", Int), always("high", Int)],
        build: |a| Ok(Op::Scalar(Scalar::FakeQuantize(int8_quantizer(a)?))),
        ..SCALAR
    },
    // A function of the results of `fake_quantize` with the same attributes. The table has a result
    // for each code, from the lowest to the highest.
    OpInfo {
        name: "lookup",
        attrs: &[always("step_size", Float), always("low", Int), always("high", Int)],
        tensors: &[role("table", F32, true)],
        build: |a| Ok(Op::Lookup(int8_quantizer(a)?)),
        ..SCALAR
    },
    OpInfo {
        name: "softplus",
        attrs: &[always("beta", Float), always("threshold", Float), LAYOUT],
        build: |a| {
            Ok(Op::Scalar(Scalar::Softplus {
                beta: a.float("beta")?,
                threshold: a.float("threshold")?,
            }))
        },
        ..APPROXIMATE
    },
];

fn int8_quantizer(a: &Attrs<'_>) -> Result<Int8Quantizer, BuildError> {
    let (step, low, high) = (a.float("step_size")?, a.integer("low")?, a.integer("high")?);
    Ok(Int8Quantizer::new(step, low, high).map_err(|error| error.to_string())?)
}
