//! The fused tail of a tile: accumulators to codes through integer thresholds, or to float32.
//!
//! Defined once; every kernel file compiles these functions with its own CPU features, so the tail of a tile runs on the
//! tile while it is in the nearest cache. The order of operations is part of the contract, because a deployed network must
//! give the eager model's values bit for bit on every CPU:
//!
//! * codes: `level = [acc ≥ low] + [acc ≥ high]`, code `level - 1` (for half- and full-range activations alike); with a third
//!   threshold the level is the code, of two bits;
//! * float32: `y = fma(float(acc), scale, bias)` **with one rounding** (what PyTorch's BatchNorm computes in evaluation
//!   mode on CPUs with FMA), an absent scale being 1 and an absent bias 0, so that `float(acc) * scale` and
//!   `float(acc) + bias` come out of the same formula; then `y + residual`, rounded separately; then `max(y, 0)` where asked for, with NaN passing through.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is exact.

use crate::codec::{CodesLayout, Coding, MOST_THRESHOLDS};
use crate::error::{Result, bad_value, check_len};

/// A finished tile of accumulators and where it belongs.
pub struct TileAcc<'a> {
    /// `acc[row * nr + channel]`.
    pub acc: &'a [i32],
    /// Rows that exist.
    pub rows: usize,
    /// Output channel of column 0.
    pub first_channel: usize,
    /// Columns that exist, at most 64.
    pub channels: usize,
}

/// Thresholds to codes.
pub struct ToCodes<'a> {
    /// The smallest accumulator of level 1 for every output channel; behind them those of level 2, which are not smaller, and
    /// where the codes have two bits those of level 3.
    pub thresholds: &'a [i32],
    /// Layout of the codes that come out.
    pub layout: CodesLayout,
}

/// Scale and bias to float32.
pub struct ToFloat<'a> {
    /// Per output channel.
    pub scale: Option<&'a [f32]>,
    /// Per output channel.
    pub bias: Option<&'a [f32]>,
    /// `max(y, 0)` at the end.
    pub relu: bool,
    /// Output channels in a row of `out`.
    pub channels: usize,
    /// Codes of the values, beside the values. Only networks have a place for them; elsewhere `None`.
    pub codes: Option<Quantizer>,
}

/// What is added behind scale and bias.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// An array of the output's shape.
    Of(&'a [f32]),
    /// What stands in the output.
    InPlace,
}

/// Thresholds from float32 to codes, the same for all channels.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    /// The smallest values of levels 1, 2, 3; NaN, which no comparison reaches, for those that nothing reaches.
    pub(crate) thresholds: [f32; MOST_THRESHOLDS],
    pub(crate) layout: CodesLayout,
}

impl Quantizer {
    /// A quantizer by the smallest values of levels 1, 2 and, for codes of two bits, 3; infinity for levels that nothing
    /// reaches, infinity neither.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where there is another number of them than the layout's coding has;
    /// [`crate::Error::Value`] where one is NaN or below the one before.
    pub fn new(thresholds: &[f32], layout: CodesLayout) -> Result<Self> {
        check_len("thresholds", layout.coding().thresholds(), thresholds.len())?;
        // Not `a > b`, which NaN would pass.
        if !thresholds.is_sorted_by(|a, b| a <= b) {
            return bad_value("thresholds", "numbers, none below the one before", format!("{thresholds:?}"));
        }
        let mut all = [f32::NAN; MOST_THRESHOLDS];
        for (to, &threshold) in all.iter_mut().zip(thresholds) {
            *to = if threshold == f32::INFINITY { f32::NAN } else { threshold };
        }
        Ok(Quantizer { thresholds: all, layout })
    }
}

/// Writes the tile's codes into `out`, which starts at the tile's first row and whose bits are zero. `at_least(acc,
/// threshold)` is [`at_least`], or the same in the instruction set's own words.
#[inline(always)]
pub(crate) fn to_codes<const NR: usize>(
    tile: &TileAcc<'_>,
    to: &ToCodes<'_>,
    out: &mut [u8],
    at_least: impl Fn(&[i32; NR], &[i32; NR]) -> u64,
) {
    match to.layout.coding() {
        Coding::Ternary => code_rows::<NR, 2>(tile, to, out, at_least),
        Coding::Uint2 => code_rows::<NR, 3>(tile, to, out, at_least),
    }
}

