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
    pub(crate) acc: &'a [i32],
    /// Rows that exist.
    pub(crate) rows: usize,
    /// Output channel of column 0.
    pub(crate) first_channel: usize,
    /// Columns that exist, at most 64.
    pub(crate) channels: usize,
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

/// Columns of a part of a tile of `nr`: the widest vector's floats, or all.
pub(crate) const fn part_width(nr: usize) -> usize {
    if nr < LINE { nr } else { LINE }
}

/// Columns of a tile that the epilogue looks at together: all of them, or where fewer exist, parts of so many as a vector has.
/// (Sixteen channels on the matrix unit, whose tiles have 64: a third of the time.)
#[derive(Clone, Copy)]
struct Part {
    /// Column of the tile where it begins.
    from: usize,
    /// Output channel of that column.
    first_channel: usize,
    /// Columns that exist.
    channels: usize,
}

impl Part {
    fn whole(tile: &TileAcc<'_>) -> Self {
        Part { from: 0, first_channel: tile.first_channel, channels: tile.channels }
    }

    fn each(tile: &TileAcc<'_>, width: usize) -> impl Iterator<Item = Self> {
        let (first_channel, channels) = (tile.first_channel, tile.channels);
        let part = move |from| Part { from, first_channel: first_channel + from, channels: width.min(channels - from) };
        (0..channels).step_by(width).map(part)
    }

    /// The part's columns of every row.
    #[inline(always)]
    fn rows<'a, const NR: usize, const WIDTH: usize>(
        self,
        tile: &TileAcc<'a>,
    ) -> impl Iterator<Item = &'a [i32; WIDTH]> {
        let rows = tile.acc.as_chunks::<NR>().0.iter().take(tile.rows);
        rows.map(move |row| row[self.from..].first_chunk().expect("parts are as wide as vectors, tiles some of these"))
    }

    /// Bits of the columns that exist.
    fn exists(self) -> u64 {
        u64::MAX >> (64 - self.channels)
    }
}

/// Writes the tile's codes into `out`, which starts at the tile's first row and whose bits are zero. `at_least(acc,
/// threshold)` is [`at_least`], or the same in the instruction set's own words, and so is `part_at_least`; `PART` divides `NR`.
#[inline(always)]
pub(crate) fn to_codes<const NR: usize, const PART: usize>(
    tile: &TileAcc<'_>,
    to: &ToCodes<'_>,
    out: &mut [u8],
    at_least: impl Fn(&[i32; NR], &[i32; NR]) -> u64,
    part_at_least: impl Fn(&[i32; PART], &[i32; PART]) -> u64,
) {
    const { assert!(NR.is_multiple_of(PART)) };
    let ternary = to.layout.coding() == Coding::Ternary;
    if NR == PART || tile.channels == NR {
        let whole = Part::whole(tile);
        return match ternary {
            true => code_rows::<NR, NR, 2>(tile, whole, to, out, at_least),
            false => code_rows::<NR, NR, 3>(tile, whole, to, out, at_least),
        };
    }
    for part in Part::each(tile, PART) {
        match ternary {
            true => code_rows::<NR, PART, 2>(tile, part, to, out, &part_at_least),
            false => code_rows::<NR, PART, 3>(tile, part, to, out, &part_at_least),
        }
    }
}

/// [`to_codes`] of a part, by so many thresholds.
#[inline(always)]
fn code_rows<const NR: usize, const WIDTH: usize, const THRESHOLDS: usize>(
    tile: &TileAcc<'_>,
    part: Part,
    to: &ToCodes<'_>,
    out: &mut [u8],
    at_least: impl Fn(&[i32; WIDTH], &[i32; WIDTH]) -> u64,
) {
    let (coding, exists, mut padded) = (to.layout.coding(), part.exists(), None);
    let of_level = |level| &to.thresholds[level * to.layout.channels() + part.first_channel..][..part.channels];
    let thresholds: [_; THRESHOLDS] = columns::<_, WIDTH, _>(std::array::from_fn(of_level), i32::MAX, &mut padded);
    let write = to.layout.writer(part.first_channel, part.channels);
    for (acc, out) in part.rows::<NR, WIDTH>(tile).zip(out.chunks_exact_mut(to.layout.pixel_bytes())) {
        let mut reached = [0; MOST_THRESHOLDS];
        for (reached, threshold) in reached.iter_mut().zip(thresholds) {
            *reached = at_least(acc, threshold) & exists;
        }
        write(out, coding.planes(reached));
    }
}

