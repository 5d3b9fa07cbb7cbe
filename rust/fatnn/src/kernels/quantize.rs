//! The loops of [`crate::quantize`]: from floats to packed codes.
//!
//! Most of the work is to collect the results of comparisons in 64-bit words.
//!
//! In channels-last order, values next to each other in memory become bits next to each other. That
//! takes one instruction per vector.
//!
//! In channels-first order, values next to each other are pixels. 16 of them (one cache line) are
//! processed together. Each has a 32-bit word, and every channel sets its bit in all of these
//! words: a loop that compilers vectorise. The outermost loop goes over units of 64 channels, so
//! that memory is read in 32 streams, few enough for hardware prefetchers.

use super::isa::{Simd, first_elements};
use super::vector::VectorLoop;
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::epilogue::Quantizer;
use crate::transpose::PixelOrder;

/// What [`Quantize`] reads.
#[derive(Clone, Copy)]
pub(crate) struct QuantizeInput<'a> {
    pub x: &'a [f32],
    /// Pixels per image.
    pub pixels: usize,
    pub order: PixelOrder,
    pub to: Quantizer,
}

/// Pixels that are compared together in channels-first order.
pub(crate) const BLOCK_PIXELS: usize = 16;
/// Channels in a word.
const WORD_CHANNELS: usize = 64;
/// Channels are compared in multiples of this: the widest vector.
const VECTOR: usize = 16;
/// Bytes of a unit: two words.
const UNIT_BYTES: usize = 16;

/// Quantizes as many pixels as `out` holds, from pixel number `first` on. Returns whether no value
/// was NaN.
pub(crate) struct Quantize<'a> {
    pub input: &'a QuantizeInput<'a>,
    pub first: usize,
    pub out: &'a mut [u8],
}

impl VectorLoop for Quantize<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        quantize_pixels(simd, self.input, self.first, self.out)
    }
}

#[inline(always)]
fn quantize_pixels<S: Simd>(
    simd: S,
    input: &QuantizeInput<'_>,
    first: usize,
    out: &mut [u8],
) -> bool {
    // Compile each coding separately: ternary codes need no third comparison.
    match (input.order, input.to.layout.coding()) {
        (PixelOrder::ChannelsLast, Coding::Ternary) => {
            channels_last::<S, 2>(simd, input, first, out)
        }
        (PixelOrder::ChannelsLast, Coding::Uint2) => channels_last::<S, 3>(simd, input, first, out),
        (PixelOrder::ChannelsFirst, Coding::Ternary) => channels_first::<2>(input, first, out),
        (PixelOrder::ChannelsFirst, Coding::Uint2) => channels_first::<3>(input, first, out),
    }
}

#[inline(always)]
fn channels_last<S: Simd, const THRESHOLDS: usize>(
    simd: S,
    input: &QuantizeInput<'_>,
    first: usize,
    out: &mut [u8],
) -> bool {
    let (to, layout) = (&input.to, input.to.layout);
    let (channels, bytes) = (layout.channels(), layout.pixel_bytes());
    let x = &input.x[first * channels..][..out.len() / bytes * channels];
    let group = layout.group_channels();
    let (whole, tail) = (group / WORD_CHANNELS, group % WORD_CHANNELS);
    // A sum with NaN is NaN, so one addition per vector finds NaN; a comparison takes four
    // instructions. Infinities of both signs add up to NaN, too.
    let mut probe = [0.0; WORD_CHANNELS];
    for (g, out) in out.chunks_exact_mut(layout.group_bytes()).enumerate() {
        let x = &x[g * group..];
        let units = out.as_chunks_mut::<UNIT_BYTES>().0;
        for (x, unit) in x.as_chunks().0.iter().zip(&mut units[..whole]) {
            *unit = word::<S, WORD_CHANNELS, THRESHOLDS>(simd, x, WORD_CHANNELS, to, &mut probe);
        }
        let (x, probe) = (&x[whole * WORD_CHANNELS..], &mut probe);
        match tail.div_ceil(VECTOR) {
            0 => (),
            1 => units[whole] = last_word::<S, 16, THRESHOLDS>(simd, x, tail, to, probe),
            2 => units[whole] = last_word::<S, 32, THRESHOLDS>(simd, x, tail, to, probe),
            3 => units[whole] = last_word::<S, 48, THRESHOLDS>(simd, x, tail, to, probe),
            _ => units[whole] = last_word::<S, 64, THRESHOLDS>(simd, x, tail, to, probe),
        }
    }
    probe.iter().all(|x| !x.is_nan()) || x.iter().all(|x| !x.is_nan())
}

/// Quantizes the first `channels` elements of `x`. Adds all elements to `probe`.
#[inline(always)]
fn word<S: Simd, const N: usize, const THRESHOLDS: usize>(
    simd: S,
    x: &[f32; N],
    channels: usize,
    to: &Quantizer,
    probe: &mut [f32; WORD_CHANNELS],
) -> [u8; UNIT_BYTES] {
    let valid = u64::MAX >> (WORD_CHANNELS - channels);
    let mut reached = [0; MAX_THRESHOLDS];
    for (reached, threshold) in reached.iter_mut().zip(to.thresholds).take(THRESHOLDS) {
        *reached = simd.ge_mask_f32(x, threshold) & valid;
    }
    for j in 0..N {
        probe[j] += x[j];
    }
    unit_to_bytes(to.layout.coding().planes(reached))
}

