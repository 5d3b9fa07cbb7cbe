//! Int8 products on AVX-512 VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, 64 products an instruction, and wraps around where sums do not fit, as
//! nothing here needs to: activations come as code + 128, and sums begin at -128·Σw. Six rows by four vectors of 16 channels:
//! ten loads for 24 products, so that two ports of products are the bound. One row (a linear layer) runs two chains per vector,
//! enough to read weights at the speed of the second-level cache.

use std::arch::x86_64::*;

use super::{Element, Int8Kernel, Int8Layout, Product, pass_methods};
use crate::cpu::{Features, Isa};

const LANES: usize = 16;
/// Most vectors in a panel.
const VECTORS: usize = 4;
/// Most rows at a time.
const ROWS: usize = 6;

static LAYOUT: Int8Layout = Int8Layout {
    id: 3,
    depth: 4,
    unit: 4,
    lanes: LANES,
    panel: LANES * VECTORS,
    rows: 1,
    block: 10 * ROWS,
    element: Element::Biased,
};

#[derive(Debug)]
struct Avx512;

/// Where the CPU has AVX-512 F, BW, DQ, VL and VNNI.
pub(super) fn make(features: Features) -> Option<&'static dyn Int8Kernel> {
    (features.avx512 && features.avx512_vnni).then_some(&Avx512)
}

impl Int8Kernel for Avx512 {
    fn name(&self) -> &'static str {
        "x86_64-int8-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, acc: &mut [i32]) {
        assert_eq!(acc.len(), product.accumulators(&LAYOUT));
        // SAFETY: `self` exists, so `make` saw the features; `Product::new` checked the sizes of rows and panel.
        unsafe {
            match product.width / LANES {
                1 => panel::<1>(product, acc),
                2 => panel::<2>(product, acc),
                3 => panel::<3>(product, acc),
                _ => panel::<4>(product, acc),
            }
        }
    }

    pass_methods!(BIASED, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
}

/// # Safety
/// `acc` has `product.count` rows of `NV` vectors, which is the panel's width.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn panel<const NV: usize>(product: &Product<'_>, acc: &mut [i32]) {
    let mut row = 0;
    while row < product.count {
        let rows = (product.count - row).min(ROWS);
        // SAFETY: rows `row .. row + rows` exist in `product` and in `acc`.
        unsafe {
            let x = product.rows.as_ptr().add(row * product.stride);
            let out = acc.as_mut_ptr().add(row * NV * LANES);
            match rows {
                1 => tile::<1, NV, 2>(product, x, out),
                2 => tile::<2, NV, 2>(product, x, out),
                3 => tile::<3, NV, 1>(product, x, out),
                4 => tile::<4, NV, 1>(product, x, out),
                5 => tile::<5, NV, 1>(product, x, out),
                _ => tile::<ROWS, NV, 1>(product, x, out),
            }
        }
        row += rows;
    }
}

/// `MR` rows × `NV` vectors, in `CHAINS` sums each.
///
/// # Safety
/// From `x` on there are `MR` rows of `product`; `out` has as many rows of `NV` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn tile<const MR: usize, const NV: usize, const CHAINS: usize>(
    product: &Product<'_>,
    x: *const u8,
    out: *mut i32,
) {
    let steps = product.depth / 4;
    let rows: [*const u8; MR] = std::array::from_fn(|r| x.wrapping_add(r * product.stride));
    let weights = product.panel.as_ptr().cast::<i32>();
    // SAFETY: behind `steps` vectors of weights per vector of channels, the panel holds where sums begin.
    let start = |v: usize| unsafe { _mm512_loadu_si512(weights.add((steps * NV + v) * LANES).cast()) };
    let mut acc = [[[_mm512_setzero_si512(); NV]; MR]; CHAINS];
    for row in &mut acc[0] {
        *row = std::array::from_fn(start);
    }
    let step = |acc: &mut [[__m512i; NV]; MR], k: usize| {
        // SAFETY: a step is `NV` vectors of weights, and four bytes of every row.
        let w: [__m512i; NV] =
            std::array::from_fn(|v| unsafe { _mm512_loadu_si512(weights.add((k * NV + v) * LANES).cast()) });
        for (acc, row) in acc.iter_mut().zip(rows) {
            // SAFETY: as above.
            let x = _mm512_set1_epi32(unsafe { row.add(k * 4).cast::<i32>().read_unaligned() });
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = _mm512_dpbusd_epi32(*acc, x, w);
            }
        }
    };
    let whole = steps / CHAINS * CHAINS;
    for k in (0..whole).step_by(CHAINS) {
        for (c, acc) in acc.iter_mut().enumerate() {
            step(acc, k + c);
        }
    }
    for k in whole..steps {
        step(&mut acc[0], k);
    }
    for r in 0..MR {
        for v in 0..NV {
            let sum = acc[1..].iter().fold(acc[0][r][v], |sum, chain| _mm512_add_epi32(sum, chain[r][v]));
            // SAFETY: `out` has `MR` rows of `NV` vectors.
            unsafe { _mm512_storeu_si512(out.add((r * NV + v) * LANES).cast(), sum) };
        }
    }
}
