//! From a graph to executable operations: the only place that packs weights for this CPU.

use super::apart;
use super::fused::{FusedGraph, FusedNode};
use super::input::ValueInfo;
use super::network::{FusedQuantizer, NetNode, Network, NotFused};
use super::ops::arithmetic::Arithmetic;
use super::ops::concat::{Concat, Constant, Data};
use super::ops::conv::{Epilogue, MaxPoolCodes, Quantize, Shortcut, TernaryConv};
use super::ops::depthwise::{DepthwiseConv, Source as LineSource};
use super::ops::elementwise::{ChannelDim, Map, elementwise_of, optional_constants};
use super::ops::embedding::Embedding;
use super::ops::int8::Int8Conv;
use super::ops::linear::FloatConv;
use super::ops::multihead::Multihead;
use super::ops::norm::Normalize;
use super::ops::pad::Pad;
use super::ops::plain;
use super::ops::pool::{Pool, Windows};
use super::ops::products::{Attention, Matmul};
use super::ops::reduce::{Reduce, Softmax};
use super::ops::shape::{Expand, Permute, Reshape, SliceDim};
use super::order;
use super::passes::{self, Refusal, quantizer};
use super::spatial;
use super::value::Operation;
use crate::codec::CodesLayout;
use crate::conv::depthwise::UNBOUNDED;
use crate::conv::pooling::Reduce as PoolReduce;
use crate::conv::{Constants, Int8Epilogue};
use crate::dtype::ValueType;
use crate::epilogue::{Elementwise, Quantizer};
use crate::error::{Error, Result};
use crate::graph::op::{self, CodesConv, Op, Reduction};
use crate::graph::{
    BuildError, ConvParams, Graph, NodeView, Source, Tensor, Tensors, check, support,
};
use crate::kernels::{self, Family, Kernel, LayerShape, OperandTypes, Operands};
use crate::limits::{Budget, Limits};
use crate::memory;
use crate::pack::{PackedWeights, WeightShape};
use crate::transpose::transpose;

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
            unsupported.push(format!("node {node:?}: an output of {kind}, not of floats"));
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
    let order::Assigned { nodes, inputs, values } = order::assign(&graph, nodes, &types)?;
    let inputs =
        graph.nodes.iter().zip(inputs).enumerate().filter_map(|(value, (node, order))| match &node
            .op
        {
            Op::Input(input) => Some(ValueInfo::input(node, input, order, value, types[value])),
            _ => None,
        });
    // An output has the name and shape of its own node, also where that runs inside another.
    let outputs = graph.outputs.values().into_iter().zip(outputs);
    let outputs = outputs.map(|(node, value)| ValueInfo::output(&graph.nodes[node], value));
    let cost = (limits, compiler.budget.spent());
    let apart = apart::images_apart(&graph);
    let net = Network::of(inputs.collect(), outputs.collect(), nodes, values, cost, apart)
        .map_err(|e| match e {
            Error::Memory { .. } | Error::Limit { .. } | Error::Environment { .. } => e,
            other => {
                Error::Graph { why: format!("at the shapes that it was converted at: {other}") }
            }
        })?;
    Ok(Network { not_fused, ..net })
}

