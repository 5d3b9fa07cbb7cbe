//! Depthwise int8 layers on all kernels, against the reference, bit for bit.

mod common;

use common::ThreadCount;
use common::int8::{Layer, bits, floats, int8};
use fatnn::Error;
use fatnn::conv::{Int8Epilogue, conv2d_int8};
use fatnn::kernels::{self, OperandTypes};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;
use proptest::prelude::*;

#[test]
fn depthwise_layers_equal_the_reference() {
    let depthwise =
        |input, groups, kernel, stride| Layer { groups, ..Layer::new(input, 1, 1, kernel, stride) };
    let layers = [
        depthwise([56, 56], 96, 3, 1),
        depthwise([15, 14], 144, 3, 2),
        depthwise([7, 7], 130, 3, 1),
        depthwise([14, 13], 70, 5, 1),
        depthwise([9, 15], 17, 5, 2),
        depthwise([11, 9], 96, 7, 1),
        depthwise([8, 8], 2, 4, 3),
        depthwise([6, 5], 33, 2, 1),
        depthwise([6, 5], 65, 1, 1),
        depthwise([6, 5], 3, 1, 4),
        depthwise([1, 1], 64, 3, 1),
        depthwise([12, 3], 20, 9, 1),
        Layer { batch: 3, out_channels: 2, ..depthwise([7, 9], 37, 3, 1) },
        Layer { batch: 2, out_channels: 5, ..depthwise([5, 4], 3, 3, 2) },
        Layer { batch: 2, padding: [0, 0], ..depthwise([9, 8], 16, 3, 4) },
        Layer { padding: [5, 4], ..depthwise([3, 2], 24, 3, 1) },
        Layer { padding: [2, 2], stride: [4, 1], ..depthwise([3, 0], 24, 3, 1) },
        Layer { padding: [2, 2], ..depthwise([0, 3], 24, 3, 1) },
        Layer { padding: [5, 7], dilation: [3, 2], ..depthwise([9, 8], 24, 3, 1) },
        Layer { dilation: [1, 3], padding: [1, 3], ..depthwise([6, 9], 24, 3, 1) },
        Layer { dilation: [2, 1], stride: [2, 1], ..depthwise([12, 9], 24, 3, 1) },
        Layer { kernel: [1, 9], padding: [0, 4], ..depthwise([1, 70], 12, 1, 1) },
        Layer { kernel: [9, 1], padding: [4, 0], ..depthwise([30, 1], 12, 1, 1) },
        Layer { stride: [9, 9], padding: [0, 0], ..depthwise([4, 4], 12, 3, 1) },
    ];
    for (seed, layer) in layers.iter().enumerate() {
        assert!(layer.weights().is_depthwise());
        assert_eq!(layer.weights().int8_operands(), OperandTypes::Int8Depthwise);
        layer.check(seed as u64 + 1);
    }
}

#[test]
fn depthwise_layers_are_equal_on_all_numbers_of_threads() {
    let count = ThreadCount::lock();
    let layer = Layer { batch: 2, groups: 96, ..Layer::new([57, 56], 1, 1, 3, 1) };
    let x: Vec<f32> = floats(layer.inputs(), 5).iter().map(|x| x * 90.0).collect();
    let (w, scale) = (int8(layer.weights().len(), 6), floats(96, 7));
    let epilogue = Int8Epilogue { inv_step: 1.0, scale: &scale, bias: None };
    for kernel in kernels::detected_for(OperandTypes::Int8Depthwise) {
        let mut all = [1, 2, 3].map(|threads| {
            count.set(threads);
            bits(&layer.found(kernel, &x, PixelOrder::ChannelsLast, &w, &epilogue))
        });
        all.sort();
        assert!(all[0] == all[2], "{}", kernel.name());
    }
}

#[test]
fn depthwise_layers_reject_nan_that_no_window_reads() {
    // Windows only read rows 0, 1, 4 and 5 of 8.
    let layer = Layer {
        batch: 2,
        kernel: [2, 2],
        padding: [0, 0],
        groups: 20,
        ..Layer::new([8, 5], 1, 1, 2, 4)
    };
    let w = int8(layer.weights().len(), 6);
    for kernel in kernels::detected_for(OperandTypes::Int8Depthwise) {
        let weights =
            PackedWeights::for_kernel(kernel, &w, layer.weights(), OperandTypes::Int8Depthwise)
                .unwrap();
        let epilogue = Int8Epilogue { inv_step: 1.0, scale: &[1.0; 20], bias: None };
        let mut out = vec![0.0; 2 * 2 * 20];
        for order in [PixelOrder::ChannelsLast, PixelOrder::ChannelsFirst] {
            for at in (0..layer.inputs()).step_by(7) {
                let mut x = vec![f32::NEG_INFINITY; layer.inputs()];
                conv2d_int8(&x, order, &weights, &layer.shape(), &epilogue, &mut out).unwrap();
                x[at] = f32::NAN;
                let error = conv2d_int8(&x, order, &weights, &layer.shape(), &epilogue, &mut out)
                    .unwrap_err();
                assert!(matches!(error, Error::NotANumber { index, .. } if index == at), "{error}");
            }
        }
    }
    // These kernels refuse groups of two channels.
    let shape = WeightShape { out_channels: 4, channels: 4, kernel: [1, 1], groups: 2 };
    let error =
        PackedWeights::new(&[1; 8], shape, OperandTypes::Int8Depthwise).unwrap_err().to_string();
    assert!(error.contains("one channel per group"), "{error}");
}

proptest! {
    #![proptest_config(common::proptest_config(200))]
    #[test]
    fn random_depthwise_layers_equal_the_reference(
        batch in 1usize..3, input in prop::array::uniform2(1usize..20), out_channels in 1usize..4,
        groups in 2usize..140, kernel in prop::array::uniform2(1usize..8),
        stride in prop::array::uniform2(1usize..4),
        padding in prop::array::uniform2(0usize..4), dilation in prop::array::uniform2(1usize..3),
        seed in 0u64..1 << 40,
    ) {
        let layer = Layer { batch, input, channels: 1, out_channels, groups, kernel, stride,
            padding, dilation };
        prop_assume!(layer.shape().output().is_ok());
        layer.check(seed);
    }
}
