//! Five codes a byte, for files: `Σ (code + 1)·3^i`, 1.6 bits a value against the 1.585 that there
//! are.
//!
//! 3⁵ = 243, so the bytes 243 to 255 are invalid. Where the number of codes is no multiple of five,
//! the unused places of the last byte hold code 0 (digit 1). [`decode`] refuses everything else, so
//! equal codes always are equal bytes.

use super::digits;
use crate::error::Result;

/// Codes in a byte.
pub const PER_BYTE: usize = 5;

/// Bytes that `codes` codes take.
pub fn encoded_len(codes: usize) -> usize {
    codes.div_ceil(PER_BYTE)
}

/// Encodes `codes` into `out`, which has [`encoded_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] where `out` has another size; [`crate::Error::Value`] where a code is
/// not -1, 0 or 1.
pub fn encode(codes: &[i8], out: &mut [u8]) -> Result<()> {
    digits::encode::<PER_BYTE>("trits", codes, out)
}

/// Decodes `codes.len()` codes from `bytes`.
///
/// # Errors
/// [`crate::Error::Shape`] where `bytes` does not have [`encoded_len`] bytes;
/// [`crate::Error::Value`] where a byte is above 242, or an unused place of the last one holds
/// another code than 0.
pub fn decode(bytes: &[u8], codes: &mut [i8]) -> Result<()> {
    digits::decode::<PER_BYTE>("trits", bytes, codes)
}
