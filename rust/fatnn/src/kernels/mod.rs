//! Micro-kernels: the only room with `unsafe`; no shapes, no threads, no allocation (but for the buffer that
//! framed kernels are given to grow).
//!
//! A [`Kernel`] computes one tile, `mr` output rows × `nr` output channels, of a product between packed activations and packed
//! ternary weights, and runs the epilogue on it. Everything else (which rows, which channels,
//! which thread) is decided by the driver in `gemm`; convolution is the same product with other addresses
//! ([`crate::conv`]), never a second inner loop.
//!
//! There are two kinds. *Tiled* kernels read codes as they pass between layers, wherever rows are (`tile`). *Framed* ones
//! have a layout of their own, into which the driver rewrites each piece of a convolution's input once (`framed`).
//!
//! A kernel object can only be made where its CPU features are present, so holding one proves that it may run. `Tiles` and
//! `Framed` can only be made with addresses inside their operands, so the inner loops are safe functions.
//!
//! To add a kernel: one file `<family>_<isa>.rs` and one row in `KERNELS`. Tests, benches and documentation go through
//! that table.
//!
//! | kernel | family | tile | inner step |
//! | --- | --- | --- | --- |
//! | `x86_64-matrix-amx` | matrix, framed | 64×16 | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-popcount-avx512` | popcount | 4×16 | 5 instructions for 512 products: ternary logic, `vpopcntq` (binary: 2.5) |
//! | `x86_64-popcount-avx2` | popcount | 2×16 | 11.5 for 256 products: carry-save adders, then a table of nibbles (binary: 6.5) |
//! | `aarch64-popcount-neon` | popcount | 4×16 | 6 instructions for 128 products: `bsl`, `cnt` |
//! | `x86_64-table-avx512` | table, framed | 8×64 | 9 for 768 products: `vpshufb` |
//! | `x86_64-table-avx512-pixels` | table, framed | 64×8 | the same, positions in the lanes |
//! | `x86_64-table-avx2` | table, framed | 4×64 | 9 for 384 products: `vpshufb` |
//! | `x86_64-table-avx2-pixels` | table, framed | 64×4 | the same, positions in the lanes |
//! | `aarch64-table-neon` | table, framed | 8×32 | 7 for 192 products: `tbl`, `usra` |
//! | `aarch64-table-neon-pixels` | table, framed | 32×8 | the same, positions in the lanes |
//! | `generic-popcount-scalar` | popcount | 2×4 | `u64::count_ones` |
//! | `generic-table-scalar` | table, framed | 1×8 | one lookup a group of two: the others' second opinion |

use std::sync::OnceLock;

use crate::codec::{Act, WeightKind};
use crate::cpu::{Features, Isa};
use crate::epilogue::{Residual, TileAcc, ToCodes, ToFloat};
use crate::error::{Result, bad_value};
use crate::net::Elementwise;
use crate::quantize::QuantizeInput;

mod float;
mod float_mode;
pub(crate) mod int8;
mod matrix;
mod packed_input;
pub(crate) mod pooling;
mod popcount;
mod table;
mod tiled;

pub(crate) use float::matmul;
pub(crate) use float_mode::FloatMode;
pub use packed_input::FramedKernel;
pub(crate) use packed_input::{Emitted, Framed, Line, Panel, Pixels, Seal};
pub(crate) use tiled::{BLOCK, MAX_MR, MAX_NR, TileRows, Tiles};
pub use tiled::{Counting, TiledKernel};

/// Kernel families: they differ in the layout of both operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// FATNN's halved inner product over bit planes, 64 channels a word.
    Popcount,
    /// Int8 products on a matrix unit, of codes that are expanded from the same bit planes block by block.
    Matrix,
    /// Products of groups of two channels, looked up by shuffles of bytes.
    Table,
}

impl Family {
    /// Every family there is.
    pub const ALL: [Family; 3] = [Family::Popcount, Family::Matrix, Family::Table];

