//! Networks: the canonical file, and a graph that runs as a whole.

mod build;

mod network;
mod ops;
mod schema;
mod value;

pub use crate::graph::file::{FORMAT_VERSION, load, save};
pub use crate::graph::tensor::Tensor;
pub use crate::limits::Limits;
pub use network::{Input, Network, Observed, Output};
#[doc(hidden)]
pub use ops::Elementwise;
pub(crate) use ops::{PoolStep, apply_all, map_elements, transpose};
