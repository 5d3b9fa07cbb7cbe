//! Float pooling for one input size: a layer of its own, or fused into a convolution while its
//! lines are in cache. A window's pixels are added in row-major order, in float32.

use std::ops::Range;

use crate::kernels::pooling::{Pooling, Taps};

/// How a window is reduced to one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reduce {
    Max,
    /// The sum divided by the number of pixels: without padding, with padding, or a fixed divisor
    /// (if it is not 0).
    Mean {
        count_padding: bool,
        divisor: usize,
    },
}

/// One output index on one axis: the range of real inputs, and the number of inputs with padding.
pub(crate) type Span = (Range<usize>, usize);

/// Pooling for one input size.
#[derive(Debug)]
pub(crate) struct PoolStep {
    /// The spans of each axis, and the distance of inputs within a span.
    spans: [(Vec<Span>, usize); 2],
    reduce: Reduce,
    /// Channels of the input.
    pub channels: usize,
    /// Height and width of the input.
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

    /// The input lines from the first to the last one that output line `y` reads.
    pub fn lines(&self, y: usize) -> Range<usize> {
        self.spans[0].0[y].0.clone()
    }

    /// Computes the output pixels of line `y` from column `column` on. `x` holds the image's lines
    /// from line `first` on.
    pub fn pixels(
        &self,
        pooling: &Pooling,
        x: &[f32],
        first: usize,
        [y, column]: [usize; 2],
        out: &mut [f32],
    ) {
        let [(rows, step_y), (columns, step_x)] = &self.spans;
        let (channels, w) = (self.channels, self.map[1]);
        let (ys, high) = &rows[y];
        let mut columns = &columns[column..][..out.len() / channels];
        let mut out = out;
        while let [(xs, wide), ..] = columns {
            let (pixels, stride) = alike(columns);
            let taps = Taps {
                pixels,
                pixel_stride: stride * channels,
                first: ((ys.start - first) * w + xs.start) * channels,
                rows: ys.len().div_ceil(*step_y),
                row_stride: step_y * w * channels,
                columns: xs.len().div_ceil(*step_x),
                column_stride: step_x * channels,
            };
            let (now, rest) = out.split_at_mut(pixels * channels);
            match self.reduce {
                Reduce::Max => pooling.max(x, &taps, now),
                Reduce::Mean { count_padding, divisor } => {
                    pooling.sum(x, &taps, now);
                    let count = match (divisor, count_padding) {
                        (0, false) => taps.rows * taps.columns,
                        (0, true) => high * wide,
                        (divisor, _) => divisor,
                    } as f32;
                    now.iter_mut().for_each(|out| *out /= count);
                }
            }
            (columns, out) = (&columns[pixels..], rest);
        }
    }
}

/// The number of spans from the first one on that have its size and are equally far apart, and
/// their distance.
fn alike(spans: &[Span]) -> (usize, usize) {
    let size = |(range, all): &Span| (range.len(), *all);
    let stride = match spans {
        [first, second, ..] if size(first) == size(second) => {
            second.0.start.checked_sub(first.0.start)
        }
        _ => None,
    };
    let Some(stride) = stride else { return (1, 0) };
    let like_first = |(i, span): (usize, &Span)| {
        size(span) == size(&spans[0]) && span.0.start == spans[0].0.start + i * stride
    };
    (spans.iter().enumerate().take_while(|&found| like_first(found)).count(), stride)
}
