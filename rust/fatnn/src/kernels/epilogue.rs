//! The epilogue of a tile: accumulators to codes or to float32, while they are in the nearest
//! cache.
//!
//! [`crate::epilogue`] says what is computed and in which order. The loops stand here once;
//! [`Epilogue`] compiles them for an instruction set and a tile width.

use std::marker::PhantomData;

use super::isa::Simd;
use super::vector::VectorLoop;
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::epilogue::{Dequantize, Quantizer, Requantize, Residual};

/// What follows the products of a tile. `out`, `codes` and `residual` start at the tile's first
/// row.
#[doc(hidden)]
pub trait TileEpilogue: Send + Sync {
    /// Accumulators to codes, which are set in bits of `out` that are zero.
    fn to_codes(&self, tile: &TileAcc<'_>, to: &Requantize<'_>, out: &mut [u8]);

    /// Accumulators to float32 and, where `to` asks for them, to codes of those, set in bits that
    /// are zero. False where a value that became a code may be NaN.
    fn to_float(
        &self,
        tile: &TileAcc<'_>,
        to: &Dequantize<'_>,
        residual: Residual<'_>,
        out: &mut [f32],
        codes: &mut [u8],
    ) -> bool;

    /// The accumulators as they are, `channels` columns a row.
    fn to_acc(&self, tile: &TileAcc<'_>, channels: usize, out: &mut [i32]);
}

/// The epilogue of tiles of `NR` columns, compiled for `S`; `PART` is [`part_width`] of `NR`.
pub(crate) struct Epilogue<S, const NR: usize, const PART: usize>(PhantomData<S>);

impl<S: Simd, const NR: usize, const PART: usize> Epilogue<S, NR, PART> {
    /// # Safety
    /// Whoever calls its methods has seen a value of `S`, for instance a kernel that is only made
    /// where there is one.
    pub const unsafe fn new() -> Self {
        Epilogue(PhantomData)
    }

    #[inline(always)]
    fn run<L: VectorLoop>(&self, work: L) -> L::Output {
        // SAFETY: as the caller of `new` has promised.
        unsafe { S::assume() }.run(work)
    }
}

impl<S: Simd, const NR: usize, const PART: usize> TileEpilogue for Epilogue<S, NR, PART> {
    fn to_codes(&self, tile: &TileAcc<'_>, to: &Requantize<'_>, out: &mut [u8]) {
        struct Work<'a, const NR: usize, const PART: usize>(
            &'a TileAcc<'a>,
            &'a Requantize<'a>,
            &'a mut [u8],
        );
        impl<const NR: usize, const PART: usize> VectorLoop for Work<'_, NR, PART> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                to_codes::<S, NR, PART>(simd, self.0, self.1, self.2);
            }
        }
        self.run(Work::<NR, PART>(tile, to, out));
    }

    fn to_float(
        &self,
        tile: &TileAcc<'_>,
        to: &Dequantize<'_>,
        residual: Residual<'_>,
        out: &mut [f32],
        codes: &mut [u8],
    ) -> bool {
        struct Work<'a, const NR: usize, const PART: usize> {
            tile: &'a TileAcc<'a>,
            to: &'a Dequantize<'a>,
            residual: Residual<'a>,
            out: &'a mut [f32],
            codes: &'a mut [u8],
        }
        impl<const NR: usize, const PART: usize> VectorLoop for Work<'_, NR, PART> {
            type Output = bool;
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> bool {
                let Work { tile, to, residual, out, codes } = self;
                to_float::<S, NR, PART>(simd, tile, to, residual, out, codes)
            }
        }
        self.run(Work::<NR, PART> { tile, to, residual, out, codes })
    }

    fn to_acc(&self, tile: &TileAcc<'_>, channels: usize, out: &mut [i32]) {
        struct Work<'a, const NR: usize>(&'a TileAcc<'a>, usize, &'a mut [i32]);
        impl<const NR: usize> VectorLoop for Work<'_, NR> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, _: S) {
                to_acc::<NR>(self.0, self.1, self.2);
            }
        }
        self.run(Work::<NR>(tile, channels, out));
    }
}

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

/// Columns of a part of a tile of `nr`: the widest vector's floats, or all.
pub(crate) const fn part_width(nr: usize) -> usize {
    if nr < LINE { nr } else { LINE }
}

