//! Codes in memory and in files: what they stand for, packing and unpacking, no arithmetic on values.
//!
//! | format | values | where |
//! | --- | --- | --- |
//! | codes | one `i8`: -1, 0, 1, or what [`Coding`] says | the plain form, at the borders |
//! | [`CodesLayout`] planes | 64 in two words of 64 bits | activations between layers, popcount kernels |
//! | [`base3`] groups | 4 in a byte (3⁴ = 81) | a compact plain form; product tables have groups of two of the same digits |
//! | [`trits`] | 5 in a byte (3⁵ = 243) | ternary weights in files |
//! | [`two_bit`] | 4 in a byte | weights -3, -1, 1, 3 in files |
//!
//! One rule for bytes that are no codes: decoders and every function that reads packed codes refuse them.

pub mod base3;
mod digits;
mod planes;
pub mod trits;
pub mod two_bit;

pub use planes::CodesLayout;

use crate::error::{Result, bad_value};

/// How the two planes of a unit write codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// -1, 0, 1, as `z = [x = 0]` and `p = [x ≥ 0]`: FATNN's code.
    Ternary,
    /// 0, 1, 2, 3 in binary: the low bit, then the high bit. Level 0 has no bit set.
    Uint2,
}

impl Coding {
    /// Thresholds between its levels, one less than there are levels.
    pub fn thresholds(self) -> usize {
        match self {
            Coding::Ternary => 2,
            Coding::Uint2 => 3,
        }
    }

    /// The lowest code, which no threshold was reached for.
    pub(crate) fn lowest(self) -> i8 {
        match self {
            Coding::Ternary => -1,
            Coding::Uint2 => 0,
        }
    }

    /// The planes of values of which `reached[i]` says whether they reach threshold `i`; with two thresholds `reached[2]` is
    /// not looked at.
    #[inline(always)]
    pub(crate) fn planes(self, [first, second, third]: [u64; MAX_THRESHOLDS]) -> [u64; 2] {
        match self {
            Coding::Ternary => [first & !second, first],
            Coding::Uint2 => [first & !second | third, second],
        }
    }

    /// `Ok` where every code is one of this coding's.
    pub(crate) fn check(self, codes: &[i8]) -> Result<()> {
        match self {
            Coding::Ternary => check_codes("codes", codes),
            Coding::Uint2 => match codes.iter().position(|c| !(0..=3).contains(c)) {
                None => Ok(()),
                Some(at) => bad_value("codes", "codes 0, 1, 2 or 3", format!("{} at element {at}", codes[at])),
            },
        }
    }
}

/// Most thresholds of any [`Coding`].
pub(crate) const MAX_THRESHOLDS: usize = 3;

/// What a layer's activation codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Ternary codes as they are: -1, 0, 1 (binary ones are two of them).
    Full,
    /// Ternary codes plus one: levels 0, 1, 2, behind a ReLU.
    Half,
    /// Two bits: levels 0, 1, 2, 3, behind a ReLU.
    Uint2,
    /// One bit: the levels 0 and 1 of [`Act::Half`], written like those. (Signs, -1 and 1, are ternary codes: padding gives
    /// them a third level.)
    Binary,
}

impl Act {
    /// Every kind there is.
    pub const ALL: [Act; 4] = [Act::Full, Act::Half, Act::Uint2, Act::Binary];

    /// Its name, as bindings have it.
    pub fn name(self) -> &'static str {
        match self {
            Act::Full => "full",
            Act::Half => "half",
            Act::Uint2 => "uint2",
            Act::Binary => "binary",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match Act::ALL.into_iter().find(|act| act.name() == name) {
            Some(act) => Ok(act),
            None => bad_value("act", "\"full\", \"half\", \"uint2\" or \"binary\"", format!("{name:?}")),
        }
    }

    /// Its codes, in order.
    pub fn codes(self) -> &'static [i8] {
        match self {
            Act::Full | Act::Half => &[-1, 0, 1],
            Act::Uint2 => &[0, 1, 2, 3],
            Act::Binary => &[-1, 0],
        }
    }

    /// How its codes are written.
    pub fn coding(self) -> Coding {
        match self {
            Act::Full | Act::Half | Act::Binary => Coding::Ternary,
            Act::Uint2 => Coding::Uint2,
        }
    }

    /// The largest size of a level.
    pub fn max_abs(self) -> usize {
        match self {
            Act::Full | Act::Binary => 1,
            Act::Half => 2,
            Act::Uint2 => 3,
        }
    }

    /// The level that a code stands for.
    pub fn level(self, code: i8) -> i32 {
        i32::from(code) + i32::from(matches!(self, Act::Half | Act::Binary))
    }
}

/// What a layer's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// -1, 0, 1.
    Ternary,
    /// -1 and 1: ternary ones that no kernel needs a mask for.
    Binary,
    /// Two bits: -3, -1, 1, 3.
    TwoBit,
}

impl WeightKind {
    /// Every kind there is.
    pub const ALL: [WeightKind; 3] = [WeightKind::Ternary, WeightKind::Binary, WeightKind::TwoBit];

    /// The kind that takes the least work: binary ones without a zero, those of two bits where one is ±3.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first weight that does not fit the others.
    pub fn of(weights: &[i8]) -> Result<Self> {
        if weights.iter().any(|w| w.abs_diff(0) == 3) {
            two_bit::check("weight", weights)?;
            return Ok(WeightKind::TwoBit);
        }
        check_codes("weight", weights)?;
        Ok(if weights.contains(&0) { WeightKind::Ternary } else { WeightKind::Binary })
    }

    /// Its name, as bindings have it.
    pub fn name(self) -> &'static str {
        match self {
            WeightKind::Ternary => "ternary",
            WeightKind::Binary => "binary",
            WeightKind::TwoBit => "two-bit",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match WeightKind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => bad_value("weights", "\"ternary\", \"binary\" or \"two-bit\"", format!("{name:?}")),
        }
    }

    /// Its weights, in order.
    pub fn codes(self) -> &'static [i8] {
        match self {
            WeightKind::Ternary => &[-1, 0, 1],
            WeightKind::Binary => &[-1, 1],
            WeightKind::TwoBit => &[-3, -1, 1, 3],
        }
    }

    /// The largest size of a weight.
    pub fn max_abs(self) -> usize {
        if self == WeightKind::TwoBit { 3 } else { 1 }
    }
}

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