/// [`to_codes`] by so many thresholds.
#[inline(always)]
fn code_rows<const NR: usize, const THRESHOLDS: usize>(
    tile: &TileAcc<'_>,
    to: &ToCodes<'_>,
    out: &mut [u8],
    at_least: impl Fn(&[i32; NR], &[i32; NR]) -> u64,
) {
    let (coding, mut padded) = (to.layout.coding(), None);
    let of_level = |level| &to.thresholds[level * to.layout.channels() + tile.first_channel..][..tile.channels];
    let thresholds: [_; THRESHOLDS] = columns::<_, NR, _>(std::array::from_fn(of_level), i32::MAX, &mut padded);
    let exists = u64::MAX >> (64 - tile.channels);
    let write = to.layout.writer(tile.first_channel, tile.channels);
    let rows = tile.acc.as_chunks::<NR>().0.iter();
    for (acc, out) in rows.zip(out.chunks_exact_mut(to.layout.pixel_bytes())).take(tile.rows) {
        let mut reached = [0; MOST_THRESHOLDS];
        for (reached, threshold) in reached.iter_mut().zip(thresholds) {
            *reached = at_least(acc, threshold) & exists;
        }
        write(out, coding.planes(reached));
    }
}

/// Every slice as a whole tile's columns: itself where it has so many, else its copy, padded with `rest`. (Copying whole ones
/// too, once a tile, took a seventh of a layer of 64 to 256 channels.)
#[inline(always)]
fn columns<'a, T: Copy, const NR: usize, const N: usize>(
    slices: [&'a [T]; N],
    rest: T,
    padded: &'a mut Option<[[T; NR]; N]>,
) -> [&'a [T; NR]; N] {
    if slices.iter().all(|slice| slice.len() == NR) {
        return slices.map(|slice| slice.try_into().expect("as long"));
    }
    let copy = |slice: &[T]| {
        let mut copy = [rest; NR];
        copy[..slice.len()].copy_from_slice(slice);
        copy
    };
    padded.insert(slices.map(copy)).each_ref()
}

/// Bit `j` says whether `acc[j] >= threshold[j]`. (Compilers do not find the instruction for it: measured, a third of a
/// 64-channel layer's time went here.)
#[inline(always)]
pub(crate) fn at_least<const NR: usize>(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    let mut bits = 0;
    for j in 0..NR {
        bits |= u64::from(acc[j] >= threshold[j]) << j;
    }
    bits
}

/// Writes the tile's float32 values into `out`, which starts at the tile's first row, as do `residual` and `codes`. The
/// codes, where `to` asks for them, are set in bits that are zero, with `at_least(x, threshold)` of
/// [`crate::quantize::at_least`]; false where a value that became one was NaN.
#[inline(always)]
pub(crate) fn to_float<const NR: usize>(
    tile: &TileAcc<'_>,
    to: &ToFloat<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; NR], f32) -> u64,
) -> bool {
    // Each kind compiled on its own: decided per vector, measured, it took as long as everything else here.
    macro_rules! rows {
        ($kind:ident, $residual:expr) => {
            match to.codes.map(|codes| codes.layout.coding()) {
                None => float_rows::<NR, $kind, 0>(tile, to, $residual, out, codes, at_least),
                Some(Coding::Ternary) => float_rows::<NR, $kind, 2>(tile, to, $residual, out, codes, at_least),
                Some(Coding::Uint2) => float_rows::<NR, $kind, 3>(tile, to, $residual, out, codes, at_least),
            }
        };
    }
    match residual {
        Residual::None => rows!(NOTHING, &[]),
        Residual::Of(x) => rows!(ELSEWHERE, x),
        Residual::InPlace => rows!(IN_PLACE, &[]),
    }
}

/// Rows between prefetch and use. A tile's part of a row is a few lines, too few for the hardware to see a pattern.
const AHEAD: usize = 4;

/// [`Residual`] as a constant.
const NOTHING: u8 = 0;
const ELSEWHERE: u8 = 1;
const IN_PLACE: u8 = 2;