/// Columns of a tile that the epilogue looks at together: all of them, or where fewer exist, parts
/// of so many as a vector has. (Sixteen channels on the matrix unit, whose tiles have 64: a third
/// of the time.)
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
        let part = move |from| Part {
            from,
            first_channel: first_channel + from,
            channels: width.min(channels - from),
        };
        (0..channels).step_by(width).map(part)
    }

    /// The part's columns of every row.
    #[inline(always)]
    fn rows<'a, const NR: usize, const WIDTH: usize>(
        self,
        tile: &TileAcc<'a>,
    ) -> impl Iterator<Item = &'a [i32; WIDTH]> {
        let rows = tile.acc.as_chunks::<NR>().0.iter().take(tile.rows);
        rows.map(move |row| {
            row[self.from..]
                .first_chunk()
                .expect("parts are as wide as vectors, tiles some of these")
        })
    }

    /// Bits of the columns that exist.
    fn exists(self) -> u64 {
        u64::MAX >> (64 - self.channels)
    }
}

/// See [`TileEpilogue::to_codes`].
#[inline(always)]
fn to_codes<S: Simd, const NR: usize, const PART: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    to: &Requantize<'_>,
    out: &mut [u8],
) {
    const { assert!(NR.is_multiple_of(PART)) };
    let ternary = to.layout.coding() == Coding::Ternary;
    if NR == PART || tile.channels == NR {
        let whole = Part::whole(tile);
        return match ternary {
            true => code_rows::<S, NR, NR, 2>(simd, tile, whole, to, out),
            false => code_rows::<S, NR, NR, 3>(simd, tile, whole, to, out),
        };
    }
    for part in Part::each(tile, PART) {
        match ternary {
            true => code_rows::<S, NR, PART, 2>(simd, tile, part, to, out),
            false => code_rows::<S, NR, PART, 3>(simd, tile, part, to, out),
        }
    }
}

/// [`to_codes`] of a part, by so many thresholds.
#[inline(always)]
fn code_rows<S: Simd, const NR: usize, const WIDTH: usize, const THRESHOLDS: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    part: Part,
    to: &Requantize<'_>,
    out: &mut [u8],
) {
    let (coding, exists, mut padded) = (to.layout.coding(), part.exists(), None);
    let of_level = |level| {
        &to.thresholds[level * to.layout.channels() + part.first_channel..][..part.channels]
    };
    let thresholds: [_; THRESHOLDS] =
        columns::<_, WIDTH, _>(std::array::from_fn(of_level), i32::MAX, &mut padded);
    let write = to.layout.writer(part.first_channel, part.channels);
    for (acc, out) in
        part.rows::<NR, WIDTH>(tile).zip(out.chunks_exact_mut(to.layout.pixel_bytes()))
    {
        let mut reached = [0; MAX_THRESHOLDS];
        for (reached, threshold) in reached.iter_mut().zip(thresholds) {
            *reached = simd.ge_mask(acc, threshold) & exists;
        }
        write(out, coding.planes(reached));
    }
}

/// Every slice as a whole part's columns: itself where it has so many, else its copy, padded with
/// `rest`. (Copying whole ones too, once a tile, took a seventh of a layer of 64 to 256 channels.)
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

/// See [`TileEpilogue::to_float`].
#[inline(always)]
fn to_float<S: Simd, const NR: usize, const PART: usize>(
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
    let mut numbers = true;
    for part in Part::each(tile, PART) {
        numbers &= float_part::<S, NR, PART>(simd, tile, part, to, residual, out, codes);
    }
    numbers
}

