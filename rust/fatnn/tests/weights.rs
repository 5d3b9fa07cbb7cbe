//! Packed weights: round trips, and rejected shapes, values and damaged blobs.

mod common;

use common::{Case, all_operands, codes, pack, ternary, values};
use fatnn::Error;
use fatnn::codec::{Act, CodesLayout, Coding, WeightKind};
use fatnn::conv::{ConvShape, Int8Epilogue, conv2d_acc, conv2d_codes, conv2d_float, conv2d_int8};
use fatnn::epilogue::{Dequantize, Requantize};
use fatnn::kernels::{self, Kernel, OperandTypes, Operands};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;

fn shape() -> WeightShape {
    WeightShape { out_channels: 18, channels: 70, kernel: [3, 2], groups: 2 }
}

/// Blobs for all available kernels and all operand types that each supports.
fn blobs() -> Vec<(Operands, &'static dyn Kernel, Vec<u8>)> {
    let mut blobs = Vec::new();
    for &kernel in kernels::available().unwrap() {
        for operands in all_operands().filter(|operands| operands.supported_by(kernel)) {
            let weights = values(operands.weights.codes(), shape().len(), 1);
            let packed = PackedWeights::for_kernel(kernel, &weights, shape(), operands).unwrap();
            blobs.push((operands, kernel, packed.as_bytes().to_vec()));
        }
    }
    blobs
}

#[test]
fn a_blob_holds_its_shape_and_operands() {
    for (operands, kernel, blob) in blobs() {
        let weights = PackedWeights::from_bytes(&blob).unwrap();
        assert_eq!((weights.shape(), weights.code_operands().unwrap()), (shape(), operands));
        assert_eq!(weights.as_bytes(), blob);
        // Reading selects the first kernel with this layout.
        let reads = |other: &&&'static dyn Kernel| {
            other.layout() == kernel.layout() && operands.supported_by(**other)
        };
        let first = kernels::available().unwrap().iter().find(reads).unwrap();
        assert_eq!(weights.kernel().name(), first.name());
    }
}

#[test]
fn a_kernel_that_cannot_run_the_operands_is_refused() {
    for kernel in kernels::detected() {
        for operands in all_operands() {
            let weights = values(operands.weights.codes(), shape().len(), 1);
            let packed = PackedWeights::for_kernel(kernel, &weights, shape(), operands);
            if operands.supported_by(kernel) {
                packed.unwrap();
            } else {
                assert!(matches!(packed, Err(Error::Value { what: "kernel", .. })), "{packed:?}");
            }
            let packed = PackedWeights::new(&weights, shape(), operands).unwrap();
            assert_eq!(packed.operands(), operands.into());
            PackedWeights::for_linear(&weights, shape(), operands).unwrap();
        }
    }
}

#[test]
fn sums_beyond_float32_are_refused() {
    // A product is at most 3 · 3, so 2²⁴ / 9 products are exact.
    let of = |channels| WeightShape { out_channels: 1, channels, kernel: [1, 1], groups: 1 };
    let most = (1 << 24) / 9;
    let two_bit = Operands { act: Act::Uint2, weights: WeightKind::TwoBit };
    for (channels, fits) in [(most, true), (most + 1, false)] {
        let packed = PackedWeights::new(&vec![3; channels], of(channels), two_bit);
        assert_eq!(packed.is_ok(), fits);
        assert!(PackedWeights::new(&vec![1; channels], of(channels), ternary(Act::Uint2)).is_ok());
    }
}

