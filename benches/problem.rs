//! A convolution with random operands, shared by the benches.
#![allow(dead_code, reason = "each bench uses a different part")]

use fatnn::codec::{Act, CodesLayout, WeightKind};
use fatnn::conv::{ConvShape, conv2d_acc};
use fatnn::kernels::{Kernel, Operands};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::reference;

/// The most common operands: activations after a ReLU.
pub const TERNARY: Operands = Operands { act: Act::Half, weights: WeightKind::Ternary };

/// A convolution with its operands.
pub struct Problem {
    pub operands: Operands,
    pub name: String,
    pub shape: ConvShape,
    pub weight: WeightShape,
    pub weight_codes: Vec<i8>,
    pub codes: Vec<i8>,
    pub packed: Vec<u8>,
}

impl Problem {
    pub fn new(
        name: String,
        input: [usize; 2],
        channels: usize,
        out_channels: usize,
        kernel: usize,
    ) -> Self {
        Problem::of(TERNARY, name, input, [channels, out_channels], kernel)
    }

    pub fn of(
        operands: Operands,
        name: String,
        input: [usize; 2],
        [channels, out_channels]: [usize; 2],
        kernel: usize,
    ) -> Self {
        let shape = ConvShape {
            batch: 1,
            input,
            kernel: [kernel, kernel],
            stride: [1, 1],
            padding: [kernel / 2, kernel / 2],
            dilation: [1, 1],
        };
        let weight = WeightShape { out_channels, channels, kernel: shape.kernel, groups: 1 };
        let levels = operands.act.codes();
        let weights = operands.weights.codes();
        let codes = random_codes(levels, input[0] * input[1] * channels, 1);
        let layout = CodesLayout::new(channels, 1).unwrap().with(operands.act.coding());
        let mut packed = vec![0; input[0] * input[1] * layout.pixel_bytes()];
        layout.pack(&codes, &mut packed).unwrap();
        Problem {
            operands,
            name,
            shape,
            weight,
            weight_codes: random_codes(weights, weight.len(), 2),
            codes,
            packed,
        }
    }

    /// The same convolution with other operand types.
    pub fn with(&self, operands: Operands) -> Self {
        let channels = [self.weight.channels, self.weight.out_channels];
        Problem::of(operands, self.name.clone(), self.shape.input, channels, self.shape.kernel[0])
    }

    pub fn product([m, k, n]: [usize; 3]) -> Self {
        Problem::new(format!("{m}x{k}x{n}"), [1, m], k, n, 1)
    }

    pub fn layer([channels, size]: [usize; 2]) -> Self {
        Problem::new(format!("3x3 {channels}ch {size}x{size}"), [size, size], channels, channels, 3)
    }

    pub fn outputs(&self) -> usize {
        let [h, w] = self.shape.output().unwrap();
        h * w * self.weight.out_channels
    }

    pub fn macs(&self) -> usize {
        self.outputs() * self.weight.reduction()
    }

    pub fn weights(&self, kernel: &'static dyn Kernel) -> PackedWeights<'static> {
        PackedWeights::for_kernel(kernel, &self.weight_codes, self.weight, self.operands).unwrap()
    }

    /// The accumulators by the reference.
    pub fn expected(&self) -> Vec<i32> {
        reference::conv2d_acc(
            &self.codes,
            &self.weight_codes,
            self.weight,
            self.operands.act,
            &self.shape,
        )
    }

    /// Asserts that the kernel's accumulators equal the reference's.
    pub fn check(&self, kernel: &'static dyn Kernel, expected: &[i32]) {
        let mut found = vec![0; self.outputs()];
        conv2d_acc(&self.packed, &self.weights(kernel), &self.shape, &mut found).unwrap();
        assert!(found == expected, "{} {}", kernel.name(), self.name);
    }
}

/// Uniform random codes from a linear congruential generator.
pub fn random_codes(of: &[i8], len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        of[(state >> 33) as usize % of.len()]
    };
    (0..len).map(|_| next()).collect()
}
