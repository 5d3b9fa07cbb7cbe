//! Depthwise convolution on AVX-512 VNNI.
//!
//! Two levels of packs convert four vectors of sixteen floats to one vector of 64 bytes. They work
//! within 128-bit lanes, so each lane gets four channels of every float vector. The unpacks that
//! interleave four rows work within the same lanes and restore the order of channels: the first
//! product vector has the sixteen channels of the first float vector.

use std::arch::x86_64::*;

use super::{
    DepthwiseKernel, DepthwiseLayout, Finish, MAX_LINES, NO_LEVELS, Product, QuantizeParams, Rows,
    SumLevels, inner, planes,
};
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::cpu::{Features, Isa};
use crate::kernels::columns::Element;
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, UNIT_BYTES, private};

const LANES: usize = 16;
/// Channels in a block: four vectors.
const BLOCK: usize = 4 * LANES;
/// Bytes of a step of a column: all its rows, for one block of channels.
const STEP: usize = 4 * BLOCK;

static LAYOUT: DepthwiseLayout =
    DepthwiseLayout { id: 0x13, rows: 4, block: BLOCK, element: Element::Biased };

#[derive(Debug)]
struct Avx512;

/// The kernel, if the CPU has AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vnni).then_some(&Avx512)
}

impl private::Sealed for Avx512 {}

impl Kernel for Avx512 {
    fn name(&self) -> &'static str {
        "x86_64-depthwise-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
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

impl DepthwiseKernel for Avx512 {
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

    fn reads_bytes(&self) -> bool {
        true
    }

    fn arrange(&self, bytes: &[u8], channels: usize, out: &mut [u8]) {
        let pixels = bytes.len() / channels;
        let written = pixels * LAYOUT.pixel_bytes(channels);
        assert!(bytes.len() == pixels * channels && out.len() >= written);
        // SAFETY: `self` exists, so `make` saw the features; sizes were just checked.
        unsafe { arrange(bytes, channels, out.as_mut_ptr()) }
    }

    fn interleave(&self, rows: &Rows<'_>, out: &mut [u8]) {
        let steps = rows.check(&LAYOUT, out);
        // SAFETY: `self` exists, so `make` saw the features; `Rows::check` checked the sizes.
        unsafe {
            match rows.channels > 2 * LANES {
                true => interleave::<true>(rows, steps, out.as_mut_ptr()),
                false => interleave::<false>(rows, steps, out.as_mut_ptr()),
            }
        }
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
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
unsafe fn quantize(x: &[f32], channels: usize, params: &QuantizeParams, mut out: *mut u8) -> bool {
    let (inv_step, max) = (_mm512_set1_ps(params.inv_step), _mm512_set1_ps(params.bounds[1]));
    let min = _mm_cvt_ss2si(_mm_set_ss(params.bounds[0])) as i8;
    let (min, below_min, bias) =
        (_mm512_set1_epi8(min), _mm512_set1_epi8(-128), _mm512_set1_epi8(-128));
    let mut no_nan = true;
    for pixel in x.chunks_exact(channels) {
        for block in pixel.chunks(BLOCK) {
            let mut codes = [_mm512_setzero_si512(); 4];
            for (v, code) in codes.iter_mut().enumerate() {
                let left = block.len().saturating_sub(v * LANES);
                // SAFETY: the load reads only elements of the block; the mask excludes the others.
                let x = unsafe {
                    let from = block.as_ptr().wrapping_add(v * LANES);
                    match left {
                        0 => break,
                        LANES.. => _mm512_loadu_ps(from),
                        _ => _mm512_maskz_loadu_ps((1 << left) - 1, from),
                    }
                };
                // `min` returns its second operand if that is NaN. NaN and values too small for
                // `i32` convert to `i32::MIN`.
                *code = _mm512_cvtps_epi32(_mm512_min_ps(max, _mm512_mul_ps(x, inv_step)));
            }
            let [low, high] =
                [_mm512_packs_epi32(codes[0], codes[1]), _mm512_packs_epi32(codes[2], codes[3])];
            let codes = _mm512_packs_epi16(low, high);
            if _mm512_cmpeq_epi8_mask(codes, below_min) != 0 {
                no_nan &= !block.iter().any(|x| x.is_nan());
            }
            let codes = _mm512_xor_si512(_mm512_max_epi8(codes, min), bias);
            // SAFETY: `out` has 64 bytes for each block of a pixel.
            unsafe {
                _mm512_storeu_si512(out.cast(), codes);
                out = out.add(BLOCK);
            }
        }
    }
    no_nan
}

/// # Safety
/// `bytes` must hold whole pixels; `out` must have [`DepthwiseLayout::pixel_bytes`] for each.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn arrange(bytes: &[u8], channels: usize, mut out: *mut u8) {
    // Four channels of every vector of sixteen in each 128-bit lane, as packs leave them.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for pixel in bytes.chunks_exact(channels) {
        for block in pixel.chunks(BLOCK) {
            // SAFETY: the load reads only bytes of the block; `out` has 64 bytes for each block.
            unsafe {
                let codes = match block.len() {
                    BLOCK => _mm512_loadu_si512(block.as_ptr().cast()),
                    len => _mm512_maskz_loadu_epi8((1 << len) - 1, block.as_ptr().cast()),
                };
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi32(order, codes));
                out = out.add(BLOCK);
            }
        }
    }
}

