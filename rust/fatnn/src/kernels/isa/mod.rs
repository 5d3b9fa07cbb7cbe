//! Instruction sets, one file each, with the operations that plain loops and kernels share.
//!
//! A value of a [`Simd`] type proves that the CPU has its features, so its methods are safe. A loop
//! over arrays is written once, as a [`super::vector::VectorLoop`], and compiled for each of these
//! types. The trait also has the operation that compilers do not vectorise well: comparing into a
//! bit mask.

use super::vector::VectorLoop;
use crate::cpu::Features;
use crate::epilogue::Residual;
use crate::scalar::Encoder;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
pub(crate) mod scalar;

/// An instruction set that this CPU has.
///
/// # Safety
/// [`Simd::new`] must return a value only if every feature that the methods use was detected.
pub(crate) unsafe trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// A value, if `features` include this instruction set.
    fn new(features: Features) -> Option<Self>;

    /// A value, without checking features.
    ///
    /// # Safety
    /// The features must have been detected: [`Simd::new`] returned a value in this process.
    unsafe fn new_unchecked() -> Self;

    /// Bit `j` is set if `acc[j] >= threshold[j]`. `N` is a multiple of 16, at most 64.
    fn ge_mask<const N: usize>(self, acc: &[i32; N], threshold: &[i32; N]) -> u64;

    /// Bit `j` is set if `x[j] >= threshold`, and not set for NaN. `N` as in [`Simd::ge_mask`].
    fn ge_mask_f32<const N: usize>(self, x: &[f32; N], threshold: f32) -> u64;

    /// The first `count` elements of `x`, at most `N`, and zeros. `N` as in [`Simd::ge_mask`].
    #[inline(always)]
    fn load<const N: usize>(self, x: &[f32], count: usize) -> [f32; N] {
        first_elements(x, count)
    }

    /// Stores the first `count` elements of `y`. `N` as in [`Simd::ge_mask`].
    #[inline(always)]
    fn store<const N: usize>(self, to: &mut [f32], y: &[f32; N], count: usize) {
        copy_in_eights(&mut to[..count], &y[..count]);
    }

    /// Encodes the rows of a tile: see [`Int8Rows`]. `done` gets every row's number, and a mask per
    /// threshold of the codes that reach it. Returns a mask of the channels with NaN, which is only
    /// looked for with a residual of floats.
    #[inline(always)]
    fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
        self,
        rows: &Int8Rows<'_, NR>,
        thresholds: &[i32; THRESHOLDS],
        out: &mut [u8],
        done: impl FnMut(usize, [u64; THRESHOLDS]),
    ) -> u64 {
        encode_rows::<NR, RESIDUAL, THRESHOLDS>(rows, thresholds, out, done)
    }

    /// Runs a loop, compiled for this instruction set.
    fn run<L: VectorLoop>(self, work: L) -> L::Output;
}

/// The first `count` elements of `x`, at most `N`, and zeros.
#[inline(always)]
pub(crate) fn first_elements<T: Copy + Default, const N: usize>(x: &[T], count: usize) -> [T; N] {
    let mut first = [T::default(); N];
    copy_in_eights(&mut first[..count], &x[..count]);
    first
}

/// Copies a few elements; a call of `memcpy` would take longer.
#[inline(always)]
fn copy_in_eights<T: Copy>(to: &mut [T], from: &[T]) {
    let ((to, to_rest), (from, rest)) = (to.as_chunks_mut::<8>(), from.as_chunks::<8>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}

/// The sums of a tile, and what follows them: `encode(fma(acc, scale, bias) + residual)`.
pub(crate) struct Int8Rows<'a, const NR: usize> {
    pub acc: &'a [[i32; NR]],
    pub scale: &'a [f32; NR],
    pub bias: &'a [f32; NR],
    /// Number of channels of the tile, from channel `first` on; the other columns are padding.
    pub channels: usize,
    pub first: usize,
    /// Elements from one row of the residual and of the output to the next.
    pub pitch: usize,
    pub residual: Residual<'a>,
    pub encoder: Encoder,
}

