//! Popcount on several taps per word, for AVX-512 with VPOPCNTDQ.
//!
//! The tiled kernel pads each tap to 64 channels. Here, a word has the channels of up to three taps
//! that are next to each other in a row of the window: three of at most 21 channels, or two of at
//! most 32. A 3×3 window of 16 channels takes three words instead of nine.
//!
//! **Packed input.** A slab has the two words of every position. When all are written, each one
//! takes in the words of the next positions ([`merge_positions`]). Weights of 0 hide these from
//! windows that cannot use them, such as those of strided convolutions, whose next taps are in
//! another slab.
//!
//! **Packed weights.** Four panels of the tiled kernel, with a chunk per tap. `run` merges chunks
//! whose positions are neighbours.

use std::arch::x86_64::*;

use super::avx512::{MR, NR as SUB, WIDE as SUBS, chunk_bytes, store, tile};
use super::{
    MAX_MERGED_CHANNELS, PopcountMode, TAPS_LAYOUT as LAYOUT, TERNARY, UNIT_BYTES, UNIT_CHANNELS,
    avx512,
};
use crate::codec::{Act, WeightKind};
use crate::cpu::{Features, Isa};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::kernels::epilogue::TileEpilogue;
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::packed_input::{AccBlock, PackedInput, PackedInputKernel, Panel, Pixels};
use crate::kernels::panels::PanelWeights;
use crate::memory;

/// Channels in a panel.
const NR: usize = LAYOUT.nr;
/// Positions in a block.
const BLOCK: usize = 64;
/// Largest number of chunks that are merged, so that scratch memory is bounded.
const MAX_CHUNKS: usize = 64;
/// Bytes after the weights: the number of input channels, and padding.
const TRAILER: usize = 64;

const _: () = assert!(NR == SUBS * SUB);

/// The number of taps that share a word, and the bits of each.
fn merged_taps(channels: usize) -> (usize, u32) {
    match channels {
        0..=21 => (3, 21),
        22..=MAX_MERGED_CHANNELS => (2, 32),
        _ => (1, 64),
    }
}

#[derive(Debug)]
struct Taps;

/// The inner loop for ternary codes, or for `PLANES` bit planes.
struct TapsLoop<const PLANES: usize>;

/// Available if the CPU has AVX-512 F, BW, DQ, VL and VPOPCNTDQ.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vpopcntdq).then_some(&Taps)
}

impl private::Sealed for Taps {}

impl Kernel for Taps {
    fn name(&self) -> &'static str {
        "x86_64-popcount-avx512-taps"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        let OperandTypes::Codes(operands) = operands else { return None };
        let inner: &(dyn PackedInputKernel + Sync) = match operands.act {
            Act::Full | Act::Half => &TapsLoop::<TERNARY>,
            Act::Binary => &TapsLoop::<1>,
            Act::Uint2 => &TapsLoop::<2>,
        };
        (operands.weights != WeightKind::TwoBit).then_some(Inner::PackedInput(inner))
    }
}

impl<const PLANES: usize> private::Sealed for TapsLoop<PLANES> {}

impl<const PLANES: usize> TapsLoop<PLANES> {
    const MODE: PopcountMode = match PLANES {
        TERNARY => PopcountMode::Ternary,
        _ => PopcountMode::Bits { masked: true },
    };
}

/// Bytes of a panel of the tiled kernel over `chunks` chunks.
fn sub_bytes(chunks: usize) -> usize {
    chunks * chunk_bytes(true) + SUB * 4
}

