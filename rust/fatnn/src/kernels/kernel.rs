//! The seam: what every kernel of every family is, and what it says of itself.
//!
//! A [`Kernel`] multiplies operands of the types that it supports. It does so by one of four kinds
//! of inner loop, which differ in how they read activations; each packs the weights that it reads.
//! A kernel exists only where its CPU features were detected, so holding one proves that it may
//! run.

use super::columns::ColumnsKernel;
use super::depthwise::DepthwiseKernel;
use super::packed_input::PackedInputKernel;
use super::tiled::TiledKernel;
use super::{popcount, table};
use crate::codec::{Act, WeightKind};
pub use crate::config::Family;
use crate::cpu::Isa;
use crate::dtype::WeightType;

/// Channels in a unit of the reduction, for every family that runs codes.
pub(crate) const UNIT_CHANNELS: usize = popcount::CHANNELS;
/// Bytes of a unit of packed codes: two planes.
pub(crate) const UNIT_BYTES: usize = popcount::UNIT_BYTES;

/// How weights are laid out for a kernel. Kernels with equal layouts can run each other's packed
/// weights of codes; int8 layouts differ in more, see [`Kernel::layout_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The family, which settles the unit of the reduction.
    pub family: Family,
    /// Output channels in a panel, at most.
    pub nr: usize,
    /// Output channels that lie side by side in one vector; 2 where lanes are positions.
    pub lanes: usize,
}

impl Layout {
    /// Whether lanes are positions of the output, not channels.
    pub fn lanes_are_positions(self) -> bool {
        self.family == Family::Table && self.lanes == table::PAIRED
    }
}

/// Operands of few levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// The kind of activations.
    pub act: Act,
    /// The kind of weights.
    pub weights: WeightKind,
}

/// The types of a product's operands, which a kernel supports or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperandTypes {
    /// Packed codes and weights of few levels.
    Codes(Operands),
    /// Int8 activations and int8 weights.
    Int8,
    /// The same in a depthwise convolution, whose output channels read one input channel each.
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
    /// The type of weights.
    pub fn weights(self) -> WeightType {
        match self {
            OperandTypes::Codes(operands) => operands.weights.into(),
            OperandTypes::Int8 | OperandTypes::Int8Depthwise => WeightType::Int8,
        }
    }

    /// The type of activations that are codes; `None` of int8 ones.
    pub fn act(self) -> Option<Act> {
        match self {
            OperandTypes::Codes(operands) => Some(operands.act),
            OperandTypes::Int8 | OperandTypes::Int8Depthwise => None,
        }
    }

    /// Whether a kernel runs them.
    pub fn supported_by(self, kernel: &'static dyn Kernel) -> bool {
        kernel.inner(self).is_some()
    }
}

impl Operands {
    /// Whether a kernel runs them.
    pub fn supported_by(self, kernel: &'static dyn Kernel) -> bool {
        OperandTypes::from(self).supported_by(kernel)
    }

    /// Passes that a kernel makes over as many bits as there are products: planes of activations
    /// times panels of weights; `None` where it counts no bits.
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
    /// Only this crate implements it: a layout that lies would let another kernel's inner loop read
    /// outside its panel.
    pub trait Sealed {}
}

/// A kernel of one family on one instruction set.
pub trait Kernel: private::Sealed + Send + Sync + std::fmt::Debug {
    /// `{arch}-{family}-{variant}`; no two kernels share it.
    fn name(&self) -> &'static str;

    /// The tier that `FATNN_ISA` caps it by. It uses no features above.
    fn isa(&self) -> Isa;

    /// Layout of the weights that it reads, the same for all operands.
    fn layout(&self) -> Layout;

    /// A number that tells layouts apart, stored at the head of packed weights. Equal numbers mean
    /// equal bytes for equal weights.
    fn layout_id(&self) -> u32 {
        let Layout { family, nr, lanes } = self.layout();
        (family as u32 + 1) << 16 | (nr as u32) << 8 | lanes as u32
    }

    /// The inner loop for such operands; `None` where the kernel does not run them. Always the same
    /// one for the same operands.
    #[doc(hidden)]
    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>>;

    /// Whether it runs on a matrix unit, which `FATNN_KERNEL` may exclude.
    fn uses_matrix_unit(&self) -> bool {
        false
    }
}

/// The kinds of inner loop: they differ in how they read activations.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub enum Inner<'a> {
    /// Reads codes as they pass between layers.
    Tiled(&'a (dyn TiledKernel + Sync)),
    /// Reads a layout of its own, packed for the call.
    PackedInput(&'a (dyn PackedInputKernel + Sync)),
    /// Reads int8 windows that lie in one piece of memory.
    Columns(&'a dyn ColumnsKernel),
    /// Reads int8 rows of a depthwise convolution, interleaved.
    Depthwise(&'a dyn DepthwiseKernel),
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
