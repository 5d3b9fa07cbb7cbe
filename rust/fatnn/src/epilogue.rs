//! The fused tail of a tile: accumulators to codes through integer thresholds, or to float32.
//!
//! Defined once; every kernel file compiles these functions with its own CPU features, so the tail of a tile runs on the
//! tile while it is in the nearest cache. The order of operations is part of the contract, because a deployed network must
//! give the eager model's values bit for bit on every CPU:
//!
//! * codes: `level = [acc ≥ low] + [acc ≥ high]`, code `level - 1` (for half- and full-range activations alike);
//! * float32: `y = fma(float(acc), scale, bias)` **with one rounding** (what PyTorch's BatchNorm computes in evaluation
//!   mode on CPUs with FMA), an absent scale being 1 and an absent bias 0, so that `float(acc) * scale` and
//!   `float(acc) + bias` come out of the same formula; then `y + residual`, rounded separately; then `max(y, 0)` where asked for, with NaN passing through.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is exact.

use crate::codec::CodesLayout;

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
    /// Per output channel: the smallest accumulator of level 1.
    pub low: &'a [i32],
    /// Per output channel: the smallest accumulator of level 2; at least `low`.
    pub high: &'a [i32],
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
    /// Codes of the values, beside the values.
    pub codes: Option<Quantizer>,
}

/// Thresholds from float32 to codes, the same for all channels.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    /// The smallest values of levels 1 and 2; the second at least the first.
    pub thresholds: [f32; 2],
    /// Layout of the codes that come out.
    pub layout: CodesLayout,
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
    let channels = tile.first_channel..tile.first_channel + tile.channels;
    let (mut low, mut high) = ([i32::MAX; NR], [i32::MAX; NR]);
    fill(&mut low, &to.low[channels.clone()]);
    fill(&mut high, &to.high[channels]);
    let exists = u64::MAX >> (64 - tile.channels);
    let rows = tile.acc.as_chunks::<NR>().0.iter();
    for (acc, out) in rows.zip(out.chunks_exact_mut(to.layout.pixel_bytes())).take(tile.rows) {
        let (p, x2) = (at_least(acc, &low) & exists, at_least(acc, &high) & exists);
        to.layout.or_planes(out, tile.first_channel, tile.channels, p & !x2, p);
    }
}

/// Copies `from` to the start of `to`: one move of constant size for a whole tile.
#[inline(always)]
fn fill<T: Copy, const NR: usize>(to: &mut [T; NR], from: &[T]) {
    match from.try_into() {
        Ok(whole) => *to = whole,
        Err(_) => to[..from.len()].copy_from_slice(from),
    }
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
    residual: Option<&[f32]>,
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; WIDE], f32) -> u16,
) -> bool {
    let channels = tile.first_channel..tile.first_channel + tile.channels;
    // Absent ones change nothing: a factor of one and a summand of *negative* zero (0.0 would turn -0.0 into 0.0).
    let (mut scale, mut bias) = ([1.0; NR], [-0.0; NR]);
    if let Some(s) = to.scale {
        fill(&mut scale, &s[channels.clone()]);
    }
    if let Some(b) = to.bias {
        fill(&mut bias, &b[channels.clone()]);
    }
    let exists = u64::MAX >> (64 - tile.channels);
    let mut numbers = true;
    for (r, acc) in tile.acc.as_chunks::<NR>().0.iter().take(tile.rows).enumerate() {
        let row = r * to.channels + tile.first_channel..r * to.channels + tile.first_channel + tile.channels;
        let residual = residual.map(|x| &x[row.clone()]);
        let out = &mut out[row];
        let mut padded = [0.0; NR];
        let y: &[f32; NR] = if let Ok(whole) = TryInto::<&mut [f32; NR]>::try_into(&mut *out) {
            let residual = residual.map(|x| x.try_into().expect("as long as `out`"));
            float_row(acc, (&scale, &bias), residual, to.relu, whole);
            whole
        } else {
            let mut x = [0.0; NR];
            if let Some(residual) = residual {
                fill(&mut x, residual);
            }
            float_row(acc, (&scale, &bias), residual.map(|_| &x), to.relu, &mut padded);
            store(out, &padded);
            &padded
        };
        if let Some(Quantizer { thresholds: [low, high], layout }) = &to.codes {
            // Columns that do not exist are numbers too, and their bits are masked.
            let (p, number) = bits(y, &at_least, *low);
            let (x2, _) = bits(y, &at_least, *high);
            numbers &= number;
            let (p, x2) = (p & exists, x2 & exists);
            let pixel = &mut codes[r * layout.pixel_bytes()..][..layout.pixel_bytes()];
            layout.or_planes(pixel, tile.first_channel, tile.channels, p & !x2, p);
        }
    }
    numbers
}

/// Bit `j` says whether `y[j] >= threshold`; and whether none is NaN.
#[inline(always)]
fn bits<const NR: usize>(y: &[f32; NR], at_least: &impl Fn(&[f32; WIDE], f32) -> u16, threshold: f32) -> (u64, bool) {
    let (mut bits, mut numbers) = (0, true);
    let mut part = |i: usize, x: &[f32; WIDE]| {
        bits |= u64::from(at_least(x, threshold)) << (i * WIDE);
        // The comparison with -∞ finds NaN.
        numbers &= at_least(x, f32::NEG_INFINITY) == u16::MAX;
    };
    let (whole, rest) = y.as_chunks::<WIDE>();
    for (i, x) in whole.iter().enumerate() {
        part(i, x);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; WIDE];
        padded[..rest.len()].copy_from_slice(rest);
        part(whole.len(), &padded);
    }
    (bits, numbers)
}

/// One row of [`to_float`], a vector of [`WIDE`] at a time where a tile is wider: compilers keep such arrays in registers.
#[inline(always)]
fn float_row<const NR: usize>(
    acc: &[i32; NR],
    (scale, bias): (&[f32; NR], &[f32; NR]),
    residual: Option<&[f32; NR]>,
    relu: bool,
    out: &mut [f32; NR],
) {
    if NR <= WIDE {
        return float_vector(acc, (scale, bias), residual, relu, out);
    }
    let parts = acc.as_chunks::<WIDE>().0.iter().zip(out.as_chunks_mut::<WIDE>().0).enumerate();
    for (i, (acc, out)) in parts {
        let factors = (&scale.as_chunks().0[i], &bias.as_chunks().0[i]);
        float_vector(acc, factors, residual.map(|x| &x.as_chunks().0[i]), relu, out);
    }
}

/// Floats in the widest vector.
const WIDE: usize = 16;

#[inline(always)]
fn float_vector<const N: usize>(
    acc: &[i32; N],
    (scale, bias): (&[f32; N], &[f32; N]),
    residual: Option<&[f32; N]>,
    relu: bool,
    out: &mut [f32; N],
) {
    let mut y = acc.map(|a| a as f32);
    // A factor of one and a summand of -0.0 change nothing, so one form serves all four cases.
    for j in 0..N {
        y[j] = y[j].mul_add(scale[j], bias[j]);
    }
    if let Some(x) = residual {
        for j in 0..N {
            y[j] += x[j];
        }
    }
    if relu {
        // Not `max`: NaN passes through, as in PyTorch.
        y = y.map(|y| if y <= 0.0 { 0.0 } else { y });
    }
    *out = y;
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
