//! Sum, mean, maximum and minimum over any dimensions, and softmax along one.

use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::graph::op::Reduction;
use crate::kernels::rows::{self, Dim, Fold, Term, run};
use crate::memory;
use crate::parallel;

/// A reduction over `dims`, none of which is negative.
#[derive(Debug)]
pub(crate) struct Reduce {
    pub kind: Reduction,
    pub dims: Vec<usize>,
    pub keepdim: bool,
}

impl Reduce {
    /// The memory orders of the input and of the result. Results keep the order in memory of the
    /// dimensions that remain.
    fn order(&self, input: OrderAndRank) -> (Order, Order) {
        let stay = |dim: usize| dim < input.rank && !self.dims.contains(&dim);
        let in_order = !stay(1) || !(2..input.rank).any(stay);
        match input.order {
            Order::ChannelsLast if self.keepdim => (Order::ChannelsLast, Order::ChannelsLast),
            Order::ChannelsLast if in_order => (Order::ChannelsLast, Order::RowMajor),
            _ => (Order::RowMajor, Order::RowMajor),
        }
    }
}

impl Operation for Reduce {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let from = inputs[0].shape();
        let mut shape = Vec::new();
        for (dim, &size) in from.iter().enumerate() {
            match self.dims.contains(&dim) {
                true if self.keepdim => shape.push(1),
                true => (),
                false => shape.push(size),
            }
        }
        let input = OrderAndRank { order: inputs[0].order(), rank: from.len() };
        let output = Value::ordered(
            &shape,
            if shape.len() == 2 { Order::ChannelsLast } else { self.order(input).1 },
        )?;
        Ok((output, Cost::of(&inputs[0].dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, shape, strides) =
            (self.measure(inputs)?.0, inputs[0].shape(), inputs[0].strides());
        let mut order: Vec<usize> = (0..shape.len()).filter(|&dim| shape[dim] != 1).collect();
        order.sort_by_key(|&dim| std::cmp::Reverse(strides[dim]));
        let dims = |reduced: bool| -> Vec<Dim> {
            let mut dims: Vec<Dim> = Vec::new();
            for &dim in order.iter().filter(|dim| self.dims.contains(dim) == reduced) {
                match dims.last_mut() {
                    Some((size, step)) if *step == shape[dim] * strides[dim] => {
                        (*size, *step) = (*size * shape[dim], strides[dim]);
                    }
                    _ => dims.push((shape[dim], strides[dim])),
                }
            }
            dims
        };
        let (kept, reduced) = (dims(false), dims(true));
        let count: usize = reduced.iter().map(|dim| dim.0).product();
        let (fold, divisor, root) = match self.kind {
            Reduction::Mean => (Fold::Sum(Term::Element), count as f64, false),
            Reduction::Sum => (Fold::Sum(Term::Element), 1.0, false),
            Reduction::Max => (Fold::Max, 1.0, false),
            Reduction::Min => (Fold::Min, 1.0, false),
            Reduction::Norm1 => (Fold::Sum(Term::Magnitude), 1.0, false),
            Reduction::Norm2 => (Fold::Sum(Term::Square), 1.0, true),
            Reduction::Variance { correction, root } => {
                let divisor = (count as f64 - correction as f64).max(0.0);
                (Fold::Sum(Term::SquaredDistance), divisor, root)
            }
        };
        Ok((output, Box::new(ReduceStep { kept, reduced, fold, divisor, root, count })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let (wanted, output) = self.order(inputs[0]);
        let rank = if self.keepdim {
            inputs[0].rank
        } else {
            inputs[0].rank.saturating_sub(self.dims.len())
        };
        (vec![wanted], if rank == 2 { Order::ChannelsLast } else { output }) // small: one
    }
}

#[derive(Debug)]
struct ReduceStep {
    kept: Vec<Dim>,
    reduced: Vec<Dim>,
    fold: Fold,
    divisor: f64,
    root: bool,
    count: usize,
}

impl ExecutableOp for ReduceStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out) = (inputs[0].floats(), out.floats());
        let cost = out.len().saturating_mul(self.count.max(1)).saturating_mul(4);
        parallel::try_for_each_rows(out, 1, 64, cost, |first, out| {
            let &ReduceStep { ref kept, ref reduced, fold, divisor, root, .. } = self;
            run(rows::Reduce { x, out, first, kept, reduced, fold, divisor, root })
        })
    }
}

/// Softmax or log-softmax along a dimension.
#[derive(Debug)]
pub(crate) struct Softmax {
    pub dim: usize,
    pub log: bool,
}

impl Operation for Softmax {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        if self.dim >= inputs[0].shape().len().max(1) {
            return bad_value(
                "softmax",
                format!("dimension {}", self.dim),
                format!("{:?}", inputs[0].shape()),
            );
        }
        Ok((inputs[0], Cost::of(&inputs[0].dims, 16)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, shape, strides) =
            (self.measure(inputs)?.0, inputs[0].shape(), inputs[0].strides());
        let size = shape.get(self.dim).copied().unwrap_or(1);
        let inner = if size == 1 { 1 } else { strides[self.dim] };
        Ok((output, Box::new(SoftmaxStep { size, inner, log: self.log })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![inputs[0].order], inputs[0].order) // small: one
    }
}

#[derive(Debug)]
struct SoftmaxStep {
    size: usize,
    inner: usize,
    log: bool,
}

impl ExecutableOp for SoftmaxStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out, SoftmaxStep { size, inner, log }) = (inputs[0].floats(), out.floats(), self);
        let Some(block) = memory::product([*size, *inner]).filter(|block| *block > 0) else {
            return Ok(());
        };
        let cost = out.len().saturating_mul(32);
        parallel::try_for_each_rows(out, block, 1, cost, |first, out| {
            out.copy_from_slice(&x[first * block..][..out.len()]);
            run(rows::Softmax { x: out, size: *size, inner: *inner, log: *log })
        })
    }
}