impl<const PLANES: usize> PackedInputKernel for TapsLoop<PLANES> {
    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        avx512::WIDE_EPILOGUE
    }

    fn panel_bytes(&self, chunks: usize) -> usize {
        SUBS * sub_bytes(chunks) + TRAILER
    }

    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()> {
        let (length, channels) = (weights.taps * weights.inputs, weights.inputs);
        let (units, chunk) = (channels.div_ceil(UNIT_CHANNELS), chunk_bytes(true));
        let mut by_tap = memory::filled("packed weights", weights.taps * units * chunk, 0)?;
        let (subs, trailer) = panel.split_at_mut(panel.len() - TRAILER);
        for (i, sub) in subs.chunks_exact_mut(subs.len() / SUBS).enumerate() {
            let first = (i * SUB).min(weights.count);
            let weights = PanelWeights {
                weights: &weights.weights[first * length..],
                count: (weights.count - first).min(SUB),
                ..*weights
            };
            super::pack_panel(avx512::LAYOUT, Self::MODE, &weights, sub);
            // The tiled kernel visits all units of a tap before the next tap; packed input has all
            // taps of a unit first.
            by_tap.copy_from_slice(&sub[..weights.taps * units * chunk]);
            for (i, from) in by_tap.chunks_exact(chunk).enumerate() {
                let to = i % units * weights.taps + i / units;
                sub[to * chunk..][..chunk].copy_from_slice(from);
            }
        }
        trailer.fill(0);
        trailer[..8].copy_from_slice(&(channels as u64).to_le_bytes());
        Ok(())
    }

    fn unit_bytes(&self) -> usize {
        UNIT_BYTES
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn pack_input(&self, pixels: &Pixels<'_>, slab: &mut [u8], first: usize, _: usize) {
        let out = &mut slab[first * UNIT_BYTES..][..pixels.count * UNIT_BYTES];
        for (i, out) in out.as_chunks_mut::<UNIT_BYTES>().0.iter_mut().enumerate() {
            *out = *pixels.unit(i);
        }
    }

    fn pack_zeros(&self, zero_level: bool, count: usize, slab: &mut [u8], first: usize, _: usize) {
        // Code 0 has both bits.
        let byte = if zero_level { 0 } else { u8::MAX };
        slab[first * UNIT_BYTES..][..count * UNIT_BYTES].fill(byte);
    }

    fn finish(&self, slab: &mut [u8], channels: usize) {
        // SAFETY: this is an inner loop of `Taps`, which only exists if `make` detected AVX-512.
        unsafe { merge_positions(slab.as_chunks_mut().0, channels) }
    }

    fn run(
        &self,
        input: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        // SAFETY: this is an inner loop of `Taps`, which only exists if `make` detected the
        // features.
        unsafe { run::<PLANES>(input, panel, scratch, emit) }
    }
}

/// Puts the channels of the next positions after those of each position, if they fit.
#[target_feature(enable = "avx512f")]
fn merge_positions(positions: &mut [[u8; UNIT_BYTES]], channels: usize) {
    let (taps, bits) = merged_taps(channels);
    if taps == 1 {
        return;
    }
    let mask = u64::MAX >> (64 - channels.max(1));
    // Four positions at a time. The words of later positions are not merged yet.
    let vectors = positions.len().saturating_sub(taps - 1) / 4;
    let masks = _mm512_set1_epi64(mask as i64);
    for v in 0..vectors {
        let at = positions[v * 4..].as_mut_ptr().cast::<u8>();
        let mut merged = _mm512_setzero_si512();
        for i in 0..taps {
            // SAFETY: the last vector ends `taps - 1` positions before the end.
            let words = unsafe { _mm512_loadu_si512(at.add(i * UNIT_BYTES).cast()) };
            let words = _mm512_and_si512(words, masks);
            let shifted = _mm512_sll_epi64(words, _mm_cvtsi32_si128(i as i32 * bits as i32));
            merged = _mm512_or_si512(merged, shifted);
        }
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(at.cast(), merged) };
    }
    for q in vectors * 4..positions.len() {
        let mut merged = [0; 2];
        for (i, unit) in positions[q..].iter().take(taps).enumerate() {
            let unit = u128::from_le_bytes(*unit);
            for (merged, word) in merged.iter_mut().zip([unit as u64, (unit >> 64) as u64]) {
                *merged |= (word & mask) << (i as u32 * bits);
            }
        }
        let [z, p] = merged.map(u128::from);
        positions[q] = (z | p << 64).to_le_bytes();
    }
}

/// Chunks whose positions are neighbours.
struct Merged {
    /// Offset of the first tap of every merged chunk.
    offsets: [usize; MAX_CHUNKS],
    /// The chunks of every merged chunk, and their number.
    chunks: [([usize; 3], usize); MAX_CHUNKS],
    count: usize,
}

impl Merged {
    /// Merges at most `taps` chunks each, of one slab of `slab` bytes. With stride 2, the first and
    /// the third tap of a row are neighbours.
    fn new(offsets: &[usize], taps: usize, slab: usize) -> Self {
        let mut merged =
            Merged { offsets: [0; MAX_CHUNKS], chunks: [([0; 3], 0); MAX_CHUNKS], count: 0 };
        let mut taken = [false; MAX_CHUNKS];
        for (at, &offset) in offsets.iter().enumerate() {
            if taken[at] {
                continue;
            }
            let (chunks, count) = &mut merged.chunks[merged.count];
            (chunks[0], *count) = (at, 1);
            while *count < taps {
                let neighbour = offset + *count * UNIT_BYTES;
                let found = (at + 1..offsets.len()).find(|&i| offsets[i] == neighbour && !taken[i]);
                // The last words of a slab do not have those of the next slab.
                let Some(found) = found.filter(|_| offset / slab == neighbour / slab) else {
                    break;
                };
                (chunks[*count], taken[found], *count) = (found, true, *count + 1);
            }
            merged.offsets[merged.count] = offset;
            merged.count += 1;
        }
        merged
    }

