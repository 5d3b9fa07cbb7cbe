//! How codes are packed in memory and in files. This module packs and unpacks; it does no
//! arithmetic.
//!
//! | format | values | where |
//! | --- | --- | --- |
//! | codes | one `i8` each: -1, 0, 1, or as [`Coding`] says | input and output of this crate |
//! | [`CodesLayout`] bit planes | 64 in two 64-bit words | activations between layers, popcount kernels |
//! | [`base3`] groups | 4 per byte (3⁴ = 81) | a compact plain format |
//! | [`trits`] | 5 per byte (3⁵ = 243) | ternary weights in files |
//! | [`two_bit`] | 4 per byte | weights -3, -1, 1, 3 in files |
//! | [`signs`] | 8 per byte | weights -1, 1 in files |
//!
//! Decoders and all functions that read packed codes reject bytes that no encoder writes.

pub mod base3;
mod digits;
mod planes;
pub mod signs;
pub mod trits;
pub mod two_bit;

pub use crate::dtype::{ActType as Act, Coding, WeightKind};
pub use planes::CodesLayout;

pub(crate) use crate::dtype::MAX_THRESHOLDS;
use crate::error::{Result, bad_value};

/// `Ok` if every code is -1, 0 or 1.
///
/// # Errors
/// [`crate::Error::Value`] naming the first wrong one.
pub(crate) fn check_codes(what: &'static str, codes: &[i8]) -> Result<()> {
    match codes.iter().position(|c| !(-1..=1).contains(c)) {
        None => Ok(()),
        Some(at) => bad_value(what, "codes -1, 0 or 1", format!("{} at element {at}", codes[at])),
    }
}
