//! The epilogue of a product: accumulators to codes by integer thresholds, or to float32.
//!
//! The loops are in `kernels/epilogue.rs`. The order of operations is part of the contract: a
//! deployed network gives the eager model's values bit for bit on every CPU.
//!
//! * Codes: `level = [acc ≥ low] + [acc ≥ high]`. The ternary code is `level - 1`, for half-range
//!   and full-range activations. With a third threshold, the two-bit code is the level itself.
//! * Float32: first `y = fma(float(acc), scale, bias)` **with one rounding**, as PyTorch's
//!   BatchNorm computes it in evaluation mode on CPUs with FMA. Without a scale it is `float(acc) +
//!   bias`, without a bias `float(acc) * scale`. Then `y + residual`, rounded separately. Then, if
//!   `relu` is set, `max(y, 0)`, which keeps NaN.
//!
//! Accumulators are below 2²⁴ in magnitude (checked when weights are packed), so `float(acc)` is
//! exact.

use crate::codec::{CodesLayout, MAX_THRESHOLDS};
use crate::error::{Result, bad_value, check_len};
use crate::memory;
use crate::scalar::{Encoder, Int8Quantizer, Lookup, Scalar};

/// Converts accumulators to codes.
pub struct Requantize<'a> {
    /// The smallest accumulator of each level, `levels - 1` rows of one number per output channel.
    /// Level 1 comes first; no row is below the one before it.
    pub thresholds: &'a [i32],
    /// Layout of the output codes.
    pub layout: CodesLayout,
}

/// Converts accumulators to float32.
#[derive(Clone, Copy)]
pub struct Dequantize<'a> {
    /// One per output channel.
    pub scale: Option<&'a [f32]>,
    /// One per output channel.
    pub bias: Option<&'a [f32]>,
    /// Whether to apply `max(y, 0)` at the end.
    pub relu: bool,
    /// Output channels per row of `out`.
    pub channels: usize,
    /// If set, the values' codes are also written, to a second output. Only used inside networks.
    pub codes: Option<Quantizer>,
}

/// Converts accumulators to float32, and these to bytes. Without a residual of floats, no value may
/// be NaN. Only used inside networks.
#[derive(Clone, Copy)]
pub struct DequantizeInt8<'a> {
    pub(crate) floats: Dequantize<'a>,
    /// Its lowest code includes the ReLU.
    pub(crate) encoder: Encoder,
    /// The thresholds of `floats.codes` for the bits of `encoder`.
    pub(crate) thresholds: [i32; MAX_THRESHOLDS],
}

impl<'a> DequantizeInt8<'a> {
    pub(crate) fn new(floats: Dequantize<'a>, quantizer: Int8Quantizer) -> Self {
        let thresholds = floats.codes.map_or([f32::NAN; MAX_THRESHOLDS], |codes| codes.thresholds);
        let thresholds = thresholds.map(|threshold| quantizer.bits_threshold(threshold));
        DequantizeInt8 { thresholds, ..Self::encoded(floats, quantizer.encoder()) }
    }

    /// Bytes of another encoder, without codes.
    pub(crate) fn encoded(floats: Dequantize<'a>, encoder: Encoder) -> Self {
        let floor = if floats.relu { 0.0 } else { f32::NEG_INFINITY };
        let thresholds = [i32::MAX; MAX_THRESHOLDS];
        DequantizeInt8 { floats, encoder: encoder.with_floor(floor), thresholds }
    }
}

/// What is added after scale and bias.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// An array of the output's shape.
    Of(&'a [f32]),
    /// The bytes of an array of the output's shape.
    Int8(&'a [u8], Int8Quantizer),
    /// The present content of the output.
    InPlace,
}

impl Residual<'_> {
    /// The residual from an element on.
    pub(crate) fn from(self, at: usize) -> Self {
        match self {
            Residual::Of(x) => Residual::Of(&x[at..]),
            Residual::Int8(x, quantizer) => Residual::Int8(&x[at..], quantizer),
            other => other,
        }
    }
}

/// Thresholds from float32 to codes, shared by all channels.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    /// The smallest values of levels 1, 2 and 3. NaN marks a level that no input reaches, because
    /// every comparison with NaN is false.
    pub(crate) thresholds: [f32; MAX_THRESHOLDS],
    pub(crate) layout: CodesLayout,
}

