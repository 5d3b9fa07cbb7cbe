//! Product tables with output channels in the lanes: see [`crate::kernels::table`].
//!
//! A byte of the packed input combines the states of a position and of the next one, so one byte
//! selects the row for a pair of positions. In every row of the output, pairs begin at the first
//! column; pairs that begin past the last column are skipped. The weights of a 64-channel unit are
//! 2 KB per tap, one byte for two weights. The weights of a few chunks, a *segment*, stay in the
//! first-level cache while all tiles of a block use them. Meanwhile these tiles prefetch the next
//! segment, because the weights of deep layers come from beyond the second-level cache. Prefetching
//! saved a fifth of the time of ResNet-50's 512-channel layers.

use super::pack::Weights;
use super::tile::{Tile, Vector};
use super::{GROUPS, ROUND, SCALE, Table, UINT2_ROUND, UINT2_SCALE, selector, uint2_selector};
use crate::kernels::CacheLine;
use crate::kernels::kernel::Layout;
use crate::kernels::packed_input::{AccBlock, PackedInput, Panel};

/// Positions in a block.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a unit of one position in the packed input.
pub(crate) const UNIT_BYTES: usize = GROUPS;
/// Chunks in a segment. Their weights stay in the first-level cache.
const SEGMENT_CHUNKS: usize = 9;
/// Rows of sums: a block, the second position of its last pair, and two that nothing reads.
const SUM_ROWS: usize = BLOCK + 3;

