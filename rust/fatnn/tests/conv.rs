//! All kernels against the reference, bit for bit, with sizes around the edges of tiles, words and
//! windows.

mod common;

use common::{
    Case, Random, accumulators, all_operands, check, check_with_threads, long, operands, ternary,
    values,
};
use fatnn::codec::{Act, WeightKind};
use fatnn::conv::{ConvShape, conv2d_acc};
use fatnn::kernels::{self, Operands};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::{Error, reference};
use proptest::prelude::*;

const HALF: Operands = Operands { act: Act::Half, weights: WeightKind::Ternary };
const FULL: Operands = Operands { act: Act::Full, weights: WeightKind::Ternary };

/// Numbers of channels around multiples of a word.
const CHANNELS: [usize; 14] = [1, 2, 7, 31, 33, 63, 64, 65, 100, 127, 128, 129, 192, 257];

#[test]
fn output_channels_and_rows_around_tile_edges() {
    let kernels = kernels::detected_for(HALF);
    for n in 1..=41 {
        for m in [1, 2, 3, 4, 5, 7, 8, 9, 17] {
            check(&kernels, &Case::product(m, 70, n, operands(n + m)), (n * 100 + m) as u64);
        }
    }
    for n in [63, 64, 65, 80, 127, 130] {
        check(&kernels, &Case::product(6, 40, n, operands(n)), n as u64);
    }
}

#[test]
fn rows_around_block_edges() {
    let kernels = kernels::detected_for(HALF);
    for m in (58..=72).chain(125..=133) {
        check(&kernels, &Case::product(m, 64, 9, operands(m)), m as u64);
    }
}

#[test]
fn channels_around_word_edges() {
    let kernels = kernels::detected_for(HALF);
    for channels in CHANNELS {
        for operands in all_operands() {
            check(&kernels, &Case::product(5, channels, 19, operands), channels as u64);
        }
    }
}

#[test]
fn reductions_around_the_counters_limits() {
    // Equal codes give the largest counts. 8-bit counters are widened after 31 additions (248 or 80
    // where they count single bits), 16-bit counters after 8191.
    let kernels = kernels::detected_for(HALF);
    // Reductions around each counter's limit, for all numbers of accumulators that kernels use.
    let short = [1, 4, 8, 16, 30, 31, 32, 33, 62, 64, 124, 128, 129, 257];
    let all = [
        1, 2, 3, 4, 7, 8, 15, 16, 17, 30, 31, 32, 33, 61, 62, 63, 64, 65, 124, 128, 129, 255, 256,
        257, 520,
    ];
    for &words in if long() { &all[..] } else { &short } {
        for operands in all_operands() {
            let case = Case::product(5, words * 64, 17, operands);
            let (codes, weights) = (operands.act.codes(), operands.weights.codes());
            for (&x, &w) in codes
                .iter()
                .flat_map(|x| [weights.first().unwrap(), weights.last().unwrap()].map(|w| (x, w)))
            {
                let expected = operands.act.level(x) * i32::from(w) * (words * 64) as i32;
                let (x, w) = (vec![x; case.pixels() * words * 64], vec![w; case.weights().len()]);
                for &kernel in kernels.iter().filter(|kernel| operands.supported_by(**kernel)) {
                    let acc = accumulators(kernel, &case, &x, &w);
                    assert!(
                        acc.iter().all(|&a| a == expected),
                        "{} {words} words {expected}",
                        kernel.name()
                    );
                }
            }
        }
        check(&kernels, &Case::product(5, words * 64, 17, operands(words)), words as u64);
    }
}

