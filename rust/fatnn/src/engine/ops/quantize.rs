//! Quantizers of floats as operations: see [`crate::quantize`].

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::CodesLayout;
use crate::engine::value::{Cost, Dims, Element, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, check_len};
use crate::kernels::{BLOCK_PIXELS, apply_all, dequantize};
use crate::quantize::{PixelOrder, quantize};
use crate::{memory, parallel};

/// Quantizes floats to codes.
#[derive(Debug)]
pub(crate) struct Quantize {
    pub thresholds: Vec<f32>,
    pub layout: CodesLayout,
    /// Elementwise functions of its input, which run before the quantizer.
    pub before: Vec<Elementwise>,
}

impl Operation for Quantize {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = inputs[0].dims;
        check_len("channels", self.layout.channels(), dims.channels)?;
        check_channels(&self.before, dims.channels)?;
        let mut cost = Cost::of(&dims, 1 + self.before.len());
        if !self.before.is_empty() || matches!(inputs[0].element, Element::Int8(_)) {
            cost.bytes = chunk_pixels(dims.channels) as u128 * dims.channels as u128 * 4;
        }
        Ok((Value::codes(dims, self.layout), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let dims = inputs[0].dims;
        Ok((Value::codes(dims, self.layout), Box::new(QuantizeStep { quantize: self, dims })))
    }

    fn reads_int8(&self, _: usize) -> bool {
        true
    }
}

#[derive(Debug)]
struct QuantizeStep {
    quantize: Arc<Quantize>,
    dims: Dims,
}

/// Pixels that functions and quantizer process together: their floats stay in the first-level
/// cache.
fn chunk_pixels(channels: usize) -> usize {
    (4096 / channels.max(1)).next_multiple_of(BLOCK_PIXELS).max(BLOCK_PIXELS)
}

thread_local! {
    /// Floats of one chunk. The buffer is kept between calls, so only the first run allocates.
    static CHUNK: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl QuantizeStep {
    /// Applies the functions and the quantizer to pixels. `first` is the number of the first pixel.
    fn pixels(&self, x: Slice<'_>, first: usize, out: &mut [u8]) -> Result<()> {
        let (q, channels) = (&*self.quantize, self.dims.channels);
        let (pixels, bytes) = (chunk_pixels(channels), q.layout.pixel_bytes());
        let mut at = first * channels;
        CHUNK.with_borrow_mut(|floats| {
            for out in out.chunks_mut(pixels * bytes) {
                let pixels = out.len() / bytes;
                memory::grow("pixels of a quantizer", floats, pixels * channels, 0.0)?;
                let floats = &mut floats[..pixels * channels];
                let range = at..at + floats.len();
                match x {
                    Slice::Int8(x, quantizer) => dequantize(&x[range], quantizer, floats)?,
                    x => floats.copy_from_slice(&x.floats()[range]),
                }
                apply_all(&q.before, floats, channels)?;
                let order = PixelOrder::ChannelsLast;
                let quantize = || quantize(floats, 1, pixels, order, &q.thresholds, q.layout, out);
                // Stay on this thread: the buffer is borrowed from its thread-local storage.
                parallel::on_this_thread(quantize).map_err(|error| error.counted_from(at))?;
                at += floats.len();
            }
            Ok(())
        })
    }
}

impl ExecutableOp for QuantizeStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (q, x) = (&self.quantize, inputs[0]);
        if !q.before.is_empty() || matches!(x, Slice::Int8(..)) {
            let cost = self.dims.elements().saturating_mul(32 + 16 * q.before.len());
            let bytes = q.layout.pixel_bytes();
            return parallel::try_for_each_rows(
                out.codes(),
                bytes,
                chunk_pixels(self.dims.channels),
                cost,
                |first, out| self.pixels(x, first, out),
            );
        }
        let pixels = self.dims.map[0] * self.dims.map[1];
        let order = PixelOrder::ChannelsLast;
        quantize(x.floats(), self.dims.images, pixels, order, &q.thresholds, q.layout, out.codes())
    }
}
