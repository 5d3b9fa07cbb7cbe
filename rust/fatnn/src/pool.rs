//! Max pooling of packed codes, without unpacking them.
//!
//! For ternary codes, the planes `p = [x ≥ 0]` and `x₂ = [x ≥ 1] = p ∧ ¬z` of a maximum are the OR
//! of the operands' planes. So each pixel costs two ORs per 64 channels, and `z = p ∧ ¬x₂` is
//! restored at the end. Two-bit codes compare bit by bit: an operand's low bit counts unless only
//! the other one's high bit is set.
//!
//! Quantizers are monotone, so pooling codes gives the codes of the pooled floats.

use std::ops::Range;

use crate::codec::{CodesLayout, Coding};
use crate::conv::ConvShape;
use crate::error::{Result, bad_value, check_len};
use crate::{memory, parallel};

/// The maximum of each window's codes. Padding is never the maximum.
///
/// `codes` holds `batch × height × width` pixels in `layout`; `out` holds `batch × output[0] ×
/// output[1]`. The caller gives `output`, because frameworks round it up or down. Any size works if
/// all windows contain a pixel.
///
/// # Errors
/// [`crate::Error::Value`] if kernel, stride or dilation is 0, if a window contains only padding,
/// or as [`CodesLayout::check`]; [`crate::Error::Shape`] if sizes do not fit.
pub fn max_pool_codes(
    codes: &[u8],
    layout: CodesLayout,
    shape: &ConvShape,
    output: [usize; 2],
    out: &mut [u8],
) -> Result<()> {
    let pixel = layout.pixel_bytes();
    if [shape.kernel, shape.stride, shape.dilation].as_flattened().contains(&0) {
        return bad_value("kernel, stride and dilation", "at least 1 each", format!("{shape:?}"));
    }
    let [h, w] = shape.input;
    let [out_h, out_w] = output;
    check_len("packed codes", shape.size("input", [h, w], pixel)?, codes.len())?;
    check_len("output", shape.size("output", [out_h, out_w], pixel)?, out.len())?;
    layout.check(codes)?;
    pool_checked(codes, layout, shape, output, out)
}

/// [`max_pool_codes`] without checks, for codes made by this crate and sizes that fit.
pub(crate) fn pool_checked(
    codes: &[u8],
    layout: CodesLayout,
    shape: &ConvShape,
    [out_h, out_w]: [usize; 2],
    out: &mut [u8],
) -> Result<()> {
    let ([h, w], pixel) = (shape.input, layout.pixel_bytes());
    if out.is_empty() {
        return Ok(());
    }
    let rows = windows(shape, 0, out_h)?;
    let columns = windows(shape, 1, out_w)?;
    let [step_y, step_x] = shape.dilation;
    let work = |first: usize, out: &mut [u8]| {
        for (i, out) in out.chunks_exact_mut(pixel).enumerate() {
            let at = first + i;
            let (image, y, x) = (at / (out_h * out_w), at / out_w % out_h, at % out_w);
            out.fill(0);
            for y in rows[y].clone().step_by(step_y) {
                for x in columns[x].clone().step_by(step_x) {
                    let at = ((image * h + y) * w + x) * pixel;
                    let tap = &codes[at..at + pixel];
                    match layout.coding() {
                        Coding::Ternary => or_planes(out, tap),
                        Coding::Uint2 => max_two_bit(out, tap),
                    }
                }
            }
            if layout.coding() == Coding::Ternary {
                restore_zero_plane(out);
            }
        }
    };
    // One byte of codes and one tap cost about as much as 16 products.
    let cost = out
        .len()
        .saturating_mul(shape.kernel[0])
        .saturating_mul(shape.kernel[1])
        .saturating_mul(16);
    parallel::for_each_rows(out, pixel, 1, cost, work)
}

/// For each output index on an axis, the range of real inputs that its window reads, in steps of
/// the dilation.
fn windows(shape: &ConvShape, axis: usize, outputs: usize) -> Result<Vec<Range<usize>>> {
    let (kernel, stride, dilation) = (shape.kernel[axis], shape.stride[axis], shape.dilation[axis]);
    let (input, padding) = (shape.input[axis], shape.padding[axis]);
    let window = |o: usize| {
        // In coordinates that count padding. Taps are first, first + dilation, … last.
        let first = o.checked_mul(stride)?;
        let last = first.checked_add((kernel - 1).checked_mul(dilation)?)?;
        let skipped = padding.saturating_sub(first).div_ceil(dilation);
        let begin = first.checked_add(skipped.checked_mul(dilation)?)?;
        let end = last.min(padding.checked_add(input)?.checked_sub(1)?);
        (begin <= end).then(|| begin - padding..end - padding + 1)
    };
    let mut ranges = memory::reserved("windows of a pooling", outputs)?;
    for o in 0..outputs {
        let Some(range) = window(o) else {
            return bad_value(
                "output size",
                format!("windows that each contain a pixel on axis {axis} (of height, width)"),
                format!("{outputs}, and window {o} of {shape:?} contains none"),
            );
        };
        ranges.push(range);
    }
    Ok(ranges)
}

/// Merges a pixel's planes into `out`, which holds `x₂` in place of `z`.
#[inline(always)]
fn or_planes(out: &mut [u8], pixel: &[u8]) {
    for (out, unit) in out.as_chunks_mut::<16>().0.iter_mut().zip(pixel.as_chunks::<16>().0) {
        let unit = u128::from_le_bytes(*unit);
        let (z, p) = (unit as u64, (unit >> 64) as u64);
        let planes = u128::from(p) << 64 | u128::from(p & !z);
        *out = (u128::from_le_bytes(*out) | planes).to_le_bytes();
    }
}

/// Merges a pixel's two-bit codes into `out`.
#[inline(always)]
fn max_two_bit(out: &mut [u8], pixel: &[u8]) {
    for (out, unit) in out.as_chunks_mut::<16>().0.iter_mut().zip(pixel.as_chunks::<16>().0) {
        let (a, b) = (u128::from_le_bytes(*out), u128::from_le_bytes(*unit));
        let (a0, a1, b0, b1) = (a as u64, (a >> 64) as u64, b as u64, (b >> 64) as u64);
        let low = a0 & (a1 | !b1) | b0 & (b1 | !a1);
        *out = (u128::from(a1 | b1) << 64 | u128::from(low)).to_le_bytes();
    }
}

/// Restores `z` from `x₂`.
#[inline(always)]
fn restore_zero_plane(out: &mut [u8]) {
    for out in out.as_chunks_mut::<16>().0 {
        let planes = u128::from_le_bytes(*out);
        let (x2, p) = (planes as u64, (planes >> 64) as u64);
        *out = (u128::from(p) << 64 | u128::from(p & !x2)).to_le_bytes();
    }
}
