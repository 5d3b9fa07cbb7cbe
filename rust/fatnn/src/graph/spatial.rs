//! Operations that resize maps: interpolation, transposed convolution and depth-to-space. This
//! module has their attributes and PyTorch's rules for their output sizes.

use super::op::ConvParams;
use crate::window::AxisParams;

/// How interpolation computes a pixel from the input's pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Copies the pixel at the index rounded down.
    Nearest,
    /// Copies the pixel with the nearest centre.
    NearestExact,
    /// Weighted mean of the two neighbouring pixels on each axis.
    Linear {
        /// Whether the corner pixels of input and output coincide.
        align_corners: bool,
    },
    /// Weighted sum of several pixels on each axis.
    Filter {
        /// Whether the weights are a cubic function of the distance; otherwise they are linear.
        cubic: bool,
        /// Whether the filter widens when the map shrinks.
        antialias: bool,
        /// Whether the corner pixels of input and output coincide.
        align_corners: bool,
    },
}

impl Sampling {
    /// Whether the corner pixels of input and output coincide.
    pub(crate) fn aligns_corners(self) -> bool {
        match self {
            Sampling::Linear { align_corners } | Sampling::Filter { align_corners, .. } => {
                align_corners
            }
            Sampling::Nearest | Sampling::NearestExact => false,
        }
    }
}

/// Interpolation to another size. A second input, if there is one, gives the output size.
#[derive(Clone, Debug, PartialEq)]
pub struct Interpolate {
    /// How a pixel is computed.
    pub sampling: Sampling,
    /// Output size per axis; empty if factors or a second input give the size.
    pub size: Vec<usize>,
    /// Factor per axis; empty if not given.
    pub factors: Vec<f64>,
    /// Whether pixel positions follow from the sizes; otherwise they follow from the factors.
    pub recompute: bool,
    /// Whether the model's value was channels last, if the node says it.
    pub channels_last: Option<bool>,
}

impl Interpolate {
    /// Output size of an axis with `size` input pixels; `None` if neither a size nor a factor is
    /// given, or if the result is out of range.
    pub(crate) fn output(&self, axis: usize, size: usize) -> Option<usize> {
        match (self.size.get(axis), self.factors.get(axis)) {
            (Some(&size), _) => Some(size),
            (None, Some(&factor)) => Some((size as f64 * factor) as usize),
            _ => None,
        }
        .filter(|size| *size > 0 && *size < LIMIT)
    }

    /// The factor of an axis if it is an integer.
    pub(crate) fn whole_factor(&self, axis: usize) -> Option<usize> {
        let factor = *self.factors.get(axis)?;
        (factor.fract() == 0.0 && (1.0..LIMIT as f64).contains(&factor)).then_some(factor as usize)
    }

    /// Distance in the input between neighbouring output pixels, rounded to float32 as in PyTorch.
    pub(crate) fn ratio(&self, axis: usize, input: usize, output: usize) -> f32 {
        if self.sampling.aligns_corners() {
            return if output > 1 { (input as f32 - 1.0) / (output as f32 - 1.0) } else { 0.0 };
        }
        match self.factors.get(axis) {
            Some(&factor) if !self.recompute && self.size.is_empty() => (1.0 / factor) as f32,
            _ => input as f32 / output as f32,
        }
    }

    /// Whether the result depends on a memory format that is not known. It may if a factor slightly
    /// above 1 or 2 gives an output of exactly one or two times the input's size.
    pub(super) fn depends_on_memory(&self) -> bool {
        let near =
            |factor: &f64| (*factor > 1.0 && *factor < 1.5) || (*factor > 2.0 && *factor < 2.5);
        self.sampling == Sampling::Nearest
            && !self.recompute
            && self.channels_last.is_none()
            && self.factors.iter().any(near)
    }

