//! Product tables with output channels in the lanes: see [`crate::kernels::table`].
//!
//! A frame's byte holds the states of a position and of the next one, so one byte selects the row
//! for two positions. Pairs begin at every row's first column, and those that lie past its last one
//! are left out. A unit's weights, one byte for two, are 2 KB per tap for 64 channels; those of a
//! stretch stay in the first-level cache while a block's tiles pass by. The tiles prefetch the next
//! stretch meanwhile: weights of deep layers come from beyond the second-level cache (measured, the
//! 512-channel layers of a ResNet-50 took a fifth less time).

use super::pack::Weights;
use super::tile::{Tile, Vector};
use super::{ROUND, SCALE, STEPS, Table, UINT2_ROUND, UINT2_SCALE, selector, uint2_selector};
use crate::kernels::CacheLine;
use crate::kernels::kernel::Layout;
use crate::kernels::packed_input::{AccBlock, PackedInput, Panel};

/// Positions in a block.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a position's unit in a frame.
pub(crate) const UNIT_BYTES: usize = STEPS;
/// (unit, tap)s in a stretch: their weights stay in the first-level cache.
const STRETCH: usize = 9;
/// Rows of sums: a block's, one for the last pair's second position, and two that nobody reads.
const ROWS: usize = BLOCK + 3;

