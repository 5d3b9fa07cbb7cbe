//! From accumulators to float32, and these to codes.

use super::{HALF, LINE_FLOATS, Part, TileAcc, full_width};
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::epilogue::{Dequantize, Quantizer, Residual};
use crate::kernels::isa::{FLOATS, INT8, NO_RESIDUAL, Simd, first_elements};
use crate::kernels::prefetch;

/// See [`TileEpilogue::to_float`].
#[inline(always)]
pub(super) fn to_float<S: Simd, const NR: usize, const PART: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    to: &Dequantize<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
) -> bool {
    if NR == PART || tile.channels == NR {
        return float_part::<S, NR, NR>(simd, tile, Part::whole(tile), to, residual, out, codes);
    }
    if tile.fits_half::<NR>() {
        return float_part::<S, NR, HALF>(simd, tile, Part::whole(tile), to, residual, out, codes);
    }
    let mut no_nan = true;
    for part in Part::each(tile, PART) {
        no_nan &= float_part::<S, NR, PART>(simd, tile, part, to, residual, out, codes);
    }
    no_nan
}

/// [`to_float`] for one part.
#[inline(always)]
fn float_part<S: Simd, const NR: usize, const WIDTH: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    part: Part,
    to: &Dequantize<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
) -> bool {
    // Compile each kind of residual, and full and incomplete rows, separately: deciding per vector
    // took as long as all other work here.
    macro_rules! rows {
        ($kind:ident) => {
            match to.codes.map(|codes| codes.layout.coding()) {
                None => rows!($kind, 0),
                Some(Coding::Ternary) => rows!($kind, 2),
                Some(Coding::Uint2) => rows!($kind, 3),
            }
        };
        ($kind:ident, $thresholds:literal) => {
            // Not one call of a chosen function: that would not be inlined, and would be compiled
            // without the instruction set.
            match part.channels == WIDTH {
                true => rows!($kind, $thresholds, true),
                false => rows!($kind, $thresholds, false),
            }
        };
        ($kind:ident, $thresholds:literal, $full:literal) => {
            float_rows::<S, NR, WIDTH, $full, $kind, $thresholds>(
                simd, tile, part, to, residual, out, codes,
            )
        };
    }
    match residual {
        Residual::None => rows!(NO_RESIDUAL),
        Residual::Of(_) => rows!(FLOATS),
        Residual::Int8(..) => rows!(INT8),
        Residual::InPlace => rows!(IN_PLACE),
    }
}

/// Rows between prefetch and use. A tile has only a few cache lines of each row, too few for
/// hardware prefetchers to see a pattern. Prefetching further ahead would evict lines: in many
/// layers, the first-level cache has room for a dozen rows only, because their addresses share
/// cache sets.
const fn prefetch_rows(width: usize) -> usize {
    let rows = 16 * LINE_FLOATS / width;
    if rows < 8 { rows } else { 8 }
}

/// The residual is already in the output. 0 to 2 are the kinds of [`crate::kernels::isa`].
const IN_PLACE: u8 = 3;

/// Prefetches the part of a residual's row from element `at` on.
#[inline(always)]
fn prefetch_residual<const RESIDUAL: u8, const WIDTH: usize>(residual: Residual<'_>, at: usize) {
    match residual {
        Residual::Of(x) if RESIDUAL == FLOATS => {
            for i in (0..WIDTH).step_by(LINE_FLOATS) {
                prefetch(x.as_ptr().wrapping_add(at + i));
            }
        }
        Residual::Int8(x, _) if RESIDUAL == INT8 => prefetch(x.as_ptr().wrapping_add(at)),
        _ => (),
    }
}

/// The values of a residual's row from element `start` on, zeros if there is no array. If the row
/// is `FULL`, it has `WIDTH` channels.
#[inline(always)]
fn residual_row<S: Simd, const WIDTH: usize, const FULL: bool, const RESIDUAL: u8>(
    simd: S,
    residual: Residual<'_>,
    start: usize,
    channels: usize,
) -> [f32; WIDTH] {
    match residual {
        Residual::Of(x) if RESIDUAL == FLOATS => {
            row_of::<S, WIDTH, FULL>(simd, &x[start..], channels)
        }
        Residual::Int8(x, quantizer) if RESIDUAL == INT8 => {
            let mut values = [0.0; WIDTH];
            match x[start..].first_chunk() {
                Some(x) if FULL => quantizer.dequantize(x, &mut values),
                _ => quantizer.dequantize(&first_elements(&x[start..], channels), &mut values),
            }
            values
        }
        _ => [0.0; WIDTH],
    }
}

/// The first `channels` floats of a row, all `WIDTH` if it is `FULL`, and zeros.
#[inline(always)]
fn row_of<S: Simd, const WIDTH: usize, const FULL: bool>(
    simd: S,
    x: &[f32],
    channels: usize,
) -> [f32; WIDTH] {
    match FULL {
        true => *x.first_chunk().expect("WIDTH elements"),
        false => simd.load(x, channels),
    }
}

