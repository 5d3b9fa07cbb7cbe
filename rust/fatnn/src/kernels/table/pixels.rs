//! Product tables with positions in the lanes: see [`crate::kernels::table`].
//!
//! A frame's planes are split: the states of one group at all positions lie beside each other, and a tap is the same load
//! shifted by some bytes. One byte of weights, two output channels, selects the row. Positions past a row's end are
//! computed like others. Sums come out channel by channel and are transposed, 8 × 8 words at a time, at a block's end.

use crate::kernels::Layout;
use crate::kernels::packed_input::{Emitted, Framed, Line, Panel, Pixels};
use crate::kernels::table::{PAIRED, ROUND, SCALE, STEPS, Table, Tile, UINT2_ROUND, Vector, Weights, zeros};

/// Bytes of a position's unit in a frame.
pub(crate) const UNIT_BYTES: usize = STEPS;
/// Output channels in a panel: two tiles of two pairs where there are 16 channels.
pub(crate) const NR: usize = 16;
/// (unit, tap)s in a stretch: their activations stay in the first-level cache.
const STRETCH: usize = 9;
/// Positions that are encoded together.
const RUN: usize = 16;
/// Words, and rows of them, that are transposed together.
const WORDS: usize = 8;

/// See [`Layout`].
pub(crate) const LAYOUT: Layout = Layout { family: crate::kernels::Family::Table, nr: NR, lanes: PAIRED };

/// See [`crate::kernels::FramedKernel::encode`]; `states` is [`crate::kernels::table::states`], or the same in an instruction set's own words.
#[inline(always)]
pub(crate) fn encode(
    pixels: &Pixels<'_>,
    (plane, first, positions): (&mut [u8], usize, usize),
    states: impl Fn(&[u8; 16]) -> [u8; STEPS],
) {
    let groups = pixels.channels.div_ceil(PAIRED);
    for run in (0..pixels.count).step_by(RUN) {
        let here = RUN.min(pixels.count - run);
        let mut halves = [[[0; RUN]; RUN]; STEPS / RUN];
        for i in 0..here {
            for (half, states) in halves.iter_mut().zip(states(pixels.unit(run + i)).as_chunks().0) {
                half[i] = *states;
            }
        }
        for (half, plane) in halves.into_iter().zip(plane.chunks_mut(RUN * positions)).take(groups.div_ceil(RUN)) {
            let rows = zip::transpose_bytes(half);
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

/// See [`crate::kernels::FramedKernel::clear`].
pub(crate) fn clear(of_levels: bool, count: usize, plane: &mut [u8], first: usize, positions: usize) {
    for plane in plane.chunks_exact_mut(positions) {
        let zeros = zeros(of_levels);
        match &mut plane[first..first + count] {
            // Padding is this narrow, and a call would take longer.
            [one] => *one = zeros,
            many => many.fill(zeros),
        }
    }
}

/// See [`crate::kernels::FramedKernel::run`]: tiles of `P` pairs of channels × `N` vectors of positions.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, const P: usize, const N: usize, const UINT2: bool>(
    framed: &Framed<'_>,
    panel: &Panel<'_>,
    scratch: &mut Vec<Line>,
    emit: &mut dyn FnMut(Emitted<'_>),
) {
    const { assert!(NR.is_multiple_of(P * PAIRED) && V::LANES.is_multiple_of(2 * WORDS)) };
    let block = N * V::LANES;
    let weights = Weights::new(LAYOUT, framed.offsets().len(), panel.bytes());
    let lines = Line::bounded(scratch, NR * block * (size_of::<u16>() + size_of::<i32>()));
    let (counts, acc) = lines.split_at_mut(NR * block * size_of::<u16>() / size_of::<Line>());
    let counts = counts.as_mut_ptr().cast::<u16>();
    // SAFETY: the lines hold so many numbers, any bytes are a number, and a line is aligned for them.
    let acc = unsafe { std::slice::from_raw_parts_mut(acc.as_mut_ptr().cast::<[[i32; WORDS]; NR / WORDS]>(), block) };
    let constants: [[i32; WORDS]; NR / WORDS] =
        std::array::from_fn(|i| std::array::from_fn(|j| i32::from_le_bytes(weights.constants[i * WORDS + j])));
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
                let offsets = offsets.clone().map(|(i, &offset)| ((from + i) * STEPS * NR / PAIRED, offset));
                // SAFETY: features as the caller says. The panel has `NR / 2` bytes for every step, a frame a block of positions at
                // every offset in every group's plane, and `counts` a block for every channel.
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
                            // SAFETY: `counts` has a block for every channel, of initialised memory as all of `scratch`, and
                            // nothing else borrows it now.
                            unsafe { *counts.add((channel + i) * block + word).cast::<[u16; WORDS]>() }
                        });
                        for (i, row) in zip::transpose_words(rows).iter().enumerate() {
                            let acc = &mut acc[position::<V>(word + i)][channel / WORDS];
                            let before = if widened { *acc } else { constants[channel / WORDS] };
                            *acc = std::array::from_fn(|j| before[j].wrapping_add(i32::from(row[j])));
                        }
                    }
                }
                (yet, widened) = (false, true);
            }
        }
        emit(Emitted { first, acc: acc.as_flattened().as_flattened() });
    }
}

/// The position of a word of the sums: a vector's even ones come before its odd ones.
#[inline(always)]
fn position<V: Vector>(word: usize) -> usize {
    let (vector, word) = (word / V::LANES, word % V::LANES);
    vector * V::LANES + word % (V::LANES / 2) * 2 + word / (V::LANES / 2)
}