/// Every slice as a whole part's columns: itself where it has so many, else its copy, padded with `rest`. (Copying whole ones
/// too, once a tile, took a seventh of a layer of 64 to 256 channels.)
#[inline(always)]
fn columns<'a, T: Copy, const WIDTH: usize, const N: usize>(
    slices: [&'a [T]; N],
    rest: T,
    padded: &'a mut Option<[[T; WIDTH]; N]>,
) -> [&'a [T; WIDTH]; N] {
    if slices.iter().all(|slice| slice.len() == WIDTH) {
        return slices.map(|slice| slice.try_into().expect("as long"));
    }
    let copy = |slice: &[T]| {
        let mut copy = [rest; WIDTH];
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
/// [`crate::quantize::at_least`], and `part_at_least` likewise; false where a value that became one was NaN, or several are so large
/// that their sum is.
#[inline(always)]
pub(crate) fn to_float<const NR: usize, const PART: usize>(
    tile: &TileAcc<'_>,
    to: &ToFloat<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; NR], f32) -> u64,
    part_at_least: impl Fn(&[f32; PART], f32) -> u64,
) -> bool {
    if NR == PART || tile.channels == NR {
        return float_part::<NR, NR>(tile, Part::whole(tile), to, residual, out, codes, at_least);
    }
    let mut numbers = true;
    for part in Part::each(tile, PART) {
        numbers &= float_part::<NR, PART>(tile, part, to, residual, out, codes, &part_at_least);
    }
    numbers
}

/// [`to_float`] of a part.
#[inline(always)]
fn float_part<const NR: usize, const WIDTH: usize>(
    tile: &TileAcc<'_>,
    part: Part,
    to: &ToFloat<'_>,
    residual: Residual<'_>,
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; WIDTH], f32) -> u64,
) -> bool {
    // Each kind compiled on its own: decided per vector, measured, it took as long as everything else here.
    macro_rules! rows {
        ($kind:ident, $residual:expr) => {
            match to.codes.map(|codes| codes.layout.coding()) {
                None => float_rows::<NR, WIDTH, $kind, 0>(tile, part, to, $residual, out, codes, at_least),
                Some(Coding::Ternary) => {
                    float_rows::<NR, WIDTH, $kind, 2>(tile, part, to, $residual, out, codes, at_least)
                }
                Some(Coding::Uint2) => {
                    float_rows::<NR, WIDTH, $kind, 3>(tile, part, to, $residual, out, codes, at_least)
                }
            }
        };
    }
    match residual {
        Residual::None => rows!(NOTHING, &[]),
        Residual::Of(x) => rows!(ELSEWHERE, x),
        Residual::InPlace => rows!(IN_PLACE, &[]),
    }
}

/// Floats in a cache line.
const LINE: usize = 16;
/// Cache lines between prefetch and use, as rows: a tile's part of a row is a few lines, too few for the hardware to see a
/// pattern, and rows often lie so that the first-level cache has room for a dozen of them only.
const fn ahead(width: usize) -> usize {
    let rows = 16 * LINE / width;
    if rows < 8 { rows } else { 8 }
}

/// [`Residual`] as a constant.
const NOTHING: u8 = 0;
const ELSEWHERE: u8 = 1;
const IN_PLACE: u8 = 2;

