//! The fused tail of a tile: accumulators to codes through integer thresholds, or to float32.
//!
//! Defined once; every kernel file compiles these functions with its own CPU features, so the tail of a tile runs on the
//! tile while it is in the nearest cache. The order of operations is part of the contract, because a deployed network must
//! give the eager model's values bit for bit on every CPU:
//!
//! * codes: `level = [acc ≥ low] + [acc ≥ high]`, code `level - 1` (for half- and full-range activations alike);
//! * float32: `y = fma(float(acc), scale, bias)` **with one rounding** (what PyTorch's BatchNorm computes in evaluation
//!   mode on CPUs with FMA), or `float(acc) * scale`, `float(acc) + bias`, `float(acc)` where one or both are absent; then
//!   `y + residual`, rounded separately; then `max(y, 0)` where asked for, with NaN passing through.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is exact.

use crate::codec::CodesLayout;

/// A finished tile of accumulators and where it belongs.
pub struct TileAcc<'a> {
    /// `acc[row * nr + channel]`.
    pub acc: &'a [i32],
    /// Row stride of `acc`.
    pub nr: usize,
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
}

/// Writes the tile's codes into `out`, which starts at the tile's first row and whose bits are zero.
#[inline(always)]
pub(crate) fn to_codes(tile: &TileAcc<'_>, to: &ToCodes<'_>, out: &mut [u8]) {
    let channels = tile.first_channel..tile.first_channel + tile.channels;
    let (low, high) = (&to.low[channels.clone()], &to.high[channels]);
    let row_bytes = to.layout.pixel_bytes();
    for (acc, out) in tile.acc.chunks_exact(tile.nr).zip(out.chunks_exact_mut(row_bytes)).take(tile.rows) {
        let (mut at_least_0, mut at_least_1) = (0u64, 0u64);
        for (j, ((&a, &low), &high)) in acc.iter().zip(low).zip(high).enumerate() {
            at_least_0 |= u64::from(a >= low) << j;
            at_least_1 |= u64::from(a >= high) << j;
        }
        to.layout.or_planes(out, tile.first_channel, tile.channels, at_least_0 & !at_least_1, at_least_0);
    }
}

/// Writes the tile's float32 values into `out`, which starts at the tile's first row, as does `residual`.
#[inline(always)]
pub(crate) fn to_float(tile: &TileAcc<'_>, to: &ToFloat<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
    let channels = tile.first_channel..tile.first_channel + tile.channels;
    let scale = to.scale.map(|s| &s[channels.clone()]);
    let bias = to.bias.map(|b| &b[channels.clone()]);
    for (r, acc) in tile.acc.chunks_exact(tile.nr).take(tile.rows).enumerate() {
        let out = &mut out[r * to.channels..(r + 1) * to.channels][channels.clone()];
        let acc = &acc[..tile.channels];
        match (scale, bias) {
            (Some(scale), Some(bias)) => {
                for (((y, &a), &s), &b) in out.iter_mut().zip(acc).zip(scale).zip(bias) {
                    *y = (a as f32).mul_add(s, b);
                }
            }
            (Some(scale), None) => {
                for ((y, &a), &s) in out.iter_mut().zip(acc).zip(scale) {
                    *y = a as f32 * s;
                }
            }
            (None, Some(bias)) => {
                for ((y, &a), &b) in out.iter_mut().zip(acc).zip(bias) {
                    *y = a as f32 + b;
                }
            }
            (None, None) => {
                for (y, &a) in out.iter_mut().zip(acc) {
                    *y = a as f32;
                }
            }
        }
        if let Some(residual) = residual {
            let residual = &residual[r * to.channels..(r + 1) * to.channels][channels.clone()];
            for (y, &x) in out.iter_mut().zip(residual) {
                *y += x;
            }
        }
        if to.relu {
            for y in out.iter_mut() {
                // Not `max`: NaN passes through, as in PyTorch; -0.0 becomes 0.0.
                *y = if *y <= 0.0 { 0.0 } else { *y };
            }
        }
    }
}