/// Interleaves rows into columns: all four vectors of a block if `WHOLE`, otherwise the first two.
///
/// # Safety
/// The sizes must have passed [`Rows::check`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave<const WHOLE: bool>(rows: &Rows<'_>, steps: usize, out: *mut u8) {
    for (step, offsets) in rows.offsets.as_chunks::<4>().0.iter().enumerate() {
        let from = offsets.map(|at| rows.bytes.as_ptr().wrapping_add(at));
        let out = out.wrapping_add(step * STEP);
        for x in 0..rows.count {
            // SAFETY: every pixel has 64 bytes in every row, and every column has `steps` steps.
            unsafe {
                let row = |r: usize| _mm512_loadu_si512(from[r].add(x * rows.pitch).cast());
                let r = [row(0), row(1), row(2), row(3)];
                let out = out.add(x * steps * STEP).cast::<__m512i>();
                let (a, b) = (_mm512_unpacklo_epi8(r[0], r[1]), _mm512_unpacklo_epi8(r[2], r[3]));
                _mm512_storeu_si512(out.cast(), _mm512_unpacklo_epi16(a, b));
                _mm512_storeu_si512(out.add(1).cast(), _mm512_unpackhi_epi16(a, b));
                if WHOLE {
                    let (a, b) =
                        (_mm512_unpackhi_epi8(r[0], r[1]), _mm512_unpackhi_epi8(r[2], r[3]));
                    _mm512_storeu_si512(out.add(2).cast(), _mm512_unpacklo_epi16(a, b));
                    _mm512_storeu_si512(out.add(3).cast(), _mm512_unpackhi_epi16(a, b));
                }
            }
        }
    }
}

/// Constants of the epilogue for sixteen channels.
#[derive(Clone, Copy)]
struct Constants {
    scale: __m512,
    bias: __m512,
    affine: Option<(__m512, __m512)>,
    clamp: [__m512; 2],
    mask: __mmask16,
}

impl Constants {
    /// # Safety
    /// `finish` must have a constant for every channel of a block, and channel `first` must exist.
    #[target_feature(enable = "avx512f")]
    unsafe fn new(finish: &Finish<'_>, first: usize) -> Self {
        // SAFETY: the caller promises a constant for every channel, and a block is whole vectors.
        let load = |values: &[f32]| unsafe { _mm512_loadu_ps(values.as_ptr().add(first)) };
        Constants {
            scale: load(finish.scale),
            bias: load(finish.bias),
            affine: finish.affine.map(|(scale, bias)| (load(scale), load(bias))),
            clamp: [_mm512_set1_ps(finish.clamp[0]), _mm512_set1_ps(finish.clamp[1])],
            mask: ((1u32 << (finish.channels - first).min(LANES)) - 1) as __mmask16,
        }
    }

    /// Stores the floats of sums.
    ///
    /// # Safety
    /// At `out`, the floats whose bits are set in the mask must be writable.
    #[target_feature(enable = "avx512f,fma")]
    #[inline]
    unsafe fn store(&self, acc: __m512i, out: *mut u8) {
        let &Constants { scale, bias, affine, clamp: [min, max], mask } = self;
        let mut y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale), bias);
        if let Some((scale, bias)) = affine {
            y = _mm512_fmadd_ps(y, scale, bias);
        }
        // `max` and `min` return the second operand if it is NaN or both are equal.
        y = _mm512_min_ps(max, _mm512_max_ps(min, y));
        // SAFETY: as the caller promises.
        unsafe {
            match mask {
                u16::MAX => _mm512_storeu_ps(out.cast(), y),
                _ => _mm512_mask_storeu_ps(out.cast(), mask, y),
            }
        }
    }
}

/// The levels of sixteen channels.
#[derive(Clone, Copy)]
struct Levels {
    flip: __m512i,
    levels: [__m512i; MAX_THRESHOLDS],
}

