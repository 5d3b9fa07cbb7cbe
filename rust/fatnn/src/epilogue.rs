//! The fused tail of a tile: accumulators to codes through integer thresholds, or to float32.
//!
//! The loops are `kernels/epilogue.rs`, compiled for every instruction set. The order of operations
//! is part of the contract, because a deployed network must give the eager model's values bit for
//! bit on every CPU:
//!
//! * codes: `level = [acc ≥ low] + [acc ≥ high]`, code `level - 1` (for half- and full-range
//!   activations alike); with a third threshold the level is the code, of two bits;
//! * float32: `y = fma(float(acc), scale, bias)` **with one rounding** (what PyTorch's BatchNorm
//!   computes in evaluation mode on CPUs with FMA), an absent scale being 1 and an absent bias 0,
//!   so that `float(acc) * scale` and `float(acc) + bias` come out of the same formula; then `y +
//!   residual`, rounded separately; then `max(y, 0)` where asked for, with NaN passing through.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is
//! exact.

use crate::codec::{CodesLayout, MAX_THRESHOLDS};
use crate::error::{Result, bad_value, check_len};
use crate::memory;
use crate::scalar::Scalar;

/// Thresholds to codes.
pub struct Requantize<'a> {
    /// The smallest accumulator of level 1 for every output channel; behind them those of level 2,
    /// which are not smaller, and where the codes have two bits those of level 3.
    pub thresholds: &'a [i32],
    /// Layout of the codes that come out.
    pub layout: CodesLayout,
}

/// Scale and bias to float32.
pub struct Dequantize<'a> {
    /// Per output channel.
    pub scale: Option<&'a [f32]>,
    /// Per output channel.
    pub bias: Option<&'a [f32]>,
    /// `max(y, 0)` at the end.
    pub relu: bool,
    /// Output channels in a row of `out`.
    pub channels: usize,
    /// Codes of the values, beside the values. Only networks have a place for them; elsewhere
    /// `None`.
    pub codes: Option<Quantizer>,
}

/// What is added behind scale and bias.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// An array of the output's shape.
    Of(&'a [f32]),
    /// What stands in the output.
    InPlace,
}

/// Thresholds from float32 to codes, the same for all channels.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    /// The smallest values of levels 1, 2, 3; NaN, which no comparison reaches, for those that
    /// nothing reaches.
    pub(crate) thresholds: [f32; MAX_THRESHOLDS],
    pub(crate) layout: CodesLayout,
}

impl Quantizer {
    /// A quantizer by the smallest values of levels 1, 2 and, for codes of two bits, 3; infinity
    /// for levels that nothing reaches, infinity neither.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where there is another number of them than the layout's coding has;
    /// [`crate::Error::Value`] where one is NaN or below the one before.
    pub fn new(thresholds: &[f32], layout: CodesLayout) -> Result<Self> {
        check_len("thresholds", layout.coding().thresholds(), thresholds.len())?;
        // Not `a > b`, which NaN would pass.
        if !thresholds.is_sorted_by(|a, b| a <= b) {
            return bad_value(
                "thresholds",
                "numbers, none below the one before",
                format!("{thresholds:?}"),
            );
        }
        let mut all = [f32::NAN; MAX_THRESHOLDS];
        for (to, &threshold) in all.iter_mut().zip(thresholds) {
            *to = if threshold == f32::INFINITY { f32::NAN } else { threshold };
        }
        Ok(Quantizer { thresholds: all, layout })
    }
}

/// A function of one element, per channel or for all, in PyTorch's order of operations, so that
/// bits agree.
#[derive(Clone, Debug, PartialEq)]
pub enum Elementwise {
    /// `fma(x, scale, bias)` per channel: BatchNorm in evaluation mode.
    Affine(Vec<f32>, Vec<f32>),
    /// `x * scale` per channel.
    Scale(Vec<f32>),
    /// `x + bias` per channel.
    Bias(Vec<f32>),
    /// The same for all channels.
    Scalar(Scalar),
    /// `x > 0 ? x : x * slope` per channel (one slope for all channels where there is one).
    Prelu(Vec<f32>),
}

impl Elementwise {
    /// BatchNorm in evaluation mode as one multiplication and addition: `scale = weight / √(var +
    /// eps)`, `bias = fma(-mean, scale, bias)`, in float32.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where sizes differ; [`crate::Error::Memory`].
    pub fn batch_norm(
        mean: &[f32],
        var: &[f32],
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        eps: f32,
    ) -> Result<Self> {
        for values in [Some(var), weight, bias].into_iter().flatten() {
            check_len("statistics of a BatchNorm", mean.len(), values.len())?;
        }
        let channel = |c: usize| {
            let inverse = 1.0 / (var[c] + eps).sqrt();
            let scale = weight.map_or(inverse, |w| inverse * w[c]);
            (scale, (-mean[c]).mul_add(scale, bias.map_or(0.0, |b| b[c])))
        };
        let mut scales = memory::reserved("constants of a BatchNorm", mean.len())?;
        let mut biases = memory::reserved("constants of a BatchNorm", mean.len())?;
        for (scale, bias) in (0..mean.len()).map(channel) {
            scales.push(scale);
            biases.push(bias);
        }
        Ok(Elementwise::Affine(scales, biases))
    }

    /// The same function of other channels: `of` makes constants of them from these.
    pub(crate) fn with_channels(&self, of: &impl Fn(&[f32]) -> Result<Vec<f32>>) -> Result<Self> {
        Ok(match self {
            Elementwise::Affine(scale, bias) => Elementwise::Affine(of(scale)?, of(bias)?),
            Elementwise::Scale(scale) => Elementwise::Scale(of(scale)?),
            Elementwise::Bias(bias) => Elementwise::Bias(of(bias)?),
            Elementwise::Scalar(scalar) => Elementwise::Scalar(*scalar),
            Elementwise::Prelu(slopes) if slopes.len() == 1 => self.clone(), // small: one
            Elementwise::Prelu(slopes) => Elementwise::Prelu(of(slopes)?),
        })
    }

    fn channels(&self) -> Option<usize> {
        match self {
            Elementwise::Affine(v, _) | Elementwise::Scale(v) | Elementwise::Bias(v) => {
                Some(v.len())
            }
            Elementwise::Prelu(v) if v.len() > 1 => Some(v.len()),
            _ => None,
        }
    }
}

/// Checks that functions are for this many channels.
pub(crate) fn check_channels(functions: &[Elementwise], channels: usize) -> Result<()> {
    functions
        .iter()
        .filter_map(Elementwise::channels)
        .try_for_each(|c| check_len("channels of a function", channels, c))
}
