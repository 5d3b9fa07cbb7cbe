//! Values one after the other, and values that are the same in every run.

use std::sync::Arc;

use crate::engine::value::{Cost, ExecutableOp, Operation, Order, Ordered, Slice, SliceMut, Value};
use crate::error::{Result, bad_value};
use crate::parallel;

/// Values one after the other along a dimension; a negative one counts from the end.
#[derive(Clone, Debug)]
pub(crate) struct Concat(pub i64);

impl Concat {
    fn dim(&self, rank: usize) -> Result<usize> {
        let dim = if self.0 < 0 { self.0 + rank as i64 } else { self.0 };
        match usize::try_from(dim) {
            Ok(dim) if dim < rank => Ok(dim),
            _ => bad_value("concatenation", format!("a dimension below {rank}"), self.0),
        }
    }
}

impl Operation for Concat {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let mut shape = inputs[0].shape().to_vec(); // small: sizes
        let dim = self.dim(shape.len())?;
        for input in &inputs[1..] {
            let other = input.shape();
            let fits = other.len() == shape.len()
                && (0..shape.len()).all(|i| i == dim || other[i] == shape[i]);
            if !fits || input.order() != inputs[0].order() {
                return bad_value(
                    "concatenation",
                    format!("shapes that fit {shape:?}"),
                    format!("{other:?}"),
                );
            }
            shape[dim] = shape[dim].saturating_add(other[dim]);
        }
        let made = Value::ordered(&shape, inputs[0].order())?;
        Ok((made, Cost::of(&made.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let made = self.measure(inputs)?.0;
        let dim = self.dim(made.shape().len())?;
        // Elements that are next to each other in an input, for one index of what is outside of the
        // dimension.
        let run = |value: &Value| value.shape()[dim] * value.strides()[dim];
        Ok((made, Box::new(ConcatRuns { runs: inputs.iter().map(run).collect(), all: run(&made) })))
    }

    fn orders(&self, inputs: &[Ordered]) -> (Vec<Order>, Order) {
        (vec![inputs[0].order; inputs.len()], inputs[0].order) // small: an order each
    }
}

#[derive(Debug)]
struct ConcatRuns {
    runs: Vec<usize>,
    all: usize,
}

impl ExecutableOp for ConcatRuns {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let out = out.floats();
        let cost = out.len() * 4;
        parallel::try_for_each_rows(out, self.all.max(1), 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(self.all).enumerate() {
                let mut at = 0;
                for (input, &run) in inputs.iter().zip(&self.runs) {
                    out[at..at + run].copy_from_slice(&input.floats()[(first + i) * run..][..run]);
                    at += run;
                }
            }
            Ok(())
        })
    }
}

/// A tensor of the network as a value.
#[derive(Debug)]
pub(crate) struct Constant {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Operation for Constant {
    fn measure(&self, _: &[Value]) -> Result<(Value, Cost)> {
        let made = Value::row_major(&self.shape)?;
        crate::error::check_len("values of a constant", self.data.len(), made.dims.elements())?;
        Ok((made, Cost::default()))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        Ok((self.measure(inputs)?.0, Box::new(ConstantStep(self))))
    }

    fn orders(&self, _: &[Ordered]) -> (Vec<Order>, Order) {
        (Vec::new(), Order::RowMajor)
    }
}

#[derive(Debug)]
struct ConstantStep(Arc<Constant>);

impl ExecutableOp for ConstantStep {
    fn run(&self, _: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        out.floats().copy_from_slice(&self.0.data);
        Ok(())
    }
}
