//! The crate's error type: one variant per cause. Each names what was wrong, what was expected and
//! what was given.

use std::path::PathBuf;

/// Everything that can go wrong in this crate. Public functions return it instead of panicking.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice or array has another size than its shape requires.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument, by the caller's name for it.
        what: &'static str,
        /// The right size or shape.
        expected: String,
        /// The size or shape that was given.
        got: String,
    },
    /// A value outside the range that an argument allows.
    #[error("{what}: expected {expected}, got {got}")]
    Value {
        /// The argument, by the caller's name for it.
        what: &'static str,
        /// The allowed values.
        expected: String,
        /// The value that was given.
        got: String,
    },
    /// A float input holds NaN, which no code can represent.
    #[error(
        "{what}: element {index} is NaN, and NaN has no code; check the layer before \
         (an overflow, a division by zero, an uninitialised input)"
    )]
    NotANumber {
        /// The argument, by the caller's name for it.
        what: &'static str,
        /// Flat index of the first NaN, in memory order.
        index: usize,
    },
    /// Weights were packed for a kernel that this process cannot run.
    #[error(
        "packed weights: {why}; pack the weights again with `prepack` on this machine \
         (packed weights are never stored in files)"
    )]
    Packed {
        /// Why this process cannot use them.
        why: String,
    },
    /// An environment variable has an invalid value.
    #[error("environment variable {name}: expected {expected}, got {got:?}")]
    Environment {
        /// The variable's name.
        name: &'static str,
        /// The valid values.
        expected: &'static str,
        /// The value found.
        got: String,
    },
    /// A file is damaged, or not a network in the canonical format.
    #[error("{path}: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        why: String,
    },
    /// A graph is malformed.
    #[error("{why}; fatnn-rs did not write this graph, or another version did: convert again")]
    Graph {
        /// The node, and what is wrong with it.
        why: String,
    },
    /// A graph has nodes that only PyTorch can run.
    #[error("{what}: not covered by the Rust engine; run the network from PyTorch")]
    Unsupported {
        /// Those nodes.
        what: String,
    },
    /// Running a node of a network failed.
    #[error("{node}: {source}")]
    Node {
        /// The layer's or node's name.
        node: String,
        /// The cause.
        source: Box<Error>,
    },
    /// An allocation failed whose size depends on data.
    #[error(
        "out of memory: {what} needs {bytes} bytes; use smaller inputs, fewer images at a time, \
         or a larger machine"
    )]
    Memory {
        /// What it was for.
        what: &'static str,
        /// Requested bytes; `usize::MAX` if the number overflows.
        bytes: usize,
    },
    /// A network exceeds its [`crate::net::Limits`].
    #[error(
        "{what}: {needed} {unit}, more than {argument} = {limit}; \
         if that is intended, load it with a larger {argument}"
    )]
    Limit {
        /// The node, or the part of the network.
        what: String,
        /// What it needs, in `unit`.
        needed: u128,
        /// The unit: `"bytes"` or `"multiply-accumulates per image"`.
        unit: &'static str,
        /// The field of the limits that was exceeded: `"max_bytes"` or `"max_macs"`.
        argument: &'static str,
        /// That field's value.
        limit: u64,
    },
    /// The caller stopped the run, see [`crate::net::Network::run_while`].
    #[error("interrupted: the run was told to stop before it was done")]
    Interrupted,
    /// The operating system could not read or write a file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The worker threads could not be started.
    #[error(
        "cannot start {threads} worker threads: {why}; \
         use fewer, by set_num_threads or FATNN_NUM_THREADS"
    )]
    Threads {
        /// The number of threads requested.
        threads: usize,
        /// The operating system's reason.
        why: String,
    },
}

impl Error {
    /// Adds the name of the node that failed, unless a fused node has already added its own.
    pub(crate) fn in_node(self, label: &str) -> Self {
        match self {
            Error::Node { .. } => self,
            _ => Error::Node { node: label.to_owned(), source: Box::new(self) }, // small: a name
        }
    }

    /// Moves the index of a NaN that was counted from element `first` on.
    pub(crate) fn counted_from(self, first: usize) -> Self {
        match self {
            Error::NotANumber { what, index } => Error::NotANumber { what, index: first + index },
            other => other,
        }
    }
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `Ok` if `got == expected`, else an [`Error::Shape`] about `what`.
pub(crate) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{expected} elements"), got: format!("{got}") })
}

/// An [`Error::Value`].
pub(crate) fn bad_value<T>(
    what: &'static str,
    expected: impl Into<String>,
    got: impl ToString,
) -> Result<T> {
    Err(Error::Value { what, expected: expected.into(), got: got.to_string() })
}
