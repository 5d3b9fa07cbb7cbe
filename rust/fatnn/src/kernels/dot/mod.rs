//! The dot-product family: int8 dot-product instructions on codes that were expanded to bytes.
//!
//! An instruction adds up four products per 32-bit lane. That is fewer products per instruction
//! than tables or bit counts give, but sums need no widening and no reordering: lanes are output
//! channels, and accumulators are what the epilogue reads. So these kernels win if the reduction is
//! short, or has few channels per tap: a tap of 16 channels takes 4 instructions, where popcount
//! kernels pad it to 64 channels.
//!
//! **Activations** are expanded to levels 0, 1, 2 (ternary and binary) or 0 to 3 (two bits), 64
//! bytes per unit. For full-range activations a level is the code plus one, so sums begin at minus
//! the sum of the channel's weights.
//!
//! **Packed weights.** A panel has, in this order: for every vector of channels and every chunk of
//! the reduction, [`QUADS`] rows with four consecutive weights of each channel as int8; the first
//! value of each channel's sum as a little-endian `i32`; per chunk, the number of rows that are not
//! all padding.

pub(super) mod avx512;

use super::kernel::{Layout, UNIT_CHANNELS};
use super::panels::PanelWeights;
use crate::codec::Act;

/// Consecutive values of the reduction that one lane adds up.
const QUAD: usize = 4;
/// Rows of packed weights per chunk.
const QUADS: usize = UNIT_CHANNELS / QUAD;
/// Bytes of a unit of expanded activations.
const UNIT_BYTES: usize = UNIT_CHANNELS;

/// Bytes of a panel over `chunks` chunks of the reduction.
fn panel_bytes(layout: Layout, chunks: usize) -> usize {
    (chunks * (layout.nr * UNIT_CHANNELS + 1) + layout.nr * 4).next_multiple_of(64)
}

/// The parts of a packed panel.
struct Weights<'a> {
    /// Rows of weights.
    rows: &'a [u8],
    /// First value of each channel's sum.
    starts: &'a [[u8; 4]],
    /// Rows per chunk that are not all padding.
    quads: &'a [u8],
}

impl<'a> Weights<'a> {
    /// # Panics
    /// If the panel does not have `chunks` chunks.
    fn new(layout: Layout, chunks: usize, panel: &'a [u8]) -> Self {
        assert_eq!(panel.len(), panel_bytes(layout, chunks));
        let (rows, rest) = panel.split_at(chunks * layout.nr * UNIT_CHANNELS);
        let (starts, rest) = rest.split_at(layout.nr * 4);
        Weights { rows, starts: starts.as_chunks().0, quads: &rest[..chunks] }
    }
}

/// See [`super::PackedInputKernel::pack_panel`].
fn pack_panel(layout: Layout, weights: &PanelWeights<'_>, panel: &mut [u8]) {
    let &PanelWeights { taps, inputs, act, .. } = weights;
    let chunks = inputs.div_ceil(UNIT_CHANNELS) * taps;
    assert_eq!(panel.len(), panel_bytes(layout, chunks));
    panel.fill(0);
    let (rows, rest) = panel.split_at_mut(chunks * layout.nr * UNIT_CHANNELS);
    let (starts, quads) = rest.split_at_mut(layout.nr * 4);
    for (chunk, quads) in quads[..chunks].iter_mut().enumerate() {
        let channels = (inputs - chunk / taps * UNIT_CHANNELS).min(UNIT_CHANNELS);
        *quads = channels.div_ceil(QUAD) as u8;
    }
    let row_bytes = layout.lanes * QUAD;
    for (j, start) in starts.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let Some(codes) = weights.channel(j) else { break };
        let strip = &mut rows[j / layout.lanes * chunks * QUADS * row_bytes..];
        for (t, tap) in codes.chunks_exact(inputs.max(1)).enumerate() {
            for (c, &w) in tap.iter().enumerate() {
                let (chunk, at) = (c / UNIT_CHANNELS * taps + t, c % UNIT_CHANNELS);
                let row = (chunk * QUADS + at / QUAD) * row_bytes;
                strip[row + j % layout.lanes * QUAD + at % QUAD] = w as u8;
            }
        }
        if act == Act::Full {
            let sum = codes.iter().fold(0i32, |sum, &w| sum.wrapping_add(i32::from(w)));
            *start = sum.wrapping_neg().to_le_bytes();
        }
    }
}
