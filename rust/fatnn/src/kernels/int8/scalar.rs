//! Int8 products in portable Rust.

use super::finish::finish;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::{ColumnsKernel, Element, Int8Layout, Product, inner};
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, private};

const WIDTH: usize = 8;

static LAYOUT: Int8Layout = Int8Layout {
    id: 1,
    depth: 1,
    k_pack: 1,
    lanes: WIDTH,
    panel: WIDTH,
    rows: 1,
    element: Element::I8,
};

#[derive(Debug)]
struct Scalar;

pub(crate) fn make(_: Features) -> Option<&'static dyn Kernel> {
    Some(&Scalar)
}

impl private::Sealed for Scalar {}

impl Kernel for Scalar {
    fn name(&self) -> &'static str {
        "generic-int8-scalar"
    }

    fn isa(&self) -> Isa {
        Isa::Scalar
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

impl ColumnsKernel for Scalar {
    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        product.tiles(1, |row, _, at| {
            let row = &product.rows.bytes[row * product.rows.stride..][..product.depth];
            let acc = sums(row, product.panel.as_chunks().0);
            finish(&product.finish, &acc, &mut out[at..]);
        });
    }
}

/// A separate function, so that compilers see only this loop and vectorise it.
#[inline(never)]
fn sums(row: &[u8], panel: &[[u8; WIDTH]]) -> [i32; WIDTH] {
    let mut acc = [0; WIDTH];
    for (&x, w) in row.iter().zip(panel) {
        for (acc, &w) in acc.iter_mut().zip(w) {
            *acc += i32::from(x.cast_signed()) * i32::from(w.cast_signed());
        }
    }
    acc
}