/// The type of [`Int8Rows::residual`], as a constant.
pub(crate) const NO_RESIDUAL: u8 = 0;
/// Floats.
pub(crate) const FLOATS: u8 = 1;
/// Bytes.
pub(crate) const INT8: u8 = 2;

impl<const NR: usize> Int8Rows<'_, NR> {
    /// The residual's floats, its bytes, and their step and zero; those that it does not have are
    /// empty.
    pub fn residual(&self) -> (&[f32], &[u8], [f32; 2]) {
        match self.residual {
            Residual::Of(x) => (x, &[], [0.0; 2]),
            Residual::Int8(x, quantizer) => (&[], x, quantizer.step_and_zero()),
            Residual::None | Residual::InPlace => (&[], &[], [0.0; 2]),
        }
    }

    /// Checks that the rows lie within the residual and the output.
    ///
    /// # Panics
    /// If they do not, which is a bug in the caller.
    #[cfg(target_arch = "x86_64")]
    pub fn check<const RESIDUAL: u8>(&self, out: &[u8]) {
        let end = self.acc.len().saturating_sub(1).checked_mul(self.pitch);
        let end = end.and_then(|at| at.checked_add(self.first)?.checked_add(self.channels));
        let (floats, bytes, _) = self.residual();
        let read = [out.len(), floats.len(), bytes.len()][RESIDUAL as usize];
        assert!(self.channels <= NR);
        assert!(self.acc.is_empty() || end.is_some_and(|end| end <= out.len().min(read)));
    }
}

/// [`Simd::encode_rows`] as a plain loop.
#[inline(always)]
fn encode_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    rows: &Int8Rows<'_, NR>,
    thresholds: &[i32; THRESHOLDS],
    out: &mut [u8],
    mut done: impl FnMut(usize, [u64; THRESHOLDS]),
) -> u64 {
    let (floats, bytes, [step, zero]) = rows.residual();
    let mut nan = 0;
    for (r, acc) in rows.acc.iter().enumerate() {
        let at = r * rows.pitch + rows.first;
        let mut masks = [0; THRESHOLDS];
        for (j, out) in out[at..at + rows.channels].iter_mut().enumerate() {
            let mut y = (acc[j] as f32).mul_add(rows.scale[j], rows.bias[j]);
            if RESIDUAL == FLOATS {
                y += floats[at + j];
                nan |= u64::from(y.is_nan()) << j;
            }
            if RESIDUAL == INT8 {
                y += f32::from(bytes[at + j]).mul_add(step, zero);
            }
            let bits = rows.encoder.encode(y);
            *out = bits as u8;
            for (mask, &threshold) in masks.iter_mut().zip(thresholds) {
                *mask |= u64::from(bits >= threshold) << j;
            }
        }
        done(r, masks);
    }
    nan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::vector::Level;

    /// Loads the first `count` floats of a slice, and stores them twice.
    struct LoadAndStore<'a>(&'a [f32], usize, [&'a mut [f32]; 2]);

    impl VectorLoop for LoadAndStore<'_> {
        type Output = [f32; 32];

        fn run<S: Simd>(self, simd: S) -> [f32; 32] {
            let LoadAndStore(x, count, to) = self;
            let y = simd.load(x, count);
            to.into_iter().for_each(|to| simd.store(to, &y, count));
            y
        }
    }

    #[test]
    fn incomplete_vectors_are_loaded_and_stored_exactly() {
        let x: Vec<f32> = (1..=40).map(|i| i as f32).collect();
        for level in Level::all(Features::detected()) {
            for count in 0..=32 {
                // One slice ends with the elements, the other one goes on.
                let (mut exact, mut longer) = (vec![-1.0; count], vec![-1.0; count + 5]);
                for x in [&x[..count], &x] {
                    let y = level.run(LoadAndStore(x, count, [&mut exact, &mut longer]));
                    assert_eq!(y[..count], x[..count], "{level:?} {count}");
                    assert_eq!(y[count..], vec![0.0; 32 - count], "{level:?} {count}");
                    assert_eq!(exact, x[..count], "{level:?} {count}");
                    assert_eq!(longer[..count], x[..count], "{level:?} {count}");
                    assert_eq!(longer[count..], [-1.0; 5], "{level:?} {count}");
                }
            }
        }
    }
}
