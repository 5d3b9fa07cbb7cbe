//! Int8 products on Intel AMX (Sapphire Rapids and later), on Linux.
//!
//! Tiles of rows are loaded straight from the activations, at any distance between rows, and tiles
//! of weights as they were packed: nothing is expanded or copied. Two tiles of rows × two tiles of
//! channels share their operands. Sums are converted to floats 32 rows at a time, so that outputs
//! are written in the order of their addresses.

use std::arch::asm;
use std::mem::MaybeUninit;

use super::avx512;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::isa::amx::{self, SIDE, TILE_BYTES, TILE_ROW_BYTES};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

/// Largest number of channels in a panel.
const WIDTH: usize = 4 * SIDE;

static LAYOUT: Int8Layout = Int8Layout {
    id: 5,
    depth: TILE_ROW_BYTES,
    k_pack: 4,
    lanes: SIDE,
    panel: WIDTH,
    rows: SIDE,
    element: Element::I8,
};

#[derive(Debug)]
struct Amx;

/// Available if the CPU has AMX with int8 and AVX-512, and the operating system lets this process
/// use AMX.
pub(crate) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.amx_int8 && amx::allowed()).then_some(&Amx)
}

impl private::Sealed for Amx {}

impl Kernel for Amx {
    fn name(&self) -> &'static str {
        "x86_64-int8-amx"
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

    fn uses_matrix_unit(&self) -> bool {
        true
    }
}

impl ColumnsKernel for Amx {
    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn for_few_rows(&self) -> bool {
        false
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        assert!(product.outputs() <= out.len());
        // SAFETY: `self` exists, so `make` detected AVX-512 and AMX, and the operating system
        // allowed tiles; no other code of this thread uses them now. `Product::new` checked the
        // sizes of the rows, rounded up to a multiple of 16, and of the panel. The assertion
        // checked the size of `out`.
        unsafe {
            amx::configure();
            match product.width / SIDE {
                1 => run::<1>(product, out),
                2 => run::<2>(product, out),
                3 => run::<3>(product, out),
                _ => run::<4>(product, out),
            }
            amx::release();
        }
    }
}

/// Sums of 32 rows × a panel.
#[repr(C, align(64))]
struct Sums([MaybeUninit<i32>; 2 * SIDE * WIDTH]);

/// All rows × `NV` tiles of channels.
///
/// # Safety
/// The CPU must have AMX, and tiles must be configured. The panel must have `NV` tiles, and `out`
/// at least [`Product::outputs`] floats.
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn run<const NV: usize>(product: &Product<'_>, out: &mut [f32]) {
    let (rows, k_tiles) = (&product.rows, product.depth / TILE_ROW_BYTES);
    let count = (rows.lines - 1) * rows.period + rows.length;
    let period = if rows.lines == 1 { count } else { rows.period };
    let mut sums = Sums([MaybeUninit::uninit(); 2 * SIDE * WIDTH]);
    let sums = sums.0.as_mut_ptr().cast::<i32>();
    let mut row = 0;
    // The column of the next row within its line, and the number of its output pixel.
    let (mut x, mut pixel) = (0, 0);
    while row < count {
        let two = row + SIDE < count;
        for v in (0..NV).step_by(2) {
            // SAFETY: rows `row .. row + 16` (or `+ 32`, if `two`) exist, with `k_tiles` tiles.
            // So do `k_tiles` tiles of weights for each of `NV`. `sums` has room for 32 rows.
            unsafe {
                let a = rows.bytes.as_ptr().add(row * rows.stride);
                let b = product.panel.as_ptr().add(v * TILE_BYTES);
                let out = sums.add(v * SIDE);
                match (two, v + 1 < NV) {
                    (true, true) => tile_32x32::<NV>(a, rows.stride, b, k_tiles, out),
                    (true, false) => tile_32x16::<NV>(a, rows.stride, b, k_tiles, out),
                    (false, true) => tile_16x32::<NV>(a, rows.stride, b, k_tiles, out),
                    (false, false) => tile_16x16::<NV>(a, rows.stride, b, k_tiles, out),
                }
            }
        }
        let mut r = 0;
        let computed = (count - row).min(2 * SIDE);
        while r < computed {
            // Rows up to the end of the line, or unused rows up to the start of the next line.
            let run = if x < rows.length { rows.length } else { period }.min(x + computed - r) - x;
            if x < rows.length {
                // SAFETY: `sums` has that many rows, and `out` has room for all pixels up to the
                // last.
                unsafe {
                    let out = out.as_mut_ptr().add(pixel * product.finish.pitch);
                    avx512::finish::<NV>(&product.finish, sums.add(r * NV * SIDE), run, out);
                }
                pixel += run;
            }
            r += run;
            x = if x + run == period { 0 } else { x + run };
        }
        row += 2 * SIDE;
    }
}

