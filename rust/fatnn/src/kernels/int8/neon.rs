//! Int8 products on AArch64.
//!
//! `smull` and `smlal` add two products in 16 bits, which cannot overflow (2·127² < 2¹⁵). `sadalp`
//! adds pairs of these to 32 bits. That is six instructions for 32 products, on every CPU with
//! Advanced SIMD. (`sdot`, which not every CPU has, would take two.)
//!
//! Tested under emulation only; its speed has not been measured on hardware.

use std::arch::aarch64::*;

use super::finish::finish;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

const WIDTH: usize = 16;
/// Largest number of rows per call of `tile`.
const ROWS: usize = 4;

static LAYOUT: Int8Layout = Int8Layout {
    id: 4,
    depth: 4,
    k_pack: 2,
    lanes: WIDTH,
    panel: WIDTH,
    rows: 1,
    element: Element::I8,
};

#[derive(Debug)]
struct Neon;

/// Available with Advanced SIMD, which every AArch64 CPU that runs an operating system has.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    features.neon.then_some(&Neon)
}

impl private::Sealed for Neon {}

impl Kernel for Neon {
    fn name(&self) -> &'static str {
        "aarch64-int8-neon"
    }

    fn isa(&self) -> Isa {
        Isa::Neon
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

impl ColumnsKernel for Neon {
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
#[target_feature(enable = "neon")]
unsafe fn tile<const MR: usize>(product: &Product<'_>, x: *const u8, out: &mut [f32]) {
    let mut rows = [x; MR];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = x.wrapping_add(r * product.rows.stride);
    }
    let weights = product.panel.as_ptr().cast::<i8>();
    let mut acc = [[vdupq_n_s32(0); 4]; MR];
    for k in 0..product.depth / 4 {
        for v in 0..2 {
            // Eight channels: the pairs of weights for two values of the reduction, then for the
            // next two.
            // SAFETY: each iteration reads two pairs of weights of 16 channels, 64 bytes.
            let w = unsafe {
                [
                    vld1q_s8(weights.add(k * 64 + v * 16)),
                    vld1q_s8(weights.add(k * 64 + 32 + v * 16)),
                ]
            };
            for (acc, row) in acc.iter_mut().zip(rows) {
                // SAFETY: each iteration reads four bytes of every row.
                let pairs = unsafe { row.add(k * 4).cast::<[i16; 2]>().read_unaligned() };
                let x = [
                    vreinterpretq_s8_s16(vdupq_n_s16(pairs[0])),
                    vreinterpretq_s8_s16(vdupq_n_s16(pairs[1])),
                ];
                let low = vmlal_s8(
                    vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0])),
                    vget_low_s8(w[1]),
                    vget_low_s8(x[1]),
                );
                let high = vmlal_high_s8(vmull_high_s8(w[0], x[0]), w[1], x[1]);
                acc[v * 2] = vpadalq_s16(acc[v * 2], low);
                acc[v * 2 + 1] = vpadalq_s16(acc[v * 2 + 1], high);
            }
        }
    }
    let mut sums = [[0; WIDTH]; MR];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<4>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` has the four elements of a vector.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
    finish(&product.finish, sums.as_flattened(), out);
}
