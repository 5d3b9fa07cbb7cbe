//! Shape rules of operations that only move elements.

use super::{ONE, ShapeResult, dimension, known_sizes, require, same_as_input};
use crate::graph::graph::NodeView;
use crate::graph::op::{Op, Slice};
use crate::graph::size::{Size, Sizes};

pub(in crate::graph) fn reshape(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Reshape { shape } = &view.node.op else { return same_as_input(sizes, view, inputs) };
    let x = inputs[0];
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
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Squeeze { dim } = view.node.op else { return same_as_input(sizes, view, inputs) };
    let mut output = inputs[0].to_vec(); // small: sizes
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
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Unsqueeze { dim } = view.node.op else { return same_as_input(sizes, view, inputs) };
    let mut output = inputs[0].to_vec(); // small: sizes
    output.insert(dimension(dim, output.len() + 1)?, ONE);
    Ok(output)
}

pub(in crate::graph) fn permute(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Permute { dims } = &view.node.op else { return same_as_input(sizes, view, inputs) };
    let x = inputs[0];
    let found = dims.iter().map(|&dim| dimension(dim, x.len())).collect::<Result<Vec<_>, _>>()?;
    require(found.len() == x.len() && (0..x.len()).all(|dim| found.contains(&dim)), || {
        format!("dims {dims:?} are not the dimensions of the shape {x:?}")
    })?;
    Ok(found.into_iter().map(|dim| x[dim]).collect())
}

pub(in crate::graph) fn slice(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let &Op::Slice(Slice { dim, start, end, step }) = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let mut output = inputs[0].to_vec(); // small: sizes
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

pub(in crate::graph) fn index_select(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let &Op::IndexSelect { dim } = &view.node.op else { return same_as_input(sizes, view, inputs) };
    let mut output = inputs[0].to_vec(); // small: sizes
    require(!output.is_empty(), || "a scalar has no indices".into())?;
    let dim = dimension(dim, output.len())?;
    let &[count] = inputs[1] else {
        return Err(format!("a vector of indices expected, got the shape {:?}", inputs[1]));
    };
    output[dim] = count;
    Ok(output)
}

pub(in crate::graph) fn flip(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    if let &Op::Flip { dim } = &view.node.op {
        require(!inputs[0].is_empty(), || "a scalar cannot be reversed".into())?;
        dimension(dim, inputs[0].len())?;
    }
    same_as_input(sizes, view, inputs)
}

pub(in crate::graph) fn expand(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Expand { shape } = &view.node.op else { return same_as_input(sizes, view, inputs) };
    let wrong = || format!("{:?} cannot be expanded to {shape:?}", inputs[0]);
    let more = shape.len().checked_sub(inputs[0].len()).ok_or_else(wrong)?;
    let mut output = Vec::new();
    for (i, &want) in shape.iter().enumerate() {
        let have = i.checked_sub(more).map_or(Size::Known(1), |i| inputs[0][i]);
        let size = match (want, inputs.get(1).and_then(|like| like.first())) {
            (-1, _) => have,
            (-2, Some(like)) => *like,
            (want, _) => Size::Known(usize::try_from(want).map_err(|_| wrong())?),
        };
        require(have.may_equal(size) || have.may_be(1), wrong)?;
        output.push(size);
    }
    Ok(output)
}

pub(in crate::graph) fn flatten(
    sizes: &Sizes,
    view: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let Op::Flatten { start, end } = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let x = inputs[0];
    let (start, end) = (dimension(*start, x.len())?, dimension(*end, x.len())?);
    require(start <= end, || format!("start {start} is after end {end}"))?;
    if x.is_empty() {
        return Ok(known_sizes(&[1]));
    }
    Ok([&x[..start], &[sizes.product(&x[start..=end])?], &x[end + 1..]].concat())
}

pub(in crate::graph) fn flatten_leading(
    sizes: &Sizes,
    _: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (&last, front) = inputs[0].split_last().ok_or("no dimensions")?;
    require(!last.is(0), || format!("the shape {:?} has no last dimension to keep", inputs[0]))?;
    Ok(vec![sizes.product(front)?, last]) // small: two sizes
}

pub(in crate::graph) fn reshape_like(
    sizes: &Sizes,
    _: NodeView<'_>,
    inputs: &[&[Size]],
) -> ShapeResult {
    let (y, x) = (inputs[0], inputs[1]);
    let (&last, (_, front)) =
        (y.last().ok_or("no dimensions")?, x.split_last().ok_or("no dimensions")?);
    let output = [front, &[last]].concat();
    require(sizes.product(&output)?.may_equal(sizes.product(y)?), || {
        format!("{y:?} cannot become {output:?}")
    })?;
    Ok(output)
}

pub(in crate::graph) fn pad(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let Op::Pad { pad, mode, .. } = &view.node.op else {
        return same_as_input(sizes, view, inputs);
    };
    let mut output = inputs[0].to_vec(); // small: sizes
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

pub(in crate::graph) fn cat(sizes: &Sizes, view: NodeView<'_>, inputs: &[&[Size]]) -> ShapeResult {
    let Op::Cat { dim } = view.node.op else { return same_as_input(sizes, view, inputs) };
    // PyTorch skips vectors without elements.
    let parts: Vec<&[Size]> =
        inputs.iter().copied().filter(|shape| **shape != [Size::Known(0)]).collect();
    let Some(first) = parts.first() else { return same_as_input(sizes, view, inputs) };
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

pub(in crate::graph) fn constant(_: &Sizes, view: NodeView<'_>, _: &[&[Size]]) -> ShapeResult {
    Ok(known_sizes(view.shape("value")?))
}
