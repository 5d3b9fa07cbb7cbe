//! Float32 matrix products: a safe interface to the `gemm` crate.

/// `out = a · b`, all row-major: `a` is `m × k`, `b` is `k × n`. Runs on the calling thread.
///
/// # Panics
/// If a slice does not have its matrix's size, which is a bug in the caller.
pub(crate) fn matmul(m: usize, n: usize, k: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    assert_eq!(Some(a.len()), m.checked_mul(k));
    assert_eq!(Some(b.len()), k.checked_mul(n));
    assert_eq!(Some(out.len()), m.checked_mul(n));
    let [n_stride, k_stride] = [n as isize, k as isize];
    // SAFETY: the sizes were just checked against the strides, and `out` is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n_stride,
            false,
            a.as_ptr(),
            1,
            k_stride,
            b.as_ptr(),
            1,
            n_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A matrix in memory: its elements, the stride between rows and the stride between columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a>(pub &'a [f32], pub [usize; 2]);

/// Terms of a sum per call of the `gemm` crate. With more, its order of additions would depend on
/// the size of the CPU's caches.
const MAX_TERMS: usize = 512;

/// `out = a · b`: `a` is `m × k`, `b` is `k × n`, `out` is row-major. Runs on the calling thread.
///
/// # Panics
/// If an index is outside its slice, which is a bug in the caller.
pub(crate) fn product([m, n, k]: [usize; 3], a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32]) {
    assert_eq!(Some(out.len()), m.checked_mul(n));
    if k == 0 {
        out.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let inside = |Matrix(data, [row_stride, column_stride]): Matrix<'_>,
                  rows: usize,
                  columns: usize| {
        let last = (rows - 1).checked_mul(row_stride).zip((columns - 1).checked_mul(column_stride));
        last.and_then(|(row, column)| row.checked_add(column)).is_some_and(|last| last < data.len())
    };
    assert!(inside(a, m, k) && inside(b, k, n));
    for first in (0..k).step_by(MAX_TERMS) {
        let terms = MAX_TERMS.min(k - first);
        let (x, y) = (&a.0[first * a.1[1]..], &b.0[first * b.1[0]..]);
        // SAFETY: the last element of each operand was just found to be inside its slice, and `out`
        // has `m × n` elements.
        unsafe {
            gemm::gemm(
                m,
                n,
                terms,
                out.as_mut_ptr(),
                1,
                n as isize,
                first > 0,
                x.as_ptr(),
                a.1[1] as isize,
                a.1[0] as isize,
                y.as_ptr(),
                b.1[1] as isize,
                b.1[0] as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
