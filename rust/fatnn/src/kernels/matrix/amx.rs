//! The matrix family for Intel AMX (Sapphire Rapids and later), on Linux.
//!
//! `tdpbssd` multiplies 16×64 by 64×16 int8 values in 16 cycles. A tile load reads 16 cache lines,
//! and memory is the bottleneck: expanded weights soon exceed the first-level cache. Two loops:
//!
//! * **Long reductions**: 64 positions × 16 channels. Each tile of weights serves four products.
//!   Meanwhile vector units expand a later tile of weights into a ring of four tiles.
//! * **Short reductions**, of at most [`MAX_EXPANDED_CHUNKS`] chunks: expand the whole panel once,
//!   then run 32 positions × 32 channels, where four tile loads feed four products.
//!
//! Compilers emit no tile instructions, so it is enough to configure tiles at the start of a call
//! and release them at its end. `docs/kernels.md` has measurements.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{ROW_BYTES, ROWS};
use crate::codec::Act;
use crate::cpu::{Features, Isa};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::expand::{CODES, LEVELS, UINT2, expand};
use crate::kernels::isa::amx::{self, SIDE, TILE_BYTES, TILE_ROW_BYTES};
use crate::kernels::isa::avx512::Avx512;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, Operands, private};
use crate::kernels::packed_input::{
    AccBlock, PackedInput, PackedInputKernel, Panel, Pixels, inner,
};
use crate::kernels::panels::PanelWeights;

/// Channels in a panel: as many as a 64-bit word of output codes has.
const NR: usize = 64;
/// Positions in a block: four hardware tiles.
const BLOCK: usize = 4 * SIDE;
/// Bytes of the packed weights of one tile.
const PACKED_TILE_BYTES: usize = ROWS * ROW_BYTES;
/// Longest reduction, in chunks, for which the panel is expanded first. It then has 72 KB.
const MAX_EXPANDED_CHUNKS: usize = 18;
/// Smallest number of blocks for which expanding the panel first pays off.
const MIN_EXPANDED_BLOCKS: usize = 3;
/// Expanded tiles of weights in the ring.
const RING_TILES: usize = 4;
/// Distance between prefetch and expansion of packed weights, in tiles.
const PREFETCH_TILES: usize = 12;
/// Distance between expansion and use of a tile of weights, in tiles.
const EXPAND_AHEAD: usize = 2;

