//! Compiles a graph to operations. This is the only place that packs weights for this CPU.

use super::fused::{FusedGraph, FusedNode};
use super::independent_images;
use super::input::ValueInfo;
use super::network::{FusedQuantizer, NetNode, Network, NotFused};
use super::ops::arithmetic::Arithmetic;
use super::ops::concat::{Concat, Constant, Data};
use super::ops::conv::{Epilogue, MaxPoolCodes, Shortcut};
use super::ops::elementwise::{ChannelDim, Map, elementwise_of, optional_constants};
use super::ops::embedding::Embedding;
use super::ops::integers;
use super::ops::multihead::Multihead;
use super::ops::norm::Normalize;
use super::ops::pad::Pad;
use super::ops::pool::{Pool, Windows};
use super::ops::products::{Attention, Matmul};
use super::ops::quantize::Quantize;
use super::ops::reduce::{Reduce, Softmax};
use super::ops::select::Select;
use super::ops::shape::{Expand, Permute, Reshape, SliceDim};
use super::order;
use super::passes::{self, MissedFusion};
use super::spatial;
use super::value::Operation;
use super::widen;
use crate::codec::CodesLayout;
use crate::conv::pooling::Reduce as PoolReduce;
use crate::dtype::ValueType;
use crate::epilogue::Elementwise;
use crate::error::{Error, Result};
use crate::graph::op::{self, Op, Reduction};
use crate::graph::{BuildError, Graph, NodeView, Source, Tensor, Tensors, check, support};
use crate::kernels::Family;
use crate::limits::{Budget, Limits};
use crate::memory;
use crate::transpose::transpose;

mod layers;

type OpResult = std::result::Result<Box<dyn Operation>, BuildError>;

/// See [`Network::new`].
pub(super) fn network(
    text: &str,
    tensors: &Tensors,
    family: Option<Family>,
    limits: Limits,
) -> Result<Network> {
    let graph = Graph::parse(text, Source::Description)?;
    let types = check::check(&graph, tensors, Source::Description)?;
    let mut unsupported = support::unsupported(&graph, tensors);
    if !unsupported.is_empty() {
        return Err(Error::Unsupported { what: unsupported.join("; ") });
    }
    for value in graph.outputs.values() {
        if types[value] != ValueType::F32 {
            let (node, kind) = (&graph.nodes[value].name, types[value]);
            unsupported.push(format!(
                "node {node:?}: an output must be float32, got {kind}; keep its node in torch"
            ));
        }
    }
    if !unsupported.is_empty() {
        return Err(Error::Unsupported { what: unsupported.join("; ") });
    }
    let mut fused = FusedGraph::new(&graph, tensors);
    let not_fused = not_fused(&graph, &passes::run(&mut fused))?;
    let (fused, outputs) = fused.finish();
    let compiler =
        Compiler { graph: &graph, tensors, types: &types, family, budget: Budget::new(limits) };
    let mut nodes = memory::reserved("nodes of the network", fused.len())?;
    for node in fused {
        match compiler.node(node) {
            Ok(node) => nodes.push(node),
            Err((_, BuildError::Failed(error))) => return Err(error),
            Err((node, BuildError::Invalid(why))) => return Err(graph.nodes[node].invalid(why)),
            Err((node, BuildError::Unsupported(why))) => {
                let node = &graph.nodes[node];
                unsupported.push(format!(
                    "node {:?}: operation {:?} ({why})",
                    node.name,
                    node.op_name()
                ));
            }
        }
    }
    if !unsupported.is_empty() {
        return Err(Error::Unsupported { what: unsupported.join("; ") });
    }
    let order::OrderedNodes { nodes, inputs, values } = order::assign(&graph, nodes, &types)?;
    let (nodes, values) = widen::insert(nodes, values)?;
    let inputs =
        graph.nodes.iter().zip(inputs).enumerate().filter_map(|(value, (node, order))| match &node
            .op
        {
            Op::Input(input) => Some(ValueInfo::input(node, input, order, value, types[value])),
            _ => None,
        });
    // An output keeps its own node's name and shape, even if that node is fused into another.
    let outputs = graph.outputs.values().into_iter().zip(outputs);
    let outputs = outputs.map(|(node, value)| ValueInfo::output(&graph.nodes[node], value));
    let cost = (limits, compiler.budget.spent());
    let independent_images = independent_images::independent_images(&graph);
    let net =
        Network::of(inputs.collect(), outputs.collect(), nodes, values, cost, independent_images)
            .map_err(|e| match e {
            Error::Memory { .. } | Error::Limit { .. } | Error::Environment { .. } => e,
            other => Error::Graph { why: format!("at the shapes of the conversion: {other}") },
        })?;
    Ok(Network { not_fused, ..net })
}