/// What passes said, in the graph's names.
fn not_fused(graph: &Graph, refused: &[Refusal]) -> Result<Vec<NotFused>> {
    let named = refused.iter().map(|&Refusal { pass, node, reason }| {
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
    /// The family whose kernels products take; what suits the CPU where `None`.
    family: Option<Family>,
    /// Counts the memory of weights before it is allocated.
    budget: Budget,
}

impl<'a> Compiler<'a> {
    fn view(&self, node: usize) -> NodeView<'a> {
        NodeView { node: &self.graph.nodes[node], tensors: self.tensors }
    }

    /// Compiles a node; which node of the graph is wrong, where one is.
    fn node(&self, fused: FusedNode) -> Result<NetNode, (usize, BuildError)> {
        let at = fused.node;
        let operation =
            self.operation(&fused).map_err(|(node, error)| (node, self.placed(node, error)))?;
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
            quantizer: quantizer.transpose()?,
        })
    }

    /// A limit says what it counts; here is where it was met.
    fn placed(&self, node: usize, error: BuildError) -> BuildError {
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
            other => Err(Error::Graph { why: format!("{other} where codes are needed") }),
        }
    }

    fn operation(&self, fused: &FusedNode) -> Result<Box<dyn Operation>, (usize, BuildError)> {
        let mut post = Vec::new();
        for &node in &fused.elementwise {
            post.push(elementwise_of(self.view(node)).map_err(|e| (node, e))?);
        }
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
            Op::ConvInt8(_) | Op::LinearInt8 => self.int8(fused, post)?,
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
            Op::Multihead { heads, batch_first } => {
                let weight = |role| -> Result<Vec<f32>, BuildError> {
                    let values = view.floats(role)?;
                    self.budget.spend(size_of_val(values) as u128)?;
                    Ok(memory::copied("weights of an attention", values)?)
                };
                // `E × E` blocks, turned: rows of the second operand are next to each other then.
                let turned = |role| -> Result<Vec<f32>, BuildError> {
                    let (values, from) = (weight(role)?, view.shape(role)?);
                    let square = from.last().map_or(0, |&side| side * side);
                    let mut turned = memory::filled("weights of an attention", values.len(), 0.0)?;
                    let blocks = values.chunks_exact(square.max(1));
                    for (from, to) in blocks.zip(turned.chunks_exact_mut(square.max(1))) {
                        let side = square.isqrt();
                        transpose(from, to, side, side);
                    }
                    Ok(turned)
                };
                Box::new(Multihead {
                    heads: *heads,
                    batch_first: *batch_first,
                    in_weight: turned("in_weight")?,
                    in_bias: optional_constants(view, "in_bias")?,
                    out_weight: turned("out_weight")?,
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
                plain::operation(view, &types, self.types[fused.node])?
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
            Op::Expand { shape } => Box::new(Expand(shape.clone())),
            Op::Cat { dim } => Box::new(Concat(*dim)),
            Op::Constant => {
                let tensor = view.tensor("value").ok_or("tensor \"value\" must be there")?;
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
            | Op::Cast { .. }
            | Op::Cumsum { .. } => plain::operation(view, &types, self.types[fused.node])?,
            Op::Quantize { .. } => {
                let thresholds = memory::copied("thresholds", view.floats("steps")?)?;
                let before = self.before(fused)?;
                Box::new(Quantize { thresholds, layout: self.layout(fused.node)?, before })
            }
            Op::ConvCodes { conv, .. } => {
                let Some(Tensor::I32(_, thresholds)) = view.tensor("thresholds") else {
                    return Err("thresholds must be there, as int32".into());
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
            _ => return Err(BuildError::Unsupported("not one of this crate's".into())),
        })
    }

    /// The dimension that a node's functions per channel, and those that run inside it, are about.
    /// All are about one.
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

    fn float_conv(&self, view: NodeView<'_>, conv: &op::Conv, post: Vec<Elementwise>) -> OpResult {
        let (shape, weight) = (view.shape("weight")?, view.floats("weight")?);
        let shape = match (conv.axes, shape) {
            (1, &[n, c, w]) => [n, c, 1, w],
            (2, &[n, c, h, w]) => [n, c, h, w],
            (_, other) => return Err(format!("weight has the shape {other:?}").into()),
        };
        let window = ConvParams { kernel: [shape[2], shape[3]], ..conv.params };
        self.budget.spend(size_of_val(weight) as u128)?;
        let bias = optional_constants(view, "bias")?;
        Ok(Box::new(
            FloatConv::new(weight, shape, bias, window, conv.groups, conv.axes)?.with(post),
        ))
    }

    fn linear(&self, view: NodeView<'_>, post: Vec<Elementwise>) -> OpResult {
        let (shape, weight) = (view.shape("weight")?, view.floats("weight")?);
        let &[n, c] = shape else { return Err(format!("weight has the shape {shape:?}").into()) };
        self.budget.spend(size_of_val(weight) as u128)?;
        let bias = optional_constants(view, "bias")?;
        Ok(Box::new(FloatConv::new(weight, [n, c, 1, 1], bias, ConvParams::ONE, 1, 0)?.with(post)))
    }

    fn int8(&self, fused: &FusedNode, post: Vec<Elementwise>) -> OpResult {
        let (view, pool) = (self.view(fused.node), fused.max_pool);
        let Some(Tensor::I8(shape, weight)) = view.tensor("weight") else {
            return Err("tensor \"weight\" must be there, as int8".into());
        };
        let (axes, groups, mut window) = match &view.node.op {
            Op::ConvInt8(conv) => (conv.axes, conv.groups, conv.params),
            _ => (0, 1, ConvParams::ONE),
        };
        let [out_channels, group_channels, kh, kw] = match (axes, shape.as_slice()) {
            (0, &[n, c]) => [n, c, 1, 1],
            (1, &[n, c, w]) => [n, c, 1, w],
            (2, &[n, c, h, w]) => [n, c, h, w],
            (_, other) => return Err(format!("weight has the shape {other:?}").into()),
        };
        window.kernel = [kh, kw];
        let channels = group_channels.checked_mul(groups).ok_or("too many groups")?;
        let shape = WeightShape { out_channels, channels, kernel: window.kernel, groups };
        let layer = if axes == 0 { LayerShape::Linear } else { shape.layer() };
        // Pooling runs inside dense kernels only.
        let operands = if pool.is_none() { shape.int8_operands() } else { OperandTypes::Int8 };
        let weights =
            self.packed(kernels::choose_for(layer, operands)?, weight, shape, operands)?;
        let &[inv_step] = view.floats("inv_step")? else {
            return Err("inv_step must be one number".into());
        };
        let epilogue = Int8Epilogue {
            inv_step,
            scale: view.floats("scale")?,
            bias: view.optional_floats("bias")?,
        };
        let constants = Constants::new(&weights, &epilogue)?;
        if operands == OperandTypes::Int8Depthwise {
            let before = fused.bounds.and_then(|node| match &self.graph.nodes[node].op {
                Op::Scalar(scalar) => scalar.bounds(),
                _ => None,
            });
            let (bounds, before) = (before.unwrap_or(UNBOUNDED), self.before(fused)?);
            let source = fused.source.as_ref().map(|inner| self.line_source(inner)).transpose()?;
            return Ok(Box::new(DepthwiseConv {
                weights,
                constants,
                window,
                axes,
                bounds,
                before,
                source,
                post,
            }));
        }
        let pool = pool.and_then(|node| match &self.graph.nodes[node].op {
            Op::MaxPool(pool) => Some(max_pool(pool)),
            _ => None,
        });
        Ok(Box::new(Int8Conv { weights, constants, window, axes, post, pool }))
    }

    /// Functions of a node's input.
    fn before(&self, fused: &FusedNode) -> Result<Vec<Elementwise>, BuildError> {
        fused.before.iter().map(|&node| elementwise_of(self.view(node))).collect()
    }

    /// What makes a depthwise convolution's input.
    fn line_source(&self, fused: &FusedNode) -> Result<LineSource, BuildError> {
        let (node, conv) = (&self.graph.nodes[fused.node], self.conv_float(fused, None)?);
        Ok(LineSource { name: node.name.clone(), label: node.label(), conv: Box::new(conv) })
    }

    /// Packs weights, if what they take may be spent.
    fn packed(
        &self,
        kernel: &'static dyn Kernel,
        values: &[i8],
        shape: WeightShape,
        operands: OperandTypes,
    ) -> Result<PackedWeights<'static>> {
        self.budget.spend(PackedWeights::packed_bytes(kernel, shape, operands)? as u128)?;
        PackedWeights::for_kernel(kernel, values, shape, operands)
    }

    fn conv_float(
        &self,
        fused: &FusedNode,
        shortcut: Option<Shortcut>,
    ) -> Result<TernaryConv, BuildError> {
        let view = self.view(fused.node);
        let Op::ConvFloat { conv, relu } = &view.node.op else {
            return Err("no convolution to floats".into());
        };
        let (scale, bias) = (optional_constants(view, "scale")?, optional_constants(view, "bias")?);
        // The only function that runs inside is a ReLU.
        let relu = *relu || !fused.elementwise.is_empty();
        let codes: Option<Quantizer> = fused.quantizer.and_then(|node| quantizer(self.view(node)));
        self.ternary_conv(view, conv, Epilogue::Float { scale, bias, relu, codes }, shortcut)
    }

    fn ternary_conv(
        &self,
        view: NodeView<'_>,
        conv: &CodesConv,
        epilogue: Epilogue,
        shortcut: Option<Shortcut>,
    ) -> Result<TernaryConv, BuildError> {
        let Some(Tensor::Codes(kind, shape, codes)) = view.tensor("weight") else {
            return Err(
                "tensor \"weight\" must be there, as binary, ternary or two-bit weights".into()
            );
        };
        let &[out_channels, group_channels, kh, kw] = shape.as_slice() else {
            return Err(format!("weight has the shape {shape:?}").into());
        };
        let groups = conv.groups;
        let channels = group_channels.checked_mul(groups).ok_or("too many groups")?;
        let shape = WeightShape { out_channels, channels, kernel: [kh, kw], groups };
        let operands = Operands { act: conv.act, weights: *kind };
        let layer = if conv.axes == 0 { LayerShape::Linear } else { shape.check()?.layer() };
        let kernel = match self.family {
            Some(family) => kernels::choose_in(family, layer, operands)
                .map_err(|e| BuildError::Unsupported(e.to_string()))?,
            None => kernels::choose_for(layer, operands)?,
        };
        let weights = self.packed(kernel, codes, shape, operands.into())?;
        Ok(TernaryConv { weights, window: conv.params, axes: conv.axes, epilogue, shortcut }
            .check()?)
    }
}

/// A dimension counted from the front; of a number, which has none, the first.
fn from_front(dim: i64, rank: usize) -> Result<usize, String> {
    let rank = rank.max(1);
    let found = usize::try_from(if dim < 0 { dim.saturating_add(rank as i64) } else { dim }).ok();
    found
        .filter(|dim| *dim < rank)
        .ok_or_else(|| format!("dimension {dim} of a value of {rank} dimensions"))
}

/// A mean over all pixels is a pooling.
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

/// Dimensions counted from the front, each once.
fn permutation(dims: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let made: Vec<usize> =
        dims.iter().map(|&dim| from_front(dim, rank)).collect::<Result<_, _>>()?;
    match (0..rank).all(|dim| made.contains(&dim)) && made.len() == rank {
        true => Ok(made),
        false => Err(format!("dims {dims:?} are not the dimensions of a value of {rank}")),
    }
}

const MEAN: PoolReduce = PoolReduce::Mean { count_padding: false, divisor: 0 };

fn max_pool(pool: &op::Pool) -> Pool {
    let windows = Windows::Fixed { window: pool.params, ceil_mode: pool.ceil_mode };
    Pool { windows, reduce: PoolReduce::Max, axes: None }
}
