//! Networks as data: a typed graph, the table of operations, the file. No CPU, no kernel, no
//! packing.
//!
//! | module | what lives in it |
//! | --- | --- |
//! | [`op`] | [`Op`]: what a node does, with typed attributes |
//! | [`ops`] | [`ops::OPS`]: one row per operation, read by checks, reports and bindings |
//! | [`graph`](mod@graph) | [`Graph`]: nodes, values, outputs |
//! | [`spatial`] | what changes the size of maps, and the sizes that it makes |
//! | [`tensor`] | [`Tensor`]: weights, scales, thresholds |
//! | [`check`] | whether a graph is well-formed, and the types of its values |
//! | [`cost`] | shapes of all values at conversion, and what a run costs |
//! | [`shapes`] | shapes of all values in every run |
//! | [`size`] | [`size::Size`]: a number, or an expression of what runs choose |
//! | [`support`] | what the engine can run |
//! | [`file`](mod@file) | the canonical file |
//! | `file_v1` | files of version 1, as graphs of the present version |
//! | [`report`] | what `fatnn inspect` and `net.report` show |
//!
//! A graph is read with [`Graph::parse`] and checked with [`check::check`]; the engine compiles it.

pub mod attrs;
pub mod check;
pub mod cost;
pub mod file;
mod file_v1;
#[allow(clippy::module_inception, reason = "the type that the module is about")]
pub mod graph;
pub mod op;
pub mod ops;
mod parse;
pub mod report;
pub mod shapes;
mod shapes_spatial;
mod shapes_sums;
pub mod size;
pub mod spatial;
pub mod support;
mod table;
mod table_masks;
mod table_scalar;
mod table_spatial;
mod table_sums;
pub mod tensor;
mod types;

pub use graph::{Graph, Node, NodeView, Outputs, Source, Tensors, ValueId};
pub use op::{ConvParams, Op};
pub use tensor::Tensor;

/// Why a node could not be built.
#[derive(Debug)]
pub(crate) enum BuildError {
    /// It means nothing: the graph is damaged.
    Invalid(String),
    /// It means something that this engine cannot run.
    Unsupported(String),
    /// Memory, a limit or the environment.
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
