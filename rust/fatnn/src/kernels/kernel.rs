//! The interface of all kernels.
//!
//! A [`Kernel`] multiplies operands of the types that it supports. There are four kinds of inner
//! loop. They differ in how they read activations, and each packs its own weights. A kernel can
//! only be obtained if the CPU features that it needs were detected, so holding one proves that it
//! may run.

use super::columns::ColumnsKernel;
use super::depthwise::DepthwiseKernel;
use super::packed_input::PackedInputKernel;
use super::tiled::TiledKernel;
use super::{popcount, table};
use crate::codec::{Act, WeightKind};
pub use crate::config::Family;
use crate::cpu::Isa;
use crate::dtype::WeightType;

/// Input channels in a unit, for every family that reads packed codes.
pub(crate) const UNIT_CHANNELS: usize = popcount::UNIT_CHANNELS;
/// Bytes of a unit of packed codes: two bit planes.
pub(crate) const UNIT_BYTES: usize = popcount::UNIT_BYTES;

/// How a kernel lays out weights. Kernels with equal layouts can read each other's packed weights
/// of few levels. Int8 layouts differ in more than these fields: see [`Kernel::layout_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The family. It determines how the reduction is cut.
    pub family: Family,
    /// Largest number of output channels in a panel.
    pub nr: usize,
    /// Output channels next to each other in one vector. 2 if lanes are positions.
    pub lanes: usize,
}

impl Layout {
    /// Whether lanes are output positions instead of output channels.
    pub fn lanes_are_positions(self) -> bool {
        self.family == Family::Table && self.lanes == table::PAIRED
    }
}

/// Operand types with at most four levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// Type of the activations.
    pub act: Act,
    /// Type of the weights.
    pub weights: WeightKind,
}

/// The operand types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperandTypes {
    /// Packed codes times weights of few levels.
    Codes(Operands),
    /// Int8 activations times int8 weights.
    Int8,
    /// Int8 times int8 in a depthwise convolution: each output channel reads one input channel.
    Int8Depthwise,
}

impl From<Operands> for OperandTypes {
    fn from(operands: Operands) -> Self {
        OperandTypes::Codes(operands)
    }
}

impl std::fmt::Display for OperandTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let act = self.act().map_or(WeightType::Int8.name(), Act::name);
        let kind =
            if *self == OperandTypes::Int8Depthwise { " of a depthwise convolution" } else { "" };
        write!(f, "{act} activations and {} weights{kind}", self.weights().name())
    }
}

impl OperandTypes {
    /// Type of the weights.
    pub fn weights(self) -> WeightType {
        match self {
            OperandTypes::Codes(operands) => operands.weights.into(),
            OperandTypes::Int8 | OperandTypes::Int8Depthwise => WeightType::Int8,
        }
    }

    /// Type of the activations if they are packed codes, `None` if they are int8.
    pub fn act(self) -> Option<Act> {
        match self {
            OperandTypes::Codes(operands) => Some(operands.act),
            OperandTypes::Int8 | OperandTypes::Int8Depthwise => None,
        }
    }

    /// Whether `kernel` runs these operands.
    pub fn supported_by(self, kernel: &'static dyn Kernel) -> bool {
        kernel.inner(self).is_some()
    }
}

impl Operands {
    /// Whether `kernel` runs these operands.
    pub fn supported_by(self, kernel: &'static dyn Kernel) -> bool {
        OperandTypes::from(self).supported_by(kernel)
    }

    /// How many times a popcount kernel passes over the reduction: bit planes of activations times
    /// panels of weights. `None` for kernels that do not count bits.
    pub fn bit_passes(self, kernel: &'static dyn Kernel) -> Option<usize> {
        let Some(Inner::Tiled(tiled)) = kernel.inner(self.into()) else { return None };
        let planes = match (tiled.mode(), self.act) {
            (popcount::PopcountMode::Bits { .. }, Act::Binary) => 1,
            _ => 2,
        };
        Some(planes * if self.weights == WeightKind::TwoBit { 2 } else { 1 })
    }
}

pub(crate) mod private {
    /// Sealed: an incorrect [`Layout`](super::Layout) would cause out-of-bounds reads in another
    /// kernel's inner loop.
    pub trait Sealed {}
}

/// A kernel: one family on one instruction set.
pub trait Kernel: private::Sealed + Send + Sync + std::fmt::Debug {
    /// `{arch}-{family}-{variant}`, unique among kernels.
    fn name(&self) -> &'static str;

    /// The lowest tier of `FATNN_ISA` that allows this kernel. It uses no features above it.
    fn isa(&self) -> Isa;

    /// Layout of the packed weights, the same for all operand types.
    fn layout(&self) -> Layout;

    /// Identifies the layout in the header of packed weights. Kernels with equal ids pack equal
    /// weights to equal bytes.
    fn layout_id(&self) -> u32 {
        let Layout { family, nr, lanes } = self.layout();
        (family as u32 + 1) << 16 | (nr as u32) << 8 | lanes as u32
    }

    /// The inner loop for these operand types, or `None` if the kernel does not support them. Equal
    /// operand types always give the same loop.
    #[doc(hidden)]
    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>>;

    /// Whether the kernel runs on a matrix unit, which `FATNN_KERNEL` may exclude.
    fn uses_matrix_unit(&self) -> bool {
        false
    }
}

/// The four kinds of inner loop. They differ in how they read activations.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub enum Inner<'a> {
    /// Reads packed codes as layers exchange them.
    Tiled(&'a (dyn TiledKernel + Sync)),
    /// Reads the input in a layout of its own, into which the driver packs it on each call.
    PackedInput(&'a (dyn PackedInputKernel + Sync)),
    /// Reads int8 windows, each contiguous in memory.
    Columns(&'a dyn ColumnsKernel),
    /// Reads interleaved int8 rows of a depthwise convolution.
    Depthwise(&'a dyn DepthwiseKernel),
}

/// Prefetches the cache line at `address`, which may be any address.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: a prefetch is a hint: it accesses no memory and cannot fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
