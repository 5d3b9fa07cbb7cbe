//! Quantization of a value between layers to eight bits.

use crate::error::{Result, bad_value};

/// Adding this to a float below 2²² in magnitude rounds it to the nearest integer, ties to even,
/// and puts that integer in the last bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³

/// Rounds a value to a multiple of a step:
///
/// ```text
/// code = clamp(round(x * (1 / step)), low, high)
/// y    = code * step
/// ```
///
/// in float32, where `1 / step` is rounded once. `round` takes ties to the even number. The codes
/// fit a byte: they are within -128..=127, or within 0..=255. A code of 0 gives 0.0, never -0.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int8Quantizer {
    step: f32,
    inv_step: f32,
    low: f32,
    high: f32,
}

impl Int8Quantizer {
    /// # Errors
    /// [`crate::Error::Value`] if the step or its reciprocal is not a positive, finite number, or
    /// if the codes from `low` to `high` are none or do not fit a byte.
    pub fn new(step: f32, low: i64, high: i64) -> Result<Self> {
        let inv_step = 1.0 / step;
        if !(step > 0.0 && step.is_finite() && inv_step.is_finite() && inv_step > 0.0) {
            return bad_value("step", "a positive number with a finite reciprocal", step);
        }
        if !(low <= high && (low >= -128 && high <= 127 || low >= 0 && high <= 255)) {
            let got = format!("{low} to {high}");
            return bad_value("low and high", "codes within -128..127 or within 0..255", got);
        }
        Ok(Int8Quantizer { step, inv_step, low: low as f32, high: high as f32 })
    }

    /// Rounds a value to a multiple of the step; NaN passes through.
    #[inline(always)]
    pub(crate) fn fake_quantize(&self, x: f32) -> f32 {
        let y = x * self.inv_step;
        let y = if y < self.low { self.low } else { y };
        let y = if y > self.high { self.high } else { y };
        // The difference is never -0.0.
        ((y + ROUND) - ROUND) * self.step
    }
}
