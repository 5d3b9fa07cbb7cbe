//! Plain base-3 packing, four codes per byte: `Σ (code + 1)·3^i`, 81 states.
//!
//! If the number of codes is not a multiple of four, the last byte is padded with code 0 (digit 1),
//! which contributes nothing to a product. [`unpack`] rejects every byte that [`pack`] never
//! writes.
//!
//! Product-table kernels use the same digits in groups of two; they build those from bit planes
//! (`kernels/table.rs`).

use super::digits;
use crate::error::Result;

/// Codes per byte.
pub const PER_BYTE: usize = 4;
/// Number of valid byte values: `0..STATES`.
pub const STATES: usize = 81;

/// Bytes needed for `count` codes.
pub fn packed_len(count: usize) -> usize {
    count.div_ceil(PER_BYTE)
}

/// Packs `codes` into `out`, which has [`packed_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] if `out` has the wrong size; [`crate::Error::Value`] if a code is
/// not -1, 0 or 1.
pub fn pack(codes: &[i8], out: &mut [u8]) -> Result<()> {
    digits::encode::<PER_BYTE>("base-3 groups", codes, out)
}

/// Unpacks `codes.len()` codes from `bytes`.
///
/// # Errors
/// [`crate::Error::Shape`] if `bytes` does not have [`packed_len`] bytes; [`crate::Error::Value`]
/// if a byte is above 80, or the padding of the last byte is not code 0.
pub fn unpack(bytes: &[u8], codes: &mut [i8]) -> Result<()> {
    digits::decode::<PER_BYTE>("base-3 groups", bytes, codes)
}
