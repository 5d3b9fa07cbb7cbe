//! Pixels of several image rows, interleaved: what makes the window of a convolution one piece of
//! memory.

/// Bytes that [`interleave`] may read behind a row's pixels, and write behind the last one's place.
pub(crate) const COPY_SLACK: usize = 16;

/// Neighbouring pixels of every row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pixels {
    /// The first one's number in the row.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Bytes to be copied of each.
    pub bytes: usize,
    /// Bytes from one to the next.
    pub pitch: usize,
}

/// `out[(x * rows.len() + y) * bytes..]` becomes the bytes of pixel `x` of row `y`. Rows are byte
/// offsets in `image`. Up to [`COPY_SLACK`] bytes behind the last pixel's place in `out` are
/// overwritten.
///
/// # Panics
/// Where pixels, or [`COPY_SLACK`] bytes behind the last, are outside the slices: a bug in the
/// caller.
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
    // SAFETY: just checked: every copy begins at a pixel, or its place, and ends at most
    // `COPY_SLACK` bytes behind it.
    unsafe {
        match bytes {
            _ if rows.len() == 1 && bytes == pitch => {
                out[..count * bytes]
                    .copy_from_slice(&image[rows[0] + first * pitch..][..count * bytes]);
            }
            1..=4 => match rows.len() {
                3 => unrolled::<3>(image, rows, pixels, out),
                5 => unrolled::<5>(image, rows, pixels, out),
                7 => unrolled::<7>(image, rows, pixels, out),
                _ => short::<4>(image, rows, pixels, out),
            },
            5..=8 => short::<8>(image, rows, pixels, out),
            9..=16 => short::<16>(image, rows, pixels, out),
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

/// As [`interleave`], in copies of `N` bytes, at least a pixel's: each overwrites what the last one
/// wrote too much.
///
/// # Safety
/// `pixels.bytes <= N <= COPY_SLACK`, and every pixel, and `COPY_SLACK` bytes behind it, is inside
/// the slices.
unsafe fn short<const N: usize>(image: &[u8], rows: &[usize], pixels: &Pixels, out: &mut [u8]) {
    let (mut to, image) = (out.as_mut_ptr(), image.as_ptr());
    for x in pixels.first..pixels.first + pixels.count {
        for &at in rows {
            // SAFETY: as the caller promises.
            unsafe {
                let from = image.add(at + x * pixels.pitch).cast::<[u8; N]>();
                to.cast::<[u8; N]>().write_unaligned(from.read_unaligned());
                to = to.add(pixels.bytes);
            }
        }
    }
}

/// As [`short`] with copies of four bytes, for the heights of windows that first layers have.
///
/// # Safety
/// As [`short`]; there are `ROWS` rows.
unsafe fn unrolled<const ROWS: usize>(
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
            // SAFETY: as the caller promises.
            unsafe {
                let pixel = from.add(x * pixels.pitch).cast::<[u8; 4]>();
                to.cast::<[u8; 4]>().write_unaligned(pixel.read_unaligned());
                to = to.add(pixels.bytes);
            }
        }
    }
}

/// [`interleave`] where `out` holds what it made of the window above, of `keep` more rows: columns
/// move up, and `rows` are those that come in at the bottom. `false`, and nothing done, for sizes
/// that it is not made for.
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
    // A column's copy must end inside it, and what the last row's copy writes too much where the
    // next column's begins to move.
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
    // SAFETY: just checked: every copy begins inside a pixel or a column, and ends at most
    // `COPY_SLACK` bytes behind it.
    unsafe {
        match size {
            4 => roll_by::<4>(image, rows, keep, pixels, out),
            8 => roll_by::<8>(image, rows, keep, pixels, out),
            _ => roll_by::<16>(image, rows, keep, pixels, out),
        }
    }
    true
}

/// # Safety
/// `N` is at least `keep`; copies stay inside the slices.
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
        // SAFETY: as the caller promises.
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
