//! Shape rules: the output shape of a node from its input shapes, for any rank, as in PyTorch.
//!
//! Codes have the shape of the values that they stand for: images, channels, pixels. Sizes may be
//! expressions. A rule fails only if no run can have such shapes.

use super::graph::{Graph, NodeView, Tensors};
use super::op::{Input, Op};
use super::size::{Size, Sizes};

mod codes;
mod layers;
mod moves;
mod spatial;
mod sums;

pub(super) use codes::{codes_conv, max_pool_codes, quantize};
pub(super) use layers::{adaptive, channel, conv, linear, pool};
pub(super) use moves::{
    cat, constant, expand, flatten, flatten_leading, flip, index_select, pad, permute, reshape,
    reshape_like, slice, squeeze, unsqueeze,
};
pub(super) use spatial::{conv_transpose, depth_to_space, depth_to_space_codes, interpolate};
pub(super) use sums::{
    attention, broadcast_all, cumsum, embedding, matmul, multihead, norm, reduce, softmax,
};

/// The output shape, or why no run can have such shapes.
pub(super) type ShapeResult = Result<Vec<Size>, String>;

const ONE: Size = Size::Known(1);

/// Output shape of a node from known input shapes.
///
/// # Errors
/// Why the shapes do not fit.
pub(super) fn output_shape(view: NodeView<'_>, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let Some(info) = view.node.info else { return Ok(view.node.shape.clone()) };
    require(info.reads(inputs.len()), || format!("reads {} values", inputs.len()))?;
    let inputs: Vec<Vec<Size>> = inputs.iter().map(|shape| known_sizes(shape)).collect();
    let inputs: Vec<&[Size]> = inputs.iter().map(Vec::as_slice).collect();
    let output = (info.shape)(&Sizes::default(), view, &inputs)?;
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
        let inputs: Vec<&[Size]> =
            node.inputs.iter().map(|&value| shapes[value].as_slice()).collect();
        let output = match (&node.op, node.info) {
            (Op::Input(input), _) => Some(input_sizes(&sizes, input, &node.shape)),
            (_, Some(info)) if info.reads(inputs.len()) => {
                (info.shape)(&sizes, NodeView { node, tensors }, &inputs).ok()
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

fn require(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

/// The shape that the node declares.
pub(super) fn declared(_: &Sizes, view: NodeView<'_>, _: &[&[Size]]) -> ShapeResult {
    Ok(known_sizes(&view.node.shape))
}

/// The shape of the first input.
pub(super) fn same_as_input(_: &Sizes, _: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    Ok(inputs[0].to_vec()) // small: sizes
}

/// Splits a shape into the leading dimensions (with or without a batch) and its last `axes`
/// dimensions.
fn split_spatial(shape: &[Size], axes: usize) -> Result<(&[Size], &[Size]), String> {
    require(shape.len() == axes + 1 || shape.len() == axes + 2, || {
        format!("{} or {} dimensions expected, got the shape {shape:?}", axes + 1, axes + 2)
    })?;
    Ok(shape.split_at(shape.len() - axes))
}

/// Applies a rule to every axis of a map. The only axis of a one-dimensional map has index 1.
fn each_axis(
    axes: usize,
    map: &[Size],
    rule: impl Fn(Size, usize) -> Result<Size, String>,
) -> ShapeResult {
    map.iter().enumerate().map(|(i, &size)| rule(size, 2 - axes + i)).collect()
}

/// Converts a dimension that may count from the end to an index.
fn dimension(dim: i64, rank: usize) -> Result<usize, String> {
    let from_front = if dim < 0 { dim + rank.max(1) as i64 } else { dim };
    let found = usize::try_from(from_front).ok().filter(|d| *d < rank.max(1));
    found.ok_or_else(|| format!("dimension {dim} is out of range for {rank} dimensions"))
}

/// Broadcasts two shapes, as PyTorch.
pub(super) fn broadcast(sizes: &Sizes, _: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    broadcast_pair(sizes, inputs[0], inputs[1])
}

/// The shape that two shapes broadcast to.
fn broadcast_pair(sizes: &Sizes, a: &[Size], b: &[Size]) -> ShapeResult {
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
