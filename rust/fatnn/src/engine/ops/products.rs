//! Matrix products of two values, and attention: two products with a softmax between them.
//!
//! Rows are multiplied in blocks of [`BLOCK`] on any number of threads, and long sums in slices of
//! a fixed length. So the bits of a result depend only on the instruction set.

use std::cell::RefCell;
use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, MAX_RANK, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value};
use crate::kernels::rows::{AttentionSoftmax, run};
use crate::kernels::{Matrix, product};
use crate::memory;
use crate::parallel;

/// Rows per product.
pub(super) const BLOCK: usize = 64;

/// The broadcast batch shape of the inputs: all dimensions but the last `trailing` ones. `None` if
/// they do not broadcast.
fn batch_of(inputs: &[Value], trailing: usize) -> Option<Vec<usize>> {
    let fronts: Vec<Vec<usize>> = inputs
        .iter()
        .map(|input| {
            let rank = input.shape().len().checked_sub(trailing)?;
            Some(input.shape()[..rank].to_vec()) // small: sizes
        })
        .collect::<Option<_>>()?;
    let rank = fronts.iter().map(Vec::len).max()?;
    let at =
        |front: &[usize], i: usize| (i + front.len()).checked_sub(rank).map_or(1, |i| front[i]);
    let size = |i: usize| {
        fronts.iter().map(|front| at(front, i)).try_fold(1, |all, size| match (all, size) {
            (all, size) if all == size || size == 1 => Some(all),
            (1, size) => Some(size),
            _ => None,
        })
    };
    (0..rank).map(size).collect()
}

/// The offset of each matrix of an input, by its index in the broadcast batch.
#[derive(Clone, Copy, Debug)]
struct Batch {
    sizes: [usize; MAX_RANK],
    steps: [usize; MAX_RANK],
    rank: usize,
}

impl Batch {
    fn new(batch: &[usize], input: &Value, trailing: usize) -> Self {
        let (shape, strides, rank) = (input.shape(), input.strides(), batch.len());
        let mut result = Batch { sizes: [1; MAX_RANK], steps: [0; MAX_RANK], rank };
        result.sizes[..rank].copy_from_slice(batch);
        let front = shape.len() - trailing;
        for i in 0..front {
            if shape[i] != 1 {
                result.steps[rank - front + i] = strides[i];
            }
        }
        result
    }

    fn offset(&self, mut index: usize) -> usize {
        let mut at = 0;
        for i in (0..self.rank).rev() {
            at += index % self.sizes[i] * self.steps[i];
            index /= self.sizes[i];
        }
        at
    }
}

/// Rows and columns: the last two dimensions of a value.
fn matrix(value: &Value) -> Option<[usize; 2]> {
    let shape = value.shape();
    let at = shape.len().checked_sub(2)?;
    Some([shape[at], shape[at + 1]])
}

/// Inputs and result are all row-major.
fn row_major(inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
    (vec![Order::RowMajor; inputs.len()], Order::RowMajor) // small: an order each
}

/// The matrix product `a · b`, with broadcast batch dimensions.
#[derive(Debug)]
pub(crate) struct Matmul;

impl Operation for Matmul {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let fits = matrix(&inputs[0]).zip(matrix(&inputs[1])).zip(batch_of(inputs, 2));
        match fits {
            Some((([m, k], [rows, n]), mut shape)) if k == rows => {
                shape.extend([m, n]);
                let output = Value::row_major(&shape)?;
                Ok((output, Cost::of(&output.dims, k)))
            }
            _ => {
                let got = format!("{:?} and {:?}", inputs[0].shape(), inputs[1].shape());
                bad_value("a product", "matrices that fit each other", got)
            }
        }
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let shape = output.shape();
        let (front, trailing) = shape.split_at(shape.len() - 2);
        let k = inputs[0].shape().last().copied().unwrap_or(0);
        let batch = [Batch::new(front, &inputs[0], 2), Batch::new(front, &inputs[1], 2)];
        Ok((output, Box::new(MatmulStep { sizes: [trailing[0], trailing[1], k], batch })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        row_major(inputs)
    }
}

#[derive(Debug)]
struct MatmulStep {
    sizes: [usize; 3],
    batch: [Batch; 2],
}

impl ExecutableOp for MatmulStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (a, b, out, [m, n, k]) =
            (inputs[0].floats(), inputs[1].floats(), out.floats(), self.sizes);
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len().saturating_mul(k).saturating_mul(8);
        // Threads share several matrices as whole ones, and a single matrix in blocks of rows.
        let rows = if out.len() > m * n { m } else { BLOCK.min(m) };
        parallel::try_for_each_rows(out, n, rows, cost, |first, out| {
            let mut done = 0;
            while done * n < out.len() {
                let (index, row) = ((first + done) / m, (first + done) % m);
                let count = (BLOCK - row % BLOCK).min(m - row).min(out.len() / n - done);
                let a = &a[self.batch[0].offset(index)..][row * k..][..count * k];
                let b = &b[self.batch[1].offset(index)..][..k * n];
                let out = &mut out[done * n..][..count * n];
                product([count, n, k], Matrix(a, [k, 1]), Matrix(b, [n, 1]), out);
                done += count;
            }
            Ok(())
        })
    }
}

