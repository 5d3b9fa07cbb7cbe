//! Depthwise convolution on AVX2. Columns have two rows of `i16`, because `vpmaddubsw`, which
//! multiplies bytes, saturates.
//!
//! Packs and unpacks permute channels. As on AVX-512, one permutation undoes the other.

use std::arch::x86_64::*;

use super::{
    DepthwiseKernel, DepthwiseLayout, Finish, NO_LEVELS, Product, QuantizeParams, Rows, SumLevels,
    inner, planes,
};
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::cpu::{Features, Isa};
use crate::kernels::columns::Element;
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, UNIT_BYTES, private};

const LANES: usize = 8;
/// Channels in a block: four vectors.
const BLOCK: usize = 4 * LANES;
/// Bytes of a step of a column: all its rows, for one block of channels.
const STEP: usize = 4 * BLOCK;

static LAYOUT: DepthwiseLayout =
    DepthwiseLayout { id: 0x12, rows: 2, block: BLOCK, element: Element::I16 };

#[derive(Debug)]
struct Avx2;

/// The kernel, if the CPU has AVX2 and FMA.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Avx2)
}

impl private::Sealed for Avx2 {}

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "x86_64-depthwise-avx2"
    }

    fn isa(&self) -> Isa {
        Isa::Avx2
    }

    fn layout(&self) -> Layout {
        LAYOUT.common()
    }

    fn layout_id(&self) -> u32 {
        LAYOUT.id
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        inner(operands, self)
    }
}

impl DepthwiseKernel for Avx2 {
    fn layout(&self) -> &'static DepthwiseLayout {
        &LAYOUT
    }

    fn quantize(
        &self,
        x: &[f32],
        channels: usize,
        params: &QuantizeParams,
        out: &mut [u8],
    ) -> bool {
        let pixels = x.len() / channels;
        assert!(x.len() == pixels * channels && out.len() >= pixels * LAYOUT.pixel_bytes(channels));
        // SAFETY: `self` exists, so `make` saw the features; sizes were just checked.
        unsafe { quantize(x, channels, params, out.as_mut_ptr()) }
    }

    fn interleave(&self, rows: &Rows<'_>, out: &mut [u8]) {
        let steps = rows.check(&LAYOUT, out);
        // SAFETY: `self` exists, so `make` saw the features; `Rows::check` checked the sizes.
        unsafe { interleave(rows, steps, out.as_mut_ptr()) }
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        product.check_floats(&LAYOUT, out);
        // SAFETY: `self` exists, so `make` saw the features; sizes were just checked.
        unsafe { lines::<0>(product, &NO_LEVELS, out.as_mut_ptr().cast()) };
    }

    fn multiply_to_codes(&self, product: &Product<'_>, to: &SumLevels<'_>, out: &mut [u8]) {
        product.check_codes(&LAYOUT, LANES, to, out);
        // SAFETY: as above.
        unsafe {
            match to.coding {
                Coding::Ternary => lines::<2>(product, to, out.as_mut_ptr()),
                Coding::Uint2 => lines::<3>(product, to, out.as_mut_ptr()),
            }
        }
    }
}

/// # Safety
/// `x` must hold whole pixels; `out` must have [`DepthwiseLayout::pixel_bytes`] for each of them.
#[target_feature(enable = "avx2,fma")]
unsafe fn quantize(x: &[f32], channels: usize, params: &QuantizeParams, mut out: *mut u8) -> bool {
    const PAIR: usize = 2 * LANES;
    let (inv_step, max) = (_mm256_set1_ps(params.inv_step), _mm256_set1_ps(params.bounds[1]));
    let min = _mm256_set1_epi16(_mm_cvt_ss2si(_mm_set_ss(params.bounds[0])) as i16);
    let min_code = _mm256_set1_epi16(-127);
    let mut no_nan = true;
    for pixel in x.chunks_exact(channels) {
        for block in pixel.chunks(BLOCK) {
            for at in (0..BLOCK).step_by(PAIR) {
                let mut rest = [0.0; PAIR];
                let values = block.get(at..).unwrap_or(&[]);
                let values = match values.first_chunk::<PAIR>() {
                    Some(values) => values,
                    None => {
                        rest[..values.len()].copy_from_slice(values);
                        &rest
                    }
                };
                // SAFETY: `values` holds two vectors; `out` has 128 bytes for each block.
                unsafe {
                    let code = |v: usize| {
                        let x = _mm256_loadu_ps(values.as_ptr().add(v * LANES));
                        // NaN passes the minimum. It and too small values convert to `i32::MIN`.
                        _mm256_cvtps_epi32(_mm256_min_ps(max, _mm256_mul_ps(x, inv_step)))
                    };
                    let codes = _mm256_packs_epi32(code(0), code(1));
                    let small = _mm256_cmpgt_epi16(min_code, codes);
                    if _mm256_testz_si256(small, small) == 0 {
                        no_nan &= !values.iter().any(|x| x.is_nan());
                    }
                    _mm256_storeu_si256(out.cast(), _mm256_max_epi16(codes, min));
                    out = out.add(2 * PAIR);
                }
            }
        }
    }
    no_nan
}