/// [`word`] for `channels` elements, at most `N`. It reads `N` elements, unless `x` is shorter:
/// those of the next pixel are only added to `probe`, as they are anyway.
#[inline(always)]
fn last_word<S: Simd, const N: usize, const THRESHOLDS: usize>(
    simd: S,
    x: &[f32],
    channels: usize,
    to: &Quantizer,
    probe: &mut [f32; WORD_CHANNELS],
) -> [u8; UNIT_BYTES] {
    if let Some(x) = x.first_chunk() {
        return word::<S, N, THRESHOLDS>(simd, x, channels, to, probe);
    }
    word::<S, N, THRESHOLDS>(simd, &first_elements(x, channels), channels, to, probe)
}

#[inline(always)]
fn unit_to_bytes([first, second]: [u64; 2]) -> [u8; UNIT_BYTES] {
    (u128::from(second) << 64 | u128::from(first)).to_le_bytes()
}

#[inline(always)]
fn channels_first<const THRESHOLDS: usize>(
    input: &QuantizeInput<'_>,
    first: usize,
    out: &mut [u8],
) -> bool {
    let layout = input.to.layout;
    let bytes = layout.pixel_bytes();
    let image_floats = layout.channels() * input.pixels;
    let mut no_nan = true;
    let (mut done, total) = (0, out.len() / bytes);
    while done < total {
        // The pixels of `out` that belong to the same image.
        let (image, begin) = ((first + done) / input.pixels, (first + done) % input.pixels);
        let count = (input.pixels - begin).min(total - done);
        let x = &input.x[image * image_floats..][..image_floats];
        let out = &mut out[done * bytes..][..count * bytes];
        for (g, group) in x.chunks_exact(layout.group_channels() * input.pixels).enumerate() {
            for (u, channels) in group.chunks(WORD_CHANNELS * input.pixels).enumerate() {
                let offset = g * layout.group_bytes() + u * UNIT_BYTES;
                no_nan &= unit_pixels::<THRESHOLDS>(input, channels, begin, count, offset, out);
            }
        }
        done += count;
    }
    no_nan
}

/// Quantizes one unit, at byte `offset`, of `count` pixels of one image. The first pixel has number
/// `begin`; `channels` are the channels of the unit.
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
    let (low, high) = channels.split_at(channels.len().min(WORD_CHANNELS / 2 * input.pixels));
    let mut no_nan = true;
    let mut at = 0;
    while at < count {
        // The last block overlaps the one before it, if there is one.
        at = at.min(count.saturating_sub(BLOCK_PIXELS));
        let take = BLOCK_PIXELS.min(count);
        let (reached_low, ok_low) = half_words::<THRESHOLDS>(input, low, begin + at, take);
        let (reached_high, ok_high) = half_words::<THRESHOLDS>(input, high, begin + at, take);
        no_nan &= ok_low & ok_high;
        for (i, pixel) in out[at * bytes..].chunks_exact_mut(bytes).take(take).enumerate() {
            let mut reached = [0; MAX_THRESHOLDS];
            for t in 0..THRESHOLDS {
                reached[t] = u64::from(reached_low[t][i]) | u64::from(reached_high[t][i]) << 32;
            }
            pixel[offset..offset + UNIT_BYTES]
                .copy_from_slice(&unit_to_bytes(coding.planes(reached)));
        }
        at += take;
    }
    no_nan
}

/// Which thresholds up to 32 channels reach, for `count` pixels, and whether none was NaN.
#[inline(always)]
fn half_words<const THRESHOLDS: usize>(
    input: &QuantizeInput<'_>,
    channels: &[f32],
    at: usize,
    count: usize,
) -> ([[u32; BLOCK_PIXELS]; THRESHOLDS], bool) {
    let (mut reached, mut nan) = ([[0u32; BLOCK_PIXELS]; THRESHOLDS], [0u32; BLOCK_PIXELS]);
    let thresholds: [f32; THRESHOLDS] = std::array::from_fn(|t| input.to.thresholds[t]);
    let mut add = |x: &[f32; BLOCK_PIXELS], bit: u32| {
        for i in 0..BLOCK_PIXELS {
            for t in 0..THRESHOLDS {
                reached[t][i] |= if x[i] >= thresholds[t] { bit } else { 0 };
            }
            nan[i] = if x[i].is_nan() { 1 } else { nan[i] };
        }
    };
    let channels = channels.chunks_exact(input.pixels).enumerate();
    if count == BLOCK_PIXELS {
        for (c, channel) in channels {
            add(channel[at..at + BLOCK_PIXELS].try_into().expect("BLOCK_PIXELS elements"), 1 << c);
        }
    } else {
        for (c, channel) in channels {
            let mut x = [0.0; BLOCK_PIXELS];
            x[..count].copy_from_slice(&channel[at..at + count]);
            add(&x, 1 << c);
        }
    }
    (reached, nan == [0; BLOCK_PIXELS])
}
