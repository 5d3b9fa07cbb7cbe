//! Errors of the core as the package's exceptions, which are defined in Python (`fatnn_rs/errors.py`).

use fatnn::Error;
use pyo3::prelude::*;

/// An instance of `fatnn_rs.errors.<class>`.
fn exception(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let made = py.import("fatnn_rs.errors").and_then(|m| m.getattr(class)).and_then(|c| c.call1((message,)));
    match made {
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

/// The exception for an error of the core.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    match class(&error) {
        Some(class) => exception(py, class, &error.to_string()),
        // The standard OSError subclasses, with the file named in the message.
        None => match &error {
            Error::Io { source, .. } => PyErr::from(std::io::Error::new(source.kind(), error.to_string())),
            _ => exception(py, "FatnnError", &error.to_string()),
        },
    }
}

/// Which of the package's exceptions an error is; `None` for the standard library's.
fn class(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Shape { .. } | Error::Value { .. } | Error::NotANumber { .. } | Error::Packed { .. } => "InputError",
        Error::Environment { .. } | Error::Threads { .. } => "ConfigError",
        Error::Format { .. } | Error::Graph { .. } => "FormatError",
        Error::Unsupported { .. } => "UnsupportedError",
        Error::Node { source, .. } => return class(source),
        _ => return None,
    })
}
