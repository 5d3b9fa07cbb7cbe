//! Reductions, normalisations and softmax: plain loops with a fixed order of additions.
//!
//! Sums use float64 in sixteen lanes, which are then added pairwise as a tree. So the bits of a
//! result depend only on sizes, not on the instruction set or the number of threads.

use super::isa::Simd;
use super::vector::{Level, VectorLoop};
use crate::error::Result;
use crate::scalar;

const LANES: usize = 16;

/// The operation that a reduction folds with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    Sum(Term),
    Max,
    Min,
}

/// The number that a sum takes from each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    Element,
    Magnitude,
    Square,
    /// The square of the distance to the mean, which another pass computes first.
    SquaredDistance,
}

/// The sum of elements.
const ELEMENTS: Fold = Fold::Sum(Term::Element);

impl Fold {
    /// The number that an element adds to the reduction.
    #[inline(always)]
    fn value(self, x: f32, mean: f64) -> f64 {
        let x = f64::from(x);
        match self {
            Fold::Sum(Term::Magnitude) => x.abs(),
            Fold::Sum(Term::Square) => x * x,
            Fold::Sum(Term::SquaredDistance) => (x - mean) * (x - mean),
            _ => x,
        }
    }

    fn start(self) -> f64 {
        match self {
            Fold::Sum(_) => 0.0,
            Fold::Max => f64::NEG_INFINITY,
            Fold::Min => f64::INFINITY,
        }
    }

    /// Combines two numbers. Maximum and minimum return NaN if either is NaN.
    #[inline(always)]
    fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Fold::Sum(_) => a + b,
            Fold::Max if a >= b || a.is_nan() => a,
            Fold::Min if a <= b || a.is_nan() => a,
            _ => b,
        }
    }
}

/// Reduces the lanes pairwise, as a tree.
#[inline(always)]
fn reduce_lanes(mut lanes: [f64; LANES], fold: Fold) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = fold.join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn fold_row(x: &[f32], fold: Fold, value: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [fold.start(); LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = fold.join(*lane, value(v));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = fold.join(*lane, value(v));
    }
    reduce_lanes(lanes, fold)
}

/// Size and stride of a dimension.
pub(crate) type Dim = (usize, usize);

/// Calls `visit` with the offset of every index of the dimensions.
#[inline(always)]
fn for_each_offset(dims: &[Dim], mut visit: impl FnMut(usize)) {
    let count: usize = dims.iter().map(|dim| dim.0).product();
    let mut index = [0usize; 8];
    let mut at = 0;
    for _ in 0..count {
        visit(at);
        for (i, &(size, step)) in dims.iter().enumerate().rev() {
            index[i] += 1;
            at += step;
            if index[i] < size {
                break;
            }
            at -= size * step;
            index[i] = 0;
        }
    }
}

/// A reduction that computes the results from number `first` on.
pub(crate) struct Reduce<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [f32],
    pub first: usize,
    /// Dimensions that are kept and those that are reduced, at most eight each, the innermost in
    /// memory last.
    pub kept: &'a [Dim],
    pub reduced: &'a [Dim],
    pub fold: Fold,
    /// Divides a sum, to make a mean.
    pub divisor: f64,
    /// Whether the result is the square root.
    pub root: bool,
}

impl VectorLoop for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.fold {
            Fold::Sum(Term::Element) => self.reduce(ELEMENTS),
            Fold::Sum(Term::Magnitude) => self.reduce(Fold::Sum(Term::Magnitude)),
            Fold::Sum(Term::Square) => self.reduce(Fold::Sum(Term::Square)),
            Fold::Sum(Term::SquaredDistance) => self.reduce(Fold::Sum(Term::SquaredDistance)),
            Fold::Max => self.reduce(Fold::Max),
            Fold::Min => self.reduce(Fold::Min),
        }
    }
}

