//! A graph: nodes, the values that they produce, and the network's outputs.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::op::Op;
use super::ops::{Form, OpInfo};
use super::tensor::Tensor;
use crate::dtype::ValueType;
use crate::error::{Error, Result};

/// Tensors of a graph by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A value, identified by the index of the node that produces it. Every node produces one value.
pub type ValueId = usize;

/// Where a graph comes from, which decides how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file. All required fields and attributes must be present; unknown ones are an error.
    File,
    /// A description for the engine. Fields that the engine does not need may be absent, and
    /// unknown attributes are ignored.
    Description,
}

/// The memory format that PyTorch needs for a node's input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Any memory format.
    #[default]
    Any,
    /// Channels first.
    Contiguous,
    /// Channels last.
    ChannelsLast,
    /// Dense, with the dimensions in this order in memory, outermost first.
    Order(Vec<usize>),
}

/// One operation of a graph, with its inputs and tensors.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of the node and of the value that it produces.
    pub name: String,
    /// The operation with its attributes.
    pub op: Op,
    /// Row of the operation in the table; `None` for [`Op::Other`].
    pub info: Option<&'static OpInfo>,
    /// Values that the node reads.
    pub inputs: Vec<ValueId>,
    /// Role → name of the tensor.
    pub tensors: BTreeMap<String, String>,
    /// Name of the PyTorch layer that the node came from; empty if there is none.
    pub layer: String,
    /// Declared type of the value; a description may leave it out.
    pub dtype: Option<ValueType>,
    /// Shape of the value at conversion. Codes have the shape of the values that they stand for.
    pub shape: Vec<usize>,
    /// Remark for reports, such as what was fused into the node.
    pub note: String,
    /// Memory format that PyTorch needs for the input.
    pub layout: Layout,
    /// Index of the node in the file. [`Graph::nodes`] has all inputs first; a file need not.
    pub position: usize,
}

impl Node {
    /// Name of the operation.
    pub fn op_name(&self) -> &str {
        match &self.op {
            Op::Other { name, .. } => name,
            _ => self.info.map_or("", |info| info.name),
        }
    }

    /// Whether the operation is elementwise: one function for all elements, or one per channel.
    pub(crate) fn is_elementwise(&self) -> bool {
        self.info.is_some_and(|info| matches!(info.form, Form::Scalar | Form::Channel))
    }

    /// The channel dimension of a per-channel function; `None` for other operations.
    pub(crate) fn channel_dim(&self) -> Option<usize> {
        match &self.op {
            Op::ChannelScale { trailing: Some(trailing) }
            | Op::ChannelBias { trailing: Some(trailing) } => {
                self.shape.len().checked_sub(trailing + 1)
            }
            _ => self.info.is_some_and(|info| info.form == Form::Channel).then_some(1),
        }
    }

    /// Name for messages: the layer, or the node if there is no layer.
    pub fn label(&self) -> String {
        match self.layer.as_str() {
            "" => format!("node '{}'", self.name),
            layer => format!("layer '{layer}'"),
        }
    }

    /// Start of error messages: the node, its operation and its layer.
    pub(crate) fn place(&self) -> String {
        let layer =
            if self.layer.is_empty() { String::new() } else { format!(", layer {:?}", self.layer) };
        format!("node {:?} ({}{layer})", self.name, self.op_name())
    }

    /// An [`Error::Graph`] about this node.
    pub(crate) fn invalid(&self, why: impl std::fmt::Display) -> Error {
        Error::Graph { why: format!("{}: {why}", self.place()) }
    }
}

/// What a network returns: values in nested lists, tuples and dictionaries.
#[derive(Clone, Debug, PartialEq)]
pub enum Outputs {
    /// A value of the graph.
    Value(ValueId),
    /// A constant, such as `None` or a number.
    Constant(Json),
    /// A list.
    List(Vec<Outputs>),
    /// A tuple.
    Tuple(Vec<Outputs>),
    /// A dictionary with keys in alphabetical order.
    Dict(Vec<(String, Outputs)>),
    /// A dictionary with keys in any other order.
    DictItems(Vec<(String, Outputs)>),
    /// An `OrderedDict`.
    OrderedDict(Vec<(String, Outputs)>),
}

impl Outputs {
    /// Calls `visit` with every value, in order.
    pub fn for_each(&self, visit: &mut dyn FnMut(ValueId)) {
        match self {
            Outputs::Value(value) => visit(*value),
            Outputs::Constant(_) => (),
            Outputs::List(items) | Outputs::Tuple(items) => {
                items.iter().for_each(|item| item.for_each(visit))
            }
            Outputs::Dict(items) | Outputs::DictItems(items) | Outputs::OrderedDict(items) => {
                items.iter().for_each(|(_, item)| item.for_each(visit));
            }
        }
    }

    /// All values of the structure, in order.
    pub fn values(&self) -> Vec<ValueId> {
        let mut values = Vec::new();
        self.for_each(&mut |value| values.push(value));
        values
    }
}

/// A network as data: nothing in it depends on a CPU.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Inputs, then the other nodes in execution order. A node reads only values of earlier nodes.
    pub nodes: Vec<Node>,
    /// The network's return value.
    pub outputs: Outputs,
    /// Remarks for reports.
    pub notes: Vec<String>,
    /// How Python calls the network; `None` if it takes one array per input.
    pub arguments: Option<Json>,
    /// Strides of the model's tensors, by name, if they were not row-major. The tensors here are.
    pub strides: BTreeMap<String, Vec<u64>>,
}

impl Graph {
    /// Reads a graph's JSON text.
    ///
    /// # Errors
    /// [`Error::Graph`] naming the first wrong field.
    pub fn parse(text: &str, source: Source) -> Result<Self> {
        let json: Json = serde_json::from_str(text)
            .map_err(|e| Error::Graph { why: format!("the graph is not JSON: {e}") })?;
        super::parse::graph(&json, source)
    }

    /// Number of inputs. Their nodes come first.
    pub fn input_count(&self) -> usize {
        self.nodes.iter().take_while(|node| matches!(node.op, Op::Input(_))).count()
    }
}

/// A node together with the tensors of its graph.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// The node.
    pub node: &'a Node,
    /// All tensors of the graph.
    pub tensors: &'a Tensors,
}

impl<'a> NodeView<'a> {
    /// The tensor of a role; `None` if the node has none.
    pub fn tensor(&self, role: &str) -> Option<&'a Tensor> {
        self.node.tensors.get(role).and_then(|name| self.tensors.get(name))
    }

    /// Shape of the tensor of a role.
    ///
    /// # Errors
    /// The tensor is missing.
    pub fn shape(&self, role: &str) -> Result<&'a [usize], String> {
        self.tensor(role)
            .map(Tensor::shape)
            .ok_or_else(|| format!("tensor role {role:?} is missing"))
    }

    /// Values of a float32 tensor.
    ///
    /// # Errors
    /// The tensor is missing or not float32.
    pub fn floats(&self, role: &str) -> Result<&'a [f32], String> {
        match self.tensor(role) {
            Some(Tensor::F32(_, values)) => Ok(values),
            _ => Err(format!("tensor role {role:?} is missing or not float32")),
        }
    }

    /// As [`NodeView::floats`]; `None` if the node does not have the role.
    ///
    /// # Errors
    /// The tensor is not float32.
    pub fn optional_floats(&self, role: &str) -> Result<Option<&'a [f32]>, String> {
        self.node.tensors.contains_key(role).then(|| self.floats(role)).transpose()
    }
}
