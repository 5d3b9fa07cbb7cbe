//! Quantizes float activations to codes.
//!
//! A ternary quantizer is two thresholds: `level = [x ≥ low] + [x ≥ high]`, and the code is
//! `level - 1`. A two-bit quantizer has three thresholds, and the code is the level.
//!
//! The thresholds are **the smallest floats of levels 1, 2 (and 3)**. They are searched in the
//! trained quantizer itself, because its formula may round. For example, `torch.round` rounds
//! halves to even: in `round(clip(x·α, 0, 1))` a value of exactly `0.5/α` is still level 0, so the
//! threshold is the next float above. A threshold of +inf marks a level that no input reaches, not
//! even +inf; binary activations {0, 1} have such a second threshold.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::CodesLayout;
use crate::epilogue::Quantizer;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{BLOCK_PIXELS, Level, Quantize, QuantizeInput};
use crate::parallel;
pub use crate::transpose::PixelOrder;

/// Writes the code of every element of `x` to `out`: `batch × pixels` pixels in `layout`.
///
/// `thresholds` are the smallest floats of level 1, of level 2 and, for two-bit codes, of level 3.
/// Infinite inputs are ordinary values. A threshold of +inf marks a level that no input reaches.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Value`] if a threshold is
/// NaN or below the one before it; [`Error::Shape`] if sizes do not fit. After an error, the
/// content of `out` is unspecified.
pub fn quantize(
    x: &[f32],
    batch: usize,
    pixels: usize,
    order: PixelOrder,
    thresholds: &[f32],
    layout: CodesLayout,
    out: &mut [u8],
) -> Result<()> {
    let to = Quantizer::new(thresholds, layout)?;
    let sizes = batch.checked_mul(pixels).and_then(|n| {
        Some((n.checked_mul(layout.channels())?, n.checked_mul(layout.pixel_bytes())?))
    });
    let Some((elements, bytes)) = sizes else {
        return bad_value(
            "input",
            "a size that fits in memory",
            format!("{batch} × {pixels} pixels"),
        );
    };
    check_len("input", elements, x.len())?;
    check_len("packed codes", bytes, out.len())?;
    let order = if pixels == 1 { PixelOrder::ChannelsLast } else { order };
    let input = QuantizeInput { x, pixels, order, to };
    let level = Level::usable()?;
    let all_numbers = AtomicBool::new(true);
    let work = |first: usize, out: &mut [u8]| {
        if !level.run(Quantize { input: &input, first, out }) {
            all_numbers.store(false, Ordering::Relaxed);
        }
    };
    // An element costs about as much as 32 products.
    parallel::for_each_rows(
        out,
        layout.pixel_bytes(),
        BLOCK_PIXELS,
        elements.saturating_mul(32),
        work,
    )?;
    if !all_numbers.into_inner()
        && let Some(index) = x.iter().position(|v| v.is_nan())
    {
        return Err(Error::NotANumber { what: "input", index });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Coding;
    use crate::cpu::Features;
    use crate::reference;

    /// The public function only uses the CPU's best level. This test runs all levels, on chunks
    /// that start at any pixel.
    #[test]
    fn every_level_equals_the_reference() {
        let inf = f32::INFINITY;
        let values = [
            0.3,
            0.3f32.next_down(),
            -0.4,
            (-0.4f32).next_down(),
            9.0,
            -9.0,
            0.0,
            0.7,
            0.7f32.next_down(),
            inf,
            -inf,
        ];
        let sizes = [(1, 64, 1), (5, 70, 1), (16, 33, 1), (37, 130, 2), (50, 6, 6)];
        let quantizers: [&[f32]; 4] =
            [&[-0.4, 0.3], &[-0.4, 0.3, 0.7], &[0.3, inf], &[0.3, 0.7, inf]];
        for ((pixels, channels, groups), thresholds) in
            sizes.into_iter().flat_map(|s| quantizers.map(|q| (s, q)))
        {
            let coding = if thresholds.len() == 2 { Coding::Ternary } else { Coding::Uint2 };
            let layout = CodesLayout::new(channels, groups).unwrap().with(coding);
            let n = 3 * pixels * channels;
            // 251 is prime: no two words are the same.
            let x: Vec<f32> = (0..n).map(|i| values[i % 251 % values.len()]).collect();
            for order in [PixelOrder::ChannelsFirst, PixelOrder::ChannelsLast] {
                let codes = reference::quantize(&x, [3, pixels, channels], order, thresholds);
                let mut expected = vec![0; 3 * pixels * layout.pixel_bytes()];
                layout.pack(&codes, &mut expected).unwrap();
                let to = Quantizer::new(thresholds, layout).unwrap();
                let input = QuantizeInput { x: &x, pixels, order, to };
                for level in Level::all(Features::detected()) {
                    for chunk in [1, 7, 16, 40, 3 * pixels] {
                        let mut out = vec![0xA5; expected.len()];
                        for (i, out) in out.chunks_mut(chunk * layout.pixel_bytes()).enumerate() {
                            assert!(level.run(Quantize { input: &input, first: i * chunk, out }));
                        }
                        assert_eq!(
                            out, expected,
                            "{level:?} {order:?} {pixels} {channels} {chunk}"
                        );
                    }
                    for at in [0, n / 2, n - 1] {
                        let mut x = x.clone();
                        x[at] = f32::NAN;
                        let input = QuantizeInput { x: &x, ..input };
                        let mut out = expected.clone();
                        let work = Quantize { input: &input, first: 0, out: &mut out };
                        assert!(!level.run(work), "{level:?}");
                    }
                }
            }
        }
    }
}
