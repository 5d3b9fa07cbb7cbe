//! Float activations to codes: the border between float layers and ternary ones.
//!
//! A quantizer with three levels is two thresholds: `level = [x ≥ low] + [x ≥ high]`, code `level - 1`, whatever formula it
//! was trained with; one with four levels is three, and its code the level. The thresholds are **the smallest floats of levels
//! 1, 2 (and 3)**. They are found from the trained quantizer itself, for its formula may round: `torch.round` is half-to-even,
//! so that in `round(clip(x·α, 0, 1))` a value exactly on `0.5/α` still belongs to the level below, and the threshold to pass
//! is the next float up. A level that nothing reaches, infinity neither, has the threshold infinity: binary activations
//! {0, 1} have such a second one.
//!
//! The work is gathering comparisons into words of bits. Channels-last, neighbours in memory become neighbouring bits: each
//! instruction set has an instruction for that. Channels-first, neighbours are pixels: 16 of them (one cache line) are kept
//! in a vector, a 32-bit word each, and every channel sets its bit in all of them, a plain loop that compilers vectorise.
//! Units of 64 channels are the outermost loop, so that memory is read in 32 streams, which prefetchers follow.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::{CodesLayout, Coding, MOST_THRESHOLDS};
use crate::epilogue::Quantizer;
use crate::error::{Error, Result, bad_value, check_len};
use crate::{kernels, parallel};

/// How float activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelOrder {
    /// `batch × channels × pixels`, PyTorch's default.
    ChannelsFirst,
    /// `batch × pixels × channels`.
    ChannelsLast,
}

/// What [`crate::kernels::Kernel::quantize`] reads.
pub struct QuantizeInput<'a> {
    x: &'a [f32],
    /// Per image.
    pixels: usize,
    order: PixelOrder,
    to: Quantizer,
}

/// Writes the code of every element of `x` into `out`: `batch × pixels` pixels in `layout`.
///
/// `thresholds` are the smallest floats of level 1, of level 2 and, where `layout` has codes of two bits, of level 3. Infinities
/// are values like any other, but for thresholds: infinity says that nothing reaches the level.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Value`] where a threshold is NaN or below the one
/// before; [`Error::Shape`] where sizes do not fit. `out` is unspecified after an error.
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
    let sizes = batch
        .checked_mul(pixels)
        .and_then(|n| Some((n.checked_mul(layout.channels())?, n.checked_mul(layout.pixel_bytes())?)));
    let Some((elements, bytes)) = sizes else {
        return bad_value("input", "a size that fits in memory", format!("{batch} × {pixels} pixels"));
    };
    check_len("input", elements, x.len())?;
    check_len("packed codes", bytes, out.len())?;
    let order = if pixels == 1 { PixelOrder::ChannelsLast } else { order };
    let input = QuantizeInput { x, pixels, order, to };
    let kernel = kernels::best()?;
    let all_numbers = AtomicBool::new(true);
    let work = |first: usize, out: &mut [u8]| {
        if !kernel.quantize(&input, first, out) {
            all_numbers.store(false, Ordering::Relaxed);
        }
    };
    // An element costs about as much as this many products.
    parallel::for_each_rows(out, layout.pixel_bytes(), BLOCK, elements.saturating_mul(32), work)?;
    if !all_numbers.into_inner()
        && let Some(index) = x.iter().position(|v| v.is_nan())
    {
        return Err(Error::NotANumber { what: "input", index });
    }
    Ok(())
}

/// Pixels that are compared at once, where channels come first.
const BLOCK: usize = 16;
/// Channels in a word.
const WORD: usize = 64;
/// Bytes of two words.
const UNIT: usize = 16;

/// Quantizes the pixels whose codes `out` holds, `first` being the first one's number; whether none was NaN.
/// `at_least(x, threshold)` is [`at_least`], or the same in the instruction set's own words.
#[inline(always)]
pub(crate) fn pixels(
    input: &QuantizeInput<'_>,
    first: usize,
    out: &mut [u8],
    at_least: impl Fn(&[f32; WORD], f32) -> u64,
) -> bool {
    // Each coding compiled on its own: ternary codes take no third comparison.
    match (input.order, input.to.layout.coding()) {
        (PixelOrder::ChannelsLast, Coding::Ternary) => channels_last::<2>(input, first, out, at_least),
        (PixelOrder::ChannelsLast, Coding::Uint2) => channels_last::<3>(input, first, out, at_least),
        (PixelOrder::ChannelsFirst, Coding::Ternary) => channels_first::<2>(input, first, out),
        (PixelOrder::ChannelsFirst, Coding::Uint2) => channels_first::<3>(input, first, out),
    }
}

