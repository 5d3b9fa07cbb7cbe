//! The reference implementation: simple loops on unpacked codes, for everything that this crate
//! computes.
//!
//! It is never optimized. Tests and benchmarks compare their results with it. Codes are
//! channels-last, one `i8` each. Float operations run in the order that [`crate::epilogue`]
//! documents.
//!
//! These functions panic if sizes do not fit.

use crate::codec::{Act, Coding};
use crate::conv::ConvShape;
use crate::pack::WeightShape;
use crate::quantize::PixelOrder;

/// The input coordinate on `axis` that tap `tap` of window `window` reads; `None` in the padding.
fn input_at(shape: &ConvShape, axis: usize, window: usize, tap: usize) -> Option<usize> {
    let padded = window * shape.stride[axis] + tap * shape.dilation[axis];
    padded.checked_sub(shape.padding[axis]).filter(|&at| at < shape.input[axis])
}

/// A convolution's accumulators, `batch × output height × output width × out_channels`.
///
/// `codes` is `batch × height × width × channels`; `weight` is `out_channels × channels / groups ×
/// kernel`. `act` maps codes to levels. Padding is always level 0.
pub fn conv2d_acc(
    codes: &[i8],
    weight: &[i8],
    weights: WeightShape,
    act: Act,
    shape: &ConvShape,
) -> Vec<i32> {
    let [out_h, out_w] = shape.output().expect("a window that fits");
    let [h, w] = shape.input;
    let [kh, kw] = weights.kernel;
    let group_channels = weights.channels / weights.groups;
    let group_out_channels = weights.out_channels / weights.groups;
    assert_eq!(codes.len(), shape.batch * h * w * weights.channels);
    assert_eq!(weight.len(), weights.out_channels * group_channels * kh * kw);
    let mut out = Vec::new();
    for image in 0..shape.batch {
        for oy in 0..out_h {
            for ox in 0..out_w {
                for n in 0..weights.out_channels {
                    let group = n / group_out_channels;
                    let mut acc = 0;
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let (Some(y), Some(x)) =
                                (input_at(shape, 0, oy, ky), input_at(shape, 1, ox, kx))
                            else {
                                continue;
                            };
                            for c in 0..group_channels {
                                let channel = group * group_channels + c;
                                let code =
                                    codes[((image * h + y) * w + x) * weights.channels + channel];
                                acc += act.level(code)
                                    * i32::from(
                                        weight[((n * group_channels + c) * kh + ky) * kw + kx],
                                    );
                            }
                        }
                    }
                    out.push(acc);
                }
            }
        }
    }
    out
}

/// Int8 codes: `x · inv_step`, rounded half to even, clamped to ±127.
pub fn quantize_int8(x: &[f32], inv_step: f32) -> Vec<i8> {
    x.iter().map(|x| (x * inv_step).round_ties_even().clamp(-127.0, 127.0) as i8).collect()
}

/// The number of thresholds reached, minus one for ternary codes.
fn code(coding: Coding, reached: impl Iterator<Item = bool>) -> i8 {
    reached.map(i8::from).sum::<i8>() - i8::from(coding == Coding::Ternary)
}

/// Codes of accumulators with `channels` channels, by thresholds in the layout of
/// [`crate::epilogue::Requantize`].
pub fn to_codes(acc: &[i32], thresholds: &[i32], channels: usize, coding: Coding) -> Vec<i8> {
    assert_eq!(thresholds.len(), channels * coding.thresholds());
    let mut codes = Vec::new();
    for (i, &a) in acc.iter().enumerate() {
        codes.push(code(coding, thresholds.chunks(channels).map(|level| a >= level[i % channels])));
    }
    codes
}

/// Float32 values of accumulators with `channels` channels.
pub fn to_float(
    acc: &[i32],
    channels: usize,
    scale: Option<&[f32]>,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let mut out = Vec::new();
    for (i, &a) in acc.iter().enumerate() {
        let channel = i % channels;
        let mut y = match (scale, bias) {
            (Some(scale), Some(bias)) => f32::mul_add(a as f32, scale[channel], bias[channel]),
            (Some(scale), None) => a as f32 * scale[channel],
            (None, Some(bias)) => a as f32 + bias[channel],
            (None, None) => a as f32,
        };
        if let Some(residual) = residual {
            y += residual[i];
        }
        if relu && y < 0.0 {
            y = 0.0;
        }
        out.push(y);
    }
    out
}

/// Floats rounded to multiples of `step`, from `low` to `high` steps. `x` has no NaN.
pub fn fake_quantize(x: &[f32], step: f32, low: f32, high: f32) -> Vec<f32> {
    let inv_step = 1.0 / step;
    let mut out = Vec::new();
    for &x in x {
        let code = (x * inv_step).round_ties_even().clamp(low, high);
        out.push(if code == 0.0 { 0.0 } else { code * step });
    }
    out
}

/// Codes of floats, `batch × pixels × channels`: ternary with two thresholds, two-bit with three.
/// `x` has no NaN. No input reaches a threshold of +inf.
pub fn quantize(
    x: &[f32],
    [batch, pixels, channels]: [usize; 3],
    order: PixelOrder,
    thresholds: &[f32],
) -> Vec<i8> {
    let coding = if thresholds.len() == 2 { Coding::Ternary } else { Coding::Uint2 };
    assert_eq!(x.len(), batch * pixels * channels);
    let mut codes = Vec::new();
    for image in 0..batch {
        for pixel in 0..pixels {
            for channel in 0..channels {
                let x = x[match order {
                    PixelOrder::ChannelsFirst => (image * channels + channel) * pixels + pixel,
                    PixelOrder::ChannelsLast => (image * pixels + pixel) * channels + channel,
                }];
                codes.push(code(coding, thresholds.iter().map(|&t| t < f32::INFINITY && x >= t)));
            }
        }
    }
    codes
}

/// The largest code of every window. Every window contains a pixel.
pub fn max_pool(codes: &[i8], channels: usize, shape: &ConvShape, output: [usize; 2]) -> Vec<i8> {
    let [h, w] = shape.input;
    assert_eq!(codes.len(), shape.batch * h * w * channels);
    let mut out = Vec::new();
    for image in 0..shape.batch {
        for oy in 0..output[0] {
            for ox in 0..output[1] {
                for channel in 0..channels {
                    let mut max = None;
                    for ky in 0..shape.kernel[0] {
                        for kx in 0..shape.kernel[1] {
                            if let (Some(y), Some(x)) =
                                (input_at(shape, 0, oy, ky), input_at(shape, 1, ox, kx))
                            {
                                max = max.max(Some(
                                    codes[((image * h + y) * w + x) * channels + channel],
                                ));
                            }
                        }
                    }
                    out.push(max.expect("a pixel in every window"));
                }
            }
        }
    }
    out
}