/// [`to_float`] of a part.
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
    // Each kind compiled on its own: decided per vector, measured, it took as long as everything
    // else here.
    macro_rules! rows {
        ($kind:ident, $residual:expr) => {
            match to.codes.map(|codes| codes.layout.coding()) {
                None => float_rows::<S, NR, WIDTH, $kind, 0>(
                    simd, tile, part, to, $residual, out, codes,
                ),
                Some(Coding::Ternary) => float_rows::<S, NR, WIDTH, $kind, 2>(
                    simd, tile, part, to, $residual, out, codes,
                ),
                Some(Coding::Uint2) => float_rows::<S, NR, WIDTH, $kind, 3>(
                    simd, tile, part, to, $residual, out, codes,
                ),
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
/// Cache lines between prefetch and use, as rows: a tile's part of a row is a few lines, too few
/// for the hardware to see a pattern, and rows often lie so that the first-level cache has room for
/// a dozen of them only.
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
#[allow(clippy::too_many_arguments, reason = "compiled into one loop; called from one place")]
fn float_rows<
    S: Simd,
    const NR: usize,
    const WIDTH: usize,
    const RESIDUAL: u8,
    const THRESHOLDS: usize,
>(
    simd: S,
    tile: &TileAcc<'_>,
    part: Part,
    to: &Dequantize<'_>,
    residual: &[f32],
    out: &mut [f32],
    codes: &mut [u8],
) -> bool {
    // Absent ones change nothing: a factor of one and a summand of *negative* zero (0.0 would turn
    // -0.0 into 0.0).
    const { assert!(WIDTH <= 64) };
    let channels = part.first_channel..part.first_channel + part.channels;
    let scale = to.scale.map_or(&[1.0; 64][..part.channels], |scale| &scale[channels.clone()]);
    let bias = to.bias.map_or(&[-0.0; 64][..part.channels], |bias| &bias[channels.clone()]);
    let mut padded = None;
    let factors = columns::<_, WIDTH, 2>([scale, bias], 0.0, &mut padded);
    let codes_to =
        to.codes.map(|codes| (codes, codes.layout.writer(part.first_channel, part.channels)));
    // What is below it becomes it; NaN and -0.0 pass through, as through PyTorch's ReLU.
    let floor = if to.relu { 0.0 } else { f32::NEG_INFINITY };
    let mut total = [0.0; WIDTH];
    for (r, acc) in part.rows::<NR, WIDTH>(tile).enumerate() {
        let row = r * to.channels + channels.start..r * to.channels + channels.end;
        let ahead = row.start + const { ahead(WIDTH) } * to.channels;
        for i in (0..WIDTH).step_by(LINE) {
            super::prefetch(out.as_ptr().wrapping_add(ahead + i));
            if RESIDUAL == ELSEWHERE {
                super::prefetch(residual.as_ptr().wrapping_add(ahead + i));
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
            let planes =
                row_codes::<S, WIDTH, THRESHOLDS>(simd, y, quantizer, part.exists(), &mut total);
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
        out[j] = if y < floor { floor } else { y };
    }
}

/// The planes of a row's codes, of those columns whose bits are set in `exists`; `total` adds up
/// what there is.
#[inline(always)]
fn row_codes<S: Simd, const WIDTH: usize, const THRESHOLDS: usize>(
    simd: S,
    y: &[f32; WIDTH],
    quantizer: &Quantizer,
    exists: u64,
    total: &mut [f32; WIDTH],
) -> [u64; 2] {
    let mut reached = [0; MAX_THRESHOLDS];
    for (reached, threshold) in reached.iter_mut().zip(quantizer.thresholds).take(THRESHOLDS) {
        *reached = simd.ge_mask_f32(y, threshold) & exists;
    }
    // Whatever is added to NaN is NaN: an addition a vector, where comparisons and integers take
    // two and wait for each other.
    for j in 0..WIDTH {
        total[j] += y[j];
    }
    quantizer.layout.coding().planes(reached)
}

/// Copies the start of `from` to `to`: one move of constant size for a whole tile.
#[inline(always)]
fn store<T: Copy, const NR: usize>(to: &mut [T], from: &[T; NR]) {
    match TryInto::<&mut [T; NR]>::try_into(&mut *to) {
        Ok(whole) => *whole = *from,
        Err(_) => to.copy_from_slice(&from[..to.len()]),
    }
}

/// See [`TileEpilogue::to_acc`].
#[inline(always)]
fn to_acc<const NR: usize>(tile: &TileAcc<'_>, channels: usize, out: &mut [i32]) {
    for (acc, out) in
        tile.acc.as_chunks::<NR>().0.iter().zip(out.chunks_exact_mut(channels)).take(tile.rows)
    {
        store(&mut out[tile.first_channel..][..tile.channels], acc);
    }
}