/// See [`crate::kernels::PackedInputKernel::finish`].
#[inline(always)]
pub(crate) fn finish<const UINT2: bool>(plane: &mut [u8]) {
    let positions = plane.as_chunks_mut::<UNIT_BYTES>().0;
    for i in 0..positions.len() {
        // Behind the last one there is none that anybody asks for.
        let next = positions[(i + 1).min(positions.len() - 1)];
        for (low, high) in positions[i].iter_mut().zip(next) {
            *low = if UINT2 { uint2_selector(*low, high) } else { selector(*low, high) };
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::run`]: tiles of `P` pairs × `N` vectors, or one, where
/// it has room for the channels.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, const P: usize, const N: usize, const UINT2: bool>(
    layout: Layout,
    framed: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let nr = N * V::LANES;
    assert!(layout.nr == nr && layout.lanes == V::LANES);
    let weights = Weights::new(layout, framed.offsets().len(), panel.bytes());
    let narrow = panel.channels() <= V::LANES;
    let lines = CacheLine::bounded(scratch, ROWS * nr * (size_of::<u16>() + size_of::<i32>()));
    let (counts, acc) = lines.split_at_mut(ROWS * nr * size_of::<u16>() / size_of::<CacheLine>());
    let counts = counts.as_mut_ptr().cast::<u16>();
    // SAFETY: the lines hold so many numbers, any bytes are a number, and a line is aligned for
    // them.
    let acc = unsafe { std::slice::from_raw_parts_mut(acc.as_mut_ptr().cast::<i32>(), BLOCK * nr) };
    // Positions of a block that begin a pair, half of them at most and one, and unused places.
    const { assert!(P < BLOCK / 2) };
    let mut pairs = [0; BLOCK];
    for first in (0..framed.positions()).step_by(BLOCK) {
        let block = BLOCK.min(framed.positions() - first);
        let used = pairs_of(framed, first, block, &mut pairs);
        let count = used.next_multiple_of(P);
        pairs[used..count].fill(BLOCK);
        let (mut yet, mut widened) = (false, false);
        for (from, plan, widen) in weights.stretches(STRETCH) {
            let offsets = framed.offsets()[from..].iter().enumerate();
            // The next stretch, or the next panel's first; not for a few tiles, which that would
            // take longer than it saves.
            let (behind, depth) = (from + plan.len(), weights.plan.len());
            let next = weights.steps.as_ptr().wrapping_add(behind * STEPS * nr);
            let lines =
                STRETCH.min(if behind < depth { depth - behind } else { depth }) * STEPS * nr / 64;
            let share = if count / P < 8 { 0 } else { lines.div_ceil(count / P) };
            for (t, pairs) in pairs[..count].as_chunks::<P>().0.iter().enumerate() {
                for line in t * share..(t + 1) * share {
                    V::prefetch(next.wrapping_add(line * 64));
                }
                let tile = Tile {
                    table: if UINT2 { Table::UINT2_BY_ACTIVATIONS } else { Table::BY_ACTIVATIONS },
                    // Places that are not used read the block's first position, and write where
                    // nobody reads.
                    rows: pairs.map(|pair| {
                        framed.start().wrapping_add(
                            (first + if pair < BLOCK { pair } else { 0 }) * UNIT_BYTES,
                        )
                    }),
                    row_step: 1,
                    indices: weights.steps.as_ptr(),
                    index_step: nr,
                    sums: pairs.map(|pair| {
                        let row = if pair < BLOCK { pair } else { BLOCK + 1 };
                        [row, row + 1].map(|row| counts.wrapping_add(row * nr))
                    }),
                };
                let offsets = offsets.clone().map(|(i, &offset)| (offset, (from + i) * STEPS * nr));
                // SAFETY: features as the caller says. A frame has a byte for every step at every
                // position of a block, and the panel `nr` indices; `counts` has `ROWS` rows.
                unsafe {
                    match (UINT2, narrow) {
                        (false, true) => tile.run::<V, 1, ROUND, SCALE>(plan, offsets, yet),
                        (false, false) => tile.run::<V, N, ROUND, SCALE>(plan, offsets, yet),
                        (true, true) => {
                            tile.run::<V, 1, UINT2_ROUND, UINT2_SCALE>(plan, offsets, yet)
                        }
                        (true, false) => {
                            tile.run::<V, N, UINT2_ROUND, UINT2_SCALE>(plan, offsets, yet)
                        }
                    }
                }
            }
            yet = true;
            if widen {
                for (i, acc) in acc.chunks_exact_mut(nr).take(block).enumerate() {
                    // SAFETY: `counts` has `ROWS` rows, of initialised memory as all of `scratch`,
                    // and nothing else borrows it now.
                    let counts = unsafe { std::slice::from_raw_parts(counts.add(i * nr), nr) };
                    for ((acc, count), constant) in
                        acc.iter_mut().zip(counts).zip(weights.constants)
                    {
                        let before = if widened { *acc } else { i32::from_le_bytes(*constant) };
                        *acc = before.wrapping_add(i32::from(*count));
                    }
                }
                (yet, widened) = (false, true);
            }
        }
        emit(AccBlock { first, acc });
    }
}

/// Writes the positions, counted from the block's first, that begin a pair; returns how many.
#[inline(always)]
fn pairs_of(framed: &PackedInput<'_>, first: usize, block: usize, pairs: &mut [usize]) -> usize {
    // Where all positions are wanted, they are one row.
    let [columns, width] = match framed.row() {
        [columns, width] if columns == width => [framed.positions(); 2],
        row => row,
    };
    let mut used = 0;
    let mut at = first;
    while at < first + block {
        let (row, column) = (at / width * width, at % width);
        let end = (row + columns).min(first + block);
        if column < columns {
            for pair in (at..end).step_by(2) {
                pairs[used] = pair - first;
                used += 1;
            }
        }
        at = row + width;
    }
    used
}

/// A kernel `$kernel` with lanes = channels, in tiles of `$pairs` pairs × `$vectors` vectors. Its
/// inner loop is compiled with `$inner`, all of whose features are among `$features`; `$states` and
/// `$uint2_states` are [`crate::kernels::table::states`] and
/// [`crate::kernels::table::uint2_states`] or the same in the instruction set's own words, and
/// `$simd` is that set. `$frames` is its inner loop.
macro_rules! channels_kernel {
    (
        $kernel:ident, $frames:ident, $name:literal, $isa:expr, $vector:ty, $pairs:literal by $vectors:literal, ($states:path, $uint2_states:path),
        $simd:ty, $inner:literal
    ) => {
        #[derive(Debug)]
        struct $kernel;

        impl $kernel {
            const LAYOUT: crate::kernels::Layout = crate::kernels::Layout {
                family: crate::kernels::Family::Table,
                nr: $vectors * <$vector as crate::kernels::table::tile::Vector>::LANES,
                lanes: <$vector as crate::kernels::table::tile::Vector>::LANES,
            };
        }

        impl crate::kernels::private::Sealed for $kernel {}

        impl crate::kernels::Kernel for $kernel {
            fn name(&self) -> &'static str {
                $name
            }

            fn isa(&self) -> crate::cpu::Isa {
                $isa
            }

            fn layout(&self) -> crate::kernels::Layout {
                Self::LAYOUT
            }

            fn inner(
                &self,
                operands: crate::kernels::OperandTypes,
            ) -> Option<crate::kernels::Inner<'_>> {
                crate::kernels::packed_input::inner(operands, &$frames::<false>, &$frames::<true>)
            }
        }

        /// The inner loop, for activations of two bits or ternary ones.
        struct $frames<const UINT2: bool>;

        impl<const UINT2: bool> crate::kernels::private::Sealed for $frames<UINT2> {}

        impl<const UINT2: bool> crate::kernels::PackedInputKernel for $frames<UINT2> {
            fn layout(&self) -> crate::kernels::Layout {
                $kernel::LAYOUT
            }

            fn epilogue(&self) -> &'static dyn crate::kernels::TileEpilogue {
                const NR: usize = $kernel::LAYOUT.nr;
                const PART: usize = crate::kernels::epilogue::part_width(NR);
                // SAFETY: only the kernel has it, which exists where the features were detected.
                const { &unsafe { crate::kernels::epilogue::Epilogue::<$simd, NR, PART>::new() } }
            }

            fn panel_bytes(&self, units: usize) -> usize {
                crate::kernels::table::pack::panel_bytes($kernel::LAYOUT, units)
            }

            fn pack_panel(
                &self,
                weights: &crate::kernels::PanelWeights<'_>,
                panel: &mut [u8],
            ) -> crate::error::Result<()> {
                crate::kernels::table::pack::pack_panel($kernel::LAYOUT, weights, panel)
            }

            fn unit_bytes(&self) -> usize {
                crate::kernels::table::channels::UNIT_BYTES
            }

            fn block(&self) -> usize {
                crate::kernels::table::channels::BLOCK
            }

            fn pack_input(
                &self,
                pixels: &crate::kernels::Pixels<'_>,
                plane: &mut [u8],
                first: usize,
                _: usize,
            ) {
                #[target_feature(enable = $inner)]
                fn pack_input<const UINT2: bool>(
                    pixels: &crate::kernels::Pixels<'_>,
                    plane: &mut [u8],
                    first: usize,
                ) {
                    crate::kernels::table::pack_input(pixels, plane, first, |unit| {
                        if UINT2 { $uint2_states(unit) } else { $states(unit) }
                    });
                }
                // SAFETY: this inner loop is a kernel's that exists, so the features were detected.
                unsafe { pack_input::<UINT2>(pixels, plane, first) }
            }

            fn pack_zeros(
                &self,
                of_levels: bool,
                count: usize,
                plane: &mut [u8],
                first: usize,
                _: usize,
            ) {
                crate::kernels::table::pack_zeros(of_levels, count, plane, first);
            }

            fn finish(&self, plane: &mut [u8]) {
                #[target_feature(enable = $inner)]
                fn finish<const UINT2: bool>(plane: &mut [u8]) {
                    crate::kernels::table::channels::finish::<UINT2>(plane);
                }
                // SAFETY: as above.
                unsafe { finish::<UINT2>(plane) }
            }

            fn run(
                &self,
                framed: &crate::kernels::PackedInput<'_>,
                panel: &crate::kernels::Panel<'_>,
                scratch: &mut Vec<crate::kernels::CacheLine>,
                emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
            ) {
                #[target_feature(enable = $inner)]
                fn run<const UINT2: bool>(
                    layout: crate::kernels::Layout,
                    framed: &crate::kernels::PackedInput<'_>,
                    panel: &crate::kernels::Panel<'_>,
                    scratch: &mut Vec<crate::kernels::CacheLine>,
                    emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
                ) {
                    // SAFETY: this function has the features.
                    unsafe {
                        crate::kernels::table::channels::run::<$vector, $pairs, $vectors, UINT2>(
                            layout, framed, panel, scratch, emit,
                        )
                    }
                }
                let layout = $kernel::LAYOUT;
                // SAFETY: as above.
                unsafe { run::<UINT2>(layout, framed, panel, scratch, emit) }
            }
        }
    };
}
pub(crate) use channels_kernel;
