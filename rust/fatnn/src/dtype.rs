//! The one vocabulary of element types: what activations, weights, values and tensors are made of.
//!
//! | type | of | names |
//! | --- | --- | --- |
//! | [`ActType`] | activations of a layer | `full`, `half`, `uint2`, `binary` |
//! | [`WeightType`] | weights of a layer | `binary`, `ternary`, `two-bit`, `int8`, `float32` |
//! | [`CodeType`] | packed codes between layers | `ternary`, `two-bit`, `binary` |
//! | [`ValueType`] | a value between nodes | `float32`, or codes with channels and groups |
//! | [`TensorType`] | a tensor | `float32`, `int32`, `int64`, `int8`, `binary`, `ternary`, `two-bit` |
//!
//! Configuration, graph, file, kernels and bindings use these names and no others.

use crate::codec;
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
            Coding::Ternary => codec::check_codes("codes", codes),
            Coding::Uint2 => match codes.iter().position(|c| !(0..=3).contains(c)) {
                None => Ok(()),
                Some(at) => bad_value("codes", "codes 0, 1, 2 or 3", format!("{} at element {at}", codes[at])),
            },
        }
    }
}

/// The largest number of thresholds of any [`Coding`].
pub(crate) const MAX_THRESHOLDS: usize = 3;

/// What a layer's activation codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActType {
    /// Ternary codes as they are: -1, 0, 1 (binary ones are two of them).
    Full,
    /// Ternary codes plus one: levels 0, 1, 2, behind a ReLU.
    Half,
    /// Two bits: levels 0, 1, 2, 3, behind a ReLU.
    Uint2,
    /// One bit: the levels 0 and 1 of [`ActType::Half`], written like those. (Signs, -1 and 1, are ternary codes: padding gives
    /// them a third level.)
    Binary,
}

impl ActType {
    /// Every kind there is.
    pub const ALL: [ActType; 4] = [ActType::Full, ActType::Half, ActType::Uint2, ActType::Binary];

    /// Its name, as bindings have it.
    pub fn name(self) -> &'static str {
        match self {
            ActType::Full => "full",
            ActType::Half => "half",
            ActType::Uint2 => "uint2",
            ActType::Binary => "binary",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match ActType::ALL.into_iter().find(|act| act.name() == name) {
            Some(act) => Ok(act),
            None => bad_value("act", "\"full\", \"half\", \"uint2\" or \"binary\"", format!("{name:?}")),
        }
    }

    /// Its codes, in order.
    pub fn codes(self) -> &'static [i8] {
        match self {
            ActType::Full | ActType::Half => &[-1, 0, 1],
            ActType::Uint2 => &[0, 1, 2, 3],
            ActType::Binary => &[-1, 0],
        }
    }

    /// How its codes are written.
    pub fn coding(self) -> Coding {
        match self {
            ActType::Full | ActType::Half | ActType::Binary => Coding::Ternary,
            ActType::Uint2 => Coding::Uint2,
        }
    }

    /// The largest size of a level.
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

/// Weights that are checked between two looks at the result.
const CHUNK: usize = 4096;

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
        // A loop without an early exit, so that it is vectorized: networks are loaded through it.
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

    /// `Ok` where every weight is of this kind.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first that is not.
    pub fn check(self, what: &'static str, weights: &[i8]) -> Result<()> {
        let (codes, wrong) = (self.codes(), |w: &i8| !self.codes().contains(w));
        // Whole chunks first, without an early exit, so that the loop is vectorized.
        let fits = |chunk: &[i8]| match self {
            WeightKind::Ternary => chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() <= 1)),
            WeightKind::Binary => chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() == 1)),
            WeightKind::TwoBit => chunk.iter().fold(true, |all, w| all & (w.unsigned_abs() & !2 == 1)),
        };
        match weights.chunks(CHUNK).position(|chunk| !fits(chunk)) {
            None => Ok(()),
            Some(chunk) => {
                let at = chunk * CHUNK + weights[chunk * CHUNK..].iter().position(wrong).unwrap_or(0);
                let expected = format!("{} weights, each one of {codes:?}", self.name());
                bad_value(what, expected, format!("{} at element {at}", weights[at]))
            }
        }
    }
}

/// What a layer's weights are, of every kind of layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// -1 and 1.
    Binary,
    /// -1, 0, 1.
    Ternary,
    /// -3, -1, 1, 3.
    TwoBit,
    /// From -127 to 127.
    Int8,
    /// float32.
    Float32,
}

impl WeightType {
    /// Every type there is.
    pub const ALL: [WeightType; 5] =
        [WeightType::Binary, WeightType::Ternary, WeightType::TwoBit, WeightType::Int8, WeightType::Float32];

