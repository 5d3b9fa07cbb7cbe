//! Elementwise functions as operations; [`Elementwise`] computes them.

use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::Result;
use crate::graph::op::Op;
use crate::graph::{BuildError, NodeView};
use crate::kernels::apply_all;
use crate::memory;
use crate::parallel;
use crate::scalar::Lookup;

/// The elementwise function of a node.
pub(crate) fn elementwise_of(view: NodeView<'_>) -> std::result::Result<Elementwise, BuildError> {
    Ok(match &view.node.op {
        Op::BatchNorm { eps } => {
            if *eps < 0.0 {
                return Err(format!("eps must not be negative, got {eps}").into());
            }
            let (mean, var) = (view.floats("mean")?, view.floats("var")?);
            let (weight, bias) = (view.optional_floats("weight")?, view.optional_floats("bias")?);
            if [Some(var), weight, bias].into_iter().flatten().any(|v| v.len() != mean.len()) {
                return Err("mean, var, weight and bias must have equal sizes".into());
            }
            Elementwise::batch_norm(mean, var, weight, bias, *eps)?
        }
        Op::Affine => {
            let (scale, bias) = (constants(view, "scale")?, constants(view, "bias")?);
            if scale.len() != bias.len() {
                return Err("scale and bias must have equal sizes".into());
            }
            Elementwise::Affine(scale, bias)
        }
        Op::Scalar(scalar) => Elementwise::Scalar(*scalar),
        Op::Lookup(quantizer) => {
            Elementwise::Lookup(Lookup::new(*quantizer, view.floats("table")?)?)
        }
        Op::Prelu => match constants(view, "weight")? {
            slopes if slopes.is_empty() => {
                return Err("there must be one slope, or one per channel".into());
            }
            slopes => Elementwise::Prelu(slopes),
        },
        Op::ChannelScale { .. } => Elementwise::Scale(constants(view, "scale")?),
        Op::ChannelBias { .. } => Elementwise::Bias(constants(view, "bias")?),
        other => return Err(format!("{other:?} is not an elementwise function").into()),
    })
}

/// A copy of a float32 tensor.
fn constants(view: NodeView<'_>, role: &str) -> std::result::Result<Vec<f32>, BuildError> {
    Ok(memory::copied("constants of a layer", view.floats(role)?)?)
}

/// As [`constants`]; `None` if the node lacks the tensor.
pub(crate) fn optional_constants(
    view: NodeView<'_>,
    role: &str,
) -> std::result::Result<Option<Vec<f32>>, BuildError> {
    view.node.tensors.contains_key(role).then(|| constants(view, role)).transpose()
}

/// The channel dimension of per-channel functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelDim {
    /// There are no per-channel functions.
    Any,
    /// Dimension 1.
    Second,
    /// The last dimension.
    Last,
}

impl ChannelDim {
    /// The memory order in which channels are contiguous; `None` if either order will do.
    pub fn order(self, rank: usize) -> Option<Order> {
        match self {
            _ if rank == 2 => Some(Order::ChannelsLast),
            ChannelDim::Any => None,
            ChannelDim::Second => Some(Order::ChannelsLast),
            ChannelDim::Last => Some(Order::RowMajor),
        }
    }
}

/// Elementwise functions that run on their own, not fused into another operation.
#[derive(Debug)]
pub(crate) struct Map {
    pub functions: Vec<Elementwise>,
    pub channel_dim: ChannelDim,
}

impl Operation for Map {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        check_channels(&self.functions, inputs[0].dims.channels)?;
        Ok((inputs[0], Cost::of(&inputs[0].dims, 1 + self.functions.len())))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let order = self.channel_dim.order(inputs[0].rank).unwrap_or(inputs[0].order);
        (vec![order], order) // small: one
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let channels = inputs[0].dims.channels;
        Ok((inputs[0], Box::new(MapStep { map: self, channels })))
    }
}

#[derive(Debug)]
struct MapStep {
    map: Arc<Map>,
    channels: usize,
}

impl ExecutableOp for MapStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out) = (inputs[0].floats(), out.floats());
        in_rows(out, self.channels, |first, out| {
            out.copy_from_slice(&x[first * self.channels..][..out.len()]);
            apply_all(&self.map.functions, out, self.channels)
        })
    }
}

/// Splits pixels among threads, for work that can fail.
pub(crate) fn in_rows(
    out: &mut [f32],
    channels: usize,
    work: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    // One element costs about as much as 16 ternary multiply-accumulates.
    let cost = out.len().saturating_mul(16);
    parallel::try_for_each_rows(out, channels, 64, cost, work)
}
