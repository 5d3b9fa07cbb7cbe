//! Compiles nodes that change the height and width of maps.

use super::ops::conv_transpose::FloatConvTranspose;
use super::ops::elementwise::optional_constants;
use super::ops::filtered_interpolation::Filtered;
use super::ops::linear_interpolation::Linear;
use super::ops::pool::{Pool, Windows};
use super::ops::resize::{Nearest, Shuffle};
use super::value::Operation;
use crate::conv::pooling::Reduce;
use crate::epilogue::Elementwise;
use crate::graph::spatial::{ConvTranspose, Sampling, SubPixel};
use crate::graph::{BuildError, NodeView, Op};
use crate::limits::Budget;
use crate::memory;

/// The operation of a node; `post` runs on its result.
pub(super) fn operation(
    view: NodeView<'_>,
    post: Vec<Elementwise>,
    budget: &Budget,
) -> Result<Box<dyn Operation>, BuildError> {
    Ok(match &view.node.op {
        Op::AdaptiveMaxPool { size, .. } => {
            let windows = Windows::Adaptive(*size);
            Box::new(Pool { windows, reduce: Reduce::Max, axes: None })
        }
        Op::Interpolate(how) if matches!(how.sampling, Sampling::Linear { .. }) => {
            Box::new(Linear(how.clone()))
        }
        Op::Interpolate(how) if matches!(how.sampling, Sampling::Filter { .. }) => {
            Box::new(Filtered(how.clone()))
        }
        Op::Interpolate(how) | Op::InterpolateCodes(how) => Box::new(Nearest(how.clone())),
        Op::DepthToSpace(how) | Op::DepthToSpaceCodes(how) => {
            Box::new(Shuffle { how: *how, functions: post })
        }
        Op::ConvTranspose(conv) => Box::new(conv_transpose(view, conv, &post, budget)?),
        _ => {
            return Err(BuildError::Unsupported("the engine has no such operation on maps".into()));
        }
    })
}

fn conv_transpose(
    view: NodeView<'_>,
    conv: &ConvTranspose,
    post: &[Elementwise],
    budget: &Budget,
) -> Result<FloatConvTranspose, BuildError> {
    let shape = match (conv.axes, view.shape("weight")?) {
        (1, &[c, n, w]) => [c, n, 1, w],
        (2, &[c, n, h, w]) => [c, n, h, w],
        (_, other) => return Err(format!("weight has the shape {other:?}").into()),
    };
    let sub = SubPixel::new(conv, [shape[2], shape[3]])?;
    let bytes = memory::product(sub.weight_shape(shape)?).ok_or("too many weights")?;
    budget.spend(bytes as u128 * size_of::<f32>() as u128)?;
    let bias = optional_constants(view, "bias")?;
    FloatConvTranspose::new(conv, view.floats("weight")?, shape, bias, post)
}
