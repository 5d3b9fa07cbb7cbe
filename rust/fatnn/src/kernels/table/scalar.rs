//! The product-table family in portable Rust: products looked up one by one, to check the others
//! by.

use super::pack::{self, Weights, steps};
use super::{STATES, STEPS, UINT2_STATES, entry, states, uint2_states};
use crate::cpu::{Features, Isa};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::packed_input::{
    AccBlock, PackedInput, PackedInputKernel, Panel, Pixels, inner,
};
use crate::kernels::panels::PanelWeights;

const NR: usize = 8;
/// Positions in a block.
const BLOCK: usize = 8;

/// Layout of the weights.
const LAYOUT: Layout = Layout { family: Family::Table, nr: NR, lanes: NR };
/// What follows a tile.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: it needs no features.
    const { &unsafe { Epilogue::<isa::scalar::Scalar, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Scalar;

/// Always available.
pub(crate) fn make(_: Features) -> Option<&'static dyn Kernel> {
    Some(&Scalar)
}

/// [`entry`] of every pair of groups, `[activations][weights]`; padded, so that masks do for
/// checks.
const fn products(uint2: bool) -> [[u8; 16]; 16] {
    let mut products = [[0; 16]; 16];
    let mut i = 0;
    while i < if uint2 { UINT2_STATES } else { STATES } * STATES {
        products[i / STATES][i % STATES] = entry((i / STATES) as u8, (i % STATES) as u8, uint2);
        i += 1;
    }
    products
}

impl private::Sealed for Scalar {}

impl Kernel for Scalar {
    fn name(&self) -> &'static str {
        "generic-table-scalar"
    }

    fn isa(&self) -> Isa {
        Isa::Scalar
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        inner(operands, &Frames::<false>, &Frames::<true>)
    }
}

/// The inner loop, for activations of two bits or ternary ones.
struct Frames<const UINT2: bool>;

impl<const UINT2: bool> Frames<UINT2> {
    const PRODUCTS: [[u8; 16]; 16] = products(UINT2);
}

impl<const UINT2: bool> private::Sealed for Frames<UINT2> {}

impl<const UINT2: bool> PackedInputKernel for Frames<UINT2> {
    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn panel_bytes(&self, units: usize) -> usize {
        pack::panel_bytes(LAYOUT, units)
    }

    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) -> Result<()> {
        pack::pack_panel(LAYOUT, weights, panel)
    }

    fn unit_bytes(&self) -> usize {
        STEPS
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn pack_input(&self, pixels: &Pixels<'_>, plane: &mut [u8], first: usize, _: usize) {
        super::pack_input(pixels, plane, first, if UINT2 { uint2_states } else { states });
    }

    fn pack_zeros(&self, of_levels: bool, count: usize, plane: &mut [u8], first: usize, _: usize) {
        super::pack_zeros(of_levels, count, plane, first);
    }

    fn run(
        &self,
        framed: &PackedInput<'_>,
        panel: &Panel<'_>,
        _: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        let weights = Weights::new(LAYOUT, framed.offsets().len(), panel.bytes());
        for first in (0..framed.positions()).step_by(BLOCK) {
            let mut acc = [[0i32; NR]; BLOCK];
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = std::array::from_fn(|j| i32::from_le_bytes(weights.constants[j]));
                let units = weights.steps.as_chunks::<{ STEPS * NR }>().0;
                for ((&offset, unit), &plan) in framed.offsets().iter().zip(units).zip(weights.plan)
                {
                    let at = framed.start().wrapping_add(offset + (first + i) * STEPS);
                    // SAFETY: `PackedInput::new` checked that there is a unit of every position of
                    // a block at every offset.
                    let states = unsafe { std::slice::from_raw_parts(at, STEPS) };
                    // At most 6 a step.
                    let mut sums = [0u16; NR];
                    for (&state, indices) in
                        states.iter().zip(unit.as_chunks::<NR>().0).take(steps(plan))
                    {
                        let row = &Self::PRODUCTS[usize::from(state & 15)];
                        for (sum, &index) in sums.iter_mut().zip(indices) {
                            *sum += u16::from(row[usize::from(index & 15)]);
                        }
                    }
                    // A vector's even places hold its first half.
                    for (j, acc) in acc.iter_mut().enumerate() {
                        *acc = acc.wrapping_add(i32::from(sums[j % (NR / 2) * 2 + j / (NR / 2)]));
                    }
                }
            }
            emit(AccBlock { first, acc: acc.as_flattened() });
        }
    }
}
