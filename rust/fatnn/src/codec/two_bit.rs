//! Two-bit weights (-3, -1, 1, 3) in files, four per byte: `Σ (w + 3) / 2 · 4^i`.
//!
//! If the number of weights is not a multiple of four, the unused bits of the last byte are zero.
//! [`decode`] rejects everything else, so equal weights always give equal bytes.

use crate::error::{Result, bad_value, check_len};

/// Weights per byte.
pub const PER_BYTE: usize = 4;

/// Bytes needed for `count` weights.
pub fn encoded_len(count: usize) -> usize {
    count.div_ceil(PER_BYTE)
}

/// `Ok` if every weight is -3, -1, 1 or 3.
///
/// # Errors
/// [`crate::Error::Value`] naming the first wrong one.
pub(crate) fn check(what: &'static str, weights: &[i8]) -> Result<()> {
    match weights.iter().position(|w| ![-3, -1, 1, 3].contains(w)) {
        None => Ok(()),
        Some(at) => {
            bad_value(what, "weights -3, -1, 1 or 3", format!("{} at element {at}", weights[at]))
        }
    }
}

/// Encodes `weights` into `out`, which has [`encoded_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] if `out` has the wrong size; [`crate::Error::Value`] if a weight is
/// not -3, -1, 1 or 3.
pub fn encode(weights: &[i8], out: &mut [u8]) -> Result<()> {
    check_len("two-bit weights", encoded_len(weights.len()), out.len())?;
    check("two-bit weights", weights)?;
    for (weights, out) in weights.chunks(PER_BYTE).zip(out) {
        *out = weights.iter().rev().fold(0, |byte, &w| byte << 2 | ((w + 3) / 2) as u8);
    }
    Ok(())
}

/// Decodes `weights.len()` weights from `bytes`.
///
/// [`crate::Error::Shape`] if `bytes` does not have [`encoded_len`] bytes; [`crate::Error::Value`]
/// if an unused bit of the last byte is set.
pub fn decode(bytes: &[u8], weights: &mut [i8]) -> Result<()> {
    check_len("two-bit weights", encoded_len(weights.len()), bytes.len())?;
    let unused = encoded_len(weights.len()) * PER_BYTE - weights.len();
    if let Some(&last) = bytes.last()
        && usize::from(last) >> (2 * (PER_BYTE - unused)) != 0
    {
        return bad_value(
            "two-bit weights",
            format!("zeros in the last byte's {unused} unused pairs of bits"),
            last,
        );
    }
    for (weights, &byte) in weights.chunks_mut(PER_BYTE).zip(bytes) {
        for (i, w) in weights.iter_mut().enumerate() {
            *w = 2 * (byte >> (2 * i) & 3) as i8 - 3;
        }
    }
    Ok(())
}