/// The fusions that passes refused, with the names of nodes and layers.
fn not_fused(graph: &Graph, refused: &[MissedFusion]) -> Result<Vec<NotFused>> {
    let named = refused.iter().map(|&MissedFusion { pass, node, reason }| {
        let node = &graph.nodes[node];
        let layer = if node.layer.is_empty() { &node.name } else { &node.layer };
        NotFused { node: node.name.clone(), layer: layer.clone(), pass, reason: reason.why() }
    });
    memory::collected("what was not fused", named)
}

struct Compiler<'a> {
    graph: &'a Graph,
    tensors: &'a Tensors,
    types: &'a [ValueType],
    /// Kernel family of all products; `None` chooses the fastest on this CPU.
    family: Option<Family>,
    /// Counts the bytes of weights before they are allocated.
    budget: Budget,
}

impl<'a> Compiler<'a> {
    fn view(&self, node: usize) -> NodeView<'a> {
        NodeView { node: &self.graph.nodes[node], tensors: self.tensors }
    }

    /// Compiles a node. On an error, also returns the number of the graph's node that caused it.
    fn node(&self, fused: FusedNode) -> Result<NetNode, (usize, BuildError)> {
        let at = fused.node;
        let operation =
            self.operation(&fused).map_err(|(node, error)| (node, self.with_place(node, error)))?;
        let quantizer = fused.quantizer.map(|node| {
            let layout = self.layout(node).map_err(|e| (node, e.into()))?;
            let node_info = &self.graph.nodes[node];
            Ok(FusedQuantizer {
                name: node_info.name.clone(),
                label: node_info.label(),
                value: node,
                layout,
            })
        });
        let node = &self.graph.nodes[at];
        Ok(NetNode {
            name: node.name.clone(),
            label: node.label(),
            operation: operation.into(),
            inputs: fused.inputs,
            output: at,
            int8: fused.int8.map(|node| self.graph.nodes[node].name.clone()),
            quantizer: quantizer.transpose()?,
        })
    }

    /// Adds the node's place to the message of a limit error, which does not name the node.
    fn with_place(&self, node: usize, error: BuildError) -> BuildError {
        match error {
            BuildError::Failed(Error::Limit { what, needed, unit, argument, limit }) => {
                let what = format!("{}: {what}", self.graph.nodes[node].place());
                BuildError::Failed(Error::Limit { what, needed, unit, argument, limit })
            }
            other => other,
        }
    }

    fn layout(&self, value: usize) -> Result<CodesLayout> {
        match self.types[value] {
            ValueType::Codes { codes, channels, groups } => {
                Ok(CodesLayout::new(channels, groups)?.with(codes.coding()))
            }
            other => Err(Error::Graph { why: format!("expected codes, got {other}") }),
        }
    }

    fn operation(&self, fused: &FusedNode) -> Result<Box<dyn Operation>, (usize, BuildError)> {
        let post = self.elementwise(&fused.elementwise)?;
        let shortcut = match &fused.shortcut {
            None => None,
            Some(inner) => {
                let (node, at) = (&self.graph.nodes[inner.node], inner.node);
                let conv = self.conv_float(inner, None).map_err(|e| (at, e))?;
                Some(Shortcut {
                    name: node.name.clone(),
                    label: node.label(),
                    conv: Box::new(conv),
                })
            }
        };
        self.build(fused, post, shortcut).map_err(|e| (fused.node, e))
    }

    /// Elementwise functions of nodes. On an error, also returns the number of the node.
    fn elementwise(&self, nodes: &[usize]) -> Result<Vec<Elementwise>, (usize, BuildError)> {
        let of = |&node: &usize| elementwise_of(self.view(node)).map_err(|e| (node, e));
        Ok(Elementwise::merged(nodes.iter().map(of).collect::<Result<_, _>>()?))
    }

    fn build(
        &self,
        fused: &FusedNode,
        post: Vec<Elementwise>,
        shortcut: Option<Shortcut>,
    ) -> OpResult {
        let view = self.view(fused.node);
        let rank = fused.inputs.first().map_or(0, |&input| self.graph.nodes[input].shape.len());
        let channel_dim = self.channel_dim(fused);
        let types: Vec<ValueType> = fused.inputs.iter().map(|&v| self.types[v]).collect();
        Ok(match &view.node.op {
            Op::Conv(conv) => self.float_conv(view, conv, post)?,
            Op::Linear => self.linear(view, post)?,
            Op::ConvInt8(_) | Op::LinearInt8 => self.int8(fused, post, None)?,
            Op::MaxPool(pool) => Box::new(max_pool(pool)),
            Op::AvgPool { pool, count_include_pad, divisor } => {
                let divisor = usize::try_from(*divisor).map_err(|e| e.to_string())?;
                let reduce = PoolReduce::Mean { count_padding: *count_include_pad, divisor };
                Box::new(Pool { reduce, ..max_pool(pool) })
            }
            Op::AdaptiveAvgPool { size, .. } => {
                Box::new(Pool { windows: Windows::Adaptive(*size), reduce: MEAN, axes: None })
            }
            Op::AdaptiveMaxPool { .. }
            | Op::Interpolate(_)
            | Op::InterpolateCodes(_)
            | Op::DepthToSpace(_)
            | Op::DepthToSpaceCodes(_)
            | Op::ConvTranspose(_) => spatial::operation(view, post, &self.budget)?,
            Op::Reduce { kind, dims, keepdim } => reduction(*kind, dims, *keepdim, rank)?,
            Op::Norm(norm) => {
                let (weight, bias) =
                    (optional_constants(view, "weight")?, optional_constants(view, "bias")?);
                Box::new(Normalize { norm: *norm, weight, bias })
            }
            Op::Softmax { dim, log } => {
                Box::new(Softmax { dim: from_front(*dim, rank)?, log: *log })
            }
            Op::Matmul => Box::new(Matmul),
            Op::Attention { causal, scale } => {
                Box::new(Attention { causal: *causal, scale: *scale })
            }
            Op::Multihead { heads, batch_first, masks } => {
                let weight = |role| -> Result<Vec<f32>, BuildError> {
                    let values = view.floats(role)?;
                    self.budget.spend(size_of_val(values) as u128)?;
                    Ok(memory::copied("weights of an attention", values)?)
                };
                // `E × E` blocks, transposed so that rows of the second operand are contiguous.
                let transposed = |role| -> Result<Vec<f32>, BuildError> {
                    let (values, from) = (weight(role)?, view.shape(role)?);
                    let square = from.last().map_or(0, |&side| side * side);
                    let mut transposed =
                        memory::filled("weights of an attention", values.len(), 0.0)?;
                    let blocks = values.chunks_exact(square.max(1));
                    for (from, to) in blocks.zip(transposed.chunks_exact_mut(square.max(1))) {
                        let side = square.isqrt();
                        transpose(from, to, side, side);
                    }
                    Ok(transposed)
                };
                Box::new(Multihead {
                    heads: *heads,
                    batch_first: *batch_first,
                    masks: *masks,
                    in_weight: transposed("in_weight")?,
                    in_bias: optional_constants(view, "in_bias")?,
                    out_weight: transposed("out_weight")?,
                    out_bias: optional_constants(view, "out_bias")?,
                })
            }
            Op::Flatten { start, end } => {
                let (start, end) = (from_front(*start, rank)?, from_front(*end, rank)?);
                Box::new(Reshape::Flatten { start, end })
            }
            Op::FlattenLeading => Box::new(Reshape::FlattenLeading),
            Op::ReshapeLike => Box::new(Reshape::Like),
            Op::Pad { pad, mode, value } => Box::new(Pad::new(pad, mode, *value, rank)?),
            Op::Binary(_) if types.iter().all(|kind| kind.is_integer()) => {
                integers::operation(view, &types, self.types[fused.node])?
            }
            Op::Binary(kind) => Box::new(Arithmetic::new(*kind, post, channel_dim)),
            Op::Reshape { shape } => Box::new(Reshape::To(shape.clone())),
            Op::Squeeze { dim } => Box::new(Reshape::Squeeze(from_front(*dim, rank)?)),
            Op::Unsqueeze { dim } => Box::new(Reshape::Unsqueeze(from_front(*dim, rank + 1)?)),
            Op::Permute { dims } => Box::new(Permute(permutation(dims, rank)?)),
            Op::Slice(slice) => Box::new(SliceDim {
                dim: slice.dim,
                start: slice.start,
                end: slice.end,
                step: slice.step,
            }),
            &Op::IndexSelect { dim } => Box::new(Select { dim, flip: false }),
            &Op::Flip { dim } => Box::new(Select { dim, flip: true }),
            Op::Expand { shape } => Box::new(Expand(shape.clone())),
            Op::Cat { dim } => Box::new(Concat(*dim)),
            Op::Constant => {
                let tensor = view.tensor("value").ok_or("tensor \"value\" is missing")?;
                let (shape, data) = (tensor.shape().to_vec(), Data::of(tensor)?); // small: sizes
                self.budget.spend(data.bytes() as u128)?;
                Box::new(Constant { shape, data })
            }
            Op::Embedding => {
                let weight = view.floats("weight")?;
                self.budget.spend(size_of_val(weight) as u128)?;
                Box::new(Embedding::new(weight, view.shape("weight")?)?)
            }
            Op::Compare(_)
            | Op::Logical(_)
            | Op::LogicalNot
            | Op::Where
            | Op::Addcmul { .. }
            | Op::Cast { .. }
            | Op::Cumsum { .. } => integers::operation(view, &types, self.types[fused.node])?,
            Op::Quantize { .. } => match &fused.source {
                Some(source) => self.depthwise_to_codes(fused, source)?,
                None => {
                    let thresholds = memory::copied("thresholds", view.floats("steps")?)?;
                    let before = self.before(fused)?;
                    Box::new(Quantize { thresholds, layout: self.layout(fused.node)?, before })
                }
            },
            Op::ConvCodes { conv, .. } => {
                let Some(Tensor::I32(_, thresholds)) = view.tensor("thresholds") else {
                    return Err("tensor \"thresholds\" must be int32".into());
                };
                let thresholds = memory::copied("thresholds", thresholds)?;
                let epilogue = Epilogue::Codes { thresholds, layout: self.layout(fused.node)? };
                Box::new(self.ternary_conv(view, conv, epilogue, None)?)
            }
            Op::ConvFloat { .. } => Box::new(self.conv_float(fused, shortcut)?),
            Op::MaxPoolCodes { params, ceil_mode, .. } => {
                Box::new(MaxPoolCodes { window: *params, ceil_mode: *ceil_mode })
            }
            _ if view.node.is_elementwise() => {
                let mut functions = vec![elementwise_of(view)?]; // small: one
                functions.extend(post);
                Box::new(Map { functions, channel_dim })
            }
            _ => return Err(BuildError::Unsupported("this release does not have it".into())),
        })
    }

    /// The channel dimension of a node's per-channel functions and those fused into it. Passes only
    /// fuse functions with the same one.
    fn channel_dim(&self, fused: &FusedNode) -> ChannelDim {
        let mut dims = std::iter::once(&fused.node).chain(&fused.elementwise).filter_map(|&node| {
            let node = &self.graph.nodes[node];
            Some((node.channel_dim()?, node.shape.len()))
        });
        match dims.next_back() {
            None => ChannelDim::Any,
            Some((dim, rank)) if dim + 1 == rank => ChannelDim::Last,
            Some(_) => ChannelDim::Second,
        }
    }
}