    /// Merges the weights of a panel of the tiled kernel; `out` has as many bytes as they need.
    #[target_feature(enable = "avx512f")]
    fn weights(&self, bits: u32, weights: &[u8], out: &mut [u8]) {
        let chunk = chunk_bytes(true);
        for (out, (chunks, count)) in out.chunks_exact_mut(chunk).zip(&self.chunks) {
            // Vectors alternate: eight words of signs, then eight masks of zeros.
            for (at, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                let inverted = _mm512_set1_epi64(-((at % 2) as i64));
                let mut merged = _mm512_setzero_si512();
                for (&i, shift) in chunks[..*count].iter().zip((0..).step_by(bits as usize)) {
                    let words: &[u8; 64] =
                        weights[i * chunk + at * 64..].first_chunk().expect("a vector");
                    // SAFETY: an array of 64 bytes.
                    let words = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
                    let words = _mm512_xor_si512(words, inverted);
                    let shifted = _mm512_sll_epi64(words, _mm_cvtsi32_si128(shift));
                    merged = _mm512_or_si512(merged, shifted);
                }
                // SAFETY: an array of 64 bytes.
                unsafe {
                    _mm512_storeu_si512(
                        out.as_mut_ptr().cast(),
                        _mm512_xor_si512(merged, inverted),
                    );
                }
            }
        }
    }
}

/// Computes all positions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
fn run<const PLANES: usize>(
    input: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let (offsets, chunks) = (input.offsets(), input.offsets().len());
    let (subs, trailer) = panel.bytes().split_at(panel.bytes().len() - TRAILER);
    let channels = u64::from_le_bytes(trailer[..8].try_into().expect("8 bytes")) as usize;
    let (taps, bits) = if chunks <= MAX_CHUNKS { merged_taps(channels) } else { (1, 64) };
    let slab = input.slab_positions() * UNIT_BYTES;
    let merged = (taps > 1).then(|| Merged::new(offsets, taps, slab));
    let words = merged.as_ref().map_or(0, |merged| merged.count * chunk_bytes(true));
    let used = panel.channels().div_ceil(SUB);
    let lines = CacheLine::bounded(scratch, BLOCK * NR * size_of::<i32>() + SUBS * words);
    let (acc, weights) = lines.split_at_mut(BLOCK * NR * size_of::<i32>() / size_of::<CacheLine>());
    let acc = CacheLine::sums_mut(acc);
    let subs = subs.chunks_exact(subs.len() / SUBS);
    let mut panels: [(&[u8], __m512i); SUBS] = [(&[], _mm512_setzero_si512()); SUBS];
    let mut rest = CacheLine::bytes_mut(weights);
    for ((ready, constants), sub) in panels.iter_mut().zip(subs).take(used) {
        let (sub, values) = sub.split_at(chunks * chunk_bytes(true));
        // SAFETY: after the weights there are four bytes for each of sixteen channels.
        *constants = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
        *ready = sub;
        if let Some(merged) = &merged {
            let (out, after) = std::mem::take(&mut rest).split_at_mut(words);
            merged.weights(bits, sub, out);
            (*ready, rest) = (out, after);
            if PLANES == TERNARY {
                // The constants take off one for every bit, including padding.
                let fewer = (chunks - merged.count) * UNIT_CHANNELS;
                *constants = _mm512_add_epi32(*constants, _mm512_set1_epi32(fewer as i32));
            }
        }
    }
    let offsets = merged.as_ref().map_or(offsets, |merged| &merged.offsets[..merged.count]);
    for first in (0..input.positions()).step_by(BLOCK) {
        let count = BLOCK.min(input.positions() - first);
        for (i, (weights, constants)) in panels.iter().enumerate().take(used) {
            for position in (0..count).step_by(MR) {
                let start = input.start().wrapping_add((first + position) * UNIT_BYTES);
                let rows = std::array::from_fn::<_, MR, _>(|r| start.wrapping_add(r * UNIT_BYTES));
                // SAFETY: `PackedInput` has a block of positions at every offset from `first` on,
                // and there are weights for every offset.
                let counts = unsafe { tile::<MR, PLANES, true>(rows, offsets, weights.as_ptr()) };
                for (r, counts) in counts.into_iter().enumerate() {
                    store(&mut acc[(position + r) * NR + i * SUB..][..SUB], *constants, counts);
                }
            }
        }
        emit(AccBlock { first, acc });
    }
}
