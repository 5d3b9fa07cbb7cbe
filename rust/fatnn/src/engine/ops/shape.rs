//! Operations that only move elements: reshape, permute, slice, expand and memory order.

use std::sync::Arc;

use crate::engine::ops::strided::Walk;
use crate::engine::value::{
    Cost, ExecutableOp, MAX_RANK, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::memory;
use crate::parallel;
use crate::transpose::transpose;

/// Converts a value to this memory order.
#[derive(Debug)]
pub(crate) struct Reorder(pub Order);

impl Operation for Reorder {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let output = Value::ordered(&inputs[0].shape(), self.0)?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let image = if self.0 == Order::RowMajor { inputs[0] } else { output };
        let (channels, pixels) = (image.dims.channels, image.dims.map[0] * image.dims.map[1]);
        let [rows, columns] =
            if self.0 == Order::RowMajor { [pixels, channels] } else { [channels, pixels] };
        Ok((output, Box::new(Transpose { rows, columns })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![inputs[0].order], self.0) // small: one
    }

    fn is_view(&self, inputs: &[Value]) -> bool {
        // With one pixel or one channel, both orders have the same memory layout.
        match *inputs[0].shape() {
            [_, channels, ref map @ ..] => channels == 1 || map.iter().product::<usize>() == 1,
            _ => true,
        }
    }
}

#[derive(Debug)]
struct Transpose {
    rows: usize,
    columns: usize,
}

impl ExecutableOp for Transpose {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        match (inputs[0], out) {
            (Slice::Integer(x), SliceMut::Integer(out)) => self.transpose(x, out),
            (Slice::Mask(x), SliceMut::Mask(out)) => self.transpose(x, out),
            (x, out) => self.transpose(x.floats(), out.floats()),
        }
    }
}

impl Transpose {
    fn transpose<T: Copy + Send + Sync>(&self, x: &[T], out: &mut [T]) -> Result<()> {
        let image = self.rows * self.columns;
        parallel::try_for_each_rows(out, image.max(1), 1, x.len(), |first, out| {
            transpose(&x[first * image..][..out.len()], out, self.rows, self.columns);
            Ok(())
        })
    }
}

/// A new shape for the same elements in row-major order.
#[derive(Clone, Debug)]
pub(crate) enum Reshape {
    /// Merges dimensions `start` to `end` (inclusive); neither is negative.
    Flatten { start: usize, end: usize },
    /// Merges all dimensions but the last.
    FlattenLeading,
    /// Takes all dimensions but the last from the second input.
    Like,
    /// Removes this dimension if its size is 1.
    Squeeze(usize),
    /// Inserts a dimension of size 1 here.
    Unsqueeze(usize),
    /// Takes these sizes. 0 keeps the input's size of that dimension; -1 is computed from the
    /// other sizes.
    To(Vec<i64>),
}

impl Reshape {
    fn shape(&self, inputs: &[Value]) -> Result<Vec<usize>> {
        let x = inputs[0].shape();
        let counted =
            |sizes: &[usize]| memory::product(sizes.iter().copied()).unwrap_or(usize::MAX);
        let output = match self {
            Reshape::Flatten { start, end } if *end < x.len() => {
                [&x[..*start], &[counted(&x[*start..=*end])], &x[*end + 1..]].concat()
            }
            Reshape::Flatten { .. } => vec![counted(&x)], // small: one
            Reshape::FlattenLeading => match x.split_last() {
                Some((&last, front)) => vec![counted(front), last], // small: two
                None => return bad_value("flattening", "a value with dimensions", "a number"),
            },
            Reshape::Like => match (x.last(), inputs[1].shape().split_last()) {
                (Some(&last), Some((_, front))) => [front, &[last]].concat(),
                _ => return bad_value("reshaping", "values with dimensions", "a number"),
            },
            Reshape::Squeeze(dim) => {
                let kept = x.iter().enumerate().filter(|(i, size)| i != dim || **size != 1);
                kept.map(|(_, &size)| size).collect()
            }
            Reshape::Unsqueeze(dim) => {
                let mut output = x.to_vec(); // small: sizes
                output.insert((*dim).min(x.len()), 1);
                output
            }
            Reshape::To(sizes) => {
                let same = |(i, &size): (usize, &i64)| match size {
                    0 => x.get(i).copied().unwrap_or(0),
                    size => usize::try_from(size).unwrap_or(1),
                };
                let mut output: Vec<usize> = sizes.iter().enumerate().map(same).collect();
                if let Some(at) = sizes.iter().position(|size| *size == -1) {
                    output[at] = counted(&x).checked_div(counted(&output)).unwrap_or(0);
                }
                output
            }
        };
        if counted(&output) != counted(&x) || output.len() > MAX_RANK {
            return bad_value(
                "reshaping",
                format!("a shape of as many elements as {x:?}"),
                format!("{output:?}"),
            );
        }
        Ok(output)
    }
}

