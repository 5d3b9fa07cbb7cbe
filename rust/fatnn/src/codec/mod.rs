//! Codes in memory and in files: packing and unpacking, no arithmetic on values.
//!
//! | format | values | where |
//! | --- | --- | --- |
//! | codes | one `i8` in {-1, 0, 1} | the plain form, at the borders |
//! | [`CodesLayout`] planes | 64 in two words of 64 bits | activations between layers, popcount kernels |
//! | [`base3`] groups | 4 in a byte (3⁴ = 81) | a compact plain form; product tables have groups of two of the same digits |
//! | [`trits`] | 5 in a byte (3⁵ = 243) | weights in files |

pub mod base3;
mod digits;
mod planes;
pub mod trits;

pub use planes::CodesLayout;

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
