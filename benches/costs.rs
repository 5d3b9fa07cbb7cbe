//! Fits the cost model of kernels: measures all kernels on a grid of layers, and reports the
//! regret.
//!
//! `cargo bench --bench costs -- measure FILE` writes the measurements as JSON. `-- fit FILE` reads
//! them and prints the rows of `kernels/costs.rs`, with the regret of the model and of the rules in
//! `kernels/choose.rs`. A measurement is the minimum of [`ROUNDS`] interleaved rounds, from codes
//! to codes, on one thread. `FATNN_ISA` is ignored: all kernels that the CPU supports are measured.

use std::hint::black_box;
use std::time::Instant;

use fatnn::codec::{Act, CodesLayout, WeightKind};
use fatnn::conv::conv2d_codes;
use fatnn::cpu::Isa;
use fatnn::epilogue::Requantize;
use fatnn::kernels::{self, LayerShape, Operands, cost};
use fatnn::pack::PackedWeights;
use fatnn::parallel;
use serde_json::{Map, Value, json};

#[path = "problem.rs"]
mod problem;
use problem::Problem;

const ROUNDS: usize = 9;

/// `[input channels, output channels, height and width, kernel size]`.
const GRID: [[usize; 4]; 36] = [
    [8, 8, 56, 3],
    [16, 16, 32, 3],
    [16, 16, 56, 3],
    [16, 32, 32, 3],
    [24, 24, 56, 3],
    [32, 32, 16, 3],
    [32, 32, 56, 3],
    [32, 64, 28, 3],
    [40, 40, 28, 3],
    [48, 48, 28, 3],
    [64, 16, 28, 3],
    [64, 32, 28, 3],
    [64, 64, 8, 3],
    [64, 64, 56, 3],
    [64, 128, 28, 3],
    [96, 96, 28, 3],
    [128, 128, 28, 3],
    [256, 256, 14, 3],
    [512, 512, 7, 3],
    [8, 64, 56, 1],
    [16, 16, 56, 1],
    [16, 96, 56, 1],
    [24, 144, 28, 1],
    [32, 192, 28, 1],
    [64, 64, 56, 1],
    [64, 256, 56, 1],
    [96, 24, 56, 1],
    [128, 32, 28, 1],
    [128, 512, 28, 1],
    [144, 40, 28, 1],
    [256, 64, 56, 1],
    [256, 1024, 14, 1],
    [512, 128, 28, 1],
    [512, 2048, 7, 1],
    [1024, 256, 14, 1],
    [2048, 512, 7, 1],
];

/// Operand types for which several kernels compete.
const OPERANDS: [Operands; 4] = [
    Operands { act: Act::Half, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Binary },
    Operands { act: Act::Uint2, weights: WeightKind::Ternary },
];

/// A measurement of one kernel on one layer: the minimum time in nanoseconds.
struct Row {
    kernel: String,
    operands: Operands,
    layer: [usize; 4],
    ns: f64,
}

impl Row {
    fn shape(&self) -> LayerShape {
        let [channels, out_channels, _, kernel] = self.layer;
        LayerShape::Conv {
            out_channels,
            reduction: channels * kernel * kernel,
            taps: kernel * kernel,
        }
    }

    fn positions(&self) -> f64 {
        (self.layer[2] * self.layer[2]) as f64
    }

    /// Rows with the same operands and layer are compared with each other.
    fn case(&self) -> (Operands, [usize; 4]) {
        (self.operands, self.layer)
    }
}