/// See [`crate::kernels::PackedInputKernel::finish`].
#[inline(always)]
pub(crate) fn finish<const UINT2: bool>(slab: &mut [u8]) {
    let positions = slab.as_chunks_mut::<UNIT_BYTES>().0;
    for i in 0..positions.len() {
        // The last position has no next one. Its partner's results are never used.
        let next = positions[(i + 1).min(positions.len() - 1)];
        for (low, high) in positions[i].iter_mut().zip(next) {
            *low = if UINT2 { uint2_selector(*low, high) } else { selector(*low, high) };
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::run`]. Tiles have `P` pairs × `N` vectors, or × one
/// vector if the panel's channels fit one.
///
/// # Safety
/// The CPU must have the features of `V`.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, const P: usize, const N: usize, const UINT2: bool>(
    layout: Layout,
    input: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    let nr = N * V::LANES;
    assert!(layout.nr == nr && layout.lanes == V::LANES);
    let weights = Weights::new(layout, input.offsets().len(), panel.bytes());
    let narrow = panel.channels() <= V::LANES;
    let lines = CacheLine::bounded(scratch, SUM_ROWS * nr * (size_of::<u16>() + size_of::<i32>()));
    let (counts, acc) =
        lines.split_at_mut(SUM_ROWS * nr * size_of::<u16>() / size_of::<CacheLine>());
    let counts = counts.as_mut_ptr().cast::<u16>();
    let acc = &mut CacheLine::sums_mut(acc)[..BLOCK * nr];
    // Positions of the block at which a pair begins: at most half of them plus one. Then unused
    // entries.
    const { assert!(P < BLOCK / 2) };
    let mut pairs = [0; BLOCK];
    for first in (0..input.positions()).step_by(BLOCK) {
        let block = BLOCK.min(input.positions() - first);
        let used = pair_starts(input, first, block, &mut pairs);
        let count = used.next_multiple_of(P);
        pairs[used..count].fill(BLOCK);
        let (mut accumulate, mut widened) = (false, false);
        for (from, plan, widen) in weights.segments(SEGMENT_CHUNKS) {
            let offsets = input.offsets()[from..].iter().enumerate();
            // Prefetch the next segment, or the first one of the next panel. With few tiles, that
            // would take longer than it saves.
            let (end, depth) = (from + plan.len(), weights.plan.len());
            let next = weights.groups.as_ptr().wrapping_add(end * GROUPS * nr);
            let lines =
                SEGMENT_CHUNKS.min(if end < depth { depth - end } else { depth }) * GROUPS * nr
                    / 64;
            let lines_per_tile = if count / P < 8 { 0 } else { lines.div_ceil(count / P) };
            for (t, pairs) in pairs[..count].as_chunks::<P>().0.iter().enumerate() {
                for line in t * lines_per_tile..(t + 1) * lines_per_tile {
                    V::prefetch(next.wrapping_add(line * 64));
                }
                let tile = Tile {
                    table: if UINT2 { Table::UINT2_BY_ACTIVATIONS } else { Table::BY_ACTIVATIONS },
                    // Unused entries read the first position of the block, and write to rows that
                    // nothing reads.
                    rows: pairs.map(|pair| {
                        input.start().wrapping_add(
                            (first + if pair < BLOCK { pair } else { 0 }) * UNIT_BYTES,
                        )
                    }),
                    row_stride: 1,
                    indices: weights.groups.as_ptr(),
                    index_stride: nr,
                    sums: pairs.map(|pair| {
                        let row = if pair < BLOCK { pair } else { BLOCK + 1 };
                        [row, row + 1].map(|row| counts.wrapping_add(row * nr))
                    }),
                };
                let offsets =
                    offsets.clone().map(|(i, &offset)| (offset, (from + i) * GROUPS * nr));
                // SAFETY: the caller promises the features. From each offset on, the packed input
                // has a byte for every group at every position of a block; the panel has `nr`
                // indices for every group; `counts` has `SUM_ROWS` rows.
                unsafe {
                    match (UINT2, narrow) {
                        (false, true) => tile.run::<V, 1, ROUND, SCALE>(plan, offsets, accumulate),
                        (false, false) => tile.run::<V, N, ROUND, SCALE>(plan, offsets, accumulate),
                        (true, true) => {
                            tile.run::<V, 1, UINT2_ROUND, UINT2_SCALE>(plan, offsets, accumulate)
                        }
                        (true, false) => {
                            tile.run::<V, N, UINT2_ROUND, UINT2_SCALE>(plan, offsets, accumulate)
                        }
                    }
                }
            }
            accumulate = true;
            if widen {
                for (i, acc) in acc.chunks_exact_mut(nr).take(block).enumerate() {
                    // SAFETY: `counts` has `SUM_ROWS` rows. Like all of `scratch`, they are
                    // initialised, and nothing else borrows them now.
                    let counts = unsafe { std::slice::from_raw_parts(counts.add(i * nr), nr) };
                    for ((acc, count), constant) in
                        acc.iter_mut().zip(counts).zip(weights.constants)
                    {
                        let before = if widened { *acc } else { i32::from_le_bytes(*constant) };
                        *acc = before.wrapping_add(i32::from(*count));
                    }
                }
                (accumulate, widened) = (false, true);
            }
        }
        emit(AccBlock { first, acc });
    }
}

/// Writes the positions at which a pair begins, relative to the first one of the block. Returns
/// their number.
#[inline(always)]
fn pair_starts(input: &PackedInput<'_>, first: usize, block: usize, pairs: &mut [usize]) -> usize {
    // If every position is an output pixel, treat all of them as one row.
    let [columns, width] = match input.row_widths() {
        [columns, width] if columns == width => [input.positions(); 2],
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

/// Defines a kernel `$kernel` with channels in the lanes, and its inner loop `$inner_loop`. Tiles
/// have `$pairs` pairs × `$vectors` vectors. `$simd` is the instruction set. The inner loop is
/// compiled with the features `$inner`, which must all be among those of `$simd`. `$states` and
/// `$uint2_states` are [`crate::kernels::table::states`] and
/// [`crate::kernels::table::uint2_states`], or versions of them for the instruction set.
macro_rules! channels_kernel {
    (
        $kernel:ident, $inner_loop:ident, $name:literal, $isa:expr, $vector:ty,
        $pairs:literal by $vectors:literal, ($states:path, $uint2_states:path), $simd:ty,
        $inner:literal
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
                $kernel::LAYOUT
            }

            fn epilogue(&self) -> &'static dyn crate::kernels::TileEpilogue {
                const NR: usize = $kernel::LAYOUT.nr;
                const PART: usize = crate::kernels::epilogue::part_width(NR);
                // SAFETY: only the kernel uses it, and the kernel only exists if the features were
                // detected.
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
                slab: &mut [u8],
                first: usize,
                _: usize,
            ) {
                #[target_feature(enable = $inner)]
                fn pack_input<const UINT2: bool>(
                    pixels: &crate::kernels::Pixels<'_>,
                    slab: &mut [u8],
                    first: usize,
                ) {
                    crate::kernels::table::pack_input(pixels, slab, first, |unit| {
                        if UINT2 { $uint2_states(unit) } else { $states(unit) }
                    });
                }
                // SAFETY: this inner loop belongs to a kernel that exists, so the features were
                // detected.
                unsafe { pack_input::<UINT2>(pixels, slab, first) }
            }

            fn pack_zeros(
                &self,
                zero_level: bool,
                count: usize,
                slab: &mut [u8],
                first: usize,
                _: usize,
            ) {
                crate::kernels::table::pack_zeros(zero_level, count, slab, first);
            }

            fn finish(&self, slab: &mut [u8], _: usize) {
                #[target_feature(enable = $inner)]
                fn finish<const UINT2: bool>(slab: &mut [u8]) {
                    crate::kernels::table::channels::finish::<UINT2>(slab);
                }
                // SAFETY: as above.
                unsafe { finish::<UINT2>(slab) }
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
                    layout: crate::kernels::Layout,
                    input: &crate::kernels::PackedInput<'_>,
                    panel: &crate::kernels::Panel<'_>,
                    scratch: &mut Vec<crate::kernels::CacheLine>,
                    emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
                ) {
                    // SAFETY: this function enables the features, so its caller made sure that the
                    // CPU has them.
                    unsafe {
                        crate::kernels::table::channels::run::<$vector, $pairs, $vectors, UINT2>(
                            layout, input, panel, scratch, emit,
                        )
                    }
                }
                let layout = $kernel::LAYOUT;
                // SAFETY: as above.
                unsafe { run::<UINT2>(layout, input, panel, scratch, emit) }
            }
        }
    };
}
pub(crate) use channels_kernel;