/// Bit `j` says whether `x[j] >= threshold`.
#[inline(always)]
pub(crate) fn at_least<const N: usize>(x: &[f32; N], threshold: f32) -> u64 {
    let mut bits = 0;
    for (j, &x) in x.iter().enumerate() {
        bits |= u64::from(x >= threshold) << j;
    }
    bits
}

#[inline(always)]
fn channels_last<const THRESHOLDS: usize>(
    input: &QuantizeInput<'_>,
    first: usize,
    out: &mut [u8],
    at_least: impl Fn(&[f32; WORD], f32) -> u64,
) -> bool {
    let layout = input.to.layout;
    let (channels, bytes) = (layout.channels(), layout.pixel_bytes());
    let x = &input.x[first * channels..][..out.len() / bytes * channels];
    let mut numbers = true;
    // The comparison with -∞ finds NaN.
    let word = |x: &[f32; WORD], real: u64| {
        let mut reached = [0; MOST_THRESHOLDS];
        for (reached, threshold) in reached.iter_mut().zip(input.to.thresholds).take(THRESHOLDS) {
            *reached = at_least(x, threshold) & real;
        }
        (unit(layout.coding().planes(reached)), at_least(x, f32::NEG_INFINITY) == u64::MAX)
    };
    let groups = x.chunks_exact(layout.group_channels()).zip(out.chunks_exact_mut(layout.group_bytes()));
    for (x, out) in groups {
        let (words, tail) = x.as_chunks::<WORD>();
        let (units, tail_unit) = out.split_at_mut(words.len() * UNIT);
        for (x, unit) in words.iter().zip(units.as_chunks_mut::<UNIT>().0) {
            let ok;
            (*unit, ok) = word(x, u64::MAX);
            numbers &= ok;
        }
        if !tail.is_empty() {
            let mut padded = [0.0; WORD];
            padded[..tail.len()].copy_from_slice(tail);
            let (unit, ok) = word(&padded, u64::MAX >> (WORD - tail.len()));
            tail_unit.copy_from_slice(&unit);
            numbers &= ok;
        }
    }
    numbers
}

#[inline(always)]
fn unit([first, second]: [u64; 2]) -> [u8; UNIT] {
    (u128::from(second) << 64 | u128::from(first)).to_le_bytes()
}

#[inline(always)]
fn channels_first<const THRESHOLDS: usize>(input: &QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
    let layout = input.to.layout;
    let bytes = layout.pixel_bytes();
    let image_floats = layout.channels() * input.pixels;
    let mut numbers = true;
    let (mut done, total) = (0, out.len() / bytes);
    while done < total {
        // The pixels of one image that `out` holds.
        let (image, begin) = ((first + done) / input.pixels, (first + done) % input.pixels);
        let count = (input.pixels - begin).min(total - done);
        let x = &input.x[image * image_floats..][..image_floats];
        let out = &mut out[done * bytes..][..count * bytes];
        for (g, group) in x.chunks_exact(layout.group_channels() * input.pixels).enumerate() {
            for (u, channels) in group.chunks(WORD * input.pixels).enumerate() {
                let offset = g * layout.group_bytes() + u * UNIT;
                numbers &= unit_pixels::<THRESHOLDS>(input, channels, begin, count, offset, out);
            }
        }
        done += count;
    }
    numbers
}

