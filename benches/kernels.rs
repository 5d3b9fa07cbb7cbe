//! Kernels and layers in multiply-accumulates per second, against the machine's int8 ceiling.
//!
//! `cargo bench` runs the criterion groups, each of which first compares its answer with the
//! reference. Then it prints a table of medians over [`ROUNDS`] rounds, on one thread. Each round
//! runs a kernel and the ceiling in turn: only such ratios are reliable if the clock frequency
//! varies. `cargo bench -- table` only prints the table. `cargo bench -- operands` compares operand
//! types, for all kernels or for those that are named (`operands x86_64-popcount-avx2`).

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use fatnn::codec::{Act, CodesLayout, WeightKind};
use fatnn::conv::{conv2d_acc, conv2d_codes, conv2d_float};
use fatnn::cpu::Features;
use fatnn::epilogue::{Dequantize, Requantize};
use fatnn::kernels::{self, Operands};
use fatnn::parallel;

#[path = "ceilings.rs"]
mod ceilings;
#[path = "problem.rs"]
mod problem;
use problem::{Problem, TERNARY};

/// Matrix products m·k·n: the 3×3 layers of a ResNet at 224×224, and one large linear layer.
const PRODUCTS: [[usize; 3]; 6] = [
    [48, 4608, 512],
    [784, 1152, 128],
    [196, 2304, 256],
    [3136, 576, 64],
    [49, 4608, 512],
    [1000, 1024, 1024],
];

/// Convolutions: channels in and out, and size of the square image; 3×3, stride 1, padding 1.
const LAYERS: [[usize; 2]; 4] = [[64, 56], [128, 28], [256, 14], [512, 7]];

const ROUNDS: usize = 31;

/// Operand types other than ternary weights with ternary activations.
const OTHERS: [(&str, Operands); 5] = [
    ("both binary", Operands { act: Act::Binary, weights: WeightKind::Binary }),
    ("binary activations", Operands { act: Act::Binary, weights: WeightKind::Ternary }),
    ("two-bit activations", Operands { act: Act::Uint2, weights: WeightKind::Ternary }),
    ("two-bit weights", Operands { act: Act::Half, weights: WeightKind::TwoBit }),
    ("both two-bit", Operands { act: Act::Uint2, weights: WeightKind::TwoBit }),
];

fn criterion_groups(criterion: &mut Criterion) {
    parallel::set_num_threads(1).unwrap();
    for (group_name, problems) in [
        ("product", Vec::from(PRODUCTS.map(Problem::product))),
        ("conv", Vec::from(LAYERS.map(Problem::layer))),
    ] {
        for problem in &problems {
            let mut group = criterion.benchmark_group(format!("{group_name}/{}", problem.name));
            group.throughput(Throughput::Elements(problem.macs() as u64)).sample_size(20);
            let expected = problem.expected();
            for kernel in kernels::detected_for(TERNARY) {
                problem.check(kernel, &expected);
                let weights = problem.weights(kernel);
                let mut out = vec![0; problem.outputs()];
                group.bench_function(kernel.name(), |b| {
                    b.iter(|| {
                        conv2d_acc(black_box(&problem.packed), &weights, &problem.shape, &mut out)
                            .unwrap()
                    });
                });
            }
            group.finish();
        }
    }
}

/// A figure of the table: one call runs it once and returns its multiply-accumulates.
type Run<'a> = Box<dyn FnMut() -> usize + 'a>;

