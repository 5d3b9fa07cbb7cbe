//! Float32 depthwise convolution: plain loops whose lanes are channels.
//!
//! Sums run over the taps in order, with one multiplication and one addition per tap, so their
//! bits are equal on every instruction set.

use super::isa::Simd;
use super::vector::{Level, VectorLoop};
use crate::error::Result;

/// Offset of a tap that lies in the padding.
pub(crate) const PADDING: usize = usize::MAX;

/// Computes the pixels of `out`, each with `channels` channels.
///
/// `offsets[pixel][tap]` is where the pixel under a tap begins in `x`, or [`PADDING`]. `weights`
/// has the channels of each tap in turn.
///
/// # Errors
/// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
///
/// # Panics
/// If sizes do not fit: a bug in the caller.
pub(crate) fn depthwise_float(
    x: &[f32],
    weights: &[f32],
    offsets: &[usize],
    channels: usize,
    out: &mut [f32],
) -> Result<()> {
    let taps = weights.len() / channels;
    assert!(weights.len() == taps * channels && taps > 0);
    assert_eq!(offsets.len() * channels, out.len() * taps);
    Level::usable()?.run(Depthwise { x, weights, offsets, channels, taps, out });
    Ok(())
}

struct Depthwise<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    offsets: &'a [usize],
    channels: usize,
    taps: usize,
    out: &'a mut [f32],
}

impl VectorLoop for Depthwise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        // One block of channels of all pixels after the other: its weights stay in cache.
        let mut first = 0;
        while first + 32 <= self.channels {
            self.block::<32>(first);
            first += 32;
        }
        while first + 8 <= self.channels {
            self.block::<8>(first);
            first += 8;
        }
        for channel in first..self.channels {
            self.block::<1>(channel);
        }
    }
}

impl Depthwise<'_> {
    /// `C` channels of all pixels, from channel `first` on.
    #[inline(always)]
    fn block<const C: usize>(&mut self, first: usize) {
        let pixels = self.out.chunks_exact_mut(self.channels);
        for (out, offsets) in pixels.zip(self.offsets.chunks_exact(self.taps)) {
            let mut sums = [0.0f32; C];
            for (&offset, weights) in offsets.iter().zip(self.weights.chunks_exact(self.channels)) {
                if offset == PADDING {
                    continue;
                }
                let x = self.x[offset + first..].first_chunk::<C>();
                let (Some(x), Some(w)) = (x, weights[first..].first_chunk::<C>()) else { return };
                for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
                    *sum += x * w;
                }
            }
            out[first..first + C].copy_from_slice(&sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Features;

    #[test]
    fn every_level_equals_sums_in_the_order_of_taps() {
        for (channels, taps, pixels) in [(1, 1, 1), (7, 9, 5), (8, 4, 3), (45, 9, 6), (96, 25, 4)] {
            let value = |i: usize| (i % 251) as f32 / 7.0 - 17.0;
            let x: Vec<f32> = (0..channels * 40).map(value).collect();
            let weights: Vec<f32> = (0..channels * taps).map(|i| value(i * 3 + 1)).collect();
            let offset = |i: usize| if i % 5 == 3 { PADDING } else { i * 7 % 40 * channels };
            let offsets: Vec<usize> = (0..pixels * taps).map(offset).collect();
            let mut expected = vec![0.0f32; pixels * channels];
            for (i, out) in expected.iter_mut().enumerate() {
                let (pixel, c) = (i / channels, i % channels);
                for t in 0..taps {
                    if let at @ 0..PADDING = offsets[pixel * taps + t] {
                        *out += x[at + c] * weights[t * channels + c];
                    }
                }
            }
            for level in Level::all(Features::detected()) {
                let mut out = vec![f32::NAN; pixels * channels];
                let (x, weights, offsets) = (&x[..], &weights[..], &offsets[..]);
                level.run(Depthwise { x, weights, offsets, channels, taps, out: &mut out });
                assert_eq!(out, expected, "{level:?}, {channels} channels");
            }
        }
    }
}