/// The unit at byte `offset` of `count` pixels of one image, of which `begin` is the first one's number, from that unit's
/// `channels`.
#[inline(always)]
fn unit_pixels<const THRESHOLDS: usize>(
    input: &QuantizeInput<'_>,
    channels: &[f32],
    begin: usize,
    count: usize,
    offset: usize,
    out: &mut [u8],
) -> bool {
    let bytes = input.to.layout.pixel_bytes();
    let coding = input.to.layout.coding();
    let (low, high) = channels.split_at(channels.len().min(WORD / 2 * input.pixels));
    let mut numbers = true;
    let mut at = 0;
    while at < count {
        // The last block overlaps the one before, where there is one.
        at = at.min(count.saturating_sub(BLOCK));
        let take = BLOCK.min(count);
        let (reached_low, ok_low) = half_words::<THRESHOLDS>(input, low, begin + at, take);
        let (reached_high, ok_high) = half_words::<THRESHOLDS>(input, high, begin + at, take);
        numbers &= ok_low & ok_high;
        for (i, pixel) in out[at * bytes..].chunks_exact_mut(bytes).take(take).enumerate() {
            let mut reached = [0; MOST_THRESHOLDS];
            for t in 0..THRESHOLDS {
                reached[t] = u64::from(reached_low[t][i]) | u64::from(reached_high[t][i]) << 32;
            }
            pixel[offset..offset + UNIT].copy_from_slice(&unit(coding.planes(reached)));
        }
        at += take;
    }
    numbers
}

/// Which thresholds up to 32 channels reach, for `count` pixels, and whether none was NaN.
#[inline(always)]
fn half_words<const THRESHOLDS: usize>(
    input: &QuantizeInput<'_>,
    channels: &[f32],
    at: usize,
    count: usize,
) -> ([[u32; BLOCK]; THRESHOLDS], bool) {
    let (mut reached, mut nan) = ([[0u32; BLOCK]; THRESHOLDS], [0u32; BLOCK]);
    let thresholds: [f32; THRESHOLDS] = std::array::from_fn(|t| input.to.thresholds[t]);
    let mut add = |x: &[f32; BLOCK], bit: u32| {
        for i in 0..BLOCK {
            for t in 0..THRESHOLDS {
                reached[t][i] |= if x[i] >= thresholds[t] { bit } else { 0 };
            }
            nan[i] = if x[i].is_nan() { 1 } else { nan[i] };
        }
    };
    let channels = channels.chunks_exact(input.pixels).enumerate();
    if count == BLOCK {
        for (c, channel) in channels {
            add(channel[at..at + BLOCK].try_into().expect("BLOCK elements"), 1 << c);
        }
    } else {
        for (c, channel) in channels {
            let mut x = [0.0; BLOCK];
            x[..count].copy_from_slice(&channel[at..at + count]);
            add(&x, 1 << c);
        }
    }
    (reached, nan == [0; BLOCK])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// The public function uses the best kernel only; here all of them, on pieces that begin anywhere.
    #[test]
    fn every_kernel_quantizes_alike() {
        let inf = f32::INFINITY;
        let values =
            [0.3, 0.3f32.next_down(), -0.4, (-0.4f32).next_down(), 9.0, -9.0, 0.0, 0.7, 0.7f32.next_down(), inf, -inf];
        let sizes = [(1, 64, 1), (5, 70, 1), (16, 33, 1), (37, 130, 2), (50, 6, 6)];
        let quantizers: [&[f32]; 4] = [&[-0.4, 0.3], &[-0.4, 0.3, 0.7], &[0.3, inf], &[0.3, 0.7, inf]];
        for ((pixels, channels, groups), thresholds) in sizes.into_iter().flat_map(|s| quantizers.map(|q| (s, q))) {
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
                for kernel in kernels::detected() {
                    for piece in [1, 7, 16, 40, 3 * pixels] {
                        let mut out = vec![0xA5; expected.len()];
                        for (i, out) in out.chunks_mut(piece * layout.pixel_bytes()).enumerate() {
                            assert!(kernel.quantize(&input, i * piece, out));
                        }
                        assert_eq!(out, expected, "{} {order:?} {pixels} {channels} {piece}", kernel.name());
                    }
                    for at in [0, n / 2, n - 1] {
                        let mut x = x.clone();
                        x[at] = f32::NAN;
                        let input = QuantizeInput { x: &x, ..input };
                        assert!(!kernel.quantize(&input, 0, &mut expected.clone()), "{}", kernel.name());
                    }
                }
            }
        }
    }
}
