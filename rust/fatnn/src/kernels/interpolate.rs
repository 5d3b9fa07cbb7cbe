//! Bilinear interpolation of a row: a plain loop with a fixed order of additions.

use super::isa::Simd;
use super::vector::VectorLoop;

/// The two input pixels of an axis between which an output pixel lies, and their weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbors {
    pub at: [usize; 2],
    pub weights: [f32; 2],
}

/// Computes one output row from two input lines: each pixel is the weighted sum of four pixels.
pub(crate) struct Row<'a> {
    pub out: &'a mut [f32],
    pub lines: [&'a [f32]; 2],
    /// Weights of the lines.
    pub down: [f32; 2],
    pub columns: &'a [Neighbors],
    pub channels: usize,
}

impl VectorLoop for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { out, lines: [above, below], down: [up, low], columns, channels } = self;
        for (out, column) in out.chunks_exact_mut(channels).zip(columns) {
            let ([first, second], [left, right]) = (column.at, column.weights);
            let pixel = |at: usize| at * channels..(at + 1) * channels;
            let (a, b) = (&above[pixel(first)], &above[pixel(second)]);
            let (c, d) = (&below[pixel(first)], &below[pixel(second)]);
            let [p, q, r, s] = [up * left, up * right, low * left, low * right];
            for (((y, a), b), (c, d)) in out.iter_mut().zip(a).zip(b).zip(c.iter().zip(d)) {
                *y = p * a + q * b + r * c + s * d;
            }
        }
    }
}