impl Levels {
    /// # Safety
    /// The first `LEVELS` levels must have a number for every channel of a block, and channel
    /// `first` must exist.
    #[target_feature(enable = "avx512f")]
    unsafe fn new<const LEVELS: usize>(to: &SumLevels<'_>, first: usize) -> Self {
        let zero = _mm512_setzero_si512();
        let mut made = Levels { flip: zero, levels: [zero; MAX_THRESHOLDS] };
        if LEVELS > 0 {
            // SAFETY: the caller promises whole vectors.
            let load = |x: &[i32]| unsafe { _mm512_loadu_si512(x.as_ptr().add(first).cast()) };
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
    /// At `out`, two bytes must be writable, and two more eight bytes later.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store<const LEVELS: usize>(&self, acc: __m512i, out: *mut u8) {
        let (sums, mut reached) = (_mm512_xor_si512(acc, self.flip), [0; MAX_THRESHOLDS]);
        for (reached, level) in reached.iter_mut().zip(self.levels).take(LEVELS) {
            *reached = u64::from(_mm512_cmpge_epi32_mask(sums, level));
        }
        let [first, second] = planes::<LEVELS>(reached);
        // SAFETY: as the caller promises.
        unsafe {
            out.cast::<u16>().write_unaligned(first as u16);
            out.add(UNIT_BYTES / 2).cast::<u16>().write_unaligned(second as u16);
        }
    }
}

/// Computes all lines of a product: floats, or codes with `LEVELS` levels above the lowest one.
///
/// # Safety
/// The sizes must have passed [`Product::check_floats`] or [`Product::check_codes`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
unsafe fn lines<const LEVELS: usize>(product: &Product<'_>, to: &SumLevels<'_>, out: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe {
        match (product.lines, product.kernel, product.stride, product.dilation) {
            (2, [3, 3], 1, 1) => window::<LEVELS, 2, 3, 1>(product, to, out),
            (2, ..) => window::<LEVELS, 2, 0, 0>(product, to, out),
            (_, [3, 3], 2, 1) => window::<LEVELS, 1, 3, 2>(product, to, out),
            _ => window::<LEVELS, 1, 0, 0>(product, to, out),
        }
    }
}

/// [`lines`] for `R` lines. If `K` is not 0, the window is `K`×`K`, has no dilation and moves by
/// `STRIDE`, so that loops have constant bounds.
///
/// # Safety
/// As [`lines`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
unsafe fn window<const LEVELS: usize, const R: usize, const K: usize, const STRIDE: usize>(
    product: &Product<'_>,
    to: &SumLevels<'_>,
    out: *mut u8,
) {
    const { assert!(R <= MAX_LINES) };
    let (steps, width) = (LAYOUT.steps(product.kernel[0]), product.kernel[1]);
    let sums_at = product.panel.len() - 4 * BLOCK;
    for first in (0..product.finish.channels).step_by(LANES) {
        // SAFETY: every step of columns and weights contains the vector that starts at `first`.
        unsafe {
            let constants = Constants::new(&product.finish, first);
            let levels = Levels::new::<LEVELS>(to, first);
            let start = _mm512_loadu_si512(product.panel.as_ptr().add(sums_at + first * 4).cast());
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
                        let acc =
                            tile::<R, $count, K, STRIDE>(product, steps, columns, weights, start);
                        for (r, acc) in acc.into_iter().enumerate() {
                            for (x, acc) in acc.into_iter().enumerate() {
                                let at = r * product.line_pitch + x * product.pixel_pitch;
                                match LEVELS {
                                    0 => constants.store(acc, out.add(at)),
                                    _ => levels.store::<LEVELS>(acc, out.add(at)),
                                }
                            }
                        }
                        $count
                    }};
                }
                x += match product.width - x {
                    7.. => tile!(7),
                    4.. => tile!(4),
                    2.. => tile!(2),
                    _ => tile!(1),
                };
            }
        }
    }
}

/// Sums of sixteen channels of `X` pixels in each of `R` lines.
///
/// # Safety
/// The pixels must exist: the sizes must have passed [`Product::check`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
#[inline]
unsafe fn tile<const R: usize, const X: usize, const K: usize, const STRIDE: usize>(
    product: &Product<'_>,
    steps: usize,
    columns: *const u8,
    weights: [*const u8; R],
    start: __m512i,
) -> [[__m512i; X]; R] {
    let (steps, width) = if K == 0 { (steps, product.kernel[1]) } else { (1, K) };
    let (stride, dilation) = if K == 0 { (product.stride, product.dilation) } else { (STRIDE, 1) };
    let mut acc = [[start; X]; R];
    for kx in 0..width {
        for step in 0..steps {
            // SAFETY: as the caller promises.
            unsafe {
                let mut w = [start; R];
                for (w, from) in w.iter_mut().zip(weights) {
                    *w = _mm512_loadu_si512(from.add((kx * steps + step) * STEP).cast());
                }
                let column = columns.add((kx * dilation * steps + step) * STEP);
                for x in 0..X {
                    let values = _mm512_loadu_si512(column.add(x * stride * steps * STEP).cast());
                    for (acc, w) in acc.iter_mut().zip(w) {
                        let acc = &mut acc[x];
                        *acc = _mm512_dpbusd_epi32(*acc, values, w);
                    }
                }
            }
        }
    }
    acc
}
