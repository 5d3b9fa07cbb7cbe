//! Pooling of float32 values, some output pixels at a time: plain loops over blocks of channels.

use super::isa::Simd;
use super::vector::{Level, VectorLoop};
use crate::error::Result;

/// The input pixels of consecutive output pixels, as indices into the input's floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    /// Number of output pixels, at least one.
    pub pixels: usize,
    /// Floats from an output pixel's first input pixel to that of the next.
    pub pixel_stride: usize,
    /// Index of the first channel of the first pixel.
    pub first: usize,
    /// Number of rows, at least one.
    pub rows: usize,
    /// Floats from one row to the next.
    pub row_stride: usize,
    /// Number of columns, at least one.
    pub columns: usize,
    /// Floats from one column to the next.
    pub column_stride: usize,
}

impl Taps {
    fn last_offset(&self) -> usize {
        let pixels = self.first + (self.pixels - 1) * self.pixel_stride;
        pixels + (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride
    }
}

/// Pooling with the best instruction set that may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pooling(Level);

impl Pooling {
    /// The largest value per pixel and channel. NaN counts as the largest.
    pub fn max(self, x: &[f32], taps: &Taps, out: &mut [f32]) {
        struct MaxLoop<'a>(&'a [f32], &'a Taps, &'a mut [f32]);
        impl VectorLoop for MaxLoop<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, _: S) {
                pool::<Max>(self.0, self.1, self.2);
            }
        }
        self.0.run(MaxLoop(x, taps, out));
    }

    /// The sum per pixel and channel, added up row by row.
    pub fn sum(self, x: &[f32], taps: &Taps, out: &mut [f32]) {
        struct SumLoop<'a>(&'a [f32], &'a Taps, &'a mut [f32]);
        impl VectorLoop for SumLoop<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, _: S) {
                pool::<Sum>(self.0, self.1, self.2);
            }
        }
        self.0.run(SumLoop(x, taps, out));
    }
}

/// Pooling with the best instruction set that this process may use.
///
/// # Errors
/// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
pub(crate) fn pooling() -> Result<Pooling> {
    Ok(Pooling(Level::usable()?))
}

/// Channels that stay in registers together: four of the widest vectors, so that four chains of
/// additions run in parallel.
const BLOCK: usize = 64;
/// Channels in a vector.
const VECTOR: usize = 16;

/// How the values of a window become one, for `N` channels.
trait Reduce {
    /// `x` begins at the first channel of the first tap.
    fn block<const N: usize>(x: &[f32], taps: &Taps, out: &mut [f32; N]);
}

#[inline(always)]
fn pool<R: Reduce>(x: &[f32], taps: &Taps, out: &mut [f32]) {
    let channels = out.len() / taps.pixels;
    // One bounds check here, so that the compiler drops most of those of the loops.
    let x = &x[taps.first..taps.last_offset() + channels];
    for (i, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
        pool_pixel::<R>(&x[i * taps.pixel_stride..], taps, out);
    }
}

#[inline(always)]
fn pool_pixel<R: Reduce>(x: &[f32], taps: &Taps, out: &mut [f32]) {
    let channels = out.len();
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    for (i, out) in blocks.iter_mut().enumerate() {
        R::block(&x[i * BLOCK..], taps, out);
    }
    let done = channels - rest.len();
    let (vectors, rest) = rest.as_chunks_mut::<VECTOR>();
    for (i, out) in vectors.iter_mut().enumerate() {
        R::block(&x[done + i * VECTOR..], taps, out);
    }
    let done = channels - rest.len();
    for (i, out) in rest.iter_mut().enumerate() {
        R::block(&x[done + i..], taps, std::array::from_mut(out));
    }
}

/// Visits the values of `N` channels of every tap, row by row.
#[inline(always)]
fn each_tap<const N: usize>(x: &[f32], taps: &Taps, mut visit: impl FnMut(&[f32])) {
    for row in 0..taps.rows {
        for column in 0..taps.columns {
            visit(&x[row * taps.row_stride + column * taps.column_stride..][..N]);
        }
    }
}

