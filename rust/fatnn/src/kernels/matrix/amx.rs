//! The matrix family for Intel AMX (Sapphire Rapids and later), on Linux.
//!
//! `tdpbssd` multiplies 16×64 by 64×16 int8 in 16 cycles. It is fed by tile loads of 16 cache
//! lines, and what it waits for is memory: expanded weights do not fit the first-level cache for
//! long. Two ways:
//!
//! * **Long reductions**: 64 positions × 16 channels. A tile of weights serves four products. While
//!   they run, the vector units expand the tile after the next from two bits into a ring of four
//!   tiles.
//! * **Short reductions**, of at most [`EXPANDED`] tiles: the panel is expanded once, and 32
//!   positions × 32 channels share four tile loads among four products.
//!
//! Compilers emit no tile instructions, so the state needs no care but this: configured at the
//! start of a call, released at its end. `docs/kernels.md` has what was measured.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{ROW_BYTES, ROWS};
use crate::codec::Act;
use crate::cpu::{Features, Isa};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa::amx::{self, DEPTH, SIDE, TILE};
use crate::kernels::isa::avx512::Avx512;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, Operands, private};
use crate::kernels::packed_input::{
    AccBlock, PackedInput, PackedInputKernel, Panel, Pixels, inner,
};
use crate::kernels::panels::PanelWeights;

/// Channels in a panel: a word of the codes that come out.
const NR: usize = 64;
/// Positions of a block: four hardware tiles.
const BLOCK: usize = 4 * SIDE;
/// Bytes of a tile's weights as packed.
const PACKED_TILE: usize = ROWS * ROW_BYTES;
/// Longest reduction, in tiles, whose weights are expanded before the product: 72 KB for a panel.
const EXPANDED: usize = 18;
/// Fewest blocks that make it worth while.
const EXPANDED_BLOCKS: usize = 3;
/// Tiles in the ring.
const RING: usize = 4;
/// Tiles between prefetch and expansion.
const PREFETCH: usize = 12;
/// Tiles between expansion and use.
const AHEAD: usize = 2;

/// Layout of the weights.
const LAYOUT: Layout = Layout { family: Family::Matrix, nr: NR, lanes: SIDE };
/// What follows a tile.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: only the kernel has it, which exists where `make` saw the features.
    const { &unsafe { Epilogue::<Avx512, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Amx;

/// Ternary codes as they are.
const CODES: u8 = 0;
/// Ternary codes plus one.
const LEVELS: u8 = 1;
/// Activations of two bits.
const UINT2: u8 = 2;

/// The inner loop for activations of a kind: they differ in what a frame's bytes are made of.
struct Frames<const KIND: u8>;

/// Where the CPU has AMX with int8, and AVX-512 with what comes with it on every such CPU, and the
/// operating system lets this process use it.
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
            if full { &Frames::<CODES> } else { &Frames::<LEVELS> };
        inner(operands, ternary, &Frames::<UINT2>)
    }

    fn uses_matrix_unit(&self) -> bool {
        true
    }
}

impl<const KIND: u8> private::Sealed for Frames<KIND> {}

impl<const KIND: u8> PackedInputKernel for Frames<KIND> {
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
        DEPTH
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn pack_input(&self, pixels: &Pixels<'_>, plane: &mut [u8], first: usize, _: usize) {
        let out = &mut plane[first * DEPTH..][..pixels.count * DEPTH];
        // SAFETY: this is an inner loop of `Amx`, which exists where `make` saw AVX-512.
        unsafe { pack_input::<KIND>(pixels, out) }
    }

    fn pack_zeros(&self, _: bool, count: usize, plane: &mut [u8], first: usize, _: usize) {
        // Level 0 and code 0 are written alike.
        plane[first * DEPTH..][..count * DEPTH].fill(0);
    }

    fn run(
        &self,
        framed: &PackedInput<'_>,
        panel: &Panel<'_>,
        scratch: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        // SAFETY: this is an inner loop of `Amx`, which exists where `make` saw AVX-512 and AMX and
        // was allowed tiles.
        unsafe { run(framed, panel, scratch, emit) }
    }
}

