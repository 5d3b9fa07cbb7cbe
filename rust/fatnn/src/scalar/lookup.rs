//! Functions of values with eight bits, as tables.

use super::int8::Int8Quantizer;
use crate::error::{Result, check_len};

/// A function of values that [`Int8Quantizer`] has rounded: its result for every code.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    quantizer: Int8Quantizer,
    /// The result for every byte.
    results: Box<[f32; 256]>,
}

/// Values that are replaced together.
const LANES: usize = 32;

impl Lookup {
    /// Takes the results for the codes of `quantizer`, from the lowest to the highest.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if their number is not that of the codes.
    pub fn new(quantizer: Int8Quantizer, table: &[f32]) -> Result<Self> {
        let [first, last] = quantizer.bytes();
        check_len("table", usize::from(last - first) + 1, table.len())?;
        let mut results = Box::new([f32::NAN; 256]);
        results[usize::from(first)..][..table.len()].copy_from_slice(table);
        Ok(Lookup { quantizer, results })
    }

    /// Replaces each value by its result; NaN stays.
    #[inline(always)]
    pub(crate) fn apply(&self, values: &mut [f32]) {
        let encoder = self.quantizer.encoder();
        let (whole, rest) = values.as_chunks_mut::<LANES>();
        for values in whole {
            // First all bytes, then all loads: the compiler vectorises the first loop.
            let mut bytes = [0; LANES];
            for j in 0..LANES {
                bytes[j] = encoder.encode(values[j]) as u8;
            }
            for j in 0..LANES {
                let found = self.results[usize::from(bytes[j])];
                values[j] = if values[j].is_nan() { values[j] } else { found };
            }
        }
        for x in rest.iter_mut().filter(|x| !x.is_nan()) {
            *x = self.results[usize::from(encoder.encode(*x) as u8)];
        }
    }
}
