//! Four codes a byte, a compact plain form: `Σ (code + 1)·3^i`, 81 states. (Product-table kernels
//! make groups of two of the same digits from planes, see `kernels/table.rs`.)
//!
//! Where the number of codes is no multiple of four, the unused places of the last byte hold code 0
//! (digit 1), which contributes nothing to a product. [`unpack`] refuses everything that [`pack`]
//! never writes.

use super::digits;
use crate::error::Result;

/// Codes in a byte.
pub const PER_BYTE: usize = 4;
/// Values a byte may have: `0..STATES`.
pub const STATES: usize = 81;

/// Bytes that `codes` codes take.
pub fn packed_len(codes: usize) -> usize {
    codes.div_ceil(PER_BYTE)
}

/// Packs `codes` into `out`, which has [`packed_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] where `out` has another size; [`crate::Error::Value`] where a code is
/// not -1, 0 or 1.
pub fn pack(codes: &[i8], out: &mut [u8]) -> Result<()> {
    digits::encode::<PER_BYTE>("base-3 groups", codes, out)
}

/// Unpacks `codes.len()` codes from `bytes`.
///
/// # Errors
/// [`crate::Error::Shape`] where `bytes` does not have [`packed_len`] bytes;
/// [`crate::Error::Value`] where a byte is above 80, or an unused place of the last one holds
/// another code than 0.
pub fn unpack(bytes: &[u8], codes: &mut [i8]) -> Result<()> {
    digits::decode::<PER_BYTE>("base-3 groups", bytes, codes)
}