    /// Whether a nearest interpolation to exactly one or two times the input's size ignores the
    /// factor. PyTorch has two kernels for images; the one for small outputs and for many channels
    /// last does.
    pub(crate) fn ignores_factor(&self, axes: usize, channels: usize, output: [usize; 2]) -> bool {
        let small = output[0].saturating_add(output[1]) <= 128;
        self.sampling == Sampling::Nearest
            && axes == 2
            && (small || self.channels_last == Some(true) && channels > 3)
    }
}

/// Heights and widths must be smaller than this.
const LIMIT: usize = 1 << 24;

/// Moves channels to pixels: every pixel becomes a block of pixels. The edges of the larger map may
/// be cropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthToSpace {
    /// Height and width of a block.
    pub block: [usize; 2],
    /// Pixels removed at the start and the end of each axis.
    pub crop: [[usize; 2]; 2],
    /// Groups of channels; each group is rearranged by itself.
    pub groups: usize,
    /// Whether input channels are ordered by position in the block first (ONNX mode `DCR`);
    /// otherwise by output channel first (`CRD`, PyTorch's `pixel_shuffle`).
    pub blocks_first: bool,
}

impl DepthToSpace {
    /// Number of pixels in a block.
    pub(crate) fn pixels(&self) -> usize {
        self.block[0].saturating_mul(self.block[1])
    }

    /// Number of pixels removed on an axis.
    pub(crate) fn cropped(&self, axis: usize) -> usize {
        self.crop[axis][0].saturating_add(self.crop[axis][1])
    }

    /// Output size of an axis with `size` input pixels; `None` if it is out of range.
    pub(crate) fn output(&self, axis: usize, size: usize) -> Option<usize> {
        let output = size.checked_mul(self.block[axis])?.checked_sub(self.cropped(axis))?;
        Some(output).filter(|output| *output < LIMIT)
    }
}

/// A transposed convolution. The weight gives the kernel size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose {
    /// Spatial axes: 1 or 2.
    pub axes: usize,
    /// Stride, padding and dilation; `kernel` is not used.
    pub params: ConvParams,
    /// Pixels added at the end of each output axis.
    pub output_padding: [usize; 2],
    /// Groups of channels.
    pub groups: usize,
}

/// One axis of a transposed convolution, rewritten as a convolution and a [`DepthToSpace`]: each
/// phase of the stride is an ordinary convolution with a subset of the taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubPixelAxis {
    /// The convolution, of stride 1.
    pub conv: AxisParams,
    /// Pixels removed at the start and the end.
    pub crop: [usize; 2],
    stride: usize,
    dilation: usize,
    taps: usize,
}

impl SubPixelAxis {
    /// Rewrites one axis of a transposed convolution; `None` if a number is out of range.
    ///
    /// Output `o` reads input `i` through tap `t` if `i·stride + t·dilation = o + padding`. Let
    /// `o + padding = q·stride + phase`. Then tap `t` belongs to the phase `t·dilation mod stride`
    /// and reads input `q - ⌊t·dilation / stride⌋`.
    pub fn new(params: AxisParams, output_padding: usize) -> Option<Self> {
        let AxisParams { kernel, stride, padding, dilation } = params;
        let numbers = [kernel, stride, dilation];
        let all = [kernel, stride, padding, dilation, output_padding];
        if numbers.contains(&0) || all.iter().any(|n| *n >= LIMIT) {
            return None;
        }
        let reach = (kernel - 1).checked_mul(dilation).filter(|reach| *reach < LIMIT)?;
        let (conv_kernel, conv_dilation) =
            if stride == 1 { (kernel, dilation) } else { (reach / stride + 1, 1) };
        let back = (conv_kernel - 1) * conv_dilation;
        let (before, after) = (padding / stride, reach + output_padding);
        // Pixels that the convolution needs before the first input and after the last.
        let left = back as i64 - before as i64;
        let right = (after as i64 - padding as i64).div_euclid(stride as i64);
        let around = left.max(right).max(0);
        let first = (around - left) as usize * stride + padding % stride;
        let count = |size: i64| size + 2 * around - back as i64;
        let shuffled = count(1) * stride as i64;
        let wanted = reach as i64 + output_padding as i64 + 1 - 2 * padding as i64;
        let last = shuffled - first as i64 - wanted;
        Some(SubPixelAxis {
            conv: AxisParams {
                kernel: conv_kernel,
                stride: 1,
                padding: around as usize,
                dilation: conv_dilation,
            },
            crop: [first, usize::try_from(last).ok()?],
            stride,
            dilation,
            taps: kernel,
        })
    }

