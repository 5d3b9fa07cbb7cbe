//! Int8 convolutions and linear layers: [`crate::int8`] in a network.

use std::sync::Arc;

use super::{Made, Node};
use crate::codec::CodesLayout;
use crate::error::{Result, bad_value, check_len};
use crate::int8::{self, Constants, Geometry, Int8Epilogue, Int8Weights, Layer, Padded};
use crate::net::ops::codes::Window;
use crate::net::ops::elementwise::{Elementwise, check_channels};
use crate::net::ops::pool::{Pool, PoolStep};
use crate::net::value::{Cost, Dims, Operation, Slice, SliceMut, Step, Value};
use crate::weights::WeightShape;

/// An int8 convolution; a linear layer is one whose window is a single pixel.
#[derive(Debug)]
struct Int8Conv {
    weights: Int8Weights<'static>,
    constants: Constants,
    window: Window,
    axes: usize,
    /// Elementwise functions that follow.
    post: Vec<Elementwise>,
    /// Max pooling behind those.
    pool: Option<Pool>,
}

/// Makes the operation of a node with so many spatial axes.
pub(super) fn make(node: &Node<'_>, axes: usize) -> Made {
    let (shape, weight) = node.int8("weight")?;
    let (sizes, groups, mut window) = match (axes, shape) {
        (0, &[n, c]) => {
            let one = [1, 1];
            ([n, c, 1, 1], 1, Window { kernel: one, stride: one, padding: [0, 0], dilation: one })
        }
        (1, &[n, c, w]) => ([n, c, 1, w], node.number("groups")?, node.window_without_kernel(1)?),
        (2, &[n, c, h, w]) => ([n, c, h, w], node.number("groups")?, node.window_without_kernel(2)?),
        (_, other) => return Err(format!("weight has the shape {other:?}").into()),
    };
    let [out_channels, group_channels, kh, kw] = sizes;
    window.kernel = [kh, kw];
    let channels = group_channels.checked_mul(groups).ok_or("too many groups")?;
    let shape = WeightShape { out_channels, channels, kernel: window.kernel, groups };
    let kernel = int8::choose(axes == 0)?;
    node.budget.spend(Int8Weights::packed_bytes(kernel, shape)? as u128)?;
    let weights = Int8Weights::for_kernel(kernel, weight, shape)?;
    let &[inv_step] = node.floats("inv_step")? else { return Err("inv_step must be one number".into()) };
    let epilogue = Int8Epilogue { inv_step, scale: node.floats("scale")?, bias: node.optional("bias")? };
    let constants = Constants::new(&weights, &epilogue)?;
    Ok(Box::new(Int8Conv { weights, constants, window, axes, post: Vec::new(), pool: None }))
}

impl Operation for Int8Conv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        vec![(name, self.weights.kernel().name(), self.weights.as_bytes().len())]
    }

    fn codes(&self, inputs: &[Option<CodesLayout>]) -> Result<Option<CodesLayout>> {
        super::floats("an int8 layer", inputs, 1)
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (dims, channels) = (inputs[0].dims, self.weights.shape().out_channels);
        check_len("channels", self.weights.shape().channels, dims.channels)?;
        check_channels(&self.post, channels)?;
        if dims.axes != self.axes {
            let expected = format!("images, channels and {} spatial axes", self.axes);
            return bad_value("an int8 layer's input", expected, format!("shape {:?}", dims.shape()));
        }
        // Arithmetic only: it allocates nothing.
        let geometry = Geometry::new(&self.weights, &self.window.over(&dims))?;
        let out = Dims { images: dims.images, channels, map: geometry.output, axes: self.axes };
        let mut cost = Cost::of(&out, self.weights.shape().reduction());
        (cost.bytes, cost.scratch) = (geometry.column_bytes(&self.weights), geometry.scratch);
        let Some(pool) = &self.pool else { return Ok((Value::float(out), cost)) };
        let (pooled, more) = pool.measure_dims(&out)?;
        let line = out.map[1] as u128 * channels as u128 * size_of::<f32>() as u128;
        cost.macs = cost.macs.saturating_add(more.macs);
        cost.bytes = cost.bytes.saturating_add(more.bytes + line * (pool.window_lines(&out) as u128 + 1));
        Ok((Value::float(pooled), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn Step>)> {
        let (dims, channels) = (inputs[0].dims, self.weights.shape().out_channels);
        let geometry = Geometry::new(&self.weights, &self.window.over(&dims))?;
        let out = Dims { images: dims.images, channels, map: geometry.output, axes: self.axes };
        // BatchNorm and ReLU, in this order, run with the epilogue; what else there is, behind it.
        let (mut constants, mut rest) = (self.constants.clone(), 0);
        if let Some(Elementwise::Affine(scale, bias)) = self.post.first() {
            constants.affine = Some((Padded::new(&self.weights, scale)?, Padded::new(&self.weights, bias)?));
            rest = 1;
        }
        if self.post.get(rest) == Some(&Elementwise::Relu) {
            constants.relu = true;
            rest += 1;
        }
        let (mut pooled, mut pool) = (out, None);
        if let Some(max_pool) = &self.pool {
            let (dims, step) = max_pool.step(out)?;
            (pooled, pool) = (dims, Some(step));
        }
        Ok((Value::float(pooled), Box::new(Int8Step { conv: self, geometry, constants, rest, pool })))
    }

    fn absorb(&mut self, functions: Vec<Elementwise>) -> Option<Vec<Elementwise>> {
        if self.pool.is_some() {
            return Some(functions);
        }
        self.post.extend(functions);
        None
    }

    fn pool(&mut self, pool: &Pool) -> bool {
        let free = self.pool.is_none() && self.axes == 2;
        if free {
            self.pool = Some(pool.clone());
        }
        free
    }
}

#[derive(Debug)]
struct Int8Step {
    conv: Arc<Int8Conv>,
    geometry: Geometry,
    constants: Constants,
    /// The first function that the epilogue does not contain.
    rest: usize,
    pool: Option<PoolStep>,
}

impl Step for Int8Step {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (conv, x, out) = (&*self.conv, inputs[0].floats(), out.floats());
        let layer = Layer { weights: &conv.weights, constants: &self.constants, post: &conv.post[self.rest..] };
        match &self.pool {
            None => self.geometry.run(x, &layer, scratch, out),
            Some(pool) => self.geometry.run_pooled(x, &layer, pool, scratch, out),
        }
    }
}
