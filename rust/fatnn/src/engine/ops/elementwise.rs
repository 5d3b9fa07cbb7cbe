//! Functions of one element as operations, and sums: what they compute is [`Elementwise`].

use std::sync::Arc;

use crate::engine::value::{Cost, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value};
use crate::graph::op::Op;
use crate::graph::{BuildError, NodeView};
use crate::kernels::apply_all;
use crate::memory;
use crate::parallel;

/// The function that a node is.
pub(crate) fn elementwise_of(view: NodeView<'_>) -> std::result::Result<Elementwise, BuildError> {
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

/// A copy of a float32 tensor.
fn constants(view: NodeView<'_>, role: &str) -> std::result::Result<Vec<f32>, BuildError> {
    Ok(memory::copied("constants of a layer", view.floats(role)?)?)
}

/// As [`constants`], of a tensor that may be absent.
pub(crate) fn optional_constants(view: NodeView<'_>, role: &str) -> std::result::Result<Option<Vec<f32>>, BuildError> {
    view.node.tensors.contains_key(role).then(|| constants(view, role)).transpose()
}

/// Elementwise functions as an operation of their own.
#[derive(Debug)]
pub(crate) struct Map(pub Vec<Elementwise>);

impl Operation for Map {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        check_channels(&self.0, inputs[0].dims.channels)?;
        Ok((inputs[0], Cost::of(&inputs[0].dims, 1 + self.0.len())))
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
            apply_all(&self.map.0, out, self.channels)
        })
    }
}

/// `a + b`, then elementwise functions.
#[derive(Debug)]
pub(crate) struct Add {
    post: Vec<Elementwise>,
}

impl Add {
    /// A sum with functions of it.
    pub fn new(post: Vec<Elementwise>) -> Self {
        Add { post }
    }
}

impl Operation for Add {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        if inputs[0] != inputs[1] {
            let (a, b) = (inputs[0].dims.shape(), inputs[1].dims.shape());
            return bad_value("addition", "two values of one shape", format!("{a:?} and {b:?}"));
        }
        check_channels(&self.post, inputs[0].dims.channels)?;
        Ok((inputs[0], Cost::of(&inputs[0].dims, 1 + self.post.len())))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let channels = inputs[0].dims.channels;
        Ok((inputs[0], Box::new(AddStep { add: self, channels })))
    }
}

#[derive(Debug)]
struct AddStep {
    add: Arc<Add>,
    channels: usize,
}

impl ExecutableOp for AddStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (a, b) = (inputs[0].floats(), inputs[1].floats());
        in_rows(out.floats(), self.channels, |first, out| {
            let at = first * self.channels;
            for ((y, &a), &b) in out.iter_mut().zip(&a[at..]).zip(&b[at..]) {
                *y = a + b;
            }
            apply_all(&self.add.post, out, self.channels)
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