/// Converts a dimension that may be negative to its index. A scalar counts as rank 1, as in
/// PyTorch.
fn from_front(dim: i64, rank: usize) -> Result<usize, String> {
    let rank = rank.max(1);
    let found = usize::try_from(if dim < 0 { dim.saturating_add(rank as i64) } else { dim }).ok();
    found
        .filter(|dim| *dim < rank)
        .ok_or_else(|| format!("dimension must be from -{rank} to {}, got {dim}", rank - 1))
}

/// A mean over all pixels becomes a [`Pool`], any other reduction a [`Reduce`].
fn reduction(kind: Reduction, dims: &[i64], keepdim: bool, rank: usize) -> OpResult {
    let mut reduced: Vec<usize> =
        dims.iter().map(|&dim| from_front(dim, rank)).collect::<Result<_, _>>()?;
    if dims.is_empty() {
        reduced = (0..rank).collect();
    }
    reduced.sort_unstable();
    let pixels = (3..=4).contains(&rank) && reduced.iter().copied().eq(2..rank);
    if kind == Reduction::Mean && pixels {
        let axes = if keepdim { None } else { Some(0) };
        return Ok(Box::new(Pool { windows: Windows::Whole, reduce: MEAN, axes }));
    }
    Ok(Box::new(Reduce { kind, dims: reduced, keepdim }))
}

/// Dimensions counted from the front; an error unless each occurs once.
fn permutation(dims: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let indices: Vec<usize> =
        dims.iter().map(|&dim| from_front(dim, rank)).collect::<Result<_, _>>()?;
    match (0..rank).all(|dim| indices.contains(&dim)) && indices.len() == rank {
        true => Ok(indices),
        false => Err(format!("dims must contain each of {rank} dimensions once, got {dims:?}")),
    }
}

const MEAN: PoolReduce = PoolReduce::Mean { count_padding: false, divisor: 0 };

fn max_pool(pool: &op::Pool) -> Pool {
    let windows = Windows::Fixed { window: pool.params, ceil_mode: pool.ceil_mode };
    Pool { windows, reduce: PoolReduce::Max, axes: None }
}
