//! Micro-kernels: the only room with `unsafe`; no shapes, no threads, no allocation (but for the buffer that
//! [`Kernel::expand`] is given to grow).
//!
//! A [`Kernel`] computes one tile, `mr` output rows × `nr` output channels, of a product between packed ternary
//! activations and packed ternary weights, and runs the epilogue on it. Everything else (which rows, which channels,
//! which thread) is decided by the driver in `gemm`; convolution is the same product with other row addresses
//! ([`crate::conv`]), never a second inner loop.
//!
//! A kernel object can only be made where its CPU features are present, so holding one proves that it may run. A
//! `Tiles` can only be made with addresses inside its operands, so [`Kernel::tiles`] is a safe function.
//!
//! To add a kernel: one file `<family>_<isa>.rs` and one row in `KERNELS`. Tests, benches and documentation go through
//! that table.
//!
//! | kernel | family | tile | inner step |
//! | --- | --- | --- | --- |
//! | `x86_64-matrix-amx` | matrix | 32×32 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-popcount-avx512` | popcount | 4×16 | 5 instructions for 512 products: ternary logic, `vpopcntq` |
//! | `x86_64-popcount-avx2` | popcount | 2×16 | 11.5 for 256 products: carry-save adders, then a table of nibbles |
//! | `aarch64-popcount-neon` | popcount | 4×16 | 6 instructions for 128 products: `bsl`, `cnt` |
//! | `generic-popcount-scalar` | popcount | 2×4 | `u64::count_ones` |

use std::sync::OnceLock;

use crate::cpu::{Features, Isa};
use crate::epilogue::{TileAcc, ToCodes, ToFloat};
use crate::error::Result;
use crate::net::Elementwise;
use crate::quantize::QuantizeInput;

mod float;
pub(crate) mod int8;
mod matrix;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod matrix_amx;
pub(crate) mod pooling;
mod popcount;
#[cfg(target_arch = "x86_64")]
mod popcount_avx2;
#[cfg(target_arch = "x86_64")]
mod popcount_avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod popcount_neon;
mod popcount_scalar;
mod tile;

pub(crate) use float::matmul;
pub(crate) use tile::{MAX_BLOCK, MAX_MR, MAX_NR, TileRows, Tiles};

/// Kernel families: they differ in the layout of both operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// FATNN's halved inner product over bit planes, 64 channels a word.
    Popcount,
    /// Int8 products on a matrix unit, of codes that are expanded from the same bit planes block by block.
    Matrix,
}

impl Family {
    /// Name as in `FATNN_KERNEL`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Popcount => "popcount",
            Family::Matrix => "matrix",
        }
    }

    /// Channels in one unit of the reduction.
    pub(crate) fn unit_channels(self) -> usize {
        match self {
            Family::Popcount | Family::Matrix => popcount::CHANNELS,
        }
    }

    /// Bytes that one unit of activations takes.
    pub(crate) fn unit_bytes(self) -> usize {
        match self {
            Family::Popcount | Family::Matrix => popcount::UNIT_BYTES,
        }
    }
}

/// How weights are laid out for a kernel. Kernels with equal layouts can run each other's packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The family, which settles the unit of the reduction.
    pub family: Family,
    /// Output channels in a panel.
    pub nr: usize,
    /// Output channels that lie side by side in one vector.
    pub lanes: usize,
}

impl Layout {
    /// A number that tells layouts apart, stored at the head of packed weights.
    pub(crate) fn id(self) -> u32 {
        (self.family as u32 + 1) << 16 | (self.nr as u32) << 8 | self.lanes as u32
    }

    /// Bytes of one panel: `units` units of `nr` channels, then one `i32` per channel.
    pub(crate) fn panel_bytes(self, units: usize) -> usize {
        match self.family {
            Family::Popcount | Family::Matrix => units * self.nr * popcount::UNIT_BYTES + self.nr * 4,
        }
    }

