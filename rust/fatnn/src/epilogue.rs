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

impl ToCodes<'_> {
    /// The thresholds of a level, from 0 on, for some channels; the largest integer where there is no such channel or level.
    #[inline(always)]
    fn level<const NR: usize>(&self, level: usize, first: usize, channels: usize) -> [i32; NR] {
        let mut thresholds = [i32::MAX; NR];
        if level < self.layout.coding().thresholds() {
            fill(&mut thresholds, &self.thresholds[level * self.layout.channels() + first..][..channels]);
        }
        thresholds
    }
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
    let coding = to.layout.coding();
    let [first, second, third] = std::array::from_fn(|level| to.level::<NR>(level, tile.first_channel, tile.channels));
    let exists = u64::MAX >> (64 - tile.channels);
    let write = to.layout.writer(tile.first_channel, tile.channels);
    let rows = tile.acc.as_chunks::<NR>().0.iter();
    let rows = rows.zip(out.chunks_exact_mut(to.layout.pixel_bytes())).take(tile.rows);
    if coding == Coding::Ternary {
        for (acc, out) in rows {
            write(out, Coding::Ternary.planes([at_least(acc, &first) & exists, at_least(acc, &second) & exists, 0]));
        }
    } else {
        for (acc, out) in rows {
            write(out, coding.planes([&first, &second, &third].map(|threshold| at_least(acc, threshold) & exists)));
        }
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
    residual: Residual<'_>,
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
    let factors = (&scale, &bias);
    // Each kind compiled on its own: decided per vector, measured, it took as long as everything else here.
    match residual {
        Residual::None => float_rows::<NR, NOTHING>(tile, to, factors, &[], out, codes, at_least),
        Residual::Of(x) => float_rows::<NR, ELSEWHERE>(tile, to, factors, x, out, codes, at_least),
        Residual::InPlace => float_rows::<NR, IN_PLACE>(tile, to, factors, &[], out, codes, at_least),
    }
}

/// Rows between prefetch and use. A tile's part of a row is a few lines, too few for the hardware to see a pattern.
const AHEAD: usize = 8;

/// [`Residual`] as a constant.
const NOTHING: u8 = 0;
const ELSEWHERE: u8 = 1;
const IN_PLACE: u8 = 2;

#[inline(always)]
fn float_rows<const NR: usize, const RESIDUAL: u8>(
    tile: &TileAcc<'_>,
    to: &ToFloat<'_>,
    factors: (&[f32; NR], &[f32; NR]),
    residual: &[f32],
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; WIDE], f32) -> u16,
) -> bool {
    let exists = u64::MAX >> (64 - tile.channels);
    let codes_to = to.codes.map(|codes| (codes, codes.layout.writer(tile.first_channel, tile.channels)));
    let mut numbers = true;
    for (r, acc) in tile.acc.as_chunks::<NR>().0.iter().take(tile.rows).enumerate() {
        let row = r * to.channels + tile.first_channel..r * to.channels + tile.first_channel + tile.channels;
        let mut levels = Levels { reached: [0; MOST_THRESHOLDS], numbers: true };
        let ahead = row.start + AHEAD * to.channels;
        for i in (0..NR).step_by(WIDE) {
            crate::kernels::prefetch(out.as_ptr().wrapping_add(ahead + i));
            if RESIDUAL == ELSEWHERE {
                crate::kernels::prefetch(residual.as_ptr().wrapping_add(ahead + i));
            }
        }
        if let Ok(out) = TryInto::<&mut [f32; NR]>::try_into(&mut out[row.clone()]) {
            let none = [0.0; NR];
            let residual = if RESIDUAL == ELSEWHERE { residual[row].try_into().expect("as `out`") } else { &none };
            float_row::<NR, RESIDUAL>(acc, factors, residual, to, out, &mut levels, &at_least);
        } else {
            let (mut x, mut y) = ([0.0; NR], [0.0; NR]);
            match RESIDUAL {
                ELSEWHERE => x[..tile.channels].copy_from_slice(&residual[row.clone()]),
                IN_PLACE => y[..tile.channels].copy_from_slice(&out[row.clone()]),
                _ => (),
            }
            // Columns that do not exist are numbers too, and their bits are masked.
            float_row::<NR, RESIDUAL>(acc, factors, &x, to, &mut y, &mut levels, &at_least);
            store(&mut out[row], &y);
        }
        if let Some((quantizer, write)) = &codes_to {
            let bytes = quantizer.layout.pixel_bytes();
            let planes = quantizer.layout.coding().planes(levels.reached.map(|reached| reached & exists));
            write(&mut codes[r * bytes..(r + 1) * bytes], planes);
            numbers &= levels.numbers;
        }
    }
    numbers
}

/// Which values of a row reach levels 1, 2 and 3, and whether all are numbers.
struct Levels {
    reached: [u64; MOST_THRESHOLDS],
    numbers: bool,
}

/// Floats in the widest vector: compilers keep arrays of so many in registers.
const WIDE: usize = 16;

/// One row of [`to_float`].
#[inline(always)]
fn float_row<const NR: usize, const RESIDUAL: u8>(
    acc: &[i32; NR],
    (scale, bias): (&[f32; NR], &[f32; NR]),
    residual: &[f32; NR],
    to: &ToFloat<'_>,
    out: &mut [f32; NR],
    levels: &mut Levels,
    at_least: &impl Fn(&[f32; WIDE], f32) -> u16,
) {
    let mut part = |first: usize, y: &[f32; WIDE]| {
        if let Some(Quantizer { thresholds: [one, two, three], layout }) = to.codes {
            levels.reached[0] |= u64::from(at_least(y, one)) << first;
            levels.reached[1] |= u64::from(at_least(y, two)) << first;
            if layout.coding() == Coding::Uint2 {
                levels.reached[2] |= u64::from(at_least(y, three)) << first;
            }
            // The comparison with -∞ finds NaN.
            levels.numbers &= at_least(y, f32::NEG_INFINITY) == u16::MAX;
        }
    };
    if NR < WIDE {
        let x = if RESIDUAL == IN_PLACE { *out } else { *residual };
        *out = float_vector::<NR, RESIDUAL>(acc, (scale, bias), &x, to.relu);
        let mut padded = [0.0; WIDE];
        padded[..NR].copy_from_slice(out);
        return part(0, &padded);
    }
    for (i, out) in out.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
        let factors = (&scale.as_chunks().0[i], &bias.as_chunks().0[i]);
        let x = if RESIDUAL == IN_PLACE { *out } else { residual.as_chunks().0[i] };
        *out = float_vector::<WIDE, RESIDUAL>(&acc.as_chunks().0[i], factors, &x, to.relu);
        part(i * WIDE, out);
    }
}

#[inline(always)]
fn float_vector<const N: usize, const RESIDUAL: u8>(
    acc: &[i32; N],
    (scale, bias): (&[f32; N], &[f32; N]),
    residual: &[f32; N],
    relu: bool,
) -> [f32; N] {
    let mut y = acc.map(|a| a as f32);
    // A factor of one and a summand of -0.0 change nothing, so one form serves all four cases.
    for j in 0..N {
        y[j] = y[j].mul_add(scale[j], bias[j]);
    }
    if RESIDUAL != NOTHING {
        for j in 0..N {
            y[j] += residual[j];
        }
    }
    if relu {
        // Not `max`: NaN passes through, as in PyTorch.
        y = y.map(|y| if y <= 0.0 { 0.0 } else { y });
    }
    y
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