fn measure(path: &str) {
    parallel::set_num_threads(1).unwrap();
    let mut cases: Vec<Value> = Vec::new();
    for operands in OPERANDS {
        for layer @ [channels, out_channels, size, kernel] in GRID {
            let problem = Problem::of(
                operands,
                String::new(),
                [size, size],
                [channels, out_channels],
                kernel,
            );
            let layout = CodesLayout::new(out_channels, 1).unwrap();
            let thresholds = [vec![-3; out_channels], vec![5; out_channels]].concat();
            let to = Requantize { thresholds: &thresholds, layout };
            let kernels: Vec<_> = kernels::detected_for(operands)
                .into_iter()
                .filter(|kernel| kernel.isa() != Isa::Scalar)
                .collect();
            let packed: Vec<PackedWeights<'_>> =
                kernels.iter().map(|kernel| problem.weights(*kernel)).collect();
            let mut out = vec![0; problem.outputs() / out_channels * layout.pixel_bytes()];
            let mut least = vec![f64::INFINITY; kernels.len()];
            for _ in 0..ROUNDS {
                for (weights, least) in packed.iter().zip(&mut least) {
                    let mut time = |times: usize| {
                        let start = Instant::now();
                        for _ in 0..times {
                            conv2d_codes(
                                black_box(&problem.packed),
                                weights,
                                &problem.shape,
                                &to,
                                &mut out,
                            )
                            .unwrap();
                        }
                        start.elapsed().as_nanos() as f64 / times as f64
                    };
                    let once = time(1);
                    // Long enough for the clock, short enough to avoid most interruptions.
                    *least = least.min(time((400_000.0 / once) as usize + 1));
                }
            }
            let ns: Map<String, Value> = kernels
                .iter()
                .zip(least)
                .map(|(kernel, ns)| (kernel.name().to_owned(), json!(ns.round() as u64)))
                .collect();
            cases.push(json!({
                "act": operands.act.name(), "weights": operands.weights.name(),
                "layer": layer, "ns": ns,
            }));
        }
    }
    let all = json!({ "layer": "input channels, output channels, map, kernel", "cases": cases });
    // One case per line, so that differences are readable.
    let text = all.to_string().replace("{\"act\"", "\n{\"act\"");
    std::fs::write(path, text + "\n").expect("a file that can be written");
}

fn read(path: &str) -> Vec<Row> {
    let all: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON");
    let cases = all["cases"].as_array().expect("cases");
    let rows = cases.iter().flat_map(|case| {
        let operands = Operands {
            act: Act::from_name(case["act"].as_str().unwrap()).unwrap(),
            weights: WeightKind::from_name(case["weights"].as_str().unwrap()).unwrap(),
        };
        let layer = std::array::from_fn(|i| case["layer"][i].as_u64().unwrap() as usize);
        case["ns"].as_object().expect("times").iter().map(move |(kernel, ns)| Row {
            kernel: kernel.clone(),
            operands,
            layer,
            ns: ns.as_f64().unwrap(),
        })
    });
    rows.collect()
}

/// Non-negative coefficients that minimize the sum of squared relative errors, by coordinate
/// descent.
fn fit(rows: &[&Row], features: &[[f64; cost::FEATURES]]) -> [f64; cost::FEATURES] {
    let targets: Vec<f64> = rows.iter().map(|row| row.ns / row.positions()).collect();
    let scaled: Vec<[f64; cost::FEATURES]> =
        features.iter().zip(&targets).map(|(f, t)| std::array::from_fn(|i| f[i] / t)).collect();
    let mut coefficients = [0.0; cost::FEATURES];
    for _ in 0..20_000 {
        for i in 0..cost::FEATURES {
            let (mut up, mut down) = (0.0, 1e-30);
            for f in &scaled {
                let others: f64 =
                    (0..cost::FEATURES).filter(|&j| j != i).map(|j| f[j] * coefficients[j]).sum();
                up += f[i] * (1.0 - others);
                down += f[i] * f[i];
            }
            coefficients[i] = f64::max(up / down, 0.0);
        }
    }
    coefficients
}