/// For each run, the medians of GMAC/s and of its ratio to run 0 in the same round.
fn interleaved(runs: &mut [Run<'_>]) -> Vec<(f64, f64)> {
    let mut speeds = vec![Vec::with_capacity(ROUNDS); runs.len()];
    for _ in 0..ROUNDS {
        for (run, speeds) in runs.iter_mut().zip(&mut speeds) {
            // Long enough for the clock, short enough that the frequency stays the same in a round.
            let (start, mut macs) = (Instant::now(), 0);
            while start.elapsed().as_micros() < 1500 {
                macs += run();
            }
            speeds.push(macs as f64 / start.elapsed().as_nanos() as f64);
        }
    }
    let base = speeds[0].clone();
    speeds
        .iter()
        .map(|s| (median(s.clone()), median(s.iter().zip(&base).map(|(a, b)| a / b).collect())))
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table() {
    parallel::set_num_threads(1).unwrap();
    println!("\nfeatures: {}", Features::detected().names().join(" "));
    println!(
        "one thread; GMAC/s, and in brackets the multiple of the int8 ceiling; \
         medians of {ROUNDS} interleaved rounds\n"
    );
    let ceiling = ceilings::int8_name();
    println!(
        "| problem | kernel | int8 ceiling ({}) | accumulators | codes | float32 |",
        ceiling.unwrap_or("none known")
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let problems = PRODUCTS.map(Problem::product).into_iter().chain(LAYERS.map(Problem::layer));
    for problem in problems {
        let n = problem.weight.out_channels;
        let layout = CodesLayout::new(n, 1).unwrap();
        let thresholds = [vec![-3; n], vec![5; n]].concat();
        let (scale, bias) = (vec![0.5; n], vec![1.0; n]);
        let residual = vec![1.0; problem.outputs()];
        let expected = problem.expected();
        for kernel in kernels::detected_for(TERNARY) {
            problem.check(kernel, &expected);
            let weights = problem.weights(kernel);
            let mut acc = vec![0; problem.outputs()];
            let mut codes = vec![0; problem.outputs() / n * layout.pixel_bytes()];
            let mut float = vec![0.0; problem.outputs()];
            let (packed, shape, macs) = (&problem.packed, &problem.shape, problem.macs());
            let mut runs: Vec<Run<'_>> = vec![
                Box::new(ceilings::int8),
                Box::new(|| {
                    conv2d_acc(packed, &weights, shape, &mut acc).unwrap();
                    macs
                }),
                Box::new(|| {
                    conv2d_codes(
                        packed,
                        &weights,
                        shape,
                        &Requantize { thresholds: &thresholds, layout },
                        &mut codes,
                    )
                    .unwrap();
                    macs
                }),
                Box::new(|| {
                    let to = Dequantize {
                        scale: Some(&scale),
                        bias: Some(&bias),
                        relu: true,
                        channels: n,
                        codes: None,
                    };
                    conv2d_float(packed, &weights, shape, to, Some(&residual), &mut float).unwrap();
                    macs
                }),
            ];
            let medians = interleaved(&mut runs);
            let cell = |(speed, ratio): &(f64, f64)| match ceiling {
                Some(_) => format!("{speed:.0} ({ratio:.2})"),
                None => format!("{speed:.0}"),
            };
            let cells: Vec<String> = medians[1..].iter().map(cell).collect();
            let int8 = ceiling.map_or("–".to_owned(), |_| format!("{:.0}", medians[0].0));
            println!("| {} | {} | {int8} | {} |", problem.name, kernel.name(), cells.join(" | "));
        }
    }
}

/// Compares other operand types with ternary ones, from codes to accumulators.
fn operands_table() {
    let named: Vec<_> =
        std::env::args().filter_map(|argument| kernels::named(&argument).ok()).collect();
    let kernels = if named.is_empty() { kernels::detected() } else { named };
    parallel::set_num_threads(1).unwrap();
    let names = OTHERS.map(|(name, _)| name).join(" | ");
    println!("\nGMAC/s, and in brackets the multiple of ternary operands on the same kernel\n");
    println!(
        "| problem | kernel | ternary | {names} |\n| --- | --- | --- |{}",
        " --- |".repeat(OTHERS.len())
    );
    for ternary in PRODUCTS.map(Problem::product).into_iter().chain(LAYERS.map(Problem::layer)) {
        let others = OTHERS.map(|(_, operands)| ternary.with(operands));
        let problems: Vec<_> =
            std::iter::once(ternary).chain(others).map(|p| (p.expected(), p)).collect();
        for &kernel in &kernels {
            // Some kernels do not support all operand types.
            let able: Vec<_> = problems
                .iter()
                .filter(|(_, problem)| problem.operands.supported_by(kernel))
                .collect();
            if able.len() == 1 {
                continue;
            }
            let packed: Vec<_> = able.iter().map(|(_, problem)| problem.weights(kernel)).collect();
            let mut runs: Vec<Run<'_>> = Vec::new();
            for ((expected, problem), weights) in able.iter().zip(&packed) {
                problem.check(kernel, expected);
                let mut acc = vec![0; problem.outputs()];
                runs.push(Box::new(move || {
                    conv2d_acc(&problem.packed, weights, &problem.shape, &mut acc).unwrap();
                    problem.macs()
                }));
            }
            let medians = interleaved(&mut runs);
            let cell = |operands: Operands| match able
                .iter()
                .position(|(_, problem)| problem.operands == operands)
            {
                Some(at) => format!("{:.0} ({:.2})", medians[at].0, medians[at].1),
                None => "–".to_owned(),
            };
            let cells = OTHERS.map(|(_, operands)| cell(operands)).join(" | ");
            println!(
                "| {} | {} | {:.0} | {cells} |",
                problems[0].1.name,
                kernel.name(),
                medians[0].0
            );
        }
    }
}

fn main() {
    let table_only = std::env::args().any(|arg| arg == "table");
    if std::env::args().any(|arg| arg == "operands") {
        return operands_table();
    }
    // `cargo test --benches` only checks that everything runs.
    let test = std::env::args().any(|arg| arg == "--test");
    if !table_only {
        let mut criterion = Criterion::default().configure_from_args();
        criterion_groups(&mut criterion);
        criterion.final_summary();
    }
    if !test {
        table();
    }
}
