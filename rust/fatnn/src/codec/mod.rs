//! Codes in memory and in files: what they stand for, packing and unpacking, no arithmetic on
//! values.
//!
//! | format | values | where |
//! | --- | --- | --- |
//! | codes | one `i8`: -1, 0, 1, or what [`Coding`] says | the plain form, at the borders |
//! | [`CodesLayout`] planes | 64 in two words of 64 bits | activations between layers, popcount kernels |
//! | [`base3`] groups | 4 in a byte (3⁴ = 81) | a compact plain form; product tables have groups of two of the same digits |
//! | [`trits`] | 5 in a byte (3⁵ = 243) | ternary weights in files |
//! | [`two_bit`] | 4 in a byte | weights -3, -1, 1, 3 in files |
//! | [`signs`] | 8 in a byte | weights -1, 1 in files |
//!
//! One rule for bytes that are no codes: decoders and every function that reads packed codes refuse
//! them.

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

/// `Ok` where every code is -1, 0 or 1.
///
/// # Errors
/// [`crate::Error::Value`] naming the first that is not.
pub(crate) fn check_codes(what: &'static str, codes: &[i8]) -> Result<()> {
    match codes.iter().position(|c| !(-1..=1).contains(c)) {
        None => Ok(()),
        Some(at) => bad_value(what, "codes -1, 0 or 1", format!("{} at element {at}", codes[at])),
    }
}
