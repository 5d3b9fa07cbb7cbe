//! Ternary neural networks that run in 2 bits.
//!
//! Weights and activations are -1, 0 or 1, packed in two bits each. SIMD kernels, chosen at run
//! time, multiply them by FATNN's halved inner product (P. Chen, B. Zhuang, C. Shen: "FATNN: Fast
//! and Accurate Ternary Neural Networks", ICCV 2021).
//!
//! | module | what lives in it |
//! | --- | --- |
//! | [`codec`] | packing of codes: bit planes in memory, trits in files |
//! | [`pack`] | weights of every type, laid out for a kernel |
//! | [`conv`] | 1-D and 2-D convolution of codes and of int8; a linear layer is a 1×1 convolution over one pixel |
//! | [`epilogue`] | what follows a product: thresholds to codes, or scale and bias to float32 |
//! | [`quantize`] | float activations to codes |
//! | [`steps`] | training: a quantizer of learned steps, its gradient, and that of a scale |
//! | [`pool`] | max pooling on codes |
//! | [`dtype`] | names of element types: activations, weights, codes, values, tensors |
//! | [`graph`] | networks as data: typed nodes, the table of operations, checks, the canonical file |
//! | [`engine`] | compiles a graph for this CPU, and runs it |
//! | [`net`] | the public names of `graph` and `engine`: [`net::Network`], [`net::load`], [`net::save`] |
//! | [`kernels`] | SIMD kernels and their registry |
//! | [`cpu`], [`parallel`] | CPU features, threads |
//! | [`memory`] | allocation that reports failure |
//! | [`reference`](mod@reference) | simple loops; tests compare everything above with them, bit for bit |
//!
//! Integer results are exact. They are the same on every instruction set and number of threads.

#![deny(unsafe_code)]

pub mod codec;
mod config;
pub mod conv;
pub mod cpu;
pub mod dtype;
pub mod engine;
pub mod epilogue;
mod error;
pub mod graph;
// `unsafe` is only here and in `parallel::team`. Here: SIMD loads and stores, and calls of
// functions with CPU features.
#[allow(unsafe_code)]
pub mod kernels;
mod limits;
pub mod memory;
pub mod net;
pub mod pack;
pub mod parallel;
pub mod pool;
pub mod quantize;
pub mod reference;
mod scalar;
pub mod steps;
mod transpose;
mod window;

pub use error::{Error, Result};
