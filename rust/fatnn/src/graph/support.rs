//! What the engine can run. It has values of two to four dimensions: images, channels, pixels.

use super::graph::{Graph, NodeView};
use super::op::Op;
use crate::dtype::ValueType;

/// Whether the engine can run every node.
///
/// Returns one sentence per node that it cannot run.
pub fn unsupported(graph: &Graph, tensors: &super::Tensors) -> Vec<String> {
    let shapes: Vec<&[usize]> = graph.nodes.iter().map(|node| node.shape.as_slice()).collect();
    let view = |node| NodeView { node, tensors };
    let why = graph.nodes.iter().filter_map(|node| {
        let read: Vec<&[usize]> = node.inputs.iter().map(|&value| shapes[value]).collect();
        supported(view(node), &read).err()
    });
    why.collect()
}

/// `Ok` where the engine can run a node that reads values of such shapes.
///
/// # Errors
/// Which node, and why not.
pub fn supported(view: NodeView<'_>, read: &[&[usize]]) -> Result<(), String> {
    let (node, op) = (view.node, view.node.op_name());
    let name = &node.name;
    if let Op::Input(_) = &node.op {
        let (shape, float) = (&node.shape, node.dtype.is_none_or(|dtype| dtype == ValueType::F32));
        if !RANKS.contains(&shape.len()) || !float || shape[1] == 0 {
            return Err(format!("input {name:?} is not float32 of two to four dimensions"));
        }
        return Ok(());
    }
    if !(1..=2).contains(&read.len()) {
        return Err(format!("node {name:?} ({op}) reads {} values", read.len()));
    }
    let reason = match (&node.op, node.info.and_then(|info| info.support)) {
        (Op::Other { why, .. }, _) => why.clone(),
        (_, None) => "not one of this crate's".into(),
        (_, Some(_)) if !RANKS.contains(&read[0].len()) => String::new(),
        (op, Some(rule)) => match rule(op, read) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        },
    };
    Err(match reason.as_str() {
        "" => format!("node {name:?}: operation {op:?} on the shapes {read:?}"),
        why => format!("node {name:?}: operation {op:?} ({why})"),
    })
}

/// Why the engine cannot run one operation, given its attributes as JSON and the shapes of what it reads.
///
/// # Errors
/// [`crate::Error::Graph`] where the operation or an attribute means nothing.
pub fn refusal(name: &str, attrs: &str, read: &[&[usize]]) -> crate::Result<Option<String>> {
    let attrs: serde_json::Map<_, _> = serde_json::from_str(attrs)
        .map_err(|e| crate::Error::Graph { why: format!("{name}: attributes are no JSON object: {e}") })?;
    let (op, info) = super::parse::op(name, &attrs)?;
    Ok(match (info.support, read.first()) {
        (None, _) => Some("not one of this crate's".into()),
        (Some(_), None) => Some("it reads nothing".into()),
        (Some(_), Some(_)) if read.iter().any(|shape| !RANKS.contains(&shape.len())) => {
            Some(format!("on the shapes {read:?}"))
        }
        (Some(rule), Some(_)) => match rule(&op, read) {
            Ok(()) => None,
            Err(why) if why.is_empty() => Some(format!("on the shapes {read:?}")),
            Err(why) => Some(why),
        },
    })
}

/// Dimensions of values that the engine has.
const RANKS: std::ops::RangeInclusive<usize> = 2..=4;

/// The shapes are the reason.
fn shapes_do_not_fit() -> Result<(), String> {
    Err(String::new())
}

pub(super) fn any(_: &Op, _: &[&[usize]]) -> Result<(), String> {
    Ok(())
}

pub(super) fn rank<const RANK: usize>(_: &Op, read: &[&[usize]]) -> Result<(), String> {
    if read[0].len() == RANK { Ok(()) } else { shapes_do_not_fit() }
}

pub(super) fn add(_: &Op, read: &[&[usize]]) -> Result<(), String> {
    if read.iter().all(|shape| shape == &read[0]) { Ok(()) } else { shapes_do_not_fit() }
}

pub(super) fn avg_pool2d(op: &Op, read: &[&[usize]]) -> Result<(), String> {
    match op {
        Op::AvgPool { divisor, .. } if *divisor < 0 => Err(format!("a divisor of {divisor}")),
        _ => rank::<4>(op, read),
    }
}

pub(super) fn mean(op: &Op, read: &[&[usize]]) -> Result<(), String> {
    let Op::Mean { dims, .. } = op else { return Ok(()) };
    let rank = read[0].len() as i64;
    let mut reduced: Vec<i64> = dims.iter().map(|d| if *d < 0 { d + rank } else { *d }).collect();
    reduced.sort_unstable();
    if reduced.is_empty() || !reduced.iter().copied().eq(2..rank) {
        return Err(format!("a mean over the dimensions {dims:?}, which are not all pixels"));
    }
    Ok(())
}

pub(super) fn flatten(op: &Op, read: &[&[usize]]) -> Result<(), String> {
    match op {
        Op::Flatten { start: 1, end } if *end == -1 || end + 1 == read[0].len() as i64 => Ok(()),
        Op::Flatten { start, end } => Err(format!("flattening the dimensions from {start} to {end}")),
        _ => Ok(()),
    }
}

pub(super) fn pad(op: &Op, read: &[&[usize]]) -> Result<(), String> {
    let Op::Pad { pad, mode, .. } = op else { return Ok(()) };
    if mode != "constant" || pad.iter().any(|n| *n < 0) || pad.len() > 2 * (read[0].len() - 1) {
        return Err("padding by anything but constants around pixels and channels".into());
    }
    Ok(())
}
