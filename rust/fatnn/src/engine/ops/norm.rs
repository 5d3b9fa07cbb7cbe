//! Normalisations that compute mean and variance in every run: LayerNorm, RMSNorm, GroupNorm and
//! InstanceNorm.

use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value, check_len};
use crate::graph::op::{Norm, NormOver};
use crate::kernels::rows::{NormalizeRow, run};
use crate::memory;
use crate::parallel;

/// A normalisation, with its weight and bias.
#[derive(Debug)]
pub(crate) struct Normalize {
    pub norm: Norm,
    pub weight: Option<Vec<f32>>,
    pub bias: Option<Vec<f32>>,
}

impl Normalize {
    /// Elements that are normalised together (a row); number of rows after which the weights
    /// repeat; consecutive elements that share a weight.
    fn sizes(&self, shape: &[usize]) -> Result<(usize, usize, usize)> {
        let wrong = || bad_value("normalisation", "a shape that suits it", format!("{shape:?}"));
        let counted =
            |sizes: &[usize]| memory::product(sizes.iter().copied()).unwrap_or(usize::MAX);
        let (row, repeat, run, constants) = match self.norm.over {
            NormOver::Last(dims) => match shape.len().checked_sub(dims) {
                Some(at) => (counted(&shape[at..]), 1, 1, counted(&shape[at..])),
                None => return wrong(),
            },
            NormOver::Groups(groups) => match shape {
                &[_, channels, ref pixels @ ..]
                    if groups > 0 && channels.is_multiple_of(groups) =>
                {
                    let pixels = counted(pixels);
                    ((channels / groups).saturating_mul(pixels), groups, pixels, channels)
                }
                _ => return wrong(),
            },
            NormOver::Channels => match shape {
                &[_, channels, ref pixels @ ..] => {
                    let pixels = counted(pixels);
                    (pixels, channels, pixels, channels)
                }
                _ => return wrong(),
            },
        };
        for constant in [&self.weight, &self.bias].into_iter().flatten() {
            check_len("constants of a normalisation", constants, constant.len())?;
        }
        Ok((row, repeat, run))
    }
}

impl Operation for Normalize {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let shape = inputs[0].shape();
        self.sizes(&shape)?;
        let output = Value::row_major(&shape)?;
        Ok((output, Cost::of(&output.dims, 8)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let sizes = self.sizes(&inputs[0].shape())?;
        Ok((self.measure(inputs)?.0, Box::new(NormalizeStep { normalize: self, sizes })))
    }

    fn orders(&self, _: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![Order::RowMajor], Order::RowMajor) // small: one
    }
}

#[derive(Debug)]
struct NormalizeStep {
    normalize: Arc<Normalize>,
    sizes: (usize, usize, usize),
}

impl ExecutableOp for NormalizeStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out, (row, repeat, share)) = (inputs[0].floats(), out.floats(), self.sizes);
        let Normalize { norm, weight, bias } = &*self.normalize;
        if out.is_empty() {
            return Ok(());
        }
        let (cost, count) = (out.len().saturating_mul(16), row / share);
        parallel::try_for_each_rows(out, row, 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let part = |all: &'_ Option<Vec<f32>>| {
                    let at = (first + i) % repeat * count;
                    all.as_ref().map(|_| at..at + count)
                };
                run(NormalizeRow {
                    x: &x[(first + i) * row..][..row],
                    out,
                    centered: norm.centered,
                    eps: f64::from(norm.eps),
                    weight: part(weight).and_then(|at| weight.as_ref()?.get(at)),
                    bias: part(bias).and_then(|at| bias.as_ref()?.get(at)),
                    run: share,
                })?;
            }
            Ok(())
        })
    }
}
