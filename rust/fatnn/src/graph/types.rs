//! Type rules: check the types of a node's inputs and tensors, and give the type of its output.

use serde_json::{Value as Json, json};

use super::attrs::LIMIT;
use super::graph::NodeView;
use super::op::{CodesConv, Op};
use super::tensor::Tensor;
use crate::codec::CodesLayout;
use crate::dtype::{CodeType, ValueType};
use crate::scalar::Binary;

/// Reads a type: a name, or `{"codes": "ternary", "channels": 64, "groups": 1}`.
pub(super) fn from_json(json: &Json) -> Result<ValueType, String> {
    if let Some(name) = json.as_str() {
        return ValueType::of_input(name).map_err(|_| format!("unknown dtype {name:?}"));
    }
    let wrong = || {
        format!("\"dtype\" must be a name, or an object of codes, channels and groups, got {json}")
    };
    let object = json.as_object().filter(|object| object.len() == 3).ok_or_else(wrong)?;
    let number = |key: &str| {
        let number = object.get(key).and_then(Json::as_u64).filter(|n| (1..LIMIT).contains(n));
        number.map(|n| n as usize).ok_or_else(wrong)
    };
    let name = object.get("codes").and_then(Json::as_str).ok_or_else(wrong)?;
    let codes =
        CodeType::from_name(name).map_err(|_| format!("unknown codes {name:?} as \"dtype\""))?;
    Ok(ValueType::Codes { codes, channels: number("channels")?, groups: number("groups")? })
}

/// The inverse of [`from_json`].
pub(super) fn to_json(dtype: ValueType) -> Json {
    match dtype {
        ValueType::Codes { codes, channels, groups } => {
            json!({"codes": codes.name(), "channels": channels, "groups": groups})
        }
        plain => plain.plain_name().into(),
    }
}

/// An input has its declared type, which may be any PyTorch type.
pub(super) fn input(view: NodeView<'_>, _: &[ValueType]) -> Result<ValueType, String> {
    match view.node.dtype {
        Some(codes) if codes.is_codes() => Err(format!("an input cannot be {codes}")),
        dtype => Ok(dtype.unwrap_or(ValueType::F32)),
    }
}

/// Floats to floats. [`super::check`] has already checked that the inputs are floats.
pub(super) fn floats(_: NodeView<'_>, _: &[ValueType]) -> Result<ValueType, String> {
    Ok(ValueType::F32)
}

/// Operations that move elements keep the type. All inputs of `cat` must have the same type.
pub(super) fn same_as_inputs(
    view: NodeView<'_>,
    inputs: &[ValueType],
) -> Result<ValueType, String> {
    let Some(&first) = inputs.first() else { return Ok(ValueType::F32) };
    match inputs.iter().find(|other| **other != first) {
        Some(other) if matches!(view.node.op, Op::Cat { .. }) => {
            Err(format!("expected inputs of one type, got {first} and {other}"))
        }
        _ => Ok(first),
    }
}

/// A constant has the type of its tensor.
pub(super) fn constant(view: NodeView<'_>, _: &[ValueType]) -> Result<ValueType, String> {
    match view.tensor("value") {
        Some(Tensor::I32(..)) => Ok(ValueType::I32),
        Some(Tensor::I64(..)) => Ok(ValueType::I64),
        Some(Tensor::Bool(..)) => Ok(ValueType::Bool),
        _ => Ok(ValueType::F32),
    }
}

/// Arithmetic on two floats, or on two integers of one type. Integers are not divided.
pub(super) fn arithmetic(view: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs {
        [ValueType::F32, ValueType::F32] => Ok(ValueType::F32),
        [a, b] if a == b && a.is_integer() && view.node.op != Op::Binary(Binary::Div) => Ok(*a),
        _ => Err(format!("expected two values of floats, or integers, got {}", type_names(inputs))),
    }
}

