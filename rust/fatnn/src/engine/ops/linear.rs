//! Float32 convolution and linear layers, computed by the `gemm` crate, or by
//! [`crate::kernels::depthwise_float`] if each channel has its own group.
//!
//! These are usually the first and last layer of a network. A convolution gathers the windows of
//! [`BLOCK`] output pixels and multiplies them with the weights while they are in cache. Blocks,
//! and so results, do not depend on the number of threads. Across instruction sets, float32 sums
//! may round differently, as in every float library.

use std::cell::RefCell;
use std::sync::Arc;

use crate::conv::ConvShape;
use crate::engine::value::{
    Cost, Dims, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::kernels::{PADDING, apply_all, depthwise_float, matmul};
use crate::memory;
use crate::parallel;

/// Output pixels whose windows are gathered and multiplied together.
const BLOCK: usize = 64;

/// A float convolution; a linear layer is one whose window is a single pixel.
#[derive(Debug)]
pub(crate) struct FloatConv {
    window: ConvParams,
    groups: usize,
    channels: usize,
    out_channels: usize,
    /// Per group: a row-major matrix of `kernel × channels/groups` rows and `out_channels/groups`
    /// columns. For a depthwise convolution: the channels of each tap in turn.
    weight: Vec<f32>,
    axes: usize,
    /// The bias if there is one, then the elementwise functions of the output.
    post: Vec<Elementwise>,
}

/// Whether each channel has its own group and one output channel.
fn is_depthwise(groups: usize, channels: usize, out_channels: usize) -> bool {
    groups == channels && channels == out_channels
}

impl FloatConv {
    /// `weight` has PyTorch's layout: out channels, channels / groups, kernel height, kernel width.
    pub fn new(
        weight: &[f32],
        [out_channels, group_channels, kh, kw]: [usize; 4],
        bias: Option<Vec<f32>>,
        window: ConvParams,
        groups: usize,
        axes: usize,
    ) -> Result<Self> {
        if groups == 0
            || out_channels == 0
            || !out_channels.is_multiple_of(groups)
            || group_channels == 0
        {
            return bad_value(
                "groups",
                format!("a divisor of the {out_channels} output channels"),
                groups,
            );
        }
        check_len("bias", out_channels, bias.as_ref().map_or(out_channels, Vec::len))?;
        let sizes = [out_channels, group_channels, kh, kw];
        let elements = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if elements != Some(weight.len()) || weight.is_empty() {
            return bad_value(
                "weight",
                "a shape of as many elements as the tensor has, all sizes at least 1",
                format!("{sizes:?}"),
            );
        }
        let (taps, group_out) = (kh * kw, out_channels / groups);
        let channels = group_channels * groups;
        let mut packed = memory::filled("weights of a float layer", weight.len(), 0.0)?;
        for n in 0..out_channels {
            let (group, column) = (n / group_out, n % group_out);
            for c in 0..group_channels {
                for t in 0..taps {
                    let row = (group * taps + t) * group_channels + c;
                    let to = if is_depthwise(groups, channels, out_channels) {
                        t * out_channels + n
                    } else {
                        row * group_out + column
                    };
                    packed[to] = weight[(n * group_channels + c) * taps + t];
                }
            }
        }
        let post = bias.map(Elementwise::Bias).into_iter().collect();
        Ok(FloatConv { window, groups, channels, out_channels, weight: packed, axes, post })
    }
}

impl FloatConv {
    fn is_depthwise(&self) -> bool {
        is_depthwise(self.groups, self.channels, self.out_channels)
    }

    /// The same layer, followed by elementwise functions.
    pub fn with(mut self, functions: Vec<Elementwise>) -> Self {
        self.post.extend(functions);
        self
    }
}

impl Operation for FloatConv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let kernel = if self.is_depthwise() { "depthwise-f32" } else { "gemm-f32" };
        vec![(name, kernel, size_of_val(self.weight.as_slice()))] // small: one
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = inputs[0].dims;
        check_len("channels", self.channels, dims.channels)?;
        check_channels(&self.post, self.out_channels)?;
        if dims.axes != self.axes {
            let expected = format!("images, channels and {} spatial axes", self.axes);
            return bad_value(
                "a float layer's input",
                expected,
                format!("shape {:?}", dims.shape()),
            );
        }
        let map = self.window.over(&dims).output()?;
        let out = Dims { images: dims.images, channels: self.out_channels, map, axes: self.axes };
        let reduction = self.weight.len() / self.out_channels;
        let bytes = (BLOCK * size_of::<f32>()) as u128
            * reduction.saturating_add(self.out_channels) as u128;
        let output = if self.axes == 0 {
            inputs[0].with_channels(self.out_channels)
        } else {
            Value::float(out)
        };
        Ok((output, Cost { bytes, ..Cost::of(&out, reduction) }))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        let order = if self.axes == 0 && inputs[0].rank != 2 {
            Order::RowMajor
        } else {
            Order::ChannelsLast
        };
        (vec![order], order) // small: one
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (value, shape) = (self.measure(inputs)?.0, self.window.over(&inputs[0].dims));
        Ok((value, Box::new(FloatConvStep { conv: self, shape, map: value.dims.map })))
    }
}

#[derive(Debug)]
struct FloatConvStep {
    conv: Arc<FloatConv>,
    shape: ConvShape,
    map: [usize; 2],
}

