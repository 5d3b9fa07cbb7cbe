//! Concatenation, and constants.

use std::sync::Arc;

use crate::engine::value::{
    Cost, Element, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::graph::Tensor;
use crate::memory;
use crate::parallel;

/// Concatenation along a dimension; a negative one counts from the end.
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
        let output = Value::ordered(&shape, inputs[0].order())?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let dim = self.dim(output.shape().len())?;
        // Contiguous elements of an input for one index of the dimensions outside `dim`.
        let run = |value: &Value| value.shape()[dim] * value.strides()[dim];
        Ok((
            output,
            Box::new(ConcatRuns { runs: inputs.iter().map(run).collect(), all: run(&output) }),
        ))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
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
        match out {
            SliceMut::Integer(out) => self.copy(inputs, out, |x| x.integers()),
            SliceMut::Mask(out) => self.copy(inputs, out, |x| x.mask()),
            out => self.copy(inputs, out.floats(), |x| x.floats()),
        }
    }
}

impl ConcatRuns {
    fn copy<T: Copy + Send + Sync>(
        &self,
        inputs: &[Slice<'_>],
        out: &mut [T],
        elements: impl for<'a> Fn(Slice<'a>) -> &'a [T] + Sync,
    ) -> Result<()> {
        let cost = out.len() * 4;
        parallel::try_for_each_rows(out, self.all.max(1), 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(self.all).enumerate() {
                let mut at = 0;
                for (input, &run) in inputs.iter().zip(&self.runs) {
                    let x = &elements(*input)[(first + i) * run..][..run];
                    out[at..at + run].copy_from_slice(x);
                    at += run;
                }
            }
            Ok(())
        })
    }
}

/// A tensor of the network as a value that is the same in every run.
#[derive(Debug)]
pub(crate) struct Constant {
    pub shape: Vec<usize>,
    pub data: Data,
}

/// Elements of a constant.
#[derive(Debug)]
pub(crate) enum Data {
    Float(Vec<f32>),
    Integer(Vec<i64>),
    Mask(Vec<u8>),
}

impl Data {
    /// A copy of a tensor's elements.
    ///
    /// # Errors
    /// [`crate::Error::Memory`]; [`crate::Error::Value`] if no value has the tensor's type.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        const WHAT: &str = "a constant";
        match tensor {
            Tensor::F32(_, v) => Ok(Data::Float(memory::copied(WHAT, v)?)),
            Tensor::I64(_, v) => Ok(Data::Integer(memory::copied(WHAT, v)?)),
            Tensor::I32(_, v) => {
                Ok(Data::Integer(memory::collected(WHAT, v.iter().map(|&x| i64::from(x)))?))
            }
            Tensor::Bool(_, v) => Ok(Data::Mask(memory::copied(WHAT, v)?)),
            other => bad_value(WHAT, "float32, int32, int64 or bool", other.dtype().name()),
        }
    }

    fn element(&self) -> Element {
        match self {
            Data::Float(_) => Element::Float,
            Data::Integer(_) => Element::Integer,
            Data::Mask(_) => Element::Mask,
        }
    }

    fn len(&self) -> usize {
        match self {
            Data::Float(v) => v.len(),
            Data::Integer(v) => v.len(),
            Data::Mask(v) => v.len(),
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Data::Float(v) => size_of_val(v.as_slice()),
            Data::Integer(v) => size_of_val(v.as_slice()),
            Data::Mask(v) => v.len(),
        }
    }
}

impl Operation for Constant {
    fn measure(&self, _: &[Value]) -> Result<(Value, Cost)> {
        let output = Value::row_major(&self.shape)?.of(self.data.element());
        crate::error::check_len("values of a constant", self.data.len(), output.dims.elements())?;
        Ok((output, Cost::default()))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        Ok((self.measure(inputs)?.0, Box::new(ConstantStep(self))))
    }

    fn orders(&self, _: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (Vec::new(), Order::RowMajor)
    }
}

#[derive(Debug)]
struct ConstantStep(Arc<Constant>);

impl ExecutableOp for ConstantStep {
    fn run(&self, _: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        match (&self.0.data, out) {
            (Data::Float(v), out) => out.floats().copy_from_slice(v),
            (Data::Integer(v), out) => out.integers().copy_from_slice(v),
            (Data::Mask(v), out) => out.mask().copy_from_slice(v),
        }
        Ok(())
    }
}
