//! Float activations to codes: the border between float layers and ternary ones.
//!
//! A quantizer with three levels is two thresholds: `level = [x ≥ low] + [x ≥ high]`, code `level - 1`, whatever formula it
//! was trained with. The thresholds are **the smallest floats of levels 1 and 2**. They are found from the trained quantizer
//! itself, for its formula may round: `torch.round` is half-to-even, so that in `round(clip(x·α, 0, 1))` a value exactly on
//! `0.5/α` still belongs to the level below, and the threshold to pass is the next float up.
//!
//! The work is gathering comparisons into words of bits. Channels-last, 64 neighbours in memory become one word, eight
//! comparisons a multiplication. Channels-first, neighbours are pixels: 16 pixels are kept in a vector, one 32-bit word
//! each, and every channel sets its bit in all of them; blocks of 16 pixels (one cache line) walk through all channels of a
//! word. Both are plain loops that compilers vectorise, compiled once per instruction set by the kernels.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::CodesLayout;
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
    low: f32,
    high: f32,
    layout: CodesLayout,
}

/// Writes the code of every element of `x` into `out`: `batch × pixels` pixels in `layout`.
///
/// `thresholds` are the smallest floats of level 1 and of level 2. Infinities are values like any other.
///
/// # Errors
/// [`Error::NotANumber`] with the index of the first NaN of `x`; [`Error::Value`] where a threshold is NaN or the first is
/// above the second; [`Error::Shape`] where sizes do not fit. `out` is unspecified after an error.
pub fn quantize(
    x: &[f32],
    batch: usize,
    pixels: usize,
    order: PixelOrder,
    thresholds: [f32; 2],
    layout: CodesLayout,
    out: &mut [u8],
) -> Result<()> {
    let [low, high] = thresholds;
    // Not `low > high`, which NaN would pass.
    if !matches!(low.partial_cmp(&high), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
        return bad_value("thresholds", "two numbers, the first at most the second", format!("{low} and {high}"));
    }
    let sizes = batch
        .checked_mul(pixels)
        .and_then(|n| Some((n.checked_mul(layout.channels())?, n.checked_mul(layout.pixel_bytes())?)));
    let Some((elements, bytes)) = sizes else {
        return bad_value("input", "a size that fits in memory", format!("{batch} × {pixels} pixels"));
    };
    check_len("input", elements, x.len())?;
    check_len("packed codes", bytes, out.len())?;
    let order = if pixels == 1 { PixelOrder::ChannelsLast } else { order };
    let input = QuantizeInput { x, pixels, order, low, high, layout };
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

/// Pixels that the channels-first order handles at once.
const BLOCK: usize = 16;
/// Channels in a word.
const WORD: usize = 64;

/// Quantizes the pixels whose codes `out` holds, `first` being the first one's number; whether there was no NaN.
#[inline(always)]
pub(crate) fn pixels(input: &QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
    match input.order {
        PixelOrder::ChannelsLast => channels_last(input, first, out),
        PixelOrder::ChannelsFirst => channels_first(input, first, out),
    }
}

#[inline(always)]
fn channels_last(input: &QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
    let layout = input.layout;
    let (channels, bytes) = (layout.channels(), layout.pixel_bytes());
    let x = &input.x[first * channels..][..out.len() / bytes * channels];
    let groups = x.chunks_exact(layout.group_channels()).zip(out.chunks_exact_mut(layout.group_bytes()));
    let mut numbers = true;
    for (x, out) in groups {
        for (x, out) in x.chunks(WORD).zip(out.as_chunks_mut::<16>().0) {
            let planes = match <&[f32; WORD]>::try_from(x) {
                Ok(x) => word(x, input.low, input.high),
                Err(_) => {
                    let mut padded = [0.0; WORD];
                    padded[..x.len()].copy_from_slice(x);
                    let (z, p, ok) = word(&padded, input.low, input.high);
                    let real = u64::MAX >> (WORD - x.len());
                    (z & real, p & real, ok)
                }
            };
            numbers &= planes.2;
            *out = unit(planes.0, planes.1);
        }
    }
    numbers
}

#[inline(always)]
fn unit(z: u64, p: u64) -> [u8; 16] {
    (u128::from(p) << 64 | u128::from(z)).to_le_bytes()
}

/// `z` and `p` of 64 neighbours, and whether all are numbers.
#[inline(always)]
fn word(x: &[f32; WORD], low: f32, high: f32) -> (u64, u64, bool) {
    let mut levels = [0u8; WORD];
    let mut nan = 0u32;
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = u8::from(x >= low) + u8::from(x >= high);
        nan |= u32::from(x.is_nan());
    }
    let (mut z, mut p) = (0u64, 0u64);
    for (i, levels) in levels.as_chunks::<8>().0.iter().enumerate() {
        let levels = u64::from_le_bytes(*levels);
        z |= low_bits(levels) << (8 * i);
        p |= low_bits(levels | levels >> 1) << (8 * i);
    }
    (z, p, nan == 0)
}

