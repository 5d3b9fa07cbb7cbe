//! Memory in whole cache lines.

use crate::error::Result;
use crate::memory;

/// One cache line. Vectors and tiles should not straddle cache lines: with aligned buffers, a
/// convolution with a residual took a sixth less time.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CacheLine(pub [u8; 64]);

impl CacheLine {
    /// A line of zeros: sixteen floats or 64 bytes.
    pub(crate) const ZERO: Self = CacheLine([0; 64]);

    /// The bytes of all lines.
    pub(crate) fn bytes(lines: &[CacheLine]) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding, and bytes need no alignment.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    /// The bytes of all lines.
    pub(crate) fn bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
        // SAFETY: as in `bytes`; and a line may hold any bytes.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }

    /// The floats of all lines.
    pub(crate) fn floats(lines: &[CacheLine]) -> &[f32] {
        // SAFETY: a line has the size of sixteen floats, no padding, and more than their alignment.
        // Any bytes are a valid float.
        unsafe {
            std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines) / size_of::<f32>())
        }
    }

    /// The floats of all lines.
    pub(crate) fn floats_mut(lines: &mut [CacheLine]) -> &mut [f32] {
        // SAFETY: as in `floats`; and a line may hold any bytes.
        unsafe {
            std::slice::from_raw_parts_mut(
                lines.as_mut_ptr().cast(),
                size_of_val(lines) / size_of::<f32>(),
            )
        }
    }

    /// All lines as int32: sixteen accumulators each.
    pub(crate) fn sums_mut(lines: &mut [CacheLine]) -> &mut [i32] {
        // SAFETY: a line is sixteen numbers without padding, more aligned than they need be; any
        // bytes are a number, and any numbers are a line.
        unsafe {
            std::slice::from_raw_parts_mut(
                lines.as_mut_ptr().cast(),
                size_of_val(lines) / size_of::<i32>(),
            )
        }
    }

    /// All lines as int64.
    pub(crate) fn integers(lines: &[CacheLine]) -> &[i64] {
        // SAFETY: a line is eight integers without padding, more aligned than they need be; any
        // bytes are an integer.
        unsafe {
            std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines) / size_of::<i64>())
        }
    }

    /// All lines as int64.
    pub(crate) fn integers_mut(lines: &mut [CacheLine]) -> &mut [i64] {
        // SAFETY: as above, and any bytes are a line.
        unsafe {
            std::slice::from_raw_parts_mut(
                lines.as_mut_ptr().cast(),
                size_of_val(lines) / size_of::<i64>(),
            )
        }
    }

    /// The part of scratch memory that is aligned for float32.
    pub(crate) fn floats_in(bytes: &mut [u8]) -> &mut [f32] {
        // SAFETY: any bytes are a valid float.
        unsafe { bytes.align_to_mut::<f32>().1 }
    }

    /// As [`CacheLine::grow`], for scratch memory of a kernel, whose size is bounded by a constant.
    pub(crate) fn bounded(lines: &mut Vec<CacheLine>, bytes: usize) -> &mut [CacheLine] {
        let count = bytes.div_ceil(size_of::<CacheLine>());
        if lines.len() < count {
            lines.resize(count, CacheLine::ZERO); // small: bounded by a constant of the kernel
        }
        &mut lines[..count]
    }

    /// Grows `lines` to at least `bytes` bytes and returns as many; their contents are unspecified.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is not enough memory.
    pub(crate) fn grow(lines: &mut Vec<CacheLine>, bytes: usize) -> Result<&mut [CacheLine]> {
        let count = bytes.div_ceil(size_of::<CacheLine>());
        memory::grow("working memory of a convolution", lines, count, CacheLine::ZERO)?;
        Ok(&mut lines[..count])
    }
}
