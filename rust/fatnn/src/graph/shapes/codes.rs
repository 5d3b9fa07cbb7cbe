//! Shape rules of operations that read or write packed codes.

use super::layers::{pool_windows, windows};
use super::{ONE, ShapeResult, known_sizes, require, same_as_input};
use crate::graph::graph::NodeView;
use crate::graph::op::Op;
use crate::graph::size::{Size, Sizes, may_equal};

pub(in crate::graph) fn quantize(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Quantize { channels, axes, .. } = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let x = inputs[0];
    require(axes.is_none_or(|axes| x.len() == axes + 2) && (2..=4).contains(&x.len()), || {
        format!("{axes:?} spatial dimensions expected, got the shape {x:?}")
    })?;
    require(x[1].may_be(*channels), || {
        format!("{channels} channels expected, got the shape {x:?}")
    })?;
    same_as_input(sizes, view, inputs)
}

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

pub(in crate::graph) fn codes_conv(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (Op::ConvCodes { conv, .. } | Op::ConvFloat { conv, .. }) = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let map = code_map(inputs[0])?;
    require(conv.axes > 0 || may_equal(&map, &known_sizes(&conv.params.kernel)), || {
        format!("a map of {:?} expected, got {map:?}", conv.params.kernel)
    })?;
    let map = [windows(sizes, map[0], 0, &conv.params)?, windows(sizes, map[1], 1, &conv.params)?];
    let out_channels = view.shape("weight")?.first().ok_or("weight: no dimensions")?;
    let output = with_axes([inputs[0][0], Size::Known(*out_channels)], map, conv.axes)?;
    if let Some(residual) = inputs.get(1) {
        require(may_equal(residual, &output), || {
            format!("residual: shape {output:?} expected, got {residual:?}")
        })?;
    }
    Ok(output)
}

pub(in crate::graph) fn max_pool_codes(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::MaxPoolCodes { params, ceil_mode, .. } = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let map = code_map(inputs[0])?;
    let map = [0, 1].map(|axis| pool_windows(sizes, map[axis], axis, params, *ceil_mode));
    let [h, w] = map;
    with_axes([inputs[0][0], inputs[0][1]], [h?, w?], inputs[0].len() - 2)
}
