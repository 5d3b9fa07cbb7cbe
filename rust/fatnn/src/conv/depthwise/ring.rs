//! The ring of quantized rows under one or two output lines.

use std::ops::Range;

use super::input::{ComputeBytes, Input, InputLines};
use super::{Geometry, Layer};
use crate::error::Result;
use crate::kernels::depthwise::QuantizeParams;
use crate::{memory, parallel};

/// What the ring and the buffer of computed lines hold.
pub(super) struct RingState {
    pub image: usize,
    /// Rows of this image in the ring.
    pub rows: Range<usize>,
    /// Input lines in `Scratch::computed`, numbered over all images.
    pub computed: Range<usize>,
    /// End of the input lines that this call reads, numbered over all images.
    pub end: usize,
}

impl Geometry {
    /// Adds the rows under windows that start at the padded row `top` to the ring, if they are not
    /// in it yet.
    pub(super) fn fill_ring(
        &self,
        x: Input<'_>,
        layer: &Layer<'_>,
        (image, top): (usize, usize),
        ring_state: &mut RingState,
        [repeated, computed]: [&mut Vec<f32>; 2],
        rows: &mut [u8],
    ) -> Result<()> {
        let [height, width] = self.shape.input;
        let (wanted, from) = self.wanted_rows((image, top), ring_state);
        let inputs = layer.weights.shape().channels;
        let params = QuantizeParams::new(layer.constants.inv_step, layer.bounds);
        for y in from..wanted.end {
            let (number, line) = (image * height + y, width * inputs);
            if !x.is_in_memory() && !ring_state.computed.contains(&number) {
                let count = self.lines_to_compute(number, ring_state, image * height + wanted.end);
                memory::grow("lines of an input", computed, count * line, 0.0)?;
                x.read_lines(number, line, inputs, &mut computed[..count * line])?;
                ring_state.computed = number..number + count;
            }
            let row = match x.lines {
                InputLines::InMemory(x) if ring_state.computed.is_empty() => {
                    &x[number * line..][..line]
                }
                _ => &computed[(number - ring_state.computed.start) * line..][..line],
            };
            let out = &mut rows[y % self.slots * self.row_bytes..][..self.row_bytes];
            let no_nan = if self.multiplier == 1 {
                self.kernel.quantize(row, self.channels, &params, out)
            } else {
                memory::grow("repeated channels", repeated, width * self.channels, 0.0)?;
                let repeated = &mut repeated[..width * self.channels];
                for (out, x) in repeated.chunks_exact_mut(self.multiplier).zip(row) {
                    out.fill(*x);
                }
                self.kernel.quantize(repeated, self.channels, &params, out)
            };
            if !no_nan {
                return Err(x.nan((image * height + y) * line, row));
            }
        }
        (ring_state.image, ring_state.rows) = (image, wanted);
        Ok(())
    }

    /// The rows under windows that start at the padded row `top`, and the first of them that is not
    /// in the ring yet.
    fn wanted_rows(
        &self,
        (image, top): (usize, usize),
        ring_state: &RingState,
    ) -> (Range<usize>, usize) {
        let (height, padding) = (self.shape.input[0], self.shape.padding[0]);
        let wanted =
            top.saturating_sub(padding)..(top + self.span).saturating_sub(padding).min(height);
        let kept = if ring_state.image == image { ring_state.rows.end } else { 0 };
        let from = kept.max(wanted.start);
        (wanted, from)
    }

    /// How many input lines to compute from line `number` on, of which those before `needed` are
    /// needed now: up to the end of the image and of the lines that this call reads.
    fn lines_to_compute(&self, number: usize, ring_state: &RingState, needed: usize) -> usize {
        let height = self.shape.input[0];
        let last = ((number / height + 1) * height).min(ring_state.end.max(needed));
        self.strip_lines(self.channels / self.multiplier).min(last - number)
    }

    /// As [`Geometry::fill_ring`], for lines that are quantized when they are computed.
    pub(super) fn fill_ring_with_bytes(
        &self,
        source: &dyn ComputeBytes,
        (image, top): (usize, usize),
        ring_state: &mut RingState,
        computed: &mut Vec<u8>,
        rows: &mut [u8],
    ) -> Result<()> {
        let [height, width] = self.shape.input;
        let (wanted, from) = self.wanted_rows((image, top), ring_state);
        let line = width * self.channels;
        for y in from..wanted.end {
            let number = image * height + y;
            if !ring_state.computed.contains(&number) {
                let count = self.lines_to_compute(number, ring_state, image * height + wanted.end);
                memory::grow("lines of an input", computed, count * line, 0)?;
                let out = &mut computed[..count * line];
                parallel::on_this_thread(|| source.compute(number, out))?;
                ring_state.computed = number..number + count;
            }
            let row = &computed[(number - ring_state.computed.start) * line..][..line];
            let out = &mut rows[y % self.slots * self.row_bytes..][..self.row_bytes];
            self.kernel.arrange(row, self.channels, out);
        }
        (ring_state.image, ring_state.rows) = (image, wanted);
        Ok(())
    }
}