    /// Packs one panel: `channel(j)` gives the codes of output channel `j` of the panel as `taps × channels` values, or
    /// `None` past the last channel. `panel` has [`Layout::panel_bytes`] bytes.
    pub(crate) fn pack_panel<'a>(
        self,
        taps: usize,
        channels: usize,
        half_range: bool,
        channel: impl Fn(usize) -> Option<&'a [i8]>,
        panel: &mut [u8],
    ) {
        match self.family {
            Family::Popcount => popcount::pack_panel(self, taps, channels, half_range, channel, panel),
            Family::Matrix => matrix::pack_panel(self, taps, channels, half_range, channel, panel),
        }
    }
}

/// A micro-kernel for one family on one instruction set.
pub trait Kernel: Send + Sync + std::fmt::Debug {
    /// `{arch}-{family}-{variant}`.
    fn name(&self) -> &'static str;
    /// The tier that `FATNN_ISA` caps it by.
    fn isa(&self) -> Isa;
    /// Layout of the weights it reads.
    fn layout(&self) -> Layout;
    /// Output rows in a tile.
    fn mr(&self) -> usize;
    /// Rows that a driver should take at a time: all panels of weights pass by while these rows' activations are in cache.
    fn block(&self) -> usize {
        64
    }
    /// Makes of a block's rows what [`Kernel::tiles`] wants to read for every panel, for kernels that do not read codes as
    /// they are.
    #[doc(hidden)]
    fn expand(&self, rows: &TileRows<'_>, expanded: &mut Vec<u8>) {
        let _ = (rows, expanded);
    }
    /// Accumulates tiles into `acc[row * nr + channel]`, which has `nr` elements for every row of `tiles`.
    #[doc(hidden)]
    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]);
    /// Epilogue: accumulators to codes. See [`crate::epilogue::to_codes`].
    #[doc(hidden)]
    fn to_codes(&self, acc: &TileAcc<'_>, to: &ToCodes<'_>, out: &mut [u8]);
    /// Epilogue: accumulators to float32. See [`crate::epilogue::to_float`].
    #[doc(hidden)]
    fn to_float(&self, acc: &TileAcc<'_>, to: &ToFloat<'_>, residual: Option<&[f32]>, out: &mut [f32]);
    /// No epilogue: the accumulators as they are. See [`crate::epilogue::to_acc`].
    #[doc(hidden)]
    fn to_acc(&self, acc: &TileAcc<'_>, channels: usize, out: &mut [i32]);
    /// Float activations to codes, `out` being whole pixels from pixel `first` on; whether none was NaN. See
    /// [`crate::quantize`].
    #[doc(hidden)]
    fn quantize(&self, input: &QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool;
    /// Elementwise functions on whole pixels.
    #[doc(hidden)]
    fn map(&self, functions: &[Elementwise], x: &mut [f32], channels: usize);
}

/// Writes the epilogue methods of [`Kernel`] for tiles of `nr` columns, and [`Kernel::quantize`], compiled with the kernel's
/// own CPU features.
/// `at_least` and `float_at_least` are [`crate::epilogue::at_least`] and [`crate::quantize::at_least`] or those functions in
/// the instruction set's own words.
macro_rules! epilogue_methods {
    ($nr:expr, $at_least:path, $float_at_least:path $(, $feature:literal)?) => {
        epilogue_methods!(
            @ $nr, to_codes(to: &crate::epilogue::ToCodes<'_>, out: &mut [u8]; |a, t| $at_least(a, t)) $($feature)?);
        epilogue_methods!(
            @ $nr, to_float(to: &crate::epilogue::ToFloat<'_>, residual: Option<&[f32]>, out: &mut [f32];) $($feature)?);
        epilogue_methods!(@ $nr, to_acc(channels: usize, out: &mut [i32];) $($feature)?);

        fn map(&self, functions: &[crate::net::Elementwise], x: &mut [f32], channels: usize) {
            $(#[target_feature(enable = $feature)])?
            fn run(functions: &[crate::net::Elementwise], x: &mut [f32], channels: usize) {
                crate::net::map_elements(functions, x, channels);
            }
            #[allow(unused_unsafe)]
            // SAFETY: `self` exists, so the features were detected.
            unsafe {
                run(functions, x, channels)
            }
        }

        fn quantize(&self, input: &crate::quantize::QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
            $(#[target_feature(enable = $feature)])?
            fn run(input: &crate::quantize::QuantizeInput<'_>, first: usize, out: &mut [u8]) -> bool {
                crate::quantize::pixels(input, first, out, |x, t| $float_at_least(x, t))
            }
            #[allow(unused_unsafe)]
            // SAFETY: `self` exists, so the features were detected.
            unsafe {
                run(input, first, out)
            }
        }
    };
    (@ $nr:expr, $name:ident($($arg:ident: $type:ty),*; $($extra:expr)?) $($feature:literal)?) => {
        fn $name(&self, tile: &crate::epilogue::TileAcc<'_>, $($arg: $type),*) {
            $(#[target_feature(enable = $feature)])?
            fn run(tile: &crate::epilogue::TileAcc<'_>, $($arg: $type),*) {
                crate::epilogue::$name::<{ $nr }>(tile, $($arg,)* $($extra)?);
            }
            #[allow(unused_unsafe)]
            // SAFETY: `self` exists, so the features were detected.
            unsafe {
                run(tile, $($arg),*)
            }
        }
    };
}
use epilogue_methods;

/// A row of the table: makes the kernel where its features are among those given.
type Make = fn(Features) -> Option<&'static dyn Kernel>;

/// Every kernel of this architecture, best first.
pub(crate) const KERNELS: &[Make] = &[
    #[cfg(target_arch = "x86_64")]
    popcount_avx512::make,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    matrix_amx::make,
    #[cfg(target_arch = "x86_64")]
    popcount_avx2::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    popcount_neon::make,
    popcount_scalar::make,
];

/// The kernels that this process may run, best first.
///
/// # Errors
/// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
pub fn available() -> Result<&'static [&'static dyn Kernel]> {
    static AVAILABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let features = Features::usable()?;
    let family = crate::config::get()?.family;
    Ok(AVAILABLE.get_or_init(|| {
        let all: Vec<_> = KERNELS.iter().filter_map(|make| make(features)).collect();
        // A family that this CPU does not have restricts nothing.
        let Some(family) = family else { return all };
        let of_family: Vec<_> = all.iter().copied().filter(|kernel| kernel.layout().family == family).collect();
        if of_family.is_empty() { all } else { of_family }
    }))
}

/// Every kernel that this CPU can run, whatever the environment says: for tests and benchmarks.
pub fn detected() -> Vec<&'static dyn Kernel> {
    KERNELS.iter().filter_map(|make| make(Features::detected())).collect()
}

/// The kernel for a layer with so many output channels (per group) and so long a reduction.
///
/// A matrix unit, where there is one, wins once its tiles are full and its weights' expansion is shared by enough rows (so
/// not in linear layers, which have as few rows as a batch has images: those call [`best`]). `make bench` measures it; on one
/// core of a Sapphire Rapids, from codes to codes, it was 1.1 to 1.6 times as fast as popcount on AVX-512 in every 3×3 layer
/// of a ResNet-18, the smallest of which have 64 channels.
///
/// # Errors
/// As [`available`].
pub(crate) fn choose(out_channels: usize, reduction: usize) -> Result<&'static dyn Kernel> {
    if out_channels >= 64
        && reduction >= 512
        && let Some(matrix) = available()?.iter().copied().find(|kernel| kernel.layout().family == Family::Matrix)
    {
        return Ok(matrix);
    }
    best()
}

/// The best kernel for everything but large products: see `choose`.
///
/// # Errors
/// As [`available`].
pub fn best() -> Result<&'static dyn Kernel> {
    let kernels = available()?;
    // The scalar kernel is always there: the table ends with it.
    kernels.first().copied().ok_or_else(|| crate::Error::Packed { why: "no kernel is available".into() })
}

/// The best kernel that reads weights of the layout with this id.
///
/// # Errors
/// [`crate::Error::Packed`] where there is none; as [`available`].
pub(crate) fn for_layout(id: u32) -> Result<&'static dyn Kernel> {
    available()?.iter().copied().find(|kernel| kernel.layout().id() == id).ok_or_else(|| crate::Error::Packed {
        why: format!("they are laid out for another CPU's kernel (layout {id:#x})"),
    })
}