impl Operation for Reshape {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        Ok((Value::row_major(&self.shape(inputs)?)?.of(inputs[0].element), Cost::default()))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        Ok((self.measure(inputs)?.0, Box::new(NoOp)))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        // Only the shape of the second input matters.
        let wanted = inputs
            .iter()
            .enumerate()
            .map(|(i, input)| if i == 0 { Order::RowMajor } else { input.order });
        (wanted.collect(), Order::RowMajor)
    }

    fn is_view(&self, _: &[Value]) -> bool {
        true
    }
}

/// The run of a view, which has nothing to do.
#[derive(Debug)]
struct NoOp;

impl ExecutableOp for NoOp {
    fn run(&self, _: &[Slice<'_>], _: &mut [u8], _: SliceMut<'_>) -> Result<()> {
        Ok(())
    }
}

/// Permutes dimensions: dimension `i` of the result is dimension `self.0[i]` of the input.
#[derive(Clone, Debug)]
pub(crate) struct Permute(pub Vec<usize>);

impl Permute {
    /// The memory order of the result if it can share the input's memory.
    fn view(&self, input: OrderAndRank) -> Option<Order> {
        match (input.order, self.0.as_slice()) {
            (Order::ChannelsLast, [0, 2, 1] | [0, 2, 3, 1]) => Some(Order::RowMajor),
            (Order::RowMajor, [0, 2, 1] | [0, 3, 1, 2]) => Some(Order::ChannelsLast),
            (order, dims) => dims.iter().copied().eq(0..dims.len()).then_some(order),
        }
    }
}

impl Operation for Permute {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let from = inputs[0].shape();
        if from.len() != self.0.len() {
            return bad_value(
                "permuting",
                format!("{} dimensions", self.0.len()),
                format!("shape {from:?}"),
            );
        }
        let shape: Vec<usize> = self.0.iter().map(|&dim| from[dim]).collect();
        let (_, order) =
            self.orders(&[OrderAndRank { order: inputs[0].order(), rank: from.len() }]);
        let output = Value::ordered(&shape, order)?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, strides) = (self.measure(inputs)?.0, inputs[0].strides());
        let steps: Vec<usize> = self.0.iter().map(|&dim| strides[dim]).collect();
        Ok((output, Box::new(StridedCopy::new(output, &steps, 0))))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let output = match inputs[0] {
            // Values of rank 2 have only one memory order.
            OrderAndRank { rank: 2, .. } => Order::ChannelsLast,
            input => self.view(input).unwrap_or(Order::RowMajor),
        };
        (vec![inputs[0].order], output) // small: one
    }

    fn is_view(&self, inputs: &[Value]) -> bool {
        let input = OrderAndRank { order: inputs[0].order(), rank: self.0.len() };
        match input.rank {
            2 => self.0 == [0, 1],
            _ => self.view(input).is_some(),
        }
    }
}

/// Copies elements that are read with strides into contiguous memory.
#[derive(Debug)]
pub(crate) struct StridedCopy {
    walk: Walk<1>,
    /// Offset of the first element that is read.
    offset: usize,
}

impl StridedCopy {
    /// A copy into a value like `output`. `steps` are the strides of its dimensions in the input.
    pub fn new(output: Value, steps: &[usize], offset: usize) -> Self {
        StridedCopy { walk: Walk::new(output, |dim| [steps[dim]]), offset }
    }
}

impl ExecutableOp for StridedCopy {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        match (inputs[0], out) {
            (Slice::Integer(x), SliceMut::Integer(out)) => self.copy(x, out),
            (Slice::Mask(x), SliceMut::Mask(out)) => self.copy(x, out),
            (x, out) => self.copy(x.floats(), out.floats()),
        }
    }
}