/// [`float_part`] with such a residual and so many thresholds.
#[inline(always)]
fn float_rows<const NR: usize, const WIDTH: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    tile: &TileAcc<'_>,
    part: Part,
    to: &ToFloat<'_>,
    residual: &[f32],
    out: &mut [f32],
    codes: &mut [u8],
    at_least: impl Fn(&[f32; WIDTH], f32) -> u64,
) -> bool {
    // Absent ones change nothing: a factor of one and a summand of *negative* zero (0.0 would turn -0.0 into 0.0).
    const { assert!(WIDTH <= 64) };
    let channels = part.first_channel..part.first_channel + part.channels;
    let scale = to.scale.map_or(&[1.0; 64][..part.channels], |scale| &scale[channels.clone()]);
    let bias = to.bias.map_or(&[-0.0; 64][..part.channels], |bias| &bias[channels.clone()]);
    let mut padded = None;
    let factors = columns::<_, WIDTH, 2>([scale, bias], 0.0, &mut padded);
    let codes_to = to.codes.map(|codes| (codes, codes.layout.writer(part.first_channel, part.channels)));
    // What is not above it becomes it; NaN passes through, as through PyTorch's ReLU.
    let floor = if to.relu { 0.0 } else { f32::NEG_INFINITY };
    let mut total = [0.0; WIDTH];
    for (r, acc) in part.rows::<NR, WIDTH>(tile).enumerate() {
        let row = r * to.channels + channels.start..r * to.channels + channels.end;
        let ahead = row.start + const { ahead(WIDTH) } * to.channels;
        for i in (0..WIDTH).step_by(LINE) {
            crate::kernels::prefetch(out.as_ptr().wrapping_add(ahead + i));
            if RESIDUAL == ELSEWHERE {
                crate::kernels::prefetch(residual.as_ptr().wrapping_add(ahead + i));
            }
        }
        let mut padded = None;
        let [x] = match RESIDUAL {
            ELSEWHERE => columns([&residual[row.clone()]], 0.0, &mut padded),
            _ => [&[0.0; WIDTH]],
        };
        let mut whole;
        let y: &[f32; WIDTH] = if part.channels == WIDTH {
            let y: &mut [f32; WIDTH] = (&mut out[row]).try_into().expect("as long");
            float_row::<WIDTH, RESIDUAL>(acc, factors, x, floor, y);
            y
        } else {
            whole = [0.0; WIDTH];
            whole[..part.channels].copy_from_slice(&out[row.clone()]);
            float_row::<WIDTH, RESIDUAL>(acc, factors, x, floor, &mut whole);
            store(&mut out[row], &whole);
            &whole
        };
        if let Some((quantizer, write)) = &codes_to {
            let planes = row_codes::<WIDTH, THRESHOLDS>(y, quantizer, part.exists(), &at_least, &mut total);
            let bytes = quantizer.layout.pixel_bytes();
            write(&mut codes[r * bytes..(r + 1) * bytes], planes);
        }
    }
    total.iter().all(|total| !total.is_nan())
}

/// One row of [`float_rows`].
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
            ELSEWHERE => y += residual[j],
            IN_PLACE => y += out[j],
            _ => (),
        }
        out[j] = if y <= floor { floor } else { y };
    }
}

/// The planes of a row's codes, of those columns whose bits are set in `exists`; `total` adds up what there is.
#[inline(always)]
fn row_codes<const WIDTH: usize, const THRESHOLDS: usize>(
    y: &[f32; WIDTH],
    quantizer: &Quantizer,
    exists: u64,
    at_least: &impl Fn(&[f32; WIDTH], f32) -> u64,
    total: &mut [f32; WIDTH],
) -> [u64; 2] {
    let mut reached = [0; MOST_THRESHOLDS];
    for (reached, threshold) in reached.iter_mut().zip(quantizer.thresholds).take(THRESHOLDS) {
        *reached = at_least(y, threshold) & exists;
    }
    // Whatever is added to NaN is NaN: an addition a vector, where comparisons and integers take two and wait for each other.
    for j in 0..WIDTH {
        total[j] += y[j];
    }
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
