//! Memory in whole cache lines.

use crate::error::Result;
use crate::memory;

/// A cache line of memory, which vectors and tiles should not straddle: measured, a convolution
/// with a residual took a sixth less time with buffers that begin on one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CacheLine(pub [u8; 64]);

impl CacheLine {
    /// Sixteen zeros, or 64.
    pub(crate) const ZERO: Self = CacheLine([0; 64]);

    /// All lines' bytes.
    pub(crate) fn bytes(lines: &[CacheLine]) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding, and bytes have no alignment.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    /// All lines' bytes.
    pub(crate) fn bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
        // SAFETY: as above, and any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }

    /// All lines as float32.
    pub(crate) fn floats(lines: &[CacheLine]) -> &[f32] {
        // SAFETY: a line is sixteen floats without padding, more aligned than they need be; any
        // bytes are a float.
        unsafe {
            std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines) / size_of::<f32>())
        }
    }

    /// All lines as float32.
    pub(crate) fn floats_mut(lines: &mut [CacheLine]) -> &mut [f32] {
        // SAFETY: as above, and any bytes are a line.
        unsafe {
            std::slice::from_raw_parts_mut(
                lines.as_mut_ptr().cast(),
                size_of_val(lines) / size_of::<f32>(),
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

    /// Scratch memory as float32, from the first float that is in place on.
    pub(crate) fn floats_in(bytes: &mut [u8]) -> &mut [f32] {
        // SAFETY: any bytes are a float.
        unsafe { bytes.align_to_mut::<f32>().1 }
    }

    /// [`CacheLine::grow`] for a kernel's own working memory, which a constant bounds.
    pub(crate) fn bounded(lines: &mut Vec<CacheLine>, bytes: usize) -> &mut [CacheLine] {
        let count = bytes.div_ceil(size_of::<CacheLine>());
        if lines.len() < count {
            lines.resize(count, CacheLine::ZERO); // small: a constant of the kernel
        }
        &mut lines[..count]
    }

    /// At least `bytes` bytes of lines, whatever they hold.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] where there is not so much.
    pub(crate) fn grow(lines: &mut Vec<CacheLine>, bytes: usize) -> Result<&mut [CacheLine]> {
        let count = bytes.div_ceil(size_of::<CacheLine>());
        memory::grow("working memory of a convolution", lines, count, CacheLine::ZERO)?;
        Ok(&mut lines[..count])
    }
}