/// What activations stand for, as int8, a unit of a pixel after the other.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_input<const KIND: u8>(pixels: &Pixels<'_>, out: &mut [u8]) {
    let (one, two, minus_one) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2), _mm512_set1_epi8(-1));
    for (i, out) in out.as_chunks_mut::<DEPTH>().0.iter_mut().enumerate() {
        let unit = u128::from_le_bytes(*pixels.unit(i));
        // Planes `z` and `p`, or the low bit and the high one.
        let (first, second) = (unit as u64, (unit >> 64) as u64);
        let byte = match KIND {
            CODES => _mm512_maskz_mov_epi8(!first, _mm512_mask_blend_epi8(second, minus_one, one)),
            LEVELS => _mm512_maskz_mov_epi8(second, _mm512_mask_blend_epi8(first, two, one)),
            _ => _mm512_or_si512(
                _mm512_maskz_mov_epi8(first, one),
                _mm512_maskz_mov_epi8(second, two),
            ),
        };
        // SAFETY: `out` has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), byte) };
    }
}

/// # Safety
/// AMX, AVX-512 with VBMI, and GFNI must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
unsafe fn run(
    framed: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let depth = framed.offsets().len();
    let blocks = framed.positions().div_ceil(BLOCK);
    let weights = panel.bytes();
    assert_eq!(weights.len(), NR / SIDE * depth * PACKED_TILE);
    let strips = panel.channels().div_ceil(SIDE);
    let expanded = depth <= EXPANDED && blocks >= EXPANDED_BLOCKS;
    let weight_tiles = if expanded { NR / SIDE * depth } else { RING };
    let scratch = CacheLine::bounded(scratch, weight_tiles * TILE + BLOCK * NR * 4);
    let (tiles, acc) = scratch.split_at_mut(weight_tiles * TILE / size_of::<CacheLine>());
    let tiles = CacheLine::bytes_mut(tiles);
    // SAFETY: the lines hold `BLOCK × NR` numbers, any bytes are a number, and a line is aligned
    // for them.
    let acc = unsafe { std::slice::from_raw_parts_mut(acc.as_mut_ptr().cast::<i32>(), BLOCK * NR) };
    if expanded {
        for (packed, tile) in weights.as_chunks().0.iter().zip(tiles.as_chunks_mut().0) {
            expand_rows::<ROWS>(packed, tile);
        }
    }
    // SAFETY: as the caller promises; no other code of this thread holds tiles meanwhile.
    unsafe { amx::configure() };
    let mut tile = 0;
    for left in (1..=blocks).rev() {
        // Tiles of rows in this block. Long reductions share them out evenly: the expansion of a
        // tile of weights hides behind the products of three tiles of rows, not behind one's.
        let rest = framed.positions().div_ceil(SIDE) - tile;
        let rows = if expanded { rest.min(BLOCK / SIDE) } else { rest.div_ceil(left) };
        let first = tile * SIDE;
        tile += rows;
        let a = framed.start().wrapping_add(first * DEPTH);
        if expanded {
            for pair in 0..strips.div_ceil(2) {
                for half in 0..rows.div_ceil(2) {
                    let out = &mut acc[half * 2 * SIDE * NR + pair * 2 * SIDE..];
                    let a = a.wrapping_add(half * 2 * TILE);
                    let b = tiles[pair * 2 * depth * TILE..].as_ptr();
                    // SAFETY: `PackedInput` has a whole block of rows at every offset from `first`
                    // on; `tiles` has `depth` tiles for each of four strips; `out` has 32 channels
                    // from here on, of 32 rows.
                    unsafe { square(a, framed.offsets(), b, depth * TILE, out) };
                }
            }
        } else {
            for strip in 0..strips {
                let w = &weights[strip * depth * PACKED_TILE..][..depth * PACKED_TILE];
                let out = &mut acc[strip * SIDE..];
                // SAFETY: as above, `out` having a block of rows and `tiles` room for the ring.
                unsafe {
                    match rows {
                        1 => column::<1>(a, framed.offsets(), w, tiles, out),
                        2 => column::<2>(a, framed.offsets(), w, tiles, out),
                        3 => column::<3>(a, framed.offsets(), w, tiles, out),
                        _ => column::<4>(a, framed.offsets(), w, tiles, out),
                    }
                }
            }
        }
        emit(AccBlock { first, acc: &acc[..rows * SIDE * NR] });
    }
    // SAFETY: configured above.
    unsafe { amx::release() };
}

/// Two-bit weights to int8, `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
#[inline]
fn expand_rows<const N: usize>(packed: &[u8; PACKED_TILE], tile: &mut [u8; TILE]) {
    expand_from::<N>(packed, tile, 0);
}