impl Reduce<'_> {
    /// The offset of a result's first element.
    #[inline(always)]
    fn base(&self, result: usize) -> usize {
        let (mut rest, mut at) = (result, 0);
        for &(size, step) in self.kept.iter().rev() {
            at += rest % size * step;
            rest /= size;
        }
        at
    }

    #[inline(always)]
    fn reduce(self, fold: Fold) {
        match self.kept.last() {
            Some(&(size, 1)) => self.columns(fold, size),
            _ => self.rows(fold),
        }
    }

    /// Reduces up to [`LANES`] results together. Their elements are contiguous, as are the results.
    #[inline(always)]
    fn columns(self, fold: Fold, size: usize) {
        let (mut done, count) = (0, self.count());
        let finish = finish(self.divisor, self.root);
        while done < self.out.len() {
            let result = self.first + done;
            let width = LANES.min(size - result % size).min(self.out.len() - done);
            let base = self.base(result);
            let mut means = [0.0; LANES];
            if fold == Fold::Sum(Term::SquaredDistance) {
                means = self.fold_columns(ELEMENTS, base, width, [0.0; LANES]);
                means.iter_mut().for_each(|mean| *mean /= count);
            }
            let lanes = self.fold_columns(fold, base, width, means);
            for (y, lane) in self.out[done..done + width].iter_mut().zip(lanes) {
                *y = finish(lane);
            }
            done += width;
        }
    }

    /// Folds `width` neighbouring results.
    #[inline(always)]
    fn fold_columns(
        &self,
        fold: Fold,
        base: usize,
        width: usize,
        means: [f64; LANES],
    ) -> [f64; LANES] {
        let mut lanes = [fold.start(); LANES];
        for_each_offset(self.reduced, |at| {
            let x = &self.x[base + at..][..width];
            match <&[f32; LANES]>::try_from(x) {
                Ok(x) => (0..LANES)
                    .for_each(|i| lanes[i] = fold.join(lanes[i], fold.value(x[i], means[i]))),
                Err(_) => (0..width)
                    .for_each(|i| lanes[i] = fold.join(lanes[i], fold.value(x[i], means[i]))),
            }
        });
        lanes
    }

    #[inline(always)]
    fn rows(self, fold: Fold) {
        let (count, finish) = (self.count(), finish(self.divisor, self.root));
        for i in 0..self.out.len() {
            let base = self.base(self.first + i);
            let mut mean = 0.0;
            if fold == Fold::Sum(Term::SquaredDistance) {
                mean = self.fold_elements(ELEMENTS, base, 0.0) / count;
            }
            self.out[i] = finish(self.fold_elements(fold, base, mean));
        }
    }

    /// Folds one result.
    #[inline(always)]
    fn fold_elements(&self, fold: Fold, base: usize, mean: f64) -> f64 {
        let mut all = fold.start();
        match self.reduced.split_last() {
            Some((&(size, 1), outer)) => for_each_offset(outer, |at| {
                let row = &self.x[base + at..][..size];
                all = fold.join(all, fold_row(row, fold, |v| fold.value(v, mean)));
            }),
            _ => for_each_offset(self.reduced, |at| {
                all = fold.join(all, fold.value(self.x[base + at], mean))
            }),
        }
        all
    }

    /// The number of elements of every result.
    fn count(&self) -> f64 {
        self.reduced.iter().map(|dim| dim.0).product::<usize>() as f64
    }
}

/// Divides a sum, takes the root if asked, and rounds once.
#[inline(always)]
fn finish(divisor: f64, root: bool) -> impl Fn(f64) -> f32 {
    move |sum| if root { (sum / divisor).sqrt() as f32 } else { (sum / divisor) as f32 }
}

/// Normalises one row: `(x - mean) / √(variance + eps)`, then `* weight + bias`.
pub(crate) struct NormalizeRow<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [f32],
    /// Whether to subtract the mean.
    pub centered: bool,
    pub eps: f64,
    /// One weight for every `run` elements; `bias` alike.
    pub weight: Option<&'a [f32]>,
    pub bias: Option<&'a [f32]>,
    /// Consecutive elements that share a weight.
    pub run: usize,
}

impl VectorLoop for NormalizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let NormalizeRow { x, out, centered, eps, weight, bias, run } = self;
        let count = x.len() as f64;
        let mean = if centered { fold_row(x, ELEMENTS, f64::from) / count } else { 0.0 };
        let square = |v: f32| (f64::from(v) - mean) * (f64::from(v) - mean);
        let inverse = (1.0 / (fold_row(x, ELEMENTS, square) / count + eps).sqrt()) as f32;
        let mean = mean as f32;
        for (y, &v) in out.iter_mut().zip(x) {
            *y = (v - mean) * inverse;
        }
        if run == 1 {
            if let Some(weight) = weight {
                out.iter_mut().zip(weight).for_each(|(y, &w)| *y *= w);
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
            }
            return;
        }
        for (c, out) in out.chunks_mut(run.max(1)).enumerate() {
            let (w, b) = (weight.map_or(1.0, |w| w[c]), bias.map_or(0.0, |b| b[c]));
            out.iter_mut().for_each(|y| *y = *y * w + b);
        }
    }
}

