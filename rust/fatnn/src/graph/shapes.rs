//! Shape rules: the output shape of a node from its input shapes, for any rank, as in PyTorch.
//!
//! Codes have the shape of the values that they stand for: images, channels, pixels. Sizes may be
//! expressions. A rule fails only if no run can have such shapes.

use super::graph::{Graph, NodeView, Tensors};
use super::op::{ConvParams, Input, Op};
use super::size::{Size, Sizes, may_equal};
use super::tensor::Tensor;
use crate::memory;
use crate::window::AxisParams;

pub(super) mod moves;

pub(super) use moves::{expand, permute, reshape, slice, squeeze, unsqueeze};

pub(super) type ShapeResult = Result<Vec<Size>, String>;

/// Output shape of a node from known input shapes.
///
/// # Errors
/// Why the shapes do not fit.
pub(super) fn output_shape(view: NodeView<'_>, read: &[&[usize]]) -> Result<Vec<usize>, String> {
    let Some(info) = view.node.info else { return Ok(view.node.shape.clone()) };
    require(info.reads(read.len()), || format!("reads {} values", read.len()))?;
    let read: Vec<Vec<Size>> = read.iter().map(|shape| known_sizes(shape)).collect();
    let read: Vec<&[Size]> = read.iter().map(Vec::as_slice).collect();
    let output = (info.shape)(&Sizes::default(), view, &read)?;
    let number = |size: Size| size.known().ok_or_else(|| "the output size is not known".to_owned());
    output.into_iter().map(number).collect()
}

/// Shapes of all values for any input size. Free input sizes, and sizes computed from them, are
/// expressions. If a rule does not apply, every size of its output is a fresh expression.
///
/// Only the shapes of tensors are read.
pub fn in_every_run(graph: &Graph, tensors: &Tensors) -> Vec<Vec<Size>> {
    let sizes = Sizes::default();
    let mut shapes: Vec<Vec<Size>> = Vec::new();
    for node in &graph.nodes {
        let read: Vec<&[Size]> =
            node.inputs.iter().map(|&value| shapes[value].as_slice()).collect();
        let output = match (&node.op, node.info) {
            (Op::Input(input), _) => Some(input_sizes(&sizes, input, &node.shape)),
            (_, Some(info)) if info.reads(read.len()) => {
                (info.shape)(&sizes, NodeView { node, tensors }, &read).ok()
            }
            _ => None,
        };
        let output = output.filter(|output| output.len() == node.shape.len());
        shapes.push(output.unwrap_or_else(|| node.shape.iter().map(|_| sizes.fresh()).collect()));
    }
    shapes
}

/// Sizes of an input: fixed dimensions are numbers, the others fresh expressions.
fn input_sizes(sizes: &Sizes, input: &Input, shape: &[usize]) -> Vec<Size> {
    let is_fixed =
        |dim: usize| input.fixed.contains(&dim) || dim > 0 && input.channel_dim == Some(dim);
    let size = |(dim, &size): (usize, &usize)| {
        if is_fixed(dim) { Size::Known(size) } else { sizes.fresh() }
    };
    shape.iter().enumerate().map(size).collect()
}

fn known_sizes(shape: &[usize]) -> Vec<Size> {
    shape.iter().copied().map(Size::Known).collect()
}

