//! What the engine can run. Values have up to eight dimensions, images two to four: batch,
//! channels, then up to two spatial axes.

use super::graph::{Graph, NodeView};
use super::op::Op;
use crate::dtype::ValueType;

/// Returns one sentence for every node that the engine cannot run.
pub fn unsupported(graph: &Graph, tensors: &super::Tensors) -> Vec<String> {
    let shapes: Vec<&[usize]> = graph.nodes.iter().map(|node| node.shape.as_slice()).collect();
    let view = |node| NodeView { node, tensors };
    let why = graph.nodes.iter().filter_map(|node| {
        let inputs: Vec<&[usize]> = node.inputs.iter().map(|&value| shapes[value]).collect();
        supported(view(node), &inputs).err()
    });
    why.collect()
}

/// `Ok` if the engine can run a node on inputs of these shapes.
///
/// # Errors
/// The node, and why the engine cannot run it.
pub fn supported(view: NodeView<'_>, inputs: &[&[usize]]) -> Result<(), String> {
    let (node, op) = (view.node, view.node.op_name());
    let name = &node.name;
    if let Op::Input(_) = &node.op {
        let plain = node.dtype.is_none_or(|dtype| ValueType::PLAIN.contains(&dtype));
        if node.shape.len() > MAX_RANK || !plain || node.shape.get(1) == Some(&0) {
            return Err(format!(
                "input {name:?} must be float32, int32, int64 or bool, of at most {MAX_RANK} \
                 dimensions"
            ));
        }
        return Ok(());
    }
    if node.info.is_some_and(|info| !info.reads(inputs.len())) {
        return Err(format!("node {name:?} ({op}) reads {} values", inputs.len()));
    }
    let reason = match (&node.op, node.info.and_then(|info| info.support)) {
        (Op::Other { why, .. }, _) => why.clone(),
        (_, None) => "this release does not have it".into(),
        (op, Some(rule)) => match rule(op, inputs) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        },
    };
    Err(match reason.as_str() {
        "" => format!("node {name:?}: operation {op:?} on the shapes {inputs:?}"),
        why => format!("node {name:?}: operation {op:?} ({why})"),
    })
}

/// Why the engine cannot run an operation with these attributes (JSON) on inputs of these shapes;
/// `None` if it can.
///
/// # Errors
/// [`crate::Error::Graph`] if the operation is unknown or an attribute is wrong.
pub fn refusal(name: &str, attrs: &str, inputs: &[&[usize]]) -> crate::Result<Option<String>> {
    let attrs: serde_json::Map<_, _> = serde_json::from_str(attrs).map_err(|e| {
        crate::Error::Graph { why: format!("{name}: attributes must be a JSON object: {e}") }
    })?;
    let (op, info) = super::parse::op(name, &attrs)?;
    Ok(match info.support {
        None => Some("this release does not have it".into()),
        Some(_) if !info.reads(inputs.len()) => Some(format!("it reads {} values", inputs.len())),
        Some(rule) => match rule(&op, inputs) {
            Ok(()) => None,
            Err(why) if why.is_empty() => Some(format!("on the shapes {inputs:?}")),
            Err(why) => Some(why),
        },
    })
}

/// Largest number of dimensions of the engine's values.
const MAX_RANK: usize = 8;

/// An empty reason: the caller then names the shapes.
fn shapes_do_not_fit() -> Result<(), String> {
    Err(String::new())
}

pub(super) fn any_rank(_: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs.iter().all(|shape| shape.len() <= MAX_RANK) { Ok(()) } else { shapes_do_not_fit() }
}

/// Indices of an embedding: the output has one dimension more.
pub(super) fn embedding(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs[0].len() < MAX_RANK { any_rank(op, inputs) } else { shapes_do_not_fit() }
}

/// Batch, channels, and up to two spatial axes.
pub(super) fn image(_: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs.iter().all(|shape| (2..=4).contains(&shape.len())) {
        Ok(())
    } else {
        shapes_do_not_fit()
    }
}

/// Reductions over dimensions that the input has.
pub(super) fn reduce(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    let Op::Reduce { dims, .. } = op else { return any_rank(op, inputs) };
    let rank = inputs[0].len() as i64;
    match dims.iter().all(|dim| (-rank..rank).contains(dim)) {
        true => any_rank(op, inputs),
        false => Err(format!("the dimensions {dims:?} of a value with {rank}")),
    }
}

/// Linear layers, over the last dimension.
pub(super) fn linear(_: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if (1..=MAX_RANK).contains(&inputs[0].len()) { Ok(()) } else { shapes_do_not_fit() }
}

/// Per-channel functions: channels are the second dimension of an image, or the last dimension of
/// any other value.
pub(super) fn channel(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    match op {
        Op::ChannelScale { trailing: Some(0) } | Op::ChannelBias { trailing: Some(0) } => {
            linear(op, inputs)
        }
        Op::ChannelScale { trailing: Some(n) } | Op::ChannelBias { trailing: Some(n) }
            if n + 2 != inputs[0].len() =>
        {
            shapes_do_not_fit()
        }
        _ => image(op, inputs),
    }
}

pub(super) fn rank<const RANK: usize>(_: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs[0].len() == RANK { Ok(()) } else { shapes_do_not_fit() }
}

/// Maps with one or two spatial axes.
pub(super) fn map(_: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs.iter().all(|shape| (3..=4).contains(&shape.len())) {
        Ok(())
    } else {
        shapes_do_not_fit()
    }
}

pub(super) fn interpolate(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    match op {
        Op::Interpolate(how) | Op::InterpolateCodes(how)
            if inputs[0].len() == 4 && how.depends_on_memory() =>
        {
            Err("factors for which PyTorch's result depends on the memory format".into())
        }
        _ => map(op, inputs),
    }
}

/// PyTorch has these filters for two spatial axes only.
pub(super) fn interpolate_filter(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs[0].len() == 4 { interpolate(op, inputs) } else { shapes_do_not_fit() }
}

/// Inputs of one rank. PyTorch also accepts empty vectors, which it skips; the engine does not.
pub(super) fn cat(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    if inputs.iter().all(|shape| shape.len() == inputs[0].len()) {
        any_rank(op, inputs)
    } else {
        shapes_do_not_fit()
    }
}

pub(super) fn avg_pool2d(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    match op {
        Op::AvgPool { divisor, .. } if *divisor < 0 => Err(format!("a divisor of {divisor}")),
        _ => rank::<4>(op, inputs),
    }
}

pub(super) fn pad(op: &Op, inputs: &[&[usize]]) -> Result<(), String> {
    image(op, inputs)?;
    let Op::Pad { pad, mode, .. } = op else { return Ok(()) };
    if pad.iter().any(|n| *n < 0) || pad.len() > 2 * (inputs[0].len() - 1) {
        return Err("padding that cuts, or of the batch".into());
    }
    if mode != "constant" && pad.len() > 2 * (inputs[0].len() - 2) {
        return Err("padding of channels in another mode than constant".into());
    }
    Ok(())
}
