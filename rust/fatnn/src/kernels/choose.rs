//! Chooses the kernel of a layer.
//!
//! If the CPU is one of those on which costs were measured, and every candidate has a measured
//! cost, the least predicted time decides (`cost.rs`). Otherwise rules decide. `docs/kernels.md`
//! has the measurements behind both.

use super::cost;
use super::kernel::{Family, Inner, Kernel, OperandTypes, Operands, UNIT_CHANNELS};
use super::popcount::{MAX_MERGED_CHANNELS, merges_taps};
use super::registry::{available, available_for, usable};
use crate::codec::{Act, WeightKind};
use crate::cpu::{self, Isa};
use crate::error::{Result, bad_value};

/// The shape of a layer, as far as the choice of a kernel depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerShape {
    /// A convolution.
    Conv {
        /// Output channels per group.
        out_channels: usize,
        /// Products per output value: input channels per group times taps.
        reduction: usize,
        /// Taps of the window: kernel height times kernel width.
        taps: usize,
    },
    /// A linear layer. It has one row per sample of the batch, so usually few.
    Linear,
}

/// The kernel for a layer, among those that this process may run.
///
/// # Errors
/// As [`available`].
pub fn choose_for(
    shape: LayerShape,
    operands: impl Into<OperandTypes>,
) -> Result<&'static dyn Kernel> {
    let operands = operands.into();
    let kernels = available_for(operands)?;
    let best = first(&kernels)?;
    match (operands, shape) {
        (OperandTypes::Codes(operands), _) => Ok(choose_for_codes(&kernels, shape, operands)),
        // So far, the choice of an int8 kernel does not depend on the shape of a convolution.
        (OperandTypes::Int8, LayerShape::Conv { .. }) | (OperandTypes::Int8Depthwise, _) => {
            Ok(best)
        }
        (OperandTypes::Int8, LayerShape::Linear) => {
            let for_few_rows = |kernel: &&dyn Kernel| match kernel.inner(operands) {
                Some(Inner::Columns(columns)) => columns.for_few_rows(),
                _ => false,
            };
            Ok(kernels.iter().copied().find(for_few_rows).unwrap_or(best))
        }
    }
}

/// As [`choose_for`], among the kernels of one family. For benchmarks.
///
/// # Errors
/// [`crate::Error::Value`] if no kernel of the family runs these operands on this machine;
/// otherwise as [`available`].
pub fn choose_in(
    family: Family,
    shape: LayerShape,
    operands: Operands,
) -> Result<&'static dyn Kernel> {
    let able = |kernel: &&'static dyn Kernel| {
        kernel.layout().family == family && operands.supported_by(*kernel)
    };
    let kernels: Vec<_> = usable()?.iter().copied().filter(able).collect();
    if kernels.is_empty() {
        return bad_value(
            "kernel family",
            format!("one that runs {} on this machine", OperandTypes::from(operands)),
            family.name(),
        );
    }
    Ok(choose_for_codes(&kernels, shape, operands))
}

/// The kernel for a layer of packed codes. `kernels` must not be empty.
fn choose_for_codes(
    kernels: &[&'static dyn Kernel],
    shape: LayerShape,
    operands: Operands,
) -> &'static dyn Kernel {
    let few = || merged_taps(kernels, shape).or_else(|| dot_for_short_taps(kernels, shape));
    let predicted =
        || if cpu::is_zen4() { predicted_fastest(kernels, shape, operands) } else { None };
    few().or_else(predicted).unwrap_or_else(|| choose_by_rules(kernels, shape, operands))
}

