//! The epilogue of a tile: turns accumulators into codes or float32 while they are in the
//! first-level cache.
//!
//! [`crate::epilogue`] says what is computed and in which order. This file has the loops, and
//! [`Epilogue`] compiles them for an instruction set and a tile width.

mod float;
mod int8;

use std::marker::PhantomData;

use super::isa::Simd;
use super::vector::VectorLoop;
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::epilogue::{Dequantize, DequantizeInt8, Requantize, Residual};

/// The operations that follow the products of a tile. `out`, `codes` and `residual` start at the
/// first row of the tile.
#[doc(hidden)]
pub trait TileEpilogue: Send + Sync {
    /// Turns accumulators into codes. The bits of the codes must be zero in `out`.
    fn to_codes(&self, tile: &TileAcc<'_>, to: &Requantize<'_>, out: &mut [u8]);

    /// Turns accumulators into float32 and, if `to` asks for it, these into codes. The bits of the
    /// codes must be zero in `codes`. An empty `out` takes no floats. Returns false if a value that
    /// became a code may be NaN.
    fn to_float(
        &self,
        tile: &TileAcc<'_>,
        to: &Dequantize<'_>,
        residual: Residual<'_>,
        out: &mut [f32],
        codes: &mut [u8],
    ) -> bool;

    /// As [`TileEpilogue::to_float`], then quantizes the values to bytes. The residual cannot be in
    /// the output, and without a residual of floats, no value may be NaN. Returns false if a value
    /// may be NaN.
    fn to_int8(
        &self,
        tile: &TileAcc<'_>,
        to: &DequantizeInt8<'_>,
        residual: Residual<'_>,
        out: &mut [u8],
        codes: &mut [u8],
    ) -> bool;

    /// Copies the accumulators. A row of `out` has `channels` columns.
    fn to_acc(&self, tile: &TileAcc<'_>, channels: usize, out: &mut [i32]);
}

/// The epilogue of tiles with `NR` columns, compiled for `S`. `PART` is [`part_width`] of `NR`.
pub(crate) struct Epilogue<S, const NR: usize, const PART: usize>(PhantomData<S>);

impl<S: Simd, const NR: usize, const PART: usize> Epilogue<S, NR, PART> {
    /// # Safety
    /// Before calling a method of the result, the caller must have seen a value of `S`. Holding a
    /// kernel that only exists if there is one is enough.
    pub const unsafe fn new() -> Self {
        Epilogue(PhantomData)
    }

    #[inline(always)]
    fn run<L: VectorLoop>(&self, work: L) -> L::Output {
        // SAFETY: the caller of `new` promised that a value of `S` exists.
        unsafe { S::new_unchecked() }.run(work)
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
                float::to_float::<S, NR, PART>(simd, tile, to, residual, out, codes)
            }
        }
        self.run(Work::<NR, PART> { tile, to, residual, out, codes })
    }

    fn to_int8(
        &self,
        tile: &TileAcc<'_>,
        to: &DequantizeInt8<'_>,
        residual: Residual<'_>,
        out: &mut [u8],
        codes: &mut [u8],
    ) -> bool {
        struct Work<'a, const NR: usize, const PART: usize> {
            tile: &'a TileAcc<'a>,
            to: &'a DequantizeInt8<'a>,
            residual: Residual<'a>,
            out: &'a mut [u8],
            codes: &'a mut [u8],
        }
        impl<const NR: usize, const PART: usize> VectorLoop for Work<'_, NR, PART> {
            type Output = bool;
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> bool {
                let Work { tile, to, residual, out, codes } = self;
                int8::to_int8::<S, NR>(simd, tile, to, residual, out, codes)
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

/// A finished tile of accumulators and its place in the output.
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

/// Half the columns of the widest tile.
const HALF: usize = 32;

impl TileAcc<'_> {
    /// Whether it has more than one part, and one part of [`HALF`] columns would do. Each part
    /// costs a store of codes per row.
    #[inline(always)]
    fn fits_half<const NR: usize>(&self) -> bool {
        NR > HALF && self.channels > LINE_FLOATS && self.channels <= HALF
    }
}

/// Floats in a cache line.
const LINE_FLOATS: usize = 16;

/// Columns of a [`Part`] of a tile with `nr` columns: as many floats as the widest vector has, or
/// all columns if there are fewer.
pub(crate) const fn part_width(nr: usize) -> usize {
    if nr < LINE_FLOATS { nr } else { LINE_FLOATS }
}