/// [`float_part`] for one kind of residual and a fixed number of thresholds.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "compiled into one loop; called from one place")]
fn float_rows<
    S: Simd,
    const NR: usize,
    const WIDTH: usize,
    const FULL: bool,
    const RESIDUAL: u8,
    const THRESHOLDS: usize,
>(
    simd: S,
    tile: &TileAcc<'_>,
    part: Part,
    to: &Dequantize<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
) -> bool {
    const { assert!(WIDTH <= 64) };
    // A missing scale is 1. A missing bias is *negative* zero, because adding 0.0 would turn -0.0
    // into 0.0.
    let channels = part.first_channel..part.first_channel + part.channels;
    let scale = to.scale.map_or(&[1.0; 64][..part.channels], |scale| &scale[channels.clone()]);
    let bias = to.bias.map_or(&[-0.0; 64][..part.channels], |bias| &bias[channels.clone()]);
    let mut padded = None;
    let factors = full_width::<_, WIDTH, 2>([scale, bias], 0.0, &mut padded);
    // Values below the floor become the floor. NaN and -0.0 pass through, as in PyTorch's ReLU.
    let floor = if to.relu { 0.0 } else { f32::NEG_INFINITY };
    let codes_to =
        to.codes.map(|codes| (codes, codes.layout.writer(part.first_channel, part.channels)));
    let mut nan_probe = [0.0; WIDTH];
    for (r, acc) in part.rows::<NR, WIDTH>(tile).enumerate() {
        let start = r * to.channels + part.first_channel;
        let ahead = start + const { prefetch_rows(WIDTH) } * to.channels;
        if !out.is_empty() {
            for i in (0..WIDTH).step_by(LINE_FLOATS) {
                prefetch(out.as_ptr().wrapping_add(ahead + i));
            }
        }
        prefetch_residual::<RESIDUAL, WIDTH>(residual, ahead);
        let x = residual_row::<S, WIDTH, FULL, RESIDUAL>(simd, residual, start, part.channels);
        // In registers also for the codes: reading it back from the output would wait for the
        // store.
        let mut y = [0.0; WIDTH];
        let row = out.get_mut(start..).filter(|row| !row.is_empty());
        if RESIDUAL == IN_PLACE
            && let Some(row) = &row
        {
            y = row_of::<S, WIDTH, FULL>(simd, row, part.channels);
        }
        float_row::<WIDTH, RESIDUAL>(acc, factors, &x, floor, &mut y);
        if let Some(row) = row {
            match FULL {
                true => *row.first_chunk_mut().expect("WIDTH elements") = y,
                false => simd.store(row, &y, part.channels),
            }
        }
        if let Some((quantizer, write)) = &codes_to {
            let planes = row_codes::<S, WIDTH, THRESHOLDS>(
                simd,
                &y,
                quantizer,
                part.valid_mask(),
                &mut nan_probe,
            );
            let bytes = quantizer.layout.pixel_bytes();
            write(&mut codes[r * bytes..(r + 1) * bytes], planes);
        }
    }
    nan_probe.iter().all(|x| !x.is_nan())
}

/// The values of one row, in `out`.
#[inline(always)]
fn float_row<const WIDTH: usize, const RESIDUAL: u8>(
    acc: &[i32; WIDTH],
    [scale, bias]: [&[f32; WIDTH]; 2],
    residual: &[f32; WIDTH],
    floor: f32,
    out: &mut [f32; WIDTH],
) {
    for j in 0..WIDTH {
        let mut y = (acc[j] as f32).mul_add(scale[j], bias[j]);
        match RESIDUAL {
            FLOATS | INT8 => y += residual[j],
            IN_PLACE => y += out[j],
            _ => (),
        }
        out[j] = if y < floor { floor } else { y };
    }
}

/// Bit planes of a row's codes. Bits outside `valid` stay zero. Adds the values to `nan_probe`.
#[inline(always)]
fn row_codes<S: Simd, const WIDTH: usize, const THRESHOLDS: usize>(
    simd: S,
    y: &[f32; WIDTH],
    quantizer: &Quantizer,
    valid: u64,
    nan_probe: &mut [f32; WIDTH],
) -> [u64; 2] {
    let mut reached = [0; MAX_THRESHOLDS];
    for (reached, threshold) in reached.iter_mut().zip(quantizer.thresholds).take(THRESHOLDS) {
        *reached = simd.ge_mask_f32(y, threshold) & valid;
    }
    // A sum with NaN is NaN, so one addition per vector finds NaN. Comparisons and integer
    // operations would take two instructions that depend on each other.
    for j in 0..WIDTH {
        nan_probe[j] += y[j];
    }
    quantizer.layout.coding().planes(reached)
}