#[test]
fn all_pairs_of_codes_at_all_positions() {
    const CHANNELS: usize = 130;
    for operands in all_operands() {
        // One pixel and one output channel per code; all other codes are zero, or mixed.
        let (codes, weights) = (operands.act.codes(), operands.weights.codes());
        let case = Case::product(codes.len(), CHANNELS, weights.len(), operands);
        let plain = (vec![codes[1]; CHANNELS], vec![weights[1]; CHANNELS]);
        for (x, w) in [plain, (values(codes, CHANNELS, 3), values(weights, CHANNELS, 3))] {
            for at in 0..CHANNELS {
                let (mut x, mut w) = (x.repeat(codes.len()), w.repeat(weights.len()));
                for (i, &code) in codes.iter().enumerate() {
                    x[i * CHANNELS + at] = code;
                }
                for (i, &weight) in weights.iter().enumerate() {
                    w[i * CHANNELS + at] = weight;
                }
                let expected =
                    reference::conv2d_acc(&x, &w, case.weights(), operands.act, &case.shape());
                for &kernel in
                    kernels::detected().iter().filter(|kernel| operands.supported_by(**kernel))
                {
                    let acc = accumulators(kernel, &case, &x, &w);
                    assert_eq!(acc, expected, "{} place {at}, {operands:?}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn taps_of_few_channels() {
    let kernels = kernels::detected_for(HALF);
    let mut cases = Vec::new();
    for channels in [1, 9, 21, 22, 32, 33, 64, 85] {
        for kernel in [[3, 3], [2, 4], [1, 5], [4, 1]] {
            for stride in [[1, 1], [2, 1], [3, 2], [1, 3]] {
                // Slabs of a few positions, and of more than a block.
                for input in [kernel.map(|size| size + 1), [4, 40]] {
                    cases.push(Case {
                        kernel,
                        stride,
                        input,
                        padding: [cases.len() % 2; 2],
                        dilation: [1, 1 + cases.len() % 5 / 4],
                        operands: operands(cases.len()),
                        ..Case::product(0, channels, 31, HALF)
                    });
                }
            }
        }
    }
    cases.retain(|case| {
        let reach = (case.kernel[1] - 1) * case.dilation[1] + 1;
        case.input[1] + 2 * case.padding[1] >= reach && case.input[0] >= case.kernel[0]
    });
    // In this one, a tap in the next slab is at the address after a slab's last position.
    let last =
        Case { kernel: [2, 4], stride: [3, 2], input: [2, 5], ..Case::product(0, 9, 31, FULL) };
    cases.push(last);
    for (i, case) in cases.iter().enumerate() {
        check(&kernels, case, i as u64 + 1);
    }
}

#[test]
fn strided_padded_and_dilated_windows() {
    let kernels = kernels::detected_for(HALF);
    let plain =
        Case { kernel: [3, 3], padding: [1, 1], input: [7, 9], ..Case::product(0, 66, 18, HALF) };
    let mut cases = Vec::new();
    for kernel in 1..=5 {
        for stride in 1..=3 {
            for dilation in 1..=2 {
                for padding in 0..=2 {
                    let input = [((kernel - 1) * dilation + 1).max(5), 10];
                    cases.push(Case {
                        kernel: [kernel, kernel],
                        stride: [stride; 2],
                        dilation: [dilation; 2],
                        padding: [padding; 2],
                        input,
                        operands: operands(cases.len()),
                        ..plain
                    });
                }
            }
        }
    }
    cases.extend([
        Case { kernel: [1, 5], stride: [2, 1], padding: [0, 3], dilation: [1, 2], ..plain },
        Case {
            kernel: [4, 1],
            stride: [1, 3],
            padding: [2, 0],
            dilation: [2, 1],
            operands: FULL,
            ..plain
        },
        Case {
            kernel: [2, 3],
            padding: [1, 2],
            operands: Operands { act: Act::Uint2, weights: WeightKind::TwoBit },
            ..plain
        },
        Case {
            kernel: [2, 3],
            padding: [1, 2],
            operands: Operands { act: Act::Full, weights: WeightKind::TwoBit },
            ..plain
        },
        // One-dimensional.
        Case { input: [1, 50], kernel: [1, 7], padding: [0, 3], dilation: [1, 1], ..plain },
        // Windows that only see padding.
        Case { input: [1, 1], kernel: [1, 1], padding: [2, 2], ..plain },
        Case { input: [2, 1], kernel: [3, 3], padding: [4, 4], operands: FULL, ..plain },
        Case { batch: 3, ..plain },
        Case { batch: 0, ..plain },
        Case { batch: 2, input: [1, 1], padding: [1, 1], ..plain },
    ]);
    for (i, case) in cases.iter().enumerate() {
        check(&kernels, case, i as u64 + 1);
    }
}

#[test]
fn batches_of_one_by_one_convolutions() {
    let kernels = kernels::detected_for(HALF);
    for operands in all_operands() {
        let pixel = Case { input: [1, 1], kernel: [1, 1], ..Case::product(0, 130, 21, operands) };
        for batch in [1, 2, 3, 7, 16, 33, 65, 130] {
            check(&kernels, &Case { batch, ..pixel }, batch as u64);
        }
        for (i, input) in [[1, 5], [5, 1], [3, 4], [7, 7]].into_iter().enumerate() {
            check(&kernels, &Case { batch: 3, input, ..pixel }, i as u64);
            check(&kernels, &Case { batch: 3, input, stride: [2, 1], ..pixel }, i as u64);
            check(&kernels, &Case { batch: 3, input, padding: [0, 1], ..pixel }, i as u64);
        }
    }
}

#[test]
fn group_sizes_around_word_edges() {
    let kernels = kernels::detected_for(HALF);
    let plain =
        Case { kernel: [3, 3], padding: [1, 1], input: [4, 5], ..Case::product(0, 1, 1, HALF) };
    for (groups, channels, out_channels) in [
        (2, 64, 16),
        (2, 65, 17),
        (3, 33, 5),
        (4, 10, 1),
        (5, 1, 3),
        (7, 130, 20),
        (32, 1, 1),
        (70, 1, 1),
        (9, 1, 2),
    ] {
        for operands in all_operands() {
            check(
                &kernels,
                &Case { groups, channels, out_channels, operands, ..plain },
                groups as u64,
            );
        }
    }
}

#[test]
fn an_oversized_window_is_an_error() {
    let shape = WeightShape { out_channels: 64, channels: 64, kernel: [3, 3], groups: 1 };
    for far in [1 << 20, 1 << 29, usize::MAX / 4] {
        let conv = ConvShape {
            batch: 1,
            input: [1, 1],
            kernel: [3, 3],
            stride: [1, 1],
            padding: [far, far],
            dilation: [far, far],
        };
        for kernel in kernels::detected_for(HALF) {
            let weights =
                PackedWeights::for_kernel(kernel, &vec![1; shape.len()], shape, ternary(Act::Half))
                    .unwrap();
            let error = conv2d_acc(&[0; 16], &weights, &conv, &mut [0; 64]).unwrap_err();
            let refused = matches!(error, Error::Value { .. } | Error::Memory { .. });
            assert!(refused, "{}: {error}", kernel.name());
        }
    }
}

#[test]
fn all_numbers_of_threads_give_equal_results() {
    let case =
        Case { input: [19, 21], kernel: [3, 3], padding: [1, 1], ..Case::product(0, 96, 70, HALF) };
    // Threads share the channels if there are few rows and many weights.
    let few = [
        Case::product(1, 4096, 1030, HALF),
        Case::product(33, 512, 260, Operands { act: Act::Uint2, weights: WeightKind::TwoBit }),
        Case {
            groups: 3,
            input: [7, 9],
            kernel: [3, 3],
            padding: [1, 1],
            ..Case::product(0, 65, 41, FULL)
        },
    ];
    let kernels = kernels::detected_for(HALF);
    let threads = [1, 2, 3, 5];
    for operands in all_operands() {
        check_with_threads(&kernels, &Case { operands, ..case }, 1, &threads);
    }
    for case in few {
        check_with_threads(&kernels, &case, 1, &threads);
    }
}

#[test]
fn signed_zeros_nan_and_infinity_in_the_epilogue() {
    // Accumulator 0 with negative scales, and NaN and infinity in scale, bias and residual.
    let case = Case::product(2, 3, 6, FULL);
    let special = [-1.0, -0.0, 0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE];
    let (x, w) = (vec![0i8, 0, 0, 1, 0, -1], common::codes(18, 9));
    let acc = reference::conv2d_acc(&x, &w, case.weights(), Act::Full, &case.shape());
    let packed = common::pack(case.layout(), &x);
    for &kernel in &kernels::detected_for(HALF) {
        let weights =
            PackedWeights::for_kernel(kernel, &w, case.weights(), ternary(Act::Full)).unwrap();
        for form in 0..16 {
            let on = |bit: usize| form >> bit & 1 == 1;
            let (scale, bias) = (on(0).then_some(&special[..]), on(1).then_some(&special[..]));
            let residual = on(2).then(|| special.repeat(2));
            let (residual, relu) = (residual.as_deref(), on(3));
            let expected = reference::to_float(&acc, 6, scale, bias, residual, relu);
            let mut y = vec![9.0; 12];
            let to = fatnn::epilogue::Dequantize { scale, bias, relu, channels: 6, codes: None };
            fatnn::conv::conv2d_float(&packed, &weights, &case.shape(), to, residual, &mut y)
                .unwrap();
            // IEEE 754 leaves a NaN's sign and payload open.
            let bits = |y: &f32| if y.is_nan() { None } else { Some(y.to_bits()) };
            let (y, expected): (Vec<_>, Vec<_>) =
                (y.iter().map(bits).collect(), expected.iter().map(bits).collect());
            assert_eq!(y, expected, "{} form {form:04b}", kernel.name());
        }
    }
}

proptest! {
    #![proptest_config(common::proptest_config(96))]

    #[test]
    fn any_convolution(seed in any::<u64>()) {
        let mut random = Random(seed);
        random.next();
        let mut upto = |n| 1 + random.below(n);
        let (kernel, dilation) = ([upto(4), upto(4)], [upto(2), upto(3)]);
        let window = [0, 1].map(|i| (kernel[i] - 1) * dilation[i] + 1);
        let padding = [upto(3) - 1, upto(3) - 1];
        let input = [0, 1].map(|i| (window[i] + upto(6)).saturating_sub(2 * padding[i] + 1).max(1));
        let input = [0, 1].map(|i| input[i].max(window[i].saturating_sub(2 * padding[i])));
        let case = Case {
            batch: upto(2),
            input,
            channels: upto(140),
            out_channels: upto(36),
            groups: [1, 1, 2, 3][upto(4) - 1],
            kernel,
            stride: [upto(3), upto(3)],
            padding,
            dilation,
            operands: operands(upto(21)),
        };
        check(&kernels::detected_for(HALF), &case, seed);
    }
}
