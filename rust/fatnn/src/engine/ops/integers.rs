//! Elementwise operations on integers and masks (comparisons, logic, `where`, casts, integer
//! arithmetic), `addcmul` of floats, and cumulative sums.
//!
//! Integers are int64 in memory. Results of type int32 wrap as int32 does.

use std::sync::Arc;

use crate::dtype::ValueType;
use crate::engine::ops::strided::Walk;
use crate::engine::value::{
    Cost, Element, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::graph::op::Op;
use crate::graph::{BuildError, NodeView};
use crate::parallel;
use crate::scalar::{Binary, Comparison, Logical};

/// The operation of a node that reads values of types `read` and returns one of type `output`.
pub(crate) fn operation(
    view: NodeView<'_>,
    read: &[ValueType],
    output: ValueType,
) -> std::result::Result<Box<dyn Operation>, BuildError> {
    let element = Element::of(output);
    let is_i32 = output == ValueType::I32;
    let function = match view.node.op {
        Op::Compare(comparison) => Function::Compare(comparison),
        Op::Logical(logical) => Function::Logical(logical),
        Op::LogicalNot => Function::Not,
        Op::Where => Function::Where,
        Op::Addcmul { value } => Function::Addcmul(value),
        Op::Binary(kind) => Function::Integers(kind, is_i32),
        Op::Cast { to } => Function::Cast(to),
        Op::Cumsum { dim } => return Ok(Box::new(Cumsum { dim, is_i32 })),
        ref other => return Err(format!("{other:?} is no function of integers or masks").into()),
    };
    debug_assert!(!read.iter().any(|kind| kind.is_codes()));
    Ok(Box::new(IntegerOp { function, element }))
}

#[derive(Clone, Copy, Debug)]
enum Function {
    Compare(Comparison),
    Logical(Logical),
    Not,
    Where,
    /// `a + value * b * c` of floats.
    Addcmul(f32),
    /// Integer arithmetic; `true` if the result is int32.
    Integers(Binary, bool),
    Cast(ValueType),
}

/// An elementwise operation on up to three values, with broadcasting.
#[derive(Debug)]
struct IntegerOp {
    function: Function,
    element: Element,
}

impl Operation for IntegerOp {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let rank = inputs.iter().map(|input| input.shape().len()).max().unwrap_or(0);
        let size = |i: usize| {
            inputs.iter().try_fold(1, |output, input| {
                let from = input.shape();
                match (i + from.len()).checked_sub(rank).map_or(1, |i| from[i]) {
                    size if size == output || size == 1 => Some(output),
                    size if output == 1 => Some(size),
                    _ => None,
                }
            })
        };
        let Some(shape) = (0..rank).map(size).collect::<Option<Vec<usize>>>() else {
            let shapes: Vec<_> = inputs.iter().map(Value::shape).collect();
            let got = format!("{shapes:?}");
            return bad_value("a function of masks", "values whose shapes fit each other", got);
        };
        let last =
            inputs.iter().any(|x| x.shape().len() == rank && x.order() == Order::ChannelsLast);
        let order = if last { Order::ChannelsLast } else { Order::RowMajor };
        let output = Value::ordered(&shape, order)?.of(self.element);
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let rank = output.shape().len();
        let step = |input: Option<&Value>, dim: usize| {
            let Some(input) = input else { return 0 };
            let from = input.shape();
            match (dim + from.len()).checked_sub(rank) {
                Some(at) if from[at] != 1 => input.strides()[at],
                _ => 0,
            }
        };
        let walk = Walk::new(output, |dim| [0, 1, 2].map(|i| step(inputs.get(i), dim)));
        Ok((output, Box::new(IntegerStep { function: self.function, walk })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        if !matches!(self.function, Function::Addcmul(_)) {
            return (vec![Order::RowMajor; inputs.len()], Order::RowMajor); // small: an order each
        }
        // Images keep their order; inputs of lower rank are read by strides in the order they have.
        let rank = inputs.iter().map(|input| input.rank).max().unwrap_or(0);
        let last = inputs.iter().any(|x| x.rank == rank && x.order == Order::ChannelsLast);
        let order = if last { Order::ChannelsLast } else { Order::RowMajor };
        let wanted =
            inputs.iter().map(|input| if input.rank == rank { order } else { input.order });
        (wanted.collect(), order)
    }
}

#[derive(Debug)]
struct IntegerStep {
    function: Function,
    walk: Walk<3>,
}

impl IntegerStep {
    /// Sets every element of `out` to `f` of the offsets of its operands in the inputs.
    fn fill<T: Send>(&self, out: &mut [T], f: impl Fn([usize; 3]) -> T + Sync) -> Result<()> {
        let (len, steps) = self.walk.row();
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len() * 8;
        parallel::try_for_each_rows(out, len, 1, cost, |first, out| {
            self.walk.rows(first, out, |mut at, row| {
                for to in row {
                    *to = f(at);
                    (0..3).for_each(|i| at[i] += steps[i]);
                }
            });
            Ok(())
        })
    }

    fn compare<T: PartialOrd + Copy + Sync>(
        &self,
        comparison: Comparison,
        (a, b): (&[T], &[T]),
        out: &mut [u8],
    ) -> Result<()> {
        match comparison {
            Comparison::Eq => self.fill(out, |at| u8::from(a[at[0]] == b[at[1]])),
            Comparison::Ne => self.fill(out, |at| u8::from(a[at[0]] != b[at[1]])),
            Comparison::Lt => self.fill(out, |at| u8::from(a[at[0]] < b[at[1]])),
            Comparison::Le => self.fill(out, |at| u8::from(a[at[0]] <= b[at[1]])),
        }
    }

    fn select<T: Copy + Send + Sync>(
        &self,
        mask: &[u8],
        (a, b): (&[T], &[T]),
        out: &mut [T],
    ) -> Result<()> {
        self.fill(out, |at| if mask[at[0]] != 0 { a[at[1]] } else { b[at[2]] })
    }

    fn cast(&self, x: Slice<'_>, to: ValueType, out: SliceMut<'_>) -> Result<()> {
        match (x, out) {
            (Slice::Float(x), SliceMut::Float(out)) => self.fill(out, |at| x[at[0]]),
            (Slice::Integer(x), SliceMut::Float(out)) => self.fill(out, |at| x[at[0]] as f32),
            (Slice::Mask(x), SliceMut::Float(out)) => self.fill(out, |at| f32::from(x[at[0]])),
            (Slice::Float(x), SliceMut::Mask(out)) => {
                self.fill(out, |at| u8::from(x[at[0]] != 0.0))
            }
            (Slice::Integer(x), SliceMut::Mask(out)) => {
                self.fill(out, |at| u8::from(x[at[0]] != 0))
            }
            (Slice::Mask(x), SliceMut::Mask(out)) => self.fill(out, |at| x[at[0]]),
            (Slice::Mask(x), out) => self.fill(out.integers(), |at| i64::from(x[at[0]])),
            (Slice::Integer(x), out) => {
                self.fill(out.integers(), |at| wrap_integer(x[at[0]], to == ValueType::I32))
            }
            // Checked graphs have no such cast: PyTorch leaves its result undefined for large
            // floats.
            (Slice::Float(x), out) => self.fill(out.integers(), |at| x[at[0]] as i64),
            (x, _) => bad_value("a conversion", "floats, integers or a mask", format!("{x:?}")),
        }
    }
}

/// Wraps `x` to int32 if `is_i32`.
fn wrap_integer(x: i64, is_i32: bool) -> i64 {
    if is_i32 { i64::from(x as i32) } else { x }
}

impl ExecutableOp for IntegerStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        match (self.function, inputs) {
            (Function::Compare(kind), [Slice::Integer(a), Slice::Integer(b)]) => {
                self.compare(kind, (a, b), out.mask())
            }
            (Function::Compare(kind), [Slice::Mask(a), Slice::Mask(b)]) => {
                self.compare(kind, (a, b), out.mask())
            }
            (Function::Compare(kind), [a, b]) => {
                self.compare(kind, (a.floats(), b.floats()), out.mask())
            }
            (Function::Logical(kind), [a, b]) => {
                let (a, b, out) = (a.mask(), b.mask(), out.mask());
                match kind {
                    Logical::And => self.fill(out, |at| a[at[0]] & b[at[1]]),
                    Logical::Or => self.fill(out, |at| a[at[0]] | b[at[1]]),
                    Logical::Xor => self.fill(out, |at| a[at[0]] ^ b[at[1]]),
                }
            }
            (Function::Not, [x]) => {
                let x = x.mask();
                self.fill(out.mask(), |at| 1 - x[at[0]])
            }
            (Function::Where, [mask, a, b]) => match out {
                SliceMut::Integer(out) => {
                    self.select(mask.mask(), (a.integers(), b.integers()), out)
                }
                SliceMut::Mask(out) => self.select(mask.mask(), (a.mask(), b.mask()), out),
                out => self.select(mask.mask(), (a.floats(), b.floats()), out.floats()),
            },
            (Function::Addcmul(value), [a, b, c]) => {
                let (a, b, c) = (a.floats(), b.floats(), c.floats());
                // The product of two float32 is exact in float64, so the bits are equal everywhere.
                self.fill(out.floats(), |at| {
                    let scaled = f64::from(b[at[1]] * value);
                    (f64::from(a[at[0]]) + scaled * f64::from(c[at[2]])) as f32
                })
            }
            (Function::Integers(kind, is_i32), [a, b]) => {
                let (a, b, out) = (a.integers(), b.integers(), out.integers());
                self.fill(out, |at| {
                    let (a, b) = (a[at[0]], b[at[1]]);
                    let output = match kind {
                        Binary::Add => a.wrapping_add(b),
                        Binary::Sub => a.wrapping_sub(b),
                        // The type rules of the graph exclude integer division.
                        Binary::Mul | Binary::Div => a.wrapping_mul(b),
                    };
                    wrap_integer(output, is_i32)
                })
            }
            (Function::Cast(to), [x]) => self.cast(*x, to, out),
            _ => bad_value("a function of masks", "its values", inputs.len()),
        }
    }
}