#[test]
fn every_damage_to_the_header_is_refused() {
    for (_, _, blob) in blobs() {
        for bit in 0..64 * 8 {
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let result = PackedWeights::from_bytes(&damaged);
            assert!(matches!(result, Err(Error::Packed { .. })), "bit {bit}: {result:?}");
        }
        for byte in 0..64 {
            for value in [0, 0xFF, 0x7F] {
                let mut damaged = blob.clone();
                if std::mem::replace(&mut damaged[byte], value) != value {
                    assert!(PackedWeights::from_bytes(&damaged).is_err(), "byte {byte} = {value}");
                }
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused() {
    for (_, _, blob) in blobs() {
        let longer = [&blob[..], &[0; 64]].concat();
        for len in (0..200).chain(blob.len() - 200..blob.len()).chain(blob.len() + 1..longer.len())
        {
            let result = PackedWeights::from_bytes(&longer[..len]);
            assert!(matches!(result, Err(Error::Packed { .. })), "{len} bytes: {result:?}");
        }
    }
}

#[test]
fn damaged_panels_never_panic() {
    let shape = ConvShape {
        batch: 1,
        input: [4, 5],
        kernel: [3, 2],
        stride: [1, 1],
        padding: [1, 1],
        dilation: [1, 1],
    };
    for (_, _, mut blob) in blobs() {
        blob[64..].fill(0xFF);
        let weights = PackedWeights::from_bytes(&blob).unwrap();
        let layout =
            CodesLayout::new(70, 2).unwrap().with(weights.code_operands().unwrap().act.coding());
        let zeros = pack(layout, &[0; 20 * 70]);
        conv2d_acc(&zeros, &weights, &shape, &mut [0; 4 * 6 * 18]).unwrap();
        // Bits of channels beyond the last, and invalid pairs of bits, are rejected.
        for codes in [vec![0xFF; 20 * 32], [[0xFF; 8], [0; 8]].as_flattened().repeat(20 * 2)] {
            let refused = conv2d_acc(&codes, &weights, &shape, &mut [0; 4 * 6 * 18]);
            assert!(
                matches!(refused, Err(Error::Value { what: "packed codes", .. })),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_blob_of_another_kernel_is_named() {
    for (_, _, blob) in blobs() {
        let other = codes(shape().len(), 1);
        let layouts: Vec<_> =
            kernels::detected_for(ternary(Act::Full)).iter().map(|k| k.layout()).collect();
        for kernel in kernels::detected_for(ternary(Act::Full)) {
            let bytes = PackedWeights::for_kernel(kernel, &other, shape(), ternary(Act::Full))
                .unwrap()
                .as_bytes()
                .to_vec();
            // Either this process can run it, or the error says why not.
            match PackedWeights::from_bytes(&bytes) {
                Ok(weights) => assert_eq!(weights.kernel().layout(), kernel.layout()),
                Err(error) => {
                    assert!(
                        !kernels::available()
                            .unwrap()
                            .iter()
                            .any(|k| k.layout() == kernel.layout())
                    );
                    assert!(error.to_string().contains("another CPU"), "{error}");
                }
            }
            // The id of one layout with the size of another.
            let mut mixed = blob.clone();
            mixed[..64].copy_from_slice(&bytes[..64]);
            if bytes.len() != blob.len() {
                assert!(PackedWeights::from_bytes(&mixed).is_err(), "{layouts:?}");
            }
        }
    }
}

#[test]
fn invalid_shapes_and_codes_are_refused() {
    let good = shape();
    let huge = usize::MAX / 2;
    for bad in [
        WeightShape { out_channels: 0, ..good },
        WeightShape { channels: 0, ..good },
        WeightShape { groups: 0, ..good },
        WeightShape { groups: 4, ..good },
        WeightShape { groups: 7, ..good },
        WeightShape { kernel: [0, 1], ..good },
        WeightShape { kernel: [1, 1 << 16], ..good },
        WeightShape { kernel: [60_000, 60_000], ..good },
        WeightShape { channels: huge, groups: 1, ..good },
        WeightShape { out_channels: huge, groups: 1, ..good },
        WeightShape { out_channels: huge / 4 * 2, channels: 1 << 31, groups: 2, ..good },
    ] {
        let result = PackedWeights::new(&[], bad, ternary(Act::Full));
        assert!(matches!(result, Err(Error::Value { .. })), "{bad:?}: {result:?}");
        // Sizes of invalid shapes do not overflow.
        let _ = (bad.reduction(), bad.len(), bad.is_empty());
    }
    assert!(matches!(
        PackedWeights::new(&[0; 7], good, ternary(Act::Full)),
        Err(Error::Shape { .. })
    ));
    let mut codes = codes(good.len(), 1);
    codes[33] = 2;
    let error = PackedWeights::new(&codes, good, ternary(Act::Full)).unwrap_err().to_string();
    assert!(error.contains("2 at element 33"), "{error}");
}

#[test]
fn weights_outside_their_type_are_refused() {
    let shape = shape();
    for (weights, bad, expected) in [
        (WeightKind::Binary, 0, "binary weights, each one of [-1, 1]"),
        (WeightKind::Binary, 3, "binary weights, each one of [-1, 1]"),
        (WeightKind::Ternary, 3, "ternary weights, each one of [-1, 0, 1]"),
        (WeightKind::Ternary, i8::MIN, "ternary weights, each one of [-1, 0, 1]"),
        (WeightKind::TwoBit, 0, "two-bit weights, each one of [-3, -1, 1, 3]"),
        (WeightKind::TwoBit, 2, "two-bit weights, each one of [-3, -1, 1, 3]"),
        (WeightKind::TwoBit, i8::MAX, "two-bit weights, each one of [-3, -1, 1, 3]"),
    ] {
        let operands = Operands { act: Act::Full, weights };
        let mut codes = vec![1; shape.len()];
        PackedWeights::new(&codes, shape, operands).unwrap();
        // The error names the first one.
        (codes[40], codes[41]) = (bad, 100);
        let error = PackedWeights::new(&codes, shape, operands).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{bad} at element 40")) && error.contains(expected),
            "{error}"
        );
    }
    let mut values = vec![-127; shape.len()];
    PackedWeights::new(&values, shape, OperandTypes::Int8).unwrap();
    values[7] = i8::MIN;
    let error = PackedWeights::new(&values, shape, OperandTypes::Int8).unwrap_err().to_string();
    assert!(
        error.contains("-128 at element 7") && error.contains("int8 weights, from -127"),
        "{error}"
    );
}

#[test]
fn weights_for_other_activations_are_refused() {
    let shape = WeightShape { out_channels: 2, channels: 3, kernel: [1, 1], groups: 1 };
    let conv = ConvShape {
        batch: 1,
        input: [1, 1],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        dilation: [1, 1],
    };
    let int8 = PackedWeights::new(&[1; 6], shape, OperandTypes::Int8).unwrap();
    let error = conv2d_acc(&[0; 16], &int8, &conv, &mut [0; 2]).unwrap_err();
    let Error::Packed { why } = &error else { panic!("{error}") };
    assert!(why.contains("packed codes") && why.contains("int8"), "{error}");
    let codes = PackedWeights::new(&[1; 6], shape, ternary(Act::Half)).unwrap();
    let epilogue = Int8Epilogue { inv_step: 1.0, scale: &[1.0; 2], bias: None };
    let order = PixelOrder::ChannelsLast;
    let error = conv2d_int8(&[0.0; 3], order, &codes, &conv, &epilogue, &mut [0.0; 2]).unwrap_err();
    let expected =
        "expected weights for int8 activations, got ones for half activations and ternary weights";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn convolutions_reject_mismatched_arguments() {
    let case = Case {
        kernel: [3, 3],
        input: [5, 6],
        padding: [1, 1],
        ..Case::product(0, 10, 4, Operands { act: Act::Half, weights: WeightKind::Ternary })
    };
    let weights =
        PackedWeights::new(&codes(case.weights().len(), 1), case.weights(), ternary(Act::Half))
            .unwrap();
    let (input, good) = (vec![0u8; 30 * 16], case.shape());
    let acc = |shape: &ConvShape, codes: &[u8], out: usize| {
        conv2d_acc(codes, &weights, shape, &mut vec![0; out])
    };
    acc(&good, &input, 120).unwrap();
    assert!(matches!(acc(&good, &input, 119), Err(Error::Shape { .. })));
    assert!(matches!(acc(&good, &input[1..], 120), Err(Error::Shape { .. })));
    let huge = 1 << 40;
    for bad in [
        ConvShape { kernel: [3, 1], ..good },
        ConvShape { stride: [0, 1], ..good },
        ConvShape { dilation: [1, 0], ..good },
        ConvShape { dilation: [4, 1], ..good },
        ConvShape { padding: [1, huge], ..good },
        ConvShape { padding: [usize::MAX, 1], ..good },
        ConvShape { dilation: [usize::MAX, 1], ..good },
        ConvShape { batch: usize::MAX, ..good },
        // Few windows, but an input larger than memory.
        ConvShape { padding: [(1 << 30) - 9; 2], stride: [1 << 30; 2], ..good },
    ] {
        let outputs = bad.output().map_or(120, |[h, w]| (h * w * 4).min(1000));
        assert!(matches!(acc(&bad, &input, outputs), Err(Error::Value { .. })), "{bad:?}");
    }

    let layout = fatnn::codec::CodesLayout::new(4, 1).unwrap();
    let codes = |thresholds: &[i32], layout, out: usize| {
        conv2d_codes(&input, &weights, &good, &Requantize { thresholds, layout }, &mut vec![0; out])
    };
    codes(&[0; 8], layout, 30 * 16).unwrap();
    codes(&[0; 12], layout.with(Coding::Uint2), 30 * 16).unwrap();
    assert!(matches!(codes(&[0; 7], layout, 30 * 16), Err(Error::Shape { .. })));
    assert!(matches!(codes(&[0; 12], layout, 30 * 16), Err(Error::Shape { .. })));
    assert!(matches!(
        codes(&[0; 8], layout.with(Coding::Uint2), 30 * 16),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(codes(&[0; 8], layout, 30 * 16 - 1), Err(Error::Shape { .. })));
    let error = codes(&[0, 0, 5, 0, 0, 0, 4, 0], layout, 30 * 16).unwrap_err();
    assert!(
        matches!(error, Error::Value { .. })
            && error.to_string().contains("5 and then 4 for channel 2"),
        "{error}"
    );
    let falls = codes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0], layout.with(Coding::Uint2), 30 * 16);
    assert!(matches!(falls, Err(Error::Value { .. })));
    let other = fatnn::codec::CodesLayout::new(5, 1).unwrap();
    assert!(matches!(codes(&[0; 8], other, 30 * 16), Err(Error::Shape { .. })));

    let float =
        |scale: Option<&[f32]>, bias: Option<&[f32]>, residual: Option<&[f32]>, channels| {
            let to = Dequantize { scale, bias, relu: false, channels, codes: None };
            conv2d_float(&input, &weights, &good, to, residual, &mut [0.0; 120])
        };
    float(Some(&[1.0; 4]), Some(&[1.0; 4]), Some(&[0.0; 120]), 4).unwrap();
    assert!(matches!(float(Some(&[1.0; 3]), None, None, 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, Some(&[1.0; 5]), None, 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, None, Some(&[1.0; 119]), 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, None, None, 3), Err(Error::Shape { .. })));
}