impl Quantizer {
    /// Takes the smallest values of levels 1, 2 and, for two-bit codes, 3. A threshold of +inf
    /// marks a level that no input reaches, not even +inf.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the number of thresholds does not match the layout's coding;
    /// [`crate::Error::Value`] if a threshold is NaN or below the one before it.
    pub fn new(thresholds: &[f32], layout: CodesLayout) -> Result<Self> {
        check_len("thresholds", layout.coding().thresholds(), thresholds.len())?;
        // `a <= b` rejects NaN; `!(a > b)` would accept it.
        if !thresholds.is_sorted_by(|a, b| a <= b) {
            return bad_value(
                "thresholds",
                "numbers, none below the one before",
                format!("{thresholds:?}"),
            );
        }
        let mut all = [f32::NAN; MAX_THRESHOLDS];
        for (to, &threshold) in all.iter_mut().zip(thresholds) {
            *to = if threshold == f32::INFINITY { f32::NAN } else { threshold };
        }
        Ok(Quantizer { thresholds: all, layout })
    }
}

/// A function of one element, per channel or for all channels. It computes in PyTorch's order of
/// operations, so that the bits agree.
#[derive(Clone, Debug, PartialEq)]
pub enum Elementwise {
    /// `fma(x, scale, bias)` per channel: BatchNorm in evaluation mode.
    Affine(Vec<f32>, Vec<f32>),
    /// `x * scale` per channel.
    Scale(Vec<f32>),
    /// `x + bias` per channel.
    Bias(Vec<f32>),
    /// A function that is the same for all channels.
    Scalar(Scalar),
    /// A function of values with eight bits.
    Lookup(Lookup),
    /// `x > 0 ? x : x * slope`, with one slope per channel or one for all.
    Prelu(Vec<f32>),
}

impl Elementwise {
    /// Fewer functions with the same results: a table rounds its input by itself, and takes in the
    /// tables and the rounding that follow.
    pub(crate) fn merged(functions: Vec<Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::with_capacity(functions.len()); // small: one per node
        for function in functions {
            let last = merged.pop();
            match (last, function) {
                (
                    Some(Elementwise::Scalar(Scalar::FakeQuantize(rounds))),
                    Elementwise::Lookup(lookup),
                ) if rounds == lookup.quantizer() => merged.push(Elementwise::Lookup(lookup)),
                (
                    Some(Elementwise::Lookup(lookup)),
                    Elementwise::Scalar(scalar @ Scalar::FakeQuantize(_)),
                ) => merged.push(Elementwise::Lookup(lookup.then(scalar))),
                (Some(Elementwise::Lookup(lookup)), Elementwise::Lookup(next)) => {
                    merged.push(Elementwise::Lookup(lookup.then_lookup(&next)));
                }
                (last, function) => merged.extend(last.into_iter().chain([function])),
            }
        }
        merged
    }

    /// Functions that begin with a rounding to eight bits, as one table. `None` if they do not, or
    /// if they differ from channel to channel.
    pub(crate) fn as_lookup(functions: &[Self]) -> Option<Lookup> {
        let (first, rest) = functions.split_first()?;
        let first = match first {
            Elementwise::Scalar(Scalar::FakeQuantize(quantizer)) => Lookup::of_values(*quantizer),
            Elementwise::Lookup(lookup) => lookup.clone(),
            _ => return None,
        };
        rest.iter().try_fold(first, |lookup, function| match function {
            Elementwise::Scalar(scalar) => Some(lookup.then(*scalar)),
            Elementwise::Lookup(next) => Some(lookup.then_lookup(next)),
            _ => None,
        })
    }

    /// BatchNorm in evaluation mode as one fused multiply-add: `scale = weight / √(var + eps)`,
    /// `bias = fma(-mean, scale, bias)`, in float32.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if sizes differ; [`crate::Error::Memory`] if memory runs out.
    pub fn batch_norm(
        mean: &[f32],
        var: &[f32],
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        eps: f32,
    ) -> Result<Self> {
        for values in [Some(var), weight, bias].into_iter().flatten() {
            check_len("statistics of a BatchNorm", mean.len(), values.len())?;
        }
        let channel = |c: usize| {
            let inverse = 1.0 / (var[c] + eps).sqrt();
            let scale = weight.map_or(inverse, |w| inverse * w[c]);
            (scale, (-mean[c]).mul_add(scale, bias.map_or(0.0, |b| b[c])))
        };
        let mut scales = memory::reserved("constants of a BatchNorm", mean.len())?;
        let mut biases = memory::reserved("constants of a BatchNorm", mean.len())?;
        for (scale, bias) in (0..mean.len()).map(channel) {
            scales.push(scale);
            biases.push(bias);
        }
        Ok(Elementwise::Affine(scales, biases))
    }

