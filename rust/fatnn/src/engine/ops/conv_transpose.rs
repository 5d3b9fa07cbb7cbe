//! Transposed float convolution, computed as an ordinary convolution each of whose output pixels
//! becomes a block of pixels.

use std::sync::Arc;

use super::linear::FloatConv;
use super::resize::Shuffle;
use crate::engine::value::{Cost, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::Elementwise;
use crate::error::{Result, bad_value};
use crate::graph::BuildError;
use crate::graph::spatial::{ConvTranspose, SubPixel};
use crate::kernels::CacheLine;
use crate::memory;

/// A transposed float convolution.
#[derive(Debug)]
pub(crate) struct FloatConvTranspose {
    conv: Arc<FloatConv>,
    shuffle: Arc<Shuffle>,
}

impl FloatConvTranspose {
    /// `weight` has PyTorch's layout: channels, out channels / groups, kernel height, kernel width.
    /// `functions` are applied to the result in order, before channels become pixels.
    pub fn new(
        layer: &ConvTranspose,
        weight: &[f32],
        shape: [usize; 4],
        bias: Option<Vec<f32>>,
        functions: &[Elementwise],
    ) -> std::result::Result<Self, BuildError> {
        let sub = SubPixel::new(layer, [shape[2], shape[3]])?;
        let conv_shape = sub.weight_shape(shape)?;
        let count = memory::product(conv_shape).ok_or("too many weights")?;
        let mut spread = memory::filled("weights of a float layer", count, 0.0)?;
        sub.spread(weight, shape, &mut spread);
        let per_channel = |values: &[f32]| {
            let repeated = sub.channels(shape[1]).map(|n| values.get(n).copied().unwrap_or(0.0));
            memory::collected("constants of a layer", repeated)
        };
        let bias = bias.as_deref().map(per_channel).transpose()?;
        let conv = FloatConv::new(&spread, conv_shape, bias, sub.conv(), layer.groups, layer.axes)?;
        let mut post = Vec::new();
        for function in functions {
            post.push(function.with_channels(&per_channel)?);
        }
        Ok(FloatConvTranspose {
            conv: Arc::new(conv.with(post)),
            shuffle: Arc::new(Shuffle { how: sub.shuffle(), functions: Vec::new() }),
        })
    }
}

impl Operation for FloatConvTranspose {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        self.conv.products(name)
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (between, conv) = self.conv.measure(inputs)?;
        between.check()?;
        let (output, _) = self.shuffle.measure(&[between])?;
        if output.dims.map.contains(&0) {
            return bad_value(
                "a transposed convolution",
                "padding smaller than the output",
                format!("{:?} of {:?}", output.dims.map, inputs[0].dims.map),
            );
        }
        Ok((output, Cost { scratch: between.buffer_bytes(), ..conv }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        self.measure(inputs)?;
        let (between, conv) = self.conv.clone().plan(inputs)?;
        let (output, shuffle) = self.shuffle.clone().plan(&[between])?;
        Ok((output, Box::new(ConvTransposeStep { conv, shuffle, between: between.buffer_len() })))
    }
}

#[derive(Debug)]
struct ConvTransposeStep {
    conv: Box<dyn ExecutableOp>,
    shuffle: Box<dyn ExecutableOp>,
    /// Elements of the intermediate value.
    between: usize,
}

impl ExecutableOp for ConvTransposeStep {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let between = &mut CacheLine::floats_in(scratch)[..self.between];
        self.conv.run(inputs, &mut [], SliceMut::Float(between))?;
        self.shuffle.run(&[Slice::Float(between)], &mut [], out)
    }
}
