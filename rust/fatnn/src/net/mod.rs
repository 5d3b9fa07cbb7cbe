//! Networks: loading, saving and running. The public names of [`crate::graph`] and
//! [`crate::engine`].

pub use crate::engine::{Input, Network, NotFused, Observed, Output};
pub use crate::graph::file::{FORMAT_VERSION, load, save};
pub use crate::graph::tensor::Tensor;
pub use crate::limits::Limits;
