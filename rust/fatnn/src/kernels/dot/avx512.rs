//! The dot-product family for AVX-512 VNNI (Cascade Lake, Zen 4 and later).
//!
//! `vpdpbusd` multiplies 64 levels by 64 weights. Sixteen lanes are sixteen output channels; four
//! consecutive levels of a position are broadcast to all of them. A tile of 6 positions × 64
//! channels takes 10 loads for 24 products of vectors.

use std::arch::x86_64::*;

use super::{QUADS, UNIT_BYTES, Weights};
use crate::cpu::{Features, Isa};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::expand::{LEVELS, UINT2, expand};
use crate::kernels::isa::avx512::Avx512;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::packed_input::{
    AccBlock, PackedInput, PackedInputKernel, Panel, Pixels, inner,
};
use crate::kernels::panels::PanelWeights;

/// Channels in a vector.
const LANES: usize = 16;
/// Channels in a panel: as many as a 64-bit word of output codes has.
const NR: usize = 4 * LANES;
/// Positions in a block: a multiple of the positions of every tile.
const BLOCK: usize = 48;

/// Layout of the packed weights.
const LAYOUT: Layout = Layout { family: Family::Dot, nr: NR, lanes: LANES };
/// The epilogue for tiles of `NR` columns.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel uses it, and the kernel only exists if `make` detected the features.
    const { &unsafe { Epilogue::<Avx512, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Vnni;

/// The inner loop for one kind of activations: levels or two bits.
struct InnerLoop<const KIND: u8>;

/// Available if the CPU has AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vnni).then_some(&Vnni)
}

impl private::Sealed for Vnni {}

impl Kernel for Vnni {
    fn name(&self) -> &'static str {
        "x86_64-dot-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        inner(operands, &InnerLoop::<LEVELS>, &InnerLoop::<UINT2>)
    }
}

impl<const KIND: u8> private::Sealed for InnerLoop<KIND> {}

impl<const KIND: u8> PackedInputKernel for InnerLoop<KIND> {
    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn panel_bytes(&self, chunks: usize) -> usize {
        super::panel_bytes(LAYOUT, chunks)
    }

    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()> {
        super::pack_panel(LAYOUT, weights, panel);
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
        // SAFETY: this is an inner loop of `Vnni`, which only exists if `make` detected AVX-512.
        unsafe { expand::<KIND>(pixels, out) }
    }

    fn pack_zeros(&self, zero_level: bool, count: usize, slab: &mut [u8], first: usize, _: usize) {
        // Code 0 is level 1.
        slab[first * UNIT_BYTES..][..count * UNIT_BYTES].fill(u8::from(!zero_level));
    }

    fn run(
        &self,
        input: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        // SAFETY: this is an inner loop of `Vnni`, which only exists if `make` detected AVX-512
        // with VNNI.
        unsafe { run(input, panel, scratch, emit) }
    }
}

/// Computes all positions.
///
/// # Safety
/// The CPU must have AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run(
    input: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let weights = Weights::new(LAYOUT, input.offsets().len(), panel.bytes());
    let vectors = panel.channels().div_ceil(LANES);
    let lines = CacheLine::bounded(scratch, BLOCK * NR * size_of::<i32>());
    let acc = &mut CacheLine::sums_mut(lines)[..BLOCK * NR];
    for first in (0..input.positions()).step_by(BLOCK) {
        let count = BLOCK.min(input.positions() - first);
        // SAFETY: `PackedInput` has a block of positions at every offset from `first` on, `acc`
        // has a block of rows, and the panel has `vectors` vectors.
        unsafe {
            match vectors {
                1 => tiles::<16, 1>(input, &weights, first, count, acc),
                2 => tiles::<12, 2>(input, &weights, first, count, acc),
                3 => tiles::<8, 3>(input, &weights, first, count, acc),
                _ => tiles::<6, 4>(input, &weights, first, count, acc),
            }
        }
        emit(AccBlock { first, acc });
    }
}

/// Computes `count` positions from `first` on, rounded up to whole tiles of `P` positions × `V`
/// vectors of channels.
///
/// # Safety
/// The CPU must have AVX-512 with VNNI. `acc` must have [`BLOCK`] rows. The input must have a block
/// of positions from `first` on at every offset, and the panel `V` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn tiles<const P: usize, const V: usize>(
    input: &PackedInput<'_>,
    weights: &Weights<'_>,
    first: usize,
    count: usize,
    acc: &mut [i32],
) {
    const { assert!(BLOCK.is_multiple_of(P) && V * LANES <= NR) };
    let strip = weights.quads.len() * QUADS * LANES * 4;
    debug_assert!(count <= BLOCK && acc.len() == BLOCK * NR);
    for position in (0..count).step_by(P) {
        let start = input.start().wrapping_add((first + position) * UNIT_BYTES);
        // SAFETY: as the caller promises. A row of weights has `LANES * 4` bytes, and a chunk has
        // at most `QUADS` of them.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); V]; P];
            for v in 0..V {
                let from = _mm512_loadu_si512(weights.starts.as_ptr().add(v * LANES).cast());
                sums.iter_mut().for_each(|sums| sums[v] = from);
            }
            for (chunk, (&offset, &quads)) in input.offsets().iter().zip(weights.quads).enumerate()
            {
                let levels = start.wrapping_add(offset);
                let rows = weights.rows.as_ptr().wrapping_add(chunk * QUADS * LANES * 4);
                for quad in 0..usize::from(quads).min(QUADS) {
                    let mut w = [_mm512_setzero_si512(); V];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = _mm512_loadu_si512(rows.add(v * strip + quad * LANES * 4).cast());
                    }
                    for (p, sums) in sums.iter_mut().enumerate() {
                        let level = levels.add(p * UNIT_BYTES + quad * 4).cast::<i32>();
                        let level = _mm512_set1_epi32(level.read_unaligned());
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = _mm512_dpbusd_epi32(*sum, level, w);
                        }
                    }
                }
            }
            for (p, sums) in sums.iter().enumerate() {
                let row = acc.as_mut_ptr().add((position + p) * NR);
                for (v, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_si512(row.add(v * LANES).cast(), sum);
                }
            }
        }
    }
}
