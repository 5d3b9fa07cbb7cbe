//! Counts instructions per multiply-accumulate for all kernels, and prints them as JSON.
//!
//! `cargo bench --bench instructions > FILE` counts everything, `-- NAME...` only some kernels and
//! layers. The ladder adds the counts to its table (`--instructions FILE`). Counts do not depend on
//! clock or load.
//!
//! For each kernel, operand types and layer, the program runs itself under valgrind's callgrind, on
//! one thread. It repeats a convolution from codes to codes [`FEW`] times, and [`MANY`] times. The
//! difference counts the extra repetitions, with driver and epilogue; set-up work (packing, checks)
//! cancels. Valgrind has no AVX-512 and no AMX; on Linux, `stepping.rs` counts kernels that
//! valgrind cannot run. As many processes run at a time as there are processors.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use fatnn::codec::{Act, CodesLayout, WeightKind};
use fatnn::conv::{ConvShape, conv2d_codes};
use fatnn::epilogue::Requantize;
use fatnn::kernels::{self, Kernel, Operands};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::parallel;
use serde_json::json;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "stepping.rs"]
mod stepping;

/// Repetitions of the two runs that are compared.
const FEW: usize = 1;
const MANY: usize = 3;

/// A layer: its name in `benches/ladder/shapes.py`, channels in and out, height and width, and
/// kernel size.
type Layer = (&'static str, [usize; 2], usize, usize);

const LAYERS: [Layer; 6] = [
    ("3x3-64-56", [64, 64], 56, 3),
    ("3x3-128-28", [128, 128], 28, 3),
    ("3x3-256-14", [256, 256], 14, 3),
    ("3x3-512-7", [512, 512], 7, 3),
    ("1x1-64-256-56", [64, 256], 56, 1),
    ("1x1-2048-512-7", [2048, 512], 7, 1),
];

/// The operand types of the ladder's rungs.
const OPERANDS: [Operands; 5] = [
    Operands { act: Act::Uint2, weights: WeightKind::TwoBit },
    Operands { act: Act::Uint2, weights: WeightKind::Ternary },
    Operands { act: Act::Half, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Ternary },
    Operands { act: Act::Binary, weights: WeightKind::Binary },
];

/// First argument of a child process that is counted.
const COUNTED: &str = "counted";
/// The text before the child's count, as callgrind prints it.
const COLLECTED: &str = "Collected :";

/// Uniform random codes from a linear congruential generator.
fn random_codes(of: &[i8], len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        of[(state >> 33) as usize % of.len()]
    };
    (0..len).map(|_| next()).collect()
}

/// Multiply-accumulates of a layer.
fn macs(&(_, [channels, out_channels], size, window): &Layer) -> usize {
    size * size * channels * out_channels * window * window
}

/// A convolution of random codes to codes, on one thread.
fn convolution(kernel: &'static dyn Kernel, operands: Operands, layer: &Layer) -> impl FnMut() {
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
    let weights = PackedWeights::for_kernel(kernel, &codes, weight, operands).expect("weights");
    let layout = CodesLayout::new(out_channels, 1).expect("a layout").with(coding);
    let thresholds: Vec<i32> =
        (0..coding.thresholds()).flat_map(|level| vec![8 * level as i32; out_channels]).collect();
    let mut out = vec![0; size * size * layout.pixel_bytes()];
    move || {
        let to = Requantize { thresholds: &thresholds, layout };
        conv2d_codes(&packed, &weights, &shape, &to, &mut out).expect("a convolution");
    }
}

/// Instructions of a child process. With `repetitions`, valgrind counts the whole process; without,
/// single steps count one repetition. The error says why nothing was counted.
fn counts(
    kernel: &dyn Kernel,
    operands: Operands,
    layer: &Layer,
    repetitions: Option<usize>,
) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command =
        Command::new(if repetitions.is_some() { "valgrind".as_ref() } else { program.as_os_str() });
    if repetitions.is_some() {
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    }
    let output = command
        .args([COUNTED, kernel.name(), operands.act.name(), operands.weights.name(), layer.0])
        .args(repetitions.map(|repetitions| repetitions.to_string()))
        .env_remove("FATNN_ISA")
        .env_remove("FATNN_KERNEL")
        .output()
        .map_err(|e| e.to_string())?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason =
            log.lines().find(|line| !line.starts_with("==")).unwrap_or("valgrind failed").trim();
        return Err(reason.to_owned());
    }
    let counted = log.lines().find_map(|line| line.split(COLLECTED).nth(1)?.trim().parse().ok());
    counted.ok_or_else(|| "no sum was printed".to_owned())
}