/// The lowest bit of each of eight bytes.
#[inline(always)]
fn low_bits(bytes: u64) -> u64 {
    (bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

#[inline(always)]
fn channels_first(input: &QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
    let layout = input.layout;
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
        let mut at = 0;
        while at < count {
            // The last block overlaps the one before, where there is one.
            let block = at.min(count.saturating_sub(BLOCK));
            let take = BLOCK.min(count - block);
            numbers &= pixel_block(input, x, begin + block, &mut out[block * bytes..][..take * bytes]);
            at = block + take;
        }
        done += count;
    }
    numbers
}

/// Up to [`BLOCK`] pixels of one image, of which `at` is the first one's number.
#[inline(always)]
fn pixel_block(input: &QuantizeInput<'_>, image: &[f32], at: usize, out: &mut [u8]) -> bool {
    let layout = input.layout;
    let count = out.len() / layout.pixel_bytes();
    let mut nan = [0u32; BLOCK];
    for (g, group) in image.chunks_exact(layout.group_channels() * input.pixels).enumerate() {
        for (u, channels) in group.chunks(WORD * input.pixels).enumerate() {
            // Two halves of 32 channels.
            let mut at_least_0 = [[0u32; BLOCK]; 2];
            let mut at_least_1 = [[0u32; BLOCK]; 2];
            for (h, half) in channels.chunks(WORD / 2 * input.pixels).enumerate() {
                let (p, x2) = (&mut at_least_0[h], &mut at_least_1[h]);
                let mut bit = 1u32;
                if count == BLOCK {
                    for channel in half.chunks_exact(input.pixels) {
                        let x: &[f32; BLOCK] = channel[at..at + BLOCK].try_into().expect("BLOCK elements");
                        for i in 0..BLOCK {
                            p[i] |= if x[i] >= input.low { bit } else { 0 };
                            x2[i] |= if x[i] >= input.high { bit } else { 0 };
                            nan[i] |= u32::from(x[i].is_nan());
                        }
                        bit <<= 1;
                    }
                } else {
                    for channel in half.chunks_exact(input.pixels) {
                        for (i, &x) in channel[at..at + count].iter().enumerate() {
                            p[i] |= if x >= input.low { bit } else { 0 };
                            x2[i] |= if x >= input.high { bit } else { 0 };
                            nan[i] |= u32::from(x.is_nan());
                        }
                        bit <<= 1;
                    }
                }
            }
            let offset = g * layout.group_bytes() + u * 16;
            for (i, pixel) in out.chunks_exact_mut(layout.pixel_bytes()).enumerate() {
                let join = |words: &[[u32; BLOCK]; 2]| u64::from(words[0][i]) | u64::from(words[1][i]) << 32;
                let (p, x2) = (join(&at_least_0), join(&at_least_1));
                pixel[offset..offset + 16].copy_from_slice(&unit(p & !x2, p));
            }
        }
    }
    nan == [0; BLOCK]
}
