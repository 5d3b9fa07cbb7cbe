//! The fused tail of a tile: accumulators to codes through integer thresholds, or to float32.
//!
//! The loops are `kernels/epilogue.rs`, compiled for every instruction set. The order of operations is part of the contract, because a deployed network must
//! give the eager model's values bit for bit on every CPU:
//!
//! * codes: `level = [acc ≥ low] + [acc ≥ high]`, code `level - 1` (for half- and full-range activations alike); with a third
//!   threshold the level is the code, of two bits;
//! * float32: `y = fma(float(acc), scale, bias)` **with one rounding** (what PyTorch's BatchNorm computes in evaluation
//!   mode on CPUs with FMA), an absent scale being 1 and an absent bias 0, so that `float(acc) * scale` and
//!   `float(acc) + bias` come out of the same formula; then `y + residual`, rounded separately; then `max(y, 0)` where asked for, with NaN passing through.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is exact.

use crate::codec::{CodesLayout, MAX_THRESHOLDS};
use crate::error::{Result, bad_value, check_len};

/// Thresholds to codes.
pub struct ToCodes<'a> {
    /// The smallest accumulator of level 1 for every output channel; behind them those of level 2, which are not smaller, and
    /// where the codes have two bits those of level 3.
    pub thresholds: &'a [i32],
    /// Layout of the codes that come out.
    pub layout: CodesLayout,
}

/// Scale and bias to float32.
pub struct ToFloat<'a> {
    /// Per output channel.
    pub scale: Option<&'a [f32]>,
    /// Per output channel.
    pub bias: Option<&'a [f32]>,
    /// `max(y, 0)` at the end.
    pub relu: bool,
    /// Output channels in a row of `out`.
    pub channels: usize,
    /// Codes of the values, beside the values. Only networks have a place for them; elsewhere `None`.
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
    /// The smallest values of levels 1, 2, 3; NaN, which no comparison reaches, for those that nothing reaches.
    pub(crate) thresholds: [f32; MAX_THRESHOLDS],
    pub(crate) layout: CodesLayout,
}

impl Quantizer {
    /// A quantizer by the smallest values of levels 1, 2 and, for codes of two bits, 3; infinity for levels that nothing
    /// reaches, infinity neither.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where there is another number of them than the layout's coding has;
    /// [`crate::Error::Value`] where one is NaN or below the one before.
    pub fn new(thresholds: &[f32], layout: CodesLayout) -> Result<Self> {
        check_len("thresholds", layout.coding().thresholds(), thresholds.len())?;
        // Not `a > b`, which NaN would pass.
        if !thresholds.is_sorted_by(|a, b| a <= b) {
            return bad_value("thresholds", "numbers, none below the one before", format!("{thresholds:?}"));
        }
        let mut all = [f32::NAN; MAX_THRESHOLDS];
        for (to, &threshold) in all.iter_mut().zip(thresholds) {
            *to = if threshold == f32::INFINITY { f32::NAN } else { threshold };
        }
        Ok(Quantizer { thresholds: all, layout })
    }
}