/// Softmax over blocks of `size × inner` elements, along `size`.
pub(crate) struct Softmax<'a> {
    pub x: &'a mut [f32],
    pub size: usize,
    pub inner: usize,
    /// Whether to compute log-softmax.
    pub log: bool,
}

impl VectorLoop for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Softmax { x, size, inner, log } = self;
        for block in x.chunks_exact_mut((size * inner).max(1)) {
            if inner == 1 {
                softmax_row(block, log);
            } else {
                softmax_columns(block, inner, log);
            }
        }
    }
}

#[inline(always)]
fn softmax_row(row: &mut [f32], log: bool) {
    let max = fold_row(row, Fold::Max, f64::from) as f32;
    if log {
        let sum = fold_row(row, ELEMENTS, |v| f64::from(scalar::exp(v - max)));
        let ln = scalar::ln(sum);
        row.iter_mut().for_each(|v| *v = (f64::from(*v - max) - ln) as f32);
        return;
    }
    row.iter_mut().for_each(|v| *v = scalar::exp(*v - max));
    let inverse = 1.0 / fold_row(row, ELEMENTS, f64::from);
    row.iter_mut().for_each(|v| *v = (f64::from(*v) * inverse) as f32);
}

#[inline(always)]
fn softmax_columns(block: &mut [f32], inner: usize, log: bool) {
    for first in (0..inner).step_by(LANES) {
        let last = (first + LANES).min(inner);
        let (mut max, mut sum) = ([f32::NEG_INFINITY; LANES], [0f64; LANES]);
        for row in block.chunks_exact(inner) {
            max.iter_mut()
                .zip(&row[first..last])
                .for_each(|(m, &v)| *m = if v > *m { v } else { *m });
        }
        for row in block.chunks_exact_mut(inner) {
            for (i, v) in row[first..last].iter_mut().enumerate() {
                let e = scalar::exp(*v - max[i]);
                sum[i] += f64::from(e);
                *v = if log { *v - max[i] } else { e };
            }
        }
        let factor = sum.map(|sum| if log { scalar::ln(sum) } else { 1.0 / sum });
        for row in block.chunks_exact_mut(inner) {
            for (v, factor) in row[first..last].iter_mut().zip(factor) {
                let wide = f64::from(*v);
                *v = if log { wide - factor } else { wide * factor } as f32;
            }
        }
    }
}

/// Turns attention scores into weights: `softmax(scores * scale + mask)` per row. A fully masked
/// row becomes 0.
pub(crate) struct AttentionSoftmax<'a> {
    pub scores: &'a mut [f32],
    pub size: usize,
    pub scale: f32,
    /// The mask, which is added to the scores, and its row and column strides.
    pub mask: Option<(&'a [f32], [usize; 2])>,
    /// For a causal mask: the number of columns that the first row sees. Each further row sees one
    /// more.
    pub visible: Option<usize>,
}

impl VectorLoop for AttentionSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (i, row) in self.scores.chunks_exact_mut(self.size.max(1)).enumerate() {
            let visible = self.visible.map_or(self.size, |first| (first + i).min(self.size));
            let (row, hidden) = row.split_at_mut(visible);
            hidden.fill(0.0);
            row.iter_mut().for_each(|v| *v *= self.scale);
            if let Some((mask, [down, right])) = self.mask {
                let mask = &mask[i * down..];
                row.iter_mut().enumerate().for_each(|(j, v)| *v += mask[j * right]);
            }
            if fold_row(row, Fold::Max, f64::from) == f64::NEG_INFINITY {
                row.fill(0.0);
            } else {
                softmax_row(row, false);
            }
        }
    }
}

/// Runs a loop with the best CPU features available.
pub(crate) fn run<L: VectorLoop>(work: L) -> Result<L::Output> {
    Ok(Level::usable()?.run(work))
}
