//! Networks as data: a typed graph, the table of operations, and the file format. Nothing here
//! knows a CPU, a kernel or packed weights.
//!
//! | module | what lives in it |
//! | --- | --- |
//! | [`op`] | [`Op`]: what a node does, with typed attributes |
//! | [`ops`] | [`ops::OPS`]: one row per operation; checks, reports and bindings read it |
//! | [`graph`](mod@graph) | [`Graph`]: nodes, values, outputs |
//! | [`spatial`] | operations that resize feature maps, and their output sizes |
//! | [`tensor`] | [`Tensor`]: weights, scales, thresholds |
//! | [`check`] | checks that a graph is well-formed; finds the types of its values |
//! | [`cost`] | shapes of all values at conversion, and the cost of a run |
//! | [`shapes`] | shapes of all values for any input size |
//! | [`size`] | [`size::Size`]: a number, or an expression of dynamic input sizes |
//! | [`support`] | what the engine can run |
//! | [`file`](mod@file) | the file format: writing, reading, and converting files of version 1 |
//! | [`report`] | what `fatnn inspect` and `net.report` show |
//!
//! [`Graph::parse`] reads a graph and [`check::check`] checks it; then the engine compiles it.

pub mod attrs;
pub mod check;
pub mod cost;
pub mod file;
#[allow(clippy::module_inception, reason = "the type that the module is about")]
pub mod graph;
pub mod op;
pub mod ops;
mod parse;
pub mod report;
pub mod shapes;
pub mod size;
pub mod spatial;
pub mod support;
mod table;
pub mod tensor;
mod types;

pub use graph::{Graph, Node, NodeView, Outputs, Source, Tensors, ValueId};
pub use op::{ConvParams, Op};
pub use tensor::Tensor;

/// Why a node could not be built.
#[derive(Debug)]
pub(crate) enum BuildError {
    /// The node is malformed: the graph is damaged.
    Invalid(String),
    /// The node is valid, but this engine cannot run it.
    Unsupported(String),
    /// Out of memory, over a limit, or a wrong environment variable.
    Failed(crate::error::Error),
}

impl From<String> for BuildError {
    fn from(why: String) -> Self {
        BuildError::Invalid(why)
    }
}

impl From<&str> for BuildError {
    fn from(why: &str) -> Self {
        BuildError::Invalid(why.into())
    }
}

impl From<crate::error::Error> for BuildError {
    fn from(error: crate::error::Error) -> Self {
        use crate::error::Error;
        match error {
            Error::Memory { .. } | Error::Limit { .. } | Error::Environment { .. } => {
                BuildError::Failed(error)
            }
            other => BuildError::Invalid(other.to_string()),
        }
    }
}