/// Columns of a tile that the epilogue processes together. A full tile is one part. A tile with
/// fewer channels is split into parts as wide as a vector, and empty parts are skipped: with 16
/// channels on the matrix unit, whose tiles have 64, that takes a third of the time.
#[derive(Clone, Copy)]
struct Part {
    /// First column in the tile.
    first_column: usize,
    /// Output channel of the first column.
    first_channel: usize,
    /// Columns that exist.
    channels: usize,
}

impl Part {
    fn whole(tile: &TileAcc<'_>) -> Self {
        Part { first_column: 0, first_channel: tile.first_channel, channels: tile.channels }
    }

    fn each(tile: &TileAcc<'_>, width: usize) -> impl Iterator<Item = Self> {
        let (first_channel, channels) = (tile.first_channel, tile.channels);
        let part = move |first_column| Part {
            first_column,
            first_channel: first_channel + first_column,
            channels: width.min(channels - first_column),
        };
        (0..channels).step_by(width).map(part)
    }

    /// The columns of this part, for every row.
    #[inline(always)]
    fn rows<'a, const NR: usize, const WIDTH: usize>(
        self,
        tile: &TileAcc<'a>,
    ) -> impl Iterator<Item = &'a [i32; WIDTH]> {
        let rows = tile.acc.as_chunks::<NR>().0.iter().take(tile.rows);
        rows.map(move |row| {
            row[self.first_column..].first_chunk().expect("a tile is a whole number of parts wide")
        })
    }

    /// A mask with a bit for every column that exists.
    fn valid_mask(self) -> u64 {
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
    if tile.fits_half::<NR>() {
        let whole = Part::whole(tile);
        return match ternary {
            true => code_rows::<S, NR, HALF, 2>(simd, tile, whole, to, out),
            false => code_rows::<S, NR, HALF, 3>(simd, tile, whole, to, out),
        };
    }
    for part in Part::each(tile, PART) {
        match ternary {
            true => code_rows::<S, NR, PART, 2>(simd, tile, part, to, out),
            false => code_rows::<S, NR, PART, 3>(simd, tile, part, to, out),
        }
    }
}

/// [`to_codes`] for one part and a fixed number of thresholds.
#[inline(always)]
fn code_rows<S: Simd, const NR: usize, const WIDTH: usize, const THRESHOLDS: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    part: Part,
    to: &Requantize<'_>,
    out: &mut [u8],
) {
    let (coding, valid, mut padded) = (to.layout.coding(), part.valid_mask(), None);
    let thresholds_of = |level| {
        &to.thresholds[level * to.layout.channels() + part.first_channel..][..part.channels]
    };
    let thresholds: [_; THRESHOLDS] =
        full_width::<_, WIDTH, _>(std::array::from_fn(thresholds_of), i32::MAX, &mut padded);
    let write = to.layout.writer(part.first_channel, part.channels);
    for (acc, out) in
        part.rows::<NR, WIDTH>(tile).zip(out.chunks_exact_mut(to.layout.pixel_bytes()))
    {
        let mut reached = [0; MAX_THRESHOLDS];
        for (reached, threshold) in reached.iter_mut().zip(thresholds) {
            *reached = simd.ge_mask(acc, threshold) & valid;
        }
        write(out, coding.planes(reached));
    }
}

/// Extends every slice to `WIDTH` columns: copies it and pads it with `fill`. Full slices are not
/// copied: one copy per tile cost layers of 64 to 256 channels a seventh of their time.
#[inline(always)]
fn full_width<'a, T: Copy, const WIDTH: usize, const N: usize>(
    slices: [&'a [T]; N],
    fill: T,
    padded: &'a mut Option<[[T; WIDTH]; N]>,
) -> [&'a [T; WIDTH]; N] {
    if slices.iter().all(|slice| slice.len() == WIDTH) {
        return slices.map(|slice| slice.try_into().expect("WIDTH elements"));
    }
    let copy = |slice: &[T]| {
        let mut copy = [fill; WIDTH];
        copy[..slice.len()].copy_from_slice(slice);
        copy
    };
    padded.insert(slices.map(copy)).each_ref()
}

/// Copies the start of `from` to `to`. For a full tile, this is one copy of constant size.
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
