//! Addition, subtraction, multiplication and division of two values, with PyTorch's broadcasting.

use std::sync::Arc;

use crate::engine::ops::elementwise::{ChannelDim, in_rows};
use crate::engine::ops::strided::Walk;
use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value};
use crate::kernels::arithmetic::{Row, run_row};
use crate::kernels::{Level, apply_all};
use crate::parallel;
use crate::scalar::Binary;

/// A binary operation, then elementwise functions of its result.
#[derive(Debug)]
pub(crate) struct Arithmetic {
    kind: Binary,
    post: Vec<Elementwise>,
    channel_dim: ChannelDim,
}

impl Arithmetic {
    /// The operation `kind`, followed by the functions `post`.
    pub fn new(kind: Binary, post: Vec<Elementwise>, channel_dim: ChannelDim) -> Self {
        Arithmetic { kind, post, channel_dim }
    }

    /// The input whose memory order the result takes: the first of the highest rank.
    fn leading(ranks: [usize; 2]) -> usize {
        usize::from(ranks[1] > ranks[0])
    }
}

impl Operation for Arithmetic {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (a, b) = (inputs[0].shape(), inputs[1].shape());
        let output = if inputs[0] == inputs[1] {
            inputs[0]
        } else {
            let rank = a.len().max(b.len());
            let at = |shape: &[usize], i: usize| {
                (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i])
            };
            let size = |i: usize| match (at(&a, i), at(&b, i)) {
                (a, b) if a == b || b == 1 => Some(a),
                (1, b) => Some(b),
                _ => None,
            };
            let Some(shape) = (0..rank).map(size).collect::<Option<Vec<usize>>>() else {
                return bad_value(
                    "arithmetic",
                    "two values whose shapes broadcast",
                    format!("{a:?} and {b:?}"),
                );
            };
            Value::ordered(&shape, inputs[Self::leading([a.len(), b.len()])].order())?
        };
        check_channels(&self.post, output.dims.channels)?;
        Ok((output, Cost::of(&output.dims, 1 + self.post.len())))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let channels = output.dims.channels;
        if inputs[0] == inputs[1] {
            return Ok((output, Box::new(SameShape { arithmetic: self, channels })));
        }
        Ok((
            output,
            Box::new(Broadcast {
                walk: walk(output, [inputs[0], inputs[1]]),
                arithmetic: self,
                channels,
            }),
        ))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let first = inputs[Self::leading([inputs[0].rank, inputs[1].rank])];
        let order = self.channel_dim.order(first.rank).unwrap_or(first.order);
        // An input of lower rank is read by strides in the order that it has.
        let wanted =
            inputs.iter().map(|input| if input.rank == first.rank { order } else { input.order });
        (wanted.collect(), order)
    }
}

/// The walk over the result, with strides of both inputs; a broadcast dimension has stride 0.
fn walk(output: Value, inputs: [Value; 2]) -> Walk<2> {
    let rank = output.shape().len();
    let step = |input: &Value, dim: usize| {
        let from = input.shape();
        match (dim + from.len()).checked_sub(rank) {
            Some(at) if from[at] != 1 => input.strides()[at],
            _ => 0,
        }
    };
    Walk::new(output, |dim| [step(&inputs[0], dim), step(&inputs[1], dim)])
}

#[derive(Debug)]
struct SameShape {
    arithmetic: Arc<Arithmetic>,
    channels: usize,
}

impl ExecutableOp for SameShape {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (a, b, kind) = (inputs[0].floats(), inputs[1].floats(), self.arithmetic.kind);
        let level = Level::usable()?;
        in_rows(out.floats(), self.channels, |first, out| {
            let at = first * self.channels;
            run_row(level, Row { kind, a: (&a[at..], 1), b: (&b[at..], 1), out });
            apply_all(&self.arithmetic.post, out, self.channels)
        })
    }
}

#[derive(Debug)]
struct Broadcast {
    walk: Walk<2>,
    arithmetic: Arc<Arithmetic>,
    channels: usize,
}

impl ExecutableOp for Broadcast {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (a, b, out, kind) =
            (inputs[0].floats(), inputs[1].floats(), out.floats(), self.arithmetic.kind);
        let (level, (len, [sa, sb])) = (Level::usable()?, self.walk.row());
        if out.is_empty() {
            return Ok(());
        }
        // Rows of the innermost dimension hold whole pixels or parts of one, so the functions run
        // after all rows.
        let cost = out.len() * 16;
        parallel::try_for_each_rows(out, len, 1, cost, |first, out| {
            self.walk.rows(first, out, |[at, bt], out| {
                run_row(level, Row { kind, a: (&a[at..], sa), b: (&b[bt..], sb), out });
            });
            Ok(())
        })?;
        in_rows(out, self.channels, |_, out| apply_all(&self.arithmetic.post, out, self.channels))
    }
}
