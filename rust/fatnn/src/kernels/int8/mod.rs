//! Kernels of int8 layers: products of int8 weights and int8 activations, exact in `i32`, for a network's first and last
//! layers.
//!
//! An [`Int8Kernel`] multiplies *rows*, windows of activations at a constant distance in memory that may overlap, by one panel of
//! weights. A row has as many values as the reduction is long, rounded up to [`Int8Layout::depth`]; what lies behind the
//! window meets weights that are 0. No kernel can saturate: weights and activations are in -127..=127, and reductions so
//! short that 127² times their length fits `i32`.
//!
//! | kernel | panel | inner step |
//! | --- | --- | --- |
//! | `x86_64-int8-amx` | up to 64 channels | `tdpbssd`: 16384 products in 16 cycles |
//! | `x86_64-int8-avx512` | up to 64 | `vpdpbusd` on activations plus 128, which the sums' start takes back |
//! | `x86_64-int8-avx2` | 16 | `vpmaddwd` on values widened to `i16`: `vpmaddubsw` would saturate |
//! | `aarch64-int8-neon` | 16 | `smull`, `smlal`, `sadalp`: two products fit `i16` |
//! | `generic-int8-scalar` | 8 | a product and an addition |

use std::sync::OnceLock;

use super::Family;
use crate::cpu::{Features, Isa};
use crate::error::{Error, Result};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod columns;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod passes;
mod scalar;

pub(crate) use columns::{COPY_SLACK, Pixels, interleave, roll};
pub use passes::Finish;

/// How a kernel wants to read activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `i8`.
    I8,
    /// `u8`: the code plus 128.
    Biased,
    /// `i16`.
    I16,
}

impl Element {
    /// Bytes of a value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Element::I8 | Element::Biased => 1,
            Element::I16 => 2,
        }
    }

    /// The byte that the code 0 consists of.
    pub(crate) fn zero(self) -> u8 {
        match self {
            Element::I8 | Element::I16 => 0,
            Element::Biased => 128,
        }
    }
}

/// How a kernel's operands are laid out. Weights lie as
/// `[reduction / depth][width / lanes][depth / unit][lanes][unit]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Int8Layout {
    /// Tells layouts apart at the head of packed weights.
    pub id: u32,
    /// What the reduction is rounded up to.
    pub depth: usize,
    /// Neighbours in the reduction that lie side by side.
    pub unit: usize,
    /// Channels that lie side by side.
    pub lanes: usize,
    /// Most channels in a panel.
    pub panel: usize,
    /// Rows are read in multiples of this.
    pub rows: usize,
    /// Type of activations.
    pub element: Element,
}

impl Int8Layout {
    /// Channels, padding included, of a panel of so many.
    pub(crate) fn width(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.lanes).min(self.panel)
    }

    /// Bytes of a panel: weights, then where activations are biased an `i32` per channel for sums to begin with.
    pub(crate) fn panel_bytes(&self, reduction: usize, width: usize) -> usize {
        let start = if self.element == Element::Biased { 4 } else { 0 };
        (reduction.next_multiple_of(self.depth) + start) * width
    }

    /// Packs a panel: `weight(j)` gives channel `j`'s weights in the order in which rows hold activations.
    pub(crate) fn pack<'a>(
        &self,
        reduction: usize,
        width: usize,
        weight: impl Fn(usize) -> Option<&'a [i8]>,
        panel: &mut [u8],
    ) {
        assert_eq!(panel.len(), self.panel_bytes(reduction, width));
        panel.fill(0);
        let weights = reduction.next_multiple_of(self.depth) * width;
        for j in 0..width {
            let Some(weight) = weight(j) else { continue };
            assert_eq!(weight.len(), reduction);
            for (k, &w) in weight.iter().enumerate() {
                let (deep, rest) = (k / self.depth, k % self.depth);
                let tile = deep * (width / self.lanes) + j / self.lanes;
                let unit = tile * (self.depth / self.unit) + rest / self.unit;
                panel[(unit * self.lanes + j % self.lanes) * self.unit + rest % self.unit] = w.cast_unsigned();
            }
            if self.element == Element::Biased {
                let sum = weight.iter().fold(0i32, |sum, &w| sum + i32::from(w));
                panel[weights + j * 4..][..4].copy_from_slice(&sum.wrapping_mul(-128).to_le_bytes());
            }
        }
    }
}

/// Rows of activations: windows, one every `stride` bytes. Lines of `length` rows begin every `period` rows; rows between them
/// are nothing.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// What the first one begins.
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) lines: usize,
    pub(crate) period: usize,
    pub(crate) length: usize,
}

/// Rows of activations, a panel of weights and what becomes of their products, whose sizes fit each other.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    rows: Rows<'a>,
    /// The reduction, rounded up to the layout's depth.
    depth: usize,
    panel: &'a [u8],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels know it"))]
    width: usize,
    finish: Finish<'a>,
}

