//! Networks: the canonical file, and a graph that runs as a whole.

mod build;
mod file;
mod limits;
mod network;
mod ops;
mod schema;
mod value;

pub use file::{FORMAT_VERSION, Tensor, load, save};
pub use limits::Limits;
pub use network::{Input, Network, Observed, Output};
#[doc(hidden)]
pub use ops::Elementwise;
pub(crate) use ops::{PoolStep, apply_all, transpose};
