//! Int8 layers: a network's first and last, where three levels are too few.
//!
//! Activations are quantized to `q = clamp(round(x · inv_step), -127, 127)`, halves to even, and multiplied by int8 weights. Sums
//! are exact; each becomes `y = sum · scale + bias`, two float32 operations. So results are equal on every instruction set
//! and for every number of threads, unlike a float layer's.

mod epilogue;
pub(crate) mod weights;

pub use epilogue::Int8Epilogue;
pub(crate) use epilogue::{Constants, Padded};

pub use weights::{Int8Weights, MAX_REDUCTION};

pub use crate::conv::columns::conv2d_int8;
pub(crate) use crate::conv::columns::{Geometry, Layer};

use crate::error::Result;
use crate::kernels::{self, Kernel, LayerShape, OperandTypes};

/// The kernel of an int8 layer: a linear one, or a convolution. See [`kernels::choose_for`].
///
/// # Errors
/// As [`kernels::available`].
pub fn choose(linear: bool) -> Result<&'static dyn Kernel> {
    // No choice among int8 kernels depends on the shape of a convolution yet.
    let conv = LayerShape::Conv { out_channels: 1, reduction: 1 };
    kernels::choose_for(if linear { LayerShape::Linear } else { conv }, OperandTypes::Int8)
}
