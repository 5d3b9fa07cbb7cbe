//! The product-table family in portable Rust. It looks up products one by one. Tests compare the
//! other kernels with it.

use super::pack::{self, Weights, groups};
use super::{GROUPS, STATES, UINT2_STATES, biased_product, states, uint2_states};
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

/// Layout of the packed weights.
const LAYOUT: Layout = Layout { family: Family::Table, nr: NR, lanes: NR };
/// The epilogue for tiles of `NR` columns.
const EPILOGUE: &dyn TileEpilogue = {
    // SAFETY: it needs no features.
    const { &unsafe { Epilogue::<isa::scalar::Scalar, NR, { part_width(NR) }>::new() } }
};

#[derive(Debug)]
struct Scalar;

/// Available on every CPU.
pub(crate) fn make(_: Features) -> Option<&'static dyn Kernel> {
    Some(&Scalar)
}

/// [`biased_product`] of every pair of groups, `[activations][weights]`. Rows and columns are
/// padded to 16, so that masking an index replaces the bounds check.
const fn products(uint2: bool) -> [[u8; 16]; 16] {
    let mut products = [[0; 16]; 16];
    let mut i = 0;
    while i < if uint2 { UINT2_STATES } else { STATES } * STATES {
        products[i / STATES][i % STATES] =
            biased_product((i / STATES) as u8, (i % STATES) as u8, uint2);
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
        inner(operands, &InnerLoop::<false>, &InnerLoop::<true>)
    }
}

/// The inner loop, for two-bit activations if `UINT2`, otherwise for ternary and binary ones.
struct InnerLoop<const UINT2: bool>;

impl<const UINT2: bool> InnerLoop<UINT2> {
    const PRODUCTS: [[u8; 16]; 16] = products(UINT2);
}

impl<const UINT2: bool> private::Sealed for InnerLoop<UINT2> {}

impl<const UINT2: bool> PackedInputKernel for InnerLoop<UINT2> {
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
        GROUPS
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn pack_input(&self, pixels: &Pixels<'_>, slab: &mut [u8], first: usize, _: usize) {
        super::pack_input(pixels, slab, first, if UINT2 { uint2_states } else { states });
    }

    fn pack_zeros(&self, zero_level: bool, count: usize, slab: &mut [u8], first: usize, _: usize) {
        super::pack_zeros(zero_level, count, slab, first);
    }

    fn run(
        &self,
        input: &PackedInput<'_>,
        panel: &Panel<'_>,
        _: &mut Vec<CacheLine>,
        emit: &mut dyn FnMut(AccBlock<'_>),
    ) {
        let weights = Weights::new(LAYOUT, input.offsets().len(), panel.bytes());
        for first in (0..input.positions()).step_by(BLOCK) {
            let mut acc = [[0i32; NR]; BLOCK];
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = std::array::from_fn(|j| i32::from_le_bytes(weights.constants[j]));
                let units = weights.groups.as_chunks::<{ GROUPS * NR }>().0;
                for ((&offset, unit), &plan) in input.offsets().iter().zip(units).zip(weights.plan)
                {
                    let at = input.start().wrapping_add(offset + (first + i) * GROUPS);
                    // SAFETY: `PackedInput::new` checked that every position of a block has a unit
                    // at every offset.
                    let states = unsafe { std::slice::from_raw_parts(at, GROUPS) };
                    // Each group adds at most 6, so 16 bits hold the sum.
                    let mut sums = [0u16; NR];
                    for (&state, indices) in
                        states.iter().zip(unit.as_chunks::<NR>().0).take(groups(plan))
                    {
                        let row = &Self::PRODUCTS[usize::from(state & 15)];
                        for (sum, &index) in sums.iter_mut().zip(indices) {
                            *sum += u16::from(row[usize::from(index & 15)]);
                        }
                    }
                    // The even entries of a vector hold the first half of its channels.
                    for (j, acc) in acc.iter_mut().enumerate() {
                        *acc = acc.wrapping_add(i32::from(sums[j % (NR / 2) * 2 + j / (NR / 2)]));
                    }
                }
            }
            emit(AccBlock { first, acc: acc.as_flattened() });
        }
    }
}
