//! Float activations to codes: the border between float layers and ternary ones.
//!
//! A quantizer with three levels is two thresholds: `level = [x ≥ low] + [x ≥ high]`, code `level -
//! 1`, whatever formula it was trained with; one with four levels is three, and its code the level.
//! The thresholds are **the smallest floats of levels 1, 2 (and 3)**. They are found from the
//! trained quantizer itself, for its formula may round: `torch.round` is half-to-even, so that in
//! `round(clip(x·α, 0, 1))` a value exactly on `0.5/α` still belongs to the level below, and the
//! threshold to pass is the next float up. A level that nothing reaches, infinity neither, has the
//! threshold infinity: binary activations {0, 1} have such a second one.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::CodesLayout;
use crate::epilogue::Quantizer;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{BLOCK_PIXELS, Level, Quantize, QuantizeInput};
use crate::parallel;
pub use crate::transpose::PixelOrder;

/// Writes the code of every element of `x` into `out`: `batch × pixels` pixels in `layout`.
///
/// `thresholds` are the smallest floats of level 1, of level 2 and, where `layout` has codes of two
/// bits, of level 3. Infinities are values like any other, but for thresholds: infinity says that
/// nothing reaches the level.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Value`] if a threshold
/// is NaN or below the one before; [`Error::Shape`] if sizes do not fit. `out` is unspecified
/// after an error.
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
    // An element costs about as much as this many products.
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

    /// The public function uses the best level only; here all of them, on pieces that begin
    /// anywhere.
    #[test]
    fn every_level_quantizes_alike() {
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
                    for piece in [1, 7, 16, 40, 3 * pixels] {
                        let mut out = vec![0xA5; expected.len()];
                        for (i, out) in out.chunks_mut(piece * layout.pixel_bytes()).enumerate() {
                            assert!(level.run(Quantize { input: &input, first: i * piece, out }));
                        }
                        assert_eq!(
                            out, expected,
                            "{level:?} {order:?} {pixels} {channels} {piece}"
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
