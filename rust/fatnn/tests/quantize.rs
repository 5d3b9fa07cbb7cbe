//! Quantization in both memory orders against the reference, and rejected arguments.

mod common;

use common::{Random, ThreadCount, pack};
use fatnn::Error;
use fatnn::codec::{CodesLayout, Coding};
use fatnn::quantize::{PixelOrder, quantize};
use fatnn::reference;
use proptest::prelude::*;

const ORDERS: [PixelOrder; 2] = [PixelOrder::ChannelsFirst, PixelOrder::ChannelsLast];

/// Floats that are often a threshold, its neighbour, a zero or an infinity.
fn floats(n: usize, thresholds: &[f32], seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let (low, high) = (thresholds[0], thresholds[thresholds.len() - 1]);
    let special = [
        low,
        low.next_up(),
        low.next_down(),
        high,
        high.next_up(),
        high.next_down(),
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
        -1e-45,
    ];
    (0..n)
        .map(|_| match random.below(3) {
            0 => special[random.below(special.len())],
            _ => random.float() * 2.0,
        })
        .collect()
}

fn check(
    batch: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    thresholds: &[f32],
    seed: u64,
) {
    let coding = if thresholds.len() == 2 { Coding::Ternary } else { Coding::Uint2 };
    let layout = CodesLayout::new(channels, groups).unwrap().with(coding);
    let x = floats(batch * pixels * channels, thresholds, seed);
    for order in ORDERS {
        let expected =
            pack(layout, &reference::quantize(&x, [batch, pixels, channels], order, thresholds));
        let mut out = vec![0xA5; expected.len()];
        quantize(&x, batch, pixels, order, thresholds, layout, &mut out).unwrap();
        assert_eq!(
            out, expected,
            "{batch} × {pixels} × {channels} in {groups} groups, {order:?}, {thresholds:?}"
        );
    }
}

#[test]
fn channels_and_pixels_around_word_edges() {
    for pixels in [1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100] {
        for channels in [1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 97, 128, 129, 200] {
            check(2, pixels, channels, 1, &[-0.5, 0.25], (pixels * channels) as u64);
            check(2, pixels, channels, 1, &[0.25, 0.5, 0.8], (pixels * channels) as u64);
        }
    }
    for (channels, groups) in [(6, 6), (66, 33), (130, 2), (256, 2), (300, 3), (64, 64)] {
        check(3, 19, channels, groups, &[-0.5, 0.25], channels as u64);
        check(3, 19, channels, groups, &[0.25, 0.5, 0.8], channels as u64);
    }
    check(0, 5, 7, 1, &[0.0, 1.0], 1);
    check(4, 0, 7, 1, &[0.0, 1.0], 1);
}

#[test]
fn equal_zero_and_infinite_thresholds() {
    let inf = f32::INFINITY;
    for thresholds in [
        [0.0, 0.0],
        [-0.0, 0.0],
        [0.0, -0.0],
        [1.0, 1.0],
        [-inf, inf],
        [inf, inf],
        [-inf, -inf],
        [1e-45, f32::MAX],
    ] {
        check(1, 40, 70, 1, &thresholds, 5);
    }
    for thresholds in
        [[0.5, 0.5, 0.5], [0.1, 0.5, inf], [0.1, inf, inf], [-inf, 0.0, 0.0], [0.0, 1e-45, 1.0]]
    {
        check(1, 40, 70, 1, &thresholds, 5);
    }
}

/// Binary activations {0, 1} are ternary codes whose second threshold no input reaches.
#[test]
fn no_input_reaches_a_threshold_of_infinity() {
    let layout = CodesLayout::new(2, 1).unwrap();
    let (x, inf) = ([f32::INFINITY, 0.4], f32::INFINITY);
    for order in ORDERS {
        for (coding, thresholds, expected) in [
            (Coding::Ternary, &[0.5, inf][..], [0, -1]),
            (Coding::Ternary, &[inf, inf], [-1, -1]),
            (Coding::Uint2, &[0.5, f32::MAX, inf], [2, 0]),
        ] {
            let (mut packed, mut codes, layout) = ([0; 16], [9; 2], layout.with(coding));
            quantize(&x, 1, 1, order, thresholds, layout, &mut packed).unwrap();
            layout.unpack(&packed, &mut codes).unwrap();
            assert_eq!(codes, expected, "{thresholds:?}");
        }
    }
}

