//! Functions of one element, per channel or for all: each in PyTorch's order of operations, so that bits agree.

use std::sync::Arc;

use crate::engine::value::{Cost, ExecutableOp, Operation, Order, Ordered, Slice, SliceMut, Value};
use crate::error::{Result, check_len};
use crate::graph::op::Op;
use crate::graph::{BuildError, NodeView};
use crate::kernels::{Level, Simd, VectorLoop};
use crate::memory;
use crate::parallel;
use crate::scalar::Scalar;

/// A function of one element.
#[derive(Clone, Debug, PartialEq)]
pub enum Elementwise {
    /// `fma(x, scale, bias)` per channel: BatchNorm in evaluation mode.
    Affine(Vec<f32>, Vec<f32>),
    /// `x * scale` per channel.
    Scale(Vec<f32>),
    /// `x + bias` per channel.
    Bias(Vec<f32>),
    /// The same for all channels.
    Scalar(Scalar),
    /// `x > 0 ? x : x * slope` per channel (one slope for all channels where there is one).
    Prelu(Vec<f32>),
}

impl Elementwise {
    /// The function that a node is.
    pub(crate) fn from_node(view: NodeView<'_>) -> std::result::Result<Self, BuildError> {
        Ok(match &view.node.op {
            Op::BatchNorm { eps } => {
                if *eps < 0.0 {
                    return Err(format!("eps must not be negative, got {eps}").into());
                }
                let (mean, var) = (view.floats("mean")?, view.floats("var")?);
                let (weight, bias) = (view.optional_floats("weight")?, view.optional_floats("bias")?);
                if [Some(var), weight, bias].into_iter().flatten().any(|v| v.len() != mean.len()) {
                    return Err("its tensors have different sizes".into());
                }
                Elementwise::batch_norm(mean, var, weight, bias, *eps)?
            }
            Op::Affine => {
                let (scale, bias) = (constants(view, "scale")?, constants(view, "bias")?);
                if scale.len() != bias.len() {
                    return Err("scale and bias have different sizes".into());
                }
                Elementwise::Affine(scale, bias)
            }
            Op::Scalar(scalar) => Elementwise::Scalar(*scalar),
            Op::Prelu => match constants(view, "weight")? {
                slopes if slopes.is_empty() => return Err("a slope per channel, or one, must be there".into()),
                slopes => Elementwise::Prelu(slopes),
            },
            Op::ChannelScale { .. } => Elementwise::Scale(constants(view, "scale")?),
            Op::ChannelBias { .. } => Elementwise::Bias(constants(view, "bias")?),
            other => return Err(format!("{other:?} is no function of elements").into()),
        })
    }

    /// BatchNorm in evaluation mode as one multiplication and addition: `scale = weight / √(var + eps)`,
    /// `bias = fma(-mean, scale, bias)`, in float32.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where sizes differ; [`crate::Error::Memory`].
    pub fn batch_norm(
        mean: &[f32],
        var: &[f32],
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        eps: f32,
    ) -> Result<Self> {
        for values in [Some(var), weight, bias].into_iter().flatten() {
            check_len("statistics of a BatchNorm", mean.len(), values.len())?;
        }
        let channel = |c: usize| {
            let inverse = 1.0 / (var[c] + eps).sqrt();
            let scale = weight.map_or(inverse, |w| inverse * w[c]);
            (scale, (-mean[c]).mul_add(scale, bias.map_or(0.0, |b| b[c])))
        };
        let mut scales = memory::reserved("constants of a BatchNorm", mean.len())?;
        let mut biases = memory::reserved("constants of a BatchNorm", mean.len())?;
        for (scale, bias) in (0..mean.len()).map(channel) {
            scales.push(scale);
            biases.push(bias);
        }
        Ok(Elementwise::Affine(scales, biases))
    }

    fn channels(&self) -> Option<usize> {
        match self {
            Elementwise::Affine(v, _) | Elementwise::Scale(v) | Elementwise::Bias(v) => Some(v.len()),
            Elementwise::Prelu(v) if v.len() > 1 => Some(v.len()),
            _ => None,
        }
    }

