//! Pooling of floats. A window is summed in float32, pixel by pixel in row-major order.

use std::sync::Arc;

use crate::conv::ConvShape;
use crate::conv::pooling::{PoolStep, Reduce, Span};
use crate::engine::ops::elementwise::in_rows;
use crate::engine::value::{Cost, Dims, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::error::{Result, bad_value};
use crate::graph::ConvParams;
use crate::kernels::pooling::pooling;
use crate::memory;
use crate::window::AxisParams;

/// Height and width after pooling, by PyTorch's rules. With `ceil_mode` the last window may extend
/// past the edge if it starts inside the input or its left padding.
pub(crate) fn output_map(shape: &ConvShape, ceil_mode: bool) -> Result<[usize; 2]> {
    if !ceil_mode {
        return shape.output().and_then(check_map);
    }
    let mut out = [0; 2];
    for (axis, out) in out.iter_mut().enumerate() {
        let (params, input) = (shape.axis(axis), shape.input[axis]);
        let AxisParams { kernel, stride, padding, dilation } = params;
        if kernel == 0
            || dilation == 0
            || stride == 0
            || [kernel, dilation, padding, input].iter().any(|v| *v >= LIMIT)
        {
            return bad_value(
                "pooling",
                format!("a window of at least 1 and below {LIMIT}"),
                format!("{shape:?}"),
            );
        }
        // `ceil_mode` allows a window larger than the map if it starts inside.
        match params.count_ceil(input) {
            Some(count) => *out = count,
            None => {
                return bad_value(
                    "pooling",
                    "a window that starts inside the map",
                    format!("{shape:?}"),
                );
            }
        }
    }
    check_map(out)
}

/// Sizes of maps, windows and strides must be below this limit.
const LIMIT: usize = 1 << 24;

fn check_map(map: [usize; 2]) -> Result<[usize; 2]> {
    if map.iter().any(|side| *side >= LIMIT) {
        return bad_value(
            "pooling",
            format!("at most {LIMIT} pixels on a side"),
            format!("{map:?}"),
        );
    }
    Ok(map)
}

/// How windows are placed on the map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Windows {
    Fixed {
        window: ConvParams,
        ceil_mode: bool,
    },
    /// This number of windows on each axis (0: the input's size). Window `i` covers pixels
    /// `⌊i·in/out⌋` to `⌈(i+1)·in/out⌉`.
    Adaptive([usize; 2]),
    /// One window over the whole map.
    Whole,
}

/// Pooling over floats.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub windows: Windows,
    pub reduce: Reduce,
    /// Number of spatial axes of the output; `None`: as the input.
    pub axes: Option<usize>,
}

/// Bytes of the window tables for an output of this height and width.
pub(crate) fn table_bytes(map: [usize; 2]) -> u128 {
    (map[0] as u128 + map[1] as u128) * size_of::<Span>() as u128
}

impl Pool {
    /// Height and width of the result, and the largest window on each axis.
    fn sizes(&self, dims: &Dims) -> Result<([usize; 2], [usize; 2])> {
        let input = dims.map;
        if input.contains(&0) {
            return bad_value("pooling", "a map with pixels in it", format!("{input:?}"));
        }
        match self.windows {
            Windows::Whole => Ok(([1, 1], input)),
            Windows::Adaptive(sizes) => {
                let out =
                    [0, 1].map(|axis| if sizes[axis] == 0 { input[axis] } else { sizes[axis] });
                check_map(out)?;
                check_map(input)?;
                Ok((out, [0, 1].map(|axis| (input[axis] / out[axis] + 2).min(input[axis]))))
            }
            Windows::Fixed { window, ceil_mode } => {
                let out = output_map(&window.over(dims), ceil_mode)?;
                Ok((out, [0, 1].map(|axis| window.kernel[axis].min(input[axis]))))
            }
        }
    }

