//! Int8 layers on all kernels, including quantization of the input, against the machine's int8
//! ceiling.
//!
//! `cargo bench --bench int8` prints a table of medians over [`ROUNDS`] rounds, on one thread. Each
//! round runs all kernels and the ceiling in turn.

use std::time::Instant;

use fatnn::codec::Act;
use fatnn::conv::{ConvShape, Int8Epilogue, conv2d_int8};
use fatnn::cpu::Features;
use fatnn::kernels::detected_for;
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::quantize::PixelOrder;
use fatnn::{parallel, reference};

#[path = "ceilings.rs"]
mod ceilings;

const ROUNDS: usize = 31;

/// A layer: square input, kernel and stride; the padding is half the kernel.
struct Layer {
    name: &'static str,
    batch: usize,
    size: usize,
    channels: usize,
    out_channels: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn layer(
    name: &'static str,
    [batch, size]: [usize; 2],
    [channels, out_channels]: [usize; 2],
    [kernel, stride]: [usize; 2],
) -> Layer {
    Layer { name, batch, size, channels, out_channels, kernel, stride, groups: 1 }
}

const fn depthwise(
    name: &'static str,
    size: usize,
    channels: usize,
    [kernel, stride]: [usize; 2],
) -> Layer {
    Layer { groups: channels, ..layer(name, [1, size], [channels, channels], [kernel, stride]) }
}

const LAYERS: [Layer; 12] = [
    layer("stem 7x7/2, 3 to 64, 224x224", [1, 224], [3, 64], [7, 2]),
    layer("stem 3x3, 3 to 64, 32x32", [1, 32], [3, 64], [3, 1]),
    layer("conv 3x3, 64 to 64, 56x56", [1, 56], [64, 64], [3, 1]),
    layer("conv 1x1, 256 to 64, 56x56", [1, 56], [256, 64], [1, 1]),
    layer("linear 512 to 1000", [1, 1], [512, 1000], [1, 1]),
    layer("linear 512 to 1000, 64 rows", [64, 1], [512, 1000], [1, 1]),
    depthwise("depthwise 3x3, 96, 56x56", 56, 96, [3, 1]),
    depthwise("depthwise 3x3/2, 144, 56x56", 56, 144, [3, 2]),
    depthwise("depthwise 3x3, 192, 28x28", 28, 192, [3, 1]),
    depthwise("depthwise 3x3, 576, 14x14", 14, 576, [3, 1]),
    depthwise("depthwise 5x5, 240, 28x28", 28, 240, [5, 1]),
    depthwise("depthwise 7x7, 96, 28x28", 28, 96, [7, 1]),
];

/// Equal random numbers in every run, from a linear congruential generator.
fn random(len: usize) -> impl Iterator<Item = u32> {
    let mut state = 1u64;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    parallel::set_num_threads(1).unwrap();
    println!("features: {}", Features::detected().names().join(" "));
    println!(
        "one thread; medians of {ROUNDS} interleaved rounds; \
         in brackets the multiple of the int8 ceiling ({})\n",
        ceilings::int8_name().unwrap_or("none known")
    );
    println!("| layer | kernel | ms | GMAC/s |");
    println!("| --- | --- | --- | --- |");
    for Layer { name, batch, size, channels, out_channels: n, kernel, stride, groups } in LAYERS {
        let (kernel, pad) = ([kernel; 2], [kernel / 2; 2]);
        let shape = ConvShape {
            batch,
            input: [size; 2],
            kernel,
            stride: [stride; 2],
            padding: pad,
            dilation: [1; 2],
        };
        let weight = WeightShape { out_channels: n, channels, kernel, groups };
        let w: Vec<i8> =
            random(weight.len()).map(|r| (r % 255) as i8).map(|w| w.max(-127)).collect();
        let x: Vec<f32> = random(batch * size * size * channels)
            .map(|r| (r % 4001) as f32 / 1000.0 - 2.0)
            .collect();
        let scale = vec![1e-4; n];
        let epilogue = Int8Epilogue { inv_step: 63.5, scale: &scale, bias: None };
        let pixels = batch * shape.output().unwrap().iter().product::<usize>();
        let acc = reference::conv2d_acc(
            &reference::quantize_int8(&x, 63.5),
            &w,
            weight,
            Act::Full,
            &shape,
        );
        let operands = weight.int8_operands();
        let kernels = detected_for(operands);
        // The output starts at a cache line, as in networks.
        let mut buffer = vec![0.0f32; pixels * n + 15];
        let start = buffer.as_ptr().align_offset(64).min(15);
        let out = &mut buffer[start..][..pixels * n];
        let packed: Vec<_> = kernels
            .iter()
            .map(|k| PackedWeights::for_kernel(*k, &w, weight, operands).unwrap())
            .collect();
        for (weights, kernel) in packed.iter().zip(&kernels) {
            conv2d_int8(&x, PixelOrder::ChannelsLast, weights, &shape, &epilogue, out).unwrap();
            assert!(
                out.iter().zip(&acc).all(|(y, acc)| *y == *acc as f32 * 1e-4),
                "{} {name}",
                kernel.name()
            );
        }
        if test {
            continue;
        }
        let macs = pixels * weight.len();
        let mut times = vec![Vec::new(); kernels.len()];
        let mut ratios = times.clone();
        for _ in 0..ROUNDS {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed().as_micros() < 1000 {
                done += ceilings::int8();
            }
            let ceiling = done as f64 / start.elapsed().as_nanos() as f64;
            for (i, weights) in packed.iter().enumerate() {
                let (start, mut runs) = (Instant::now(), 0);
                while runs == 0 || start.elapsed().as_micros() < 1000 {
                    conv2d_int8(&x, PixelOrder::ChannelsLast, weights, &shape, &epilogue, out)
                        .unwrap();
                    runs += 1;
                }
                let time = start.elapsed().as_nanos() as f64 / f64::from(runs);
                times[i].push(time);
                ratios[i].push(macs as f64 / time / ceiling);
            }
        }
        for ((kernel, times), ratios) in kernels.iter().zip(times).zip(ratios) {
            let time = median(times);
            let ratio = ceilings::int8_name()
                .map_or(String::new(), |_| format!(" ({:.2})", median(ratios)));
            println!(
                "| {name} | {} | {:.4} | {:.1}{ratio} |",
                kernel.name(),
                time / 1e6,
                macs as f64 / time
            );
        }
    }
}