pub(super) fn embedding(view: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    let weight = view.shape("weight")?;
    if weight.len() != 2 {
        return Err(format!("weight must have 2 dimensions, got {weight:?}"));
    }
    match inputs {
        [ids] if ids.is_integer() => Ok(ValueType::F32),
        _ => Err(format!("expected int32 or int64, got {}", type_names(inputs))),
    }
}

pub(super) fn compare(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs {
        [a, b] if a == b => Ok(ValueType::Bool),
        _ => Err(format!("expected two values of one type, got {}", type_names(inputs))),
    }
}

pub(super) fn logical(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs.iter().all(|kind| *kind == ValueType::Bool) {
        true => Ok(ValueType::Bool),
        false => Err(format!("expected bool, got {}", type_names(inputs))),
    }
}

pub(super) fn select(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs {
        [ValueType::Bool, a, b] if a == b => Ok(*a),
        _ => Err(format!("expected bool and two values of one type, got {}", type_names(inputs))),
    }
}

/// Casts, except from floats to integers: in PyTorch large floats give other integers on other
/// CPUs.
pub(super) fn cast(view: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match view.node.op {
        Op::Cast { to } if to.is_integer() && inputs == [ValueType::F32] => {
            Err(format!("expected integers or bool for {to}, got floats"))
        }
        Op::Cast { to } => Ok(to),
        _ => Ok(ValueType::F32),
    }
}

/// Numbers to numbers of the same type, as in `cumsum`.
pub(super) fn numbers(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs {
        [kind] if kind.is_integer() || *kind == ValueType::F32 => Ok(*kind),
        _ => Err(format!("expected float32, int32 or int64, got {}", type_names(inputs))),
    }
}

/// A value of any plain type, and the integers that select from it.
pub(super) fn index_select(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    match inputs {
        [kind, index] if ValueType::PLAIN.contains(kind) && index.is_integer() => Ok(*kind),
        _ => Err(format!("expected a value, and int32 or int64, got {}", type_names(inputs))),
    }
}

