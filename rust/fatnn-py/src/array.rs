//! NumPy arrays in and out: the one file in which tensors cross the border.
//!
//! Every array is checked for type, number of axes and contiguity, and a slice over it is all that the rest sees.

use numpy::{
    Element, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::errors::input_error;

/// A read-only array: its shape and its elements.
pub(crate) struct In<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
}

impl<'py, T: Element> In<'py, T> {
    /// Checks argument `name`: `axes` axes (any number where `None`), dtype of `T`, C-contiguous.
    pub(crate) fn new(value: &Bound<'py, PyAny>, name: &str, axes: Option<usize>) -> PyResult<Self> {
        let array = checked::<T>(value, name, axes)?;
        let array = array.try_readonly().map_err(|e| input_error(value.py(), &format!("{name}: {e}")))?;
        Ok(In { array })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    pub(crate) fn slice(&self) -> &[T] {
        self.array.as_slice().expect("checked: contiguous")
    }
}

/// A writable array.
pub(crate) struct Out<'py, T: Element> {
    array: PyReadwriteArrayDyn<'py, T>,
}

impl<'py, T: Element> Out<'py, T> {
    /// As [`In::new`]; also fails where the array is read-only or in use as an input of the same call.
    pub(crate) fn new(value: &Bound<'py, PyAny>, name: &str, axes: Option<usize>) -> PyResult<Self> {
        let array = checked::<T>(value, name, axes)?;
        let array = array.try_readwrite().map_err(|e| input_error(value.py(), &format!("{name}: {e}")))?;
        Ok(Out { array })
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        self.array.shape().to_vec()
    }

    pub(crate) fn slice(&mut self) -> &mut [T] {
        self.array.as_slice_mut().expect("checked: contiguous")
    }
}

fn checked<'py, T: Element>(
    value: &Bound<'py, PyAny>,
    name: &str,
    axes: Option<usize>,
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let py = value.py();
    let Ok(untyped) = value.cast::<PyUntypedArray>() else {
        let got = value.get_type().name()?;
        return Err(input_error(py, &format!("{name}: expected a NumPy array, got {got}")));
    };
    let (expected, got) = (T::get_dtype(py), untyped.dtype());
    if !got.is_equiv_to(&expected) {
        return Err(input_error(
            py,
            &format!("{name}: expected dtype {expected}, got {got}; convert it with .astype(...)"),
        ));
    }
    if let Some(axes) = axes
        && untyped.ndim() != axes
    {
        let shape = untyped.shape();
        return Err(input_error(py, &format!("{name}: expected {axes} axes, got {} (shape {shape:?})", shape.len())));
    }
    if !untyped.is_c_contiguous() {
        return Err(input_error(
            py,
            &format!("{name}: expected a C-contiguous array; copy it with numpy.ascontiguousarray(...)"),
        ));
    }
    value.cast::<PyArrayDyn<T>>().cloned().map_err(Into::into)
}
