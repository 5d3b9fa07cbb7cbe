//! Int8 products on AVX-512 VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, 64 products per instruction. Activations are
//! stored as code + 128, so sums start at -128·Σw. The instruction does not saturate. Six rows ×
//! four vectors of 16 channels take ten loads for 24 multiplications, so the two ports that
//! multiply are the bottleneck. One or two rows (a linear layer) use two chains of additions per
//! vector, enough to read weights at the speed of the second-level cache.

use std::arch::x86_64::*;

use super::Finish;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

const LANES: usize = 16;
/// Largest number of vectors in a panel.
const VECTORS: usize = 4;
/// Largest number of rows per call of `tile`.
const ROWS: usize = 6;

static LAYOUT: Int8Layout = Int8Layout {
    id: 3,
    depth: 4,
    k_pack: 4,
    lanes: LANES,
    panel: LANES * VECTORS,
    rows: 1,
    element: Element::Biased,
};

#[derive(Debug)]
struct Avx512;

/// Available if the CPU has AVX-512 F, BW, DQ, VL and VNNI.
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
        // SAFETY: `self` exists, so `make` detected the features. `Product::new` checked the sizes
        // of the rows and the panel, and the assertion that of `out`.
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

/// Multiplies all rows by a panel.
///
/// # Safety
/// The panel must have `NV` vectors, and `out` at least [`Product::outputs`] floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
unsafe fn panel<const NV: usize>(product: &Product<'_>, out: &mut [f32]) {
    product.tiles(ROWS, |row, rows, at| {
        // SAFETY: rows `row .. row + rows` exist, and so do their outputs from `at` on.
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

/// `MR` rows × `NV` vectors, with `CHAINS` sums each.
///
/// # Safety
/// `x` must point to `MR` rows of `product`, and `out` to as many output pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
#[inline]
unsafe fn tile<const MR: usize, const NV: usize, const CHAINS: usize>(
    product: &Product<'_>,
    x: *const u8,
    out: *mut f32,
) {
    let iterations = product.depth / 4;
    // Plain loops: `from_fn` would be compiled without the CPU features.
    let mut rows = [x; MR];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = x.wrapping_add(r * product.rows.stride);
    }
    let weights = product.panel.as_ptr().cast::<i32>();
    // SAFETY: each iteration reads `NV` vectors of weights. After the last ones, the panel has the
    // initial sums.
    let vectors = |k: usize| unsafe {
        let mut vectors = [_mm512_setzero_si512(); NV];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = _mm512_loadu_si512(weights.add((k * NV + v) * LANES).cast());
        }
        vectors
    };
    let mut acc = [[[_mm512_setzero_si512(); NV]; MR]; CHAINS];
    acc[0] = [vectors(iterations); MR];
    let iterate = |acc: &mut [[__m512i; NV]; MR], k: usize| {
        let w = vectors(k);
        for (acc, row) in acc.iter_mut().zip(rows) {
            // SAFETY: each iteration reads four bytes of every row.
            let x = _mm512_set1_epi32(unsafe { row.add(k * 4).cast::<i32>().read_unaligned() });
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = _mm512_dpbusd_epi32(*acc, x, w);
            }
        }
    };
    let whole = iterations / CHAINS * CHAINS;
    for k in (0..whole).step_by(CHAINS) {
        for (c, acc) in acc.iter_mut().enumerate() {
            iterate(acc, k + c);
        }
    }
    for k in whole..iterations {
        iterate(&mut acc[0], k);
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
    // SAFETY: the caller promises the output pixels, and `sums` has `MR` rows.
    unsafe { finish::<NV>(&product.finish, sums.0.as_flattened().as_flattened().as_ptr(), MR, out) }
}

/// Sums of `MR` rows.
#[repr(C, align(64))]
struct Sums<const MR: usize, const NV: usize>([[[i32; LANES]; NV]; MR]);

/// Converts `rows` rows of sums to floats. `out` is the first output pixel.
///
/// # Safety
/// `sums` must have `rows` rows of `NV` vectors and be aligned to a cache line. The panel must have
/// `NV` vectors. From `out` on, the channels of `rows` pixels must be writable.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn finish<const NV: usize>(
    finish: &Finish<'_>,
    sums: *const i32,
    rows: usize,
    out: *mut f32,
) {
    // SAFETY: the caller makes the same promises, and `affine` is as wide as the panel.
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
/// As [`finish`]. If `AFFINE`, `affine` must be as wide as the panel.
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
    // Only the last vector may be incomplete. Masked stores are slower, so the others use whole
    // ones.
    let whole = finish.channels / LANES;
    let rest = (1u16 << (finish.channels % LANES)) - 1;
    for v in 0..NV {
        // SAFETY: there are as many constants as the panel has channels.
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
            // SAFETY: the caller promises `rows` rows of sums and as many pixels.
            unsafe {
                let sum =
                    _mm512_cvtepi32_ps(_mm512_load_si512(sums.add((r * NV + v) * LANES).cast()));
                let mut y = _mm512_add_ps(_mm512_mul_ps(sum, scale[v]), bias[v]);
                if AFFINE {
                    y = _mm512_fmadd_ps(y, slope[v], offset[v]);
                }
                if RELU {
                    // The second operand passes through if it is NaN or -0.0, as in PyTorch's ReLU.
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
