//! Product tables with positions in the lanes: see [`crate::kernels::table`].
//!
//! A frame's planes are split: the states of one group at all positions lie beside each other, and
//! a tap is the same load shifted by some bytes. One byte of weights, two output channels, selects
//! the row. Positions past a row's end are computed like others. Sums come out channel by channel
//! and are transposed, 8 × 8 words at a time, at a block's end.

use super::pack::Weights;
use super::tile::{Tile, Vector};
use super::transpose::{self, RUN, WORDS};
use super::{PAIRED, ROUND, SCALE, STEPS, Table, UINT2_ROUND, zeros};
use crate::kernels::CacheLine;
use crate::kernels::kernel::{Family, Layout};
use crate::kernels::packed_input::{AccBlock, PackedInput, Panel, Pixels};

/// Bytes of a position's unit in a frame.
pub(crate) const UNIT_BYTES: usize = STEPS;
/// Output channels in a panel: two tiles of two pairs where there are 16 channels.
pub(crate) const NR: usize = 16;
/// (unit, tap)s in a stretch: their activations stay in the first-level cache.
const STRETCH: usize = 9;

/// See [`Layout`].
pub(crate) const LAYOUT: Layout = Layout { family: Family::Table, nr: NR, lanes: PAIRED };

/// See [`crate::kernels::PackedInputKernel::pack_input`]; `states` is
/// [`crate::kernels::table::states`], or the same in an instruction set's own words.
#[inline(always)]
pub(crate) fn pack_input(
    pixels: &Pixels<'_>,
    (plane, first, positions): (&mut [u8], usize, usize),
    states: impl Fn(&[u8; 16]) -> [u8; STEPS],
) {
    let groups = pixels.channels.div_ceil(PAIRED);
    for run in (0..pixels.count).step_by(RUN) {
        let here = RUN.min(pixels.count - run);
        let mut halves = [[[0; RUN]; RUN]; STEPS / RUN];
        for i in 0..here {
            for (half, states) in halves.iter_mut().zip(states(pixels.unit(run + i)).as_chunks().0)
            {
                half[i] = *states;
            }
        }
        for (half, plane) in
            halves.into_iter().zip(plane.chunks_mut(RUN * positions)).take(groups.div_ceil(RUN))
        {
            let rows = transpose::transpose_bytes(half);
            for (row, plane) in rows.iter().zip(plane.chunks_exact_mut(positions)) {
                let out = &mut plane[first + run..][..here];
                // A constant length is one move.
                match TryInto::<&mut [u8; RUN]>::try_into(&mut *out) {
                    Ok(out) => *out = *row,
                    Err(_) => out.copy_from_slice(&row[..here]),
                }
            }
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::pack_zeros`].
pub(crate) fn pack_zeros(
    of_levels: bool,
    count: usize,
    plane: &mut [u8],
    first: usize,
    positions: usize,
) {
    for plane in plane.chunks_exact_mut(positions) {
        let zeros = zeros(of_levels);
        match &mut plane[first..first + count] {
            // Padding is this narrow, and a call would take longer.
            [one] => *one = zeros,
            many => many.fill(zeros),
        }
    }
}

/// See [`crate::kernels::PackedInputKernel::run`]: tiles of `P` pairs of channels × `N` vectors of
/// positions.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, const P: usize, const N: usize, const UINT2: bool>(
    framed: &PackedInput<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<CacheLine>,
    emit: &mut dyn FnMut(AccBlock<'_>),
) {
    const { assert!(NR.is_multiple_of(P * PAIRED) && V::LANES.is_multiple_of(2 * WORDS)) };
    let block = N * V::LANES;
    let weights = Weights::new(LAYOUT, framed.offsets().len(), panel.bytes());
    let lines = CacheLine::bounded(scratch, NR * block * (size_of::<u16>() + size_of::<i32>()));
    let (counts, acc) = lines.split_at_mut(NR * block * size_of::<u16>() / size_of::<CacheLine>());
    let counts = counts.as_mut_ptr().cast::<u16>();
    // SAFETY: the lines hold so many numbers, any bytes are a number, and a line is aligned for
    // them.
    let acc = unsafe {
        std::slice::from_raw_parts_mut(acc.as_mut_ptr().cast::<[[i32; WORDS]; NR / WORDS]>(), block)
    };
    let constants: [[i32; WORDS]; NR / WORDS] = std::array::from_fn(|i| {
        std::array::from_fn(|j| i32::from_le_bytes(weights.constants[i * WORDS + j]))
    });
    let used = panel.channels().next_multiple_of(P * PAIRED);
    for first in (0..framed.positions()).step_by(block) {
        let (mut yet, mut widened) = (false, false);
        for (from, plan, widen) in weights.stretches(STRETCH) {
            let offsets = framed.offsets()[from..].iter().enumerate();
            for channel in (0..used).step_by(P * PAIRED) {
                let pair = |p: usize| channel / PAIRED + p;
                let tile = Tile {
                    table: if UINT2 { Table::UINT2_BY_WEIGHTS } else { Table::BY_WEIGHTS },
                    rows: std::array::from_fn(|p| weights.steps.as_ptr().wrapping_add(pair(p))),
                    row_step: NR / PAIRED,
                    indices: framed.start().wrapping_add(first),
                    index_step: framed.plane_positions(),
                    sums: std::array::from_fn::<_, P, _>(|p| {
                        [0, 1].map(|half| counts.wrapping_add((pair(p) * PAIRED + half) * block))
                    }),
                };
                let offsets =
                    offsets.clone().map(|(i, &offset)| ((from + i) * STEPS * NR / PAIRED, offset));
                // SAFETY: features as the caller says. The panel has `NR / 2` bytes for every step,
                // a frame a block of positions at every offset in every group's plane, and `counts`
                // a block for every channel.
                unsafe {
                    if UINT2 {
                        tile.run::<V, N, UINT2_ROUND, SCALE>(plan, offsets, yet);
                    } else {
                        tile.run::<V, N, ROUND, SCALE>(plan, offsets, yet);
                    }
                }
            }
            yet = true;
            if widen {
                for channel in (0..used).step_by(WORDS) {
                    for word in (0..block).step_by(WORDS) {
                        let rows = std::array::from_fn(|i| {
                            // SAFETY: `counts` has a block for every channel, of initialised memory
                            // as all of `scratch`, and nothing else borrows it now.
                            unsafe {
                                *counts.add((channel + i) * block + word).cast::<[u16; WORDS]>()
                            }
                        });
                        for (i, row) in transpose::transpose_words(rows).iter().enumerate() {
                            let acc = &mut acc[position::<V>(word + i)][channel / WORDS];
                            let before = if widened { *acc } else { constants[channel / WORDS] };
                            *acc =
                                std::array::from_fn(|j| before[j].wrapping_add(i32::from(row[j])));
                        }
                    }
                }
                (yet, widened) = (false, true);
            }
        }
        emit(AccBlock { first, acc: acc.as_flattened().as_flattened() });
    }
}

/// The position of a word of the sums: a vector's even ones come before its odd ones.
#[inline(always)]
fn position<V: Vector>(word: usize) -> usize {
    let (vector, word) = (word / V::LANES, word % V::LANES);
    vector * V::LANES + word % (V::LANES / 2) * 2 + word / (V::LANES / 2)
}

/// A kernel `$kernel` with lanes = positions, in tiles of `$pairs` pairs of channels × `$vectors`
/// vectors. The rest is as in [`crate::kernels::table::channels::channels_kernel`].
macro_rules! pixels_kernel {
    (
        $kernel:ident, $frames:ident, $name:literal, $isa:expr, $vector:ty, $pairs:literal by $vectors:literal, ($states:path, $uint2_states:path),
        $simd:ty, $inner:literal
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
                crate::kernels::packed_input::inner(operands, &$frames::<false>, &$frames::<true>)
            }
        }

        /// The inner loop, for activations of two bits or ternary ones.
        struct $frames<const UINT2: bool>;

        impl<const UINT2: bool> crate::kernels::private::Sealed for $frames<UINT2> {}

        impl<const UINT2: bool> crate::kernels::PackedInputKernel for $frames<UINT2> {
            fn layout(&self) -> crate::kernels::Layout {
                crate::kernels::table::pixels::LAYOUT
            }

            fn epilogue(&self) -> &'static dyn crate::kernels::TileEpilogue {
                const NR: usize = crate::kernels::table::pixels::LAYOUT.nr;
                const PART: usize = crate::kernels::epilogue::part_width(NR);
                // SAFETY: only the kernel has it, which exists where the features were detected.
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
                plane: &mut [u8],
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
                // SAFETY: this inner loop is a kernel's that exists, so the features were detected.
                unsafe { pack_input::<UINT2>(pixels, (plane, first, positions)) }
            }

            fn pack_zeros(
                &self,
                of_levels: bool,
                count: usize,
                plane: &mut [u8],
                first: usize,
                positions: usize,
            ) {
                crate::kernels::table::pixels::pack_zeros(
                    of_levels, count, plane, first, positions,
                );
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
                    framed: &crate::kernels::PackedInput<'_>,
                    panel: &crate::kernels::Panel<'_>,
                    scratch: &mut Vec<crate::kernels::CacheLine>,
                    emit: &mut dyn FnMut(crate::kernels::AccBlock<'_>),
                ) {
                    // SAFETY: this function has the features.
                    unsafe {
                        crate::kernels::table::pixels::run::<$vector, $pairs, $vectors, UINT2>(
                            framed, panel, scratch, emit,
                        )
                    }
                }
                // SAFETY: as above.
                unsafe { run::<UINT2>(framed, panel, scratch, emit) }
            }
        }
    };
}
pub(crate) use pixels_kernel;
