//! A whole network in one call.
//!
//! [`Network`] is compiled once from a graph and its tensors. The first run at an input shape
//! plans: it settles every value's shape and buffer. Later runs at that shape allocate no memory
//! for values. Runs at the same time are safe: each takes a set of buffers of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::compile;
use super::input::ValueInfo;
use super::plan::Workspace;
use super::value::{Operation, Value};
use crate::codec::CodesLayout;
use crate::error::{Error, Result};
use crate::graph::{Tensors, file};
use crate::kernels::Family;
use crate::limits::Limits;

/// A network, ready to run.
#[derive(Debug)]
pub struct Network {
    pub(super) inputs: Vec<ValueInfo>,
    pub(super) outputs: Vec<ValueInfo>,
    pub(super) nodes: Vec<NetNode>,
    /// Number of values: inputs first, then what nodes make.
    pub(super) values: usize,
    pub(super) limits: Limits,
    /// Bytes of packed weights.
    pub(super) weight_bytes: u128,
    /// Whether a batch's results are those of its images, one after the other.
    pub(super) images_apart: bool,
    pub(super) not_fused: Vec<NotFused>,
    pub(super) workspaces: Mutex<Vec<Workspace>>,
}

/// A rewrite that is for a node, but did not apply to it: the node runs on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFused {
    /// The node's name.
    pub node: String,
    /// The layer that it came from; the node's name where there is none.
    pub layer: String,
    /// Name of the rewrite.
    pub pass: &'static str,
    /// Why, as what follows "because".
    pub reason: &'static str,
}

#[derive(Debug)]
pub(super) struct NetNode {
    pub name: String,
    /// For messages.
    pub label: String,
    pub operation: Arc<dyn Operation>,
    pub inputs: Vec<usize>,
    pub output: usize,
    /// Codes of the output that the operation makes on the way.
    pub quantizer: Option<FusedQuantizer>,
}

/// A quantizer that runs inside the operation whose output it reads.
#[derive(Debug)]
pub(super) struct FusedQuantizer {
    pub name: String,
    /// For messages.
    pub label: String,
    pub value: usize,
    pub layout: CodesLayout,
}

impl NetNode {
    /// The values that it reads.
    pub fn read(&self, values: &[Value]) -> Vec<Value> {
        self.inputs.iter().map(|&value| values[value]).collect() // small: as many as the node names
    }

    /// An error that names it.
    pub fn error(&self, error: Error) -> Error {
        match error {
            // A shortcut that runs inside it has named itself.
            Error::Node { .. } => error,
            _ => Error::Node { node: self.label.clone(), source: Box::new(error) },
        }
    }

    /// The values that it makes: its output first.
    pub fn makes(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.output).chain(self.quantizer.iter().map(|quantizer| quantizer.value))
    }
}

impl Network {
    /// Reads a network that [`crate::net::save`] wrote.
    ///
    /// # Errors
    /// As [`crate::net::load`]; [`Error::Unsupported`] naming the nodes that only PyTorch can run;
    /// [`Error::Limit`] where it would cost more than [`Limits::DEFAULT`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_within(path, Limits::default())
    }

    /// As [`Network::load`], within other limits. They hold when it is loaded, for the shapes that
    /// it was converted at, and in every run for the shapes that it gets then.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn load_within(path: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let path = path.as_ref();
        let (graph, tensors) = file::load(path)?;
        Self::within(&graph, &tensors, limits).map_err(|e| match e {
            Error::Graph { why } => Error::Format { path: path.into(), why },
            other => other,
        })
    }

    /// Builds a network from a graph's JSON (as a file has it) and its tensors.
    ///
    /// # Errors
    /// [`Error::Graph`] where the graph is not well-formed, [`Error::Unsupported`] naming the nodes
    /// that only PyTorch can run, [`Error::Limit`] where it would cost more than
    /// [`Limits::DEFAULT`], [`Error::Memory`] where there is no memory for its weights,
    /// [`Error::Environment`] where a `FATNN_*` variable has a meaningless value.
    pub fn new(graph: &str, tensors: &Tensors) -> Result<Self> {
        Self::within(graph, tensors, Limits::default())
    }

    /// As [`Network::new`], within other limits: see [`Network::load_within`].
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn within(graph: &str, tensors: &Tensors, limits: Limits) -> Result<Self> {
        crate::kernels::best()?;
        compile::network(graph, tensors, None, limits)
    }

    /// As [`Network::new`], all its products on one family of kernels: for benchmarks.
    ///
    /// # Errors
    /// As [`Network::new`]; [`Error::Unsupported`] naming the nodes where the family has no kernel
    /// for its operands.
    pub fn for_family(graph: &str, tensors: &Tensors, family: Family) -> Result<Self> {
        compile::network(graph, tensors, Some(family), Limits::NONE)
    }

    /// Checks that it can run at the shapes it was converted at, and within the limits.
    pub(super) fn of(
        inputs: Vec<ValueInfo>,
        outputs: Vec<ValueInfo>,
        nodes: Vec<NetNode>,
        values: usize,
        (limits, weight_bytes): (Limits, u128),
        images_apart: bool,
    ) -> Result<Self> {
        let (not_fused, workspaces) = (Vec::new(), Mutex::default());
        let net = Network {
            inputs,
            outputs,
            nodes,
            values,
            limits,
            weight_bytes,
            images_apart,
            not_fused,
            workspaces,
        };
        let noted = net.inputs.iter().map(ValueInfo::noted).collect::<Result<Vec<_>>>()?;
        net.measure(&noted)?;
        Ok(net)
    }

    /// What it may cost.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Names of the inputs, with their shapes at conversion.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|info| (info.name.as_str(), info.shape.as_slice()))
    }

    /// Names of the outputs, with their shapes at conversion.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.outputs.iter().map(|info| (info.name.as_str(), info.shape.as_slice()))
    }

    /// What every product runs on, in order: the node's name, the kernel's, and the bytes that its
    /// weights take as they are laid out for it.
    pub fn products(&self) -> impl Iterator<Item = (&str, &'static str, usize)> {
        self.nodes.iter().flat_map(|node| node.operation.products(&node.name))
    }

    /// Rewrites that are for a node but did not apply, by pass and then in the order of nodes.
    pub fn not_fused(&self) -> &[NotFused] {
        &self.not_fused
    }

    /// Bytes of the buffers kept at this moment, over all input shapes seen.
    pub fn buffer_bytes(&self) -> usize {
        self.lock().iter().map(Workspace::bytes).sum()
    }

    /// Frees the buffers kept at this moment; later runs plan theirs anew.
    pub fn drop_buffers(&self) {
        self.lock().clear();
    }
}
