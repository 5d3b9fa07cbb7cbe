//! The crate's one error type: a variant per cause, each naming what was wrong, what was expected
//! and what was got.

use std::path::PathBuf;

/// Everything that can go wrong in this crate. No public function panics on bad input; it returns
/// one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice or array does not have the size its shape asks for.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument, as the caller knows it.
        what: &'static str,
        /// The size or shape that would have been right.
        expected: String,
        /// The size or shape that came.
        got: String,
    },
    /// A value lies outside what an argument allows.
    #[error("{what}: expected {expected}, got {got}")]
    Value {
        /// The argument, as the caller knows it.
        what: &'static str,
        /// The values that are allowed.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// A float input holds NaN, which has no ternary code.
    #[error(
        "{what}: element {index} is NaN, and NaN has no code; check the layer before (an overflow, a division by zero, an uninitialised input)"
    )]
    NotANumber {
        /// The argument, as the caller knows it.
        what: &'static str,
        /// Flat index of the first NaN in memory order.
        index: usize,
    },
    /// Weights were packed for a kernel that this process cannot run.
    #[error(
        "packed weights: {why}; pack the weights again with `prepack` on this machine (packed weights are never stored in files)"
    )]
    Packed {
        /// What in the packed weights does not fit.
        why: String,
    },
    /// An environment variable has a value that means nothing.
    #[error("environment variable {name}: expected {expected}, got {got:?}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// The values that mean something.
        expected: &'static str,
        /// Its value.
        got: String,
    },
    /// A file is not a network in the canonical format, or a damaged one.
    #[error("{path}: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        why: String,
    },
    /// A graph is not well-formed.
    #[error("{why}; it was not written by fatnn-rs, or by another version of it")]
    Graph {
        /// Which node, and what is wrong with it.
        why: String,
    },
    /// A graph holds nodes that only PyTorch can run.
    #[error("{what}: not covered by the Rust engine; run the network from PyTorch")]
    Unsupported {
        /// The nodes.
        what: String,
    },
    /// A node of a network could not run.
    #[error("{node}: {source}")]
    Node {
        /// The layer or node, as messages name it.
        node: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// Memory for something whose size data decides could not be had.
    #[error(
        "out of memory: {what} needs {bytes} bytes; use smaller inputs, fewer images at a time, or a larger machine"
    )]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How many bytes were asked for; `usize::MAX` stands for more than can be counted.
        bytes: usize,
    },
    /// A network would cost more than its [`crate::net::Limits`] allow.
    #[error(
        "{what}: {needed} {unit}, more than {argument} = {limit}; if that is intended, load it with a larger {argument}"
    )]
    Limit {
        /// The node, or what of the network.
        what: String,
        /// What it would cost.
        needed: u128,
        /// What is counted: `"bytes"` or `"multiply-accumulates per image"`.
        unit: &'static str,
        /// The field of the limits: `"max_bytes"` or `"max_macs"`.
        argument: &'static str,
        /// Its value.
        limit: u64,
    },
    /// A run was told to stop: see [`crate::net::Network::run_while`].
    #[error("interrupted: the run was told to stop before it was done")]
    Interrupted,
    /// The operating system refused to read or write a file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} worker threads: {why}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The operating system's reason.
        why: String,
    },
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `Ok` if `got == expected`, else a [`Error::Shape`] about `what`.
pub(crate) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{expected} elements"), got: format!("{got}") })
}

/// A [`Error::Value`].
pub(crate) fn bad_value<T>(
    what: &'static str,
    expected: impl Into<String>,
    got: impl ToString,
) -> Result<T> {
    Err(Error::Value { what, expected: expected.into(), got: got.to_string() })
}