    fn spans(&self, dims: &Dims) -> Result<[(Vec<Span>, usize); 2]> {
        let (map, _) = self.sizes(dims)?;
        let collected = |out: usize, span: &dyn Fn(usize) -> Span| {
            memory::collected("windows of a pooling", (0..out).map(span))
        };
        let axis = |axis: usize| -> Result<(Vec<Span>, usize)> {
            let (input, out) = (dims.map[axis], map[axis]);
            match self.windows {
                Windows::Whole => Ok((vec![(0..input, input)], 1)), // small: one
                Windows::Adaptive(_) => {
                    let span = |i: usize| {
                        let range = i * input / out..((i + 1) * input).div_ceil(out);
                        (range.clone(), range.len())
                    };
                    Ok((collected(out, &span)?, 1))
                }
                Windows::Fixed { window, .. } => {
                    let shape = window.over(dims);
                    let (kernel, step, padding) =
                        (window.kernel[axis], window.dilation[axis], window.padding[axis]);
                    let span = |i: usize| {
                        let start = i * window.stride[axis];
                        let end = start + (kernel - 1) * step + 1;
                        let skipped = padding.saturating_sub(start).div_ceil(step) * step;
                        let first = (start + skipped).saturating_sub(padding);
                        let last = (end.saturating_sub(padding)).min(input);
                        // The divisor counts padding, but not what `ceil_mode` adds past it.
                        (first..last, end.min(input + 2 * padding) - start)
                    };
                    let spans = collected(out, &span)?;
                    match spans.iter().all(|(range, _)| range.start < range.end) {
                        true => Ok((spans, step)),
                        false => bad_value(
                            "pooling",
                            "windows that each contain a pixel",
                            format!("{shape:?}"),
                        ),
                    }
                }
            }
        };
        Ok([axis(0)?, axis(1)?])
    }
}

impl Operation for Pool {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (out, cost) = self.measure_dims(&inputs[0].dims)?;
        Ok((Value::float(out), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (out, step) = self.step(inputs[0].dims)?;
        Ok((Value::float(out), Box::new(step)))
    }
}

impl Pool {
    /// Dimensions of the result for an input of dimensions `dims`, and the cost.
    pub fn measure_dims(&self, dims: &Dims) -> Result<(Dims, Cost)> {
        let (map, window) = self.sizes(dims)?;
        let out = Dims { map, axes: self.axes.unwrap_or(dims.axes), ..*dims };
        let taps = window[0].saturating_mul(window[1]);
        Ok((out, Cost { bytes: table_bytes(map), ..Cost::of(&out, taps) }))
    }

    /// The largest number of input lines that one output line reads.
    pub fn window_lines(&self, dims: &Dims) -> usize {
        self.sizes(dims).map_or(0, |(_, window)| window[0])
    }

    /// Dimensions of the result for an input of dimensions `dims`, and the pooling to run.
    pub fn step(&self, dims: Dims) -> Result<(Dims, PoolStep)> {
        let spans = self.spans(&dims)?;
        let map = [spans[0].0.len(), spans[1].0.len()];
        let out = Dims { map, axes: self.axes.unwrap_or(dims.axes), ..dims };
        Ok((out, PoolStep::new(spans, self.reduce, dims.channels, dims.map)))
    }
}

impl ExecutableOp for PoolStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, [rows, columns]) = (inputs[0].floats(), self.output());
        let (channels, [h, w]) = (self.channels, self.map);
        let pooling = pooling()?;
        in_rows(out.floats(), channels, |first, out| {
            let (mut at, mut out) = (first, out);
            while !out.is_empty() {
                let (image, y, column) = (at / (rows * columns), at / columns % rows, at % columns);
                let pixels = (columns - column).min(out.len() / channels);
                let (now, rest) = out.split_at_mut(pixels * channels);
                self.pixels(&pooling, &x[image * h * w * channels..], 0, [y, column], now);
                (at, out) = (at + pixels, rest);
            }
            Ok(())
        })
    }
}
