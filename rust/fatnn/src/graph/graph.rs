//! A graph: values, the nodes that make them, and what the network returns.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::op::Op;
use super::ops::{Form, OpInfo};
use super::tensor::Tensor;
use crate::dtype::ValueType;
use crate::error::{Error, Result};

/// Tensors of a graph by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A value: the number of the node that makes it. Every node makes one.
pub type ValueId = usize;

/// How a graph is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a file, which holds every field and every attribute, and nothing else.
    File,
    /// Described to the engine: what it does not need may be absent, and unknown attributes are
    /// ignored.
    Description,
}

/// The memory format that a node wants its input in, where PyTorch runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// As it comes.
    #[default]
    Any,
    /// Channels first.
    Contiguous,
    /// Channels last.
    ChannelsLast,
    /// Dense, with the dimensions in this order in memory, outermost first.
    Order(Vec<usize>),
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, and that of the value it makes.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// Its operation's row; `None` for [`Op::Other`].
    pub info: Option<&'static OpInfo>,
    /// Values that it reads.
    pub inputs: Vec<ValueId>,
    /// Role → name of the tensor.
    pub tensors: BTreeMap<String, String>,
    /// The layer that it came from; empty where there is none.
    pub layer: String,
    /// The type that it says its value has; a description may leave it out.
    pub dtype: Option<ValueType>,
    /// Shape of its value at conversion. Codes have that of the values they stand for.
    pub shape: Vec<usize>,
    /// What was fused, or why it runs as it does.
    pub note: String,
    /// Memory format of its input in PyTorch.
    pub layout: Layout,
    /// Its place in the file; inputs come first here.
    pub position: usize,
}

impl Node {
    /// Name of its operation.
    pub fn op_name(&self) -> &str {
        match &self.op {
            Op::Other { name, .. } => name,
            _ => self.info.map_or("", |info| info.name),
        }
    }

    /// Whether it is a function of single elements, for all or per channel.
    pub(crate) fn is_elementwise(&self) -> bool {
        self.info.is_some_and(|info| matches!(info.form, Form::Scalar | Form::Channel))
    }

    /// The dimension that a function per channel is about; `None` where it is none.
    pub(crate) fn channel_dim(&self) -> Option<usize> {
        match &self.op {
            Op::ChannelScale { trailing: Some(trailing) }
            | Op::ChannelBias { trailing: Some(trailing) } => {
                self.shape.len().checked_sub(trailing + 1)
            }
            _ => self.info.is_some_and(|info| info.form == Form::Channel).then_some(1),
        }
    }

    /// The layer, as messages name it; the node where there is none.
    pub fn label(&self) -> String {
        match self.layer.as_str() {
            "" => format!("node '{}'", self.name),
            layer => format!("layer '{layer}'"),
        }
    }

    /// How messages about a graph begin.
    pub(crate) fn place(&self) -> String {
        let layer =
            if self.layer.is_empty() { String::new() } else { format!(", layer {:?}", self.layer) };
        format!("node {:?} ({}{layer})", self.name, self.op_name())
    }

    /// An [`Error::Graph`] about it.
    pub(crate) fn invalid(&self, why: impl std::fmt::Display) -> Error {
        Error::Graph { why: format!("{}: {why}", self.place()) }
    }
}

/// What a network returns: a structure of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Outputs {
    /// A value.
    Value(ValueId),
    /// What is no value.
    Constant(Json),
    /// A list.
    List(Vec<Outputs>),
    /// A tuple.
    Tuple(Vec<Outputs>),
    /// A dictionary with keys in alphabetical order.
    Dict(Vec<(String, Outputs)>),
    /// A dictionary with keys in an order of its own.
    DictItems(Vec<(String, Outputs)>),
    /// An `OrderedDict`.
    OrderedDict(Vec<(String, Outputs)>),
}

impl Outputs {
    /// Calls `found` with every value, in order.
    pub fn for_each(&self, found: &mut dyn FnMut(ValueId)) {
        match self {
            Outputs::Value(value) => found(*value),
            Outputs::Constant(_) => (),
            Outputs::List(items) | Outputs::Tuple(items) => {
                items.iter().for_each(|item| item.for_each(found))
            }
            Outputs::Dict(items) | Outputs::DictItems(items) | Outputs::OrderedDict(items) => {
                items.iter().for_each(|(_, item)| item.for_each(found));
            }
        }
    }

    /// Its values, in order.
    pub fn values(&self) -> Vec<ValueId> {
        let mut values = Vec::new();
        self.for_each(&mut |value| values.push(value));
        values
    }
}

/// A network as data: nothing in it depends on a CPU.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Inputs, then the other nodes in the order they run. A node reads only values of nodes before
    /// it.
    pub nodes: Vec<Node>,
    /// What the network returns.
    pub outputs: Outputs,
    /// Remarks for reports.
    pub notes: Vec<String>,
    /// How Python calls the network, where it is not with one array per input.
    pub arguments: Option<Json>,
}

impl Graph {
    /// Reads a graph's JSON text.
    ///
    /// # Errors
    /// [`Error::Graph`] naming the first field that is not what it must be.
    pub fn parse(text: &str, source: Source) -> Result<Self> {
        let json: Json = serde_json::from_str(text)
            .map_err(|e| Error::Graph { why: format!("the graph is not JSON: {e}") })?;
        super::parse::graph(&json, source)
    }

    /// Number of inputs; their nodes are the first.
    pub fn input_count(&self) -> usize {
        self.nodes.iter().take_while(|node| matches!(node.op, Op::Input(_))).count()
    }
}

/// A node with its tensors.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// The node.
    pub node: &'a Node,
    /// All tensors of the graph.
    pub tensors: &'a Tensors,
}

impl<'a> NodeView<'a> {
    /// The tensor of a role, where the node has it.
    pub fn tensor(&self, role: &str) -> Option<&'a Tensor> {
        self.node.tensors.get(role).and_then(|name| self.tensors.get(name))
    }

    /// Shape of the tensor of a role.
    ///
    /// # Errors
    /// That it is missing.
    pub fn shape(&self, role: &str) -> Result<&'a [usize], String> {
        self.tensor(role)
            .map(Tensor::shape)
            .ok_or_else(|| format!("tensor role {role:?} is missing"))
    }

    /// Values of a float32 tensor.
    ///
    /// # Errors
    /// That there is none.
    pub fn floats(&self, role: &str) -> Result<&'a [f32], String> {
        match self.tensor(role) {
            Some(Tensor::F32(_, values)) => Ok(values),
            _ => Err(format!("tensor {role:?} must be there, as float32")),
        }
    }

    /// As [`NodeView::floats`], of a role that may be absent.
    ///
    /// # Errors
    /// That it is no float32.
    pub fn optional_floats(&self, role: &str) -> Result<Option<&'a [f32]>, String> {
        self.node.tensors.contains_key(role).then(|| self.floats(role)).transpose()
    }
}
