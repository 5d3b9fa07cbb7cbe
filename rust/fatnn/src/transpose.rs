//! Conversion between channels-first and channels-last memory.

/// The memory order of float activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelOrder {
    /// `batch × channels × pixels`, PyTorch's default.
    ChannelsFirst,
    /// `batch × pixels × channels`.
    ChannelsLast,
}

/// Transposes each matrix of `rows × columns` to `columns × rows`.
pub(crate) fn transpose(x: &[f32], out: &mut [f32], rows: usize, columns: usize) {
    /// Side of a square block that fits in the first-level cache.
    const SIDE: usize = 16;
    if rows == 1 || columns == 1 {
        out.copy_from_slice(x);
        return;
    }
    // Chunks of size 0 would panic.
    if x.is_empty() {
        return;
    }
    // Few rows (images): the blocked loop below takes five times as long on three rows.
    match rows {
        2 => return interleave::<2>(x, out, columns),
        3 => return interleave::<3>(x, out, columns),
        4 => return interleave::<4>(x, out, columns),
        _ => (),
    }
    for (x, out) in x.chunks_exact(rows * columns).zip(out.chunks_exact_mut(rows * columns)) {
        for r0 in (0..rows).step_by(SIDE) {
            let r1 = rows.min(r0 + SIDE);
            for c0 in (0..columns).step_by(SIDE) {
                for c in c0..columns.min(c0 + SIDE) {
                    for (out, r) in out[c * rows + r0..c * rows + r1].iter_mut().zip(r0..) {
                        *out = x[r * columns + c];
                    }
                }
            }
        }
    }
}

/// [`transpose`] for few rows.
fn interleave<const ROWS: usize>(x: &[f32], out: &mut [f32], columns: usize) {
    for (x, out) in x.chunks_exact(ROWS * columns).zip(out.chunks_exact_mut(ROWS * columns)) {
        let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &x[r * columns..(r + 1) * columns]);
        for (c, out) in out.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            for r in 0..ROWS {
                out[r] = rows[r][c];
            }
        }
    }
}