/// Layout of the packed weights.
const LAYOUT: Layout = Layout { family: Family::Matrix, nr: NR, lanes: SIDE };
/// The epilogue for tiles of `NR` columns.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel uses it, and the kernel only exists if `make` detected the features.
    const { &unsafe { Epilogue::<Avx512, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Amx;

/// The inner loop for one kind of activations. The kinds differ in how activations are expanded.
struct InnerLoop<const KIND: u8>;

/// Available if the CPU has AMX with int8, AVX-512 with VBMI, and GFNI, and the operating system
/// lets this process use AMX.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    let cpu = features.amx_int8 && features.avx512_vbmi && features.gfni;
    (cpu && amx::allowed()).then_some(&Amx)
}

impl private::Sealed for Amx {}

impl Kernel for Amx {
    fn name(&self) -> &'static str {
        "x86_64-matrix-amx"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        let full = matches!(operands, OperandTypes::Codes(Operands { act: Act::Full, .. }));
        let ternary: &(dyn PackedInputKernel + Sync) =
            if full { &InnerLoop::<CODES> } else { &InnerLoop::<LEVELS> };
        inner(operands, ternary, &InnerLoop::<UINT2>)
    }

    fn uses_matrix_unit(&self) -> bool {
        true
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

    fn panel_bytes(&self, units: usize) -> usize {
        super::panel_bytes(LAYOUT, units)
    }

    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()> {
        super::pack_panel(LAYOUT, weights, panel);
        Ok(())
    }

    fn unit_bytes(&self) -> usize {
        TILE_ROW_BYTES
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn pack_input(&self, pixels: &Pixels<'_>, slab: &mut [u8], first: usize, _: usize) {
        let out = &mut slab[first * TILE_ROW_BYTES..][..pixels.count * TILE_ROW_BYTES];
        // SAFETY: this is an inner loop of `Amx`, which only exists if `make` detected AVX-512.
        unsafe { expand::<KIND>(pixels, out) }
    }

    fn pack_zeros(&self, _: bool, count: usize, slab: &mut [u8], first: usize, _: usize) {
        // Level 0 and code 0 are both written as 0.
        slab[first * TILE_ROW_BYTES..][..count * TILE_ROW_BYTES].fill(0);
    }

    fn run(
        &self,
        input: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        // SAFETY: this is an inner loop of `Amx`, which only exists if `make` detected AVX-512 with
        // VBMI, GFNI and AMX, and the operating system allowed tiles.
        unsafe { run(input, panel, scratch, emit) }
    }
}

/// Computes all positions.
///
/// # Safety
/// The CPU must have AMX, AVX-512 with VBMI, and GFNI, and the operating system must allow tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
unsafe fn run(
    input: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let depth = input.offsets().len();
    let blocks = input.positions().div_ceil(BLOCK);
    let weights = panel.bytes();
    assert_eq!(weights.len(), NR / SIDE * depth * PACKED_TILE_BYTES);
    // A strip is 16 channels of the panel, one tile wide.
    let strips = panel.channels().div_ceil(SIDE);
    let expanded = depth <= MAX_EXPANDED_CHUNKS && blocks >= MIN_EXPANDED_BLOCKS;
    let weight_tiles = if expanded { NR / SIDE * depth } else { RING_TILES };
    let scratch = CacheLine::bounded(scratch, weight_tiles * TILE_BYTES + BLOCK * NR * 4);
    let (tiles, acc) = scratch.split_at_mut(weight_tiles * TILE_BYTES / size_of::<CacheLine>());
    let tiles = CacheLine::bytes_mut(tiles);
    let acc = &mut CacheLine::sums_mut(acc)[..BLOCK * NR];
    if expanded {
        for (packed, tile) in weights.as_chunks().0.iter().zip(tiles.as_chunks_mut().0) {
            expand_rows::<ROWS>(packed, tile, 0);
        }
    }
    // SAFETY: the caller promises AMX, and no other code of this thread uses tiles meanwhile.
    unsafe { amx::configure() };
    let mut tile = 0;
    for left in (1..=blocks).rev() {
        // For long reductions, split row tiles evenly over the blocks: the time to expand a tile of
        // weights is hidden behind three products, but not behind one.
        let rest = input.positions().div_ceil(SIDE) - tile;
        let rows = if expanded { rest.min(BLOCK / SIDE) } else { rest.div_ceil(left) };
        let first = tile * SIDE;
        tile += rows;
        let a = input.start().wrapping_add(first * TILE_ROW_BYTES);
        if expanded {
            for pair in 0..strips.div_ceil(2) {
                for half in 0..rows.div_ceil(2) {
                    let out = &mut acc[half * 2 * SIDE * NR + pair * 2 * SIDE..];
                    let a = a.wrapping_add(half * 2 * TILE_BYTES);
                    let b = tiles[pair * 2 * depth * TILE_BYTES..].as_ptr();
                    // SAFETY: `PackedInput` has a whole block of rows at every offset from `first`
                    // on. `tiles` has `depth` tiles for each of four strips. `out` has 32 rows of
                    // 32 channels from here on.
                    unsafe { multiply_32x32(a, input.offsets(), b, depth * TILE_BYTES, out) };
                }
            }
        } else {
            for strip in 0..strips {
                let w = &weights[strip * depth * PACKED_TILE_BYTES..][..depth * PACKED_TILE_BYTES];
                let out = &mut acc[strip * SIDE..];
                // SAFETY: as above. `out` has a block of rows, and `tiles` has room for the ring.
                unsafe {
                    match rows {
                        1 => multiply_expanding::<1>(a, input.offsets(), w, tiles, out),
                        2 => multiply_expanding::<2>(a, input.offsets(), w, tiles, out),
                        3 => multiply_expanding::<3>(a, input.offsets(), w, tiles, out),
                        _ => multiply_expanding::<4>(a, input.offsets(), w, tiles, out),
                    }
                }
            }
        }
        emit(AccBlock { first, acc: &acc[..rows * SIDE * NR] });
    }
    // SAFETY: tiles were configured above.
    unsafe { amx::release() };
}

/// Expands `N` rows of a tile, from row `first` on, from two-bit weights to int8.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
#[inline]
fn expand_rows<const N: usize>(
    packed: &[u8; PACKED_TILE_BYTES],
    tile: &mut [u8; TILE_BYTES],
    first: usize,
) {
    // Byte `b` of 64-bit lane `i` gets the weight at bit `16·(i/2) + 2·b` of one half of the row:
    // see `matrix`.
    const SHIFTS: [u8; 64] = {
        let mut shifts = [0; 64];
        let mut i = 0;
        while i < 64 {
            shifts[i] = (i / 16 * 16 + i % 8 * 2) as u8;
            i += 1;
        }
        shifts
    };
    // A map over bits: bit 0 comes from bit 0, all others from bit 1, the sign.
    let sign_extend = _mm512_set1_epi64(0x0102_0202_0202_0202);
    // SAFETY: the array has 64 bytes.
    let shifts = unsafe { _mm512_loadu_si512(SHIFTS.as_ptr().cast()) };
    let rows = packed.as_chunks::<ROW_BYTES>().0[first..first + N].iter();
    for (row, out) in rows.zip(&mut tile.as_chunks_mut::<TILE_ROW_BYTES>().0[first..first + N]) {
        // SAFETY: `row` has 16 bytes and `out` 64.
        unsafe {
            let row = _mm512_broadcast_i32x4(_mm_loadu_si128(row.as_ptr().cast()));
            let weights = _mm512_gf2p8affine_epi64_epi8::<0>(
                _mm512_multishift_epi64_epi8(shifts, row),
                sign_extend,
            );
            _mm512_storeu_si512(out.as_mut_ptr().cast(), weights);
        }
    }
}

/// `R` row tiles × 16 channels. Expands weights while it multiplies.
///
/// # Safety
/// Tiles must be configured. At every offset from `a`, `R` row tiles must be readable. `packed`
/// must have a tile for every offset. `ring` must have room for [`RING_TILES`] tiles, and `out` for
/// `R` tiles, in rows of [`NR`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
#[inline]
unsafe fn multiply_expanding<const R: usize>(
    a: *const u8,
    offsets: &[usize],
    packed: &[u8],
    ring: &mut [u8],
    out: &mut [i32],
) {
    const { assert!(R >= 1 && R <= 4) };
    const QUARTER: usize = ROWS / 4;
    let (packed, ring) = (
        packed.as_chunks::<PACKED_TILE_BYTES>().0,
        &mut ring.as_chunks_mut::<TILE_BYTES>().0[..RING_TILES],
    );
    debug_assert!(packed.len() == offsets.len() && out.len() >= (R * SIDE - 1) * NR + SIDE);
    macro_rules! start {
        ($c:literal) => {
            asm!(concat!("tilezero ", $c), options(nostack, nomem, preserves_flags))
        };
    }
    macro_rules! multiply {
        ($row:literal, $t:literal, $c:literal, $a:expr) => {
            asm!(
                concat!("tileloadd ", $t, ", [{a} + {stride}*1]"),
                concat!("tdpbssd ", $c, ", ", $t, ", tmm4"),
                a = in(reg) $a.wrapping_add($row * TILE_BYTES),
                stride = in(reg) TILE_ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            )
        };
    }
    macro_rules! finish {
        ($row:literal, $c:literal) => {
            asm!(
                concat!("tilestored [{o} + {stride}*1], ", $c),
                o = in(reg) out.as_mut_ptr().wrapping_add($row * SIDE * NR),
                stride = in(reg) NR * 4,
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        start!("tmm0");
        if R > 1 {
            start!("tmm1");
        }
        if R > 2 {
            start!("tmm2");
        }
        if R > 3 {
            start!("tmm3");
        }
        for (packed, tile) in packed.iter().zip(&mut *ring).take(EXPAND_AHEAD) {
            expand_rows::<ROWS>(packed, tile, 0);
        }
        let last = offsets.len() - 1;
        for (k, &offset) in offsets.iter().enumerate() {
            let a = a.wrapping_add(offset);
            // At the end, the last tile is expanded again, into a slot that is not used any more.
            let (next, tile) =
                (&packed[(k + EXPAND_AHEAD).min(last)], (k + EXPAND_AHEAD) % RING_TILES);
            for line in next.as_chunks::<{ size_of::<CacheLine>() }>().0 {
                _mm_prefetch::<_MM_HINT_T0>(
                    line.as_ptr().wrapping_add(PREFETCH_TILES * PACKED_TILE_BYTES).cast(),
                );
            }
            asm!(
                "tileloadd tmm4, [{b} + {stride}*1]",
                b = in(reg) ring[k % RING_TILES].as_ptr(),
                stride = in(reg) TILE_ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
            multiply!(0, "tmm5", "tmm0", a);
            expand_rows::<QUARTER>(next, &mut ring[tile], 0);
            if R > 1 {
                multiply!(1, "tmm6", "tmm1", a);
            }
            expand_rows::<QUARTER>(next, &mut ring[tile], QUARTER);
            if R > 2 {
                multiply!(2, "tmm7", "tmm2", a);
            }
            expand_rows::<QUARTER>(next, &mut ring[tile], 2 * QUARTER);
            if R > 3 {
                multiply!(3, "tmm5", "tmm3", a);
            }
            expand_rows::<QUARTER>(next, &mut ring[tile], 3 * QUARTER);
        }
        finish!(0, "tmm0");
        if R > 1 {
            finish!(1, "tmm1");
        }
        if R > 2 {
            finish!(2, "tmm2");
        }
        if R > 3 {
            finish!(3, "tmm3");
        }
    }
}

/// 32 rows × 32 channels. The tiles of the second 16 channels begin `next` bytes after those of the
/// first.
///
/// # Safety
/// Tiles must be configured. At every offset from `a`, two row tiles must be readable. At `b` and
/// at `b + next`, there must be a tile for every offset. `out` must have 32 rows of [`NR`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn multiply_32x32(
    a: *const u8,
    offsets: &[usize],
    b: *const u8,
    next: usize,
    out: &mut [i32],
) {
    debug_assert!(out.len() >= (2 * SIDE - 1) * NR + 2 * SIDE);
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem, preserves_flags)
        );
        let mut b = b;
        for &offset in offsets {
            asm!(
                "tileloadd tmm4, [{b} + {stride}*1]",
                "tileloadd tmm6, [{a} + {stride}*1]",
                "tdpbssd tmm0, tmm6, tmm4",
                "tileloadd tmm5, [{c} + {stride}*1]",
                "tdpbssd tmm1, tmm6, tmm5",
                "tileloadd tmm7, [{a} + {stride}*1 + 1024]",
                "tdpbssd tmm2, tmm7, tmm4",
                "tdpbssd tmm3, tmm7, tmm5",
                a = in(reg) a.wrapping_add(offset),
                b = in(reg) b,
                c = in(reg) b.wrapping_add(next),
                stride = in(reg) TILE_ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
            b = b.wrapping_add(TILE_BYTES);
        }
        asm!(
            "tilestored [{o} + {stride}*1], tmm0",
            "tilestored [{o} + {stride}*1 + 64], tmm1",
            "tilestored [{p} + {stride}*1], tmm2",
            "tilestored [{p} + {stride}*1 + 64], tmm3",
            o = in(reg) out.as_mut_ptr(),
            p = in(reg) out.as_mut_ptr().wrapping_add(SIDE * NR),
            stride = in(reg) NR * 4,
            options(nostack, preserves_flags)
        );
    }
}