    /// Its name, as configuration, files and bindings have it.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::Binary => WeightKind::Binary.name(),
            WeightType::Ternary => WeightKind::Ternary.name(),
            WeightType::TwoBit => WeightKind::TwoBit.name(),
            WeightType::Int8 => "int8",
            WeightType::Float32 => "float32",
        }
    }

    /// The type of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match WeightType::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => {
                let names = WeightType::ALL.map(WeightType::name).join(", ");
                bad_value("weights", format!("one of {names}"), format!("{name:?}"))
            }
        }
    }

    /// The kind of codes that these weights are; `None` for int8 and float32.
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

/// What packed codes between two layers may be. [`ActType`] says what their reader takes them for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeType {
    /// -1, 0, 1: read as [`ActType::Full`] or [`ActType::Half`].
    Ternary,
    /// 0 to 3: read as [`ActType::Uint2`].
    TwoBit,
    /// -1 and 0: read as [`ActType::Binary`], or as ternary ones.
    Binary,
}

impl CodeType {
    /// Every type there is.
    pub const ALL: [CodeType; 3] = [CodeType::Ternary, CodeType::TwoBit, CodeType::Binary];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CodeType::Ternary => "ternary",
            CodeType::TwoBit => "two-bit",
            CodeType::Binary => "binary",
        }
    }

    /// The type of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match CodeType::ALL.into_iter().find(|codes| codes.name() == name) {
            Some(codes) => Ok(codes),
            None => bad_value("codes", "\"ternary\", \"two-bit\" or \"binary\"", format!("{name:?}")),
        }
    }

    /// How these codes are written.
    pub fn coding(self) -> Coding {
        match self {
            CodeType::Ternary | CodeType::Binary => Coding::Ternary,
            CodeType::TwoBit => Coding::Uint2,
        }
    }
}

impl ActType {
    /// The codes that such activations are packed as.
    pub fn code_type(self) -> CodeType {
        match self {
            ActType::Full | ActType::Half => CodeType::Ternary,
            ActType::Uint2 => CodeType::TwoBit,
            ActType::Binary => CodeType::Binary,
        }
    }
}

/// The type of a value between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// float32.
    F32,
    /// Packed codes.
    Codes {
        /// What the codes are.
        codes: CodeType,
        /// Channels of a pixel.
        channels: usize,
        /// Groups of channels, each packed from a word boundary.
        groups: usize,
    },
    /// Another of [`INPUT_TYPES`], which only an input has, and only in PyTorch.
    Other(&'static str),
}

impl ValueType {
    /// Whether it is packed codes.
    pub fn is_codes(self) -> bool {
        matches!(self, ValueType::Codes { .. })
    }

    /// The type of an input that PyTorch calls by that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn of_input(name: &str) -> Result<Self> {
        match INPUT_TYPES.iter().find(|(known, _)| *known == name) {
            Some(("float32", _)) => Ok(ValueType::F32),
            Some((known, _)) => Ok(ValueType::Other(known)),
            None => bad_value("dtype", "float32, or codes with channels and groups", format!("{name:?}")),
        }
    }

    /// Bytes of an element in PyTorch, where codes are packed into bytes.
    pub fn element_bytes(self) -> usize {
        match self {
            ValueType::F32 => 4,
            ValueType::Codes { .. } => 1,
            ValueType::Other(name) => INPUT_TYPES.iter().find(|row| row.0 == name).map_or(4, |row| row.1),
        }
    }

    /// Whether a reader that wants `wanted` can read it: binary codes are ternary ones as well.
    pub fn fits(self, wanted: ValueType) -> bool {
        match (self, wanted) {
            (
                ValueType::Codes { codes: CodeType::Binary, channels, groups },
                ValueType::Codes { codes: CodeType::Ternary, channels: c, groups: g },
            ) => (channels, groups) == (c, g),
            _ => self == wanted,
        }
    }
}

impl std::fmt::Display for ValueType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ValueType::F32 => f.write_str("floats"),
            ValueType::Other(name) => f.write_str(name),
            ValueType::Codes { codes, channels, groups } => {
                write!(f, "{} codes of ({channels}, {groups}) (channels, groups)", codes.name())
            }
        }
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// float32.
    F32,
    /// int32.
    I32,
    /// int64.
    I64,
    /// int8, any value.
    I8,
    /// Weights of a few levels: binary, ternary or two-bit. An array holds them as int8; a file
    /// packs them.
    Codes(WeightKind),
}

