//! Gathers the columns of an int8 convolution: interleaves image rows and adds zero padding.

use super::columns::{Block, Geometry};
use crate::kernels::columns::Int8Layout;
use crate::kernels::int8::{Pixels, interleave, roll};

impl Geometry {
    /// Gathers the columns for one line of a block.
    #[allow(clippy::too_many_arguments, reason = "the whole state of a block, used once")]
    pub(super) fn gather(
        &self,
        image: &[u8],
        layout: &Int8Layout,
        group: usize,
        block: &Block,
        line: usize,
        (offsets, above): (&mut Vec<usize>, Option<Block>),
        columns: &mut [u8],
    ) {
        let ([h, w], [_, kw], [stride_y, stride]) =
            (self.shape.input, self.shape.kernel, self.shape.stride);
        let ([pad_y, pad], [dilation_y, dilation]) = (self.shape.padding, self.shape.dilation);
        let line = block.line + line;
        let (number, y) = (line / self.output[0], line % self.output[0] * stride_y);
        offsets.clear();
        offsets.extend((0..self.shape.kernel[0]).map(|ky| {
            match (y + ky * dilation_y).checked_sub(pad_y) {
                Some(y) if y < h => {
                    (number * h + y) * w * self.pixel_bytes + group * self.group_bytes
                }
                _ => self.zeros,
            }
        }));
        let zero = layout.element.zero();
        if self.shared {
            let wanted = (block.width - 1) * stride + kw;
            // Adjacent lines share most of their image rows.
            let rolls = above.is_some_and(|above| {
                block.lines == 1
                    && above.line + 1 == block.line
                    && (above.x, above.width) == (block.x, block.width)
            });
            let new = if rolls && y > 0 && dilation_y == 1 { stride_y } else { offsets.len() };
            self.gather_columns(
                image,
                offsets,
                (block.x * stride, pad, w),
                wanted,
                (zero, new),
                columns,
            );
        } else {
            for x in 0..block.width {
                for kx in 0..kw {
                    let columns = &mut columns[x * self.row + kx * self.column..];
                    let at = (block.x + x) * stride + kx * dilation;
                    self.gather_columns(
                        image,
                        offsets,
                        (at, pad, w),
                        1,
                        (zero, offsets.len()),
                        columns,
                    );
                }
            }
        }
    }

    /// Gathers `count` adjacent columns; column `at` is the first. The image has `w` columns, after
    /// `pad` columns of zeros. Only the last `new` rows are missing in `columns`; older ones move
    /// up.
    fn gather_columns(
        &self,
        image: &[u8],
        rows: &[usize],
        (at, pad, w): (usize, usize, usize),
        count: usize,
        (zero, new): (u8, usize),
        columns: &mut [u8],
    ) {
        let left = pad.saturating_sub(at).min(count);
        let from = (at + left).saturating_sub(pad);
        let real = w.saturating_sub(from).min(count - left);
        columns[..left * self.column].fill(zero);
        let pixels =
            Pixels { first: from, count: real, bytes: self.group_bytes, pitch: self.pixel_bytes };
        let inner = &mut columns[left * self.column..];
        let keep = rows.len().saturating_sub(new);
        if keep == 0 || !roll(image, &rows[keep..], keep, &pixels, inner) {
            interleave(image, rows, &pixels, inner);
        }
        columns[(left + real) * self.column..count * self.column].fill(zero);
    }
}
