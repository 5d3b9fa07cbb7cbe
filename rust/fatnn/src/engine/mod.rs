//! The engine compiles a graph to executable operations and runs them.
//!
//! | module | what lives in it |
//! | --- | --- |
//! | `passes` | rewrites of the graph, each with a reason where it does not apply |
//! | `fused` | the graph that they rewrite |
//! | `compile` | from that to operations: the only place that packs weights |
//! | `spatial` | as `compile`, of operations that change the size of maps |
//! | `order` | in which order each value stands in memory |
//! | `widen` | where values that are stored as bytes become floats |
//! | `ops` | the operations; they know nothing of fusion |
//! | `plan` | sizes and buffers for one shape of inputs |
//! | `run` | running |
//! | `network` | [`Network`], the public face |

mod compile;
mod fused;
mod independent_images;
mod input;
mod network;
mod ops;
mod order;
mod passes;
mod plan;
mod run;
mod slice;
mod spatial;
mod value;
mod widen;

pub use input::{Array, Input};
pub use network::{Network, NotFused};
pub use run::{Observed, Output};
