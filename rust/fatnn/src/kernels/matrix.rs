//! What all matrix-unit kernels share: the layout of the weights.
//!
//! A matrix unit multiplies int8 tiles many times faster than vectors do, and so fast that two bits a value are worth it for
//! the memory they save, not for the arithmetic: a layer's int8 weights would be read from beyond the second-level cache in
//! more time than their products take. So weights stay in two planes, sign `s` and mask `n`, and are expanded to int8 a
//! stretch of the reduction at a time, beside the multiplication; activations come as the same planes that the popcount
//! kernels read, and are expanded once per block of rows.
//!
//! **Weights**, per panel of `nr` channels: for every unit of 64 positions of the reduction and every `lanes` channels, 16
//! pairs of 64-bit words `s`, `n`, a pair for four positions: bit `4·j + i` belongs to channel `j` and position `i`, which is
//! the order in which the unit wants bytes. Behind the units one `i32` per channel: where accumulation starts, `Σ w` for
//! half-range activations, else 0.

use super::{Layout, popcount};

/// Positions of the reduction that lie side by side in a tile's row.
const TOGETHER: usize = 4;

/// See [`Layout::pack_panel`].
pub(super) fn pack_panel<'a>(
    layout: Layout,
    taps: usize,
    channels: usize,
    half_range: bool,
    channel: impl Fn(usize) -> Option<&'a [i8]>,
    panel: &mut [u8],
) {
    let unit_stride = layout.nr * popcount::UNIT_BYTES;
    let tile_stride = layout.lanes * popcount::UNIT_BYTES;
    let units = channels.div_ceil(popcount::CHANNELS);
    panel.fill(0);
    for j in 0..layout.nr {
        let Some(codes) = channel(j) else { continue };
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (c, &w) in tap.iter().enumerate() {
                let (unit, at) = (t * units + c / popcount::CHANNELS, c % popcount::CHANNELS);
                let pair = unit * unit_stride + j / layout.lanes * tile_stride + at / TOGETHER * 16;
                let bit = j % layout.lanes * TOGETHER + at % TOGETHER;
                panel[pair + bit / 8] |= u8::from(w < 0) << (bit % 8);
                panel[pair + 8 + bit / 8] |= u8::from(w != 0) << (bit % 8);
            }
        }
        if half_range {
            let sum: i32 = codes.iter().map(|&w| i32::from(w)).sum();
            let at = taps * units * unit_stride + j * 4;
            panel[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
