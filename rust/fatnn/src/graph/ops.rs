//! The row type of the table of operations. The rows are in [`OPS`].

use super::BuildError;
use super::attrs::{Attr, Attrs};
use super::graph::NodeView;
use super::op::Op;
use super::size::{Size, Sizes};
pub use super::table::OPS;
use crate::dtype::{TensorType, ValueType};

/// How closely another implementation can reproduce a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Every implementation gives the same bits.
    Exact,
    /// Sums of floats: the last bits depend on the order of additions.
    SumOrder,
    /// Functions that each library approximates in its own way.
    Transcendental,
}

impl Exactness {
    /// Name for Python and reports: `exact`, `sum-order` or `transcendental`.
    pub fn name(self) -> &'static str {
        match self {
            Exactness::Exact => "exact",
            Exactness::SumOrder => "sum-order",
            Exactness::Transcendental => "transcendental",
        }
    }
}

/// Weight type of the products of a convolution or linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Not a convolution or linear layer.
    None,
    /// Float weights.
    Float,
    /// Int8 weights.
    Int8,
    /// Weights that are codes.
    Codes,
}

impl Products {
    /// Name for Python and reports: `none`, `float`, `int8` or `codes`.
    pub fn name(self) -> &'static str {
        match self {
            Products::None => "none",
            Products::Float => "float",
            Products::Int8 => "int8",
            Products::Codes => "codes",
        }
    }
}

/// How an operation treats the elements of its first input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The same function of every element.
    Scalar,
    /// One function per channel.
    Channel,
    /// Maximum over windows.
    Pool,
    /// Changes shape or order; elements keep their values.
    Shape,
    /// Builds a map of another size from unchanged pixels.
    Select,
    /// None of these.
    Other,
}

impl Form {
    /// Name for Python and reports: `scalar`, `channel`, `pool`, `shape`, `select` or `other`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Scalar => "scalar",
            Form::Channel => "channel",
            Form::Pool => "pool",
            Form::Shape => "shape",
            Form::Select => "select",
            Form::Other => "other",
        }
    }
}

/// The role of a tensor in an operation, such as `weight` or `bias`.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Name of the role in files.
    pub name: &'static str,
    /// Allowed element types.
    pub dtypes: &'static [TensorType],
    /// Whether every node of the operation needs this tensor.
    pub required: bool,
}

/// Input types → output type, or what is wrong with the inputs or tensors.
pub(crate) type TypeRule = fn(NodeView<'_>, &[ValueType]) -> Result<ValueType, String>;
/// Input shapes → output shape, or why no run can have such shapes.
pub(super) type ShapeRule = fn(&Sizes, NodeView<'_>, &[&[Size]]) -> Result<Vec<Size>, String>;
/// Input shapes → `Ok` if the engine can run the operation on them, or why not.
pub(crate) type SupportRule = fn(&Op, &[&[usize]]) -> Result<(), String>;

/// A row of the table.
#[derive(Clone, Copy)]
pub struct OpInfo {
    /// Name of the operation in files.
    pub name: &'static str,
    /// Smallest and largest number of inputs; `None` means no upper bound.
    pub inputs: (usize, Option<usize>),
    /// Attributes of its nodes.
    pub attrs: &'static [Attr],
    /// Roles of its tensors.
    pub tensors: &'static [Role],
    /// Whether the first input is codes. All other inputs are floats.
    pub reads_codes: bool,
    /// Whether inputs may be integers or masks; the type rule decides. Otherwise they are floats.
    pub reads_plain: bool,
    /// Whether the output is codes.
    pub makes_codes: bool,
    /// How closely another implementation can reproduce the result.
    pub exactness: Exactness,
    /// Weight type of its products.
    pub products: Products,
    /// How it treats the elements of its first input.
    pub form: Form,
    /// Whether files may hold it; otherwise only descriptions for the engine do.
    pub in_files: bool,
    pub(super) build: fn(&Attrs<'_>) -> Result<Op, BuildError>,
    pub(super) types: TypeRule,
    pub(super) shape: ShapeRule,
    /// `None` if the engine does not have the operation.
    pub(super) support: Option<SupportRule>,
}

impl std::fmt::Debug for OpInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpInfo({})", self.name)
    }
}

impl OpInfo {
    /// The row of the operation `name`.
    pub fn named(name: &str) -> Option<&'static OpInfo> {
        OPS.iter().find(|row| row.name == name)
    }

    /// Whether the engine has the operation, at least for some attributes and shapes.
    pub fn in_engine(&self) -> bool {
        self.support.is_some()
    }

    /// Whether the operation accepts `count` inputs.
    pub fn reads(&self, count: usize) -> bool {
        let (min, max) = self.inputs;
        count >= min && max.is_none_or(|max| count <= max)
    }

    /// The attribute `name`.
    pub fn attr(&self, name: &str) -> Option<&'static Attr> {
        self.attrs.iter().find(|attr| attr.name == name)
    }

    /// The tensor role `name`.
    pub fn role(&self, name: &str) -> Option<&'static Role> {
        self.tensors.iter().find(|role| role.name == name)
    }

    /// Types of first input and output, such as `"codes -> float"`.
    pub fn signature(&self) -> String {
        let kind = |codes| if codes { "codes" } else { "float" };
        format!("{} -> {}", kind(self.reads_codes), kind(self.makes_codes))
    }
}
