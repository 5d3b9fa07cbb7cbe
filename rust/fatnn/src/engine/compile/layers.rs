//! Compiles layers: float, int8 and ternary convolutions and linear layers, with their packed
//! weights.

use std::sync::{Arc, OnceLock};

use super::{Compiler, OpResult, max_pool};
use crate::conv::depthwise::UNBOUNDED;
use crate::conv::{Constants, Int8Epilogue};
use crate::engine::fused::FusedNode;
use crate::engine::ops::conv::{Epilogue, Shortcut, TernaryConv};
use crate::engine::ops::depthwise::{DepthwiseConv, OutputQuantizer};
use crate::engine::ops::elementwise::{elementwise_of, optional_constants};
use crate::engine::ops::int8::Int8Conv;
use crate::engine::ops::line_source::{Source as LineSource, SourceConv};
use crate::engine::ops::linear::FloatConv;
use crate::engine::passes::quantizer;
use crate::epilogue::{Elementwise, Quantizer};
use crate::error::Result;
use crate::graph::op::{self, CodesConv, Op};
use crate::graph::{BuildError, ConvParams, NodeView, Tensor};
use crate::kernels::{self, Kernel, LayerShape, OperandTypes, Operands};
use crate::memory;
use crate::pack::{PackedWeights, WeightShape};
use crate::scalar::Scalar;

