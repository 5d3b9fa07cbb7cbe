//! What activation codes mean, and how they are written as bits.

use super::CodeType;
use crate::codec;
use crate::error::{Result, bad_value};

/// How the two planes of a unit encode codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// -1, 0, 1 as `z = [x = 0]` and `p = [x ≥ 0]`: FATNN's encoding.
    Ternary,
    /// 0, 1, 2, 3 in binary: the low bit, then the high bit.
    Uint2,
}

impl Coding {
    /// Number of thresholds: one less than the number of levels.
    pub fn thresholds(self) -> usize {
        match self {
            Coding::Ternary => 2,
            Coding::Uint2 => 3,
        }
    }

    /// The code of a value that reaches no threshold.
    pub(crate) fn lowest(self) -> i8 {
        match self {
            Coding::Ternary => -1,
            Coding::Uint2 => 0,
        }
    }

    /// Turns comparisons into the two planes. Bit `j` of `reached[i]` says whether value `j`
    /// reaches threshold `i`. `reached[2]` is unused with two thresholds.
    #[inline(always)]
    pub(crate) fn planes(self, [first, second, third]: [u64; MAX_THRESHOLDS]) -> [u64; 2] {
        match self {
            Coding::Ternary => [first & !second, first],
            Coding::Uint2 => [first & !second | third, second],
        }
    }

    /// `Ok` if every code belongs to this coding.
    pub(crate) fn check(self, codes: &[i8]) -> Result<()> {
        match self {
            Coding::Ternary => codec::check_codes("codes", codes),
            Coding::Uint2 => match codes.iter().position(|c| !(0..=3).contains(c)) {
                None => Ok(()),
                Some(at) => bad_value(
                    "codes",
                    "codes 0, 1, 2 or 3",
                    format!("{} at element {at}", codes[at]),
                ),
            },
        }
    }
}

/// The largest number of thresholds of any [`Coding`].
pub(crate) const MAX_THRESHOLDS: usize = 3;

/// What a layer's activation codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActType {
    /// Ternary codes as they are: -1, 0, 1. Binary signs -1, 1 are a subset.
    Full,
    /// Levels 0, 1, 2, after a ReLU: the ternary code plus one.
    Half,
    /// Two-bit levels 0, 1, 2, 3, after a ReLU.
    Uint2,
    /// One-bit levels 0 and 1, encoded as those of [`ActType::Half`]. (Signs -1 and 1 are
    /// [`ActType::Full`], because zero padding adds a third level.)
    Binary,
}

impl ActType {
    /// All kinds.
    pub const ALL: [ActType; 4] = [ActType::Full, ActType::Half, ActType::Uint2, ActType::Binary];

    /// Its name in configuration, files and bindings.
    pub fn name(self) -> &'static str {
        match self {
            ActType::Full => "full",
            ActType::Half => "half",
            ActType::Uint2 => "uint2",
            ActType::Binary => "binary",
        }
    }

    /// The kind with that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match ActType::ALL.into_iter().find(|act| act.name() == name) {
            Some(act) => Ok(act),
            None => {
                bad_value("act", "\"full\", \"half\", \"uint2\" or \"binary\"", format!("{name:?}"))
            }
        }
    }

    /// Its codes, in ascending order.
    pub fn codes(self) -> &'static [i8] {
        match self {
            ActType::Full | ActType::Half => &[-1, 0, 1],
            ActType::Uint2 => &[0, 1, 2, 3],
            ActType::Binary => &[-1, 0],
        }
    }

    /// How its codes are written as bits.
    pub fn coding(self) -> Coding {
        match self {
            ActType::Full | ActType::Half | ActType::Binary => Coding::Ternary,
            ActType::Uint2 => Coding::Uint2,
        }
    }

    /// The largest absolute value of a level.
    pub fn max_abs(self) -> usize {
        match self {
            ActType::Full | ActType::Binary => 1,
            ActType::Half => 2,
            ActType::Uint2 => 3,
        }
    }

    /// The level that a code stands for.
    pub fn level(self, code: i8) -> i32 {
        i32::from(code) + i32::from(matches!(self, ActType::Half | ActType::Binary))
    }
}

impl ActType {
    /// The type of the packed codes.
    pub fn code_type(self) -> CodeType {
        match self {
            ActType::Full | ActType::Half => CodeType::Ternary,
            ActType::Uint2 => CodeType::TwoBit,
            ActType::Binary => CodeType::Binary,
        }
    }
}
