//! Shape rules of operations that only move elements.

use super::{ONE, ShapeResult, dimension, require, same_as_input};
use crate::graph::graph::NodeView;
use crate::graph::op::{Op, Slice};
use crate::graph::size::{Size, Sizes};

pub(in crate::graph) fn reshape(
    sizes: &Sizes,
    view: NodeView<'_>,
    read: &[&[Size]],
) -> ShapeResult {
    let Op::Reshape { shape } = &view.node.op else { return same_as_input(sizes, view, read) };
    let x = read[0];
    require(
        shape.iter().all(|size| *size >= -1)
            && shape.iter().filter(|size| **size == -1).count() <= 1,
        || format!("a shape of sizes, 0, and -1 at most once expected, got {shape:?}"),
    )?;
    let mut output = Vec::new();
    for (i, &size) in shape.iter().enumerate() {
        output.push(match size {
            0 => *x.get(i).ok_or_else(|| format!("the shape {x:?} has no dimension {i}"))?,
            -1 => Size::Known(1),
            size => Size::Known(size as usize),
        });
    }
    let fits = || format!("{x:?} cannot become {shape:?}");
    // Equal sizes cancel before the division.
    let mut rest: Vec<Size> = x.to_vec(); // small: sizes
    let mut others = Vec::new();
    for size in &output {
        match rest.iter().position(|other| other == size) {
            Some(at) => {
                rest.remove(at);
            }
            None => others.push(*size),
        }
    }
    let left = sizes.quotient(sizes.product(&rest)?, sizes.product(&others)?).ok_or_else(fits)?;
    match shape.iter().position(|size| *size == -1) {
        Some(at) => output[at] = left,
        None => require(left.may_be(1), fits)?,
    }
    Ok(output)
}

pub(in crate::graph) fn squeeze(
    sizes: &Sizes,
    view: NodeView<'_>,
    read: &[&[Size]],
) -> ShapeResult {
    let Op::Squeeze { dim } = view.node.op else { return same_as_input(sizes, view, read) };
    let mut output = read[0].to_vec(); // small: sizes
    let dim = dimension(dim, output.len())?;
    match output.get(dim) {
        Some(size) if size.is(1) => drop(output.remove(dim)),
        Some(Size::Free { .. }) => {
            return Err(format!("dimension {dim} has size 1 only in some runs"));
        }
        _ => (),
    }
    Ok(output)
}

pub(in crate::graph) fn unsqueeze(
    sizes: &Sizes,
    view: NodeView<'_>,
    read: &[&[Size]],
) -> ShapeResult {
    let Op::Unsqueeze { dim } = view.node.op else { return same_as_input(sizes, view, read) };
    let mut output = read[0].to_vec(); // small: sizes
    output.insert(dimension(dim, output.len() + 1)?, ONE);
    Ok(output)
}

pub(in crate::graph) fn permute(
    sizes: &Sizes,
    view: NodeView<'_>,
    read: &[&[Size]],
) -> ShapeResult {
    let Op::Permute { dims } = &view.node.op else { return same_as_input(sizes, view, read) };
    let x = read[0];
    let found = dims.iter().map(|&dim| dimension(dim, x.len())).collect::<Result<Vec<_>, _>>()?;
    require(found.len() == x.len() && (0..x.len()).all(|dim| found.contains(&dim)), || {
        format!("dims {dims:?} are not the dimensions of the shape {x:?}")
    })?;
    Ok(found.into_iter().map(|dim| x[dim]).collect())
}

pub(in crate::graph) fn slice(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let &Op::Slice(Slice { dim, start, end, step }) = &view.node.op else {
        return same_as_input(sizes, view, read);
    };
    let mut output = read[0].to_vec(); // small: sizes
    require(!output.is_empty(), || "a scalar cannot be sliced".into())?;
    let dim = dimension(dim, output.len())?;
    output[dim] = match output[dim] {
        Size::Known(size) => {
            let inside =
                |at: i64| if at < 0 { at + size as i64 } else { at }.clamp(0, size as i64) as usize;
            Size::Known(inside(end).saturating_sub(inside(start)).div_ceil(step.max(1)))
        }
        free if start == 0 && step == 1 && end == i64::from(i32::MAX) => free,
        _ => sizes.fresh(),
    };
    Ok(output)
}

pub(in crate::graph) fn expand(sizes: &Sizes, view: NodeView<'_>, read: &[&[Size]]) -> ShapeResult {
    let Op::Expand { shape } = &view.node.op else { return same_as_input(sizes, view, read) };
    let wrong = || format!("{:?} cannot be expanded to {shape:?}", read[0]);
    let more = shape.len().checked_sub(read[0].len()).ok_or_else(wrong)?;
    let mut output = Vec::new();
    for (i, &want) in shape.iter().enumerate() {
        let have = i.checked_sub(more).map_or(Size::Known(1), |i| read[0][i]);
        let size = match (want, read.get(1).and_then(|like| like.first())) {
            (-1, _) => have,
            (-2, Some(like)) => *like,
            (want, _) => Size::Known(usize::try_from(want).map_err(|_| wrong())?),
        };
        require(have.may_equal(size) || have.may_be(1), wrong)?;
        output.push(size);
    }
    Ok(output)
}