impl StridedCopy {
    fn copy<T: Copy + Send + Sync>(&self, x: &[T], out: &mut [T]) -> Result<()> {
        if out.is_empty() {
            return Ok(()); // an empty input has nothing at the offset
        }
        let (x, (len, [step])) = (&x[self.offset..], self.walk.row());
        let cost = out.len() * 4;
        parallel::try_for_each_rows(out, len, 1, cost, |first, out| {
            self.walk.rows(first, out, |[at], row| match step {
                1 => row.copy_from_slice(&x[at..at + len]),
                0 => row.fill(x[at]),
                _ => row
                    .iter_mut()
                    .zip(x[at..].iter().step_by(step))
                    .for_each(|(to, from)| *to = *from),
            });
            Ok(())
        })
    }
}

/// PyTorch's slice `start:end:step` of a dimension; negative indices count from the end.
#[derive(Clone, Debug)]
pub(crate) struct SliceDim {
    pub dim: i64,
    pub start: i64,
    pub end: i64,
    pub step: usize,
}

impl SliceDim {
    /// The dimension, the first index and the number of indices, by PyTorch's rules.
    fn range(&self, shape: &[usize]) -> Result<(usize, usize, usize)> {
        let rank = shape.len() as i64;
        let dim = if self.dim < 0 { self.dim + rank } else { self.dim };
        let Some(&size) = usize::try_from(dim).ok().and_then(|dim| shape.get(dim)) else {
            return bad_value("slice", format!("a dimension of {shape:?}"), self.dim);
        };
        let [start, end] = [self.start, self.end].map(|at| slice_index(at, size));
        Ok((dim as usize, start, end.saturating_sub(start).div_ceil(self.step.max(1))))
    }
}

/// Converts an index of a slice to a non-negative one and clamps it to the dimension.
fn slice_index(at: i64, size: usize) -> usize {
    let from_front = if at < 0 { at.saturating_add(size as i64) } else { at };
    (from_front.max(0) as usize).min(size)
}

impl Operation for SliceDim {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let mut shape = inputs[0].shape().to_vec(); // small: sizes
        let (dim, _, count) = self.range(&shape)?;
        shape[dim] = count;
        let output = Value::ordered(&shape, inputs[0].order())?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, shape, mut steps) =
            (self.measure(inputs)?.0, inputs[0].shape(), inputs[0].strides());
        let (dim, start, count) = self.range(&shape)?;
        let offset = if count == 0 { 0 } else { start * steps[dim] };
        steps[dim] *= self.step;
        Ok((output, Box::new(StridedCopy::new(output, &steps, offset))))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![inputs[0].order], inputs[0].order) // small: one
    }
}

/// Repeats dimensions of size 1 to these sizes. -1 keeps the input's size; -2 takes the size of
/// the second input's first dimension.
#[derive(Clone, Debug)]
pub(crate) struct Expand(pub Vec<i64>);

impl Operation for Expand {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let from = inputs[0].shape();
        let Some(more) = self.0.len().checked_sub(from.len()) else {
            return bad_value(
                "expanding",
                format!("at least {} sizes", from.len()),
                format!("{:?}", self.0),
            );
        };
        let mut shape = Vec::new();
        for (i, &want) in self.0.iter().enumerate() {
            let have = i.checked_sub(more).map_or(1, |i| from[i]);
            let size = match (want, inputs.get(1)) {
                (-2, Some(like)) => like.shape().first().copied().unwrap_or(1),
                _ => usize::try_from(want).unwrap_or(have),
            };
            if size != have && have != 1 {
                return bad_value(
                    "expanding",
                    format!("sizes for {from:?}"),
                    format!("{:?}", self.0),
                );
            }
            shape.push(size);
        }
        let output = Value::row_major(&shape)?.of(inputs[0].element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, from, strides) =
            (self.measure(inputs)?.0, inputs[0].shape(), inputs[0].strides());
        let more = output.shape().len() - from.len();
        let step =
            |i: usize| i.checked_sub(more).filter(|&i| from[i] != 1).map_or(0, |i| strides[i]);
        let steps: Vec<usize> = (0..output.shape().len()).map(step).collect();
        Ok((output, Box::new(StridedCopy::new(output, &steps, 0))))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (inputs.iter().map(|input| input.order).collect(), Order::RowMajor)
    }
}
