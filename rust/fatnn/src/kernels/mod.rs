//! Micro-kernels: the only module with `unsafe`. It knows no layers and no threads, and allocates
//! only the buffers that it is given to grow.
//!
//! A [`Kernel`] multiplies packed activations by packed weights, tile by tile. Which rows, which
//! channels and which thread is decided by the drivers in [`crate::conv`].
//!
//! | file | what lives in it |
//! | --- | --- |
//! | `kernel.rs` | the trait, operand types, layouts |
//! | `tiled.rs`, `packed_input.rs`, `columns.rs`, `depthwise/` | the four kinds of inner loop, each with its operands, and packing as its method |
//! | `panels.rs` | how all of them cut weights into panels |
//! | `registry.rs` | every kernel of every family, one table |
//! | `choose.rs` | which kernel a layer takes |
//! | `popcount/`, `table/`, `matrix/`, `int8/`, `depthwise/` | the families, one file per instruction set |
//! | `isa/` | what instruction sets name differently |
//! | `vector.rs` | plain loops, compiled for every instruction set: `epilogue.rs`, `elementwise.rs`, `quantize.rs`, `pooling.rs`, `rows.rs` |
//!
//! A kernel exists only where its CPU features were detected, and operands can only be made with
//! addresses inside their slices, so inner loops are safe functions.
//!
//! To add a kernel: one file in its family's directory and one row in `registry.rs`. Tests, benches
//! and the choice go through that table. `docs/kernels.md` has what was measured.
//!
//! | kernel | family | tile | inner step |
//! | --- | --- | --- | --- |
//! | `x86_64-matrix-amx` | matrix, packed input | 64×16 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-popcount-avx512` | popcount | 4×16 | 5 instructions for 512 products: ternary logic, `vpopcntq` (binary: 2.5) |
//! | `x86_64-popcount-avx2` | popcount | 2×16 | 11.5 for 256 products: carry-save adders, then a table of nibbles (binary: 6.5) |
//! | `aarch64-popcount-neon` | popcount | 4×16 | 6 instructions for 128 products: `bsl`, `cnt` |
//! | `x86_64-table-avx512` | table, packed input | 8×64 | 9 for 768 products: `vpshufb` |
//! | `x86_64-table-avx512-pixels` | table, packed input | 64×8 | the same, positions in the lanes |
//! | `x86_64-table-avx2` | table, packed input | 4×64 | 9 for 384 products: `vpshufb` |
//! | `x86_64-table-avx2-pixels` | table, packed input | 64×4 | the same, positions in the lanes |
//! | `aarch64-table-neon` | table, packed input | 8×32 | 7 for 192 products: `tbl`, `usra` |
//! | `aarch64-table-neon-pixels` | table, packed input | 32×8 | the same, positions in the lanes |
//! | `generic-popcount-scalar` | popcount | 2×4 | `u64::count_ones` |
//! | `generic-table-scalar` | table, packed input | 1×8 | one lookup a group of two: the others' second opinion |
//! | `x86_64-int8-amx` | int8, columns | 16×16 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-int8-avx512` | int8, columns | 6×64 | `vpdpbusd` on activations plus 128 |
//! | `x86_64-int8-avx2` | int8, columns | 6×16 | `vpmaddwd` on values widened to `i16` |
//! | `aarch64-int8-neon` | int8, columns | 4×16 | `smull`, `smlal`, `sadalp` |
//! | `generic-int8-scalar` | int8, columns | 1×8 | a product and an addition |
//! | `x86_64-depthwise-avx512` | int8, depthwise | 2×7×16 | `vpdpbusd` on four interleaved rows |
//! | `x86_64-depthwise-avx2` | int8, depthwise | 2×4×8 | `vpmaddwd` on two interleaved rows |
//! | `aarch64-depthwise-neon` | int8, depthwise | 1×16 | plain loops |
//! | `generic-depthwise-scalar` | int8, depthwise | 1×16 | plain loops |

pub(crate) mod arithmetic;
mod cache_line;
mod choose;
pub(crate) mod columns;
pub mod cost;
mod costs;
pub(crate) mod depthwise;
mod elementwise;
mod epilogue;
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
mod table;
mod tiled;
mod vector;

pub use cache_line::CacheLine;
pub use choose::{LayerShape, best, choose_by_rules, choose_for, choose_in};
pub use columns::ColumnsKernel;
pub use depthwise::DepthwiseKernel;
pub(crate) use elementwise::apply_all;
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
pub use tiled::TiledKernel;
pub(crate) use tiled::{BLOCK, MAX_MR, MAX_NR, TileRows, Tiles};
pub(crate) use vector::Level;