/// The kernel that merges taps of few channels, if windows have at least nine. Not if a matrix unit
/// runs the layer.
fn merged_taps(kernels: &[&'static dyn Kernel], shape: LayerShape) -> Option<&'static dyn Kernel> {
    let LayerShape::Conv { out_channels, reduction, taps } = shape else { return None };
    let few = taps >= 9 && reduction <= MAX_MERGED_CHANNELS * taps;
    let merging = kernels.iter().copied().find(|kernel| merges_taps(*kernel));
    merging.filter(|_| few && matrix_unit(kernels, out_channels).is_none())
}

/// Most input channels of a tap for which dot products beat popcount, which pads them to 64.
const MAX_DOT_CHANNELS: usize = 24;

/// A dot-product kernel if taps have few channels. Not if a matrix unit runs the layer. If output
/// channels fill the lanes of a table kernel, only for 1×1 layers.
fn dot_for_short_taps(
    kernels: &[&'static dyn Kernel],
    shape: LayerShape,
) -> Option<&'static dyn Kernel> {
    let LayerShape::Conv { out_channels, reduction, taps } = shape else { return None };
    let of = |family| kernels.iter().copied().find(|kernel| kernel.layout().family == family);
    let matrix = matrix_unit(kernels, out_channels).is_some();
    let table = of(Family::Table).filter(|table| fills_lanes(out_channels, *table));
    let few = reduction <= MAX_DOT_CHANNELS * taps;
    if few && !matrix && (taps == 1 || table.is_none()) { of(Family::Dot) } else { None }
}

/// Fewest output channels for which a matrix unit is the fastest.
const MIN_MATRIX_CHANNELS: usize = 24;

/// The kernel of a matrix unit, if there is one and the layer has enough output channels for it.
fn matrix_unit(
    kernels: &[&'static dyn Kernel],
    out_channels: usize,
) -> Option<&'static dyn Kernel> {
    let matrix = kernels.iter().copied().find(|kernel| kernel.layout().family == Family::Matrix);
    matrix.filter(|_| out_channels >= MIN_MATRIX_CHANNELS)
}

/// Whether output channels leave no more than a quarter of a kernel's lanes unused.
fn fills_lanes(out_channels: usize, kernel: &dyn Kernel) -> bool {
    4 * out_channels >= 3 * out_channels.next_multiple_of(kernel.layout().lanes)
}

/// Whether the channels of a tap leave no more than a quarter of their units unused.
fn fills_units(reduction: usize, taps: usize) -> bool {
    let channels = reduction / taps.max(1);
    4 * channels >= 3 * channels.next_multiple_of(UNIT_CHANNELS)
}

/// Shortest reduction for which predicted times decide. The model ignores epilogues, which matter
/// if reductions are short: its choices for 1x1 layers made ResNet-50 4% slower.
const MIN_PREDICTED_REDUCTION: usize = 256;

/// The kernel with the least predicted time. Portable kernels are not considered. `None` if a
/// candidate has no measured cost, or the shape is outside what was measured.
fn predicted_fastest(
    kernels: &[&'static dyn Kernel],
    shape: LayerShape,
    operands: Operands,
) -> Option<&'static dyn Kernel> {
    match shape {
        LayerShape::Conv { reduction, .. } if reduction >= MIN_PREDICTED_REDUCTION => (),
        _ => return None,
    }
    let mut best: Option<(f64, &'static dyn Kernel)> = None;
    // Rules have already decided against kernels for taps of few channels, which have no measured
    // cost.
    let candidate = |kernel: &&&'static dyn Kernel| {
        let no_row = kernel.layout().family == Family::Dot || merges_taps(**kernel);
        kernel.isa() != Isa::Scalar && !no_row
    };
    for &kernel in kernels.iter().filter(candidate) {
        let time = cost::predicted_time(kernel, shape, operands)?;
        if best.is_none_or(|(least, _)| time < least) {
            best = Some((time, kernel));
        }
    }
    best.map(|(_, kernel)| kernel)
}

/// Chooses by rules only. `kernels` must be in the registry's order and all run the operands. A
/// linear layer gets the first one. For benchmarks.
///
/// # Panics
/// If `kernels` is empty.
pub fn choose_by_rules(
    kernels: &[&'static dyn Kernel],
    shape: LayerShape,
    operands: Operands,
) -> &'static dyn Kernel {
    match shape {
        LayerShape::Linear => kernels[0],
        LayerShape::Conv { out_channels, reduction, taps } => {
            choose_among(kernels, kernels[0], operands, [out_channels, reduction, taps])
        }
    }
}

fn first(kernels: &[&'static dyn Kernel]) -> Result<&'static dyn Kernel> {
    // The registry ends with scalar kernels, which every CPU can run, so this is never empty.
    kernels
        .first()
        .copied()
        .ok_or_else(|| crate::Error::Packed { why: "no kernel is available".into() })
}

/// [`choose_by_rules`] for a convolution.
fn choose_among(
    kernels: &[&'static dyn Kernel],
    best: &'static dyn Kernel,
    operands: Operands,
    [out_channels, reduction, taps]: [usize; 3],
) -> &'static dyn Kernel {
    let of =
        |family| kernels.iter().copied().filter(move |kernel| kernel.layout().family == family);
    if let Some(matrix) = matrix_unit(kernels, out_channels) {
        return matrix;
    }
    let vector_popcount = best.layout().family == Family::Popcount && best.isa() == Isa::Avx512;
    let Some(table) = of(Family::Table).find(|kernel| kernel.isa() != Isa::Scalar) else {
        return best;
    };
    let both_binary = operands == (Operands { act: Act::Binary, weights: WeightKind::Binary });
    let long = reduction >= 256 || (reduction >= 64 && fills_units(reduction, taps));
    if reduction < 16 || (vector_popcount && out_channels >= 32 && long) {
        return best;
    }
    if both_binary
        && reduction >= 2048
        && let Some(popcount) = of(Family::Popcount).find(|kernel| kernel.isa() == table.isa())
    {
        return popcount;
    }
    // Put output channels in the lanes, unless that leaves too many of them unused.
    if fills_lanes(out_channels, table) {
        return table;
    }
    if vector_popcount {
        return best;
    }
    let pixels = of(Family::Table).find(|kernel| kernel.layout().lanes_are_positions());
    pixels.unwrap_or(table)
}

/// The first kernel of [`available`].
///
/// # Errors
/// As [`available`].
pub fn best() -> Result<&'static dyn Kernel> {
    first(available()?)
}

#[cfg(test)]
mod tests {
    use super::super::registry::{detected, detected_for, named};
    use super::*;

    const CONV: LayerShape = LayerShape::Conv { out_channels: 64, reduction: 576, taps: 9 };

    #[test]
    fn a_benchmark_may_choose_a_kernel_or_a_family() {
        for kernel in detected() {
            assert_eq!(named(kernel.name()).unwrap().name(), kernel.name());
        }
        let message = named("nonsense").unwrap_err().to_string();
        assert!(
            message.contains("generic-popcount-scalar") && message.ends_with("got \"nonsense\""),
            "{message}"
        );
        for act in Act::ALL {
            for weights in WeightKind::ALL {
                let operands = Operands { act, weights };
                for family in Family::ALL {
                    assert_eq!(Family::from_name(family.name()).unwrap(), family);
                    let able = usable()
                        .unwrap()
                        .iter()
                        .any(|k| k.layout().family == family && operands.supported_by(*k));
                    for shape in [CONV, LayerShape::Linear] {
                        let chosen = choose_in(family, shape, operands);
                        assert_eq!(chosen.is_ok(), able, "{family:?} {operands:?}");
                        assert!(
                            chosen.is_err()
                                || chosen.is_ok_and(|kernel| kernel.layout().family == family)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn taps_of_few_channels_have_kernels_of_their_own() {
        let ternary = Operands { act: Act::Half, weights: WeightKind::Ternary };
        let kernels: Vec<_> = detected_for(ternary)
            .into_iter()
            .filter(|kernel| kernel.layout().family != Family::Matrix)
            .collect();
        let exists = kernels.iter().any(|kernel| kernel.layout().family == Family::Dot);
        let merges = kernels.iter().any(|kernel| merges_taps(*kernel));
        let chosen = |[out_channels, channels, taps]: [usize; 3]| {
            let shape = LayerShape::Conv { out_channels, reduction: channels * taps, taps };
            let kernel = choose_for_codes(&kernels, shape, ternary);
            (kernel.layout().family == Family::Dot, merges_taps(kernel))
        };
        for shape in [[96, 16, 1], [144, 24, 1], [16, 24, 4]] {
            assert_eq!(chosen(shape), (exists, false), "{shape:?}");
        }
        for shape in [[16, 16, 9], [32, 3, 25], [8, 1, 9], [64, 16, 9], [32, 32, 9]] {
            assert_eq!(chosen(shape).1, merges, "{shape:?}");
        }
        for shape in [[192, 32, 1], [16, 64, 1], [64, 64, 9], [64, 33, 9]] {
            assert_eq!(chosen(shape), (false, false), "{shape:?}");
        }
    }

    #[test]
    fn every_shape_gets_the_kernel_that_was_the_fastest() {
        let ternary = Operands { act: Act::Half, weights: WeightKind::Ternary };
        let of = |operands,
                  isas: &[Isa],
                  family: Option<Family>,
                  [out_channels, reduction]: [usize; 2]| {
            let allowed = |kernel: &&'static dyn Kernel| {
                isas.contains(&kernel.isa())
                    && family.is_none_or(|family| kernel.layout().family == family)
            };
            let kernels: Vec<_> = detected_for(operands).into_iter().filter(allowed).collect();
            let best = kernels.first()?;
            let taps = if reduction % 9 == 0 { 9 } else { 1 };
            let shape = [out_channels, reduction, taps];
            Some(choose_among(&kernels, *best, operands, shape).name())
        };
        let choice = |isas: &[Isa], family, shape| of(ternary, isas, family, shape);
        for act in Act::ALL {
            for weights in WeightKind::ALL {
                let operands = Operands { act, weights };
                let chosen = choose_for(CONV, operands).unwrap();
                let linear = choose_for(LayerShape::Linear, operands).unwrap();
                assert!(operands.supported_by(chosen) && operands.supported_by(linear));
                if weights == WeightKind::TwoBit {
                    assert_eq!(chosen.layout().family, Family::Popcount, "{operands:?}");
                }
                let few_levels = act != Act::Uint2 && weights != WeightKind::TwoBit;
                for kernel in detected().into_iter().filter(|k| k.layout().family != Family::Int8) {
                    assert!(
                        !few_levels || operands.supported_by(kernel),
                        "every kernel runs ternary operands"
                    );
                }
            }
        }
        for shape in [[1, 9], [16, 144], [64, 576], [512, 4608]] {
            assert_eq!(choice(&[Isa::Scalar], None, shape), Some("generic-popcount-scalar"));
            assert_eq!(
                choice(&[Isa::Scalar], Some(Family::Table), shape),
                Some("generic-table-scalar")
            );
        }
        let expect = |isa, family, shape, name| {
            assert!(
                [None, Some(name)].contains(&choice(&[isa], family, shape)),
                "{name} for {shape:?}"
            );
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
        for (shape, name) in
            [([128, 1152], "x86_64-table-avx2"), ([256, 2304], "x86_64-popcount-avx2")]
        {
            assert!([None, Some(name)].contains(&of(binary, &[Isa::Avx2], None, shape)));
        }
    }
}
