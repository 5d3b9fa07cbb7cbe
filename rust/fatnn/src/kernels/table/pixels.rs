//! Product tables with output positions in the lanes: see [`crate::kernels::table`].
//!
//! The packed input has the states of one group at all positions next to each other, so another tap
//! is the same load at another byte offset. One byte of weights, for two output channels, selects
//! the row. Positions past the end of a row are computed like the others. Sums are ordered by
//! channel, and transposed in blocks of 8 × 8 words when a block is done.

use super::pack::Weights;
use super::tile::{Tile, Vector};
use super::transpose::{self, BYTE_SIDE, WORD_SIDE};
use super::{GROUPS, PAIRED, ROUND, SCALE, Table, UINT2_ROUND, zero_state};
use crate::kernels::CacheLine;
use crate::kernels::kernel::{Family, Layout};
use crate::kernels::packed_input::{AccBlock, PackedInput, Panel, Pixels};

/// Bytes of a unit of one position in the packed input.
pub(crate) const UNIT_BYTES: usize = GROUPS;
/// Output channels in a panel: eight pairs, which is two tiles of four pairs or four of two.
pub(crate) const NR: usize = 16;
/// Chunks in a segment. Their activations stay in the first-level cache.
const SEGMENT_CHUNKS: usize = 9;

/// See [`Layout`].
pub(crate) const LAYOUT: Layout = Layout { family: Family::Table, nr: NR, lanes: PAIRED };

