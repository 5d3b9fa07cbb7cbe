//! Bicubic and antialiased interpolation: weighted sums of several pixels on each axis.
//!
//! Weights are computed in float32 by PyTorch's formulas. Columns are blended first, then rows, in
//! one fixed order without fused multiply-add, so bits are equal on all instruction sets. PyTorch
//! fuses some of them, so its results differ in the last places.

use std::sync::Arc;

use super::resize::{orders_of_resized, output_dims};
use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::Result;
use crate::graph::spatial::{Interpolate, Sampling};
use crate::memory;
use crate::parallel;

/// Bicubic interpolation, or bilinear or bicubic interpolation with antialiasing.
#[derive(Debug)]
pub(crate) struct Filtered(pub Interpolate);

/// A pixel that is read, and its weight.
#[derive(Clone, Copy, Debug)]
struct Tap {
    at: usize,
    weight: f32,
}

/// The taps of all output pixels of an axis, one after the other.
#[derive(Debug)]
struct Axis {
    /// For every output pixel, the end of its taps.
    ends: Vec<usize>,
    taps: Vec<Tap>,
}

impl Axis {
    fn of(&self, at: usize) -> &[Tap] {
        &self.taps[if at == 0 { 0 } else { self.ends[at - 1] }..self.ends[at]]
    }
}

/// The cubic function of a distance, with PyTorch's constant `a`.
fn cubic(x: f32, a: f32) -> f32 {
    match x.abs() {
        x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}

impl Filtered {
    /// Calls `tap` for every pixel and weight that output pixel `at` reads.
    fn taps(&self, at: usize, ratio: f32, input: usize, mut tap: impl FnMut(usize, f32)) {
        let Sampling::Filter { cubic: is_cubic, antialias, align_corners } = self.0.sampling else {
            return;
        };
        if !antialias {
            let place =
                if align_corners { ratio * at as f32 } else { ratio * (at as f32 + 0.5) - 0.5 };
            let first = (place.floor() as i64).min(input as i64 - 1);
            let t = (place - first as f32).clamp(0.0, 1.0);
            for (i, distance) in (-1..).zip([t + 1.0, t, 1.0 - t, 2.0 - t]) {
                let at = (first + i).clamp(0, input as i64 - 1) as usize;
                tap(at, cubic(distance, -0.75));
            }
            return;
        }
        let (scale, reach) = (ratio.max(1.0), if is_cubic { 2.0 } else { 1.0 });
        let (center, support) = (ratio * (at as f32 + 0.5), reach * scale);
        let first = (center - support + 0.5).max(0.0) as usize;
        let last = ((center + support + 0.5) as usize).min(input);
        let weight = |at: usize| {
            let x = (at as f32 - center + 0.5) / scale;
            if is_cubic { cubic(x, -0.5) } else { (1.0 - x.abs()).max(0.0) }
        };
        let total: f32 = (first..last).map(weight).sum();
        for at in first..last {
            tap(at, if total == 0.0 { 0.0 } else { weight(at) / total });
        }
    }

    fn axis(&self, ratio: f32, input: usize, output: usize) -> Result<Axis> {
        let mut count = 0;
        let mut ends = memory::filled("pixels of an interpolation", output, 0)?;
        for (at, end) in ends.iter_mut().enumerate() {
            self.taps(at, ratio, input, |_, _| count += 1);
            *end = count;
        }
        let mut taps = memory::filled("pixels of a filter", count, Tap { at: 0, weight: 0.0 })?;
        let mut rest = taps.iter_mut();
        for at in 0..output {
            self.taps(at, ratio, input, |at, weight| {
                if let Some(tap) = rest.next() {
                    *tap = Tap { at, weight };
                }
            });
        }
        Ok(Axis { ends, taps })
    }
}

/// Upper bound of taps per output pixel, plus taps per input pixel.
const MAX_TAPS: u128 = 6;

impl Operation for Filtered {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (dims, from) = (output_dims(&self.0, inputs)?, inputs[0].dims);
        let pixels = [dims.map, from.map].concat().iter().map(|&n| n as u128).sum::<u128>();
        let row = (from.map[1].max(dims.map[1]) as u128 + 1) * dims.channels as u128 * 4;
        let bytes = pixels * MAX_TAPS * size_of::<Tap>() as u128 + row;
        Ok((Value::float(dims), Cost { bytes, ..Cost::of(&dims, 16) }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, from) = (self.measure(inputs)?.0, inputs[0].dims);
        let axis = |axis: usize| {
            let (input, output) = (from.map[axis], output.dims.map[axis]);
            self.axis(self.0.ratio(axis, input, output), input, output)
        };
        let (rows, columns) = (axis(0)?, axis(1)?);
        Ok((output, Box::new(FilterStep { rows, columns, map: from.map, channels: from.channels })))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        orders_of_resized(inputs)
    }
}

#[derive(Debug)]
struct FilterStep {
    rows: Axis,
    columns: Axis,
    map: [usize; 2],
    channels: usize,
}

impl ExecutableOp for FilterStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out, channels) = (inputs[0].floats(), out.floats(), self.channels);
        let ([h, w], row) = (self.map, self.columns.ends.len() * channels);
        if out.is_empty() {
            return Ok(());
        }
        let (cost, count) = (out.len().saturating_mul(64), self.rows.ends.len());
        parallel::try_for_each_rows(out, row, 1, cost, |first, out| {
            let mut blended = memory::filled("row of an interpolation", row, 0.0f32)?;
            for (at, out) in (first..).zip(out.chunks_exact_mut(row)) {
                out.fill(0.0);
                for y in self.rows.of(at % count) {
                    let line = &x[((at / count) * h + y.at) * w * channels..][..w * channels];
                    self.blend_columns(line, &mut blended);
                    for (out, blended) in out.iter_mut().zip(&blended) {
                        *out += y.weight * blended;
                    }
                }
            }
            Ok(())
        })
    }
}

impl FilterStep {
    fn blend_columns(&self, line: &[f32], out: &mut [f32]) {
        for (column, out) in out.chunks_exact_mut(self.channels).enumerate() {
            out.fill(0.0);
            for tap in self.columns.of(column) {
                let pixel = &line[tap.at * self.channels..][..self.channels];
                for (out, x) in out.iter_mut().zip(pixel) {
                    *out += tap.weight * x;
                }
            }
        }
    }
}
