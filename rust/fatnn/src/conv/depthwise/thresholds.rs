//! Codes straight from sums: integer thresholds that take the place of floats and a quantizer.
//!
//! A channel's float never falls when its sum rises, or never rises: every step from one to the
//! other keeps the order (a conversion, products and sums with constants, each rounded; a clamp).
//! So the sums that reach a level of the quantizer are those from a threshold on. For a channel
//! whose floats fall, they are those up to a threshold; inverting the bits of its sums reverses
//! their order.

use super::Layer;
use crate::codec::Coding;
use crate::conv::int8::Padded;
use crate::epilogue::Quantizer;
use crate::error::Result;
use crate::kernels::depthwise::SumLevels;
use crate::pack::Panel;

/// Thresholds of a layer's sums, for a quantizer that reads its floats.
#[derive(Debug)]
pub(crate) struct SumThresholds {
    /// -1 for channels whose sums are inverted, otherwise 0.
    flip: Padded<i32>,
    /// For each level from 1 on, the smallest sum that reaches it, inverted if `flip` says so.
    levels: Vec<Padded<i32>>,
    coding: Coding,
}

impl SumThresholds {
    /// `None` if a float may be NaN or infinite, if functions follow the clamp, if the quantizer
    /// has groups of channels, or if sums may not fit.
    pub fn new(layer: &Layer<'_>, to: &Quantizer) -> Result<Option<Self>> {
        let (weights, layout) = (layer.weights, to.layout);
        let taps: usize = weights.shape().kernel.iter().product();
        // Codes and weights are at most 128 in magnitude.
        let Some(limit) = i32::try_from(taps)
            .ok()
            .and_then(|taps| taps.checked_mul(128 * 128))
            .filter(|limit| *limit < 1 << 30)
        else {
            return Ok(None);
        };
        if layout.groups() != 1 || !layer.post.is_empty() {
            return Ok(None);
        }
        let mut flip = Padded::filled(weights, 0)?;
        let mut levels = Vec::with_capacity(layout.coding().thresholds()); // small: 2 or 3
        for _ in 0..layout.coding().thresholds() {
            levels.push(Padded::filled(weights, i32::MAX)?);
        }
        for panel in weights.all_panels() {
            for j in 0..panel.channels {
                let float = |sum: i32| layer.float(&panel, j, sum);
                let [low, high] = [float(-limit), float(limit)];
                if !(low.is_finite() && high.is_finite()) {
                    return Ok(None);
                }
                let flipped = if high < low { -1 } else { 0 };
                flip.of_mut(&panel)[j] = flipped;
                for (level, &threshold) in levels.iter_mut().zip(&to.thresholds) {
                    let reaches = |sum: i32| layer.clamped(float(sum ^ flipped)) >= threshold;
                    level.of_mut(&panel)[j] = first(flipped - limit, flipped + limit, reaches);
                }
            }
        }
        Ok(Some(SumThresholds { flip, levels, coding: layout.coding() }))
    }

    pub fn of(&self, panel: &Panel) -> SumLevels<'_> {
        let level = |i: usize| self.levels.get(i).map_or(&[][..], |level| level.of(panel));
        SumLevels {
            flip: self.flip.of(panel),
            coding: self.coding,
            levels: std::array::from_fn(level),
        }
    }
}

impl Layer<'_> {
    /// The float of channel `j` of a panel before the clamp, computed as kernels do.
    fn float(&self, panel: &Panel, j: usize, sum: i32) -> f32 {
        let constants = self.constants;
        let y = sum as f32 * constants.scale.of(panel)[j] + constants.bias.of(panel)[j];
        match &constants.affine {
            Some((scale, bias)) => y.mul_add(scale.of(panel)[j], bias.of(panel)[j]),
            None => y,
        }
    }

    fn clamped(&self, y: f32) -> f32 {
        let [min, max] = self.clamp;
        let y = if y < min { min } else { y };
        if y > max { max } else { y }
    }
}

