//! Base-3 packing for files, five codes per byte: `Σ (code + 1)·3^i`. That is 1.6 bits per code;
//! the information content is 1.585.
//!
//! 3⁵ = 243, so the bytes 243 to 255 are invalid. If the number of codes is not a multiple of five,
//! the last byte is padded with code 0 (digit 1). [`decode`] rejects everything else, so equal
//! codes always give equal bytes.

use super::digits;
use crate::error::Result;

/// Codes per byte.
pub const PER_BYTE: usize = 5;

/// Bytes needed for `count` codes.
pub fn encoded_len(count: usize) -> usize {
    count.div_ceil(PER_BYTE)
}

/// Encodes `codes` into `out`, which has [`encoded_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] if `out` has the wrong size; [`crate::Error::Value`] if a code is
/// not -1, 0 or 1.
pub fn encode(codes: &[i8], out: &mut [u8]) -> Result<()> {
    digits::encode::<PER_BYTE>("trits", codes, out)
}

/// Decodes `codes.len()` codes from `bytes`.
///
/// # Errors
/// [`crate::Error::Shape`] if `bytes` does not have [`encoded_len`] bytes; [`crate::Error::Value`]
/// if a byte is above 242, or the padding of the last byte is not code 0.
pub fn decode(bytes: &[u8], codes: &mut [i8]) -> Result<()> {
    digits::decode::<PER_BYTE>("trits", bytes, codes)
}
