//! What the table of operations says about each: the type of a row. The rows are in [`OPS`].

use super::BuildError;
use super::attrs::{Attr, Attrs};
use super::graph::NodeView;
use super::op::Op;
use super::size::{Size, Sizes};
pub use super::table::OPS;
use crate::dtype::{TensorType, ValueType};

/// How far a result depends on who computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// The same bits everywhere.
    Exact,
    /// Sums of floats: the order of additions decides the last bits.
    SumOrder,
    /// Functions that libraries approximate, each in its own way.
    Transcendental,
}

impl Exactness {
    /// Its name: `exact`, `sum-order` or `transcendental`.
    pub fn name(self) -> &'static str {
        match self {
            Exactness::Exact => "exact",
            Exactness::SumOrder => "sum-order",
            Exactness::Transcendental => "transcendental",
        }
    }
}

/// What an operation multiplies, or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// No convolution and no linear layer.
    None,
    /// Floats.
    Float,
    /// Int8 weights.
    Int8,
    /// Codes.
    Codes,
}

impl Products {
    /// Its name: `none`, `float`, `int8` or `codes`.
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
    /// Moves elements only.
    Shape,
    /// Makes another map of pixels, each of them as it was.
    Select,
    /// Anything else.
    Other,
}

impl Form {
    /// Its name: `scalar`, `channel`, `pool`, `shape`, `select` or `other`.
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

/// A tensor that an operation has.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Its name.
    pub name: &'static str,
    /// Types that its elements may have.
    pub dtypes: &'static [TensorType],
    /// Whether it must be there.
    pub required: bool,
}

/// Types of the values that a node reads → type of its value, or what is wrong with them or with
/// the tensors.
pub(crate) type TypeRule = fn(NodeView<'_>, &[ValueType]) -> Result<ValueType, String>;
/// Shapes of the values that a node reads → shape of its value, or why they fit in no run.
pub(super) type ShapeRule = fn(&Sizes, NodeView<'_>, &[&[Size]]) -> Result<Vec<Size>, String>;
/// Why the engine cannot run an operation on values of such shapes.
pub(crate) type SupportRule = fn(&Op, &[&[usize]]) -> Result<(), String>;

/// A row of the table.
#[derive(Clone, Copy)]
pub struct OpInfo {
    /// Its name in files.
    pub name: &'static str,
    /// The smallest number of values that it reads, and the largest; `None`: any.
    pub inputs: (usize, Option<usize>),
    /// Its attributes.
    pub attrs: &'static [Attr],
    /// Its tensors.
    pub tensors: &'static [Role],
    /// Whether the first value that it reads is codes; others are floats.
    pub reads_codes: bool,
    /// Whether values may be integers or masks; its rule for types then says which. Others read
    /// floats.
    pub reads_plain: bool,
    /// Whether it makes codes.
    pub makes_codes: bool,
    /// How far its result depends on who computes it.
    pub exactness: Exactness,
    /// What it multiplies.
    pub products: Products,
    /// How it treats elements.
    pub form: Form,
    /// Whether files hold it; otherwise it is only described to the engine.
    pub in_files: bool,
    pub(super) build: fn(&Attrs<'_>) -> Result<Op, BuildError>,
    pub(super) types: TypeRule,
    pub(super) shape: ShapeRule,
    /// `None` where the engine does not have the operation.
    pub(super) support: Option<SupportRule>,
}

impl std::fmt::Debug for OpInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpInfo({})", self.name)
    }
}

impl OpInfo {
    /// The row of that name.
    pub fn named(name: &str) -> Option<&'static OpInfo> {
        OPS.iter().find(|row| row.name == name)
    }

    /// Whether the engine has the operation, for some attributes and shapes at least.
    pub fn in_engine(&self) -> bool {
        self.support.is_some()
    }

    /// Whether it reads so many values.
    pub fn reads(&self, count: usize) -> bool {
        let (least, most) = self.inputs;
        count >= least && most.is_none_or(|most| count <= most)
    }

    /// The attribute of that name.
    pub fn attr(&self, name: &str) -> Option<&'static Attr> {
        self.attrs.iter().find(|attr| attr.name == name)
    }

    /// The role of that name.
    pub fn role(&self, name: &str) -> Option<&'static Role> {
        self.tensors.iter().find(|role| role.name == name)
    }

    /// What it reads and makes: `"codes -> float"` and the like.
    pub fn signature(&self) -> String {
        let kind = |codes| if codes { "codes" } else { "float" };
        format!("{} -> {}", kind(self.reads_codes), kind(self.makes_codes))
    }
}
