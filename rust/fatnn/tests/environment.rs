//! Environment variables such as `FATNN_ISA`, in separate processes because they are read once.
//!
//! Each parent test starts this binary again with variables set, to run one `child_` test. Most
//! child tests need certain variables, so they are ignored otherwise.

use std::process::{Command, Output};

use fatnn::codec::{Act, WeightKind};
use fatnn::cpu::Isa;
use fatnn::kernels::{self, Family, OperandTypes, Operands};
use fatnn::pack::{PackedWeights, WeightShape};

/// Runs one test of this binary with these variables. `FATNN_TEST_RUNNER` names the emulator, where
/// `binfmt` does not start it.
fn run_child(test: &str, variables: &[(&str, &str)]) -> Output {
    let binary = std::env::current_exe().unwrap();
    let mut command = match std::env::var("FATNN_TEST_RUNNER") {
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("the runner's name"));
            command.args(words).arg(binary);
            command
        }
        Err(_) => Command::new(binary),
    };
    for name in ["FATNN_ISA", "FATNN_KERNEL", "FATNN_NUM_THREADS"] {
        command.env_remove(name);
    }
    command
        .args(["--exact", test, "--include-ignored"])
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn passes(test: &str, variables: &[(&str, &str)]) {
    let output = run_child(test, variables);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{variables:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{variables:?}: {text}");
}

#[test]
fn child_kernels_obey_the_cap() {
    let cap = std::env::var("FATNN_ISA").ok().filter(|cap| !cap.trim().is_empty());
    let allowed: Option<&[Isa]> = match cap.as_deref().map(str::trim) {
        None => None,
        Some("scalar") => Some(&[Isa::Scalar]),
        Some("neon") => Some(&[Isa::Scalar, Isa::Neon]),
        Some("avx2") => Some(&[Isa::Scalar, Isa::Avx2]),
        Some("avx512") => Some(&[Isa::Scalar, Isa::Avx2, Isa::Avx512]),
        Some(other) => panic!("unknown cap {other}"),
    };
    let family = std::env::var("FATNN_KERNEL").ok().filter(|family| family != "auto");
    // The kernels that the CPU supports and both variables allow, in the registry's order.
    let name = |kernel: &&'static dyn kernels::Kernel| kernel.name();
    let of_codes = |kernel: &&&'static dyn kernels::Kernel| kernel.layout().family != Family::Int8;
    let available: Vec<_> =
        kernels::available().unwrap().iter().filter(of_codes).map(name).collect();
    let expected: Vec<_> = kernels::detected()
        .iter()
        .filter(of_codes)
        .filter(|kernel| allowed.is_none_or(|a| a.contains(&kernel.isa())))
        .filter(|kernel| family.as_ref().is_none_or(|f| kernel.layout().family.name() == f))
        .map(name)
        .collect();
    assert_eq!(available, expected);
    let scalar = format!("generic-{}-scalar", family.as_deref().unwrap_or("table"));
    assert_eq!(available.last(), Some(&&*scalar));
    assert_eq!(kernels::best().unwrap().name(), available[0]);
    // Int8 kernels likewise; those on the matrix unit count as the family `matrix`.
    let detected = kernels::detected_for(OperandTypes::Int8);
    let expected = detected
        .iter()
        .filter(|kernel| allowed.is_none_or(|a| a.contains(&kernel.isa())))
        .filter(|kernel| {
            family.as_ref().is_none_or(|f| f == "matrix") || !kernel.name().ends_with("amx")
        })
        .map(|kernel| kernel.name());
    let available_int8 = kernels::available_for(OperandTypes::Int8).unwrap();
    assert!(available_int8.iter().map(|kernel| kernel.name()).eq(expected));
    // By default, weights of few channels are packed for dot products, otherwise for the first.
    let dot = available.iter().find(|name| name.contains("-dot-"));
    let shape = WeightShape { out_channels: 3, channels: 5, kernel: [1, 1], groups: 1 };
    let operands = Operands { act: Act::Full, weights: WeightKind::Ternary };
    assert_eq!(
        PackedWeights::new(&[1; 15], shape, operands).unwrap().kernel().name(),
        *dot.unwrap_or(&available[0])
    );
}

#[test]
#[ignore = "needs FATNN_KERNEL=matrix and FATNN_ISA=scalar; its parent test runs it"]
fn child_a_family_without_kernels_is_ignored() {
    assert_eq!(kernels::best().unwrap().name(), "generic-popcount-scalar");
}

#[test]
#[ignore = "needs FATNN_ISA=sse9; its parent test runs it"]
fn child_an_invalid_value_is_an_error() {
    for error in [kernels::best().unwrap_err(), kernels::available().unwrap_err()] {
        let message = error.to_string();
        assert!(
            message.contains("FATNN_ISA") && message.contains("sse9") && message.contains("avx2"),
            "{message}"
        );
    }
    let shape = WeightShape { out_channels: 1, channels: 1, kernel: [1, 1], groups: 1 };
    let operands = Operands { act: Act::Full, weights: WeightKind::Ternary };
    assert!(PackedWeights::new(&[1], shape, operands).is_err());
}

#[test]
#[ignore = "needs FATNN_NUM_THREADS=3; its parent test runs it"]
fn child_the_variable_counts_until_threads_are_set() {
    assert_eq!(fatnn::parallel::num_threads().unwrap(), 3);
    fatnn::parallel::set_num_threads(2).unwrap();
    assert_eq!(fatnn::parallel::num_threads().unwrap(), 2);
}

#[test]
fn isa_and_kernel_variables_limit_the_kernels() {
    for cap in ["scalar", "avx2", "avx512", "neon", "", " avx2 "] {
        passes("child_kernels_obey_the_cap", &[("FATNN_ISA", cap)]);
    }
    passes("child_kernels_obey_the_cap", &[("FATNN_KERNEL", "popcount")]);
    for cap in ["scalar", "avx2", "avx512", "neon", ""] {
        passes("child_kernels_obey_the_cap", &[("FATNN_KERNEL", "table"), ("FATNN_ISA", cap)]);
    }
    passes(
        "child_a_family_without_kernels_is_ignored",
        &[("FATNN_KERNEL", "matrix"), ("FATNN_ISA", "scalar")],
    );
    passes("child_kernels_obey_the_cap", &[("FATNN_KERNEL", "auto"), ("FATNN_ISA", "scalar")]);
}

#[test]
fn an_invalid_isa_is_an_error() {
    passes("child_an_invalid_value_is_an_error", &[("FATNN_ISA", "sse9")]);
}

#[test]
fn the_thread_variable_sets_the_number_of_threads() {
    passes("child_the_variable_counts_until_threads_are_set", &[("FATNN_NUM_THREADS", "3")]);
}