/// [`expand_rows`] from row `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
#[inline]
fn expand_from<const N: usize>(packed: &[u8; PACKED_TILE], tile: &mut [u8; TILE], first: usize) {
    // Byte `b` of 64-bit lane `i` gets the field at bit `16·(i/2) + 2·b` of its half of the row:
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
    // As a map over bits: bit 0 from bit 0, all others from bit 1, the sign.
    let sign_extend = _mm512_set1_epi64(0x0102_0202_0202_0202);
    // SAFETY: the array has 64 bytes.
    let shifts = unsafe { _mm512_loadu_si512(SHIFTS.as_ptr().cast()) };
    let rows = packed.as_chunks::<ROW_BYTES>().0[first..first + N].iter();
    for (row, out) in rows.zip(&mut tile.as_chunks_mut::<DEPTH>().0[first..first + N]) {
        // SAFETY: `row` has 16 bytes, `out` 64.
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

/// `R` row tiles × 16 channels, expanding weights on the way.
///
/// # Safety
/// Tiles are configured; at every offset from `a` there are `R` row tiles; `packed` has a tile for
/// every offset; `ring` has room for [`RING`] tiles, `out` for `R` tiles of rows of [`NR`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
#[inline]
unsafe fn column<const R: usize>(
    a: *const u8,
    offsets: &[usize],
    packed: &[u8],
    ring: &mut [u8],
    out: &mut [i32],
) {
    const { assert!(R >= 1 && R <= 4) };
    const QUARTER: usize = ROWS / 4;
    let (packed, ring) =
        (packed.as_chunks::<PACKED_TILE>().0, &mut ring.as_chunks_mut::<TILE>().0[..RING]);
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
                a = in(reg) $a.wrapping_add($row * TILE),
                stride = in(reg) DEPTH,
                options(nostack, readonly, preserves_flags)
            )
        };
    }
    macro_rules! finish {
        ($row:literal, $c:literal) => {
            asm!(concat!("tilestored [{o} + {stride}*1], ", $c), o = in(reg) out.as_mut_ptr().wrapping_add($row * SIDE * NR),
                stride = in(reg) NR * 4, options(nostack, preserves_flags))
        };
    }
    // SAFETY: the caller vouches for every address.
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
        for (packed, tile) in packed.iter().zip(&mut *ring).take(AHEAD) {
            expand_rows::<ROWS>(packed, tile);
        }
        let last = offsets.len() - 1;
        for (k, &offset) in offsets.iter().enumerate() {
            let a = a.wrapping_add(offset);
            // Past the end the last tile is expanded again, where nobody looks.
            let (next, tile) = (&packed[(k + AHEAD).min(last)], (k + AHEAD) % RING);
            for line in next.as_chunks::<{ size_of::<CacheLine>() }>().0 {
                _mm_prefetch::<_MM_HINT_T0>(
                    line.as_ptr().wrapping_add(PREFETCH * PACKED_TILE).cast(),
                );
            }
            asm!("tileloadd tmm4, [{b} + {stride}*1]", b = in(reg) ring[k % RING].as_ptr(), stride = in(reg) DEPTH,
                options(nostack, readonly, preserves_flags));
            multiply!(0, "tmm5", "tmm0", a);
            expand_from::<QUARTER>(next, &mut ring[tile], 0);
            if R > 1 {
                multiply!(1, "tmm6", "tmm1", a);
            }
            expand_from::<QUARTER>(next, &mut ring[tile], QUARTER);
            if R > 2 {
                multiply!(2, "tmm7", "tmm2", a);
            }
            expand_from::<QUARTER>(next, &mut ring[tile], 2 * QUARTER);
            if R > 3 {
                multiply!(3, "tmm5", "tmm3", a);
            }
            expand_from::<QUARTER>(next, &mut ring[tile], 3 * QUARTER);
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

/// 32 rows × 32 channels; the second 16 channels' tiles begin `next` bytes behind the first's.
///
/// # Safety
/// Tiles are configured; at every offset from `a` there are two row tiles; `b` and `b + next` have
/// a tile for every offset; `out` has 32 rows of [`NR`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn square(a: *const u8, offsets: &[usize], b: *const u8, next: usize, out: &mut [i32]) {
    debug_assert!(out.len() >= (2 * SIDE - 1) * NR + 2 * SIDE);
    // SAFETY: the caller vouches for every address.
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
                stride = in(reg) DEPTH,
                options(nostack, readonly, preserves_flags)
            );
            b = b.wrapping_add(TILE);
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
