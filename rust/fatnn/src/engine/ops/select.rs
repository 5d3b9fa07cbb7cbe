//! Takes indices of one dimension, given as a second input or in reverse order.

use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::parallel;

/// `index_select`, or `flip` of one dimension.
#[derive(Debug)]
pub(crate) struct Select {
    /// The dimension; negative ones count from the end.
    pub dim: i64,
    /// Whether the indices are all of the dimension in reverse order.
    pub flip: bool,
}

impl Select {
    fn dim(&self, shape: &[usize]) -> Result<usize> {
        let rank = shape.len() as i64;
        let dim = if self.dim < 0 { self.dim + rank } else { self.dim };
        match usize::try_from(dim).ok().filter(|&dim| dim < shape.len()) {
            Some(dim) => Ok(dim),
            None => bad_value("selection", format!("a dimension of {shape:?}"), self.dim),
        }
    }
}

impl Operation for Select {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let mut shape = inputs[0].shape().to_vec(); // small: sizes
        let dim = self.dim(&shape)?;
        if !self.flip {
            let &[count] = &*inputs[1].shape() else {
                let got = format!("shape {:?}", inputs[1].shape());
                return bad_value("indices of a selection", "one dimension", got);
            };
            shape[dim] = count;
        }
        let output = Value::row_major(&shape)?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let shape = inputs[0].shape();
        let dim = self.dim(&shape)?;
        let (size, count) = (shape[dim], output.shape()[dim]);
        let inner = shape[dim + 1..].iter().product();
        Ok((output, Box::new(SelectStep { flip: self.flip, size, count, inner })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (inputs.iter().map(|_| Order::RowMajor).collect(), Order::RowMajor)
    }
}

#[derive(Debug)]
struct SelectStep {
    flip: bool,
    /// Size of the dimension in the input and in the output.
    size: usize,
    count: usize,
    /// Elements per index.
    inner: usize,
}

impl ExecutableOp for SelectStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let index = if self.flip { None } else { Some(inputs[1].integers()) };
        let inside = |id: i64| usize::try_from(id).is_ok_and(|id| id < self.size);
        if let Some((at, id)) =
            index.and_then(|ids| ids.iter().enumerate().find(|(_, id)| !inside(**id)))
        {
            return bad_value(
                "indices of a selection",
                format!("indices from 0 to {} for a size of {}", self.size as i64 - 1, self.size),
                format!("{id} (element {at}): index out of range"),
            );
        }
        match (inputs[0], out) {
            (Slice::Integer(x), SliceMut::Integer(out)) => self.select(x, index, out),
            (Slice::Mask(x), SliceMut::Mask(out)) => self.select(x, index, out),
            (x, out) => self.select(x.floats(), index, out.floats()),
        }
    }
}

impl SelectStep {
    fn select<T: Copy + Send + Sync>(
        &self,
        x: &[T],
        index: Option<&[i64]>,
        out: &mut [T],
    ) -> Result<()> {
        let &SelectStep { size, count, inner, .. } = self;
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len() * 4;
        parallel::try_for_each_rows(out, inner, 1, cost, |first, out| {
            for (row, out) in (first..).zip(out.chunks_exact_mut(inner)) {
                let (block, at) = (row / count, row % count);
                let from = index.map_or(size - 1 - at, |index| index[at] as usize);
                out.copy_from_slice(&x[(block * size + from) * inner..][..inner]);
            }
            Ok(())
        })
    }
}
