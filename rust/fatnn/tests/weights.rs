//! Packed weights: what is packed comes back, and whatever is damaged is refused.

mod common;

use common::{Case, codes};
use fatnn::Error;
use fatnn::conv::{ConvShape, conv2d_acc, conv2d_codes, conv2d_float};
use fatnn::epilogue::{ToCodes, ToFloat};
use fatnn::kernels;
use fatnn::weights::{PackedWeights, WeightShape};

fn shape() -> WeightShape {
    WeightShape { out_channels: 18, channels: 70, kernel: [3, 2], groups: 2 }
}

/// Blobs of every kernel that may run under the environment, half range and full.
fn blobs() -> Vec<Vec<u8>> {
    let kernels = kernels::available().unwrap();
    let pack = |&kernel, half_range| {
        PackedWeights::for_kernel(kernel, &codes(shape().len(), 1), shape(), half_range).unwrap().as_bytes().to_vec()
    };
    kernels.iter().flat_map(|kernel| [pack(kernel, false), pack(kernel, true)]).collect()
}

#[test]
fn a_blob_says_what_it_holds() {
    for (i, blob) in blobs().iter().enumerate() {
        let weights = PackedWeights::from_bytes(blob).unwrap();
        assert_eq!((weights.shape(), weights.half_range()), (shape(), i % 2 == 1));
        assert_eq!(weights.as_bytes(), blob);
        // The first that reads this layout.
        let layout = kernels::available().unwrap()[i / 2].layout();
        let first = kernels::available().unwrap().iter().find(|kernel| kernel.layout() == layout).unwrap();
        assert_eq!(weights.kernel().name(), first.name());
    }
}

#[test]
fn every_damage_to_the_header_is_refused() {
    for blob in blobs() {
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
fn every_other_length_is_refused() {
    for blob in blobs() {
        let longer = [&blob[..], &[0; 64]].concat();
        for len in (0..200).chain(blob.len() - 200..blob.len()).chain(blob.len() + 1..longer.len()) {
            let result = PackedWeights::from_bytes(&longer[..len]);
            assert!(matches!(result, Err(Error::Packed { .. })), "{len} bytes: {result:?}");
        }
    }
}

#[test]
fn nonsense_behind_the_header_is_wrong_numbers_but_no_panic() {
    let shape =
        ConvShape { batch: 1, input: [4, 5], kernel: [3, 2], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
    for mut blob in blobs() {
        blob[64..].fill(0xFF);
        let weights = PackedWeights::from_bytes(&blob).unwrap();
        // Planes that say so of zeros, and planes that no code has: 0, but not at least 0.
        for codes in [vec![0xFF; 20 * 32], [[0xFF; 8], [0; 8]].as_flattened().repeat(20 * 2)] {
            conv2d_acc(&codes, &weights, &shape, &mut [0; 4 * 6 * 18]).unwrap();
        }
    }
}

#[test]
fn another_kernels_blob_is_named_as_such() {
    for blob in blobs() {
        let other = codes(shape().len(), 1);
        let layouts: Vec<_> = kernels::detected().iter().map(|k| k.layout()).collect();
        for kernel in kernels::detected() {
            let bytes = PackedWeights::for_kernel(kernel, &other, shape(), false).unwrap().as_bytes().to_vec();
            // Either this process may run it, or it says why not.
            match PackedWeights::from_bytes(&bytes) {
                Ok(weights) => assert_eq!(weights.kernel().layout(), kernel.layout()),
                Err(error) => {
                    assert!(!kernels::available().unwrap().iter().any(|k| k.layout() == kernel.layout()));
                    assert!(error.to_string().contains("another CPU"), "{error}");
                }
            }
            // A layout's number with another layout's size.
            let mut mixed = blob.clone();
            mixed[..64].copy_from_slice(&bytes[..64]);
            if bytes.len() != blob.len() {
                assert!(PackedWeights::from_bytes(&mixed).is_err(), "{layouts:?}");
            }
        }
    }
}

#[test]
fn impossible_shapes_and_codes_are_refused() {
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
        let result = PackedWeights::new(&[], bad, false);
        assert!(matches!(result, Err(Error::Value { .. })), "{bad:?}: {result:?}");
        // Sizes of impossible shapes are numbers too.
        let _ = (bad.reduction(), bad.len(), bad.is_empty());
    }
    assert!(matches!(PackedWeights::new(&[0; 7], good, false), Err(Error::Shape { .. })));
    let mut codes = codes(good.len(), 1);
    codes[33] = 2;
    let error = PackedWeights::new(&codes, good, false).unwrap_err().to_string();
    assert!(error.contains("2 at element 33"), "{error}");
}

#[test]
fn convolutions_refuse_what_does_not_fit() {
    let case = Case { kernel: [3, 3], input: [5, 6], padding: [1, 1], ..Case::product(0, 10, 4, true) };
    let weights = PackedWeights::new(&codes(case.weights().len(), 1), case.weights(), true).unwrap();
    let (input, good) = (vec![0u8; 30 * 16], case.shape());
    let acc = |shape: &ConvShape, codes: &[u8], out: usize| conv2d_acc(codes, &weights, shape, &mut vec![0; out]);
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
        // Few windows on an input that no memory holds.
        ConvShape { padding: [(1 << 30) - 9; 2], stride: [1 << 30; 2], ..good },
    ] {
        let outputs = bad.output().map_or(120, |[h, w]| (h * w * 4).min(1000));
        assert!(matches!(acc(&bad, &input, outputs), Err(Error::Value { .. })), "{bad:?}");
    }

    let layout = fatnn::codec::CodesLayout::new(4, 1).unwrap();
    let codes = |low: &[i32], high: &[i32], layout, out: usize| {
        conv2d_codes(&input, &weights, &good, &ToCodes { low, high, layout }, &mut vec![0; out])
    };
    codes(&[0; 4], &[0; 4], layout, 30 * 16).unwrap();
    assert!(matches!(codes(&[0; 3], &[0; 4], layout, 30 * 16), Err(Error::Shape { .. })));
    assert!(matches!(codes(&[0; 4], &[0; 5], layout, 30 * 16), Err(Error::Shape { .. })));
    assert!(matches!(codes(&[0; 4], &[0; 4], layout, 30 * 16 - 1), Err(Error::Shape { .. })));
    assert!(matches!(codes(&[0; 4], &[0, 0, -1, 0], layout, 30 * 16), Err(Error::Value { .. })));
    let other = fatnn::codec::CodesLayout::new(5, 1).unwrap();
    assert!(matches!(codes(&[0; 4], &[0; 4], other, 30 * 16), Err(Error::Shape { .. })));

    let float = |scale: Option<&[f32]>, bias: Option<&[f32]>, residual: Option<&[f32]>, channels| {
        let to = ToFloat { scale, bias, relu: false, channels, codes: None };
        conv2d_float(&input, &weights, &good, to, residual, &mut [0.0; 120])
    };
    float(Some(&[1.0; 4]), Some(&[1.0; 4]), Some(&[0.0; 120]), 4).unwrap();
    assert!(matches!(float(Some(&[1.0; 3]), None, None, 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, Some(&[1.0; 5]), None, 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, None, Some(&[1.0; 119]), 4), Err(Error::Shape { .. })));
    assert!(matches!(float(None, None, None, 3), Err(Error::Shape { .. })));
}