    /// The same function of other channels: `of` makes constants of them from these.
    pub(crate) fn with_channels(&self, of: &impl Fn(&[f32]) -> Result<Vec<f32>>) -> Result<Self> {
        Ok(match self {
            Elementwise::Affine(scale, bias) => Elementwise::Affine(of(scale)?, of(bias)?),
            Elementwise::Scale(scale) => Elementwise::Scale(of(scale)?),
            Elementwise::Bias(bias) => Elementwise::Bias(of(bias)?),
            Elementwise::Scalar(scalar) => Elementwise::Scalar(*scalar),
            Elementwise::Lookup(_) => self.clone(), // small: 256
            Elementwise::Prelu(slopes) if slopes.len() == 1 => self.clone(), // small: one
            Elementwise::Prelu(slopes) => Elementwise::Prelu(of(slopes)?),
        })
    }

    /// The number of channels, or `None` if the function takes any number.
    fn channels(&self) -> Option<usize> {
        match self {
            Elementwise::Affine(v, _) | Elementwise::Scale(v) | Elementwise::Bias(v) => {
                Some(v.len())
            }
            Elementwise::Prelu(v) if v.len() > 1 => Some(v.len()),
            _ => None,
        }
    }
}

/// Checks that the functions are for `channels` channels.
pub(crate) fn check_channels(functions: &[Elementwise], channels: usize) -> Result<()> {
    functions
        .iter()
        .filter_map(Elementwise::channels)
        .try_for_each(|c| check_len("channels of a function", channels, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::apply_all;
    use crate::scalar::Int8Quantizer;

    fn quantizer(step: f32, low: i64, high: i64) -> Int8Quantizer {
        Int8Quantizer::new(step, low, high).unwrap()
    }

    fn lookup(quantizer: Int8Quantizer, codes: i32) -> Elementwise {
        let table: Vec<f32> = (0..codes).map(|i| (i as f32 * 0.31).cos() * 3.0).collect();
        Elementwise::Lookup(Lookup::new(quantizer, &table).unwrap())
    }

    /// Values with NaN, infinities, halves of the steps and zeros of both signs.
    fn values() -> Vec<f32> {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 0.25, -0.25];
        let value = |i: i32| (i - 200) as f32 * 0.045;
        (0..400).map(value).chain(special).collect()
    }

    fn results(functions: &[Elementwise]) -> Vec<u32> {
        let mut x = values();
        apply_all(functions, &mut x, 1).unwrap();
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn merged_functions_have_the_same_results() {
        let (a, b, c) = (quantizer(0.1, -128, 127), quantizer(0.05, 0, 255), quantizer(0.5, -4, 4));
        let rounds = |q| Elementwise::Scalar(Scalar::FakeQuantize(q));
        let (table, wide) = (lookup(a, 256), lookup(b, 256));
        let affine = Elementwise::Affine(vec![1.5], vec![-0.5]);
        let relu = Elementwise::Scalar(Scalar::Relu);
        for (functions, count) in [
            (vec![], 0),
            (vec![relu.clone(), affine.clone()], 2),
            (vec![rounds(a), table.clone()], 1),
            (vec![affine.clone(), rounds(a), table.clone(), rounds(b)], 2),
            (vec![rounds(a), table.clone(), rounds(b), wide.clone(), rounds(c), relu.clone()], 2),
            // Rounded to other codes than the table's, so both roundings stay.
            (vec![rounds(c), table.clone()], 2),
            (vec![table.clone(), relu, rounds(c)], 3),
        ] {
            let merged = Elementwise::merged(functions.clone());
            assert_eq!(merged.len(), count, "{functions:?}");
            assert_eq!(results(&merged), results(&functions), "{functions:?}");
        }
    }

    #[test]
    fn functions_of_rounded_values_are_one_table() {
        let (a, b) = (quantizer(0.1, -128, 127), quantizer(0.05, 0, 255));
        let rounds = |q| Elementwise::Scalar(Scalar::FakeQuantize(q));
        let hardswish = Elementwise::Scalar(Scalar::Hardswish);
        for functions in [
            vec![rounds(a)],
            vec![lookup(b, 256)],
            vec![rounds(a), hardswish.clone()],
            vec![rounds(a), hardswish.clone(), rounds(b), lookup(b, 256)],
        ] {
            let table = Elementwise::as_lookup(&functions).unwrap();
            assert_eq!(results(&[Elementwise::Lookup(table)]), results(&functions));
        }
        for functions in [vec![], vec![hardswish], vec![rounds(a), Elementwise::Bias(vec![1.0])]] {
            assert!(Elementwise::as_lookup(&functions).is_none(), "{functions:?}");
        }
    }
}
