//! A network that runs in one call.
//!
//! [`Network`] is compiled once from a graph and its tensors. The first run at an input shape plans
//! the shape and buffer of every value. Later runs at that shape allocate no memory for values.
//! Concurrent runs are safe: each uses its own buffers.

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
    /// Number of values: inputs first, then outputs of nodes.
    pub(super) values: usize,
    pub(super) limits: Limits,
    /// Bytes of packed weights.
    pub(super) weight_bytes: u128,
    /// Whether images of a batch may run one by one.
    pub(super) independent_images: bool,
    pub(super) not_fused: Vec<NotFused>,
    pub(super) workspaces: Mutex<Vec<Workspace>>,
}

/// A rewrite that is meant for a node but did not apply, so the node runs on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFused {
    /// The node's name.
    pub node: String,
    /// The layer that it came from; the node's name if there is none.
    pub layer: String,
    /// Name of the rewrite.
    pub pass: &'static str,
    /// The reason, worded to follow "because".
    pub reason: &'static str,
}

#[derive(Debug)]
pub(super) struct NetNode {
    pub name: String,
    /// Name used in error messages.
    pub label: String,
    pub operation: Arc<dyn Operation>,
    pub inputs: Vec<usize>,
    pub output: usize,
    /// Name of the fused `fake_quantize`, if the output is stored as bytes.
    pub int8: Option<String>,
    /// The fused quantizer, whose codes the operation writes as well as its output.
    pub quantizer: Option<FusedQuantizer>,
}

/// A quantizer that is fused into the operation whose output it reads.
#[derive(Debug)]
pub(super) struct FusedQuantizer {
    pub name: String,
    /// Name used in error messages.
    pub label: String,
    pub value: usize,
    pub layout: CodesLayout,
}

impl NetNode {
    /// The values that the node reads.
    pub fn read(&self, values: &[Value]) -> Vec<Value> {
        self.inputs.iter().map(|&value| values[value]).collect() // small: as many as the node names
    }

    /// Wraps an error with the node's name.
    pub fn error(&self, error: Error) -> Error {
        error.in_node(&self.label)
    }

    /// The values that the node writes: its output, then the codes of a fused quantizer.
    pub fn written(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.output).chain(self.quantizer.iter().map(|quantizer| quantizer.value))
    }
}

impl Network {
    /// Reads a network that [`crate::net::save`] wrote.
    ///
    /// # Errors
    /// As [`crate::net::load`]; [`Error::Unsupported`] naming the nodes that only PyTorch can run;
    /// [`Error::Limit`] if the network would cost more than [`Limits::DEFAULT`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_within(path, Limits::default())
    }

    /// As [`Network::load`], within other limits. They are checked at load time for the shapes of
    /// the conversion, and in every run for the shapes of its inputs.
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

    /// Builds a network from a graph's JSON, in the form that files have, and its tensors.
    ///
    /// # Errors
    /// [`Error::Graph`] if the graph is not well-formed, [`Error::Unsupported`] naming the nodes
    /// that only PyTorch can run, [`Error::Limit`] if it would cost more than [`Limits::DEFAULT`],
    /// [`Error::Memory`] if there is no memory for its weights, [`Error::Environment`] if a
    /// `FATNN_*` variable has an invalid value.
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

    /// As [`Network::new`], with all products on one kernel family: for benchmarks.
    ///
    /// # Errors
    /// As [`Network::new`]; [`Error::Unsupported`] naming the nodes for whose operands the family
    /// has no kernel.
    pub fn for_family(graph: &str, tensors: &Tensors, family: Family) -> Result<Self> {
        compile::network(graph, tensors, Some(family), Limits::NONE)
    }

    /// Builds the network and checks that it can run at the shapes of the conversion, within the
    /// limits.
    pub(super) fn of(
        inputs: Vec<ValueInfo>,
        outputs: Vec<ValueInfo>,
        nodes: Vec<NetNode>,
        values: usize,
        (limits, weight_bytes): (Limits, u128),
        independent_images: bool,
    ) -> Result<Self> {
        let (not_fused, workspaces) = (Vec::new(), Mutex::default());
        let net = Network {
            inputs,
            outputs,
            nodes,
            values,
            limits,
            weight_bytes,
            independent_images,
            not_fused,
            workspaces,
        };
        let at_conversion =
            net.inputs.iter().map(ValueInfo::at_conversion).collect::<Result<Vec<_>>>()?;
        net.measure(&at_conversion)?;
        Ok(net)
    }

    /// The limits on what it may cost.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Names of the inputs, with their shapes at conversion.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|info| (info.name.as_str(), info.shape.as_slice()))
    }

    /// Types of the inputs, with PyTorch's names.
    pub fn input_types(&self) -> impl Iterator<Item = &'static str> {
        self.inputs.iter().map(|info| info.dtype.plain_name().unwrap_or_default())
    }

    /// Names of the outputs, with their shapes at conversion.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.outputs.iter().map(|info| (info.name.as_str(), info.shape.as_slice()))
    }

    /// The kernel of every product, in order: the node's name, the kernel's name, and the bytes of
    /// the packed weights.
    pub fn products(&self) -> impl Iterator<Item = (&str, &'static str, usize)> {
        self.nodes.iter().flat_map(|node| node.operation.products(&node.name))
    }

    /// Rewrites that are meant for a node but did not apply, ordered by pass and then by node.
    pub fn not_fused(&self) -> &[NotFused] {
        &self.not_fused
    }

    /// Bytes of all buffers that are kept now, for all input shapes seen.
    pub fn buffer_bytes(&self) -> usize {
        self.lock().iter().map(Workspace::bytes).sum()
    }

    /// Frees the buffers that are kept now. Later runs plan and allocate new ones.
    pub fn drop_buffers(&self) {
        self.lock().clear();
    }
}
