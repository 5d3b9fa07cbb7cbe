//! Ternary neural networks that really run in 2 bits.
//!
//! Weights and activations in {-1, 0, 1}, packed to two bits a value, multiplied by FATNN's halved
//! inner product (P. Chen, B. Zhuang, C. Shen: "FATNN: Fast and Accurate Ternary Neural Networks",
//! ICCV 2021) with SIMD kernels chosen at run time.
//!
//! | module | what lives in it |
//! | --- | --- |
//! | [`codec`] | codes packed and unpacked: bit planes, base-3 groups, the file's trits |
//! | [`pack`] | weights of every type laid out for a kernel |
//! | [`conv`] | convolution of codes and of int8, in one and two dimensions; a linear layer is a 1×1 convolution over one pixel |
//! | [`epilogue`] | thresholds to codes, scale and bias to float32 |
//! | [`quantize`] | float activations to codes |
//! | [`pool`] | max pooling on codes |
//! | [`dtype`] | names of element types: activations, weights, codes, values, tensors |
//! | [`graph`] | networks as data: typed nodes, the table of operations, checks, the canonical file |
//! | [`engine`] | graphs compiled for this CPU, and run |
//! | [`net`] | the public names of both: [`net::Network`], [`net::load`], [`net::save`] |
//! | [`kernels`] | the micro-kernels and their table |
//! | [`cpu`], [`parallel`] | CPU features, threads |
//! | [`memory`] | memory that may be refused |
//! | [`reference`](mod@reference) | obvious loops that everything above is compared with, bit for bit |
//!
//! Integer results are exact and equal on every instruction set and for every number of threads.

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
// The only room with `unsafe`: loads, stores and calls of functions with CPU features.
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
mod transpose;
mod window;

pub use error::{Error, Result};