    /// The family of that name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match Family::ALL.into_iter().find(|family| family.name() == name) {
            Some(family) => Ok(family),
            None => bad_value("kernel family", "\"popcount\", \"matrix\" or \"table\"", format!("{name:?}")),
        }
    }

    /// Name as in `FATNN_KERNEL`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Popcount => "popcount",
            Family::Matrix => "matrix",
            Family::Table => "table",
        }
    }

    /// Channels in one unit of the reduction.
    pub(crate) fn unit_channels(self) -> usize {
        match self {
            Family::Popcount | Family::Matrix | Family::Table => popcount::CHANNELS,
        }
    }

    /// Bytes that one unit of activations takes.
    pub(crate) fn unit_bytes(self) -> usize {
        match self {
            Family::Popcount | Family::Matrix | Family::Table => popcount::UNIT_BYTES,
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
    /// Output channels that lie side by side in one vector (where lanes are positions: in one byte).
    pub lanes: usize,
}

impl Layout {
    /// A number that tells layouts apart, stored at the head of packed weights.
    pub(crate) fn id(self) -> u32 {
        (self.family as u32 + 1) << 16 | (self.nr as u32) << 8 | self.lanes as u32
    }

    /// Bytes of one panel: `units` units (all taps counted) of `nr` channels and one `i32` per channel, and whatever else the family
    /// wants; of the loops for tiles, those that are `counting` so.
    pub(crate) fn panel_bytes(self, units: usize, counting: Counting) -> usize {
        // (A reduction is at most 2²³ long, so none of these overflows.)
        match self.family {
            Family::Popcount => units * self.nr * counting.weight_bytes() + self.nr * 4,
            // Two bits a weight.
            Family::Matrix => units * self.nr * popcount::UNIT_BYTES,
            Family::Table => table::panel_bytes(self, units),
        }
    }

    /// Packs one panel: `channel(j)` gives the codes of output channel `j` of the panel as `taps × channels` values, or
    /// `None` past the last channel. `panel` has [`Layout::panel_bytes`] bytes.
    pub(crate) fn pack_panel<'a>(
        self,
        taps: usize,
        channels: usize,
        (act, counting): (Act, Counting),
        channel: impl Fn(usize) -> Option<&'a [i8]>,
        panel: &mut [u8],
    ) -> Result<()> {
        match self.family {
            Family::Popcount => popcount::pack_panel(self, taps, channels, (act, counting), channel, panel),
            Family::Matrix => matrix::pack_panel(self, taps, channels, channel, panel),
            Family::Table => table::pack_panel(self, taps, channels, act, channel, panel)?,
        }
        Ok(())
    }
}

mod private {
    /// Only this crate implements it.
    pub trait Sealed {}
}
pub(crate) use private::Sealed;