/// Cumulative sums along a dimension.
#[derive(Debug)]
struct Cumsum {
    dim: i64,
    is_i32: bool,
}

impl Operation for Cumsum {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        Ok((inputs[0], Cost::of(&inputs[0].dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (shape, strides) = (inputs[0].shape(), inputs[0].strides());
        let rank = shape.len() as i64;
        let dim = if self.dim < 0 { self.dim + rank } else { self.dim };
        let (size, step) = match usize::try_from(dim).ok().filter(|dim| *dim < shape.len()) {
            Some(dim) => (shape[dim], strides[dim]),
            None if rank == 0 => (1, 1),
            None => return bad_value("sums along a dimension", format!("one of {rank}"), self.dim),
        };
        Ok((inputs[0], Box::new(CumsumStep { size, step, is_i32: self.is_i32 })))
    }

    fn orders(&self, _: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![Order::RowMajor], Order::RowMajor) // small: one
    }
}

#[derive(Debug)]
struct CumsumStep {
    size: usize,
    step: usize,
    is_i32: bool,
}

impl ExecutableOp for CumsumStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let step = self.step;
        let block = (self.size * step).max(1);
        let (x, out) = match (inputs[0], out) {
            (Slice::Float(x), SliceMut::Float(out)) => return float_sums(x, out, block, step),
            (x, out) => (x.integers(), out.integers()),
        };
        for (x, out) in x.chunks(block).zip(out.chunks_mut(block)) {
            for (i, &x) in x.iter().enumerate() {
                let before = i.checked_sub(step).map_or(0, |i| out[i]);
                out[i] = wrap_integer(before.wrapping_add(x), self.is_i32);
            }
        }
        Ok(())
    }
}

/// Sums floats one after another in float64, as PyTorch does.
fn float_sums(x: &[f32], out: &mut [f32], block: usize, step: usize) -> Result<()> {
    for (x, out) in x.chunks(block).zip(out.chunks_mut(block)) {
        for lane in 0..step.min(x.len()) {
            let mut sum = 0.0;
            let elements = x[lane..].iter().step_by(step.max(1));
            for (y, &x) in out[lane..].iter_mut().step_by(step.max(1)).zip(elements) {
                sum += f64::from(x);
                *y = sum as f32;
            }
        }
    }
    Ok(())
}
