//! Binary weights in files, eight per byte: bit `i` is 1 for weight 1 and 0 for weight -1.
//!
//! Trits would take 1.6 bits per weight. If the number of weights is not a multiple of eight, the
//! unused bits of the last byte are zero. [`decode`] rejects everything else, so equal weights
//! always give equal bytes.

use crate::dtype::WeightKind;
use crate::error::{Result, bad_value, check_len};

/// Weights per byte.
pub const PER_BYTE: usize = 8;

/// Bytes needed for `count` weights.
pub fn encoded_len(count: usize) -> usize {
    count.div_ceil(PER_BYTE)
}

/// Encodes `weights` into `out`, which has [`encoded_len`] bytes.
///
/// # Errors
/// [`crate::Error::Shape`] if `out` has the wrong size; [`crate::Error::Value`] if a weight is
/// not -1 or 1.
pub fn encode(weights: &[i8], out: &mut [u8]) -> Result<()> {
    check_len("binary weights", encoded_len(weights.len()), out.len())?;
    WeightKind::Binary.check("binary weights", weights)?;
    for (weights, out) in weights.chunks(PER_BYTE).zip(out) {
        *out = weights.iter().rev().fold(0, |byte, &w| byte << 1 | u8::from(w > 0));
    }
    Ok(())
}

/// Decodes `weights.len()` weights from `bytes`.
///
/// # Errors
/// [`crate::Error::Shape`] if `bytes` does not have [`encoded_len`] bytes; [`crate::Error::Value`]
/// if an unused bit of the last byte is set.
pub fn decode(bytes: &[u8], weights: &mut [i8]) -> Result<()> {
    check_len("binary weights", encoded_len(weights.len()), bytes.len())?;
    let unused = encoded_len(weights.len()) * PER_BYTE - weights.len();
    if let Some(&last) = bytes.last()
        && usize::from(last) >> (PER_BYTE - unused) != 0
    {
        return bad_value(
            "binary weights",
            format!("zeros in the last byte's {unused} unused bits"),
            last,
        );
    }
    for (weights, &byte) in weights.chunks_mut(PER_BYTE).zip(bytes) {
        for (i, w) in weights.iter_mut().enumerate() {
            *w = 2 * (byte >> i & 1) as i8 - 1;
        }
    }
    Ok(())
}
