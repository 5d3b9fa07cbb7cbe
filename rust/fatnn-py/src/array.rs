//! NumPy arrays as arguments and results. Only this file converts between arrays and slices.
//!
//! Every array is checked for type, number of axes, contiguity and alignment; all other code sees
//! only a slice of its elements.

use std::ops::Range;

use numpy::{
    Element, IntoPyArray, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn,
    PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::errors::input_error;

/// A read-only array: its shape and its elements.
pub(crate) struct ReadonlyArray<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
}

impl<'py, T: Element> ReadonlyArray<'py, T> {
    /// Checks argument `name`: dtype of `T`, C-contiguous, and `axes` axes (`None`: any number).
    pub(crate) fn new(
        value: &Bound<'py, PyAny>,
        name: &str,
        axes: Option<usize>,
    ) -> PyResult<Self> {
        let array = check_array::<T>(value, name, axes)?;
        let array =
            array.try_readonly().map_err(|e| input_error(value.py(), &format!("{name}: {e}")))?;
        Ok(ReadonlyArray { array })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    /// The elements.
    ///
    /// # Errors
    /// `InputError` if another thread has changed the array's shape since it was checked.
    pub(crate) fn slice(&self) -> PyResult<&[T]> {
        // An empty array may have a null pointer, which a slice must not have.
        if self.array.is_empty() {
            return Ok(&[]);
        }
        self.array.as_slice().map_err(|e| input_error(self.array.py(), &format!("array: {e}")))
    }
}

/// A new array of these elements and this shape.
pub(crate) fn array<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: Vec<usize>,
) -> PyResult<Bound<'_, PyArrayDyn<T>>> {
    values.into_pyarray(py).reshape(shape)
}

/// A writable array.
pub(crate) struct WritableArray<'py, T: Element> {
    array: PyReadwriteArrayDyn<'py, T>,
}

impl<'py, T: Element> WritableArray<'py, T> {
    /// Like [`ReadonlyArray::new`]. Also fails if the array is read-only, or an input of the same
    /// call.
    pub(crate) fn new(
        value: &Bound<'py, PyAny>,
        name: &str,
        axes: Option<usize>,
    ) -> PyResult<Self> {
        let array = check_array::<T>(value, name, axes)?;
        let array =
            array.try_readwrite().map_err(|e| input_error(value.py(), &format!("{name}: {e}")))?;
        Ok(WritableArray { array })
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        self.array.shape().to_vec() // small: at most 64 sizes
    }

    /// The elements, to be written. `inputs` are the addresses that the same call reads.
    ///
    /// # Errors
    /// `InputError` if they overlap. NumPy does not detect this for separate arrays over one
    /// buffer.
    pub(crate) fn slice(&mut self, name: &str, inputs: &[Range<usize>]) -> PyResult<&mut [T]> {
        if self.array.is_empty() {
            return Ok(&mut []);
        }
        let py = self.array.py();
        let start = self.array.data().addr();
        let end = start.saturating_add(self.array.len().saturating_mul(size_of::<T>()));
        if inputs.iter().any(|input| input.start < end && start < input.end) {
            return Err(input_error(
                py,
                &format!("{name}: expected memory of its own, got an input's; copy that one"),
            ));
        }
        self.array.as_slice_mut().map_err(|e| input_error(py, &format!("{name}: {e}")))
    }
}

/// The addresses of a slice's bytes.
pub(crate) fn bytes_of<T>(slice: &[T]) -> Range<usize> {
    let start = slice.as_ptr().addr();
    start..start + size_of_val(slice)
}

fn check_array<'py, T: Element>(
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
        return Err(input_error(
            py,
            &format!("{name}: expected {axes} axes, got {} (shape {shape:?})", shape.len()),
        ));
    }
    if !untyped.is_c_contiguous() {
        return Err(input_error(
            py,
            &format!(
                "{name}: expected a C-contiguous array; copy it with numpy.ascontiguousarray(...)"
            ),
        ));
    }
    let array = value.cast::<PyArrayDyn<T>>().cloned()?;
    if !array.is_empty() && !array.data().addr().is_multiple_of(align_of::<T>()) {
        let way = "copy it with numpy.require(..., requirements=['C', 'A'])";
        return Err(input_error(
            py,
            &format!("{name}: expected aligned elements, got a view between them; {way}"),
        ));
    }
    Ok(array)
}
