//! Shape rules of float and int8 layers, per-channel functions and pooling.

use super::{ShapeResult, each_axis, require, same_as_input, split_spatial};
use crate::graph::graph::NodeView;
use crate::graph::op::{ConvParams, Op};
use crate::graph::size::{Size, Sizes};
use crate::graph::tensor::Tensor;
use crate::memory;
use crate::window::AxisParams;

/// Size of an axis after windows.
pub(super) fn windows(
    sizes: &Sizes,
    size: Size,
    axis: usize,
    params: &ConvParams,
) -> Result<Size, String> {
    let axis = axis_params(axis, params);
    match size {
        Size::Known(size) => axis.count(size).map(Size::Known).ok_or_else(|| {
            let (reach, padding) = (axis.reach(), params.padding);
            format!(
                "a window that reaches over {reach} does not fit a map of {size} padded by \
                 {padding:?}"
            )
        }),
        Size::Free { base, offset } => Ok(sizes.windows(base, offset, axis)),
    }
}

/// As [`windows`], for a pool. With `ceil_mode` the last window may extend beyond the padded input.
pub(super) fn pool_windows(
    sizes: &Sizes,
    size: Size,
    axis: usize,
    params: &ConvParams,
    ceil_mode: bool,
) -> Result<Size, String> {
    require(!size.is(0), || "expected a map with pixels, got a size of 0".into())?;
    if !ceil_mode {
        return windows(sizes, size, axis, params);
    }
    let axis = axis_params(axis, params);
    match size {
        Size::Known(size) => {
            let count = axis.count_ceil(size).map(Size::Known);
            count.ok_or_else(|| format!("no window starts inside a map of {size}"))
        }
        Size::Free { base, offset } => Ok(sizes.ceil_windows(base, offset, axis)),
    }
}

fn axis_params(axis: usize, params: &ConvParams) -> AxisParams {
    let ConvParams { kernel, stride, padding, dilation } = params;
    AxisParams {
        kernel: kernel[axis],
        stride: stride[axis],
        padding: padding[axis],
        dilation: dilation[axis],
    }
}

/// Convolutions of floats, with float or int8 weights.
pub(in crate::graph) fn conv(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let (conv, int8) = match &view.node.op {
        Op::Conv(conv) => (conv, false),
        Op::ConvInt8(conv) => (conv, true),
        _ => return same_as_input(sizes, view, inputs),
    };
    let (weight, axes) = (view.shape("weight")?, conv.axes);
    require(weight.len() == 2 + axes && !weight.contains(&0), || {
        format!("weight: unexpected shape {weight:?}")
    })?;
    let (front, map) = split_spatial(inputs[0], axes)?;
    require(!int8 || front.len() == 2, || {
        format!("{} dimensions expected, got the shape {:?}", 2 + axes, inputs[0])
    })?;
    let channels = weight[1].saturating_mul(conv.groups);
    require(front.last().is_some_and(|size| size.may_be(channels)), || {
        format!("{channels} channels expected, got the shape {:?}", inputs[0])
    })?;
    require(weight[0].is_multiple_of(conv.groups), || {
        format!("{} groups do not fit {} output channels", conv.groups, weight[0])
    })?;
    check_bias(view, weight[0])?;
    let mut params = conv.params;
    params.kernel[2 - axes..].copy_from_slice(&weight[2..]);
    let map = each_axis(axes, map, |size, axis| windows(sizes, size, axis, &params))?;
    Ok([&front[..front.len() - 1], &[Size::Known(weight[0])], &map].concat())
}

pub(super) fn check_bias(view: NodeView<'_>, out: usize) -> Result<(), String> {
    match view.tensor("bias").map(Tensor::shape) {
        Some(shape) if shape != [out] => {
            Err(format!("a bias of {out} numbers expected, got the shape {shape:?}"))
        }
        _ => Ok(()),
    }
}

pub(in crate::graph) fn linear(_: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let weight = view.shape("weight")?;
    let &[out, features] = weight else {
        return Err(format!("weight: unexpected shape {weight:?}"));
    };
    let int8 = view.node.op == Op::LinearInt8;
    require(!int8 || inputs[0].len() == 2, || {
        format!("2 dimensions expected, got the shape {:?}", inputs[0])
    })?;
    let (last, front) = inputs[0].split_last().ok_or("no dimensions")?;
    require(last.may_be(features), || {
        format!("{features} channels expected, got the shape {:?}", inputs[0])
    })?;
    check_bias(view, out)?;
    Ok([front, &[Size::Known(out)]].concat())
}

/// Per-channel functions keep the shape; their constants must fit the channels.
pub(in crate::graph) fn channel(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let x = inputs[0];
    let trailing = match &view.node.op {
        Op::ChannelScale { trailing } | Op::ChannelBias { trailing } => match trailing {
            Some(trailing) => Some(*trailing),
            None => return same_as_input(sizes, view, inputs),
        },
        _ => None,
    };
    let at = trailing.map_or(Some(1), |trailing| x.len().checked_sub(trailing + 1));
    let channels = at.and_then(|at| x.get(at).copied());
    let channels = match view.node.op {
        // For vectors, PyTorch's PReLU has a single slope.
        Op::Prelu if x.len() < 2 => Some(Size::Known(1)),
        _ => channels,
    };
    let channels =
        channels.ok_or_else(|| format!("no dimension of channels in the shape {x:?}"))?;
    let shared = trailing.is_some() || view.node.op == Op::Prelu;
    for role in view.node.tensors.keys() {
        let shape = view.shape(role)?;
        let numbers =
            if trailing.is_some() { memory::product(shape.iter().copied()) } else { None };
        let numbers = numbers.or(if let &[n] = shape { Some(n) } else { None });
        let fits = numbers.is_some_and(|n| channels.may_be(n) || shared && n == 1);
        require(fits, || {
            format!(
                "{role}: expected {channels:?} numbers, one per channel, got the shape {shape:?}"
            )
        })?;
    }
    same_as_input(sizes, view, inputs)
}

pub(in crate::graph) fn pool(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let (pool, average) = match &view.node.op {
        Op::MaxPool(pool) => (pool, false),
        Op::AvgPool { pool, .. } => (pool, true),
        _ => return same_as_input(sizes, view, inputs),
    };
    let (front, map) = split_spatial(inputs[0], pool.axes)?;
    let ConvParams { kernel, padding, dilation, .. } = pool.params;
    let half =
        |axis: usize| ((kernel[axis] - 1) * if average { 1 } else { dilation[axis] }).div_ceil(2);
    require((0..2).all(|axis| padding[axis] <= half(axis)), || {
        format!("padding {padding:?} must be at most half of the window {kernel:?}")
    })?;
    let map = each_axis(pool.axes, map, |size, axis| {
        pool_windows(sizes, size, axis, &pool.params, pool.ceil_mode)
    })?;
    Ok([front, &map].concat())
}

pub(in crate::graph) fn adaptive(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (Op::AdaptiveAvgPool { axes, size } | Op::AdaptiveMaxPool { axes, size }) = &view.node.op
    else {
        return same_as_input(sizes, view, inputs);
    };
    let (front, map) = split_spatial(inputs[0], *axes)?;
    require(map.iter().all(|size| !size.is(0)), || {
        format!("a map with pixels expected, got the shape {:?}", inputs[0])
    })?;
    let wanted = |from, axis: usize| if size[axis] == 0 { from } else { Size::Known(size[axis]) };
    let map = each_axis(*axes, map, |from, axis| Ok(wanted(from, axis)))?;
    Ok([front, &map].concat())
}
