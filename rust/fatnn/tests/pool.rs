//! Max pooling of packed codes against the reference, and rejected arguments.

mod common;

use common::{Random, ThreadCount, pack, values};
use fatnn::Error;
use fatnn::codec::{Act, CodesLayout};
use fatnn::conv::ConvShape;
use fatnn::pool::max_pool_codes;
use fatnn::reference;
use proptest::prelude::*;

fn window(
    batch: usize,
    input: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: usize,
) -> ConvShape {
    ConvShape {
        batch,
        input,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [1, 1],
    }
}

fn check(shape: &ConvShape, output: [usize; 2], channels: usize, groups: usize, seed: u64) {
    for act in [Act::Full, Act::Uint2] {
        let layout = CodesLayout::new(channels, groups).unwrap().with(act.coding());
        let x = values(act.codes(), shape.batch * shape.input[0] * shape.input[1] * channels, seed);
        let expected = pack(layout, &reference::max_pool(&x, channels, shape, output));
        let mut out = vec![0xA5; expected.len()];
        max_pool_codes(&pack(layout, &x), layout, shape, output, &mut out).unwrap();
        assert_eq!(
            out, expected,
            "{shape:?} to {output:?}, {channels} channels in {groups} groups, {act:?}"
        );
    }
}

#[test]
fn strided_padded_and_dilated_windows() {
    let count = ThreadCount::lock();
    for (channels, groups) in [(1, 1), (63, 1), (64, 1), (65, 1), (128, 1), (130, 2), (5, 5)] {
        for kernel in 1..=4 {
            for stride in 1..=3 {
                for padding in 0..=kernel / 2 {
                    let shape = window(2, [7, 6], kernel, stride, padding);
                    check(
                        &shape,
                        shape.output().unwrap(),
                        channels,
                        groups,
                        (kernel * 10 + stride) as u64,
                    );
                }
            }
        }
    }
    // Kernel 3, stride 2, padding 1 on 112 × 112, as after the first layer of a ResNet.
    let shape = window(1, [112, 112], 3, 2, 1);
    for threads in [1, 2, 3, 5] {
        count.set(threads);
        check(&shape, [56, 56], 64, 1, 1);
    }
    let dilated = ConvShape { dilation: [2, 3], kernel: [3, 2], ..window(1, [9, 9], 1, 2, 1) };
    check(&dilated, dilated.output().unwrap(), 70, 1, 1);
}

#[test]
fn ceil_mode_sizes_are_accepted() {
    // 6 pixels, kernel 3, stride 2: 2 windows rounded down, 3 rounded up (the last one is partly
    // outside).
    let shape = window(1, [6, 5], 3, 2, 0);
    check(&shape, [2, 2], 8, 1, 1);
    check(&shape, [3, 2], 8, 1, 1);
    check(&shape, [1, 1], 8, 1, 1);
    // A fourth window would see no pixel.
    let layout = CodesLayout::new(8, 1).unwrap();
    let error =
        max_pool_codes(&[0; 30 * 16], layout, &shape, [4, 2], &mut [0; 8 * 16]).unwrap_err();
    assert!(matches!(error, Error::Value { what: "output size", .. }), "{error}");
}

#[test]
fn bad_arguments_are_refused() {
    let layout = CodesLayout::new(8, 1).unwrap();
    let call = |shape: &ConvShape, output: [usize; 2], codes: usize, out: usize| {
        max_pool_codes(&vec![0; codes], layout, shape, output, &mut vec![0; out])
    };
    let good = window(1, [4, 4], 2, 2, 0);
    call(&good, [2, 2], 256, 64).unwrap();
    assert!(matches!(call(&good, [2, 2], 255, 64), Err(Error::Shape { .. })));
    assert!(matches!(call(&good, [2, 2], 256, 63), Err(Error::Shape { .. })));
    for zero in [
        ConvShape { kernel: [0, 2], ..good },
        ConvShape { stride: [2, 0], ..good },
        ConvShape { dilation: [0, 1], ..good },
        // Only padding in the first window; in all windows; taps that skip all pixels.
        ConvShape { padding: [2, 0], ..good },
        ConvShape { padding: [0, usize::MAX / 2], ..good },
        ConvShape { stride: [usize::MAX, 1], ..good },
        ConvShape { kernel: [usize::MAX, 1], dilation: [usize::MAX, 1], padding: [1, 0], ..good },
    ] {
        assert!(matches!(call(&zero, [2, 2], 256, 64), Err(Error::Value { .. })), "{zero:?}");
    }
    let dilated = ConvShape { input: [1, 16], padding: [1, 0], dilation: [2, 1], ..good };
    assert!(matches!(call(&dilated, [1, 4], 256, 64), Err(Error::Value { .. })));
    let huge = ConvShape { batch: usize::MAX, ..good };
    assert!(matches!(call(&huge, [2, 2], 256, 64), Err(Error::Value { .. })));
}

proptest! {
    #![proptest_config(common::proptest_config(96))]

    #[test]
    fn any_window(seed in any::<u64>()) {
        let mut random = Random(seed);
        random.next();
        let mut upto = |n| 1 + random.below(n);
        let kernel = [upto(4), upto(4)];
        let shape = ConvShape {
            batch: upto(2),
            input: [kernel[0] + upto(6), kernel[1] + upto(6)],
            kernel,
            stride: [upto(3), upto(3)],
            padding: kernel.map(|k| upto(k / 2 + 1) - 1),
            dilation: [1, 1],
        };
        check(&shape, shape.output().unwrap(), upto(70) * 2, 1 + upto(2) % 2, seed);
    }
}
