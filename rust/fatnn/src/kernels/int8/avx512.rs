//! Int8 products on AVX-512 VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, 64 products an instruction, and wraps around
//! where sums do not fit, as nothing here needs to: activations come as code + 128, and sums begin
//! at -128·Σw. Six rows by four vectors of 16 channels: ten loads for 24 products, so that two
//! ports of products are the bound. One row (a linear layer) runs two chains per vector, enough to
//! read weights at the speed of the second-level cache.

use std::arch::x86_64::*;

use super::Finish;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

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
    element: Element::Biased,
};

#[derive(Debug)]
struct Avx512;

/// Where the CPU has AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.avx512 && features.avx512_vnni).then_some(&Avx512)
}

impl private::Sealed for Avx512 {}

impl Kernel for Avx512 {
    fn name(&self) -> &'static str {
        "x86_64-int8-avx512"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
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

impl ColumnsKernel for Avx512 {
    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        assert!(product.outputs() <= out.len());
        // SAFETY: `self` exists, so `make` saw the features; `Product::new` checked the sizes of
        // rows and panel.
        unsafe {
            match product.width / LANES {
                1 => panel::<1>(product, out),
                2 => panel::<2>(product, out),
                3 => panel::<3>(product, out),
                _ => panel::<4>(product, out),
            }
        }
    }
}

/// # Safety
/// The panel has `NV` vectors, and `out` as many floats as [`Product::outputs`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
unsafe fn panel<const NV: usize>(product: &Product<'_>, out: &mut [f32]) {
    product.tiles(ROWS, |row, rows, at| {
        // SAFETY: rows `row .. row + rows` exist, and their outputs from `at` on.
        unsafe {
            let x = product.rows.bytes.as_ptr().add(row * product.rows.stride);
            let out = out.as_mut_ptr().add(at);
            match rows {
                1 => tile::<1, NV, 2>(product, x, out),
                2 => tile::<2, NV, 2>(product, x, out),
                3 => tile::<3, NV, 1>(product, x, out),
                4 => tile::<4, NV, 1>(product, x, out),
                5 => tile::<5, NV, 1>(product, x, out),
                _ => tile::<ROWS, NV, 1>(product, x, out),
            }
        }
    });
}

/// `MR` rows × `NV` vectors, in `CHAINS` sums each.
///
/// # Safety
/// From `x` on there are `MR` rows of `product`, and from `out` on as many output pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
#[inline]
unsafe fn tile<const MR: usize, const NV: usize, const CHAINS: usize>(
    product: &Product<'_>,
    x: *const u8,
    out: *mut f32,
) {
    let steps = product.depth / 4;
    // Loops throughout: `from_fn` would be compiled without the CPU features.
    let mut rows = [x; MR];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = x.wrapping_add(r * product.rows.stride);
    }
    let weights = product.panel.as_ptr().cast::<i32>();
    // SAFETY: a step is `NV` vectors of weights; behind the last one, the panel holds where sums
    // begin.
    let vectors = |k: usize| unsafe {
        let mut vectors = [_mm512_setzero_si512(); NV];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = _mm512_loadu_si512(weights.add((k * NV + v) * LANES).cast());
        }
        vectors
    };
    let mut acc = [[[_mm512_setzero_si512(); NV]; MR]; CHAINS];
    acc[0] = [vectors(steps); MR];
    let step = |acc: &mut [[__m512i; NV]; MR], k: usize| {
        let w = vectors(k);
        for (acc, row) in acc.iter_mut().zip(rows) {
            // SAFETY: a step is four bytes of every row.
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
    let mut sums = Sums::<MR, NV>([[[0; LANES]; NV]; MR]);
    for r in 0..MR {
        for v in 0..NV {
            let sum =
                acc[1..].iter().fold(acc[0][r][v], |sum, chain| _mm512_add_epi32(sum, chain[r][v]));
            // SAFETY: `sums` has `MR` rows of `NV` vectors.
            unsafe { _mm512_store_si512(sums.0[r][v].as_mut_ptr().cast(), sum) };
        }
    }
    // SAFETY: as the caller promises.
    unsafe { finish::<NV>(&product.finish, sums.0.as_flattened().as_flattened().as_ptr(), MR, out) }
}

/// Sums of `MR` rows.
#[repr(C, align(64))]
struct Sums<const MR: usize, const NV: usize>([[[i32; LANES]; NV]; MR]);

/// Finishes `rows` rows of sums, `NV` vectors each, that begin cache lines; `out` is the first
/// one's pixel.
///
/// # Safety
/// `sums` has so many rows; the panel has `NV` vectors; the pixels' channels may be written.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn finish<const NV: usize>(
    finish: &Finish<'_>,
    sums: *const i32,
    rows: usize,
    out: *mut f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match (finish.affine, finish.relu) {
            (None, false) => finish_rows::<NV, false, false>(finish, (&[], &[]), sums, rows, out),
            (None, true) => finish_rows::<NV, false, true>(finish, (&[], &[]), sums, rows, out),
            (Some(affine), false) => {
                finish_rows::<NV, true, false>(finish, affine, sums, rows, out)
            }
            (Some(affine), true) => finish_rows::<NV, true, true>(finish, affine, sums, rows, out),
        }
    }
}

/// # Safety
/// As [`finish`]; `affine` is as wide as the panel where it is to be applied.
#[target_feature(enable = "avx512f,fma")]
unsafe fn finish_rows<const NV: usize, const AFFINE: bool, const RELU: bool>(
    finish: &Finish<'_>,
    affine: (&[f32], &[f32]),
    sums: *const i32,
    rows: usize,
    out: *mut f32,
) {
    let zero = _mm512_setzero_ps();
    let (mut scale, mut bias, mut slope, mut offset) =
        ([zero; NV], [zero; NV], [zero; NV], [zero; NV]);
    // Vectors that are written whole; masked stores are slower.
    let whole = finish.channels / LANES;
    let rest = (1u16 << (finish.channels % LANES)) - 1;
    for v in 0..NV {
        // SAFETY: constants are as many as the panel is wide.
        unsafe {
            scale[v] = _mm512_loadu_ps(finish.scale.as_ptr().add(v * LANES));
            bias[v] = _mm512_loadu_ps(finish.bias.as_ptr().add(v * LANES));
            if AFFINE {
                slope[v] = _mm512_loadu_ps(affine.0.as_ptr().add(v * LANES));
                offset[v] = _mm512_loadu_ps(affine.1.as_ptr().add(v * LANES));
            }
        }
    }
    for r in 0..rows {
        for v in 0..NV {
            // SAFETY: `sums` has so many rows, `out` so many pixels.
            unsafe {
                let sum =
                    _mm512_cvtepi32_ps(_mm512_load_si512(sums.add((r * NV + v) * LANES).cast()));
                let mut y = _mm512_add_ps(_mm512_mul_ps(sum, scale[v]), bias[v]);
                if AFFINE {
                    y = _mm512_fmadd_ps(y, slope[v], offset[v]);
                }
                if RELU {
                    // The second operand passes through where it is NaN or -0.0, as through
                    // PyTorch's ReLU.
                    y = _mm512_max_ps(zero, y);
                }
                let out = out.wrapping_add(r * finish.pitch + v * LANES);
                if v + 1 < NV || whole == NV {
                    _mm512_storeu_ps(out, y);
                } else {
                    _mm512_mask_storeu_ps(out, rest, y);
                }
            }
        }
    }
}
