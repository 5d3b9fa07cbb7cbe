//! Float32 products: the one safe door to the `gemm` crate.

/// `out = a · b`, all row-major: `a` is `m × k`, `b` is `k × n`. On the calling thread alone.
///
/// # Panics
/// Where a slice has another size: a bug in the caller.
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
