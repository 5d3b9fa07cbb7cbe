//! The matrix family: what its kernels share, which is the layout of weights.
//!
//! A matrix unit multiplies int8 tiles many times faster than vector units do. Here, two bits per
//! weight save memory traffic, not arithmetic: reading int8 weights from beyond the second-level
//! cache would take longer than multiplying them. So weights stay at two bits, and are expanded to
//! int8 right before the multiplication. Activations arrive in the same bit planes that popcount
//! kernels read. They are expanded to int8 once per call, into the packed input.
//!
//! **Packed weights.** A panel of `nr` channels has, for every `lanes` channels and every chunk of
//! the reduction, 16 rows of 64 weights. A row has 16 bytes. It holds what one row of a tile needs:
//! for each of 16 channels, four consecutive values of the reduction. A weight has two bits, in
//! two's complement. Weight `i` of a row begins at bit `64·(i/8 mod 2) + 16·(i/16) + 2·(i mod 8)`
//! ([`weight_bit`]), where one shift of a vector by bytes reaches it.
//!
//! **Activations** are expanded to the values that they stand for, so that sums begin at zero.
//! Ternary codes of half-range activations become the levels 0, 1, 2.

pub(crate) mod amx;

use super::kernel::{Layout, UNIT_CHANNELS};
use super::panels::PanelWeights;

/// Consecutive values of the reduction next to each other in a row of a tile.
const K_PACK: usize = 4;
/// Bytes of a row of packed weights.
pub(crate) const ROW_BYTES: usize = 16;
/// Rows of packed weights per chunk.
pub(crate) const ROWS: usize = UNIT_CHANNELS / K_PACK;

/// The bit of a row's 16 bytes at which weight `i` begins.
const fn weight_bit(i: usize) -> usize {
    i / 8 % 2 * 64 + i / 16 * 16 + i % 8 * 2
}

/// Bytes of a panel over `chunks` chunks of the reduction, at two bits per weight.
pub(crate) fn panel_bytes(layout: Layout, chunks: usize) -> usize {
    chunks * layout.nr * UNIT_CHANNELS / 4
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
                let row = (unit * taps + t) * ROWS + at / K_PACK;
                let bit = weight_bit(j % layout.lanes * K_PACK + at % K_PACK);
                strip[row * ROW_BYTES + bit / 8] |= (w as u8 & 3) << (bit % 8);
            }
        }
    }
}
