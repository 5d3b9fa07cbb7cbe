//! Types of packed codes, of values between nodes, and of tensors.

use super::{Coding, WeightKind};
use crate::codec;
use crate::error::{Result, bad_value};

/// The type of packed codes between two layers. [`ActType`](super::ActType) says which levels the
/// reader takes them for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeType {
    /// -1, 0, 1: read as [`ActType::Full`](super::ActType::Full) or
    /// [`ActType::Half`](super::ActType::Half).
    Ternary,
    /// 0 to 3: read as [`ActType::Uint2`](super::ActType::Uint2).
    TwoBit,
    /// -1 and 0: read as [`ActType::Binary`](super::ActType::Binary), or as ternary codes.
    Binary,
}

impl CodeType {
    /// All types.
    pub const ALL: [CodeType; 3] = [CodeType::Ternary, CodeType::TwoBit, CodeType::Binary];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CodeType::Ternary => "ternary",
            CodeType::TwoBit => "two-bit",
            CodeType::Binary => "binary",
        }
    }

    /// The type with that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match CodeType::ALL.into_iter().find(|codes| codes.name() == name) {
            Some(codes) => Ok(codes),
            None => {
                bad_value("codes", "\"ternary\", \"two-bit\" or \"binary\"", format!("{name:?}"))
            }
        }
    }

    /// How these codes are written as bits.
    pub fn coding(self) -> Coding {
        match self {
            CodeType::Ternary | CodeType::Binary => Coding::Ternary,
            CodeType::TwoBit => Coding::Uint2,
        }
    }
}

/// The type of a value between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// float32.
    F32,
    /// int32.
    I32,
    /// int64: ids of tokens and the like.
    I64,
    /// bool: masks.
    Bool,
    /// Packed codes.
    Codes {
        /// What the codes are.
        codes: CodeType,
        /// Channels per pixel.
        channels: usize,
        /// Number of channel groups; each starts at a word boundary.
        groups: usize,
    },
    /// Another of [`INPUT_TYPES`]. Only inputs have it, and only PyTorch runs such graphs.
    Other(&'static str),
}

impl ValueType {
    /// Whether these are packed codes.
    pub fn is_codes(self) -> bool {
        matches!(self, ValueType::Codes { .. })
    }

    /// Whether it is int32 or int64.
    pub fn is_integer(self) -> bool {
        matches!(self, ValueType::I32 | ValueType::I64)
    }

    /// The types other than codes that the engine has.
    pub const PLAIN: [ValueType; 4] =
        [ValueType::F32, ValueType::I32, ValueType::I64, ValueType::Bool];

    /// Its name, unless it is codes.
    pub fn plain_name(self) -> Option<&'static str> {
        Some(match self {
            ValueType::F32 => "float32",
            ValueType::I32 => "int32",
            ValueType::I64 => "int64",
            ValueType::Bool => "bool",
            ValueType::Other(name) => name,
            ValueType::Codes { .. } => return None,
        })
    }

    /// The type of an input, from PyTorch's name of the dtype.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such type.
    pub fn of_input(name: &str) -> Result<Self> {
        let plain = ValueType::PLAIN.into_iter().find(|plain| plain.plain_name() == Some(name));
        match (plain, INPUT_TYPES.iter().find(|(known, _)| *known == name)) {
            (Some(plain), _) => Ok(plain),
            (None, Some((known, _))) => Ok(ValueType::Other(known)),
            (None, None) => bad_value(
                "dtype",
                "float32, int32, int64, bool, or codes with channels and groups",
                format!("{name:?}"),
            ),
        }
    }

    /// Bytes per element in memory. Packed codes count as bytes; types that the engine does not
    /// have, as in PyTorch.
    pub fn element_bytes(self) -> usize {
        match self {
            ValueType::F32 => 4,
            // The engine keeps int32 in the same eight bytes as int64.
            ValueType::I32 | ValueType::I64 => 8,
            ValueType::Codes { .. } | ValueType::Bool => 1,
            ValueType::Other(name) => {
                INPUT_TYPES.iter().find(|row| row.0 == name).map_or(4, |row| row.1)
            }
        }
    }

    /// Whether a reader of `wanted` accepts this type: binary codes are ternary codes too.
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
            ValueType::I32 => f.write_str("int32"),
            ValueType::I64 => f.write_str("int64"),
            ValueType::Bool => f.write_str("bool"),
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
    /// int8.
    I8,
    /// bool: a byte each, 0 or 1.
    Bool,
    /// Weights of a few levels: binary, ternary or two-bit. Arrays hold them as int8, files pack
    /// them.
    Codes(WeightKind),
}

impl TensorType {
    /// All types.
    pub const ALL: [TensorType; 8] = [
        TensorType::F32,
        TensorType::I32,
        TensorType::I64,
        TensorType::I8,
        TensorType::Bool,
        TensorType::Codes(WeightKind::Binary),
        TensorType::Codes(WeightKind::Ternary),
        TensorType::Codes(WeightKind::TwoBit),
    ];

    /// The types of packed weights.
    pub const CODES: &[TensorType] = &[
        TensorType::Codes(WeightKind::Binary),
        TensorType::Codes(WeightKind::Ternary),
        TensorType::Codes(WeightKind::TwoBit),
    ];

    /// Its name in files and bindings.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "float32",
            TensorType::I32 => "int32",
            TensorType::I64 => "int64",
            TensorType::I8 => "int8",
            TensorType::Bool => "bool",
            TensorType::Codes(kind) => kind.name(),
        }
    }

    /// The type with that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match TensorType::ALL.into_iter().find(|dtype| dtype.name() == name) {
            Some(dtype) => Ok(dtype),
            None => bad_value("dtype", TensorType::names(&TensorType::ALL), format!("{name:?}")),
        }
    }

    /// The names of `types`, for a message: `"binary, ternary or two-bit"`.
    pub fn names(types: &[TensorType]) -> String {
        match types {
            [] => String::new(),
            [only] => only.name().into(),
            [first @ .., last] => {
                format!(
                    "{} or {}",
                    first.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", "),
                    last.name()
                )
            }
        }
    }

    /// The NumPy dtype of an array that holds such a tensor.
    pub fn array_name(self) -> &'static str {
        if let TensorType::Codes(_) = self { "int8" } else { self.name() }
    }

    /// Bytes per element in an array.
    pub fn array_bytes(self) -> usize {
        match self {
            TensorType::F32 | TensorType::I32 => 4,
            TensorType::I64 => 8,
            TensorType::I8 | TensorType::Bool | TensorType::Codes(_) => 1,
        }
    }

    /// Bytes that `elements` elements take in a file.
    pub fn file_bytes(self, elements: usize) -> usize {
        match self {
            TensorType::Codes(WeightKind::Binary) => codec::signs::encoded_len(elements),
            TensorType::Codes(WeightKind::Ternary) => codec::trits::encoded_len(elements),
            TensorType::Codes(WeightKind::TwoBit) => codec::two_bit::encoded_len(elements),
            other => elements.saturating_mul(other.array_bytes()),
        }
    }
}

/// Types that PyTorch allows for an input of a network, with bytes per element. The engine runs
/// [`ValueType::PLAIN`].
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
