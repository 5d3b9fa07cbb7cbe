//! Elementwise functions on pixels: plain loops.

use super::isa::Simd;
use super::translate::lookup_in_vectors;
use super::vector::{Level, VectorLoop};
use crate::epilogue::Elementwise;
use crate::error::Result;
use crate::scalar::Int8Quantizer;

/// Applies one function to whole pixels.
#[inline(always)]
fn apply(function: &Elementwise, x: &mut [f32], channels: usize) {
    match function {
        Elementwise::Affine(scale, bias) => {
            for x in x.chunks_exact_mut(channels) {
                for ((x, &s), &b) in x.iter_mut().zip(scale).zip(bias) {
                    *x = x.mul_add(s, b);
                }
            }
        }
        Elementwise::Scale(scale) => {
            for x in x.chunks_exact_mut(channels) {
                for (x, &s) in x.iter_mut().zip(scale) {
                    *x *= s;
                }
            }
        }
        Elementwise::Bias(bias) => {
            for x in x.chunks_exact_mut(channels) {
                for (x, &b) in x.iter_mut().zip(bias) {
                    *x += b;
                }
            }
        }
        Elementwise::Scalar(scalar) => scalar.apply(x),
        Elementwise::Lookup(lookup) => lookup.apply(x),
        Elementwise::Prelu(slope) => {
            for x in x.chunks_exact_mut(channels) {
                for (c, x) in x.iter_mut().enumerate() {
                    let slope = slope[if slope.len() == 1 { 0 } else { c }];
                    *x = if *x > 0.0 { *x } else { *x * slope };
                }
            }
        }
    }
}

/// Applies several functions to whole pixels, one after another.
struct MapPixels<'a> {
    functions: &'a [Elementwise],
    x: &'a mut [f32],
    channels: usize,
}

impl VectorLoop for MapPixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for function in self.functions {
            apply(function, self.x, self.channels);
        }
    }
}

fn is_lookup(function: &Elementwise) -> bool {
    matches!(function, Elementwise::Lookup(_))
}

/// Applies functions to whole pixels, one after another, on the best instruction set.
pub(crate) fn apply_all(functions: &[Elementwise], x: &mut [f32], channels: usize) -> Result<()> {
    if functions.is_empty() || x.is_empty() || channels == 0 {
        return Ok(());
    }
    let level = Level::usable()?;
    // A block stays in the first-level cache for all functions.
    for x in x.chunks_mut(channels * (4096 / channels).max(1)) {
        // A table has a loop of its own, which needs more than the level tells.
        for functions in functions.chunk_by(|a, b| !is_lookup(a) && !is_lookup(b)) {
            let x = match functions {
                [Elementwise::Lookup(lookup)] => lookup_in_vectors(lookup, x)?,
                _ => &mut *x,
            };
            level.run(MapPixels { functions, x, channels });
        }
    }
    Ok(())
}

/// The values of bytes.
struct DequantizeBytes<'a> {
    bytes: &'a [u8],
    quantizer: Int8Quantizer,
    out: &'a mut [f32],
}

impl VectorLoop for DequantizeBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (whole, rest) = self.bytes.as_chunks::<16>();
        let (floats, last) = self.out.as_chunks_mut::<16>();
        for (bytes, x) in whole.iter().zip(floats) {
            self.quantizer.dequantize(bytes, x);
        }
        for (&byte, x) in rest.iter().zip(last) {
            self.quantizer.dequantize(&[byte], std::array::from_mut(x));
        }
    }
}

/// Turns the bytes of an int8 value into floats, on the best instruction set.
pub(crate) fn dequantize(bytes: &[u8], quantizer: Int8Quantizer, out: &mut [f32]) -> Result<()> {
    Level::usable()?.run(DequantizeBytes { bytes, quantizer, out });
    Ok(())
}
