//! Int8 layers: a network's first and last, where three levels are too few.
//!
//! Activations are quantized to `q = clamp(round(x · inv_step), -127, 127)`, halves to even, and multiplied by int8 weights. Sums
//! are exact; each becomes `y = sum · scale + bias`, two float32 operations. So results are equal on every instruction set
//! and for every number of threads, unlike a float layer's.

pub(crate) mod weights;

pub(crate) use crate::conv::columns::{Constants, Geometry, Layer, Padded};
pub use crate::conv::columns::{Int8Epilogue, conv2d_int8};
pub use weights::{Int8Weights, MAX_REDUCTION};

pub use crate::kernels::int8::{Int8Kernel, available, choose, detected};
