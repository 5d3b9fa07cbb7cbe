//! Quantization of a value between layers to eight bits.

use crate::error::{Result, bad_value, check_len};

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
        self.code(x) * self.step
    }

    /// The code of a value, never -0.0; NaN passes through.
    #[inline(always)]
    fn code(&self, x: f32) -> f32 {
        let y = x * self.inv_step;
        let y = if y < self.low { self.low } else { y };
        let y = if y > self.high { self.high } else { y };
        (y + ROUND) - ROUND
    }
}

/// A function of values that [`Int8Quantizer`] has rounded: its result for every code.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    quantizer: Int8Quantizer,
    table: Vec<f32>,
}

impl Lookup {
    /// Takes the results for the codes of `quantizer`, from the lowest to the highest.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if their number is not that of the codes.
    pub fn new(quantizer: Int8Quantizer, table: Vec<f32>) -> Result<Self> {
        // At most 256.
        check_len("table", (quantizer.high - quantizer.low) as usize + 1, table.len())?;
        Ok(Lookup { quantizer, table })
    }

    /// Replaces each value by its result; NaN stays.
    #[inline(always)]
    pub(crate) fn apply(&self, values: &mut [f32]) {
        for x in values {
            if !x.is_nan() {
                let at = (self.quantizer.code(*x) - self.quantizer.low) as usize;
                *x = self.table.get(at).copied().unwrap_or(f32::NAN);
            }
        }
    }
}
