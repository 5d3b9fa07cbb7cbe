//! Pooling of floats for one size of maps: on its own, or after a convolution while lines are in
//! cache. Sums run over a window's pixels in row-major order, in float32.

use std::ops::Range;

use crate::kernels::pooling::{Pooling, Taps};

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reduce {
    Max,
    /// Divided by the number of elements: real ones, or with padding counted, or a fixed divisor.
    Mean {
        count_padding: bool,
        divisor: usize,
    },
}

/// One output index on one axis: real inputs from, to, step; and how many positions count with
/// padding.
pub(crate) type Span = (Range<usize>, usize);

/// Pooling for one size of maps.
#[derive(Debug)]
pub(crate) struct PoolStep {
    spans: [(Vec<Span>, usize); 2],
    reduce: Reduce,
    /// Of the input.
    pub channels: usize,
    pub map: [usize; 2],
}

impl PoolStep {
    pub fn new(
        spans: [(Vec<Span>, usize); 2],
        reduce: Reduce,
        channels: usize,
        map: [usize; 2],
    ) -> Self {
        PoolStep { spans, reduce, channels, map }
    }

    /// Height and width of the output.
    pub fn output(&self) -> [usize; 2] {
        [self.spans[0].0.len(), self.spans[1].0.len()]
    }

    /// The lines of the input that a line of the output is made of, and those between.
    pub fn lines(&self, y: usize) -> Range<usize> {
        self.spans[0].0[y].0.clone()
    }

    /// One pixel of an image of which `x` holds the lines from `first` on.
    pub fn pixel(
        &self,
        pooling: &Pooling,
        x: &[f32],
        first: usize,
        [y, column]: [usize; 2],
        out: &mut [f32],
    ) {
        let [(rows, step_y), (columns, step_x)] = &self.spans;
        let (channels, w) = (self.channels, self.map[1]);
        let ((ys, high), (xs, wide)) = (&rows[y], &columns[column]);
        let taps = Taps {
            first: ((ys.start - first) * w + xs.start) * channels,
            rows: ys.len().div_ceil(*step_y),
            row_stride: step_y * w * channels,
            columns: xs.len().div_ceil(*step_x),
            column_stride: step_x * channels,
        };
        match self.reduce {
            Reduce::Max => pooling.max(x, &taps, out),
            Reduce::Mean { count_padding, divisor } => {
                pooling.sum(x, &taps, out);
                let count = match (divisor, count_padding) {
                    (0, false) => taps.rows * taps.columns,
                    (0, true) => high * wide,
                    (divisor, _) => divisor,
                } as f32;
                for out in out {
                    *out /= count;
                }
            }
        }
    }
}