/// See [`crate::kernels::PackedInputKernel::pack_input`]. `states` is
/// [`crate::kernels::table::states`] or the version for an instruction set.
#[inline(always)]
pub(crate) fn pack_input(
    pixels: &Pixels<'_>,
    (slab, first, positions): (&mut [u8], usize, usize),
    states: impl Fn(&[u8; 16]) -> [u8; GROUPS],
) {
    let groups = pixels.channels.div_ceil(PAIRED);
    for run in (0..pixels.count).step_by(BYTE_SIDE) {
        let here = BYTE_SIDE.min(pixels.count - run);
        let mut halves = [[[0; BYTE_SIDE]; BYTE_SIDE]; GROUPS / BYTE_SIDE];
        for i in 0..here {
            for (half, states) in halves.iter_mut().zip(states(pixels.unit(run + i)).as_chunks().0)
            {
                half[i] = *states;
            }
        }
        for (half, slab) in halves
            .into_iter()
            .zip(slab.chunks_mut(BYTE_SIDE * positions))
            .take(groups.div_ceil(BYTE_SIDE))
        {
            let rows = transpose::transpose_bytes(half);
            for (row, slab) in rows.iter().zip(slab.chunks_exact_mut(positions)) {
                let out = &mut slab[first + run..][..here];
                // For a constant length, the compiler emits one move.
                match TryInto::<&mut [u8; BYTE_SIDE]>::try_into(&mut *out) {
                    Ok(out) => *out = *row,
                    Err(_) => out.copy_from_slice(&row[..here]),
                }
            }
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::pack_zeros`].
pub(crate) fn pack_zeros(
    zero_level: bool,
    count: usize,
    slab: &mut [u8],
    first: usize,
    positions: usize,
) {
    for slab in slab.chunks_exact_mut(positions) {
        let zero = zero_state(zero_level);
        match &mut slab[first..first + count] {
            // Padding is often one position wide, and calling `fill` would take longer.
            [one] => *one = zero,
            many => many.fill(zero),
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::run`]. Tiles have `P` pairs of channels × `N` vectors
/// of positions.
///
/// # Safety
/// The CPU must have the features of `V`.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, const P: usize, const N: usize, const UINT2: bool>(
    input: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    const { assert!(NR.is_multiple_of(P * PAIRED) && V::LANES.is_multiple_of(2 * WORD_SIDE)) };
    let block = N * V::LANES;
    let weights = Weights::new(LAYOUT, input.offsets().len(), panel.bytes());
    let lines = CacheLine::bounded(scratch, NR * block * (size_of::<u16>() + size_of::<i32>()));
    let (counts, acc) = lines.split_at_mut(NR * block * size_of::<u16>() / size_of::<CacheLine>());
    let counts = counts.as_mut_ptr().cast::<u16>();
    // SAFETY: the lines have room for `block × NR` numbers, any bytes are a valid number, and a
    // line is aligned for them.
    let acc = unsafe {
        std::slice::from_raw_parts_mut(
            acc.as_mut_ptr().cast::<[[i32; WORD_SIDE]; NR / WORD_SIDE]>(),
            block,
        )
    };
    let constants: [[i32; WORD_SIDE]; NR / WORD_SIDE] = std::array::from_fn(|i| {
        std::array::from_fn(|j| i32::from_le_bytes(weights.constants[i * WORD_SIDE + j]))
    });
    let used = panel.channels().next_multiple_of(P * PAIRED);
    for first in (0..input.positions()).step_by(block) {
        let (mut accumulate, mut widened) = (false, false);
        for (from, plan, widen) in weights.segments(SEGMENT_CHUNKS) {
            let offsets = input.offsets()[from..].iter().enumerate();
            for channel in (0..used).step_by(P * PAIRED) {
                let pair = |p: usize| channel / PAIRED + p;
                let tile = Tile {
                    table: if UINT2 { Table::UINT2_BY_WEIGHTS } else { Table::BY_WEIGHTS },
                    rows: std::array::from_fn(|p| weights.groups.as_ptr().wrapping_add(pair(p))),
                    row_stride: NR / PAIRED,
                    indices: input.start().wrapping_add(first),
                    index_stride: input.slab_positions(),
                    sums: std::array::from_fn::<_, P, _>(|p| {
                        [0, 1].map(|half| counts.wrapping_add((pair(p) * PAIRED + half) * block))
                    }),
                };
                let offsets =
                    offsets.clone().map(|(i, &offset)| ((from + i) * GROUPS * NR / PAIRED, offset));
                // SAFETY: the caller promises the features. The panel has `NR / 2` bytes for every
                // group. From each offset on, the packed input has a block of positions for every
                // group. `counts` has a block for every channel.
                unsafe {
                    if UINT2 {
                        tile.run::<V, N, UINT2_ROUND, SCALE>(plan, offsets, accumulate);
                    } else {
                        tile.run::<V, N, ROUND, SCALE>(plan, offsets, accumulate);
                    }
                }
            }
            accumulate = true;
            if widen {
                for channel in (0..used).step_by(WORD_SIDE) {
                    for word in (0..block).step_by(WORD_SIDE) {
                        let rows = std::array::from_fn(|i| {
                            // SAFETY: `counts` has a block for every channel. Like all of
                            // `scratch`, it is initialised, and nothing else borrows it now.
                            unsafe {
                                *counts.add((channel + i) * block + word).cast::<[u16; WORD_SIDE]>()
                            }
                        });
                        for (i, row) in transpose::transpose_words(rows).iter().enumerate() {
                            let acc = &mut acc[position::<V>(word + i)][channel / WORD_SIDE];
                            let before =
                                if widened { *acc } else { constants[channel / WORD_SIDE] };
                            *acc =
                                std::array::from_fn(|j| before[j].wrapping_add(i32::from(row[j])));
                        }
                    }
                }
                (accumulate, widened) = (false, true);
            }
        }
        emit(AccBlock { first, acc: acc.as_flattened().as_flattened() });
    }
}

/// The position of a word of the sums. In each vector, even positions come before odd ones.
#[inline(always)]
fn position<V: Vector>(word: usize) -> usize {
    let (vector, word) = (word / V::LANES, word % V::LANES);
    vector * V::LANES + word % (V::LANES / 2) * 2 + word / (V::LANES / 2)
}

/// Defines a kernel `$kernel` with positions in the lanes, in tiles of `$pairs` pairs of channels ×
/// `$vectors` vectors. The other arguments are those of
/// [`crate::kernels::table::channels::channels_kernel`].
macro_rules! pixels_kernel {
    (
        $kernel:ident, $inner_loop:ident, $name:literal, $isa:expr, $vector:ty,
        $pairs:literal by $vectors:literal, ($states:path, $uint2_states:path), $simd:ty,
        $inner:literal
    ) => {
        #[derive(Debug)]
        struct $kernel;

        impl crate::kernels::private::Sealed for $kernel {}

        impl crate::kernels::Kernel for $kernel {
            fn name(&self) -> &'static str {
                $name
            }

            fn isa(&self) -> crate::cpu::Isa {
                $isa
            }

            fn layout(&self) -> crate::kernels::Layout {
                crate::kernels::table::pixels::LAYOUT
            }

            fn inner(
                &self,
                operands: crate::kernels::OperandTypes,
            ) -> Option<crate::kernels::Inner<'_>> {
                crate::kernels::packed_input::inner(
                    operands,
                    &$inner_loop::<false>,
                    &$inner_loop::<true>,
                )
            }
        }

        /// The inner loop, for two-bit activations if `UINT2`, otherwise for ternary and binary
        /// ones.
        struct $inner_loop<const UINT2: bool>;

        impl<const UINT2: bool> crate::kernels::private::Sealed for $inner_loop<UINT2> {}

        impl<const UINT2: bool> crate::kernels::PackedInputKernel for $inner_loop<UINT2> {
            fn layout(&self) -> crate::kernels::Layout {
                crate::kernels::table::pixels::LAYOUT
            }

            fn epilogue(&self) -> &'static dyn crate::kernels::TileEpilogue {
                const NR: usize = crate::kernels::table::pixels::LAYOUT.nr;
                const PART: usize = crate::kernels::epilogue::part_width(NR);
                // SAFETY: only the kernel uses it, and the kernel only exists if the features were
                // detected.
                const { &unsafe { crate::kernels::epilogue::Epilogue::<$simd, NR, PART>::new() } }
            }

            fn panel_bytes(&self, units: usize) -> usize {
                crate::kernels::table::pack::panel_bytes(
                    crate::kernels::table::pixels::LAYOUT,
                    units,
                )
            }

            fn pack_panel(
                &self,
                weights: &crate::kernels::PanelWeights<'_>,
                panel: &mut [u8],
            ) -> crate::error::Result<()> {
                crate::kernels::table::pack::pack_panel(
                    crate::kernels::table::pixels::LAYOUT,
                    weights,
                    panel,
                )
            }

            fn unit_bytes(&self) -> usize {
                crate::kernels::table::pixels::UNIT_BYTES
            }

            fn position_bytes(&self) -> usize {
                1
            }

            fn block(&self) -> usize {
                $vectors * <$vector as crate::kernels::table::tile::Vector>::LANES
            }

            fn pack_input(
                &self,
                pixels: &crate::kernels::Pixels<'_>,
                slab: &mut [u8],
                first: usize,
                positions: usize,
            ) {
                #[target_feature(enable = $inner)]
                fn pack_input<const UINT2: bool>(
                    pixels: &crate::kernels::Pixels<'_>,
                    to: (&mut [u8], usize, usize),
                ) {
                    crate::kernels::table::pixels::pack_input(pixels, to, |unit| {
                        if UINT2 { $uint2_states(unit) } else { $states(unit) }
                    });
                }
                // SAFETY: this inner loop belongs to a kernel that exists, so the features were
                // detected.
                unsafe { pack_input::<UINT2>(pixels, (slab, first, positions)) }
            }

            fn pack_zeros(
                &self,
                zero_level: bool,
                count: usize,
                slab: &mut [u8],
                first: usize,
                positions: usize,
            ) {
                crate::kernels::table::pixels::pack_zeros(
                    zero_level, count, slab, first, positions,
                );
            }

            fn run(
                &self,
                input: &crate::kernels::PackedInput<'_>,
                panel: &crate::kernels::Panel<'_>,
                scratch: &mut Vec<crate::kernels::CacheLine>,
                emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
            ) {
                #[target_feature(enable = $inner)]
                fn run<const UINT2: bool>(
                    input: &crate::kernels::PackedInput<'_>,
                    panel: &crate::kernels::Panel<'_>,
                    scratch: &mut Vec<crate::kernels::CacheLine>,
                    emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
                ) {
                    // SAFETY: this function enables the features, so its caller made sure that the
                    // CPU has them.
                    unsafe {
                        crate::kernels::table::pixels::run::<$vector, $pairs, $vectors, UINT2>(
                            input, panel, scratch, emit,
                        )
                    }
                }
                // SAFETY: as above.
                unsafe { run::<UINT2>(input, panel, scratch, emit) }
            }
        }
    };
}
pub(crate) use pixels_kernel;
