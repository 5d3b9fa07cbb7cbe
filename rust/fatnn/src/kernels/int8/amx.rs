//! Int8 products on Intel AMX (Sapphire Rapids and later), on Linux.
//!
//! Rows are loaded into tiles where they lie, whatever their distance, and weights as they were packed: nothing is expanded or
//! copied. Two tiles of rows × two tiles of channels share their operands.

use std::arch::asm;

use super::{Element, Int8Kernel, Int8Layout, Product, pass_methods};
use crate::cpu::{Features, Isa};
use crate::kernels::matrix_amx;

/// Rows, and channels, of a hardware tile.
const SIDE: usize = 16;
/// Channels in a panel: two hardware tiles.
const WIDTH: usize = 2 * SIDE;
/// Bytes of the reduction in a hardware tile.
const DEPTH: usize = 64;

static LAYOUT: Int8Layout = Int8Layout {
    id: 5,
    depth: DEPTH,
    unit: 4,
    lanes: SIDE,
    panel: WIDTH,
    rows: SIDE,
    block: 4 * SIDE,
    element: Element::I8,
};

#[derive(Debug)]
struct Amx;

/// Where the CPU has AMX with int8 and AVX-512, and the operating system lets this process use it.
pub(super) fn make(features: Features) -> Option<&'static dyn Int8Kernel> {
    (features.amx_int8 && matrix_amx::allowed()).then_some(&Amx)
}

impl Int8Kernel for Amx {
    fn name(&self) -> &'static str {
        "x86_64-int8-amx"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn for_few_rows(&self) -> bool {
        false
    }

    fn multiply(&self, product: &Product<'_>, acc: &mut [i32]) {
        assert_eq!(acc.len(), product.accumulators(&LAYOUT));
        // SAFETY: `self` exists, so `make` saw AMX and was allowed tiles, of which no other code of this thread holds any;
        // `Product::new` checked the sizes of rows, up to a multiple of 16, and of the panel.
        unsafe {
            matrix_amx::configure();
            match product.width {
                SIDE => run::<1>(product, acc),
                _ => run::<2>(product, acc),
            }
            matrix_amx::release();
        }
    }

    pass_methods!(I8, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
}

/// All rows × `NV` tiles of channels.
///
/// # Safety
/// Tiles are configured; `acc` has rows up to a multiple of 16, of `NV` tiles.
unsafe fn run<const NV: usize>(product: &Product<'_>, acc: &mut [i32]) {
    let (count, steps) = (product.count, product.depth / DEPTH);
    let b = product.panel.as_ptr();
    let mut row = 0;
    while row < count {
        let two = row + SIDE < count;
        // SAFETY: rows `row .. row + 16` (or 32, where `two`) exist; so do `steps` tiles of them, and of weights for each of `NV`.
        unsafe {
            let a = product.rows.as_ptr().add(row * product.stride);
            let out = acc.as_mut_ptr().add(row * NV * SIDE);
            match (NV, two) {
                (1, _) => narrow(a, product.stride, b, steps, out),
                (_, true) => pair(a, product.stride, b, steps, out),
                (_, false) => single(a, product.stride, b, steps, out),
            }
        }
        row += if two && NV == 2 { 2 * SIDE } else { SIDE };
    }
}

/// 32 rows × 32 channels over `count` tiles of the reduction.
///
/// # Safety
/// Tiles are configured; all addresses hold what [`run`] says.
#[inline(always)]
unsafe fn pair(a: *const u8, stride: usize, b: *const u8, count: usize, out: *mut i32) {
    // SAFETY: the caller vouches for every address; the second row tile begins 16 rows below the first.
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
            "add {b}, 2048",
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
            bs = in(reg) DEPTH,
            n = inout(reg) count => _,
            o = in(reg) out,
            p = in(reg) out.wrapping_add(SIDE * WIDTH),
            os = in(reg) WIDTH * 4,
            options(nostack)
        );
    }
}

/// 16 rows × 32 channels over `count` tiles of the reduction.
///
/// # Safety
/// As [`pair`].
#[inline(always)]
unsafe fn single(a: *const u8, stride: usize, b: *const u8, count: usize, out: *mut i32) {
    // SAFETY: the caller vouches for every address.
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
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{o} + {os}*1 + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) DEPTH,
            n = inout(reg) count => _,
            o = in(reg) out,
            os = in(reg) WIDTH * 4,
            options(nostack)
        );
    }
}

/// 16 rows × 16 channels over `count` tiles of the reduction.
///
/// # Safety
/// As [`pair`].
#[inline(always)]
unsafe fn narrow(a: *const u8, stride: usize, b: *const u8, count: usize, out: *mut i32) {
    // SAFETY: the caller vouches for every address.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "add {a}, 64",
            "add {b}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            s = in(reg) stride,
            bs = in(reg) DEPTH,
            n = inout(reg) count => _,
            o = in(reg) out,
            os = in(reg) SIDE * 4,
            options(nostack)
        );
    }
}