    /// Applies it to whole pixels.
    #[inline(always)]
    fn apply(&self, x: &mut [f32], channels: usize) {
        match self {
            Elementwise::Affine(scale, bias) => {
                for x in x.chunks_exact_mut(channels) {
                    for ((x, &s), &b) in x.iter_mut().zip(scale).zip(bias) {
                        *x = x.mul_add(s, b);
                    }
                }
            }
            Elementwise::Scale(scale) => {
                for x in x.chunks_exact_mut(channels) {
                    for (x, &s) in x.iter_mut().zip(scale) {
                        *x *= s;
                    }
                }
            }
            Elementwise::Bias(bias) => {
                for x in x.chunks_exact_mut(channels) {
                    for (x, &b) in x.iter_mut().zip(bias) {
                        *x += b;
                    }
                }
            }
            Elementwise::Scalar(scalar) => scalar.apply(x),
            Elementwise::Prelu(slope) => {
                for x in x.chunks_exact_mut(channels) {
                    for (c, x) in x.iter_mut().enumerate() {
                        let slope = slope[if slope.len() == 1 { 0 } else { c }];
                        *x = if *x > 0.0 { *x } else { *x * slope };
                    }
                }
            }
        }
    }
}

/// Functions one after the other on whole pixels.
struct MapPixels<'a> {
    functions: &'a [Elementwise],
    x: &'a mut [f32],
    channels: usize,
}

impl VectorLoop for MapPixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for function in self.functions {
            function.apply(self.x, self.channels);
        }
    }
}

/// Applies functions one after the other to whole pixels, with the best CPU features there are.
pub(crate) fn apply_all(functions: &[Elementwise], x: &mut [f32], channels: usize) -> Result<()> {
    if functions.is_empty() || x.is_empty() || channels == 0 {
        return Ok(());
    }
    let level = Level::usable()?;
    // A piece stays in the first-level cache for all functions.
    for x in x.chunks_mut(channels * (4096 / channels).max(1)) {
        level.run(MapPixels { functions, x, channels });
    }
    Ok(())
}

/// Checks that functions are for this many channels.
pub(crate) fn check_channels(functions: &[Elementwise], channels: usize) -> Result<()> {
    functions
        .iter()
        .filter_map(Elementwise::channels)
        .try_for_each(|c| check_len("channels of a function", channels, c))
}

/// A copy of a float32 tensor.
fn constants(view: NodeView<'_>, role: &str) -> std::result::Result<Vec<f32>, BuildError> {
    Ok(memory::copied("constants of a layer", view.floats(role)?)?)
}

/// As [`constants`], of a tensor that may be absent.
pub(crate) fn optional_constants(view: NodeView<'_>, role: &str) -> std::result::Result<Option<Vec<f32>>, BuildError> {
    view.node.tensors.contains_key(role).then(|| constants(view, role)).transpose()
}

/// The dimension that functions per channel are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelDim {
    /// There are none.
    Any,
    /// The second.
    Second,
    /// The last.
    Last,
}

impl ChannelDim {
    /// The order in memory in which channels are next to each other; `None`: either.
    pub fn order(self, rank: usize) -> Option<Order> {
        match self {
            _ if rank == 2 => Some(Order::ChannelsLast),
            ChannelDim::Any => None,
            ChannelDim::Second => Some(Order::ChannelsLast),
            ChannelDim::Last => Some(Order::RowMajor),
        }
    }
}

/// Elementwise functions as an operation of their own.
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

    fn orders(&self, inputs: &[Ordered]) -> (Vec<Order>, Order) {
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

/// Splits pixels among threads, for work that may fail.
pub(crate) fn in_rows(
    out: &mut [f32],
    channels: usize,
    work: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    // An element costs about as much as this many products.
    let cost = out.len().saturating_mul(16);
    parallel::try_for_each_rows(out, channels, 64, cost, work)
}
