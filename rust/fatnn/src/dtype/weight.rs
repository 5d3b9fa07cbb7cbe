//! Types of weights.

use crate::codec;
use crate::error::{Result, bad_value};

/// [`WeightKind::check`] looks for wrong weights after every chunk of this size.
pub(super) const CHUNK: usize = 4096;

/// Weights that are stored as codes of a few levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// -1, 0, 1.
    Ternary,
    /// -1 and 1: ternary weights without zeros.
    Binary,
    /// -3, -1, 1, 3.
    TwoBit,
}

impl WeightKind {
    /// All kinds.
    pub const ALL: [WeightKind; 3] = [WeightKind::Ternary, WeightKind::Binary, WeightKind::TwoBit];

    /// The narrowest kind that holds these weights: two-bit if one is ±3, else ternary if one is 0,
    /// else binary.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first weight that does not fit.
    pub fn of(weights: &[i8]) -> Result<Self> {
        // No early exit, so that the loop is vectorized: loading a network calls this on all
        // weights.
        let max_abs = weights.iter().fold(0, |max, w| w.unsigned_abs().max(max));
        if max_abs > 1 && weights.iter().any(|w| w.unsigned_abs() == 3) {
            codec::two_bit::check("weight", weights)?;
            return Ok(WeightKind::TwoBit);
        }
        if max_abs > 1 {
            codec::check_codes("weight", weights)?;
        }
        Ok(if weights.contains(&0) { WeightKind::Ternary } else { WeightKind::Binary })
    }

    /// Its name in bindings.
    pub fn name(self) -> &'static str {
        match self {
            WeightKind::Ternary => "ternary",
            WeightKind::Binary => "binary",
            WeightKind::TwoBit => "two-bit",
        }
    }

    /// The kind with that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match WeightKind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => {
                bad_value("weights", "\"ternary\", \"binary\" or \"two-bit\"", format!("{name:?}"))
            }
        }
    }

    /// Its weights, in ascending order.
    pub fn codes(self) -> &'static [i8] {
        match self {
            WeightKind::Ternary => &[-1, 0, 1],
            WeightKind::Binary => &[-1, 1],
            WeightKind::TwoBit => &[-3, -1, 1, 3],
        }
    }

    /// The largest absolute value of a weight.
    pub fn max_abs(self) -> usize {
        if self == WeightKind::TwoBit { 3 } else { 1 }
    }

    /// `Ok` if every weight is of this kind.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first wrong one.
    pub fn check(self, what: &'static str, weights: &[i8]) -> Result<()> {
        let (codes, wrong) = (self.codes(), |w: &i8| !self.codes().contains(w));
        // Chunks are tested without an early exit, so that the loop is vectorized.
        let fits = |chunk: &[i8]| match self {
            WeightKind::Ternary => chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() <= 1)),
            WeightKind::Binary => chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() == 1)),
            WeightKind::TwoBit => {
                chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() & !2 == 1))
            }
        };
        match weights.chunks(CHUNK).position(|chunk| !fits(chunk)) {
            None => Ok(()),
            Some(chunk) => {
                let at =
                    chunk * CHUNK + weights[chunk * CHUNK..].iter().position(wrong).unwrap_or(0);
                let expected = format!("{} weights, each one of {codes:?}", self.name());
                bad_value(what, expected, format!("{} at element {at}", weights[at]))
            }
        }
    }
}

/// Types of weights, for all kinds of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// -1 and 1.
    Binary,
    /// -1, 0, 1.
    Ternary,
    /// -3, -1, 1, 3.
    TwoBit,
    /// int8, from -127 to 127.
    Int8,
    /// float32.
    Float32,
}

impl WeightType {
    /// All types.
    pub const ALL: [WeightType; 5] = [
        WeightType::Binary,
        WeightType::Ternary,
        WeightType::TwoBit,
        WeightType::Int8,
        WeightType::Float32,
    ];

    /// Its name in configuration, files and bindings.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::Binary => WeightKind::Binary.name(),
            WeightType::Ternary => WeightKind::Ternary.name(),
            WeightType::TwoBit => WeightKind::TwoBit.name(),
            WeightType::Int8 => "int8",
            WeightType::Float32 => "float32",
        }
    }

    /// The type with that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match WeightType::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => {
                let names = WeightType::ALL.map(WeightType::name).join(", ");
                bad_value("weights", format!("one of {names}"), format!("{name:?}"))
            }
        }
    }

    /// The kind, if these weights are stored as codes; `None` for int8 and float32.
    pub fn codes(self) -> Option<WeightKind> {
        match self {
            WeightType::Binary => Some(WeightKind::Binary),
            WeightType::Ternary => Some(WeightKind::Ternary),
            WeightType::TwoBit => Some(WeightKind::TwoBit),
            WeightType::Int8 | WeightType::Float32 => None,
        }
    }
}

impl From<WeightKind> for WeightType {
    fn from(kind: WeightKind) -> Self {
        match kind {
            WeightKind::Ternary => WeightType::Ternary,
            WeightKind::Binary => WeightType::Binary,
            WeightKind::TwoBit => WeightType::TwoBit,
        }
    }
}
