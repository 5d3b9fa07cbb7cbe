//! Int8 depthwise convolutions in a network: [`crate::conv::depthwise`].

use std::sync::Arc;

use crate::conv::depthwise::{Geometry, Layer, UNBOUNDED};
use crate::conv::{Constants, Padded};
use crate::engine::value::{Cost, Dims, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::pack::PackedWeights;

/// An int8 depthwise convolution.
#[derive(Debug)]
pub(crate) struct DepthwiseConv {
    pub weights: PackedWeights<'static>,
    pub constants: Constants,
    pub window: ConvParams,
    /// Spatial axes.
    pub axes: usize,
    /// Least and greatest value of its input.
    pub bounds: [f32; 2],
    /// Functions of its output.
    pub post: Vec<Elementwise>,
}

impl DepthwiseConv {
    fn sizes(&self, dims: &Dims) -> Result<(Geometry, Dims)> {
        let channels = self.weights.shape().out_channels;
        let geometry = Geometry::new(&self.weights, &self.window.over(dims))?;
        let out = Dims { images: dims.images, channels, map: geometry.output, axes: self.axes };
        Ok((geometry, out))
    }
}

impl Operation for DepthwiseConv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        vec![(name, self.weights.kernel().name(), self.weights.as_bytes().len())]
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = inputs[0].dims;
        check_len("channels", self.weights.shape().channels, dims.channels)?;
        check_channels(&self.post, self.weights.shape().out_channels)?;
        if dims.axes != self.axes {
            let expected = format!("images, channels and {} spatial axes", self.axes);
            return bad_value(
                "an int8 layer's input",
                expected,
                format!("shape {:?}", dims.shape()),
            );
        }
        // Arithmetic only: it allocates nothing.
        let (geometry, out) = self.sizes(&dims)?;
        let mut cost = Cost::of(&out, self.weights.shape().reduction());
        cost.bytes = geometry.thread_bytes();
        Ok((Value::float(out), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (geometry, out) = self.sizes(&inputs[0].dims)?;
        // BatchNorm and bounds, in this order, run with the epilogue; what else there is, after it.
        let (mut constants, mut clamp, mut rest) = (self.constants.clone(), UNBOUNDED, 0);
        if let Some(Elementwise::Affine(scale, bias)) = self.post.first() {
            constants.affine =
                Some((Padded::new(&self.weights, scale)?, Padded::new(&self.weights, bias)?));
            rest = 1;
        }
        if let Some(Elementwise::Scalar(scalar)) = self.post.get(rest)
            && let Some(bounds) = scalar.bounds()
        {
            (clamp, rest) = (bounds, rest + 1);
        }
        Ok((
            Value::float(out),
            Box::new(DepthwiseStep { conv: self, geometry, constants, clamp, rest }),
        ))
    }
}

#[derive(Debug)]
struct DepthwiseStep {
    conv: Arc<DepthwiseConv>,
    geometry: Geometry,
    constants: Constants,
    clamp: [f32; 2],
    /// The first function that the epilogue does not contain.
    rest: usize,
}

impl ExecutableOp for DepthwiseStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (conv, post) = (&*self.conv, &self.conv.post[self.rest..]);
        let (weights, constants) = (&conv.weights, &self.constants);
        let layer = Layer { weights, constants, bounds: conv.bounds, clamp: self.clamp, post };
        self.geometry.run(inputs[0].floats(), &layer, out.floats())
    }
}
