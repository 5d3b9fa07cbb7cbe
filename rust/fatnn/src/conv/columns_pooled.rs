//! Int8 convolution with fused float pooling.

use std::cell::RefCell;

use super::columns::{Geometry, Layer, SCRATCH};
use super::pooling::PoolStep;
use crate::error::{Result, check_len};
use crate::kernels::pooling::pooling;
use crate::{memory, parallel};

/// Floats of a band beyond its first pooled line: a quarter of the second-level cache.
const BAND_FLOATS: usize = 64 << 10;
/// Pooled lines in a thread's chunk, at least, if every thread then gets a chunk.
const POOLED_LINES: usize = 4;

thread_local! {
    /// A band: lines of the convolution's output that pooling reads.
    static BAND: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Geometry {
    /// Runs the convolution and pools its output, a few lines at a time. The lines before pooling
    /// stay in cache.
    pub fn run_pooled(
        &self,
        x: &[f32],
        layer: &Layer<'_>,
        pool: &PoolStep,
        scratch: &mut [u8],
        out: &mut [f32],
    ) -> Result<()> {
        let ([height, width], [out_h, out_w]) = (self.output, pool.output());
        let n = layer.weights.shape().out_channels;
        check_len("output", self.shape.size("output", pool.output(), n)?, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let image = self.quantize(x, layer, scratch)?;
        let (line, pooling) = (width * n, pooling()?);
        // Every chunk computes a few more lines, which the next chunk computes too.
        let granularity = parallel::chunk_of_at_least(POOLED_LINES, self.shape.batch * out_h)?;
        parallel::try_for_each_rows(out, out_w * n, granularity, self.cost(layer), |first, out| {
            BAND.with_borrow_mut(|band| {
                // `band` holds the lines `held` of image `held_image`.
                let (mut held_image, mut held) = (usize::MAX, 0..0);
                let count = out.len() / (out_w * n);
                for (i, out) in out.chunks_exact_mut(out_w * n).enumerate() {
                    let (image_index, y) = ((first + i) / out_h, (first + i) % out_h);
                    let wanted = pool.lines(y);
                    // With padding and dilation, a later window may begin above an earlier one.
                    let above = wanted.start < held.start;
                    if held_image != image_index || above || wanted.end > held.end {
                        // Windows overlap: lines that are computed already move to the front.
                        let kept = if held_image == image_index && !above {
                            wanted.start.clamp(held.start, held.end)..held.end
                        } else {
                            0..0
                        };
                        let from = (kept.start - held.start.min(kept.start)) * line;
                        let start = if kept.is_empty() { wanted.start } else { kept.start };
                        // No more lines than this chunk needs.
                        let last = pool.lines((y + count - i).min(out_h) - 1).end;
                        let end = (wanted.end + (BAND_FLOATS / line)).min(last).max(wanted.end);
                        let (have, need) = (kept.len() * line, (end - start) * line);
                        band.copy_within(from..from + have, 0);
                        memory::grow("lines of a convolution before pooling", band, need, 0.0)?;
                        let at = (image_index * height + start) * width + kept.len() * width;
                        SCRATCH.with_borrow_mut(|scratch| {
                            self.pixels(image, layer, at, scratch, &mut band[have..need])
                        })?;
                        (held_image, held) = (image_index, start..end);
                    }
                    pool.pixels(&pooling, band, held.start, [y, 0], out);
                }
                Ok(())
            })
        })
    }
}