    /// The tap of the transposed convolution that becomes `tap` of a phase's convolution; `None` if
    /// that weight is zero.
    pub fn tap(&self, phase: usize, tap: usize) -> Option<usize> {
        let steps = self.conv.kernel - 1 - tap;
        let at = if self.stride == 1 { steps * self.dilation } else { steps * self.stride + phase };
        (at.is_multiple_of(self.dilation) && at / self.dilation < self.taps)
            .then_some(at / self.dilation)
    }
}

impl ConvTranspose {
    /// Window parameters of an axis, given the kernel size.
    pub(crate) fn axis(&self, axis: usize, kernel: usize) -> AxisParams {
        let ConvParams { stride, padding, dilation, .. } = self.params;
        AxisParams {
            kernel,
            stride: stride[axis],
            padding: padding[axis],
            dilation: dilation[axis],
        }
    }

    /// Output size of an axis for one input pixel. Every further pixel adds `stride`.
    pub(crate) fn one_pixel_output(&self, axis: usize, kernel: usize) -> i64 {
        let params = self.axis(axis, kernel);
        let reach = i64::try_from(params.reach()).unwrap_or(i64::MAX);
        let more = reach.saturating_add(self.output_padding[axis] as i64);
        more.saturating_sub(2 * params.padding as i64)
    }
}

/// A transposed convolution rewritten as a convolution and a [`DepthToSpace`].
#[derive(Clone, Copy, Debug)]
pub struct SubPixel {
    axes: [SubPixelAxis; 2],
    stride: [usize; 2],
    groups: usize,
}

impl SubPixel {
    /// Rewrites a transposed convolution with the given kernel size.
    ///
    /// # Errors
    /// A number is out of range.
    pub fn new(conv: &ConvTranspose, kernel: [usize; 2]) -> Result<Self, String> {
        let axis = |axis: usize| {
            let params = conv.axis(axis, kernel[axis]);
            SubPixelAxis::new(params, conv.output_padding[axis])
                .ok_or_else(|| format!("{conv:?} with the kernel {kernel:?} is out of range"))
        };
        Ok(SubPixel { axes: [axis(0)?, axis(1)?], stride: conv.params.stride, groups: conv.groups })
    }

    /// Parameters of the convolution.
    pub fn conv(&self) -> ConvParams {
        let [h, w] = self.axes.map(|axis| axis.conv);
        ConvParams {
            kernel: [h.kernel, w.kernel],
            stride: [1, 1],
            padding: [h.padding, w.padding],
            dilation: [h.dilation, w.dilation],
        }
    }

    /// The depth-to-space operation after the convolution.
    pub fn shuffle(&self) -> DepthToSpace {
        DepthToSpace {
            block: self.stride,
            crop: self.axes.map(|axis| axis.crop),
            groups: self.groups,
            blocks_first: true,
        }
    }

    /// Shape of the convolution's weight (output channels, channels per group, height, width) from
    /// the transposed convolution's (channels, output channels per group, height, width).
    ///
    /// # Errors
    /// Groups do not fit, or sizes are too large.
    pub fn weight_shape(&self, [channels, out, _, _]: [usize; 4]) -> Result<[usize; 4], String> {
        let ([kh, kw], phases) = (self.conv().kernel, self.stride[0].checked_mul(self.stride[1]));
        let out_channels =
            phases.and_then(|phases| phases.checked_mul(out)?.checked_mul(self.groups));
        match out_channels {
            Some(out_channels) if self.groups > 0 && channels.is_multiple_of(self.groups) => {
                Ok([out_channels, channels / self.groups, kh, kw])
            }
            _ => Err(format!("{} groups do not fit {channels} channels", self.groups)),
        }
    }

