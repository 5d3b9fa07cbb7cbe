//! Checks all sizes of a graph at the shapes of conversion, and counts the cost of a run.

use super::graph::{Graph, Node, NodeView, Tensors};
use super::op::Op;
use super::ops::{OpInfo, Products};
use super::shapes;
use super::spatial::Sampling;
use super::tensor::Tensor;
use crate::codec::CodesLayout;
use crate::dtype::ValueType;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Largest number of elements of a value, so that byte counts stay far below 2⁶⁴.
const MAX_ELEMENTS: u128 = 1 << 48;

/// Number of elements of a shape.
pub(super) fn elements(shape: &[usize]) -> u128 {
    shape.iter().fold(1, |n, &size| n.saturating_mul(size as u128))
}

/// Multiply-accumulates of a convolution or linear layer whose input has the shape `read`; 0 for
/// other operations. A transposed convolution that runs as a convolution counts its own products.
pub fn macs(node: &Node, read: &[usize], shape: &[usize], weight: Option<&Tensor>) -> u128 {
    let per_input = match &node.op {
        Op::ConvInt8(conv) => conv.input_products,
        Op::ConvCodes { conv, .. } | Op::ConvFloat { conv, .. } => conv.input_products,
        _ => None,
    };
    let weight = weight.map(Tensor::shape);
    match node.info {
        None => 0,
        Some(info) => products(info, read, shape, weight, per_input),
    }
}

/// As [`macs`], from the operation's name and the shapes of its output, weight and input.
///
/// # Errors
/// [`Error::Graph`] if there is no such operation.
pub fn macs_of(
    op: &str,
    shape: &[usize],
    weight: Option<&[usize]>,
    read: &[usize],
    input_products: Option<usize>,
) -> Result<u128> {
    let info =
        OpInfo::named(op).ok_or_else(|| Error::Graph { why: format!("unknown op {op:?}") })?;
    Ok(products(info, read, shape, weight, input_products))
}

fn products(
    info: &OpInfo,
    read: &[usize],
    shape: &[usize],
    weight: Option<&[usize]>,
    per_input: Option<usize>,
) -> u128 {
    let Some(weight) = weight.filter(|_| info.products != Products::None) else { return 0 };
    let each = elements(weight.get(1..).unwrap_or_default());
    match per_input {
        Some(each) => elements(read).saturating_mul(each as u128),
        // Every input pixel is multiplied with every tap.
        None if info.name.starts_with("conv_transpose") => elements(read).saturating_mul(each),
        None => elements(shape).saturating_mul(each),
    }
}

/// Elements of a value as stored, and their bytes. Codes count packed.
fn stored(shape: &[usize], kind: ValueType) -> (u128, u128) {
    let count = match kind {
        ValueType::Codes { channels, groups, .. } => {
            let pixel = CodesLayout::new(channels, groups).map_or(0, CodesLayout::pixel_bytes);
            let front = elements(shape.get(..1).unwrap_or_default());
            let pixels = front.saturating_mul(elements(shape.get(2..).unwrap_or_default()));
            pixels.saturating_mul(pixel as u128)
        }
        _ => elements(shape),
    };
    (count, count.saturating_mul(kind.element_bytes() as u128))
}

/// Work of a node: multiply-accumulates if it has any, otherwise elementary operations.
fn work(view: NodeView<'_>, shape: &[usize], output: u128, read: u128, from: &[&[usize]]) -> u128 {
    let size = |value: usize, from_end: usize| {
        let shape: &[usize] = from.get(value).copied().unwrap_or_default();
        shape
            .len()
            .checked_sub(from_end)
            .and_then(|at| shape.get(at))
            .map_or(1, |&size| size as u128)
    };
    let window = match &view.node.op {
        Op::Matmul => size(0, 1),
        Op::Attention { .. } => size(1, 2).saturating_mul(2 + size(0, 1) / size(2, 1).max(1)),
        Op::Multihead { batch_first, .. } => {
            let keys = size(1, if *batch_first { 2 } else { 3 });
            let queries = size(0, if *batch_first { 2 } else { 3 }).max(1);
            2 * (keys + size(0, 1) + keys.saturating_mul(size(0, 1)).div_ceil(queries))
        }
        Op::MaxPool(pool) | Op::AvgPool { pool, .. } => elements(&pool.params.kernel),
        Op::Interpolate(how) if matches!(how.sampling, Sampling::Filter { .. }) => 16,
        Op::Interpolate(_) => 4,
        Op::MaxPoolCodes { params, .. } => elements(&params.kernel),
        _ => 1,
    };
    let first = from.first().copied().unwrap_or_default();
    match macs(view.node, first, shape, view.tensor("weight")) {
        0 => output.saturating_mul(window).saturating_add(read),
        macs => macs,
    }
}

