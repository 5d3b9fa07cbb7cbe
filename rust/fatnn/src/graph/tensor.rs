//! Tensors of a graph: weights, scales, thresholds.

use crate::dtype::{TensorType, WeightKind};
use crate::error::{Result, bad_value, check_len};
use crate::memory;

/// A tensor of a graph: shape and values in row-major order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Tensor {
    /// float32.
    F32(Vec<usize>, Vec<f32>),
    /// int32.
    I32(Vec<usize>, Vec<i32>),
    /// int64.
    I64(Vec<usize>, Vec<i64>),
    /// int8, for the weights of int8 layers.
    I8(Vec<usize>, Vec<i8>),
    /// bool, with the values 0 and 1.
    Bool(Vec<usize>, Vec<u8>),
    /// Weights that are codes of one kind.
    Codes(WeightKind, Vec<usize>, Vec<i8>),
}

impl Tensor {
    /// Shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::F32(shape, _)
            | Tensor::I32(shape, _)
            | Tensor::I64(shape, _)
            | Tensor::I8(shape, _)
            | Tensor::Bool(shape, _)
            | Tensor::Codes(_, shape, _) => shape,
        }
    }

    /// `Ok` if the values fit the shape and type, and if array libraries support the shape.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], or [`crate::Error::Value`] naming the first wrong value.
    pub(crate) fn check(&self) -> Result<()> {
        check_shape(self.shape())?;
        check_len(
            "tensor values",
            memory::product(self.shape().iter().copied()).unwrap_or(usize::MAX),
            self.len(),
        )?;
        match self {
            Tensor::Codes(kind, _, values) => kind.check("values", values),
            Tensor::Bool(_, values) => match values.iter().find(|value| **value > 1) {
                Some(value) => bad_value("values", "0 or 1, as they are of bool", value),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Tensor::F32(_, v) => v.len(),
            Tensor::I32(_, v) => v.len(),
            Tensor::I64(_, v) => v.len(),
            Tensor::Bool(_, v) => v.len(),
            Tensor::I8(_, v) | Tensor::Codes(_, _, v) => v.len(),
        }
    }

    /// Type of the elements.
    pub fn dtype(&self) -> TensorType {
        match self {
            Tensor::F32(..) => TensorType::F32,
            Tensor::I32(..) => TensorType::I32,
            Tensor::I64(..) => TensorType::I64,
            Tensor::I8(..) => TensorType::I8,
            Tensor::Bool(..) => TensorType::Bool,
            Tensor::Codes(kind, ..) => TensorType::Codes(*kind),
        }
    }

    /// Bytes of the elements in a file.
    pub fn file_bytes(&self) -> usize {
        self.dtype().file_bytes(self.len())
    }

    /// Bytes of the elements as a NumPy array.
    pub(crate) fn array_bytes(&self) -> u128 {
        self.len() as u128 * self.dtype().array_bytes() as u128
    }
}

/// Largest number of dimensions of a tensor. Array libraries have similar limits.
pub(crate) const MAX_RANK: usize = 32;

/// `Ok` if array libraries support the shape.
pub(super) fn check_shape(shape: &[usize]) -> Result<()> {
    // Leave 8 bits of `usize` unused, so that byte counts of every element type fit.
    let fits = memory::product(shape.iter().copied()).is_some_and(|n| n < 1 << (usize::BITS - 8));
    match shape.len() <= MAX_RANK && fits {
        true => Ok(()),
        false => {
            let text = if shape.len() > MAX_RANK {
                format!("{} dimensions", shape.len())
            } else {
                format!("{shape:?}")
            };
            bad_value(
                "shape of a tensor",
                format!("at most {MAX_RANK} dimensions that fit in memory"),
                text,
            )
        }
    }
}
