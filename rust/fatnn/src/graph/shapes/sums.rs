//! Shape rules of reductions, normalisations, softmax, attention and other products of values.

use super::{ShapeResult, broadcast_pair, dimension, require, same_as_input};
use crate::graph::graph::NodeView;
use crate::graph::op::{Norm, NormOver, Op};
use crate::graph::size::{Size, Sizes, may_equal};
use crate::memory;

pub(in crate::graph) fn reduce(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Reduce { dims, keepdim, .. } = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let x = inputs[0];
    let mut reduced = vec![dims.is_empty(); x.len()]; // small: a flag per dimension
    for &dim in dims {
        let dim = dimension(dim, x.len())?;
        if let Some(reduced) = reduced.get_mut(dim) {
            require(!*reduced, || format!("dimension {dim} stands twice in {dims:?}"))?;
            *reduced = true;
        }
    }
    let kept = x.iter().zip(reduced).filter(|(_, reduced)| *keepdim || !reduced);
    Ok(kept.map(|(&size, reduced)| if reduced { Size::Known(1) } else { size }).collect())
}

/// Normalisations keep the shape; their constants must fit the normalised elements.
pub(in crate::graph) fn norm(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let Op::Norm(Norm { over, .. }) = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let x = inputs[0];
    let constants = match *over {
        NormOver::Last(dims) => {
            let at = x.len().checked_sub(dims).filter(|_| dims > 0);
            let at =
                at.ok_or_else(|| format!("{dims} last dimensions expected, got the shape {x:?}"))?;
            sizes.product(&x[at..])?
        }
        NormOver::Groups(groups) => {
            let channels =
                *x.get(1).ok_or_else(|| format!("no dimension of channels in the shape {x:?}"))?;
            require(
                channels.known().is_none_or(|n| groups > 0 && n.is_multiple_of(groups)),
                || format!("{groups} groups do not fit {channels:?} channels"),
            )?;
            channels
        }
        NormOver::Channels => {
            let pixels = x.get(2..).filter(|map| !map.is_empty()).unwrap_or_default();
            require(!pixels.is_empty(), || format!("a map expected, got the shape {x:?}"))?;
            x[1]
        }
    };
    for role in view.node.tensors.keys() {
        let shape = view.shape(role)?;
        let fits = memory::product(shape.iter().copied()).is_some_and(|n| constants.may_be(n));
        require(fits, || {
            format!("{role}: {constants:?} numbers expected, got the shape {shape:?}")
        })?;
    }
    same_as_input(sizes, view, inputs)
}

pub(in crate::graph) fn softmax(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    if let Op::Softmax { dim, .. } = view.node.op {
        dimension(dim, inputs[0].len())?;
    }
    same_as_input(sizes, view, inputs)
}

/// Splits a shape into its leading dimensions and the last two.
fn matrix(shape: &[Size]) -> Result<(&[Size], [Size; 2]), String> {
    match shape {
        [front @ .., rows, columns] => Ok((front, [*rows, *columns])),
        _ => Err(format!("at least two dimensions expected, got the shape {shape:?}")),
    }
}

pub(in crate::graph) fn matmul(sizes: &Sizes, _: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let ((front, [m, k]), (other, [rows, n])) = (matrix(inputs[0])?, matrix(inputs[1])?);
    require(k.may_equal(rows), || {
        format!("{:?} and {:?} cannot be multiplied", inputs[0], inputs[1])
    })?;
    Ok([broadcast_pair(sizes, front, other)?.as_slice(), &[m, n]].concat())
}

pub(in crate::graph) fn attention(
    sizes: &Sizes,
    _: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let ((q, [l, d]), (k, [s, key])) = (matrix(inputs[0])?, matrix(inputs[1])?);
    let (v, [values, out]) = matrix(inputs[2])?;
    require(d.may_equal(key) && s.may_equal(values), || {
        format!(
            "queries {:?}, keys {:?} and values {:?} do not fit",
            inputs[0], inputs[1], inputs[2]
        )
    })?;
    let front = broadcast_pair(sizes, &broadcast_pair(sizes, q, k)?, v)?;
    if let Some(mask) = inputs.get(3) {
        let scores = [front.as_slice(), &[l, s]].concat();
        let fits =
            broadcast_pair(sizes, mask, &scores).is_ok_and(|output| may_equal(&output, &scores));
        require(fits && mask.len() >= 2, || {
            format!("a mask for {scores:?} expected, got {mask:?}")
        })?;
    }
    Ok([front.as_slice(), &[l, out]].concat())
}

pub(in crate::graph) fn multihead(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Multihead { heads, batch_first, masks } = view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    require(inputs.len() == 3 + masks.count(), || {
        format!("{} values expected, got {inputs:?}", 3 + masks.count())
    })?;
    let wrong = || format!("queries, keys and values of three dimensions expected, got {inputs:?}");
    let (&[a, b, embed], &[c, d, width]) = (inputs[0], inputs[1]) else { return Err(wrong()) };
    let (images, key_images) = if batch_first { (a, c) } else { (b, d) };
    let fits =
        embed.may_equal(width) && images.may_equal(key_images) && may_equal(inputs[1], inputs[2]);
    require(fits, wrong)?;
    let [queries, keys] = if batch_first { [b, d] } else { [a, c] };
    let fits = match (masks.scores, inputs.get(3)) {
        (true, Some(mask)) => {
            let all = match (images, mask.first()) {
                (Size::Known(n), Some(first)) => first.may_be(n.saturating_mul(heads)),
                _ => true,
            };
            may_equal(mask, &[queries, keys])
                || all && mask.len() == 3 && may_equal(&mask[1..], &[queries, keys])
        }
        _ => true,
    };
    require(fits, || {
        format!("a mask for {queries:?} queries and {keys:?} keys expected: {inputs:?}")
    })?;
    let fits = !masks.keys || inputs.last().is_some_and(|mask| may_equal(mask, &[images, keys]));
    require(fits, || format!("a mask for the keys {:?} expected: {inputs:?}", [images, keys]))?;
    let out = view.shape("out_weight")?;
    let &[n, k] = out else { return Err(format!("out_weight: unexpected shape {out:?}")) };
    let rows = n.checked_mul(3).ok_or("too many weights")?;
    let fits = n == k
        && heads > 0
        && n.is_multiple_of(heads)
        && embed.may_be(n)
        && view.shape("in_weight")? == [rows, n];
    require(fits, || format!("weights do not fit {heads} heads and the shape {:?}", inputs[0]))?;
    for (role, count) in [("in_bias", rows), ("out_bias", n)] {
        let found = view.tensor(role).map_or(count, |bias| bias.shape().iter().product());
        require(found == count, || format!("{role}: {count} numbers expected"))?;
    }
    same_as_input(sizes, view, inputs)
}

/// Embedding: every index becomes a row of the weight.
pub(in crate::graph) fn embedding(
    _: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let weight = view.shape("weight")?;
    let &[_, width] = weight else { return Err(format!("weight: unexpected shape {weight:?}")) };
    Ok([inputs[0], &[Size::Known(width)]].concat())
}

/// Broadcasts any number of shapes.
pub(in crate::graph) fn broadcast_all(
    sizes: &Sizes,
    _: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let first = inputs[0].to_vec(); // small: sizes
    inputs[1..].iter().try_fold(first, |output, shape| broadcast_pair(sizes, &output, shape))
}

pub(in crate::graph) fn cumsum(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    if let Op::Cumsum { dim } = view.node.op {
        dimension(dim, inputs[0].len())?;
    }
    same_as_input(sizes, view, inputs)
}
