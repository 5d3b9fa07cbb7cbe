//! Int8 products on AArch64.
//!
//! `smull` and `smlal` leave the sum of two products in 16 bits, which hold it (2·127² < 2¹⁵); `sadalp` adds neighbours to 32 bits: six
//! instructions for 32 products, on every CPU with Advanced SIMD. (`sdot` would take two, where it exists.)
//!
//! Tested under emulation only; no speed was measured on hardware yet.

use std::arch::aarch64::*;

use super::{Element, Int8Kernel, Int8Layout, Product, pass_methods};
use crate::cpu::{Features, Isa};

const WIDTH: usize = 16;
/// Most rows at a time.
const ROWS: usize = 4;

static LAYOUT: Int8Layout = Int8Layout {
    id: 4,
    depth: 4,
    unit: 2,
    lanes: WIDTH,
    panel: WIDTH,
    rows: 1,
    block: 16 * ROWS,
    element: Element::I8,
};

#[derive(Debug)]
struct Neon;

/// Where there is Advanced SIMD: on every AArch64 CPU that runs an operating system.
pub(super) fn make(features: Features) -> Option<&'static dyn Int8Kernel> {
    features.neon.then_some(&Neon)
}

impl Int8Kernel for Neon {
    fn name(&self) -> &'static str {
        "aarch64-int8-neon"
    }

    fn isa(&self) -> Isa {
        Isa::Neon
    }

    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, acc: &mut [i32]) {
        assert_eq!(acc.len(), product.accumulators(&LAYOUT));
        let mut row = 0;
        while row < product.count {
            let rows = (product.count - row).min(ROWS);
            // SAFETY: `self` exists, so `make` saw the feature; `Product::new` checked the sizes of rows and panel, and `acc`
            // has `product.count` rows.
            unsafe {
                let x = product.rows.as_ptr().add(row * product.stride);
                let out = acc.as_mut_ptr().add(row * WIDTH);
                match rows {
                    1 => tile::<1>(product, x, out),
                    2 => tile::<2>(product, x, out),
                    3 => tile::<3>(product, x, out),
                    _ => tile::<ROWS>(product, x, out),
                }
            }
            row += rows;
        }
    }

    pass_methods!(I8, "neon");
}

/// `MR` rows × 16 channels.
///
/// # Safety
/// From `x` on there are `MR` rows of `product`; `out` has as many rows of 16.
#[target_feature(enable = "neon")]
unsafe fn tile<const MR: usize>(product: &Product<'_>, x: *const u8, out: *mut i32) {
    let rows: [*const u8; MR] = std::array::from_fn(|r| x.wrapping_add(r * product.stride));
    let weights = product.panel.as_ptr().cast::<i8>();
    let mut acc = [[vdupq_n_s32(0); 4]; MR];
    for k in 0..product.depth / 4 {
        for v in 0..2 {
            // Eight channels: their pairs of weights for two positions, then for the next two.
            // SAFETY: a step is two positions' pairs of 16 channels, 64 bytes.
            let w = [0, 1].map(|half| unsafe { vld1q_s8(weights.add(k * 64 + half * 32 + v * 16)) });
            for (acc, row) in acc.iter_mut().zip(rows) {
                let x = [0, 1].map(|half| {
                    // SAFETY: a step is four bytes of every row.
                    let pair = unsafe { row.add(k * 4 + half * 2).cast::<i16>().read_unaligned() };
                    vreinterpretq_s8_s16(vdupq_n_s16(pair))
                });
                let low =
                    vmlal_s8(vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0])), vget_low_s8(w[1]), vget_low_s8(x[1]));
                let high = vmlal_high_s8(vmull_high_s8(w[0], x[0]), w[1], x[1]);
                acc[v * 2] = vpadalq_s16(acc[v * 2], low);
                acc[v * 2 + 1] = vpadalq_s16(acc[v * 2 + 1], high);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: `out` has `MR` rows of four vectors.
            unsafe { vst1q_s32(out.add(r * WIDTH + v * 4), *acc) };
        }
    }
}
