//! Converts errors of the core to the package's exceptions, which are defined in Python
//! (`fatnn_rs/errors.py`). A panic is a bug and becomes a `FatnnError`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fatnn::Error;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

/// An instance of `fatnn_rs.errors.<class>`.
fn exception(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let value = py
        .import("fatnn_rs.errors")
        .and_then(|m| m.getattr(class))
        .and_then(|c| c.call1((message,)));
    match value {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

/// `fatnn_rs.errors.InputError`.
pub(crate) fn input_error(py: Python<'_>, message: &str) -> PyErr {
    exception(py, "InputError", message)
}

/// `fatnn_rs.errors.ConfigError`.
pub(crate) fn config_error(py: Python<'_>, message: &str) -> PyErr {
    exception(py, "ConfigError", message)
}

/// Converts an error of the core to a Python exception.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    match class_name(&error) {
        Some(class) => exception(py, class, &error.to_string()),
        // Python's own exceptions; the message says what failed.
        None => match root_cause(&error) {
            Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
            Error::Io { source, .. } => {
                PyErr::from(std::io::Error::new(source.kind(), error.to_string()))
            }
            _ => exception(py, "FatnnError", &error.to_string()),
        },
    }
}

/// The error inside the errors that name a node.
fn root_cause(error: &Error) -> &Error {
    match error {
        Error::Node { source, .. } => root_cause(source),
        other => other,
    }
}

/// The package's exception for an error; `None` for those that become Python's own exceptions.
fn class_name(error: &Error) -> Option<&'static str> {
    Some(match root_cause(error) {
        Error::Shape { .. }
        | Error::Value { .. }
        | Error::NotANumber { .. }
        | Error::Packed { .. } => "InputError",
        Error::Environment { .. } | Error::Threads { .. } => "ConfigError",
        Error::Format { .. } | Error::Graph { .. } => "FormatError",
        Error::Unsupported { .. } => "UnsupportedError",
        Error::Limit { .. } => "LimitError",
        _ => return None,
    })
}

/// Runs the body of a Python function. A panic of the core becomes a `FatnnError`, because
/// `except Exception` does not catch PyO3's `PanicException`.
pub(crate) fn guarded<T>(py: Python<'_>, body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(done) => done,
        Err(panic) => Err(exception(py, "FatnnError", &panic_message(&*panic))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let what = panic.downcast_ref::<String>().map(String::as_str);
    let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!(
        "internal error of the Rust core ({what}); this is a bug of fatnn-rs, please report it \
         with this message"
    )
}

/// Releases the GIL while the core does `work`.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> fatnn::Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|e| raise(py, e))
}