fn report(path: &str) {
    let rows = read(path);
    let mut names: Vec<(&str, Operands)> = Vec::new();
    for row in &rows {
        if !names.contains(&(&row.kernel, row.operands)) {
            names.push((&row.kernel, row.operands));
        }
    }
    let mut models = Vec::new();
    for &(name, operands) in &names {
        let of: Vec<&Row> =
            rows.iter().filter(|row| row.kernel == name && row.operands == operands).collect();
        let kernel = kernels::named(name).expect("a kernel of this CPU");
        let features: Vec<_> = of
            .iter()
            .map(|row| cost::features(kernel, row.shape()).expect("a convolution"))
            .collect();
        let coefficients = fit(&of, &features);
        let errors = of.iter().zip(&features).map(|(row, f)| {
            let predicted: f64 = f.iter().zip(coefficients).map(|(f, c)| f * c).sum();
            (predicted * row.positions() / row.ns - 1.0).abs()
        });
        let mean = errors.sum::<f64>() / of.len() as f64;
        let listed: Vec<String> = coefficients.iter().map(|c| format!("{c:.4}")).collect();
        let Operands { act, weights } = operands;
        println!(
            "    row(\"{name}\", Act::{act:?}, WeightKind::{weights:?},\n        [{}]), // {:.0}%",
            listed.join(", "),
            mean * 100.0
        );
        models.push((name, operands, coefficients));
    }
    for tier in [Isa::Avx512, Isa::Avx2] {
        let fits = |name: &str| {
            let isa = kernels::named(name).expect("a kernel of this CPU").isa();
            isa == tier || (tier == Isa::Avx512 && isa == Isa::Avx2)
        };
        let rows: Vec<&Row> = rows.iter().filter(|row| fits(&row.kernel)).collect();
        let candidates = |operands: Operands| -> Vec<_> {
            kernels::detected_for(operands)
                .into_iter()
                .filter(|kernel| fits(kernel.name()) || kernel.isa() == Isa::Scalar)
                .collect()
        };
        for operands in OPERANDS {
            let (mut by_model, mut by_rules) = (Vec::new(), Vec::new());
            for layer in GRID {
                let here: Vec<&&Row> =
                    rows.iter().filter(|row| row.case() == (operands, layer)).collect();
                let Some(best) = here.iter().map(|row| row.ns).min_by(f64::total_cmp) else {
                    continue;
                };
                let shape = here[0].shape();
                let predicted = |row: &Row| -> f64 {
                    let kernel = kernels::named(&row.kernel).expect("as above");
                    let features = cost::features(kernel, shape).expect("a convolution");
                    let (.., coefficients) = models
                        .iter()
                        .find(|(name, o, _)| *name == row.kernel && *o == operands)
                        .expect("fitted");
                    features.iter().zip(coefficients).map(|(f, c)| f * c).sum()
                };
                let model =
                    here.iter().min_by(|a, b| predicted(a).total_cmp(&predicted(b))).expect("some");
                let rule = kernels::choose_by_rules(&candidates(operands), shape, operands).name();
                let rule =
                    here.iter().find(|row| row.kernel == rule).map_or(f64::NAN, |row| row.ns);
                let names: Vec<_> = here
                    .iter()
                    .map(|row| format!("{}={:.1}", row.kernel, row.ns / 1000.0))
                    .collect();
                by_model.push(model.ns / best - 1.0);
                by_rules.push(rule / best - 1.0);
                if rule / best > 1.1 || model.ns / best > 1.1 {
                    eprintln!(
                        "{tier:?} {operands:?} {layer:?} rule {:.2} model {:.2}: {}",
                        rule / best,
                        model.ns / best,
                        names.join(" ")
                    );
                }
            }
            let say = |regret: &[f64]| {
                let mean = regret.iter().sum::<f64>() / regret.len() as f64;
                let worst = regret.iter().copied().fold(0.0, f64::max);
                format!("mean {:.1}%, worst {:.0}%", mean * 100.0, worst * 100.0)
            };
            println!(
                "// {}, {} × {}: model {}; rules {}",
                tier.name(),
                operands.act.name(),
                operands.weights.name(),
                say(&by_model),
                say(&by_rules)
            );
        }
    }
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["measure", path] => measure(path),
        ["fit", path] => report(path),
        // `cargo bench` and `cargo test --benches` run all benches; without a file there is nothing
        // to do.
        _ => eprintln!("costs: measure FILE, or fit FILE"),
    }
}