/// `softmax(q · kᵀ * scale + mask) · v`. The mask is an optional fourth input.
#[derive(Debug)]
pub(crate) struct Attention {
    pub causal: bool,
    /// `None`: [`default_scale`].
    pub scale: Option<f32>,
}

/// The default scale of the scores, `1 / √d`, for heads of `d` elements.
pub(super) fn default_scale(d: usize) -> f32 {
    (1.0 / (d.max(1) as f64).sqrt()) as f32
}

impl Operation for Attention {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let wrong = || {
            let shapes: Vec<_> = inputs.iter().map(Value::shape).collect();
            bad_value(
                "attention",
                "queries, keys, values and a mask that fit each other",
                format!("{shapes:?}"),
            )
        };
        let (q, k, v) = (matrix(&inputs[0]), matrix(&inputs[1]), matrix(&inputs[2]));
        let (Some([l, d]), Some([s, kd]), Some([vs, vd])) = (q, k, v) else { return wrong() };
        let Some(mut shape) = batch_of(&inputs[..3], 2) else { return wrong() };
        let fits = |size: usize, full: usize| size == full || size == 1;
        if let Some(mask) = inputs.get(3) {
            let Some([rows, columns]) = matrix(mask) else { return wrong() };
            let batch = batch_of(inputs, 2);
            if !fits(rows, l) || !fits(columns, s) || batch.as_ref() != Some(&shape) {
                return wrong();
            }
        }
        if d != kd || s != vs {
            return wrong();
        }
        shape.extend([l, vd]);
        let output = Value::row_major(&shape)?;
        let scores = (BLOCK as u128 * size_of::<f32>() as u128).saturating_mul(s as u128);
        // An output element costs a column of `v` and its share of the scores.
        let each = s.saturating_mul(2 + d / vd.max(1));
        Ok((output, Cost { bytes: scores, ..Cost::of(&output.dims, each) }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let (shape, [l, d]) = (output.shape(), matrix(&inputs[0]).unwrap_or_default());
        let front = &shape[..shape.len() - 2];
        let batch = inputs.iter().map(|input| Batch::new(front, input, 2)).collect();
        let ([s, vd], mask) =
            (matrix(&inputs[2]).unwrap_or_default(), inputs.get(3).and_then(matrix));
        let steps = mask.map(|[rows, columns]| {
            [if rows == 1 { 0 } else { columns }, usize::from(columns != 1)]
        });
        let scale = self.scale.unwrap_or_else(|| default_scale(d));
        Ok((
            output,
            Box::new(AttentionStep {
                sizes: [l, s, d, vd],
                batch,
                mask: steps,
                scale,
                causal: self.causal,
            }),
        ))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        row_major(inputs)
    }
}

#[derive(Debug)]
struct AttentionStep {
    /// Number of queries, number of keys, elements of a query or key, elements of a value.
    sizes: [usize; 4],
    batch: Vec<Batch>,
    mask: Option<[usize; 2]>,
    scale: f32,
    causal: bool,
}

thread_local! {
    /// Scores of a block. The buffer is kept between calls, so only the first run allocates.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The inputs and parameters of one attention head.
pub(super) struct Head<'a> {
    pub q: Matrix<'a>,
    pub k: Matrix<'a>,
    pub v: Matrix<'a>,
    pub mask: Option<(&'a [f32], [usize; 2])>,
    pub scale: f32,
    pub causal: bool,
}

impl Head<'_> {
    /// Computes the result of all queries. Sizes: number of queries, number of keys, elements of a
    /// query or key, elements of a value.
    pub fn run(&self, [l, s, d, vd]: [usize; 4], out: &mut [f32]) -> Result<()> {
        SCORES.with_borrow_mut(|scores| {
            for (block, out) in out.chunks_mut((BLOCK * vd).max(1)).enumerate() {
                let first = block * BLOCK;
                let rows = BLOCK.min(l - first);
                scores.truncate(rows * s);
                memory::grow("scores of an attention", scores, rows * s, 0.0)?;
                let q = Matrix(&self.q.0[first * self.q.1[0]..], self.q.1);
                let transposed = Matrix(self.k.0, [self.k.1[1], self.k.1[0]]);
                product([rows, s, d], q, transposed, scores);
                let mask = self.mask.map(|(mask, steps)| (&mask[first * steps[0]..], steps));
                let visible = self.causal.then_some(first + 1);
                run(AttentionSoftmax { scores, size: s, scale: self.scale, mask, visible })?;
                product([rows, vd, s], Matrix(scores, [s, 1]), self.v, out);
            }
            Ok(())
        })
    }
}

impl ExecutableOp for AttentionStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (out, sizes @ [l, s, d, vd]) = (out.floats(), self.sizes);
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len().saturating_mul(s).saturating_mul(16);
        parallel::try_for_each_rows(out, l * vd, 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(l * vd).enumerate() {
                let part = |n: usize| &inputs[n].floats()[self.batch[n].offset(first + i)..];
                let head = Head {
                    q: Matrix(part(0), [d, 1]),
                    k: Matrix(part(1), [d, 1]),
                    v: Matrix(part(2), [vd, 1]),
                    mask: self.mask.map(|steps| (part(3), steps)),
                    scale: self.scale,
                    causal: self.causal,
                };
                head.run(sizes, out)?;
            }
            Ok(())
        })
    }
}
