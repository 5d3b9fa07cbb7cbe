//! Int8 convolution and linear layers as operations: see [`crate::conv::conv2d_int8`].

use std::sync::Arc;

use crate::conv::columns::{Geometry, Layer};
use crate::conv::pooling::PoolStep;
use crate::conv::{Constants, Padded};
use crate::engine::ops::pool::Pool;
use crate::engine::value::{
    Cost, Dims, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::pack::PackedWeights;
use crate::scalar::Scalar;

/// An int8 convolution; a linear layer is one whose window is a single pixel.
#[derive(Debug)]
pub(crate) struct Int8Conv {
    pub weights: PackedWeights<'static>,
    pub constants: Constants,
    pub window: ConvParams,
    /// Number of spatial axes.
    pub axes: usize,
    /// Elementwise functions of its output.
    pub post: Vec<Elementwise>,
    /// Max pooling that follows `post`.
    pub pool: Option<Pool>,
}

impl Int8Conv {
    /// The dimensions of the convolution's output, without pooling, and its cost.
    pub(super) fn sizes(&self, dims: &Dims) -> Result<(Dims, Cost)> {
        let channels = self.weights.shape().out_channels;
        check_len("channels", self.weights.shape().channels, dims.channels)?;
        check_channels(&self.post, channels)?;
        if dims.axes != self.axes {
            let expected = format!("images, channels and {} spatial axes", self.axes);
            return bad_value(
                "an int8 layer's input",
                expected,
                format!("shape {:?}", dims.shape()),
            );
        }
        // Arithmetic only: this allocates nothing.
        let geometry = Geometry::new(&self.weights, &self.window.over(dims))?;
        let out = Dims { images: dims.images, channels, map: geometry.output, axes: self.axes };
        let mut cost = Cost::of(&out, self.weights.shape().reduction());
        (cost.bytes, cost.scratch) = (geometry.column_bytes(), geometry.scratch);
        Ok((out, cost))
    }
}

impl Operation for Int8Conv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        vec![(name, self.weights.kernel().name(), self.weights.as_bytes().len())]
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (out, mut cost) = self.sizes(&inputs[0].dims)?;
        let channels = out.channels;
        let output =
            if self.axes == 0 { inputs[0].with_channels(channels) } else { Value::float(out) };
        let Some(pool) = &self.pool else { return Ok((output, cost)) };
        let (pooled, more) = pool.measure_dims(&out)?;
        let line = out.map[1] as u128 * channels as u128 * size_of::<f32>() as u128;
        cost.macs = cost.macs.saturating_add(more.macs);
        cost.bytes =
            cost.bytes.saturating_add(more.bytes + line * (pool.window_lines(&out) as u128 + 1));
        Ok((Value::float(pooled), cost))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let order = if self.axes == 0 && inputs[0].rank != 2 {
            Order::RowMajor
        } else {
            Order::ChannelsLast
        };
        (vec![order], order) // small: one
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let value = self.measure(inputs)?.0;
        Ok((value, Box::new(Int8Step::new(self, inputs[0].dims)?)))
    }
}

/// A planned [`Int8Conv`].
#[derive(Debug)]
pub(super) struct Int8Step {
    conv: Arc<Int8Conv>,
    pub(super) geometry: Geometry,
    constants: Constants,
    /// Index of the first function that does not run in the epilogue.
    rest: usize,
    pool: Option<PoolStep>,
}

impl Int8Step {
    /// Plans it for an input of dimensions `dims`, which [`Int8Conv::sizes`] accepted.
    pub(super) fn new(conv: Arc<Int8Conv>, dims: Dims) -> Result<Self> {
        let geometry = Geometry::new(&conv.weights, &conv.window.over(&dims))?;
        let (channels, axes) = (conv.weights.shape().out_channels, conv.axes);
        let out = Dims { images: dims.images, channels, map: geometry.output, axes };
        // A BatchNorm and then a ReLU run in the epilogue; all other functions run after it.
        let (mut constants, mut rest) = (conv.constants.clone(), 0);
        if let Some(Elementwise::Affine(scale, bias)) = conv.post.first() {
            constants.affine =
                Some((Padded::new(&conv.weights, scale)?, Padded::new(&conv.weights, bias)?));
            rest = 1;
        }
        if conv.post.get(rest) == Some(&Elementwise::Scalar(Scalar::Relu)) {
            constants.relu = true;
            rest += 1;
        }
        let pool = conv.pool.as_ref().map(|pool| pool.step(out)).transpose()?.map(|(_, step)| step);
        Ok(Int8Step { conv, geometry, constants, rest, pool })
    }

    pub(super) fn layer(&self) -> Layer<'_> {
        Layer {
            weights: &self.conv.weights,
            constants: &self.constants,
            post: &self.conv.post[self.rest..],
        }
    }
}

impl ExecutableOp for Int8Step {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (layer, x, out) = (self.layer(), inputs[0].floats(), out.floats());
        match &self.pool {
            None => self.geometry.run(x, &layer, scratch, out),
            Some(pool) => self.geometry.run_pooled(x, &layer, pool, scratch, out),
        }
    }
}
