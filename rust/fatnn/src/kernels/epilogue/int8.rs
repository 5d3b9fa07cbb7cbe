//! From accumulators to the bytes of an int8 value, and these to codes.

use super::{Part, TileAcc, full_width};
use crate::codec::{Coding, MAX_THRESHOLDS};
use crate::epilogue::{DequantizeInt8, Residual};
use crate::kernels::isa::{FLOATS, INT8, Int8Rows, NO_RESIDUAL, Simd};

/// See [`super::TileEpilogue::to_int8`].
#[inline(always)]
pub(super) fn to_int8<S: Simd, const NR: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    to: &DequantizeInt8<'_>,
    residual: Residual<'_>,
    out: &mut [u8],
    codes: &mut [u8],
) -> bool {
    macro_rules! rows {
        ($kind:ident) => {
            match to.floats.codes.map(|codes| codes.layout.coding()) {
                None => int8_rows::<S, NR, $kind, 0>(simd, tile, to, residual, out, codes),
                Some(Coding::Ternary) => {
                    int8_rows::<S, NR, $kind, 2>(simd, tile, to, residual, out, codes)
                }
                Some(Coding::Uint2) => {
                    int8_rows::<S, NR, $kind, 3>(simd, tile, to, residual, out, codes)
                }
            }
        };
    }
    match residual {
        Residual::None => rows!(NO_RESIDUAL),
        Residual::Of(_) => rows!(FLOATS),
        Residual::Int8(..) => rows!(INT8),
        Residual::InPlace => unreachable!("bytes cannot hold a residual"),
    }
}

/// [`to_int8`] for one kind of residual and a fixed number of thresholds.
#[inline(always)]
fn int8_rows<S: Simd, const NR: usize, const RESIDUAL: u8, const THRESHOLDS: usize>(
    simd: S,
    tile: &TileAcc<'_>,
    &DequantizeInt8 { floats: ref to, encoder, thresholds }: &DequantizeInt8<'_>,
    residual: Residual<'_>,
    out: &mut [u8],
    codes: &mut [u8],
) -> bool {
    const { assert!(NR <= 64) };
    let part = Part::whole(tile);
    let (mut padded, columns) = (None, part.first_channel..part.first_channel + part.channels);
    // A missing scale is 1. A missing bias is *negative* zero, because adding 0.0 would turn -0.0
    // into 0.0.
    let scale = to.scale.map_or(&[1.0; 64][..part.channels], |scale| &scale[columns.clone()]);
    let bias = to.bias.map_or(&[-0.0; 64][..part.channels], |bias| &bias[columns]);
    let [scale, bias] = full_width::<_, NR, 2>([scale, bias], 0.0, &mut padded);
    let rows = Int8Rows {
        acc: &tile.acc.as_chunks::<NR>().0[..tile.rows],
        scale,
        bias,
        channels: part.channels,
        first: part.first_channel,
        pitch: to.channels,
        residual,
        encoder,
    };
    let thresholds: [i32; THRESHOLDS] = std::array::from_fn(|i| thresholds[i]);
    let nan = match &to.codes {
        None => simd.encode_rows::<NR, RESIDUAL, THRESHOLDS>(&rows, &thresholds, out, |_, _| ()),
        Some(quantizer) => {
            let layout = quantizer.layout;
            let (pixel, write) =
                (layout.pixel_bytes(), layout.writer(part.first_channel, part.channels));
            simd.encode_rows::<NR, RESIDUAL, THRESHOLDS>(&rows, &thresholds, out, |r, masks| {
                let mut reached = [0; MAX_THRESHOLDS];
                reached[..THRESHOLDS].copy_from_slice(&masks);
                let out = &mut codes[r * pixel..(r + 1) * pixel];
                write(out, layout.coding().planes(reached));
            })
        }
    };
    nan == 0
}
