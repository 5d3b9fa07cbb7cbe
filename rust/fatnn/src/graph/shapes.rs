//! Rules for shapes: what shape a node's value has, given those that it reads. Any rank, PyTorch's rules.
//!
//! Codes have the shape of the values that they stand for: images, channels, pixels.

use super::graph::NodeView;
use super::op::{ConvParams, Op};
use super::tensor::Tensor;
use crate::memory;

type Made = Result<Vec<usize>, String>;

fn require(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

pub(super) fn noted(view: NodeView<'_>, _: &[&[usize]]) -> Made {
    Ok(view.node.shape.clone())
}

pub(super) fn same(_: NodeView<'_>, read: &[&[usize]]) -> Made {
    Ok(read[0].to_vec()) // small: sizes
}

/// One axis after a convolution or pooling: `⌊(size + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1`.
fn slid(size: usize, axis: usize, params: &ConvParams) -> Result<usize, String> {
    let ConvParams { kernel, stride, padding, dilation } = params;
    let reach = (kernel[axis].max(1) - 1) as i128 * dilation[axis] as i128 + 1;
    let rest = size as i128 + 2 * padding[axis] as i128 - reach;
    require(rest >= 0, || {
        format!("a window that reaches over {reach} does not fit a map of {size} padded by {padding:?}")
    })?;
    usize::try_from(rest / stride[axis].max(1) as i128 + 1).map_err(|e| e.to_string())
}

/// As [`slid`]; with `ceil_mode` the last window may reach over the edge if it starts inside the input or its
/// left padding.
fn pooled(size: usize, axis: usize, params: &ConvParams, ceil_mode: bool) -> Result<usize, String> {
    require(size > 0, || "a map without pixels".into())?;
    if !ceil_mode {
        return slid(size, axis, params);
    }
    let [kernel, stride, padding, dilation] =
        [params.kernel, params.stride, params.padding, params.dilation].map(|pair| pair[axis] as i128);
    let rest = size as i128 + 2 * padding - ((kernel - 1) * dilation + 1);
    let last = (rest + stride - 1).div_euclid(stride);
    let last = if last * stride >= size as i128 + padding { last - 1 } else { last };
    require(last >= 0, || format!("no window starts inside a map of {size}"))?;
    usize::try_from(last + 1).map_err(|e| e.to_string())
}

/// Splits a shape into what is before its `axes` spatial axes, and those; both with and without a batch.
fn spatial(shape: &[usize], axes: usize) -> Result<(&[usize], &[usize]), String> {
    require(shape.len() == axes + 1 || shape.len() == axes + 2, || {
        format!("{} or {} dimensions expected, got the shape {shape:?}", axes + 1, axes + 2)
    })?;
    Ok(shape.split_at(shape.len() - axes))
}

/// The axes of a map, of which one-dimensional ones are the second.
fn each_axis(
    axes: usize,
    sizes: &[usize],
    rule: impl Fn(usize, usize) -> Result<usize, String>,
) -> Result<Vec<usize>, String> {
    sizes.iter().enumerate().map(|(i, &size)| rule(size, 2 - axes + i)).collect()
}

/// Convolutions of floats, with float or int8 weights.
pub(super) fn conv(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (conv, int8) = match &view.node.op {
        Op::Conv(conv) => (conv, false),
        Op::ConvInt8(conv) => (conv, true),
        _ => return same(view, read),
    };
    let (weight, axes) = (view.shape("weight")?, conv.axes);
    require(weight.len() == 2 + axes && !weight.contains(&0), || format!("weight: unexpected shape {weight:?}"))?;
    let (front, map) = spatial(read[0], axes)?;
    require(!int8 || front.len() == 2, || format!("{} dimensions expected, got the shape {:?}", 2 + axes, read[0]))?;
    let channels = weight[1].saturating_mul(conv.groups);
    require(front.last() == Some(&channels), || format!("{channels} channels expected, got the shape {:?}", read[0]))?;
    require(weight[0].is_multiple_of(conv.groups), || format!("{} groups do not fit", conv.groups))?;
    bias(view, weight[0])?;
    let mut params = conv.params;
    params.kernel[2 - axes..].copy_from_slice(&weight[2..]);
    let map = each_axis(axes, map, |size, axis| slid(size, axis, &params))?;
    Ok([&front[..front.len() - 1], &[weight[0]], &map].concat())
}

fn bias(view: NodeView<'_>, out: usize) -> Result<(), String> {
    match view.tensor("bias").map(Tensor::shape) {
        Some(shape) if shape != [out] => Err(format!("a bias of {out} numbers expected, got the shape {shape:?}")),
        _ => Ok(()),
    }
}

pub(super) fn linear(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let weight = view.shape("weight")?;
    let &[out, features] = weight else { return Err(format!("weight: unexpected shape {weight:?}")) };
    let int8 = view.node.op == Op::LinearInt8;
    require(!int8 || read[0].len() == 2, || format!("2 dimensions expected, got the shape {:?}", read[0]))?;
    let (&last, front) = read[0].split_last().ok_or("no dimensions")?;
    require(last == features, || format!("{features} channels expected, got the shape {:?}", read[0]))?;
    bias(view, out)?;
    Ok([front, &[out]].concat())
}

/// Functions per channel: their constants fit the channels.
pub(super) fn channel(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let x = read[0];
    let trailing = match &view.node.op {
        Op::ChannelScale { trailing } | Op::ChannelBias { trailing } => match trailing {
            Some(trailing) => Some(*trailing),
            None => return same(view, read),
        },
        _ => None,
    };
    let at = trailing.map_or(Some(1), |trailing| x.len().checked_sub(trailing + 1));
    let channels = at.and_then(|at| x.get(at).copied());
    let channels = match view.node.op {
        // PReLU takes a vector as one sample of channels.
        Op::Prelu if x.len() < 2 => Some(1),
        _ => channels,
    };
    let channels = channels.ok_or_else(|| format!("no dimension of channels in the shape {x:?}"))?;
    let shared = trailing.is_some() || view.node.op == Op::Prelu;
    for role in view.node.tensors.keys() {
        let shape = view.shape(role)?;
        let numbers = if trailing.is_some() { memory::product(shape.iter().copied()) } else { None };
        let numbers = numbers.or(if let &[n] = shape { Some(n) } else { None });
        let fits = numbers == Some(channels) || shared && numbers == Some(1);
        require(fits, || {
            format!("{role}: {channels} numbers expected, got the shape {shape:?}; constants do not fit")
        })?;
    }
    same(view, read)
}

pub(super) fn pool(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (pool, average) = match &view.node.op {
        Op::MaxPool(pool) => (pool, false),
        Op::AvgPool { pool, .. } => (pool, true),
        _ => return same(view, read),
    };
    let (front, map) = spatial(read[0], pool.axes)?;
    let ConvParams { kernel, padding, dilation, .. } = pool.params;
    let half = |axis: usize| ((kernel[axis] - 1) * if average { 1 } else { dilation[axis] }).div_ceil(2);
    require((0..2).all(|axis| padding[axis] <= half(axis)), || {
        format!("padding {padding:?} must be at most half of the window {kernel:?}")
    })?;
    let map = each_axis(pool.axes, map, |size, axis| pooled(size, axis, &pool.params, pool.ceil_mode))?;
    Ok([front, &map].concat())
}

pub(super) fn adaptive(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::AdaptiveAvgPool { axes, size } = &view.node.op else { return same(view, read) };
    let (front, map) = spatial(read[0], *axes)?;
    require(!map.contains(&0), || format!("a map with pixels expected, got the shape {:?}", read[0]))?;
    let map = each_axis(*axes, map, |from, axis| Ok(if size[axis] == 0 { from } else { size[axis] }))?;
    Ok([front, &map].concat())
}

/// A dimension counted from the front.
fn dimension(dim: i64, rank: usize) -> Result<usize, String> {
    let from_front = if dim < 0 { dim + rank.max(1) as i64 } else { dim };
    let found = usize::try_from(from_front).ok().filter(|d| *d < rank.max(1));
    found.ok_or_else(|| format!("dimension {dim} is out of range for {rank} dimensions"))
}

pub(super) fn mean(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::Mean { dims, keepdim } = &view.node.op else { return same(view, read) };
    let x = read[0];
    let mut gone = vec![dims.is_empty(); x.len()]; // small: a flag per dimension
    for &dim in dims {
        let dim = dimension(dim, x.len())?;
        if let Some(gone) = gone.get_mut(dim) {
            require(!*gone, || format!("dimension {dim} stands twice in {dims:?}"))?;
            *gone = true;
        }
    }
    let sizes = x.iter().zip(gone).filter(|(_, gone)| *keepdim || !gone);
    Ok(sizes.map(|(&size, gone)| if gone { 1 } else { size }).collect())
}

fn elements(shape: &[usize]) -> Result<usize, String> {
    memory::product(shape.iter().copied()).ok_or_else(|| format!("the shape {shape:?} is too large"))
}

pub(super) fn flatten(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::Flatten { start, end } = &view.node.op else { return same(view, read) };
    let x = read[0];
    let (start, end) = (dimension(*start, x.len())?, dimension(*end, x.len())?);
    require(start <= end, || format!("dimensions from {start} to {end}"))?;
    if x.is_empty() {
        return Ok(vec![1]); // small: one
    }
    Ok([&x[..start], &[elements(&x[start..=end])?], &x[end + 1..]].concat())
}

pub(super) fn flatten_leading(_: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (&last, front) = read[0].split_last().ok_or("no dimensions")?;
    require(last > 0, || format!("the shape {:?} has no last dimension to keep", read[0]))?;
    Ok(vec![elements(front)?, last]) // small: two sizes
}

pub(super) fn reshape_like(_: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (y, x) = (read[0], read[1]);
    let (&last, (_, front)) = (y.last().ok_or("no dimensions")?, x.split_last().ok_or("no dimensions")?);
    let made = [front, &[last]].concat();
    require(elements(&made)? == elements(y)?, || format!("{y:?} cannot become {made:?}"))?;
    Ok(made)
}

pub(super) fn pad(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::Pad { pad, mode, .. } = &view.node.op else { return same(view, read) };
    let mut sizes = read[0].to_vec(); // small: sizes
    let (rank, dims) = (sizes.len(), pad.len() / 2);
    require(pad.len().is_multiple_of(2), || "pad must have two numbers for every dimension".into())?;
    require(dims <= rank, || format!("padding of {dims} dimensions, got the shape {sizes:?}"))?;
    let limit = match mode.as_str() {
        "constant" => None,
        "reflect" => Some(1),
        "replicate" | "circular" => Some(0),
        other => return Err(format!("unknown mode of padding {other:?}")),
    };
    require(limit.is_none() || (1..=3).contains(&dims) && (rank == dims + 1 || rank == dims + 2), || {
        format!("{mode} padding of {dims} of {rank} dimensions")
    })?;
    for (i, pair) in pad.chunks_exact(2).enumerate() {
        let size = sizes[rank - 1 - i] as i64;
        let least = i64::from(mode != "constant");
        let most = if mode == "replicate" { i64::MAX } else { size - limit.unwrap_or(0) };
        require(limit.is_none() || size > 0 && pair.iter().all(|n| *n <= most), || {
            format!("{mode} padding of {pair:?} on a dimension of {size}")
        })?;
        let made = size + pair[0] + pair[1];
        require(made >= least, || format!("padding {pair:?} leaves nothing of a dimension of {size}"))?;
        sizes[rank - 1 - i] = made as usize;
    }
    Ok(sizes)
}

pub(super) fn add(_: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (a, b) = (read[0], read[1]);
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let sizes = (0..rank).map(|i| match (at(a, i), at(b, i)) {
        (a, b) if a == b || b == 1 => Ok(a),
        (1, b) => Ok(b),
        _ => Err(format!("the shapes {a:?} and {b:?} do not fit each other")),
    });
    sizes.collect()
}

pub(super) fn cat(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::Cat { dim } = view.node.op else { return same(view, read) };
    // PyTorch skips vectors without elements.
    let mut parts = read.iter().filter(|shape| **shape != [0]);
    let Some(first) = parts.next() else { return same(view, read) };
    require(!first.is_empty(), || "values without dimensions".into())?;
    let (dim, mut made) = (dimension(dim, first.len())?, first.to_vec()); // small: sizes
    for part in parts {
        let fits = part.len() == first.len() && (0..first.len()).all(|i| i == dim || part[i] == first[i]);
        require(fits, || format!("the shapes {first:?} and {part:?} do not fit each other"))?;
        made[dim] = made[dim].saturating_add(part[dim]);
    }
    Ok(made)
}

pub(super) fn constant(view: NodeView<'_>, _: &[&[usize]]) -> Made {
    Ok(view.shape("value")?.to_vec()) // small: sizes
}

pub(super) fn quantize(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::Quantize { channels, axes, .. } = &view.node.op else { return same(view, read) };
    let x = read[0];
    require(axes.is_none_or(|axes| x.len() == axes + 2) && (2..=4).contains(&x.len()), || {
        format!("{axes:?} spatial dimensions expected, got the shape {x:?}")
    })?;
    require(x[1] == *channels, || format!("{channels} channels expected, got the shape {x:?}"))?;
    same(view, read)
}

/// Height and width of codes.
fn code_map(shape: &[usize]) -> Result<[usize; 2], String> {
    match shape {
        [_, _] => Ok([1, 1]),
        &[_, _, w] => Ok([1, w]),
        &[_, _, h, w] => Ok([h, w]),
        _ => Err(format!("codes of the shape {shape:?}")),
    }
}

/// A shape of so many spatial axes; others must have size 1.
fn with_axes(front: [usize; 2], map: [usize; 2], axes: usize) -> Made {
    let (left_out, kept) = map.split_at(2 - axes);
    require(left_out.iter().all(|side| *side == 1), || format!("{axes} spatial dimensions expected, got {map:?}"))?;
    Ok([&front, kept].concat())
}

pub(super) fn codes_conv(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let (Op::ConvCodes { conv, .. } | Op::ConvFloat { conv, .. }) = &view.node.op else { return same(view, read) };
    let map = code_map(read[0])?;
    require(conv.axes > 0 || map == conv.params.kernel, || {
        format!("a map of {:?} expected, got {map:?}", conv.params.kernel)
    })?;
    let map = [slid(map[0], 0, &conv.params)?, slid(map[1], 1, &conv.params)?];
    let made = with_axes([read[0][0], view.shape("weight")?[0]], map, conv.axes)?;
    if let Some(residual) = read.get(1) {
        require(*residual == made, || format!("residual: shape {made:?} expected, got {residual:?}"))?;
    }
    Ok(made)
}

pub(super) fn max_pool_codes(view: NodeView<'_>, read: &[&[usize]]) -> Made {
    let Op::MaxPoolCodes { params, ceil_mode, .. } = &view.node.op else { return same(view, read) };
    let map = code_map(read[0])?;
    let map = [pooled(map[0], 0, params, *ceil_mode)?, pooled(map[1], 1, params, *ceil_mode)?];
    with_axes([read[0][0], read[0][1]], map, read[0].len() - 2)
}