/// Main function of a child process. Its arguments are kernel, activations, weights, layer and,
/// under valgrind, repetitions.
fn counted(arguments: &[String]) {
    let [kernel, act, weights, layer, repetitions @ ..] = arguments else {
        panic!("four arguments")
    };
    // Under valgrind, the detected features are valgrind's.
    let Ok(kernel) = kernels::named(kernel) else {
        eprintln!("valgrind does not support the instructions of {kernel}");
        std::process::exit(1);
    };
    let operands = Operands {
        act: Act::from_name(act).expect("a kind of activations"),
        weights: WeightKind::from_name(weights).expect("a kind of weights"),
    };
    let layer = LAYERS.iter().find(|(name, ..)| name == layer).expect("a layer");
    let mut run = convolution(kernel, operands, layer);
    if let [repetitions] = repetitions {
        for _ in 0..repetitions.parse().expect("a number") {
            run();
        }
    } else {
        // Set-up work is not counted.
        run();
        let counted = step(run);
        eprintln!("{COLLECTED} {counted}");
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn step(run: impl FnOnce()) -> u64 {
    stepping::count(run)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn step(_: impl FnOnce()) -> u64 {
    eprintln!("valgrind does not support its instructions, and this system has no single steps");
    std::process::exit(1);
}

/// Valgrind's version, if it is installed.
fn valgrind() -> Option<String> {
    let done = Command::new("valgrind").arg("--version").stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// Instructions of one convolution, and the counting method; the error says why there is no count.
fn count(
    kernel: &dyn Kernel,
    operands: Operands,
    layer: &Layer,
) -> Result<(f64, &'static str), String> {
    let counts = |repetitions| counts(kernel, operands, layer, repetitions);
    match counts(Some(FEW)).and_then(|few| counts(Some(MANY)).map(|many| many - few)) {
        Ok(difference) => Ok((difference as f64 / (MANY - FEW) as f64, "callgrind")),
        Err(_) => counts(None).map(|counted| (counted as f64, "single steps")),
    }
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == COUNTED) {
        return counted(&arguments[1..]);
    }
    let test = arguments.iter().any(|argument| argument == "--test");
    // Names of layers and of kernels. If no layer (or no kernel) is named, all are counted.
    let names: &[String] = if test { &[] } else { &arguments };
    let (layers, names): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| LAYERS.iter().any(|(layer, ..)| layer == name));
    let wanted: Vec<_> = if names.is_empty() {
        kernels::detected()
    } else {
        names
            .iter()
            .map(|name| kernels::named(name).unwrap_or_else(|error| panic!("{error}")))
            .collect()
    };
    let layers: Vec<_> = LAYERS
        .iter()
        .filter(|(name, ..)| layers.is_empty() || layers.iter().any(|layer| layer == name))
        .collect();
    let mut pairs: Vec<_> = OPERANDS
        .into_iter()
        .flat_map(|operands| wanted.iter().map(move |kernel| (*kernel, operands)))
        .filter(|(kernel, operands)| operands.supported_by(*kernel))
        .collect();
    if test {
        // `cargo test --benches` only checks that everything runs.
        for (kernel, operands) in pairs {
            convolution(kernel, operands, &LAYERS[3])();
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        stepping::check();
        return;
    }
    let version = valgrind();
    if version.is_none() {
        eprintln!(
            "valgrind is not installed, so no instruction is counted; \
             install it (apt-get install valgrind)"
        );
        pairs.clear();
    }
    let work: Vec<_> = pairs
        .iter()
        .enumerate()
        .flat_map(|(i, pair)| {
            layers.iter().enumerate().map(move |(j, layer)| ([i, j], pair, *layer))
        })
        .collect();
    let (queue, results) = (Mutex::new(work.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no thread panicked").next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((place, &(kernel, operands), layer)) = next() {
                    let counted = count(kernel, operands, layer);
                    let said = match &counted {
                        Ok((instructions, by)) => {
                            format!("{:.4} by {by}", instructions / macs(layer) as f64)
                        }
                        Err(why) => why.clone(),
                    };
                    eprintln!(
                        "{} {} {} {}: {said}",
                        layer.0,
                        kernel.name(),
                        operands.act.name(),
                        operands.weights.name()
                    );
                    results
                        .lock()
                        .expect("no thread panicked")
                        .push((place, kernel, operands, layer, counted));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panicked");
    results.sort_by_key(|(place, ..)| *place);
    let (mut rows, mut not_counted) = (Vec::new(), Vec::new());
    for (_, kernel, operands, layer, counted) in results {
        match counted {
            Ok((instructions, by)) => rows.push(json!({
                "layer": layer.0,
                "kernel": kernel.name(),
                "act": operands.act.name(),
                "weights": operands.weights.name(),
                "macs": macs(layer),
                "instructions_per_mac": instructions / macs(layer) as f64,
                "by": by,
            })),
            Err(why) => {
                let row = json!({ "kernel": kernel.name(), "reason": why });
                if !not_counted.contains(&row) {
                    not_counted.push(row);
                }
            }
        }
    }
    let all = json!({ "valgrind": version, "rows": rows, "not_counted": not_counted });
    println!("{}", serde_json::to_string_pretty(&all).expect("plain values"));
}