/// Types as text for an error message.
fn type_names(inputs: &[ValueType]) -> String {
    inputs.iter().map(ValueType::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn int8(view: NodeView<'_>, _: &[ValueType]) -> Result<ValueType, String> {
    let weight = view.shape("weight")?;
    let (dims, groups) = match &view.node.op {
        Op::ConvInt8(conv) => (2 + conv.axes, conv.groups),
        _ => (2, 1),
    };
    if weight.len() != dims || weight.contains(&0) {
        return Err(format!(
            "weight must have {dims} dimensions of at least 1, got the shape {weight:?}"
        ));
    }
    if !weight[0].is_multiple_of(groups) {
        return Err(format!("groups do not fit: {groups} groups of {} channels", weight[0]));
    }
    if let Some(Tensor::I8(_, values)) = view.tensor("weight")
        && values.contains(&-128)
    {
        return Err("weight must be from -127 to 127, got -128".into());
    }
    let [inverse] = view.floats("inv_step")? else {
        return Err(format!("inv_step must have shape (1,), got {:?}", view.shape("inv_step")?));
    };
    if !(*inverse > 0.0 && inverse.is_finite()) {
        return Err(format!("inv_step must be positive and finite, got {inverse}"));
    }
    per_output(view, &["scale", "bias"], weight[0])?;
    Ok(ValueType::F32)
}

/// `Ok` if every tensor has one number per output channel.
fn per_output(view: NodeView<'_>, roles: &[&str], out_channels: usize) -> Result<(), String> {
    for role in roles {
        match view.tensor(role).map(Tensor::shape) {
            Some(shape) if *shape != [out_channels] => {
                return Err(format!("{role} must have shape ({out_channels},), got {shape:?}"));
            }
            _ => (),
        }
    }
    Ok(())
}

pub(super) fn quantize(view: NodeView<'_>, _: &[ValueType]) -> Result<ValueType, String> {
    let &Op::Quantize { act, channels, groups, .. } = &view.node.op else {
        return Ok(ValueType::F32);
    };
    let (steps, count) = (view.floats("steps")?, act.coding().thresholds());
    if view.shape("steps")? != [count] {
        return Err(format!(
            "steps must have shape ({count},): steps must be {count} numbers, got {}",
            steps.len()
        ));
    }
    if !steps.is_sorted() {
        return Err(format!("steps must not fall, got {steps:?}"));
    }
    let codes = act.code_type();
    if codes == CodeType::Binary && steps[1] != f32::INFINITY {
        return Err("steps of binary codes must end with infinity".into());
    }
    codes_type(codes, channels, groups)
}

/// The type of codes, after a check that groups fit channels.
fn codes_type(codes: CodeType, channels: usize, groups: usize) -> Result<ValueType, String> {
    CodesLayout::new(channels, groups).map_err(|e| format!("groups do not fit ({e})"))?;
    Ok(ValueType::Codes { codes, channels, groups })
}

/// Checks a convolution of codes and its input; returns the number of output channels.
fn codes_conv(view: NodeView<'_>, conv: &CodesConv, inputs: &[ValueType]) -> Result<usize, String> {
    let weight = view.shape("weight")?;
    let &[n, per_group, kh, kw] = weight else {
        return Err(format!("weight must have 4 dimensions, got {weight:?}"));
    };
    if weight.contains(&0) {
        return Err(format!("weight must have 4 dimensions of at least 1, got {weight:?}"));
    }
    let channels = per_group.checked_mul(conv.groups).ok_or("too many groups")?;
    if conv.groups == 0
        || !n.is_multiple_of(conv.groups)
        || conv.channels.is_some_and(|c| c != channels)
    {
        return Err(format!("groups do not fit: {conv:?} and weight {weight:?} disagree"));
    }
    let wanted = ValueType::Codes { codes: conv.act.code_type(), channels, groups: conv.groups };
    if !inputs[0].fits(wanted) {
        return Err(format!("reads {}, wants {wanted}", inputs[0]));
    }
    if conv.params.kernel != [kh, kw] {
        return Err(format!("kernel {:?} and weight {weight:?} disagree", conv.params.kernel));
    }
    Ok(n)
}

pub(super) fn conv_codes(view: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    let Op::ConvCodes { conv, out_groups } = &view.node.op else { return Ok(ValueType::F32) };
    let n = codes_conv(view, conv, inputs)?;
    let (rows, values) = match view.tensor("thresholds") {
        Some(Tensor::I32(shape, values)) if matches!(shape.as_slice(), [2 | 3, c] if *c == n) => {
            (shape[0], values)
        }
        _ => {
            let got = view.shape("thresholds")?;
            return Err(format!(
                "thresholds must have shape (2, {n}) or (3, {n}), that is (2 or 3, channels), \
                 got {got:?}"
            ));
        }
    };
    let falls = (n..values.len()).any(|i| values[i] < values[i - n]);
    if falls {
        return Err("thresholds must not fall".into());
    }
    codes_type(codes_of(rows, values), n, *out_groups).map_err(|e| format!("out_{e}"))
}

/// The narrowest code type that these thresholds can produce.
pub(super) fn codes_of(rows: usize, thresholds: &[i32]) -> CodeType {
    let last = thresholds.len().checked_div(rows).map_or(0, |n| thresholds.len() - n);
    match rows {
        3 => CodeType::TwoBit,
        _ if thresholds[last..].iter().all(|threshold| *threshold == i32::MAX) => CodeType::Binary,
        _ => CodeType::Ternary,
    }
}

pub(super) fn conv_float(view: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    let Op::ConvFloat { conv, .. } = &view.node.op else { return Ok(ValueType::F32) };
    let n = codes_conv(view, conv, inputs)?;
    per_output(view, &["scale", "bias"], n)?;
    if view.tensor("bias").is_some() && view.tensor("scale").is_none() {
        return Err("a bias needs a scale".into());
    }
    Ok(ValueType::F32)
}

pub(super) fn max_pool_codes(_: NodeView<'_>, inputs: &[ValueType]) -> Result<ValueType, String> {
    Ok(inputs[0])
}