    /// Writes the convolution's weight to `conv_weight`, which must be all zeros: taps that a phase
    /// does not have are not written.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape.
    pub fn spread<T: Copy>(&self, weight: &[T], shape: [usize; 4], conv_weight: &mut [T]) {
        let ([channels, out, kh, kw], [height, width]) = (shape, self.axes);
        let per_group = channels / self.groups;
        let [rows, columns] = [height.conv.kernel, width.conv.kernel];
        let [stride_y, stride_x] = self.stride;
        for (n, conv_weight) in conv_weight.chunks_exact_mut(per_group * rows * columns).enumerate()
        {
            let (block, n) = (n / out, n % out);
            let (group, phase) = (block / (stride_y * stride_x), block % (stride_y * stride_x));
            let phase = [phase / stride_x, phase % stride_x];
            for (i, conv_weight) in conv_weight.iter_mut().enumerate() {
                let (c, y, x) = (i / (rows * columns), i / columns % rows, i % columns);
                let taps = (height.tap(phase[0], y), width.tap(phase[1], x));
                if let (Some(y), Some(x)) = taps {
                    *conv_weight = weight[(((group * per_group + c) * out + n) * kh + y) * kw + x];
                }
            }
        }
    }

    /// For every output channel of the convolution, the output channel of the transposed
    /// convolution, which has `out` per group.
    pub fn channels(&self, out: usize) -> impl ExactSizeIterator<Item = usize> + use<> {
        let all = self.stride[0] * self.stride[1] * out;
        (0..self.groups * all).map(move |n| n / all * out + n % out)
    }
}

#[cfg(test)]
fn pairs(a: usize, b: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..a).flat_map(move |i| (0..b).map(move |j| (i, j)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every output pixel reads the same inputs and taps as in the definition.
    #[test]
    fn phases_are_the_taps_of_a_transposed_convolution() {
        for (kernel, stride, dilation) in
            pairs(5, 4).flat_map(|(k, s)| (1..4).map(move |dilation| (k + 1, s + 1, dilation)))
        {
            for (padding, more) in pairs(6, stride.max(dilation)) {
                let params = AxisParams { kernel, stride, padding, dilation };
                let axis = SubPixelAxis::new(params, more);
                let reach = (kernel - 1) * dilation;
                let Some(axis) = axis else {
                    panic!("{params:?} {more}");
                };
                for size in 1..6usize {
                    let length =
                        ((size - 1) * stride + reach + more + 1) as i64 - 2 * padding as i64;
                    if length < 1 {
                        continue;
                    }
                    let count = axis.conv.count(size).unwrap();
                    let shuffle = count * stride - axis.crop[0] - axis.crop[1];
                    assert_eq!(shuffle as i64, length, "{params:?} {more} {size}");
                    for o in 0..length as usize {
                        let at = o + axis.crop[0];
                        let (q, phase) = (at / stride, at % stride);
                        let mut read: Vec<(usize, usize)> = (0..axis.conv.kernel)
                            .filter_map(|j| {
                                let i = (q + j * axis.conv.dilation)
                                    .checked_sub(axis.conv.padding)
                                    .filter(|i| *i < size)?;
                                Some((i, axis.tap(phase, j)?))
                            })
                            .collect();
                        read.sort_unstable();
                        let wanted: Vec<(usize, usize)> = pairs(size, kernel)
                            .filter(|(i, t)| i * stride + t * dilation == o + padding)
                            .collect();
                        assert_eq!(read, wanted, "{params:?} {more} {size} {o}");
                    }
                }
            }
        }
    }
}
