//! The output of a depthwise convolution: floats, or codes of a fused quantizer.

use std::ops::Range;

use super::SumThresholds;
use super::multiply::LineOutput;
use crate::codec::CodesLayout;
use crate::error::{Result, check_len};
use crate::quantize::{PixelOrder, quantize};
use crate::{memory, parallel};

/// A quantizer that reads output lines while they are in cache.
#[derive(Clone, Copy)]
pub(crate) struct LineQuantizer<'a> {
    /// Name used in error messages.
    pub label: &'a str,
    pub thresholds: &'a [f32],
    pub layout: CodesLayout,
    /// The same thresholds for sums, if there are any.
    pub sums: Option<&'a SumThresholds>,
}

impl LineQuantizer<'_> {
    /// Quantizes pixels. `first` is the number of the first one, over all images.
    fn quantize(&self, floats: &[f32], first: usize, out: &mut [u8]) -> Result<()> {
        let (pixels, order) = (out.len() / self.layout.pixel_bytes(), PixelOrder::ChannelsLast);
        // Stay on this thread: the floats are borrowed from its thread-local storage.
        parallel::on_this_thread(|| {
            quantize(floats, 1, pixels, order, self.thresholds, self.layout, out)
        })
        .map_err(|error| error.counted_from(first * self.layout.channels()).in_node(self.label))
    }
}

/// The output of a depthwise convolution, or whole lines of it. Channels are last.
pub(crate) enum Output<'a> {
    Floats(&'a mut [f32]),
    /// Codes of the quantizer that is the only reader of the floats.
    Codes(&'a mut [u8], LineQuantizer<'a>),
}

impl Output<'_> {
    /// Checks that it has room for `pixels` pixels.
    pub(super) fn check(&self, pixels: usize, channels: usize) -> Result<()> {
        match self {
            Output::Floats(out) => check_len("output", pixels * channels, out.len()),
            Output::Codes(out, to) => {
                check_len("channels of the codes", channels, to.layout.channels())?;
                let bytes = pixels.saturating_mul(to.layout.pixel_bytes());
                check_len("packed codes of the output", bytes, out.len())
            }
        }
    }

    /// Number of pixels.
    pub(super) fn pixels(&self, channels: usize) -> usize {
        match self {
            Output::Floats(out) => out.len() / channels,
            Output::Codes(out, to) => out.len() / to.layout.pixel_bytes(),
        }
    }

    /// The codes of `pixels`, set to zero, if they are written straight from sums.
    pub(super) fn codes(&mut self, pixels: Range<usize>) -> Option<LineOutput<'_>> {
        let Output::Codes(out, LineQuantizer { layout, sums: Some(sums), .. }) = self else {
            return None;
        };
        let bytes = layout.pixel_bytes();
        let out = &mut out[pixels.start * bytes..pixels.end * bytes];
        out.fill(0);
        Some(LineOutput::Codes(out, *layout, sums))
    }

    /// Memory for the floats of `pixels`: a part of the output, or `scratch` if it holds codes.
    pub(super) fn floats<'b>(
        &'b mut self,
        pixels: Range<usize>,
        channels: usize,
        scratch: &'b mut Vec<f32>,
    ) -> Result<&'b mut [f32]> {
        match self {
            Output::Floats(out) => Ok(&mut out[pixels.start * channels..pixels.end * channels]),
            Output::Codes(..) => {
                let count = pixels.len() * channels;
                memory::grow("output lines of a convolution", scratch, count, 0.0)?;
                Ok(&mut scratch[..count])
            }
        }
    }

    /// If the output holds codes, quantizes the floats in `scratch`. `first` is the number of the
    /// first pixel, over all images.
    pub(super) fn store(
        &mut self,
        pixels: Range<usize>,
        first: usize,
        channels: usize,
        scratch: &[f32],
    ) -> Result<()> {
        let Output::Codes(out, to) = self else { return Ok(()) };
        let (bytes, count) = (to.layout.pixel_bytes(), pixels.len() * channels);
        let out = &mut out[pixels.start * bytes..pixels.end * bytes];
        to.quantize(&scratch[..count], first, out)
    }
}