impl<'a> Product<'a> {
    /// Rows of `reduction` values, and a panel of as many channels as `finish` has constants.
    ///
    /// # Panics
    /// Where reading them would leave the slices: a bug in the caller.
    pub(crate) fn new(
        layout: &Int8Layout,
        rows: Rows<'a>,
        reduction: usize,
        panel: &'a [u8],
        finish: Finish<'a>,
    ) -> Self {
        let width = finish.scale.len();
        assert!(reduction > 0 && (1..=width).contains(&finish.channels) && finish.channels <= finish.pitch);
        assert!(width.is_multiple_of(layout.lanes) && width <= layout.panel && width == finish.bias.len());
        assert!(finish.affine.is_none_or(|(scale, bias)| scale.len() == width && bias.len() == width));
        assert_eq!(panel.len(), layout.panel_bytes(reduction, width));
        assert!(rows.lines > 0 && rows.length > 0 && (rows.lines == 1 || rows.period >= rows.length));
        let depth = reduction.next_multiple_of(layout.depth);
        let count = (rows.lines - 1) * rows.period + rows.length;
        let last = (count.next_multiple_of(layout.rows) - 1).checked_mul(rows.stride);
        let end = last.and_then(|at| at.checked_add(depth * layout.element.bytes()));
        assert!(end.is_some_and(|end| end <= rows.bytes.len()), "{end:?} of {}", rows.bytes.len());
        Product { rows, depth, panel, width, finish }
    }

    /// Floats, from the first one on, that a kernel may write between.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels write slices"))]
    fn outputs(&self) -> usize {
        (self.rows.lines * self.rows.length - 1) * self.finish.pitch + self.finish.channels
    }

    /// Calls `tile(first row, rows, first output)` for at most `most` rows at a time, line by line.
    #[inline(always)]
    fn tiles(&self, most: usize, mut tile: impl FnMut(usize, usize, usize)) {
        for line in 0..self.rows.lines {
            for x in (0..self.rows.length).step_by(most) {
                let count = most.min(self.rows.length - x);
                tile(line * self.rows.period + x, count, (line * self.rows.length + x) * self.finish.pitch);
            }
        }
    }
}

/// A kernel for int8 products on one instruction set. Sealed: an incorrect layout would cause reads outside a panel.
pub trait Int8Kernel: super::Sealed + Send + Sync + std::fmt::Debug {
    /// `{arch}-int8-{variant}`.
    fn name(&self) -> &'static str;
    /// The tier that `FATNN_ISA` caps it by.
    fn isa(&self) -> Isa;
    /// Layout of what it reads.
    fn layout(&self) -> &'static Int8Layout;
    /// Whether it is worth it for a few rows only.
    fn for_few_rows(&self) -> bool {
        true
    }
    /// Products of all rows with the panel, to floats: see [`Finish`].
    #[doc(hidden)]
    fn multiply(&self, product: &Product<'_>, out: &mut [f32]);
    /// Codes of floats, in the layout's type: `clamp(round(x * inv_step), -127, 127)`, halves to even; whether none was NaN.
    #[doc(hidden)]
    fn quantize(&self, x: &[f32], inv_step: f32, out: &mut [u8]) -> bool;
}

/// Writes `quantize` of [`Int8Kernel`], compiled with the kernel's own CPU features.
macro_rules! quantize_method {
    ($element:ident $(, $feature:literal)?) => {
        fn quantize(&self, x: &[f32], inv_step: f32, out: &mut [u8]) -> bool {
            $(#[target_feature(enable = $feature)])?
            fn run(x: &[f32], inv_step: f32, out: &mut [u8]) -> bool {
                super::passes::quantize_as::<{ super::passes::$element }>(x, inv_step, out)
            }
            #[allow(unused_unsafe)]
            // SAFETY: `self` exists, so the features were detected.
            unsafe {
                run(x, inv_step, out)
            }
        }
    };
}
use quantize_method;

/// A row of the table: makes the kernel where its features are among those given.
type Make = fn(Features) -> Option<&'static dyn Int8Kernel>;

/// Every int8 kernel of this architecture, best first.
const KERNELS: &[Make] = &[
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    amx::make,
    #[cfg(target_arch = "x86_64")]
    avx512::make,
    #[cfg(target_arch = "x86_64")]
    avx2::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    neon::make,
    scalar::make,
];

/// The int8 kernels that this process may run, best first. A `FATNN_KERNEL` other than `matrix` excludes
/// matrix units here too.
///
/// # Errors
/// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
pub fn available() -> Result<&'static [&'static dyn Int8Kernel]> {
    static AVAILABLE: OnceLock<Vec<&'static dyn Int8Kernel>> = OnceLock::new();
    let features = Features::usable()?;
    let units = matches!(crate::config::get()?.family, None | Some(Family::Matrix));
    let features = Features { amx_int8: features.amx_int8 && units, ..features };
    Ok(AVAILABLE.get_or_init(|| KERNELS.iter().filter_map(|make| make(features)).collect()))
}

/// Every int8 kernel that this CPU can run, whatever the environment says: for tests and benchmarks.
pub fn detected() -> Vec<&'static dyn Int8Kernel> {
    KERNELS.iter().filter_map(|make| make(Features::detected())).collect()
}

/// The best kernel; for a layer that has `few_rows` only (a linear one), the best for that.
///
/// # Errors
/// As [`available`].
pub fn choose(few_rows: bool) -> Result<&'static dyn Int8Kernel> {
    // The scalar kernel is always there: the table ends with it.
    let mut kernels = available()?.iter().copied();
    kernels
        .find(|kernel| !few_rows || kernel.for_few_rows())
        .ok_or_else(|| Error::Packed { why: "no int8 kernel is available".into() })
}

/// The best kernel that reads weights of the layout with this id.
///
/// # Errors
/// [`crate::Error::Packed`] where there is none; as [`available`].
pub(crate) fn for_layout(id: u32) -> Result<&'static dyn Int8Kernel> {
    available()?
        .iter()
        .copied()
        .find(|kernel| kernel.layout().id == id)
        .ok_or_else(|| Error::Packed { why: format!("they are laid out for another CPU's int8 kernel (layout {id})") })
}