/// Whether the declared shape of a node is the computed one. Channels of codes are not compared.
fn is_declared_shape(node: &Node, output: &[usize], kind: ValueType) -> bool {
    match kind {
        ValueType::Codes { .. } => {
            let declared = &node.shape;
            let map = |shape: &[usize]| {
                let mut map = [1, 1];
                map[4 - shape.len()..].copy_from_slice(&shape[2..]);
                map
            };
            (2..=4).contains(&declared.len())
                && declared[0] == output[0]
                && map(declared) == map(output)
        }
        _ => node.shape == output,
    }
}

/// Computes the shapes of all values and checks that every node can run on its inputs, that the
/// declared shapes are right, and that a run stays within the limits.
///
/// # Errors
/// [`Error::Graph`] naming the node that cannot run; [`Error::Limit`] naming the first node at
/// which memory or work exceeds a limit.
pub fn check_sizes(
    graph: &Graph,
    tensors: &Tensors,
    types: &[ValueType],
    limits: Limits,
) -> Result<Vec<Vec<usize>>> {
    let count = graph.nodes.len();
    let mut last = vec![usize::MAX; count]; // small: as long as the graph's text
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&value| last[value] = i);
    }
    let mut kept = vec![false; count]; // small: as above
    graph.outputs.for_each(&mut |value| kept[value] = true);
    let mut shapes: Vec<Vec<usize>> = Vec::new();
    let mut bytes: Vec<(u128, u128)> = Vec::new();
    let mut live = tensors.values().fold(0u128, |n, tensor| n.saturating_add(tensor.array_bytes()));
    let (mut all_work, mut images) = (0u128, 1u128);
    for (i, node) in graph.nodes.iter().enumerate() {
        let view = NodeView { node, tensors };
        let label = node.label();
        let cannot = |why: &str| Error::Graph {
            why: format!(
                "{label} ({}): it cannot run at the shapes that the network was converted at \
                 ({why}); copy the file again from its source, or convert and save the model again",
                node.op_name()
            ),
        };
        let read: Vec<&[usize]> =
            node.inputs.iter().map(|&value| shapes[value].as_slice()).collect();
        let output = shapes::output_shape(view, &read).map_err(|why| cannot(&why))?;
        if !is_declared_shape(node, &output, types[i]) {
            return Err(cannot(&format!(
                "expected a result of the shape {output:?}, but {:?} was declared",
                node.shape
            )));
        }
        let (stored_elements, stored_bytes) = stored(&output, types[i]);
        if stored_elements >= MAX_ELEMENTS || elements_of_nonzero(&output) >= MAX_ELEMENTS {
            return Err(cannot(&format!("a result of the shape {output:?} is too large")));
        }
        if let Op::Input(_) = node.op {
            images =
                if images == 1 { output.first().map_or(1, |&n| n.max(1)) as u128 } else { images };
        } else {
            let elements =
                node.inputs.iter().fold(0u128, |n, &value| n.saturating_add(bytes[value].0));
            all_work =
                all_work.saturating_add(work(view, &output, stored_elements, elements, &read));
        }
        live = live.saturating_add(stored_bytes);
        let what = || format!("{label}, with the nodes before it");
        limits.check_bytes(what, live)?;
        limits.check_macs(what, all_work / images)?;
        bytes.push((stored_elements, stored_bytes));
        shapes.push(output);
        let mut ended = node.inputs.clone();
        ended.push(i);
        ended.sort_unstable();
        ended.dedup();
        for value in ended {
            if !kept[value] && (last[value] == i || last[value] == usize::MAX) {
                live = live.saturating_sub(bytes[value].1);
            }
        }
    }
    Ok(shapes)
}

/// Elements if sizes of 0 count as 1: kernels multiply sizes in any order, so no partial product
/// may overflow.
fn elements_of_nonzero(shape: &[usize]) -> u128 {
    shape.iter().fold(1, |n, &size| n.saturating_mul(size.max(1) as u128))
}