/// # Safety
/// The sizes must have passed [`Rows::check`].
#[target_feature(enable = "avx2")]
unsafe fn interleave(rows: &Rows<'_>, steps: usize, out: *mut u8) {
    for (step, offsets) in rows.offsets.as_chunks::<2>().0.iter().enumerate() {
        for x in 0..rows.count {
            for half in 0..2 {
                // SAFETY: every pixel has 64 bytes in every row, and columns have `steps` steps.
                unsafe {
                    let from = rows.bytes.as_ptr().add(x * rows.pitch + half * 32);
                    let a = _mm256_loadu_si256(from.add(offsets[0]).cast());
                    let b = _mm256_loadu_si256(from.add(offsets[1]).cast());
                    let out = out.add((x * steps + step) * STEP + half * 64).cast::<__m256i>();
                    _mm256_storeu_si256(out, _mm256_unpacklo_epi16(a, b));
                    _mm256_storeu_si256(out.add(1), _mm256_unpackhi_epi16(a, b));
                }
            }
        }
    }
}

/// Computes all lines of a product: floats, or codes with `LEVELS` levels above the lowest one.
///
/// # Safety
/// The sizes must have passed [`Product::check_floats`] or [`Product::check_codes`].
#[target_feature(enable = "avx2,fma")]
unsafe fn lines<const LEVELS: usize>(product: &Product<'_>, to: &SumLevels<'_>, out: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe {
        match product.lines {
            2 => window::<LEVELS, 2>(product, to, out),
            _ => window::<LEVELS, 1>(product, to, out),
        }
    }
}

/// [`lines`] for `R` lines.
///
/// # Safety
/// As [`lines`].
#[target_feature(enable = "avx2,fma")]
unsafe fn window<const LEVELS: usize, const R: usize>(
    product: &Product<'_>,
    to: &SumLevels<'_>,
    out: *mut u8,
) {
    let (steps, width) = (LAYOUT.steps(product.kernel[0]), product.kernel[1]);
    for first in (0..product.finish.channels).step_by(LANES) {
        // SAFETY: every step of columns and weights contains the vector that starts at `first`.
        unsafe {
            let levels = Levels::new::<LEVELS>(to, first);
            let columns = product.columns.as_ptr().add(first * 4);
            let mut weights = [product.panel.as_ptr().add(first * 4); R];
            for (r, weights) in weights.iter_mut().enumerate() {
                *weights = weights.add(r * product.shift * width * steps * STEP);
            }
            let out = out.add(if LEVELS == 0 { first * size_of::<f32>() } else { first / 8 });
            let mut x = 0;
            while x < product.width {
                let columns = columns.add(x * product.stride * steps * STEP);
                let out = out.add(x * product.pixel_pitch);
                macro_rules! tile {
                    ($count:literal) => {{
                        let acc = tile::<R, $count>(product, steps, columns, weights);
                        for (r, acc) in acc.into_iter().enumerate() {
                            for (x, acc) in acc.into_iter().enumerate() {
                                let at = r * product.line_pitch + x * product.pixel_pitch;
                                match LEVELS {
                                    0 => finish(&product.finish, acc, first, out.add(at)),
                                    _ => levels.store::<LEVELS>(acc, out.add(at)),
                                }
                            }
                        }
                        $count
                    }};
                }
                x += match product.width - x {
                    4.. => tile!(4),
                    2.. => tile!(2),
                    _ => tile!(1),
                };
            }
        }
    }
}