/// 32 rows × 32 channels over `count` tiles of the reduction. Weights advance by `NV` tiles per
/// iteration, and rows of sums are `NV` tiles wide.
///
/// # Safety
/// Tiles must be configured. All addresses must hold what [`run`] states.
#[inline(always)]
unsafe fn tile_32x32<const NV: usize>(
    a: *const u8,
    stride: usize,
    b: *const u8,
    count: usize,
    out: *mut i32,
) {
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tileloadd tmm7, [{b} + {bs}*1 + 1024]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{e} + {s}*1]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {e}, 64",
            "add {b}, {next}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{o} + {os}*1 + 64], tmm1",
            "tilestored [{p} + {os}*1], tmm2",
            "tilestored [{p} + {os}*1 + 64], tmm3",
            a = inout(reg) a => _,
            e = inout(reg) a.wrapping_add(SIDE * stride) => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) TILE_ROW_BYTES,
            next = const NV * TILE_BYTES,
            n = inout(reg) count => _,
            o = in(reg) out,
            p = in(reg) out.wrapping_add(SIDE * NV * SIDE),
            os = in(reg) NV * SIDE * 4,
            options(nostack)
        );
    }
}

/// 32 rows × 16 channels over `count` tiles of the reduction. Weights advance by `NV` tiles per
/// iteration, and rows of sums are `NV` tiles wide.
///
/// # Safety
/// As [`tile_32x32`].
#[inline(always)]
unsafe fn tile_32x16<const NV: usize>(
    a: *const u8,
    stride: usize,
    b: *const u8,
    count: usize,
    out: *mut i32,
) {
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{e} + {s}*1]",
            "tdpbssd tmm1, tmm5, tmm6",
            "add {a}, 64",
            "add {e}, 64",
            "add {b}, {next}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{p} + {os}*1], tmm1",
            a = inout(reg) a => _,
            e = inout(reg) a.wrapping_add(SIDE * stride) => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) TILE_ROW_BYTES,
            next = const NV * TILE_BYTES,
            n = inout(reg) count => _,
            o = in(reg) out,
            p = in(reg) out.wrapping_add(SIDE * NV * SIDE),
            os = in(reg) NV * SIDE * 4,
            options(nostack)
        );
    }
}

/// 16 rows × 32 channels over `count` tiles of the reduction. Weights advance by `NV` tiles per
/// iteration, and rows of sums are `NV` tiles wide.
///
/// # Safety
/// As [`tile_32x32`].
#[inline(always)]
unsafe fn tile_16x32<const NV: usize>(
    a: *const u8,
    stride: usize,
    b: *const u8,
    count: usize,
    out: *mut i32,
) {
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tileloadd tmm7, [{b} + {bs}*1 + 1024]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {b}, {next}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{o} + {os}*1 + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) TILE_ROW_BYTES,
            next = const NV * TILE_BYTES,
            n = inout(reg) count => _,
            o = in(reg) out,
            os = in(reg) NV * SIDE * 4,
            options(nostack)
        );
    }
}

/// 16 rows × 16 channels over `count` tiles of the reduction. Weights advance by `NV` tiles per
/// iteration, and rows of sums are `NV` tiles wide.
///
/// # Safety
/// As [`tile_32x32`].
#[inline(always)]
unsafe fn tile_16x16<const NV: usize>(
    a: *const u8,
    stride: usize,
    b: *const u8,
    count: usize,
    out: *mut i32,
) {
    // SAFETY: the caller promises that all of these addresses are valid.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "add {a}, 64",
            "add {b}, {next}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) TILE_ROW_BYTES,
            next = const NV * TILE_BYTES,
            n = inout(reg) count => _,
            o = in(reg) out,
            os = in(reg) NV * SIDE * 4,
            options(nostack)
        );
    }
}