/// A micro-kernel for one family on one instruction set.
pub trait Kernel: Send + Sync + std::fmt::Debug {
    /// `{arch}-{family}-{variant}`.
    fn name(&self) -> &'static str;
    /// The tier that `FATNN_ISA` caps it by.
    fn isa(&self) -> Isa;
    /// Layout of the weights it reads.
    fn layout(&self) -> Layout;
    /// The inner loop for operands, where the kernel has one.
    #[doc(hidden)]
    fn inner(&self, operands: Operands, _: Seal) -> Option<Inner<'_>>;
    /// Epilogue: accumulators to codes. See [`crate::epilogue::to_codes`].
    #[doc(hidden)]
    fn to_codes(&self, acc: &TileAcc<'_>, to: &ToCodes<'_>, out: &mut [u8]);
    /// Epilogue: accumulators to float32, and to codes of those; false where a value that became a code may be NaN. See
    /// [`crate::epilogue::to_float`].
    #[doc(hidden)]
    fn to_float(
        &self,
        acc: &TileAcc<'_>,
        to: &ToFloat<'_>,
        residual: Residual<'_>,
        out: &mut [f32],
        codes: &mut [u8],
    ) -> bool;
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

/// Asks for the cache line at an address, which may be any, before it is needed.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: a hint; it reads nothing and cannot fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The two kinds of inner loop: they differ in how they read activations.
#[doc(hidden)]
pub enum Inner<'a> {
    /// Reads codes as they pass between layers.
    Tiled(&'a (dyn TiledKernel + Sync)),
    /// Reads a layout of its own, made for the call.
    Framed(&'a (dyn FramedKernel + Sync)),
}

/// Writes the epilogue methods of [`Kernel`] for tiles of `nr` columns, and [`Kernel::quantize`], compiled with the kernel's
/// own CPU features.
/// `at_least` and `float_at_least` are [`crate::epilogue::at_least`] and [`crate::quantize::at_least`] or those functions in
/// the instruction set's own words.
macro_rules! epilogue_methods {
    ($nr:expr, $at_least:path, $float_at_least:path $(, $feature:literal)?) => {
        epilogue_methods!(
            @ $nr, { crate::epilogue::part_width($nr) },
            to_codes(to: &crate::epilogue::ToCodes<'_>, out: &mut [u8]; |a, t| $at_least(a, t), |a, t| $at_least(a, t)) -> ()
            $(, $feature)?);
        epilogue_methods!(
            @ $nr, { crate::epilogue::part_width($nr) }, to_float(
                to: &crate::epilogue::ToFloat<'_>, residual: crate::epilogue::Residual<'_>, out: &mut [f32], codes: &mut [u8];
                |x, t| $float_at_least(x, t), |x, t| $float_at_least(x, t)
            ) -> bool $(, $feature)?);
        epilogue_methods!(@ $nr, to_acc(channels: usize, out: &mut [i32];) -> () $(, $feature)?);

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
    (@ $nr:expr $(, $part:block)?, $name:ident($($arg:ident: $type:ty),*; $($extra:expr),*) -> $result:ty $(, $feature:literal)?) => {
        fn $name(&self, tile: &crate::epilogue::TileAcc<'_>, $($arg: $type),*) -> $result {
            $(#[target_feature(enable = $feature)])?
            fn run(tile: &crate::epilogue::TileAcc<'_>, $($arg: $type),*) -> $result {
                crate::epilogue::$name::<{ $nr } $(, $part)?>(tile, $($arg,)* $($extra),*)
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
    popcount::avx512::make,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    matrix::amx::make,
    #[cfg(target_arch = "x86_64")]
    popcount::avx2::make,
    #[cfg(target_arch = "x86_64")]
    table::avx512::channels,
    #[cfg(target_arch = "x86_64")]
    table::avx512::pixels,
    #[cfg(target_arch = "x86_64")]
    table::avx2::channels,
    #[cfg(target_arch = "x86_64")]
    table::avx2::pixels,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    popcount::neon::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    table::neon::channels,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    table::neon::pixels,
    popcount::scalar::make,
    table::scalar::make,
];

/// What a product's operands are, as far as kernels differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// The kind of activations.
    pub act: Act,
    /// The kind of weights.
    pub weights: WeightKind,
}

impl Operands {
    /// Whether a kernel runs them.
    pub fn run_on(self, kernel: &'static dyn Kernel) -> bool {
        kernel.inner(self, Seal).is_some()
    }

    /// Passes that a kernel makes over as many bits as there are products: planes of activations times panels of weights; `None`
    /// where it counts no bits.
    pub fn passes_on(self, kernel: &'static dyn Kernel) -> Option<usize> {
        let Some(Inner::Tiled(tiled)) = kernel.inner(self, Seal) else { return None };
        let planes = match (tiled.counting(), self.act) {
            (Counting::Bits { .. }, Act::Binary) => 1,
            _ => 2,
        };
        Some(planes * if self.weights == WeightKind::TwoBit { 2 } else { 1 })
    }
}

/// The kernels that this process may run, best first.
///
/// # Errors
/// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
pub fn available() -> Result<&'static [&'static dyn Kernel]> {
    static AVAILABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let usable = usable()?;
    let family = crate::config::get()?.family;
    Ok(AVAILABLE.get_or_init(|| {
        // A family that this CPU does not have restricts nothing.
        let Some(family) = family else { return usable.to_vec() }; // small: all kernels
        let of_family: Vec<_> = usable.iter().copied().filter(|kernel| kernel.layout().family == family).collect();
        if of_family.is_empty() { usable.to_vec() } else { of_family } // small: as above
    }))
}

/// The kernels of every family that this CPU has, below the tier that `FATNN_ISA` sets.
fn usable() -> Result<&'static [&'static dyn Kernel]> {
    static USABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let features = Features::usable()?;
    Ok(USABLE.get_or_init(|| KERNELS.iter().filter_map(|make| make(features)).collect()))
}

/// The kernels that may run these operands, best first: of those that [`available`] gives or, where none of these can, of all
/// families.
fn for_operands(operands: Operands) -> Result<Vec<&'static dyn Kernel>> {
    let able = |kernels: &[&'static dyn Kernel]| -> Vec<_> {
        kernels.iter().copied().filter(|kernel| operands.run_on(*kernel)).collect()
    };
    let found = able(available()?);
    Ok(if found.is_empty() { able(usable()?) } else { found })
}

/// Every kernel that this CPU can run, whatever the environment says: for tests and benchmarks.
pub fn detected() -> Vec<&'static dyn Kernel> {
    KERNELS.iter().filter_map(|make| make(Features::detected())).collect()
}

/// The kernel for a convolution with so many output channels (per group) and so long a reduction. (Not for linear layers,
/// which have as few rows as a batch has images: those take [`choose_for_linear`].)
///
/// Measured with `make bench` and its like on one core of a Sapphire Rapids, from codes to codes, GMAC/s:
///
/// | layer | matrix | popcount, AVX-512 | table, AVX-512 | table, AVX2 | popcount, AVX2 |
/// | --- | --- | --- | --- | --- | --- |
/// | 3×3, 16 → 16, 32×32 | 128 | 93 | 114 (lanes: positions) | 99 (positions) | 35 |
/// | 3×3, 24 → 24, 56×56 | 306 | 114 | 161 (positions) | 128 (positions) | 41 |
/// | 3×3, 32 → 32, 16×16 | 413 | 198 | 175 (positions) | 150 | 70 |
/// | 3×3, 64 → 64, 56×56 | 1551 | 426 | 369 | 288 | 138 |
/// | 3×3, 128 → 128, 28×28 | 1353 | 550 | 379 | 310 | 175 |
/// | 3×3, 256 → 256, 14×14 | 1253 | 600 | 410 | 318 | 185 |
/// | 3×3, 512 → 512, 7×7 | 1229 | 565 | 353 | 278 | 180 |
/// | 1×1, 64 → 256, 56×56 | 450 | 170 | 209 | 169 | 45 |
///
/// So a matrix unit comes first (where its tiles are not mostly empty), popcount with `vpopcntq` second where reductions are
/// long, and tables everywhere else: on every CPU without that instruction, and for short reductions, which fill a word of
/// 64 badly. On NEON tables need 7 instructions for 192 products and popcount 6 for 128; neither was measured on hardware.
///
/// Weights of two bits run on popcount kernels only, activations of two bits on those and on tables. On Zen 3 (AVX2), one core,
/// from codes to accumulators (`cargo bench -- operands`), GMAC/s, popcount / table:
///
/// | layer | both binary | ternary weights, binary | ternary | ternary weights, two bits | both of two bits |
/// | --- | --- | --- | --- | --- | --- |
/// | 3×3, 64 → 64, 56×56 | 142 / 179 | 131 / 185 | 99 / 178 | 83 / 165 | 46 |
/// | 3×3, 128 → 128, 28×28 | 268 / 284 | 229 / 294 | 172 / 297 | 143 / 265 | 80 |
/// | 3×3, 256 → 256, 14×14 | 325 / 297 | 282 / 315 | 198 / 313 | 159 / 281 | 89 |
/// | 3×3, 512 → 512, 7×7 | 347 / 268 | 260 / 282 | 189 / 279 | 107 / 247 | 66 |
///
/// So a table is what activations of two bits take, and popcount, without a vector instruction for it, wins where both operands
/// are binary and reductions long. With that instruction it wins everywhere, which the rule for ternary codes already says:
/// on one core of a Xeon with AMX (the same command), popcount / table:
///
/// | layer | both binary | ternary weights, binary | ternary | ternary weights, two bits | both of two bits |
/// | --- | --- | --- | --- | --- | --- |
/// | 3×3, 64 → 64, 56×56 | 842 / 414 | 857 / 424 | 551 / 417 | 498 / 370 | 264 |
/// | 3×3, 128 → 128, 28×28 | 1165 / 407 | 1040 / 414 | 668 / 412 | 564 / 354 | 319 |
/// | 3×3, 256 → 256, 14×14 | 1332 / 481 | 1101 / 494 | 710 / 484 | 565 / 421 | 348 |
/// | 3×3, 512 → 512, 7×7 | 1364 / 416 | 1156 / 434 | 715 / 430 | 598 / 369 | 354 |
///
/// # Errors
/// As [`available`].
pub fn choose(out_channels: usize, reduction: usize, operands: Operands) -> Result<&'static dyn Kernel> {
    let kernels = for_operands(operands)?;
    Ok(choose_among(&kernels, first(&kernels)?, operands, out_channels, reduction))
}

/// The kernel for a linear layer.
///
/// # Errors
/// As [`available`].
pub fn choose_for_linear(operands: Operands) -> Result<&'static dyn Kernel> {
    first(&for_operands(operands)?)
}

/// As [`choose`], or for a linear layer as [`choose_for_linear`], among the kernels of one family: for benchmarks.
///
/// # Errors
/// [`crate::Error::Value`] where the family has none that runs these operands here; as [`available`].
pub fn choose_in(
    family: Family,
    linear: bool,
    out_channels: usize,
    reduction: usize,
    operands: Operands,
) -> Result<&'static dyn Kernel> {
    let able = |kernel: &&'static dyn Kernel| kernel.layout().family == family && operands.run_on(*kernel);
    let kernels: Vec<_> = usable()?.iter().copied().filter(able).collect();
    match kernels.first() {
        None => bad_value("kernel family", format!("one that runs {operands:?} on this machine"), family.name()),
        Some(&best) if linear => Ok(best),
        Some(&best) => Ok(choose_among(&kernels, best, operands, out_channels, reduction)),
    }
}