impl TensorType {
    /// Every type there is.
    pub const ALL: [TensorType; 7] = [
        TensorType::F32,
        TensorType::I32,
        TensorType::I64,
        TensorType::I8,
        TensorType::Codes(WeightKind::Binary),
        TensorType::Codes(WeightKind::Ternary),
        TensorType::Codes(WeightKind::TwoBit),
    ];

    /// The types of weights that are codes.
    pub const CODES: &[TensorType] = &[
        TensorType::Codes(WeightKind::Binary),
        TensorType::Codes(WeightKind::Ternary),
        TensorType::Codes(WeightKind::TwoBit),
    ];

    /// Its name, as files and bindings have it.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "float32",
            TensorType::I32 => "int32",
            TensorType::I64 => "int64",
            TensorType::I8 => "int8",
            TensorType::Codes(kind) => kind.name(),
        }
    }

    /// The type of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match TensorType::ALL.into_iter().find(|dtype| dtype.name() == name) {
            Some(dtype) => Ok(dtype),
            None => bad_value("dtype", TensorType::names(&TensorType::ALL), format!("{name:?}")),
        }
    }

    /// Names of types for a message: `"binary, ternary or two-bit"`.
    pub fn names(types: &[TensorType]) -> String {
        match types {
            [] => String::new(),
            [only] => only.name().into(),
            [first @ .., last] => {
                format!("{} or {}", first.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", "), last.name())
            }
        }
    }

    /// Name of the type that an array library has it as.
    pub fn array_name(self) -> &'static str {
        if let TensorType::Codes(_) = self { "int8" } else { self.name() }
    }

    /// Bytes of an element in an array.
    pub fn array_bytes(self) -> usize {
        match self {
            TensorType::F32 | TensorType::I32 => 4,
            TensorType::I64 => 8,
            TensorType::I8 | TensorType::Codes(_) => 1,
        }
    }

    /// Bytes that so many elements take in a file.
    pub fn file_bytes(self, elements: usize) -> usize {
        match self {
            TensorType::Codes(WeightKind::Binary) => codec::signs::encoded_len(elements),
            TensorType::Codes(WeightKind::Ternary) => codec::trits::encoded_len(elements),
            TensorType::Codes(WeightKind::TwoBit) => codec::two_bit::encoded_len(elements),
            other => elements.saturating_mul(other.array_bytes()),
        }
    }
}

/// Types that an input of a network may have in PyTorch, and bytes of an element. The engine runs float32.
pub const INPUT_TYPES: &[(&str, usize)] = &[
    ("float32", 4),
    ("float64", 8),
    ("float16", 2),
    ("bfloat16", 2),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("int64", 8),
    ("uint8", 1),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("bool", 1),
    ("complex64", 8),
    ("complex128", 16),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for act in ActType::ALL {
            assert_eq!(ActType::from_name(act.name()).unwrap(), act);
        }
        for weight in WeightType::ALL {
            assert_eq!(WeightType::from_name(weight.name()).unwrap(), weight);
            assert!(weight.codes().is_none_or(|kind| WeightType::from(kind) == weight));
        }
        assert!(WeightType::from_name("one").unwrap_err().to_string().contains("float32"));
        for codes in CodeType::ALL {
            assert_eq!(CodeType::from_name(codes.name()).unwrap(), codes);
        }
        for dtype in TensorType::ALL {
            assert_eq!(TensorType::from_name(dtype.name()).unwrap(), dtype);
        }
        let message = TensorType::from_name("codes").unwrap_err().to_string();
        assert!(message.contains("binary, ternary or two-bit, got \"codes\""), "{message}");
    }

    #[test]
    fn weights_of_another_kind_are_named() {
        for kind in WeightKind::ALL {
            let mut weights: Vec<i8> = (0..CHUNK + 9).map(|i| kind.codes()[i % kind.codes().len()]).collect();
            kind.check("weight", &weights).unwrap();
            for wrong in (i8::MIN..=i8::MAX).filter(|w| !kind.codes().contains(w)) {
                weights[CHUNK + 3] = wrong;
                let message = kind.check("weight", &weights).unwrap_err().to_string();
                assert!(message.contains(&format!("{wrong} at element {}", CHUNK + 3)), "{message}");
                assert!(message.contains(kind.name()), "{message}");
            }
        }
    }

    #[test]
    fn binary_codes_are_ternary_ones_as_well() {
        let of = |codes| ValueType::Codes { codes, channels: 8, groups: 2 };
        assert!(of(CodeType::Binary).fits(of(CodeType::Ternary)));
        assert!(!of(CodeType::Ternary).fits(of(CodeType::Binary)));
        assert!(!ValueType::F32.fits(of(CodeType::Ternary)));
    }
}
