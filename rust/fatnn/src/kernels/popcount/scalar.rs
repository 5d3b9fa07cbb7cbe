//! The popcount family in portable Rust. It is the fallback on every CPU, and tests compare the
//! other kernels with it.
//!
//! It is fast if `u64::count_ones` is one instruction (AArch64; x86-64 compiled with `popcnt`). On
//! baseline x86-64 it takes a dozen operations, and the adder of [`super`] halves their number.
//! Binary and two-bit activations have no such adder.

use super::{PopcountMode, TiledLoop, for_each_part, inner};
use crate::cpu::{Features, Isa};
use crate::kernels::epilogue::{Epilogue, TileEpilogue, part_width};
use crate::kernels::isa;
use crate::kernels::kernel::{Family, Inner, Kernel, Layout, OperandTypes, private};
use crate::kernels::tiled::{TiledKernel, Tiles};

const MR: usize = 2;
const NR: usize = 4;
/// Chunks that [`BitsLoop`] processes together. Any number would do.
const CHUNKS: usize = 64;

/// Layout of the packed weights.
const LAYOUT: Layout = Layout { family: Family::Popcount, nr: NR, lanes: NR };
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
        let bits: [[&TiledLoop; 2]; 2] = [
            [&BitsLoop::<1, false>, &BitsLoop::<1, true>],
            [&BitsLoop::<2, false>, &BitsLoop::<2, true>],
        ];
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
    for &offset in tiles.offsets() {
        let mut next = || {
            std::array::from_fn::<u64, NR, _>(|_| {
                weights.next().expect("Tiles::new checked the panel")
            })
        };
        let (s, k) = (next(), next());
        for r in 0..MR {
            let at = rows[r].wrapping_add(offset).cast::<u64>();
            // SAFETY: `Tiles::new` checked that every row has a unit of 16 bytes at every offset.
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

/// The inner loop for activations of `PLANES` bit planes.
struct BitsLoop<const PLANES: usize, const MASKED: bool>;

impl<const PLANES: usize, const MASKED: bool> private::Sealed for BitsLoop<PLANES, MASKED> {}

impl<const PLANES: usize, const MASKED: bool> TiledKernel for BitsLoop<PLANES, MASKED> {
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
        let chunk_bytes = NR * self.mode().weight_bytes();
        for_each_part::<NR, CHUNKS>(self.mode(), tiles, acc, |offsets, weights, acc| {
            for (rows, acc) in tiles.rows::<MR>().zip(acc.as_chunks_mut::<{ MR * NR }>().0) {
                for (&offset, weights) in offsets.iter().zip(weights.chunks_exact(chunk_bytes)) {
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
                            let nonzero = if MASKED { !word(NR + j) } else { u64::MAX };
                            let [low, high] =
                                planes.map(|b| ((b ^ word(j)) & nonzero).count_ones() as i32);
                            acc[r * NR + j] += if PLANES == 1 { high } else { low + 2 * high };
                        }
                    }
                }
            }
        });
    }
}