/// The kernel of that name, whatever the environment says: for tests and benchmarks.
///
/// # Errors
/// [`crate::Error::Value`] where this CPU has none.
pub fn named(name: &str) -> Result<&'static dyn Kernel> {
    let kernels = detected();
    match kernels.iter().find(|kernel| kernel.name() == name) {
        Some(&kernel) => Ok(kernel),
        None => {
            let names: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
            bad_value("kernel", format!("one that this CPU has: {}", names.join(", ")), format!("{name:?}"))
        }
    }
}

fn first(kernels: &[&'static dyn Kernel]) -> Result<&'static dyn Kernel> {
    // The scalar kernels are always there: the table ends with them.
    kernels.first().copied().ok_or_else(|| crate::Error::Packed { why: "no kernel is available".into() })
}

/// [`choose`] among given kernels.
fn choose_among(
    kernels: &[&'static dyn Kernel],
    best: &'static dyn Kernel,
    operands: Operands,
    out_channels: usize,
    reduction: usize,
) -> &'static dyn Kernel {
    let of = |family| kernels.iter().copied().filter(move |kernel| kernel.layout().family == family);
    if out_channels >= 24
        && let Some(matrix) = of(Family::Matrix).next()
    {
        return matrix;
    }
    let vector_popcount = best.layout().family == Family::Popcount && best.isa() == Isa::Avx512;
    let Some(table) = of(Family::Table).find(|kernel| kernel.isa() != Isa::Scalar) else { return best };
    let both_binary = operands == (Operands { act: Act::Binary, weights: WeightKind::Binary });
    if reduction < 16 || (vector_popcount && out_channels >= 32 && reduction >= 256) {
        return best;
    }
    if both_binary
        && reduction >= 2048
        && let Some(popcount) = of(Family::Popcount).find(|kernel| kernel.isa() == table.isa())
    {
        return popcount;
    }
    // Lanes of output channels, unless fewer than three quarters of them would be used.
    let Layout { lanes, .. } = table.layout();
    if 4 * out_channels >= 3 * out_channels.next_multiple_of(lanes) {
        return table;
    }
    let pixels = of(Family::Table).find(|kernel| kernel.layout().lanes == table::PAIRED);
    pixels.unwrap_or(table)
}

/// The best kernel for everything that is no product.
///
/// # Errors
/// As [`available`].
pub fn best() -> Result<&'static dyn Kernel> {
    first(available()?)
}

/// The best kernel that reads weights of the layout with this id, and runs these operands.
///
/// # Errors
/// [`crate::Error::Packed`] where there is none; as [`available`].
pub(crate) fn for_layout(id: u32, operands: Operands) -> Result<&'static dyn Kernel> {
    let kernels = for_operands(operands)?;
    kernels.iter().copied().find(|kernel| kernel.layout().id() == id).ok_or_else(|| crate::Error::Packed {
        why: format!("they are laid out for another CPU's kernel (layout {id:#x})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_may_choose_a_kernel_or_a_family() {
        for kernel in detected() {
            assert_eq!(named(kernel.name()).unwrap().name(), kernel.name());
        }
        let message = named("nonsense").unwrap_err().to_string();
        assert!(message.contains("generic-popcount-scalar") && message.ends_with("got \"nonsense\""), "{message}");
        for act in Act::ALL {
            for weights in WeightKind::ALL {
                let operands = Operands { act, weights };
                for family in Family::ALL {
                    assert_eq!(Family::from_name(family.name()).unwrap(), family);
                    let able = usable().unwrap().iter().any(|k| k.layout().family == family && operands.run_on(*k));
                    for linear in [false, true] {
                        let chosen = choose_in(family, linear, 64, 576, operands);
                        assert_eq!(chosen.is_ok(), able, "{family:?} {operands:?}");
                        assert!(chosen.is_err() || chosen.is_ok_and(|kernel| kernel.layout().family == family));
                    }
                }
            }
        }
    }

    #[test]
    fn every_shape_gets_the_kernel_that_was_the_fastest() {
        let ternary = Operands { act: Act::Half, weights: WeightKind::Ternary };
        let of = |operands, isas: &[Isa], family: Option<Family>, [out_channels, reduction]: [usize; 2]| {
            let allowed = |kernel: &&'static dyn Kernel| {
                isas.contains(&kernel.isa()) && family.is_none_or(|family| kernel.layout().family == family)
            };
            let kernels: Vec<_> = detected().into_iter().filter(allowed).collect();
            let best = kernels.first()?;
            Some(choose_among(&kernels, *best, operands, out_channels, reduction).name())
        };
        let choice = |isas: &[Isa], family, shape| of(ternary, isas, family, shape);
        for act in Act::ALL {
            for weights in WeightKind::ALL {
                let operands = Operands { act, weights };
                let chosen = choose(64, 576, operands).unwrap();
                assert!(operands.run_on(chosen) && operands.run_on(choose_for_linear(operands).unwrap()));
                if weights == WeightKind::TwoBit {
                    assert_eq!(chosen.layout().family, Family::Popcount, "{operands:?}");
                }
                let few_levels = act != Act::Uint2 && weights != WeightKind::TwoBit;
                for kernel in detected() {
                    assert!(!few_levels || operands.run_on(kernel), "every kernel runs ternary operands");
                }
            }
        }
        for shape in [[1, 9], [16, 144], [64, 576], [512, 4608]] {
            assert_eq!(choice(&[Isa::Scalar], None, shape), Some("generic-popcount-scalar"));
            assert_eq!(choice(&[Isa::Scalar], Some(Family::Table), shape), Some("generic-table-scalar"));
        }
        let expect = |isa, family, shape, name| {
            assert!([None, Some(name)].contains(&choice(&[isa], family, shape)), "{name} for {shape:?}");
        };
        for shape in [[64, 64], [64, 576], [512, 4608], [56, 504], [100, 900]] {
            expect(Isa::Avx2, None, shape, "x86_64-table-avx2");
            expect(Isa::Avx512, Some(Family::Table), shape, "x86_64-table-avx512");
            expect(Isa::Avx2, Some(Family::Popcount), shape, "x86_64-popcount-avx2");
            expect(Isa::Avx512, Some(Family::Matrix), shape, "x86_64-matrix-amx");
        }
        for shape in [[1, 16], [16, 144], [40, 360], [36, 324]] {
            expect(Isa::Avx2, None, shape, "x86_64-table-avx2-pixels");
        }
        expect(Isa::Avx2, None, [32, 288], "x86_64-table-avx2");
        expect(Isa::Neon, None, [32, 288], "aarch64-table-neon");
        expect(Isa::Neon, None, [8, 72], "aarch64-table-neon-pixels");
        expect(Isa::Avx2, None, [64, 9], "x86_64-popcount-avx2");
        let binary = Operands { act: Act::Binary, weights: WeightKind::Binary };
        for (shape, name) in [([128, 1152], "x86_64-table-avx2"), ([256, 2304], "x86_64-popcount-avx2")] {
            assert!([None, Some(name)].contains(&of(binary, &[Isa::Avx2], None, shape)));
        }
    }
}
