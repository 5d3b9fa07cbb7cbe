//! Int8 products in portable Rust.

use super::{Element, Int8Kernel, Int8Layout, Product, pass_methods};
use crate::cpu::{Features, Isa};

const WIDTH: usize = 8;

static LAYOUT: Int8Layout =
    Int8Layout { id: 1, depth: 1, unit: 1, lanes: WIDTH, panel: WIDTH, rows: 1, block: 64, element: Element::I8 };

#[derive(Debug)]
struct Scalar;

pub(super) fn make(_: Features) -> Option<&'static dyn Int8Kernel> {
    Some(&Scalar)
}

impl Int8Kernel for Scalar {
    fn name(&self) -> &'static str {
        "generic-int8-scalar"
    }

    fn isa(&self) -> Isa {
        Isa::Scalar
    }

    fn layout(&self) -> &'static Int8Layout {
        &LAYOUT
    }

    fn multiply(&self, product: &Product<'_>, acc: &mut [i32]) {
        assert_eq!(acc.len(), product.accumulators(&LAYOUT));
        for (r, acc) in acc.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            let row = &product.rows[r * product.stride..][..product.depth];
            *acc = [0; WIDTH];
            for (&x, w) in row.iter().zip(product.panel.as_chunks::<WIDTH>().0) {
                for (acc, &w) in acc.iter_mut().zip(w) {
                    *acc += i32::from(x.cast_signed()) * i32::from(w.cast_signed());
                }
            }
        }
    }

    pass_methods!(I8);
}
