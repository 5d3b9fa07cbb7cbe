//! Sums, differences, products and quotients of two rows.

use super::isa::Simd;
use super::vector::{Level, VectorLoop};
use crate::scalar::Binary;

/// `out = a ∘ b` over one row.
pub(crate) struct Row<'a> {
    pub kind: Binary,
    /// Elements, and the stride between them. A stride of 0 repeats one element.
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
            Binary::Add => apply_row(a, b, out, |a, b| a + b),
            Binary::Sub => apply_row(a, b, out, |a, b| a - b),
            Binary::Mul => apply_row(a, b, out, |a, b| a * b),
            Binary::Div => apply_row(a, b, out, |a, b| a / b),
        }
    }
}

#[inline(always)]
fn apply_row(
    (a, stride_a): (&[f32], usize),
    (b, stride_b): (&[f32], usize),
    out: &mut [f32],
    f: impl Fn(f32, f32) -> f32,
) {
    match (stride_a, stride_b) {
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
                *y = f(a[i * stride_a], b[i * stride_b]);
            }
        }
    }
}

/// Computes one row.
pub(crate) fn run_row(level: Level, row: Row<'_>) {
    level.run(row);
}