/// The largest value; NaN if there is one.
struct Max;

impl Reduce for Max {
    #[inline(always)]
    fn block<const N: usize>(x: &[f32], taps: &Taps, out: &mut [f32; N]) {
        // Begin with the first tap, which is then compared with itself.
        let mut max = [0.0; N];
        max.copy_from_slice(&x[..N]);
        // The bits of the largest magnitude are above those of infinity if there is a NaN. Two
        // integer instructions cost less than a comparison and a choice for every value.
        let mut magnitude = [0u32; N];
        each_tap::<N>(x, taps, |x| {
            for j in 0..N {
                max[j] = if x[j] > max[j] { x[j] } else { max[j] };
                magnitude[j] = magnitude[j].max(x[j].to_bits() & (u32::MAX >> 1));
            }
        });
        let mut largest = 0;
        for magnitude in magnitude {
            largest = magnitude.max(largest);
        }
        if largest > f32::INFINITY.to_bits() {
            each_tap::<N>(x, taps, |x| {
                for j in 0..N {
                    max[j] = if x[j].is_nan() { x[j] } else { max[j] };
                }
            });
        }
        *out = max;
    }
}

/// The sum, added up row by row.
struct Sum;

impl Reduce for Sum {
    #[inline(always)]
    fn block<const N: usize>(x: &[f32], taps: &Taps, out: &mut [f32; N]) {
        let mut sum = [0.0; N];
        each_tap::<N>(x, taps, |x| {
            for j in 0..N {
                sum[j] += x[j];
            }
        });
        *out = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Features;

    #[test]
    fn every_instruction_set_pools_like_torch() {
        // Many equal values, zeros of both signs, infinities and NaN.
        let special =
            [0.0, -0.0, 1.5, -1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];
        for channels in [1, 3, 16, 17, 64, 70, 131] {
            let value = |i: usize| {
                if i.is_multiple_of(5) {
                    special[i * 7919 / 13 % 8]
                } else {
                    (i * 7919 % 1000) as f32 - 500.0
                }
            };
            let x: Vec<f32> = (0..6 * 5 * channels).map(value).collect();
            for (rows, columns, stride, pixels) in
                [(1, 1, 1, 3), (3, 3, 1, 2), (2, 3, 2, 1), (3, 2, 2, 2), (6, 1, 1, 4)]
            {
                let taps = Taps {
                    pixels,
                    pixel_stride: channels,
                    first: (6 - (rows - 1) * stride - 1) * 5 * channels,
                    rows,
                    row_stride: stride * 5 * channels,
                    columns,
                    column_stride: stride * channels,
                };
                let mut max = vec![f32::NEG_INFINITY; pixels * channels];
                let mut sum = vec![0.0; pixels * channels];
                for (pixel, row, column) in (0..pixels).flat_map(|pixel| {
                    let taps = (0..rows).flat_map(move |row| (0..columns).map(move |c| (row, c)));
                    taps.map(move |(row, column)| (pixel, row, column))
                }) {
                    let at = taps.first + row * taps.row_stride + column * taps.column_stride;
                    for c in 0..channels {
                        let (i, x) = (pixel * channels + c, x[at + (pixel * channels) + c]);
                        if x > max[i] || x.is_nan() || (row, column) == (0, 0) {
                            max[i] = x;
                        }
                        sum[i] += x;
                    }
                }
                // Any NaN counts as equal to any other.
                let bits = |x: &[f32]| {
                    x.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>()
                };
                for pooling in Level::all(Features::detected()).map(Pooling) {
                    let mut out = vec![9.0; pixels * channels];
                    pooling.max(&x, &taps, &mut out);
                    assert_eq!(bits(&out), bits(&max), "max of {taps:?}, {channels} channels");
                    pooling.sum(&x, &taps, &mut out);
                    assert_eq!(bits(&out), bits(&sum), "sum of {taps:?}, {channels} channels");
                }
            }
        }
    }
}