#[test]
fn all_numbers_of_threads_give_equal_results() {
    let count = ThreadCount::lock();
    for threads in [1, 2, 3, 5] {
        count.set(threads);
        // Enough elements for several threads; images end inside a thread's chunk.
        check(7, 31 * 37, 70, 2, &[-0.5, 0.5], 11);
        check(7, 31 * 37, 70, 2, &[-0.5, 0.5, 0.6], 11);
    }
}

#[test]
fn the_first_nan_is_named() {
    let layout = CodesLayout::new(70, 1).unwrap();
    for pixels in [1, 5, 16, 40, 3000] {
        let n = 2 * pixels * 70;
        for at in [0, 1, 63, 64, 69, 70, n / 2 - 1, n / 2, n - 1] {
            for nan in
                [f32::NAN, -f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0xFFFF_FFFF)]
            {
                let mut x = vec![0.5; n];
                x[at] = nan;
                x[n - 1] = nan;
                for order in ORDERS {
                    let mut out = vec![0; 2 * pixels * layout.pixel_bytes()];
                    let error =
                        quantize(&x, 2, pixels, order, &[0.0, 1.0], layout, &mut out).unwrap_err();
                    assert!(
                        matches!(error, Error::NotANumber { index, .. } if index == at),
                        "{error} {order:?} {at}"
                    );
                }
            }
        }
    }
}

#[test]
fn bad_arguments_are_refused() {
    let layout = CodesLayout::new(4, 1).unwrap();
    let call = |x: &[f32], batch, pixels, thresholds: &[f32], out: &mut [u8]| {
        quantize(x, batch, pixels, PixelOrder::ChannelsLast, thresholds, layout, out)
    };
    for thresholds in [[1.0, 0.0], [f32::NAN, 0.0], [0.0, f32::NAN], [f32::NAN, f32::NAN]] {
        let error = call(&[0.0; 4], 1, 1, &thresholds, &mut [0; 16]).unwrap_err();
        assert!(matches!(error, Error::Value { what: "thresholds", .. }), "{error}");
    }
    for thresholds in [&[0.0][..], &[], &[0.0, 1.0, 2.0]] {
        assert!(matches!(
            call(&[0.0; 4], 1, 1, thresholds, &mut [0; 16]),
            Err(Error::Shape { what: "thresholds", .. })
        ));
    }
    let uint2 = layout.with(Coding::Uint2);
    for thresholds in [[1.0, 0.0, 2.0], [0.0, 2.0, 1.0], [0.0, 1.0, f32::NAN], [f32::NAN, 0.0, 1.0]]
    {
        let error =
            quantize(&[0.0; 4], 1, 1, PixelOrder::ChannelsLast, &thresholds, uint2, &mut [0; 16])
                .unwrap_err();
        assert!(matches!(error, Error::Value { what: "thresholds", .. }), "{error}");
    }
    assert!(matches!(call(&[0.0; 5], 1, 1, &[0.0, 1.0], &mut [0; 16]), Err(Error::Shape { .. })));
    assert!(matches!(call(&[0.0; 4], 1, 1, &[0.0, 1.0], &mut [0; 15]), Err(Error::Shape { .. })));
    assert!(matches!(call(&[], usize::MAX, 2, &[0.0, 1.0], &mut []), Err(Error::Value { .. })));
    assert!(matches!(call(&[], usize::MAX / 8, 2, &[0.0, 1.0], &mut []), Err(Error::Value { .. })));
}

proptest! {
    #![proptest_config(common::proptest_config(128))]

    #[test]
    fn random_inputs_equal_the_reference(seed in any::<u64>(), batch in 1usize..4,
        pixels in 1usize..90, per_group in 1usize..150, groups in 1usize..4) {
        let mut random = Random(seed);
        let low = random.float();
        let middle = low + random.float().abs();
        let thresholds = [low, middle, middle + random.float().abs()];
        check(batch, pixels, per_group * groups, groups, &thresholds[..2 + random.below(2)], seed);
    }
}
