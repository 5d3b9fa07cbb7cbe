//! Sums, differences, products and quotients of two rows.

use super::isa::Simd;
use super::vector::{Level, VectorLoop};
use crate::scalar::Binary;

/// `out = a ∘ b` over one row, each operand of which stands at a distance of 0, 1 or more.
pub(crate) struct Row<'a> {
    pub kind: Binary,
    /// Elements, and the distance from one to the next.
    pub a: (&'a [f32], usize),
    pub b: (&'a [f32], usize),
    pub out: &'a mut [f32],
}

impl VectorLoop for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { kind, a, b, out } = self;
        match kind {
            Binary::Add => row(a, b, out, |a, b| a + b),
            Binary::Sub => row(a, b, out, |a, b| a - b),
            Binary::Mul => row(a, b, out, |a, b| a * b),
            Binary::Div => row(a, b, out, |a, b| a / b),
        }
    }
}

#[inline(always)]
fn row(
    (a, sa): (&[f32], usize),
    (b, sb): (&[f32], usize),
    out: &mut [f32],
    f: impl Fn(f32, f32) -> f32,
) {
    match (sa, sb) {
        (1, 1) => {
            for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        }
        (1, 0) => {
            let b = b[0];
            for (y, &a) in out.iter_mut().zip(a) {
                *y = f(a, b);
            }
        }
        (0, 1) => {
            let a = a[0];
            for (y, &b) in out.iter_mut().zip(b) {
                *y = f(a, b);
            }
        }
        _ => {
            for (i, y) in out.iter_mut().enumerate() {
                *y = f(a[i * sa], b[i * sb]);
            }
        }
    }
}

/// Computes one row.
pub(crate) fn run_row(level: Level, row: Row<'_>) {
    level.run(row);
}
