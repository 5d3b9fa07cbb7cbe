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
///
/// A byte in memory is the code plus [`Int8Quantizer::offset`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int8Quantizer {
    step: f32,
    inv_step: f32,
    low: f32,
    high: f32,
    /// 128 if a code may be negative, else 0.
    offset: f32,
}

/// Rounds values to codes in a loop: see [`Int8Quantizer::encoder`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder {
    inv_step: f32,
    low: f32,
    high: f32,
    round: f32,
}

impl Encoder {
    /// Encodes the codes `round(clamp(x * inv_step, low, high))` as `code + 128`. The bounds are
    /// within -128..=127.
    pub fn biased(inv_step: f32, [low, high]: [f32; 2]) -> Self {
        Encoder { inv_step, low, high, round: ROUND + 128.0 }
    }

    /// An encoder that first raises values to at least `floor`.
    pub fn with_floor(self, floor: f32) -> Self {
        let low = if floor > f32::NEG_INFINITY { floor * self.inv_step } else { self.low };
        Encoder { low: self.low.max(low).min(self.high), ..self }
    }

    /// `1 / step`, the lowest and the highest code, and what is added to round.
    #[cfg(target_arch = "x86_64")]
    pub fn constants(&self) -> [f32; 4] {
        [self.inv_step, self.low, self.high, self.round]
    }

    /// A byte minus its code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn offset(&self) -> i16 {
        (self.round - ROUND) as i16
    }

    /// The byte of the lowest code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn lowest_byte(&self) -> u8 {
        (self.low + self.round).to_bits() as u8
    }

    /// Bits of a float whose last byte is that of the value, and that are ordered as the codes are.
    /// NaN has the lowest code.
    #[inline(always)]
    pub fn encode(&self, x: f32) -> i32 {
        let y = x * self.inv_step;
        let y = if y > self.low { y } else { self.low };
        let y = if y < self.high { y } else { self.high };
        (y + self.round).to_bits() as i32
    }
}

// No field is NaN.
impl Eq for Int8Quantizer {}

impl Int8Quantizer {
    /// # Errors
    /// [`crate::Error::Value`] if the step or its reciprocal is not a positive, finite number, or
    /// if `low` is above `high`, or the codes from `low` to `high` do not fit a byte.
    pub fn new(step: f32, low: i64, high: i64) -> Result<Self> {
        let inv_step = 1.0 / step;
        if !(step > 0.0 && (step * 256.0).is_finite() && inv_step.is_finite()) {
            return bad_value(
                "step",
                "a positive number whose reciprocal and multiples are finite",
                step,
            );
        }
        if !(low <= high && (low >= -128 && high <= 127 || low >= 0 && high <= 255)) {
            let got = format!("{low} to {high}");
            return bad_value("low and high", "codes within -128..127 or within 0..255", got);
        }
        let offset = if low < 0 { 128.0 } else { 0.0 };
        Ok(Int8Quantizer { step, inv_step, low: low as f32, high: high as f32, offset })
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

    /// The bytes of the smallest and the largest code.
    pub(super) fn bytes(&self) -> [u8; 2] {
        [self.low, self.high].map(|code| (code + self.offset) as u8)
    }

    /// The constants of a loop.
    pub(crate) fn encoder(&self) -> Encoder {
        Encoder {
            inv_step: self.inv_step,
            low: self.low,
            high: self.high,
            round: ROUND + self.offset,
        }
    }

    /// The smallest bits of [`Encoder::encode`] whose value is at least `threshold`; `i32::MAX` if
    /// there are none, or if `threshold` is NaN.
    pub(crate) fn bits_threshold(&self, threshold: f32) -> i32 {
        let (mut below, mut from) = (self.low as i32, self.high as i32 + 1);
        while below < from {
            let code = below + (from - below) / 2;
            if code as f32 * self.step >= threshold { from = code } else { below = code + 1 }
        }
        let bits = ((from as f32) + (ROUND + self.offset)).to_bits() as i32;
        if from > self.high as i32 { i32::MAX } else { bits }
    }

    /// The values of bytes.
    #[inline(always)]
    pub(crate) fn dequantize<const N: usize>(&self, bytes: &[u8; N], x: &mut [f32; N]) {
        let [step, zero] = self.step_and_zero();
        for j in 0..N {
            x[j] = f32::from(bytes[j]).mul_add(step, zero);
        }
    }

    /// The value of a byte is `fma(byte, step, zero)`. As `zero` is exact, this rounds
    /// `(byte - offset) * step` once.
    #[inline(always)]
    pub(crate) fn step_and_zero(&self) -> [f32; 2] {
        [self.step, -self.offset * self.step]
    }

    /// The values of bytes, one by one.
    pub fn values<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = f32> + 'a {
        let quantizer = *self;
        bytes.iter().map(move |&byte| {
            let mut value = [0.0];
            quantizer.dequantize(&[byte], &mut value);
            value[0]
        })
    }
}