impl Compiler<'_> {
    pub(super) fn float_conv(
        &self,
        view: NodeView<'_>,
        conv: &op::Conv,
        post: Vec<Elementwise>,
    ) -> OpResult {
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

    pub(super) fn linear(&self, view: NodeView<'_>, post: Vec<Elementwise>) -> OpResult {
        let (shape, weight) = (view.shape("weight")?, view.floats("weight")?);
        let &[n, c] = shape else { return Err(format!("weight has the shape {shape:?}").into()) };
        self.budget.spend(size_of_val(weight) as u128)?;
        let bias = optional_constants(view, "bias")?;
        Ok(Box::new(FloatConv::new(weight, [n, c, 1, 1], bias, ConvParams::ONE, 1, 0)?.with(post)))
    }

    /// A depthwise convolution whose floats only the quantizer `fused` reads.
    pub(super) fn depthwise_to_codes(&self, fused: &FusedNode, source: &FusedNode) -> OpResult {
        let post = self.elementwise(&source.elementwise).map_err(|(_, error)| error)?;
        let (node, conv) = (&self.graph.nodes[fused.node], &self.graph.nodes[source.node]);
        let quantizer = OutputQuantizer {
            conv_name: conv.name.clone(),
            conv_label: conv.label(),
            label: node.label(),
            thresholds: memory::copied("thresholds", self.view(fused.node).floats("steps")?)?,
            layout: self.layout(fused.node)?,
        };
        self.int8(source, post, Some(quantizer))
    }

    /// An int8 layer. A quantizer is only given for a depthwise convolution.
    pub(super) fn int8(
        &self,
        fused: &FusedNode,
        post: Vec<Elementwise>,
        quantizer: Option<OutputQuantizer>,
    ) -> OpResult {
        let conv = self.int8_conv(fused, post)?;
        if conv.weights.operands() != OperandTypes::Int8Depthwise {
            return Ok(Box::new(conv));
        }
        let before = fused.bounds.and_then(|node| match &self.graph.nodes[node].op {
            Op::Scalar(scalar) => scalar.bounds(),
            _ => None,
        });
        let (bounds, before) = (before.unwrap_or(UNBOUNDED), self.before(fused)?);
        let source = fused.source.as_ref().map(|inner| self.line_source(inner)).transpose()?;
        let Int8Conv { weights, constants, window, axes, post, .. } = conv;
        Ok(Box::new(DepthwiseConv {
            weights,
            constants,
            window,
            axes,
            bounds,
            before,
            source,
            post,
            quantizer,
            sums: OnceLock::new(),
        }))
    }

    /// An int8 layer with what follows it, which also describes a depthwise one.
    fn int8_conv(&self, fused: &FusedNode, post: Vec<Elementwise>) -> Result<Int8Conv, BuildError> {
        let (view, pool) = (self.view(fused.node), fused.max_pool);
        let Some(Tensor::I8(shape, weight)) = view.tensor("weight") else {
            return Err("tensor \"weight\" must be int8".into());
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
        // Only dense kernels can run pooling.
        let operands = if pool.is_none() { shape.int8_operands() } else { OperandTypes::Int8 };
        let weights =
            self.packed(kernels::choose_for(layer, operands)?, weight, shape, operands)?;
        let &[inv_step] = view.floats("inv_step")? else {
            return Err("tensor \"inv_step\" must have one element".into());
        };
        let epilogue = Int8Epilogue {
            inv_step,
            scale: view.floats("scale")?,
            bias: view.optional_floats("bias")?,
        };
        let constants = Constants::new(&weights, &epilogue)?;
        let pool = pool.and_then(|node| match &self.graph.nodes[node].op {
            Op::MaxPool(pool) => Some(max_pool(pool)),
            _ => None,
        });
        Ok(Int8Conv { weights, constants, window, axes, post, pool })
    }

    /// Elementwise functions that run on a node's input.
    pub(super) fn before(&self, fused: &FusedNode) -> Result<Vec<Elementwise>, BuildError> {
        let functions = fused.before.iter().map(|&node| elementwise_of(self.view(node)));
        Ok(Elementwise::merged(functions.collect::<Result<_, _>>()?))
    }

    /// The convolution that computes a depthwise convolution's input.
    fn line_source(&self, fused: &FusedNode) -> Result<LineSource, BuildError> {
        let node = &self.graph.nodes[fused.node];
        let conv = match node.op {
            Op::ConvInt8(_) => {
                let post = self.elementwise(&fused.elementwise).map_err(|(_, error)| error)?;
                SourceConv::Int8(Arc::new(self.int8_conv(fused, post)?))
            }
            _ => SourceConv::Ternary(Arc::new(self.conv_float(fused, None)?)),
        };
        Ok(LineSource { name: node.name.clone(), label: node.label(), conv })
    }

    /// Packs weights after the budget has allowed their bytes.
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

    pub(super) fn conv_float(
        &self,
        fused: &FusedNode,
        shortcut: Option<Shortcut>,
    ) -> Result<TernaryConv, BuildError> {
        let view = self.view(fused.node);
        let Op::ConvFloat { conv, relu } = &view.node.op else {
            return Err("only a convolution to floats can be fused here".into());
        };
        let (scale, bias) = (optional_constants(view, "scale")?, optional_constants(view, "bias")?);
        // ReLU is the only function that passes fuse into this operation.
        let relu = *relu || !fused.elementwise.is_empty();
        let codes: Option<Quantizer> = fused.quantizer.and_then(|node| quantizer(self.view(node)));
        let int8 = fused.int8.and_then(|node| match &self.graph.nodes[node].op {
            Op::Scalar(Scalar::FakeQuantize(quantizer)) => Some(*quantizer),
            _ => None,
        });
        let only_codes = fused.only_codes && codes.is_some() && int8.is_none();
        let epilogue = Epilogue::Float { scale, bias, relu, int8, codes, only_codes };
        self.ternary_conv(view, conv, epilogue, shortcut)
    }

    pub(super) fn ternary_conv(
        &self,
        view: NodeView<'_>,
        conv: &CodesConv,
        epilogue: Epilogue,
        shortcut: Option<Shortcut>,
    ) -> Result<TernaryConv, BuildError> {
        let Some(Tensor::Codes(kind, shape, codes)) = view.tensor("weight") else {
            return Err("tensor \"weight\" must hold binary, ternary or two-bit weights".into());
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
