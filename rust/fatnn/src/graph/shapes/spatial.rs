//! Shape rules of operations that resize maps: interpolation, transposed convolution and
//! depth-to-space. Also the type rule of depth-to-space on codes.

use super::layers::check_bias;
use super::{ShapeResult, each_axis, require, same_as_input, split_spatial};
use crate::codec::CodesLayout;
use crate::dtype::ValueType;
use crate::graph::graph::NodeView;
use crate::graph::op::Op;
use crate::graph::size::{Size, Sizes};

/// `size · factor + add`, always in the same normal form.
fn scaled(sizes: &Sizes, size: Size, factor: usize, add: i64) -> Result<Size, String> {
    let too_small = || format!("nothing is left of a map of {size:?}");
    match size {
        Size::Known(size) => {
            let output = i64::try_from(size)
                .ok()
                .and_then(|size| size.checked_mul(i64::try_from(factor).ok()?)?.checked_add(add));
            let output = output.filter(|output| *output > 0 || size == 0 && *output == 0);
            output.map(|output| Size::Known(output as usize)).ok_or_else(too_small)
        }
        Size::Free { base, offset } => {
            let factor_i64 = i64::try_from(factor).map_err(|_| too_small())?;
            let add = offset.checked_mul(factor_i64).and_then(|n| n.checked_add(add));
            let product = sizes.product(&[Size::Free { base, offset: 0 }, Size::Known(factor)])?;
            sizes.plus(product, add.ok_or_else(too_small)?)
        }
    }
}

pub(in crate::graph) fn interpolate(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (Op::Interpolate(how) | Op::InterpolateCodes(how)) = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let (x, axes) = (inputs[0], inputs[0].len().wrapping_sub(2));
    require((1..=2).contains(&axes), || format!("images expected, got the shape {x:?}"))?;
    let map = match inputs.get(1) {
        Some(like) => {
            require(like.len() == x.len(), || {
                format!("a map of {axes} spatial axes expected, got the shape {like:?}")
            })?;
            like[2..].to_vec() // small: sizes
        }
        None => {
            let given = how.size.len().max(how.factors.len());
            require(given == axes, || {
                format!("{axes} sizes or factors expected, got {:?} {:?}", how.size, how.factors)
            })?;
            let axis = |axis: usize| -> Result<Size, String> {
                match (x[2 + axis], how.whole_factor(axis).filter(|_| how.size.is_empty())) {
                    (size @ Size::Free { .. }, Some(factor)) => scaled(sizes, size, factor, 0),
                    (Size::Free { .. }, None) => {
                        Ok(how.size.get(axis).map_or_else(|| sizes.fresh(), |n| Size::Known(*n)))
                    }
                    (Size::Known(size), _) => how
                        .output(axis, size)
                        .map(Size::Known)
                        .ok_or_else(|| format!("nothing is left of a map of {size}")),
                }
            };
            (0..axes).map(axis).collect::<Result<Vec<_>, _>>()?
        }
    };
    let pixels = x[2..].iter().chain(&map).all(|size| !size.is(0));
    require(pixels, || format!("a map with pixels expected, got {x:?} and {map:?}"))?;
    Ok([&x[..2], &map].concat())
}

pub(in crate::graph) fn depth_to_space(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (Op::DepthToSpace(how) | Op::DepthToSpaceCodes(how)) = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let (x, axes) = (inputs[0], inputs[0].len().wrapping_sub(2));
    require((1..=2).contains(&axes), || format!("images expected, got the shape {x:?}"))?;
    require(axes == 2 || how.block[0] == 1 && how.cropped(0) == 0, || {
        format!("a map of one axis needs blocks of height 1, got {:?}", how.block)
    })?;
    let blocks = how.pixels().saturating_mul(how.groups);
    let fits = x[1].known().is_none_or(|channels| channels.is_multiple_of(blocks));
    require(fits && blocks > 0, || {
        format!("{:?} channels cannot become blocks of {:?}", x[1], how.block)
    })?;
    let channels =
        sizes.quotient(x[1], Size::Known(how.pixels())).ok_or("block must not be empty")?;
    let map = each_axis(axes, &x[2..], |size, axis| {
        scaled(sizes, size, how.block[axis], -(how.cropped(axis) as i64))
    })?;
    Ok([&[x[0], channels], map.as_slice()].concat())
}

pub(in crate::graph) fn conv_transpose(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::ConvTranspose(conv) = &view.node.op else { return same_as_input(sizes, view, inputs) };
    let (weight, axes) = (view.shape("weight")?, conv.axes);
    require(weight.len() == 2 + axes && !weight.contains(&0), || {
        format!("weight: unexpected shape {weight:?}")
    })?;
    let (front, map) = split_spatial(inputs[0], axes)?;
    require(front.last().is_some_and(|size| size.may_be(weight[0])), || {
        format!("{} channels expected, got the shape {:?}", weight[0], inputs[0])
    })?;
    let out = weight[1].checked_mul(conv.groups).ok_or("too many groups")?;
    require(weight[0].is_multiple_of(conv.groups), || {
        format!("{} groups do not fit {} channels", conv.groups, weight[0])
    })?;
    check_bias(view, out)?;
    let mut kernel = [1; 2];
    kernel[2 - axes..].copy_from_slice(&weight[2..]);
    let map = each_axis(axes, map, |size, axis| {
        require(!size.is(0), || format!("a map with pixels expected, got {:?}", inputs[0]))?;
        let params = conv.axis(axis, kernel[axis]);
        let more = conv.output_padding[axis];
        require(more < params.stride.max(params.dilation), || {
            format!("output_padding {more} must be smaller than stride or dilation")
        })?;
        let stride = params.stride;
        scaled(sizes, size, stride, conv.one_pixel_output(axis, kernel[axis]) - stride as i64)
    })?;
    Ok([&front[..front.len() - 1], &[Size::Known(out)], &map].concat())
}

/// Type of codes after depth-to-space. Every block must consist of whole channel groups.
pub(in crate::graph) fn depth_to_space_codes(
    view: NodeView<'_>,
    inputs: &[ValueType],
) -> Result<ValueType, String> {
    let (Op::DepthToSpaceCodes(how), ValueType::Codes { codes, channels, groups }) =
        (&view.node.op, inputs[0])
    else {
        return Ok(ValueType::F32);
    };
    let (pixels, blocks) = (how.pixels(), how.pixels().saturating_mul(how.groups));
    if blocks == 0 || !channels.is_multiple_of(blocks) || !groups.is_multiple_of(blocks) {
        return Err(format!(
            "groups do not fit: {channels} channels in {groups} groups cannot become blocks \
             of {:?}",
            how.block
        ));
    }
    let output = ValueType::Codes { codes, channels: channels / pixels, groups: groups / pixels };
    CodesLayout::new(channels / pixels, groups / pixels)
        .map_err(|e| format!("groups do not fit ({e})"))?;
    Ok(output)
}