thread_local! {
    /// Windows of a block, and results of a group. The buffers are kept between calls, so only the
    /// first run allocates.
    static WINDOWS: RefCell<(Vec<f32>, Vec<f32>)> =
        const { RefCell::new((Vec::new(), Vec::new())) };
    /// Offsets of the taps of a block of a depthwise convolution, kept likewise.
    static OFFSETS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Sets the length of a buffer to `len`; its contents are unspecified.
fn resize_scratch(buffer: &mut Vec<f32>, len: usize) -> Result<()> {
    buffer.truncate(len);
    memory::grow("windows of a float convolution", buffer, len, 0.0)
}

impl FloatConvStep {
    /// Computes the pixels of `out` of a depthwise convolution, the first of which is number
    /// `first` of all images'.
    fn depthwise(&self, x: &[f32], first: usize, out: &mut [f32]) -> Result<()> {
        let (shape, n) = (&self.shape, self.conv.out_channels);
        let ([h, w], [kh, kw]) = (shape.input, shape.kernel);
        OFFSETS.with_borrow_mut(|offsets| {
            for (b, out) in out.chunks_mut(BLOCK * n).enumerate() {
                offsets.clear();
                memory::reserve("taps of a float convolution", offsets, out.len() / n * kh * kw)?;
                for pixel in first + b * BLOCK..first + b * BLOCK + out.len() / n {
                    let (line, x) = (pixel / self.map[1], pixel % self.map[1]);
                    let (image, y) = (line / self.map[0], line % self.map[0]);
                    for ky in 0..kh {
                        let row = shape.input_at(0, y, ky).map(|y| (image * h + y) * w);
                        offsets.extend((0..kw).map(|kx| {
                            let at = row.zip(shape.input_at(1, x, kx));
                            at.map_or(PADDING, |(row, x)| (row + x) * n)
                        }));
                    }
                }
                depthwise_float(x, &self.conv.weight, offsets, n, out)?;
                apply_all(&self.conv.post, out, n)?;
            }
            Ok(())
        })
    }

    /// Copies one group's windows of the output pixels from `first` on into `windows`, one after
    /// the other.
    fn gather(&self, x: &[f32], first: usize, group: usize, windows: &mut [f32]) {
        let (shape, conv) = (&self.shape, &*self.conv);
        let ([h, w], [kh, kw], per_group) =
            (shape.input, shape.kernel, conv.channels / conv.groups);
        for (i, window) in windows.chunks_exact_mut(kh * kw * per_group).enumerate() {
            let (image, at) = (
                (first + i) / (self.map[0] * self.map[1]),
                (first + i) % (self.map[0] * self.map[1]),
            );
            let corner = [at / self.map[1], at % self.map[1]];
            let inside = |axis: usize, tap: usize| shape.input_at(axis, corner[axis], tap);
            for (ky, row) in window.chunks_exact_mut(kw * per_group).enumerate() {
                let Some(y) = inside(0, ky) else {
                    row.fill(0.0);
                    continue;
                };
                let line = ((image * h + y) * w) * conv.channels;
                // The usual case: the whole row of taps is contiguous.
                if conv.groups == 1
                    && shape.dilation[1] == 1
                    && let (Some(from), Some(_)) = (inside(1, 0), inside(1, kw - 1))
                {
                    row.copy_from_slice(&x[line + from * per_group..][..row.len()]);
                    continue;
                }
                for (kx, tap) in row.chunks_exact_mut(per_group).enumerate() {
                    match inside(1, kx) {
                        None => tap.fill(0.0),
                        Some(at) => tap.copy_from_slice(
                            &x[line + at * conv.channels + group * per_group..][..per_group],
                        ),
                    }
                }
            }
        }
    }
}

impl ExecutableOp for FloatConvStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, out, conv) = (inputs[0].floats(), out.floats(), &*self.conv);
        let n = conv.out_channels;
        let (group_n, k) = (n / conv.groups, conv.weight.len() / n);
        // A float multiply-accumulate costs about eight ternary ones.
        let cost = out.len().saturating_mul(k).saturating_mul(8);
        if conv.is_depthwise() {
            let work = |first, out: &mut [f32]| self.depthwise(x, first, out);
            return parallel::try_for_each_rows(out, n, BLOCK, cost, work);
        }
        parallel::try_for_each_rows(out, n, BLOCK, cost, |first, out| {
            WINDOWS.with_borrow_mut(|(windows, part)| {
                for (b, out) in out.chunks_mut(BLOCK * n).enumerate() {
                    let m = out.len() / n;
                    resize_scratch(windows, m * k)?;
                    resize_scratch(part, if conv.groups == 1 { 0 } else { m * group_n })?;
                    for group in 0..conv.groups {
                        self.gather(x, first + b * BLOCK, group, windows);
                        let weight = &conv.weight[group * k * group_n..][..k * group_n];
                        if conv.groups == 1 {
                            matmul(m, n, k, windows, weight, out);
                        } else {
                            matmul(m, group_n, k, windows, weight, part);
                            for (out, part) in
                                out.chunks_exact_mut(n).zip(part.chunks_exact(group_n))
                            {
                                out[group * group_n..][..group_n].copy_from_slice(part);
                            }
                        }
                    }
                    apply_all(&conv.post, out, n)?;
                }
                Ok(())
            })
        })
    }
}
