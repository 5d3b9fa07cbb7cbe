//! Int8 products on AVX2.
//!
//! `vpmaddubsw`, the instruction for bytes, saturates: two products of 255·127 do not fit `i16`. So
//! activations are stored as `i16`, and weights are widened when they are loaded. `vpmaddwd` then
//! adds pairs of products in 32 bits: 16 products in three instructions.

use std::arch::x86_64::*;

use super::finish::finish;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

const WIDTH: usize = 16;
/// Largest number of rows per call. Their sums, two vectors of weights, one of activations and one
/// of products fill the registers.
const ROWS: usize = 6;

static LAYOUT: Int8Layout = Int8Layout {
    id: 2,
    depth: 2,
    k_pack: 2,
    lanes: WIDTH,
    panel: WIDTH,
    rows: 1,
    element: Element::I16,
};

#[derive(Debug)]
struct Avx2;

/// Available if the CPU has AVX2.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.avx2.then_some(&Avx2)
}

impl private::Sealed for Avx2 {}

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "x86_64-int8-avx2"
    }

    fn isa(&self) -> Isa {
        Isa::Avx2
    }

    fn layout(&self) -> Layout {
        LAYOUT.common()
    }

    fn layout_id(&self) -> u32 {
        LAYOUT.id
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        inner(operands, self)
    }
}

impl ColumnsKernel for Avx2 {
    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        product.tiles(ROWS, |row, rows, at| {
            let out = &mut out[at..];
            // SAFETY: `self` exists, so `make` detected the feature. `Product::new` checked the
            // sizes of the rows and the panel.
            unsafe {
                let x = product.rows.bytes.as_ptr().add(row * product.rows.stride);
                match rows {
                    1 => tile::<1>(product, x, out),
                    2 => tile::<2>(product, x, out),
                    3 => tile::<3>(product, x, out),
                    4 => tile::<4>(product, x, out),
                    5 => tile::<5>(product, x, out),
                    _ => tile::<ROWS>(product, x, out),
                }
            }
        });
    }
}

/// `MR` rows × 16 channels.
///
/// # Safety
/// `x` must point to `MR` rows of `product`.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const MR: usize>(product: &Product<'_>, x: *const u8, out: &mut [f32]) {
    // Plain loops: `from_fn` and `map` would be compiled without the CPU features.
    let mut rows = [x; MR];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = x.wrapping_add(r * product.rows.stride);
    }
    let weights = product.panel.as_ptr().cast::<__m128i>();
    let mut acc = [[_mm256_setzero_si256(); 2]; MR];
    for k in 0..product.depth / 2 {
        // SAFETY: each iteration reads 32 bytes of weights, and four bytes of every row.
        let w = unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(k * 2))),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(k * 2 + 1))),
            ]
        };
        for (acc, row) in acc.iter_mut().zip(rows) {
            // SAFETY: as above.
            let x = _mm256_set1_epi32(unsafe { row.add(k * 4).cast::<i32>().read_unaligned() });
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(x, w));
            }
        }
    }
    let mut sums = [[0; WIDTH]; MR];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<8>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` has the eight elements of a vector.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), acc) };
        }
    }
    finish(&product.finish, sums.as_flattened(), out);
}
