//! Int8 layers with random operands, compared with the reference on all kernels.

use fatnn::codec::Act;
use fatnn::conv::{ConvShape, Int8Epilogue, conv2d_int8};
use fatnn::kernels::{self, Kernel, OperandTypes};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;
use fatnn::reference;

use super::Random;

pub fn int8(len: usize, seed: u64) -> Vec<i8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(255) as i8).map(|w| if w == i8::MIN { 127 } else { w }).collect()
}

pub fn floats(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.float()).collect()
}

pub fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// A layer to test. Channels are per group.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub batch: usize,
    pub input: [usize; 2],
    pub channels: usize,
    pub out_channels: usize,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

impl Layer {
    pub fn new(
        input: [usize; 2],
        channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Self {
        Layer {
            batch: 1,
            input,
            channels,
            out_channels,
            groups: 1,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1; 2],
        }
    }

    pub fn shape(&self) -> ConvShape {
        let Layer { batch, input, kernel, stride, padding, dilation, .. } = *self;
        ConvShape { batch, input, kernel, stride, padding, dilation }
    }

    pub fn weights(&self) -> WeightShape {
        WeightShape {
            out_channels: self.out_channels * self.groups,
            channels: self.channels * self.groups,
            kernel: self.kernel,
            groups: self.groups,
        }
    }

    pub fn inputs(&self) -> usize {
        self.batch * self.input[0] * self.input[1] * self.weights().channels
    }

    pub fn expected(&self, x: &[f32], w: &[i8], epilogue: &Int8Epilogue<'_>) -> Vec<f32> {
        let codes = reference::quantize_int8(x, epilogue.inv_step);
        let acc = reference::conv2d_acc(&codes, w, self.weights(), Act::Full, &self.shape());
        let n = self.weights().out_channels;
        let y = |(i, &acc): (usize, &i32)| {
            let y = acc as f32 * epilogue.scale[i % n];
            epilogue.bias.map_or(y, |bias| y + bias[i % n])
        };
        acc.iter().enumerate().map(y).collect()
    }

    pub fn found(
        &self,
        kernel: &'static dyn Kernel,
        x: &[f32],
        order: PixelOrder,
        w: &[i8],
        epilogue: &Int8Epilogue<'_>,
    ) -> Vec<f32> {
        let [h, width] = self.shape().output().unwrap();
        let operands = if Layer::is_depthwise(kernel) {
            OperandTypes::Int8Depthwise
        } else {
            OperandTypes::Int8
        };
        let weights = PackedWeights::for_kernel(kernel, w, self.weights(), operands).unwrap();
        let mut out = vec![f32::NAN; self.batch * h * width * self.weights().out_channels];
        conv2d_int8(x, order, &weights, &self.shape(), epilogue, &mut out).unwrap();
        out
    }

    pub fn is_depthwise(kernel: &'static dyn Kernel) -> bool {
        OperandTypes::Int8Depthwise.supported_by(kernel)
    }

    /// The kernels that can run it.
    pub fn kernels(&self) -> Vec<&'static dyn Kernel> {
        let mut kernels = kernels::detected_for(OperandTypes::Int8);
        if self.weights().is_depthwise() {
            kernels.extend(kernels::detected_for(OperandTypes::Int8Depthwise));
        }
        kernels
    }

    /// Compares all kernels with the reference.
    pub fn check(&self, seed: u64) {
        let n = self.weights().out_channels;
        let x: Vec<f32> = floats(self.inputs(), seed).iter().map(|x| x * 150.0).collect();
        let w = int8(self.weights().len(), seed ^ 0x55);
        let (scale, bias) = (floats(n, seed ^ 1), floats(n, seed ^ 2));
        let (channels, pixels) = (self.weights().channels, self.input[0] * self.input[1]);
        let first: Vec<f32> = (0..x.len())
            .map(|i| {
                x[i / (channels * pixels) * channels * pixels
                    + i % pixels * channels
                    + i / pixels % channels]
            })
            .collect();
        for bias in [None, Some(&bias[..])] {
            let epilogue = Int8Epilogue { inv_step: 0.9, scale: &scale, bias };
            let expected = bits(&self.expected(&x, &w, &epilogue));
            for kernel in self.kernels() {
                let found = self.found(kernel, &x, PixelOrder::ChannelsLast, &w, &epilogue);
                assert_eq!(bits(&found), expected, "{} on {self:?}", kernel.name());
                let found = self.found(kernel, &first, PixelOrder::ChannelsFirst, &w, &epilogue);
                assert_eq!(bits(&found), expected, "{} on {self:?}, channels first", kernel.name());
            }
        }
    }
}