pub(super) fn require(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

pub(super) fn declared(_: &Sizes, view: NodeView<'_>, _: &[&[Size]]) -> ShapeResult {
    Ok(known_sizes(&view.node.shape))
}

pub(super) fn same_as_input(_: &Sizes, _: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    Ok(read[0].to_vec()) // small: sizes
}

/// Size of an axis after windows.
fn windows(sizes: &Sizes, size: Size, axis: usize, params: &ConvParams) -> Result<Size, String> {
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
fn pool_windows(
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

/// Splits a shape into the leading dimensions (with or without a batch) and its last `axes`
/// dimensions.
pub(super) fn spatial(shape: &[Size], axes: usize) -> Result<(&[Size], &[Size]), String> {
    require(shape.len() == axes + 1 || shape.len() == axes + 2, || {
        format!("{} or {} dimensions expected, got the shape {shape:?}", axes + 1, axes + 2)
    })?;
    Ok(shape.split_at(shape.len() - axes))
}

/// Applies a rule to every axis of a map. The only axis of a one-dimensional map has index 1.
pub(super) fn each_axis(
    axes: usize,
    map: &[Size],
    rule: impl Fn(Size, usize) -> Result<Size, String>,
) -> ShapeResult {
    map.iter().enumerate().map(|(i, &size)| rule(size, 2 - axes + i)).collect()
}

/// Convolutions of floats, with float or int8 weights.
pub(super) fn conv(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (conv, int8) = match &view.node.op {
        Op::Conv(conv) => (conv, false),
        Op::ConvInt8(conv) => (conv, true),
        _ => return same_as_input(sizes, view, read),
    };
    let (weight, axes) = (view.shape("weight")?, conv.axes);
    require(weight.len() == 2 + axes && !weight.contains(&0), || {
        format!("weight: unexpected shape {weight:?}")
    })?;
    let (front, map) = spatial(read[0], axes)?;
    require(!int8 || front.len() == 2, || {
        format!("{} dimensions expected, got the shape {:?}", 2 + axes, read[0])
    })?;
    let channels = weight[1].saturating_mul(conv.groups);
    require(front.last().is_some_and(|size| size.may_be(channels)), || {
        format!("{channels} channels expected, got the shape {:?}", read[0])
    })?;
    require(weight[0].is_multiple_of(conv.groups), || {
        format!("{} groups do not fit {} output channels", conv.groups, weight[0])
    })?;
    bias(view, weight[0])?;
    let mut params = conv.params;
    params.kernel[2 - axes..].copy_from_slice(&weight[2..]);
    let map = each_axis(axes, map, |size, axis| windows(sizes, size, axis, &params))?;
    Ok([&front[..front.len() - 1], &[Size::Known(weight[0])], &map].concat())
}

pub(super) fn bias(view: NodeView<'_>, out: usize) -> Result<(), String> {
    match view.tensor("bias").map(Tensor::shape) {
        Some(shape) if shape != [out] => {
            Err(format!("a bias of {out} numbers expected, got the shape {shape:?}"))
        }
        _ => Ok(()),
    }
}

pub(super) fn linear(_: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let weight = view.shape("weight")?;
    let &[out, features] = weight else {
        return Err(format!("weight: unexpected shape {weight:?}"));
    };
    let int8 = view.node.op == Op::LinearInt8;
    require(!int8 || read[0].len() == 2, || {
        format!("2 dimensions expected, got the shape {:?}", read[0])
    })?;
    let (last, front) = read[0].split_last().ok_or("no dimensions")?;
    require(last.may_be(features), || {
        format!("{features} channels expected, got the shape {:?}", read[0])
    })?;
    bias(view, out)?;
    Ok([front, &[Size::Known(out)]].concat())
}

/// Per-channel functions keep the shape; their constants must fit the channels.
pub(super) fn channel(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let x = read[0];
    let trailing = match &view.node.op {
        Op::ChannelScale { trailing } | Op::ChannelBias { trailing } => match trailing {
            Some(trailing) => Some(*trailing),
            None => return same_as_input(sizes, view, read),
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
    same_as_input(sizes, view, read)
}

pub(super) fn pool(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (pool, average) = match &view.node.op {
        Op::MaxPool(pool) => (pool, false),
        Op::AvgPool { pool, .. } => (pool, true),
        _ => return same_as_input(sizes, view, read),
    };
    let (front, map) = spatial(read[0], pool.axes)?;
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

pub(super) fn adaptive(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (Op::AdaptiveAvgPool { axes, size } | Op::AdaptiveMaxPool { axes, size }) = &view.node.op
    else {
        return same_as_input(sizes, view, read);
    };
    let (front, map) = spatial(read[0], *axes)?;
    require(map.iter().all(|size| !size.is(0)), || {
        format!("a map with pixels expected, got the shape {:?}", read[0])
    })?;
    let wanted = |from, axis: usize| if size[axis] == 0 { from } else { Size::Known(size[axis]) };
    let map = each_axis(*axes, map, |from, axis| Ok(wanted(from, axis)))?;
    Ok([front, &map].concat())
}

/// Converts a dimension that may count from the end to an index.
pub(super) fn dimension(dim: i64, rank: usize) -> Result<usize, String> {
    let from_front = if dim < 0 { dim + rank.max(1) as i64 } else { dim };
    let found = usize::try_from(from_front).ok().filter(|d| *d < rank.max(1));
    found.ok_or_else(|| format!("dimension {dim} is out of range for {rank} dimensions"))
}

pub(super) fn flatten(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::Flatten { start, end } = &view.node.op else { return same_as_input(sizes, view, read) };
    let x = read[0];
    let (start, end) = (dimension(*start, x.len())?, dimension(*end, x.len())?);
    require(start <= end, || format!("start {start} is after end {end}"))?;
    if x.is_empty() {
        return Ok(known_sizes(&[1]));
    }
    Ok([&x[..start], &[sizes.product(&x[start..=end])?], &x[end + 1..]].concat())
}

pub(super) fn flatten_leading(sizes: &Sizes, _: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (&last, front) = read[0].split_last().ok_or("no dimensions")?;
    require(!last.is(0), || format!("the shape {:?} has no last dimension to keep", read[0]))?;
    Ok(vec![sizes.product(front)?, last]) // small: two sizes
}

pub(super) fn reshape_like(sizes: &Sizes, _: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (y, x) = (read[0], read[1]);
    let (&last, (_, front)) =
        (y.last().ok_or("no dimensions")?, x.split_last().ok_or("no dimensions")?);
    let output = [front, &[last]].concat();
    require(sizes.product(&output)?.may_equal(sizes.product(y)?), || {
        format!("{y:?} cannot become {output:?}")
    })?;
    Ok(output)
}

pub(super) fn pad(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::Pad { pad, mode, .. } = &view.node.op else { return same_as_input(sizes, view, read) };
    let mut output = read[0].to_vec(); // small: sizes
    let (rank, dims) = (output.len(), pad.len() / 2);
    require(pad.len().is_multiple_of(2), || {
        format!("pad must have two numbers for every dimension, got {pad:?}")
    })?;
    require(dims <= rank, || format!("padding of {dims} dimensions, got the shape {output:?}"))?;
    let limit = match mode.as_str() {
        "constant" => None,
        "reflect" => Some(1),
        "replicate" | "circular" => Some(0),
        other => return Err(format!("unknown mode of padding {other:?}")),
    };
    require(
        limit.is_none() || (1..=3).contains(&dims) && (rank == dims + 1 || rank == dims + 2),
        || format!("{mode} padding of {dims} of {rank} dimensions"),
    )?;
    for (i, pair) in pad.chunks_exact(2).enumerate() {
        let from = &mut output[rank - 1 - i];
        let Some(size) = from.known().map(|size| size as i64) else {
            *from = sizes.plus(*from, pair[0] + pair[1])?;
            continue;
        };
        let least = i64::from(mode != "constant");
        let most = if mode == "replicate" { i64::MAX } else { size - limit.unwrap_or(0) };
        require(limit.is_none() || size > 0 && pair.iter().all(|n| *n <= most), || {
            format!("{mode} padding of {pair:?} on a dimension of {size}")
        })?;
        let padded = size + pair[0] + pair[1];
        require(padded >= least, || {
            format!("padding {pair:?} leaves nothing of a dimension of {size}")
        })?;
        *from = Size::Known(padded as usize);
    }
    Ok(output)
}

/// Broadcasts two shapes, as PyTorch.
pub(super) fn broadcast(sizes: &Sizes, _: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    broadcast_pair(sizes, read[0], read[1])
}

/// The shape that two shapes broadcast to.
pub(super) fn broadcast_pair(sizes: &Sizes, a: &[Size], b: &[Size]) -> ShapeResult {
    let rank = a.len().max(b.len());
    let at = |shape: &[Size], i: usize| {
        (i + shape.len()).checked_sub(rank).map_or(Size::Known(1), |i| shape[i])
    };
    let output = (0..rank).map(|i| match (at(a, i), at(b, i)) {
        (a, b) if a == b || b.is(1) => Ok(a),
        (a, b) if a.is(1) => Ok(b),
        (Size::Known(_), Size::Known(_)) => {
            Err(format!("the shapes {a:?} and {b:?} do not fit each other"))
        }
        // In every valid run the other size is equal to it, or 1.
        (known @ Size::Known(_), _) | (_, known @ Size::Known(_)) => Ok(known),
        _ => Ok(sizes.fresh()),
    });
    output.collect()
}

pub(super) fn cat(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::Cat { dim } = view.node.op else { return same_as_input(sizes, view, read) };
    // PyTorch skips vectors without elements.
    let parts: Vec<&[Size]> =
        read.iter().copied().filter(|shape| **shape != [Size::Known(0)]).collect();
    let Some(first) = parts.first() else { return same_as_input(sizes, view, read) };
    require(!first.is_empty(), || {
        "expected values with at least one dimension, got a scalar".into()
    })?;
    let dim = dimension(dim, first.len())?;
    for part in &parts {
        let fits = part.len() == first.len()
            && (0..first.len()).all(|i| i == dim || part[i].may_equal(first[i]));
        require(fits, || format!("the shapes {first:?} and {part:?} do not fit each other"))?;
    }
    let mut output = first.to_vec(); // small: sizes
    for (i, size) in output.iter_mut().enumerate().filter(|(i, _)| *i != dim) {
        // All are equal in every valid run, so use a known size if there is one.
        *size =
            parts.iter().map(|part| part[i]).find(|size| size.known().is_some()).unwrap_or(*size);
    }
    output[dim] = sizes.sum(&parts.iter().map(|part| part[dim]).collect::<Vec<_>>())?;
    Ok(output)
}

pub(super) fn constant(_: &Sizes, view: NodeView<'_>, _: &[&[Size]]) -> ShapeResult {
    Ok(known_sizes(view.shape("value")?))
}

pub(super) fn quantize(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::Quantize { channels, axes, .. } = &view.node.op else {
        return same_as_input(sizes, view, read);
    };
    let x = read[0];
    require(axes.is_none_or(|axes| x.len() == axes + 2) && (2..=4).contains(&x.len()), || {
        format!("{axes:?} spatial dimensions expected, got the shape {x:?}")
    })?;
    require(x[1].may_be(*channels), || {
        format!("{channels} channels expected, got the shape {x:?}")
    })?;
    same_as_input(sizes, view, read)
}

const ONE: Size = Size::Known(1);

/// Height and width of a shape of codes.
fn code_map(shape: &[Size]) -> Result<[Size; 2], String> {
    match shape {
        [_, _] => Ok([ONE, ONE]),
        &[_, _, w] => Ok([ONE, w]),
        &[_, _, h, w] => Ok([h, w]),
        _ => Err(format!("codes of the shape {shape:?}")),
    }
}

/// A shape with `axes` spatial axes. The axes left out must have size 1.
fn with_axes(front: [Size; 2], map: [Size; 2], axes: usize) -> ShapeResult {
    let (left_out, kept) = map.split_at(2 - axes);
    require(left_out.iter().all(|side| side.may_be(1)), || {
        format!("{axes} spatial dimensions expected, got {map:?}")
    })?;
    Ok([&front, kept].concat())
}

pub(super) fn codes_conv(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let (Op::ConvCodes { conv, .. } | Op::ConvFloat { conv, .. }) = &view.node.op else {
        return same_as_input(sizes, view, read);
    };
    let map = code_map(read[0])?;
    require(conv.axes > 0 || may_equal(&map, &known_sizes(&conv.params.kernel)), || {
        format!("a map of {:?} expected, got {map:?}", conv.params.kernel)
    })?;
    let map = [windows(sizes, map[0], 0, &conv.params)?, windows(sizes, map[1], 1, &conv.params)?];
    let out_channels = view.shape("weight")?.first().ok_or("weight: no dimensions")?;
    let output = with_axes([read[0][0], Size::Known(*out_channels)], map, conv.axes)?;
    if let Some(residual) = read.get(1) {
        require(may_equal(residual, &output), || {
            format!("residual: shape {output:?} expected, got {residual:?}")
        })?;
    }
    Ok(output)
}

pub(super) fn max_pool_codes(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::MaxPoolCodes { params, ceil_mode, .. } = &view.node.op else {
        return same_as_input(sizes, view, read);
    };
    let map = code_map(read[0])?;
    let map = [0, 1].map(|axis| pool_windows(sizes, map[axis], axis, params, *ceil_mode));
    let [h, w] = map;
    with_axes([read[0][0], read[0][1]], [h?, w?], read[0].len() - 2)
}
