//! Instructions per multiply-accumulate of every kernel, counted by valgrind's callgrind and printed as JSON.
//!
//! `cargo bench --bench instructions > FILE`; `fatnn ladder --instructions FILE` puts them into its table. Counts depend on no
//! clock and no load. For every kernel, operands and layer this program runs itself under valgrind with [`FEW`] repetitions
//! of a convolution from codes to codes and with [`MANY`], on one thread: the difference is what the repetitions in between
//! took, driver and epilogue included, and everything that is done once (packing, checking) drops out. Valgrind knows no
//! AVX-512 and no AMX; kernels that it cannot run are listed as not counted.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use fatnn::codec::{Act, CodesLayout, WeightKind};
use fatnn::conv::{ConvShape, conv2d_codes};
use fatnn::epilogue::ToCodes;
use fatnn::kernels::{self, Kernel, Operands};
use fatnn::parallel;
use fatnn::weights::{PackedWeights, WeightShape};
use serde_json::{Value, json};

/// Repetitions of the two runs.
const FEW: usize = 1;
const MANY: usize = 3;

/// A layer: its name in `fatnn_rs.bench.ladder.shapes`, channels in and out, size of the square map and of the kernel.
type Layer = (&'static str, [usize; 2], usize, usize);

const LAYERS: [Layer; 6] = [
    ("3x3-64-56", [64, 64], 56, 3),
    ("3x3-128-28", [128, 128], 28, 3),
    ("3x3-256-14", [256, 256], 14, 3),
    ("3x3-512-7", [512, 512], 7, 3),
    ("1x1-64-256-56", [64, 256], 56, 1),
    ("1x1-2048-512-7", [2048, 512], 7, 1),
];

/// What the ladder's rungs multiply.
const OPERANDS: [Operands; 5] = [
    Operands { act: Act::Uint2, weights: WeightKind::TwoBit },
    Operands { act: Act::Uint2, weights: WeightKind::Ternary },
    Operands { act: Act::Half, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Binary },
];

/// First argument of a process that valgrind watches.
const COUNTED: &str = "counted";

/// Codes of equal shares, from a linear congruential generator.
fn random_codes(of: &[i8], len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        of[(state >> 33) as usize % of.len()]
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a convolution so many times; products of one run.
fn convolve(kernel: &'static dyn Kernel, operands: Operands, layer: &Layer, repetitions: usize) -> usize {
    parallel::set_num_threads(1).expect("one thread");
    let &(_, [channels, out_channels], size, window) = layer;
    let shape = ConvShape {
        batch: 1,
        input: [size, size],
        kernel: [window, window],
        stride: [1, 1],
        padding: [window / 2, window / 2],
        dilation: [1, 1],
    };
    let weight = WeightShape { out_channels, channels, kernel: shape.kernel, groups: 1 };
    let coding = operands.act.coding();
    let levels = operands.act.codes();
    let weights = operands.weights.codes();
    let layout = CodesLayout::new(channels, 1).expect("a layout").with(coding);
    let mut packed = vec![0; size * size * layout.pixel_bytes()];
    layout.pack(&random_codes(levels, size * size * channels, 1), &mut packed).expect("codes");
    let codes = random_codes(weights, weight.len(), 2);
    let weights = PackedWeights::for_kernel(kernel, &codes, weight, operands.act).expect("weights");
    let layout = CodesLayout::new(out_channels, 1).expect("a layout").with(coding);
    let thresholds: Vec<i32> =
        (0..coding.thresholds()).flat_map(|level| vec![8 * level as i32; out_channels]).collect();
    let mut out = vec![0; size * size * layout.pixel_bytes()];
    for _ in 0..repetitions {
        let to = ToCodes { thresholds: &thresholds, layout };
        conv2d_codes(&packed, &weights, &shape, &to, &mut out).expect("a convolution");
    }
    size * size * weight.len()
}

/// Instructions of this program with so many repetitions, or why valgrind did not count them.
fn count(kernel: &str, operands: Operands, layer: &Layer, repetitions: usize) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([COUNTED, kernel, operands.act.name(), operands.weights.name(), layer.0])
        .arg(repetitions.to_string())
        .env_remove("FATNN_ISA")
        .env_remove("FATNN_KERNEL")
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        let reason = said.lines().find(|line| !line.starts_with("==")).unwrap_or("valgrind failed").trim();
        return Err(reason.to_owned());
    }
    let counted = said.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
    counted.ok_or_else(|| "callgrind printed no sum".to_owned())
}

/// What a process under valgrind does: kernel, activations, weights, layer, repetitions.
fn counted(arguments: &[String]) {
    let [kernel, act, weights, layer, repetitions] = arguments else { panic!("five arguments") };
    // Under valgrind, features are those that valgrind has.
    let Ok(kernel) = kernels::named(kernel) else {
        eprintln!("valgrind has not the instructions of {kernel}");
        std::process::exit(1);
    };
    let operands = Operands {
        act: Act::from_name(act).expect("a kind of activations"),
        weights: WeightKind::from_name(weights).expect("a kind of weights"),
    };
    let layer = LAYERS.iter().find(|(name, ..)| name == layer).expect("a layer");
    convolve(kernel, operands, layer, repetitions.parse().expect("a number"));
}

/// Valgrind's version, where there is one.
fn valgrind() -> Option<String> {
    let done = Command::new("valgrind").arg("--version").stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == COUNTED) {
        return counted(&arguments[1..]);
    }
    let pairs: Vec<_> = OPERANDS
        .into_iter()
        .flat_map(|operands| kernels::detected().into_iter().map(move |kernel| (kernel, operands)))
        .filter(|(kernel, operands)| operands.run_on(*kernel))
        .collect();
    if arguments.iter().any(|argument| argument == "--test") {
        // `cargo test --benches` only wants to know that everything runs.
        for (kernel, operands) in pairs {
            convolve(kernel, operands, &LAYERS[3], FEW);
        }
        return;
    }
    let version = valgrind();
    if version.is_none() {
        eprintln!("valgrind is not installed, so no instruction is counted; install it (apt-get install valgrind)");
    }
    let (mut rows, mut not_counted) = (Vec::<Value>::new(), BTreeSet::new());
    for (kernel, operands) in pairs {
        let weights = operands.weights.name();
        for layer in &LAYERS {
            if version.is_none() || not_counted.iter().any(|(name, _)| *name == kernel.name()) {
                break;
            }
            let &(name, [channels, out_channels], size, window) = layer;
            let macs = size * size * channels * out_channels * window * window;
            let counts = count(kernel.name(), operands, layer, FEW)
                .and_then(|few| count(kernel.name(), operands, layer, MANY).map(|many| many - few));
            match counts {
                Err(why) => drop(not_counted.insert((kernel.name(), why))),
                Ok(difference) => {
                    let per_mac = difference as f64 / ((MANY - FEW) * macs) as f64;
                    eprintln!("{name} {} {} {weights}: {per_mac:.4}", kernel.name(), operands.act.name());
                    rows.push(json!({
                        "layer": name, "kernel": kernel.name(), "act": operands.act.name(), "weights": weights,
                        "macs": macs, "instructions_per_mac": per_mac,
                    }));
                }
            }
        }
    }
    let not_counted: Vec<Value> =
        not_counted.into_iter().map(|(kernel, why)| json!({ "kernel": kernel, "reason": why })).collect();
    let all = json!({ "valgrind": version, "rows": rows, "not_counted": not_counted });
    println!("{}", serde_json::to_string_pretty(&all).expect("plain values"));
}
