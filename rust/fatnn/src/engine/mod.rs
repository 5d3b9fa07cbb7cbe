//! The engine compiles a graph to executable operations and runs them.
//!
//! | module | what lives in it |
//! | --- | --- |
//! | `passes` | fusions: rewrites of the graph, each with a reason where it does not apply |
//! | `fused` | the graph that the passes rewrite |
//! | `compile` | compiles that graph to operations; the only place that packs weights |
//! | `spatial` | compiles operations that change the height and width of maps |
//! | `order` | chooses the memory order of each value |
//! | `widen` | inserts conversions of values that are stored as bytes to floats |
//! | `ops` | the operations; they know nothing of fusion |
//! | `plan` | sizes and buffers for one shape of inputs |
//! | `run` | runs a network on inputs |
//! | `network` | [`Network`], the public type |

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
