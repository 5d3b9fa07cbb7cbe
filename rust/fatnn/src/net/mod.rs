//! Networks: the canonical file, and a graph that runs as a whole.

mod build;
mod file;
mod network;
mod ops;
mod value;

pub use file::{FORMAT_VERSION, Tensor, load, save};
pub use network::{Input, Network, Observed, Output};
#[doc(hidden)]
pub use ops::Elementwise;
pub(crate) use ops::{apply_all, map_elements, transpose};
