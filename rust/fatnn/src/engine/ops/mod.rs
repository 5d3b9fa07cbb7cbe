//! The operations that the engine runs. Each is built with all its functions; none knows which
//! passes fused them.

pub(super) mod arithmetic;
pub(super) mod concat;
pub(super) mod conv;
pub(super) mod conv_transpose;
pub(super) mod depthwise;
pub(super) mod elementwise;
pub(super) mod embedding;
pub(super) mod filtered_interpolation;
pub(super) mod int8;
pub(super) mod int8_values;
pub(super) mod integers;
pub(super) mod line_source;
pub(super) mod linear;
pub(super) mod linear_interpolation;
pub(super) mod multihead;
pub(super) mod norm;
pub(super) mod pad;
pub(super) mod pool;
pub(super) mod products;
pub(super) mod quantize;
pub(super) mod reduce;
pub(super) mod resize;
pub(super) mod select;
pub(super) mod shape;
mod strided;