/// [`to_float`] with such a residual and so many thresholds.
#[inline(always)]
fn float_rows<const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    tile: &TileAcc<'_>,
    to: &ToFloat<'_>,
    residual: &[f32],
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; NR], f32) -> u64,
) -> bool {
    // Absent ones change nothing: a factor of one and a summand of *negative* zero (0.0 would turn -0.0 into 0.0).
    const { assert!(NR <= 64) };
    let channels = tile.first_channel..tile.first_channel + tile.channels;
    let scale = to.scale.map_or(&[1.0; 64][..tile.channels], |scale| &scale[channels.clone()]);
    let bias = to.bias.map_or(&[-0.0; 64][..tile.channels], |bias| &bias[channels.clone()]);
    let mut padded = None;
    let factors = columns::<_, NR, 2>([scale, bias], 0.0, &mut padded);
    let codes_to = to.codes.map(|codes| (codes, codes.layout.writer(tile.first_channel, tile.channels)));
    let exists = u64::MAX >> (64 - tile.channels);
    let mut largest = [0; LANES];
    // What is not above it becomes it; NaN passes through, as through PyTorch's ReLU.
    let floor = if to.relu { 0.0 } else { f32::NEG_INFINITY };
    for (r, acc) in tile.acc.as_chunks::<NR>().0.iter().take(tile.rows).enumerate() {
        let row = r * to.channels + tile.first_channel..r * to.channels + tile.first_channel + tile.channels;
        let ahead = row.start + AHEAD * to.channels;
        for i in (0..NR).step_by(LINE) {
            crate::kernels::prefetch(out.as_ptr().wrapping_add(ahead + i));
            if RESIDUAL == ELSEWHERE {
                crate::kernels::prefetch(residual.as_ptr().wrapping_add(ahead + i));
            }
        }
        let mut padded = None;
        let [x] = match RESIDUAL {
            ELSEWHERE => columns([&residual[row.clone()]], 0.0, &mut padded),
            _ => [&[0.0; NR]],
        };
        let mut whole;
        let y: &[f32; NR] = if tile.channels == NR {
            let y: &mut [f32; NR] = (&mut out[row]).try_into().expect("as long");
            float_row::<NR, RESIDUAL>(acc, factors, x, floor, y);
            y
        } else {
            whole = [0.0; NR];
            whole[..tile.channels].copy_from_slice(&out[row.clone()]);
            float_row::<NR, RESIDUAL>(acc, factors, x, floor, &mut whole);
            store(&mut out[row], &whole);
            &whole
        };
        if let Some((quantizer, write)) = &codes_to {
            let planes = row_codes::<NR, THRESHOLDS>(y, quantizer, exists, &at_least, &mut largest);
            let bytes = quantizer.layout.pixel_bytes();
            write(&mut codes[r * bytes..(r + 1) * bytes], planes);
        }
    }
    // Without their signs NaNs are the largest, as integers.
    largest.iter().all(|&largest| largest <= f32::INFINITY.to_bits())
}

/// Floats in a cache line.
const LINE: usize = 16;
/// Floats that are looked at side by side for NaN.
const LANES: usize = 16;
/// The sign of a float32.
const SIGN: u32 = 1 << 31;

/// One row of [`to_float`].
#[inline(always)]
fn float_row<const NR: usize, const RESIDUAL: u8>(
    acc: &[i32; NR],
    [scale, bias]: [&[f32; NR]; 2],
    residual: &[f32; NR],
    floor: f32,
    out: &mut [f32; NR],
) {
    for j in 0..NR {
        let mut y = (acc[j] as f32).mul_add(scale[j], bias[j]);
        match RESIDUAL {
            ELSEWHERE => y += residual[j],
            IN_PLACE => y += out[j],
            _ => (),
        }
        out[j] = if y <= floor { floor } else { y };
    }
}

/// The planes of a row's codes, of those columns whose bits are set in `exists`; `largest` is how [`float_rows`] finds NaN.
#[inline(always)]
fn row_codes<const NR: usize, const THRESHOLDS: usize>(
    y: &[f32; NR],
    quantizer: &Quantizer,
    exists: u64,
    at_least: &impl Fn(&[f32; NR], f32) -> u64,
    largest: &mut [u32; LANES],
) -> [u64; 2] {
    let mut reached = [0; MOST_THRESHOLDS];
    for (reached, threshold) in reached.iter_mut().zip(quantizer.thresholds).take(THRESHOLDS) {
        *reached = at_least(y, threshold) & exists;
    }
    // Columns that do not exist are numbers too.
    let (vectors, rest) = y.as_chunks::<LANES>();
    let mut now = *largest;
    for y in vectors {
        now = std::array::from_fn(|lane| now[lane].max(y[lane].to_bits() & !SIGN));
    }
    for (now, y) in now.iter_mut().zip(rest) {
        *now = (*now).max(y.to_bits() & !SIGN);
    }
    *largest = now;
    quantizer.layout.coding().planes(reached)
}

/// Copies the start of `from` to `to`: one move of constant size for a whole tile.
#[inline(always)]
pub(crate) fn store<T: Copy, const NR: usize>(to: &mut [T], from: &[T; NR]) {
    match TryInto::<&mut [T; NR]>::try_into(&mut *to) {
        Ok(whole) => *whole = *from,
        Err(_) => to.copy_from_slice(&from[..to.len()]),
    }
}

/// Writes the tile's accumulators into `out`, which starts at the tile's first row and has `channels` columns.
#[inline(always)]
pub(crate) fn to_acc<const NR: usize>(tile: &TileAcc<'_>, channels: usize, out: &mut [i32]) {
    for (acc, out) in tile.acc.as_chunks::<NR>().0.iter().zip(out.chunks_exact_mut(channels)).take(tile.rows) {
        store(&mut out[tile.first_channel..][..tile.channels], acc);
    }
}
