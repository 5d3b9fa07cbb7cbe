//! Networks: the canonical file.

mod file;

pub use file::{FORMAT_VERSION, Tensor, load, save};
