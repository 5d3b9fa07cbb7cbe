//! The popcount family in portable Rust: the fallback everywhere, and the family's second opinion
//! in tests.
//!
//! Fast where `u64::count_ones` is an instruction (AArch64; x86-64 compiled with `popcnt`); on
//! baseline x86-64 it is a dozen operations, which the carry-save step of [`super`] halves. Bits
//! have no such step here.

use super::{Loop, PopcountMode, in_parts, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

const MR: usize = 2;
const NR: usize = 4;
/// Steps that [`Bits`] takes at a time: any number would do.
const STEPS: usize = 64;

/// Layout of the weights.
const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: NR };
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

impl private::Sealed for Scalar {}

impl Kernel for Scalar {
    fn name(&self) -> &'static str {
        "generic-popcount-scalar"
    }

    fn isa(&self) -> Isa {
        Isa::Scalar
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        let bits: [[&Loop; 2]; 2] =
            [[&Bits::<1, false>, &Bits::<1, true>], [&Bits::<2, false>, &Bits::<2, true>]];
        inner(operands, self, bits)
    }
}

impl TiledKernel for Scalar {
    fn mr(&self) -> usize {
        MR
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        for (rows, acc) in tiles.rows().zip(acc.as_chunks_mut().0) {
            run(tiles, rows, acc);
        }
    }
}

fn run(tiles: &Tiles<'_>, rows: [*const u8; MR], acc: &mut [i32; MR * NR]) {
    let (weights, constants) = tiles.panel::<NR>();
    let mut weights = weights.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    let mut ones = [[0u64; NR]; MR];
    let mut twos = [[0u32; NR]; MR];
    for &step in tiles.steps() {
        let mut next = || {
            std::array::from_fn::<u64, NR, _>(|_| {
                weights.next().expect("Tiles::new checked the panel")
            })
        };
        let (s, k) = (next(), next());
        for r in 0..MR {
            let at = rows[r].wrapping_add(step).cast::<u64>();
            // SAFETY: `Tiles::new` checked that every row has a unit of 16 bytes at every step.
            let (z, p) = unsafe {
                (u64::from_le(at.read_unaligned()), u64::from_le(at.add(1).read_unaligned()))
            };
            for j in 0..NR {
                let (old, o) = (ones[r][j], z | k[j]);
                ones[r][j] = old ^ o;
                let carry = (o & old) | (!o & (p ^ s[j]));
                twos[r][j] += carry.count_ones();
            }
        }
    }
    for r in 0..MR {
        for (j, constant) in constants.iter().enumerate() {
            acc[r * NR + j] = 2 * twos[r][j] as i32
                + ones[r][j].count_ones() as i32
                + i32::from_le_bytes(*constant);
        }
    }
}

/// The inner loop for bits, of `PLANES` planes.
struct Bits<const PLANES: usize, const MASKED: bool>;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for Bits<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for Bits<PLANES, MASKED> {
    fn mr(&self) -> usize {
        MR
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn epilogue(&self) -> &'static dyn TileEpilogue {
        EPILOGUE
    }

    fn mode(&self) -> PopcountMode {
        PopcountMode::Bits { masked: MASKED }
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        let step_bytes = NR * self.mode().weight_bytes();
        in_parts::<NR, STEPS>(self.mode(), tiles, acc, |offsets, weights, acc| {
            for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
                for (&offset, weights) in offsets.iter().zip(weights.chunks_exact(step_bytes)) {
                    let word = |i: usize| {
                        u64::from_le_bytes(weights[i * 8..i * 8 + 8].try_into().expect("8 bytes"))
                    };
                    for r in 0..MR {
                        let at = rows[r].wrapping_add(offset).cast::<u64>();
                        // SAFETY: `Tiles::new` checked that every row has a unit of 16 bytes at
                        // every offset.
                        let planes = unsafe { [at.read_unaligned(), at.add(1).read_unaligned()] }
                            .map(u64::from_le);
                        for j in 0..NR {
                            let exists = if MASKED { !word(NR + j) } else { u64::MAX };
                            let [low, high] =
                                planes.map(|b| ((b ^ word(j)) & exists).count_ones() as i32);
                            acc[r * NR + j] += if PLANES == 1 { high } else { low + 2 * high };
                        }
                    }
                }
            }
        });
    }
}
