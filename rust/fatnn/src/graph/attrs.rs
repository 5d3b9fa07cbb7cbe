//! Attributes of nodes: their types, and how they are read from a graph's JSON.

use serde_json::{Map, Value as Json};

use super::BuildError;
use super::op::ConvParams;
use crate::dtype::ActType;

/// Integers in a graph must be smaller than this, so that sums of sizes cannot overflow.
pub(crate) const LIMIT: u64 = 1 << 31;

/// The type of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrType {
    /// An integer below 2³¹ in magnitude.
    Int,
    /// A list of integers below 2³¹ in magnitude.
    Ints,
    /// A number in the range of float32.
    Float,
    /// A list of float64 numbers.
    Floats,
    /// True or false.
    Bool,
    /// Text.
    Str,
}

impl AttrType {
    /// Name of the Python type: `int`, `list`, `float`, `bool` or `str`.
    pub fn name(self) -> &'static str {
        match self {
            AttrType::Int => "int",
            AttrType::Ints | AttrType::Floats => "list",
            AttrType::Float => "float",
            AttrType::Bool => "bool",
            AttrType::Str => "str",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            AttrType::Int => "an integer",
            AttrType::Ints => "a list of integers",
            AttrType::Float => "a number",
            AttrType::Floats => "a list of numbers",
            AttrType::Bool => "true or false",
            AttrType::Str => "a string",
        }
    }

    pub(super) fn accepts(self, value: &Json) -> bool {
        let integer = |value: &Json| value.as_i64().is_some_and(|n| n.unsigned_abs() < LIMIT);
        match self {
            AttrType::Int => integer(value),
            AttrType::Ints => value.as_array().is_some_and(|list| list.iter().all(integer)),
            AttrType::Float => value.as_f64().is_some_and(|x| (x as f32).is_finite()),
            AttrType::Floats => {
                value.as_array().is_some_and(|list| list.iter().all(Json::is_number))
            }
            AttrType::Bool => value.is_boolean(),
            AttrType::Str => value.is_string(),
        }
    }
}

/// When an attribute is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always.
    Always,
    /// Required in files. A graph that is described to the engine may leave it out.
    InFiles,
    /// Never: a node without it uses a default.
    Optional,
}

/// One attribute of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Name of the attribute in files.
    pub name: &'static str,
    /// Type of the value.
    pub kind: AttrType,
    /// When the attribute is required.
    pub presence: Presence,
}

/// Smallest allowed values of attributes, the same for every operation.
pub(super) const MIN_VALUES: &[(&str, i64)] = &[
    ("kernel", 1),
    ("stride", 1),
    ("dilation", 1),
    ("padding", 0),
    ("output_padding", 0),
    ("block", 1),
    ("crop", 0),
    ("size", 0),
    ("fixed", 0),
    ("groups", 1),
    ("out_groups", 1),
    ("channels", 1),
    ("channel_dim", 0),
    ("trailing", 0),
];

/// Attributes of one node, read by name with a check of the type.
pub(super) struct Attrs<'a>(pub &'a Map<String, Json>);

impl Attrs<'_> {
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn attr(&self, key: &str) -> Result<&Json, String> {
        self.0.get(key).ok_or_else(|| format!("attribute {key:?} is missing"))
    }

    pub fn flag(&self, key: &str) -> Result<bool, String> {
        self.attr(key)?.as_bool().ok_or_else(|| format!("attribute {key:?} must be true or false"))
    }

    pub fn text(&self, key: &str) -> Result<String, String> {
        let text = self.attr(key)?.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("attribute {key:?} must be a string"))
    }

    /// A number in the range of float32.
    pub fn float(&self, key: &str) -> Result<f32, String> {
        let found =
            self.attr(key)?.as_f64().map(|value| value as f32).filter(|value| value.is_finite());
        found.ok_or_else(|| format!("attribute {key:?} must be a number in the range of float32"))
    }

    pub fn integer(&self, key: &str) -> Result<i64, String> {
        let found = self.attr(key)?.as_i64().filter(|n| n.unsigned_abs() < LIMIT);
        found.ok_or_else(|| format!("attribute {key:?} must be an integer below 2^31"))
    }

    pub fn number(&self, key: &str) -> Result<usize, String> {
        usize::try_from(self.integer(key)?)
            .map_err(|_| format!("attribute {key:?} must not be negative"))
    }

    /// A non-negative integer, or `None` if the attribute is absent.
    pub fn optional_number(&self, key: &str) -> Result<Option<usize>, String> {
        self.has(key).then(|| self.number(key)).transpose()
    }

    pub fn integers<T: TryFrom<i64>>(&self, key: &str) -> Result<Vec<T>, String> {
        let wrong = || format!("attribute {key:?} must be a list of integers in range");
        let list = self.attr(key)?.as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|v| {
                let integer = v.as_i64().filter(|n| n.unsigned_abs() < LIMIT);
                integer.and_then(|n| T::try_from(n).ok()).ok_or_else(wrong)
            })
            .collect()
    }

    /// A list of numbers with full float64 precision.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>, String> {
        let list = self.attr(key)?.as_array();
        list.and_then(|list| list.iter().map(Json::as_f64).collect())
            .ok_or_else(|| format!("attribute {key:?} must be a list of numbers"))
    }

    /// Numbers for two axes. One-dimensional operations give only the second; `other` fills the
    /// first.
    pub fn pair(&self, key: &str, axes: usize, other: usize) -> Result<[usize; 2], String> {
        match (axes, self.integers(key)?.as_slice()) {
            (2, &[h, w]) => Ok([h, w]),
            (1, &[w]) => Ok([other, w]),
            (_, list) => Err(format!("attribute {key:?} must have {axes} numbers, got {list:?}")),
        }
    }

    /// As [`Attrs::pair`], but both numbers must be at least 1.
    pub fn positive_pair(&self, key: &str, axes: usize) -> Result<[usize; 2], String> {
        match self.pair(key, axes, 1)? {
            pair if pair.contains(&0) => {
                Err(format!("attribute {key:?} must have {axes} integers >= 1, got {pair:?}"))
            }
            pair => Ok(pair),
        }
    }

    /// Parameters of a convolution that takes its kernel size from the weight.
    pub fn conv_without_kernel(&self, axes: usize) -> Result<ConvParams, String> {
        Ok(ConvParams {
            kernel: [1, 1],
            stride: self.positive_pair("stride", axes)?,
            padding: self.pair("padding", axes, 0)?,
            dilation: self.positive_pair("dilation", axes)?,
        })
    }

    pub fn conv(&self, axes: usize) -> Result<ConvParams, String> {
        Ok(ConvParams {
            kernel: self.positive_pair("kernel", axes)?,
            ..self.conv_without_kernel(axes)?
        })
    }

    /// As [`Attrs::conv`], but dilation may be absent: average pooling has none.
    pub fn pool(&self, axes: usize) -> Result<ConvParams, String> {
        if self.has("dilation") {
            return self.conv(axes);
        }
        Ok(ConvParams {
            kernel: self.positive_pair("kernel", axes)?,
            stride: self.positive_pair("stride", axes)?,
            padding: self.pair("padding", axes, 0)?,
            dilation: [1, 1],
        })
    }

    /// The activation type.
    pub fn act(&self) -> Result<ActType, BuildError> {
        let name = self.text("act")?;
        ActType::from_name(&name)
            .map_err(|_| BuildError::Unsupported(format!("activations {name:?}")))
    }
}