/// The smallest number from `low` to `high` for which `reaches` is true, if it is true for all
/// larger ones, too; `i32::MAX` if there is none.
fn first(mut low: i32, high: i32, reaches: impl Fn(i32) -> bool) -> i32 {
    if !reaches(high) {
        return i32::MAX;
    }
    let mut found = high;
    while low < found {
        let middle = low + (found - low) / 2;
        match reaches(middle) {
            true => found = middle,
            false => low = middle + 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Geometry, Input, LineQuantizer, Output, UNBOUNDED};
    use super::*;
    use crate::codec::CodesLayout;
    use crate::conv::int8::{Constants, Int8Epilogue};
    use crate::conv::{ConvShape, Padded};
    use crate::kernels::{OperandTypes, detected_for};
    use crate::pack::{PackedWeights, WeightShape};

    /// Numbers from -1 to 1 that look random.
    fn floats(count: usize, seed: usize) -> Vec<f32> {
        let of = |i: usize| ((i * 2_654_435_761 + seed * 97) % 2_001) as f32 / 1_000.0 - 1.0;
        (0..count).map(of).collect()
    }

    fn layouts(channels: usize) -> [(CodesLayout, &'static [f32]); 2] {
        let layout = CodesLayout::new(channels, 1).unwrap();
        [(layout, &[-0.4, 0.7]), (layout.with(Coding::Uint2), &[0.0, 0.5, f32::INFINITY])]
    }

    #[test]
    fn codes_of_sums_equal_those_of_floats() {
        let sizes =
            [([9, 8], 24, 3, 1), ([8, 11], 96, 3, 2), ([7, 7], 144, 5, 1), ([5, 6], 70, 2, 1)];
        for (input, channels, kernel, stride) in sizes {
            let shape = ConvShape {
                batch: 2,
                input,
                kernel: [kernel; 2],
                stride: [stride; 2],
                padding: [kernel / 2; 2],
                dilation: [1; 2],
            };
            let of = |count, seed| floats(count, seed + channels);
            let w: Vec<i8> =
                of(channels * kernel * kernel, 1).iter().map(|w| (w * 127.0) as i8).collect();
            let x: Vec<f32> =
                of(2 * input[0] * input[1] * channels, 2).iter().map(|x| x * 99.0).collect();
            // Falling, rising and constant functions of the sums.
            let mut scale: Vec<f32> = of(channels, 3).iter().map(|x| x * 1e-3).collect();
            scale[1] = 0.0;
            let (bias, affine) = (of(channels, 4), [of(channels, 5), of(channels, 6)]);
            for kernel in detected_for(OperandTypes::Int8Depthwise) {
                let weights = WeightShape {
                    out_channels: channels,
                    channels,
                    kernel: shape.kernel,
                    groups: channels,
                };
                let weights =
                    PackedWeights::for_kernel(kernel, &w, weights, OperandTypes::Int8Depthwise)
                        .unwrap();
                let epilogue = Int8Epilogue { inv_step: 1.0, scale: &scale, bias: Some(&bias) };
                let mut constants = Constants::new(&weights, &epilogue).unwrap();
                for clamp in [UNBOUNDED, [-0.5, 0.6]] {
                    let layer = Layer {
                        weights: &weights,
                        constants: &constants,
                        bounds: UNBOUNDED,
                        clamp,
                        post: &[],
                    };
                    check(&shape, &layer, &x);
                }
                let of = |values| Padded::new(&weights, values).unwrap();
                constants.affine = Some((of(&affine[0]), of(&affine[1])));
                let layer = Layer {
                    weights: &weights,
                    constants: &constants,
                    bounds: UNBOUNDED,
                    clamp: [0.0, 6.0],
                    post: &[],
                };
                check(&shape, &layer, &x);
            }
        }
    }

    /// Compares codes that are made from sums with codes that are made from floats.
    fn check(shape: &ConvShape, layer: &Layer<'_>, x: &[f32]) {
        let (geometry, channels) =
            (Geometry::new(layer.weights, shape).unwrap(), layer.weights.shape().channels);
        let pixels = shape.batch * geometry.output[0] * geometry.output[1];
        for (layout, thresholds) in layouts(channels) {
            let quantizer = Quantizer::new(thresholds, layout).unwrap();
            let made = SumThresholds::new(layer, &quantizer).unwrap().expect("finite floats");
            let [from_floats, from_sums] = [None, Some(&made)].map(|sums| {
                let mut codes = vec![0xAA; pixels * layout.pixel_bytes()];
                let to = LineQuantizer { label: "", thresholds, layout, sums };
                geometry.run(Input::in_memory(x), layer, Output::Codes(&mut codes, to)).unwrap();
                codes
            });
            assert!(from_floats == from_sums, "{}, {shape:?}", layer.weights.kernel().name());
        }
    }

    #[test]
    fn floats_that_may_not_be_numbers_have_no_thresholds() {
        let weights = WeightShape { out_channels: 2, channels: 2, kernel: [3, 3], groups: 2 };
        let kernel = detected_for(OperandTypes::Int8Depthwise)[0];
        let weights =
            PackedWeights::for_kernel(kernel, &[1; 18], weights, OperandTypes::Int8Depthwise)
                .unwrap();
        let (layout, thresholds) = layouts(2)[0];
        let quantizer = Quantizer::new(thresholds, layout).unwrap();
        for (scale, bias) in [(f32::NAN, 0.0), (f32::MAX, 0.0), (1.0, f32::INFINITY)] {
            let epilogue =
                Int8Epilogue { inv_step: 1.0, scale: &[1.0, scale], bias: Some(&[0.0, bias]) };
            let constants = Constants::new(&weights, &epilogue).unwrap();
            let layer = Layer {
                weights: &weights,
                constants: &constants,
                bounds: UNBOUNDED,
                clamp: UNBOUNDED,
                post: &[],
            };
            assert!(SumThresholds::new(&layer, &quantizer).unwrap().is_none());
        }
    }

    #[test]
    fn the_first_number_is_found_by_bisection() {
        for wanted in -5..=5 {
            assert_eq!(first(-5, 5, |x| x >= wanted), wanted);
        }
        assert_eq!(first(-5, 5, |_| false), i32::MAX);
    }
}
