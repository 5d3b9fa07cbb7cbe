//! Interleaves the pixels of several image rows, so that the window of a convolution is contiguous
//! in memory. In the result, a *column* is the pixels of all rows at one `x`.

/// Bytes that [`interleave`] may read after a row's pixels, and write after the last output pixel.
pub(crate) const COPY_SLACK: usize = 16;

/// Adjacent pixels, in every one of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pixels {
    /// Number of the first pixel in its row.
    pub first: usize,
    /// Number of pixels.
    pub count: usize,
    /// Bytes of each pixel that are copied.
    pub bytes: usize,
    /// Bytes from one pixel to the next.
    pub pitch: usize,
}

/// Copies pixel `x` of row `y` to `out[(x * rows.len() + y) * bytes..]`. `rows` are byte offsets in
/// `image`. Up to [`COPY_SLACK`] bytes after the last output pixel are overwritten.
///
/// # Panics
/// If pixels, or [`COPY_SLACK`] bytes after the last one, are outside the slices, which is a bug
/// in the caller.
pub(crate) fn interleave(image: &[u8], rows: &[usize], pixels: &Pixels, out: &mut [u8]) {
    let &Pixels { first, count, bytes, pitch } = pixels;
    if count == 0 {
        return;
    }
    assert!((1..=pitch).contains(&bytes));
    let fits = |slice: &[u8], from: usize, len: usize| {
        from.checked_add(len)
            .and_then(|end| end.checked_add(COPY_SLACK))
            .is_some_and(|end| end <= slice.len())
    };
    assert!(rows.iter().all(|&at| fits(image, at, (first + count) * pitch)));
    assert!(fits(out, 0, count * rows.len() * bytes));
    // SAFETY: as just checked, every copy begins at an input or output pixel inside its slice, and
    // ends at most `COPY_SLACK` bytes after it.
    unsafe {
        match bytes {
            _ if rows.len() == 1 && bytes == pitch => {
                out[..count * bytes]
                    .copy_from_slice(&image[rows[0] + first * pitch..][..count * bytes]);
            }
            1..=4 => match rows.len() {
                3 => interleave_unrolled::<3>(image, rows, pixels, out),
                5 => interleave_unrolled::<5>(image, rows, pixels, out),
                7 => interleave_unrolled::<7>(image, rows, pixels, out),
                _ => interleave_by::<4>(image, rows, pixels, out),
            },
            5..=8 => interleave_by::<8>(image, rows, pixels, out),
            9..=16 => interleave_by::<16>(image, rows, pixels, out),
            _ => {
                for (x, out) in out.chunks_exact_mut(rows.len() * bytes).take(count).enumerate() {
                    for (out, &at) in out.chunks_exact_mut(bytes).zip(rows) {
                        out.copy_from_slice(&image[at + (first + x) * pitch..][..bytes]);
                    }
                }
            }
        }
    }
}

/// As [`interleave`], but copies `N` bytes per pixel, which may be more than a pixel has. Each copy
/// overwrites the excess bytes of the copy before it.
///
/// # Safety
/// `pixels.bytes <= N <= COPY_SLACK`. Every pixel, and `COPY_SLACK` bytes after it, must be inside
/// the slices.
unsafe fn interleave_by<const N: usize>(
    image: &[u8],
    rows: &[usize],
    pixels: &Pixels,
    out: &mut [u8],
) {
    let (mut to, image) = (out.as_mut_ptr(), image.as_ptr());
    for x in pixels.first..pixels.first + pixels.count {
        for &at in rows {
            // SAFETY: the caller promises that copies stay inside the slices.
            unsafe {
                let from = image.add(at + x * pixels.pitch).cast::<[u8; N]>();
                to.cast::<[u8; N]>().write_unaligned(from.read_unaligned());
                to = to.add(pixels.bytes);
            }
        }
    }
}

/// As [`interleave_by`] with `N = 4`, unrolled for the window heights of typical first layers.
///
/// # Safety
/// As [`interleave_by`] with `N = 4`; there must be `ROWS` rows.
unsafe fn interleave_unrolled<const ROWS: usize>(
    image: &[u8],
    rows: &[usize],
    pixels: &Pixels,
    out: &mut [u8],
) {
    let mut from = [image.as_ptr(); ROWS];
    for (from, &at) in from.iter_mut().zip(rows) {
        *from = from.wrapping_add(at + pixels.first * pixels.pitch);
    }
    let mut to = out.as_mut_ptr();
    for x in 0..pixels.count {
        for from in from {
            // SAFETY: the caller promises that copies stay inside the slices.
            unsafe {
                let pixel = from.add(x * pixels.pitch).cast::<[u8; 4]>();
                to.cast::<[u8; 4]>().write_unaligned(pixel.read_unaligned());
                to = to.add(pixels.bytes);
            }
        }
    }
}

/// As [`interleave`], but reuses `out`, which must hold the result for the window above. Each
/// column keeps its last `keep` rows, which move up, and `rows` are appended at its bottom. Returns
/// `false` and changes nothing for sizes that it does not support.
///
/// # Panics
/// As [`interleave`].
pub(crate) fn roll(
    image: &[u8],
    rows: &[usize],
    keep: usize,
    pixels: &Pixels,
    out: &mut [u8],
) -> bool {
    let &Pixels { first, count, bytes, pitch } = pixels;
    let (shift, keep) = (rows.len() * bytes, keep * bytes);
    // The copy of a column's kept rows must end inside the column. The excess bytes of its last
    // pixel's copy must end before the rows that the next column keeps.
    let size = if keep <= 4 { 4 } else { keep.next_multiple_of(8) };
    if keep == 0
        || !(1..=4).contains(&bytes)
        || size > 16
        || size > keep + shift
        || 4 - bytes > shift
    {
        return false;
    }
    let fits = |slice: &[u8], from: usize, len: usize| {
        from.checked_add(len)
            .and_then(|end| end.checked_add(COPY_SLACK))
            .is_some_and(|end| end <= slice.len())
    };
    assert!(bytes <= pitch && rows.iter().all(|&at| fits(image, at, (first + count) * pitch)));
    assert!(fits(out, 0, count * (keep + shift)));
    // SAFETY: as just checked, every copy begins inside a pixel or a column, and ends at most
    // `COPY_SLACK` bytes after it.
    unsafe {
        match size {
            4 => roll_by::<4>(image, rows, keep, pixels, out),
            8 => roll_by::<8>(image, rows, keep, pixels, out),
            _ => roll_by::<16>(image, rows, keep, pixels, out),
        }
    }
    true
}

/// As [`roll`], but moves the kept rows of a column by copying `N` bytes.
///
/// # Safety
/// `N` must be at least `keep`, and copies must stay inside the slices.
unsafe fn roll_by<const N: usize>(
    image: &[u8],
    rows: &[usize],
    keep: usize,
    pixels: &Pixels,
    out: &mut [u8],
) {
    let (mut to, image) = (out.as_mut_ptr(), image.as_ptr());
    let shift = rows.len() * pixels.bytes;
    for x in pixels.first..pixels.first + pixels.count {
        // SAFETY: the caller promises that copies stay inside the slices.
        unsafe {
            let kept = to.add(shift).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(kept);
            to = to.add(keep);
            for &at in rows {
                let from = image.add(at + x * pixels.pitch).cast::<[u8; 4]>();
                to.cast::<[u8; 4]>().write_unaligned(from.read_unaligned());
                to = to.add(pixels.bytes);
            }
        }
    }
}
