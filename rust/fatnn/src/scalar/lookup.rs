//! Functions of values with eight bits, as tables.

use super::int8::Int8Quantizer;
use crate::error::{Result, check_len};

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
        let [low, high] = quantizer.ends(); // at most 255 apart
        check_len("table", (high - low) as usize + 1, table.len())?;
        Ok(Lookup { quantizer, table })
    }

    /// Replaces each value by its result; NaN stays.
    #[inline(always)]
    pub(crate) fn apply(&self, values: &mut [f32]) {
        let [low, _] = self.quantizer.ends();
        for x in values {
            if !x.is_nan() {
                let at = (self.quantizer.code(*x) - low) as usize;
                *x = self.table.get(at).copied().unwrap_or(f32::NAN);
            }
        }
    }
}