/// Sums of eight channels of `X` pixels in each of `R` lines.
///
/// # Safety
/// The pixels must exist: the sizes must have passed [`Product::check`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn tile<const R: usize, const X: usize>(
    product: &Product<'_>,
    steps: usize,
    columns: *const u8,
    weights: [*const u8; R],
) -> [[__m256i; X]; R] {
    let mut acc = [[_mm256_setzero_si256(); X]; R];
    for kx in 0..product.kernel[1] {
        for step in 0..steps {
            // SAFETY: as the caller promises.
            unsafe {
                let mut w = [_mm256_setzero_si256(); R];
                for (w, from) in w.iter_mut().zip(weights) {
                    *w = _mm256_loadu_si256(from.add((kx * steps + step) * STEP).cast());
                }
                let column = columns.add((kx * product.dilation * steps + step) * STEP);
                for x in 0..X {
                    let values =
                        _mm256_loadu_si256(column.add(x * product.stride * steps * STEP).cast());
                    for (acc, w) in acc.iter_mut().zip(w) {
                        let acc = &mut acc[x];
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(values, w));
                    }
                }
            }
        }
    }
    acc
}

/// Stores the floats of the channels from `first` on.
///
/// # Safety
/// `out` must have room for the channels of the vector that starts at channel `first`, except those
/// that do not exist.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn finish(finish: &Finish<'_>, acc: __m256i, first: usize, out: *mut u8) {
    // SAFETY: there is a constant for every channel of a block, and a block is whole vectors.
    let load = |values: &[f32]| unsafe { _mm256_loadu_ps(values.as_ptr().add(first)) };
    let mut y = _mm256_add_ps(
        _mm256_mul_ps(_mm256_cvtepi32_ps(acc), load(finish.scale)),
        load(finish.bias),
    );
    if let Some((scale, bias)) = finish.affine {
        y = _mm256_fmadd_ps(y, load(scale), load(bias));
    }
    // `max` and `min` return the second operand if it is NaN or both are equal.
    let (min, max) = (_mm256_set1_ps(finish.clamp[0]), _mm256_set1_ps(finish.clamp[1]));
    y = _mm256_min_ps(max, _mm256_max_ps(min, y));
    let count = finish.channels - first;
    // SAFETY: as the caller promises.
    unsafe {
        if count >= LANES {
            _mm256_storeu_ps(out.cast(), y);
        } else {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let exist = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
            _mm256_maskstore_ps(out.cast(), exist, y);
        }
    }
}

/// The levels of eight channels.
#[derive(Clone, Copy)]
struct Levels {
    flip: __m256i,
    levels: [__m256i; MAX_THRESHOLDS],
}

impl Levels {
    /// # Safety
    /// The first `LEVELS` levels must have a number for every channel of a block, and channel
    /// `first` must exist.
    #[target_feature(enable = "avx2")]
    unsafe fn new<const LEVELS: usize>(to: &SumLevels<'_>, first: usize) -> Self {
        let zero = _mm256_setzero_si256();
        let mut made = Levels { flip: zero, levels: [zero; MAX_THRESHOLDS] };
        if LEVELS > 0 {
            // SAFETY: the caller promises whole vectors.
            let load = |x: &[i32]| unsafe { _mm256_loadu_si256(x.as_ptr().add(first).cast()) };
            made.flip = load(to.flip);
            for (made, from) in made.levels.iter_mut().zip(to.levels).take(LEVELS) {
                *made = load(from);
            }
        }
        made
    }

    /// Stores the codes of sums.
    ///
    /// # Safety
    /// At `out`, one byte must be writable, and another one eight bytes later.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn store<const LEVELS: usize>(&self, acc: __m256i, out: *mut u8) {
        let (sums, mut reached) = (_mm256_xor_si256(acc, self.flip), [0; MAX_THRESHOLDS]);
        for (reached, level) in reached.iter_mut().zip(self.levels).take(LEVELS) {
            let below = _mm256_castsi256_ps(_mm256_cmpgt_epi32(level, sums));
            *reached = u64::from(!_mm256_movemask_ps(below) as u8);
        }
        let [first, second] = planes::<LEVELS>(reached);
        // SAFETY: as the caller promises.
        unsafe {
            out.write(first as u8);
            out.add(UNIT_BYTES / 2).write(second as u8);
        }
    }
}
