//! Linear interpolation on one axis and bilinear interpolation on two: weighted means of
//! neighbouring pixels.
//!
//! Weights are PyTorch's float32 numbers. A result is the sum of four products in one fixed order
//! without fused multiply-add, so bits are equal on all instruction sets. PyTorch has several
//! kernels, whose order and fusing depend on sizes and memory format.

use std::sync::Arc;

use super::resize::{orders_of_resized, output_dims};
use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::Result;
use crate::graph::spatial::{Interpolate, Sampling};
use crate::kernels::interpolate::{Neighbors, Row};
use crate::kernels::rows::run;
use crate::memory;
use crate::parallel;

/// Linear or bilinear interpolation.
#[derive(Debug)]
pub(crate) struct Linear(pub Interpolate);

impl Linear {
    fn neighbors(&self, at: usize, ratio: f32, input: usize, output: usize) -> Neighbors {
        if input == output {
            return Neighbors { at: [at, at], weights: [1.0, 0.0] };
        }
        let place = match self.0.sampling {
            Sampling::Linear { align_corners: true } => ratio * at as f32,
            _ => (ratio * (at as f32 + 0.5) - 0.5).max(0.0),
        };
        let first = (place as usize).min(input - 1);
        let weight = (place - first as f32).clamp(0.0, 1.0);
        Neighbors { at: [first, (first + 1).min(input - 1)], weights: [1.0 - weight, weight] }
    }
}

impl Operation for Linear {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = output_dims(&self.0, inputs)?;
        let bytes = (dims.map[0] as u128 + dims.map[1] as u128) * size_of::<Neighbors>() as u128;
        Ok((Value::float(dims), Cost { bytes, ..Cost::of(&dims, 4) }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, from) = (self.measure(inputs)?.0, inputs[0].dims);
        let table = |axis: usize| {
            let (input, output, absent) = (from.map[axis], output.dims.map[axis], 2 - from.axes);
            let ratio =
                if axis < absent { 1.0 } else { self.0.ratio(axis - absent, input, output) };
            let neighbors = (0..output).map(|at| self.neighbors(at, ratio, input, output));
            memory::collected("pixels of an interpolation", neighbors)
        };
        let step = LinearStep {
            rows: table(0)?,
            columns: table(1)?,
            map: from.map,
            channels: from.channels,
        };
        Ok((output, Box::new(step)))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        orders_of_resized(inputs)
    }
}

#[derive(Debug)]
struct LinearStep {
    rows: Vec<Neighbors>,
    columns: Vec<Neighbors>,
    map: [usize; 2],
    channels: usize,
}

impl ExecutableOp for LinearStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out, channels) = (inputs[0].floats(), out.floats(), self.channels);
        let ([h, w], row) = (self.map, self.columns.len() * channels);
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len().saturating_mul(16);
        parallel::try_for_each_rows(out, row, 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let (image, y) =
                    ((first + i) / self.rows.len(), self.rows[(first + i) % self.rows.len()]);
                let lines = y.at.map(|y| &x[(image * h + y) * w * channels..][..w * channels]);
                run(Row { out, lines, down: y.weights, columns: &self.columns, channels })?;
            }
            Ok(())
        })
    }
}
