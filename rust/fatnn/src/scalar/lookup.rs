//! Functions of values with eight bits, as tables.

use super::Scalar;
use super::int8::{Encoder, Int8Quantizer};
use crate::error::{Result, check_len};

/// A function of values that [`Int8Quantizer`] has rounded: its result for every code.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    quantizer: Int8Quantizer,
    /// The result for every byte.
    results: Box<[f32; 256]>,
    /// If the results are rounded to eight bits: the quantizer that did, and its bytes.
    rounded: Option<(Int8Quantizer, Box<[u8; 256]>)>,
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
        Ok(Lookup { quantizer, results, rounded: None })
    }

    /// The table of a quantizer's own values.
    pub(crate) fn of_values(quantizer: Int8Quantizer) -> Self {
        let bytes: [u8; 256] = std::array::from_fn(|byte| byte as u8);
        let mut results = Box::new([0.0; 256]);
        quantizer.dequantize(&bytes, &mut results);
        Lookup { quantizer, results, rounded: None }
    }

    /// The quantizer and the bytes of results that are rounded to eight bits.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rounded(&self) -> Option<(Int8Quantizer, &[u8; 256])> {
        self.rounded.as_ref().map(|(quantizer, bytes)| (*quantizer, &**bytes))
    }

    /// The quantizer that rounds the function's inputs.
    pub(crate) fn quantizer(&self) -> Int8Quantizer {
        self.quantizer
    }

    /// The table of this function and then a scalar one.
    pub(crate) fn then(mut self, scalar: Scalar) -> Self {
        scalar.apply(self.results.as_mut_slice());
        self.rounded = match scalar {
            Scalar::FakeQuantize(rounds) => {
                self.encoded(rounds.encoder()).map(|bytes| (rounds, bytes))
            }
            _ => None,
        };
        self
    }

    /// The table of this function and then another one.
    pub(crate) fn then_lookup(mut self, next: &Lookup) -> Self {
        next.apply(self.results.as_mut_slice());
        self.rounded = None;
        self
    }

    /// The results of all bytes, encoded. `None` if one of them is NaN.
    pub(crate) fn encoded(&self, encoder: Encoder) -> Option<Box<[u8; 256]>> {
        let [first, last] = self.quantizer.bytes().map(usize::from);
        let mut table = Box::new([0; 256]);
        for (to, result) in table[first..=last].iter_mut().zip(&self.results[first..=last]) {
            if result.is_nan() {
                return None;
            }
            *to = encoder.encode(*result) as u8;
        }
        Some(table)
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