/// A kernel `$kernel` with lanes = positions, in tiles of `$pairs` pairs of channels × `$vectors` vectors. The rest is as in
/// [`crate::kernels::table::channels::channels_kernel`].
macro_rules! pixels_kernel {
    (
        $kernel:ident, $frames:ident, $name:literal, $isa:expr, $vector:ty, $pairs:literal by $vectors:literal, ($states:path, $uint2_states:path),
        ($at_least:path, $float_at_least:path), $inner:literal, $features:literal
    ) => {
        #[derive(Debug)]
        struct $kernel;

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
                operands: crate::kernels::Operands,
                _: crate::kernels::Seal,
            ) -> Option<crate::kernels::Inner<'_>> {
                crate::kernels::packed_input::inner(operands, &$frames::<false>, &$frames::<true>)
            }

            epilogue_methods!(crate::kernels::table::pixels::NR, $at_least, $float_at_least, $features);
        }

        /// The inner loop, for activations of two bits or ternary ones.
        struct $frames<const UINT2: bool>;

        impl<const UINT2: bool> crate::kernels::FramedKernel for $frames<UINT2> {
            fn unit_bytes(&self) -> usize {
                crate::kernels::table::pixels::UNIT_BYTES
            }

            fn position_bytes(&self) -> usize {
                1
            }

            fn block(&self) -> usize {
                $vectors * <$vector as crate::kernels::table::Vector>::LANES
            }

            fn encode(&self, pixels: &crate::kernels::Pixels<'_>, plane: &mut [u8], first: usize, positions: usize) {
                #[target_feature(enable = $inner)]
                fn encode<const UINT2: bool>(pixels: &crate::kernels::Pixels<'_>, to: (&mut [u8], usize, usize)) {
                    crate::kernels::table::pixels::encode(pixels, to, |unit| {
                        if UINT2 { $uint2_states(unit) } else { $states(unit) }
                    });
                }
                // SAFETY: this inner loop is a kernel's that exists, so the features were detected.
                unsafe { encode::<UINT2>(pixels, (plane, first, positions)) }
            }

            fn clear(&self, of_levels: bool, count: usize, plane: &mut [u8], first: usize, positions: usize) {
                crate::kernels::table::pixels::clear(of_levels, count, plane, first, positions);
            }

            fn run(
                &self,
                framed: &crate::kernels::Framed<'_>,
                panel: &crate::kernels::Panel<'_>,
                scratch: &mut Vec<crate::kernels::Line>,
                emit: &mut dyn FnMut(crate::kernels::Emitted<'_>),
            ) {
                #[target_feature(enable = $inner)]
                fn run<const UINT2: bool>(
                    framed: &crate::kernels::Framed<'_>,
                    panel: &crate::kernels::Panel<'_>,
                    scratch: &mut Vec<crate::kernels::Line>,
                    emit: &mut dyn FnMut(crate::kernels::Emitted<'_>),
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

/// Transposition by interleaving: `log₂ n` times, rows `i` and `i + n/2` become rows `2 i` and `2 i + 1`.
mod zip {
    use super::{RUN, WORDS};

    #[inline(always)]
    pub(crate) fn transpose_bytes(mut rows: [[u8; RUN]; RUN]) -> [[u8; RUN]; RUN] {
        for _ in 0..4 {
            let mut next = rows;
            for i in 0..RUN / 2 {
                [next[2 * i], next[2 * i + 1]] = bytes(rows[i], rows[i + RUN / 2]);
            }
            rows = next;
        }
        rows
    }

    #[inline(always)]
    pub(crate) fn transpose_words(mut rows: [[u16; WORDS]; WORDS]) -> [[u16; WORDS]; WORDS] {
        for _ in 0..3 {
            let mut next = rows;
            for i in 0..WORDS / 2 {
                [next[2 * i], next[2 * i + 1]] = words(rows[i], rows[i + WORDS / 2]);
            }
            rows = next;
        }
        rows
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn bytes(a: [u8; RUN], b: [u8; RUN]) -> [[u8; RUN]; 2] {
        use std::arch::x86_64::*;
        // SAFETY: vectors and arrays are 16 bytes, any of which are valid in both; every x86-64 CPU has SSE2.
        unsafe {
            let [a, b] = std::mem::transmute::<[[u8; RUN]; 2], [__m128i; 2]>([a, b]);
            std::mem::transmute::<[__m128i; 2], [[u8; RUN]; 2]>([_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)])
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn words(a: [u16; WORDS], b: [u16; WORDS]) -> [[u16; WORDS]; 2] {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let [a, b] = std::mem::transmute::<[[u16; WORDS]; 2], [__m128i; 2]>([a, b]);
            std::mem::transmute::<[__m128i; 2], [[u16; WORDS]; 2]>([_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)])
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    fn bytes(a: [u8; RUN], b: [u8; RUN]) -> [[u8; RUN]; 2] {
        use std::arch::aarch64::*;
        // SAFETY: vectors and arrays are 16 bytes, any of which are valid in both; every AArch64 CPU has the instructions.
        unsafe {
            let [a, b] = std::mem::transmute::<[[u8; RUN]; 2], [uint8x16_t; 2]>([a, b]);
            std::mem::transmute::<[uint8x16_t; 2], [[u8; RUN]; 2]>([vzip1q_u8(a, b), vzip2q_u8(a, b)])
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    fn words(a: [u16; WORDS], b: [u16; WORDS]) -> [[u16; WORDS]; 2] {
        use std::arch::aarch64::*;
        // SAFETY: as above.
        unsafe {
            let [a, b] = std::mem::transmute::<[[u16; WORDS]; 2], [uint16x8_t; 2]>([a, b]);
            std::mem::transmute::<[uint16x8_t; 2], [[u16; WORDS]; 2]>([vzip1q_u16(a, b), vzip2q_u16(a, b)])
        }
    }
}
