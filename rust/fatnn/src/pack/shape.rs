//! Shapes of weights, and the checks before packing.

use crate::codec::CodesLayout;
use crate::error::{Result, bad_value};
use crate::kernels::{LayerShape, OperandTypes, Operands};

/// Integers up to this magnitude are exact in float32.
const EXACT: usize = 1 << 24;
/// An upper bound for all operands; [`check_sums`] has the tighter bound for each.
const MAX_REDUCTION: usize = EXACT / 2;
/// The longest reduction (channels / groups × kernel) for which sums of int8 products fit in `i32`.
pub const MAX_INT8_REDUCTION: usize = 133_000;

/// Shape of a weight: `out_channels × (channels / groups) × kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightShape {
    /// Output channels of all groups.
    pub out_channels: usize,
    /// Input channels of all groups.
    pub channels: usize,
    /// Height and width of the kernel; 1×1 for a linear layer.
    pub kernel: [usize; 2],
    /// Number of groups.
    pub groups: usize,
}

impl WeightShape {
    pub(crate) fn check(self) -> Result<Self> {
        CodesLayout::new(self.channels, self.groups)?;
        let [kh, kw] = self.kernel;
        if self.out_channels == 0 || !self.out_channels.is_multiple_of(self.groups) {
            return bad_value(
                "out_channels",
                format!("a positive multiple of the {} groups", self.groups),
                self.out_channels,
            );
        }
        let fits = (1..=u16::MAX as usize).contains(&kh)
            && (1..=u16::MAX as usize).contains(&kw)
            && self.out_channels <= u32::MAX as usize / 2
            && self.channels <= u32::MAX as usize / 2
            && self.reduction_checked().is_some_and(|k| k < MAX_REDUCTION);
        if !fits {
            return bad_value(
                "weight shape",
                format!(
                    "a reduction (channels / groups × kernel) of at least 1 and below \
                     {MAX_REDUCTION}"
                ),
                format!("{self:?}"),
            );
        }
        Ok(self)
    }

    fn reduction_checked(self) -> Option<usize> {
        self.channels
            .checked_div(self.groups)?
            .checked_mul(self.kernel[0])?
            .checked_mul(self.kernel[1])
    }

    /// Multiply-accumulates per output element.
    pub fn reduction(self) -> usize {
        self.reduction_checked().unwrap_or(usize::MAX)
    }

    /// What the choice of a convolution kernel depends on.
    pub fn layer(self) -> LayerShape {
        let out_channels = self.out_channels.checked_div(self.groups).unwrap_or(0);
        LayerShape::Conv {
            out_channels,
            reduction: self.reduction(),
            taps: self.kernel[0].saturating_mul(self.kernel[1]),
        }
    }

    /// Whether each output channel reads only one of several input channels.
    pub fn is_depthwise(self) -> bool {
        self.groups > 1 && self.channels == self.groups
    }

    /// The operand types of an int8 layer with these weights. Only this function decides which
    /// layers use depthwise kernels.
    pub fn int8_operands(self) -> OperandTypes {
        if self.is_depthwise() { OperandTypes::Int8Depthwise } else { OperandTypes::Int8 }
    }

    /// Number of weights.
    pub fn len(self) -> usize {
        self.out_channels.saturating_mul(self.reduction())
    }

    /// Always false for a checked shape.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// `Ok` if layers of this shape can have these operands.
pub(super) fn check_operands(operands: OperandTypes, shape: WeightShape) -> Result<()> {
    match operands {
        OperandTypes::Int8Depthwise if !shape.is_depthwise() => bad_value(
            "weight shape",
            format!("one channel per group for {operands}"),
            format!("{shape:?}"),
        ),
        _ => Ok(()),
    }
}

/// `Ok` if the sums are exact: those of codes in float32, those of int8 in `i32`.
pub(super) fn check_sums(operands: OperandTypes, shape: WeightShape) -> Result<()> {
    let longest = match operands {
        OperandTypes::Codes(Operands { act, weights }) => {
            EXACT / (act.max_abs() * weights.max_abs())
        }
        OperandTypes::Int8 | OperandTypes::Int8Depthwise => MAX_INT8_REDUCTION,
    };
    if shape.reduction() <= longest {
        return Ok(());
    }
    let expected =
        format!("a reduction (channels / groups × kernel) of at most {longest} for {operands}");
    bad_value("weight shape", expected, format!("{} of {shape:?}", shape.reduction()))
}

/// `Ok` if all weights have the operands' weight type.
pub(super) fn check_values(operands: OperandTypes, values: &[i8]) -> Result<()> {
    match operands {
        OperandTypes::Codes(operands) => operands.weights.check("weight", values),
        OperandTypes::Int8 | OperandTypes::Int8Depthwise => {
            match values.iter().position(|&w| w == i8::MIN) {
                None => Ok(()),
                Some(at) => bad_value(
                    "weight",
                    "int8 weights, from -127 to 127",
                    format!("-128 at element {at}"),
                ),
            }
        }
    }
}
