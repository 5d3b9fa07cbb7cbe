//! What all matrix-unit kernels share: the layout of the weights.
//!
//! A matrix unit multiplies int8 tiles many times faster than vectors do, and so fast that two bits
//! a value are worth it for the memory they save, not for the arithmetic: a layer's int8 weights
//! would be read from beyond the second-level cache in more time than their products take. So
//! weights stay at two bits and are expanded to int8 beside the multiplication; activations come as
//! the same planes that the popcount kernels read, and are expanded once per call, into a frame.
//!
//! **Weights**, per panel of `nr` channels: for every `lanes` channels, for every unit of 64
//! channels of the input, for every tap, 16 rows of 64 weights in 16 bytes. A row is what the unit
//! wants side by side: for every channel four consecutive positions of the reduction. Weight `i` of
//! a row, two's complement in two bits, lies at bit `64·(i/8 mod 2) + 16·(i/16) + 2·(i mod 8)`,
//! from where one byte-wise shift of a vector fetches it ([`field`]).
//!
//! **Activations** are expanded to what they stand for, so that a sum begins at zero: ternary codes
//! of half-range activations to their levels 0, 1, 2.

pub(crate) mod amx;

use super::kernel::{Layout, UNIT_CHANNELS};
use super::panels::PanelWeights;

/// Positions of the reduction that lie side by side in a tile's row.
const TOGETHER: usize = 4;
/// Bytes of a row of weights.
pub(crate) const ROW_BYTES: usize = 16;
/// Rows of weights for a unit and a tap.
pub(crate) const ROWS: usize = UNIT_CHANNELS / TOGETHER;

/// Bit in a row's 16 bytes where weight `i` begins.
const fn field(i: usize) -> usize {
    i / 8 % 2 * 64 + i / 16 * 16 + i % 8 * 2
}

/// Bytes of a panel over `units` units: two bits a weight.
pub(crate) fn panel_bytes(layout: Layout, units: usize) -> usize {
    units * layout.nr * UNIT_CHANNELS / 4
}

/// See [`super::PackedInputKernel::pack_panel`].
pub(crate) fn pack_panel(layout: Layout, weights: &PanelWeights<'_>, panel: &mut [u8]) {
    let &PanelWeights { taps, inputs: channels, .. } = weights;
    let units = channels.div_ceil(UNIT_CHANNELS);
    let strip_bytes = units * taps * ROWS * ROW_BYTES;
    panel.fill(0);
    for j in 0..layout.nr {
        let Some(codes) = weights.channel(j) else { continue };
        let strip = &mut panel[j / layout.lanes * strip_bytes..][..strip_bytes];
        for (t, tap) in codes.chunks_exact(channels.max(1)).enumerate() {
            for (c, &w) in tap.iter().enumerate() {
                let (unit, at) = (c / UNIT_CHANNELS, c % UNIT_CHANNELS);
                let row = (unit * taps + t) * ROWS + at / TOGETHER;
                let bit = field(j % layout.lanes * TOGETHER + at % TOGETHER);
                strip[row * ROW_BYTES + bit / 8] |= (w as u8 & 3) << (bit % 8);
            }
        }
    }
}
