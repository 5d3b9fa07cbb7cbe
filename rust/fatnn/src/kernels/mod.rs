//! Micro-kernels: the only module with `unsafe` code. It knows neither layers nor threads, and it
//! allocates only by growing buffers that callers pass in.
//!
//! A [`Kernel`] multiplies packed activations by packed weights, one tile at a time. The drivers in
//! [`crate::conv`] decide which rows, channels and threads run.
//!
//! | file | contents |
//! | --- | --- |
//! | `kernel.rs` | the trait, operand types, layouts |
//! | `tiled.rs`, `packed_input.rs`, `columns.rs`, `depthwise/` | traits of the four inner loops |
//! | `panels.rs` | how each kind of inner loop splits weights into panels |
//! | `registry.rs` | one table with every kernel of every family |
//! | `choose.rs`, `cost.rs` | which kernel a layer runs on |
//! | `popcount/`, `table/`, `matrix/`, `dot/`, `int8/`, `depthwise/` | one file per ISA |
//! | `isa/` | one interface to the vector instructions of each instruction set |
//! | `vector.rs` | compiles plain loops for every instruction set |
//! | `epilogue.rs`, `elementwise.rs`, `depthwise_float.rs`, … | such plain loops |
//!
//! Inner loops are safe to call for two reasons: a kernel can only be obtained if the CPU features
//! that it needs were detected, and the constructors of operands check that every address is inside
//! its slice.
//!
//! Terms used by all families that read packed codes:
//!
//! - A *unit* is 64 input channels of one pixel: two bit planes of 64 bits, 16 bytes.
//! - A *chunk* of the reduction is one unit of one tap. A convolution adds up units × taps chunks.
//! - A *panel* is a packed block of weights: up to `nr` output channels, the whole reduction.
//!
//! To add a kernel, write one file in the directory of its family and add one row to `registry.rs`.
//! Tests, benchmarks and the choice of kernels all use that table. `docs/kernels.md` has
//! measurements.
//!
//! Tiles are rows × output channels. Instruction counts are those of the inner loop.
//!
//! | kernel | tile | instructions |
//! | --- | --- | --- |
//! | `x86_64-matrix-amx` | 64×16 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-popcount-avx512` | 4×16 | 5 for 512 products (binary: 2.5): `vpternlogq`, `vpopcntq` |
//! | `x86_64-popcount-avx512-taps` | 4×16 | the same, on words with up to three taps |
//! | `x86_64-popcount-avx2` | 2×16 | 11.5 for 256 products (binary: 6.5): full adders, `vpshufb` |
//! | `aarch64-popcount-neon` | 4×16 | 6 for 128 products: `bsl`, `cnt` |
//! | `x86_64-table-avx512` | 8×64 | 9 for 768 products: `vpshufb` |
//! | `x86_64-table-avx512-pixels` | 64×8 | the same, with positions in the lanes |
//! | `x86_64-table-avx2` | 4×64 | 9 for 384 products: `vpshufb` |
//! | `x86_64-table-avx2-pixels` | 64×4 | the same, with positions in the lanes |
//! | `aarch64-table-neon` | 8×32 | 7 for 192 products: `tbl`, `usra` |
//! | `aarch64-table-neon-pixels` | 32×8 | the same, with positions in the lanes |
//! | `x86_64-dot-avx512` | 6×64 | `vpdpbusd` on codes expanded to bytes: 64 products |
//! | `generic-popcount-scalar` | 2×4 | `u64::count_ones` |
//! | `generic-table-scalar` | 1×8 | one lookup per two channels; checks the others in tests |
//! | `x86_64-int8-amx` | 32×32 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-int8-avx512` | 6×64 | `vpdpbusd` on activations plus 128 |
//! | `x86_64-int8-avx2` | 6×16 | `vpmaddwd` on values widened to `i16` |
//! | `aarch64-int8-neon` | 4×16 | `smull`, `smlal`, `sadalp` |
//! | `generic-int8-scalar` | 1×8 | one multiplication and one addition per product |
//! | `x86_64-depthwise-avx512` | 2×7×16 | `vpdpbusd` on four interleaved rows |
//! | `x86_64-depthwise-avx2` | 2×4×8 | `vpmaddwd` on two interleaved rows |
//! | `aarch64-depthwise-neon` | 1×16 | plain loops |
//! | `generic-depthwise-scalar` | 1×16 | plain loops |

pub(crate) mod arithmetic;
mod cache_line;
mod choose;
pub(crate) mod columns;
pub mod cost;
mod costs;
pub(crate) mod depthwise;
mod depthwise_float;
#[cfg(target_arch = "x86_64")]
mod dot;
mod elementwise;
mod epilogue;
#[cfg(target_arch = "x86_64")]
mod expand;
mod float;
mod float_mode;
pub(crate) mod int8;
pub(crate) mod interpolate;
mod isa;
mod kernel;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod matrix;
mod packed_input;
mod panels;
pub(crate) mod pooling;
mod popcount;
mod quantize;
mod registry;
pub(crate) mod rows;
mod steps;
mod table;
mod tiled;
pub(crate) mod translate;
mod vector;

pub use cache_line::CacheLine;
pub use choose::{LayerShape, best, choose_by_rules, choose_for, choose_in};
pub use columns::ColumnsKernel;
pub use depthwise::DepthwiseKernel;
pub(crate) use depthwise_float::{PADDING, depthwise_float};
pub(crate) use elementwise::{apply_all, dequantize};
pub(crate) use epilogue::TileAcc;
pub use epilogue::TileEpilogue;
pub(crate) use float::{Matrix, matmul, product};
pub(crate) use float_mode::FloatMode;
pub use kernel::{Family, Inner, Kernel, Layout, OperandTypes, Operands};
pub(crate) use kernel::{UNIT_BYTES, prefetch, private};
pub use packed_input::PackedInputKernel;
pub(crate) use packed_input::{AccBlock, PackedInput, Panel, Pixels};
pub use panels::PanelWeights;
pub(crate) use panels::TapOrder;
pub use popcount::PopcountMode;
pub(crate) use quantize::{BLOCK_PIXELS, Quantize, QuantizeInput};
pub(crate) use registry::for_layout;
pub use registry::{available, available_for, detected, detected_for, named};
pub(crate) use steps::{ChannelDots, StepCodes, StepGradient};
pub use tiled::TiledKernel;
pub(crate) use tiled::{BLOCK, MAX_COLUMNS, MAX_MR, TileRows, Tiles};
pub(crate) use vector::Level;
