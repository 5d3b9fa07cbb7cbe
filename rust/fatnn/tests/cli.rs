//! The command `fatnn-core`, run as a separate process.

#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Random, codes};
use fatnn::codec::WeightKind;
use fatnn::net::{Input, Network, Tensor, save};
use serde_json::{Value as Json, json};

const C: usize = 6;

/// A temporary directory, deleted at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fatnn-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Saves a network: quantize, ternary convolution to floats, operation `last`.
fn network(path: &Path, last: &str) {
    let node = |name: &str, op: &str, input: &str, attrs: Json, tensors: Json| {
        json!({"name": name, "op": op, "inputs": [input], "attrs": attrs, "tensors": tensors,
            "shape": [1, C, 8, 8],
            "layer": format!("body.{name}"), "note": ""})
    };
    let window = json!({"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
        "groups": 1,
        "act": "half", "channels": C, "dims": 2, "relu": false});
    let graph = json!({"nodes": [
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, C, 8, 8],
            "layer": "", "note": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        node("q", "quantize", "x", json!({"channels": C, "groups": 1, "act": "half", "dims": 2}),
            json!({"steps": "steps"})),
        node("conv", "conv_float", "q", window, json!({"weight": "w", "scale": "s"})),
        node("end", last, "conv", json!({}), json!({})),
    ], "outputs": {"value": "end"}, "notes": []});
    let tensors = BTreeMap::from([
        ("w".to_owned(), Tensor::Codes(WeightKind::Ternary, vec![C, C, 3, 3], codes(C * C * 9, 1))),
        ("s".to_owned(), Tensor::F32(vec![C], (0..C).map(|c| 0.5 + c as f32).collect())),
        ("steps".to_owned(), Tensor::F32(vec![2], vec![0.25, 1.5])),
    ]);
    save(path, &graph.to_string(), &tensors).unwrap();
}

/// Writes a `.npy` file by the format's specification, without the code under test.
fn npy(path: &Path, dtype: &str, fortran: bool, shape: &str, bytes: &[u8]) {
    let fortran = if fortran { "True" } else { "False" };
    let mut header =
        format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

fn image(images: usize) -> Vec<f32> {
    let mut random = Random(3);
    (0..images * C * 64).map(|_| random.float() * 3.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn fatnn<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fatnn-core")).args(arguments).output().unwrap()
}

fn succeeds<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let done = fatnn(arguments);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stderr.is_empty());
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a command that must fail, and returns its line on standard error.
fn fails<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let done = fatnn(arguments);
    let line = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{line}");
    assert!(done.stdout.is_empty());
    assert!(line.starts_with("fatnn-core: ") && line.matches('\n').count() == 1, "{line}");
    line
}

#[test]
fn inspect_shows_every_node() {
    let directory = Directory::new("inspect");
    let file = directory.at("net.safetensors");
    network(&file, "relu");
    let text = succeeds(&[Path::new("inspect"), &file]);
    let macs = C * C * 9 * 64;
    for expected in [
        "body.conv",
        "conv_float",
        "1x6x8x8",
        "20,736",
        "65",
        "1 ternary layers: 20,736 of 20,736 MACs",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let figures: Json =
        serde_json::from_str(&succeeds(&[Path::new("inspect"), &file, Path::new("--json")]))
            .unwrap();
    assert_eq!(figures["file_bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(figures["macs_ternary"], macs);
    assert_eq!(figures["macs_float"], 0);
    assert_eq!(figures["ternary_bytes"], (C * C * 9).div_ceil(5));
    assert_eq!(figures["runs_without_torch"], true);
    assert_eq!(figures["inputs"][0]["shape"], json!([1, C, 8, 8]));
    assert_eq!(figures["nodes"].as_array().unwrap().len(), 3);
}

#[test]
fn inspect_shows_int8_layers() {
    let directory = Directory::new("inspect-int8");
    let file = directory.at("net.safetensors");
    let graph = json!({"nodes": [
        {"name": "x", "op": "input", "inputs": [], "tensors": {}, "shape": [1, 6], "layer": "",
            "note": "",
            "attrs": {"fixed": [], "channel_dim": 1}},
        {"name": "head", "op": "linear_int8", "inputs": ["x"], "attrs": {}, "shape": [1, 5],
            "layer": "net.head", "note": "",
            "tensors": {"weight": "w", "scale": "s", "inv_step": "i"}},
    ], "outputs": {"value": "head"}, "notes": []});
    let tensors = BTreeMap::from([
        ("w".to_owned(), Tensor::I8(vec![5, 6], vec![100; 30])),
        ("s".to_owned(), Tensor::F32(vec![5], vec![1.0; 5])),
        ("i".to_owned(), Tensor::F32(vec![1], vec![1.0])),
    ]);
    save(&file, &graph.to_string(), &tensors).unwrap();
    let text = succeeds(&[Path::new("inspect"), &file]);
    for words in [
        "net.head  linear_int8  1x5",
        "0 ternary layers: 0 of 30 MACs",
        "1 int8 layers: 30 MACs",
        "take 30 bytes",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let figures: Json =
        serde_json::from_str(&succeeds(&[Path::new("inspect"), &file, Path::new("--json")]))
            .unwrap();
    for (key, value) in
        [("int8_layers", 1), ("macs_int8", 30), ("int8_bytes", 30), ("macs_float", 0)]
    {
        assert_eq!(figures[key], value, "{key}");
    }
    assert_eq!(figures["runs_without_torch"], true);
}

#[test]
fn inspect_shows_what_needs_pytorch_and_run_refuses_it() {
    let directory = Directory::new("foreign");
    let (file, input) = (directory.at("net.safetensors"), directory.at("x.npy"));
    network(&file, "fold");
    npy(&input, "<f4", false, "(1, 6, 8, 8)", &bytes(&image(1)));
    let text = succeeds(&[Path::new("inspect"), &file]);
    assert!(text.contains("needs PyTorch for: node \"end\": operation \"fold\""), "{text}");
    assert!(fails(&[Path::new("run"), &file, &input]).contains("\"fold\""));
    assert!(fails(&[Path::new("bench"), &file]).contains("\"fold\""));
}

#[test]
fn run_writes_what_the_library_computes() {
    let directory = Directory::new("run");
    let (file, input, out) =
        (directory.at("net.safetensors"), directory.at("x.npy"), directory.at("y.npy"));
    network(&file, "relu");
    let x = image(3);
    npy(&input, "<f4", false, "(3, 6, 8, 8)", &bytes(&x));
    let text = succeeds(&[Path::new("run"), &file, &input, Path::new("--out"), &out]);
    let network = Network::load(&file).unwrap();
    let expected =
        network.run(&[Input { shape: &[3, C, 8, 8], data: &x, channels_last: false }]).unwrap();
    let values = expected[0].channels_first().unwrap();
    let written = std::fs::read(&out).unwrap();
    let header = String::from_utf8_lossy(&written[..128]).into_owned();
    assert!(
        header.contains("'<f4'") && header.contains("False") && header.contains("(3, 6, 8, 8"),
        "{header}"
    );
    assert_eq!(written[written.len() - values.len() * 4..], bytes(&values));
    assert!(text.contains("output [3, 6, 8, 8] in "), "{text}");
    let strongest =
        |row: &[f32]| row.iter().position(|x| row.iter().all(|y| x >= y)).unwrap().to_string();
    let strongest: Vec<String> = values.chunks(C * 64).map(strongest).collect();
    assert!(text.contains(&format!("argmax {}\n", strongest.join(" "))), "{text}");
    // The written file can be read.
    assert!(succeeds(&[Path::new("run"), &file, &out]).contains("output [3, 6, 8, 8]"));
}

#[test]
fn bench_times_runs_and_nodes() {
    let directory = Directory::new("bench");
    let file = directory.at("net.safetensors");
    network(&file, "relu");
    let file = file.to_str().unwrap();
    let arguments = ["bench", file, "--batch", "2", "--threads", "1", "--rounds", "5"];
    let text = succeeds(&arguments);
    assert!(text.contains("input [2, 6, 8, 8], 1 thread(s), 5 rounds: median"), "{text}");
    assert!(text.contains("body.conv"), "{text}");
    let figures: Json =
        serde_json::from_str(&succeeds(&[&arguments[..], &["--json"]].concat())).unwrap();
    let ms = |key: &str| figures["milliseconds"][key].as_f64().unwrap();
    assert!(
        0.0 < ms("quartile1") && ms("quartile1") <= ms("median") && ms("median") <= ms("quartile3")
    );
    // ReLU is fused into the convolution.
    let nodes: Vec<&str> =
        figures["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["q", "conv"]);
    assert!(figures["nodes"][1]["milliseconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn every_command_has_help_and_wrong_usage_exits_with_2() {
    for command in
        [&["--help"][..], &["inspect", "--help"], &["run", "--help"], &["bench", "--help"]]
    {
        assert!(succeeds(command).contains("Usage: fatnn-core"));
    }
    assert!(succeeds(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    for wrong in [
        &["nonsense"][..],
        &["run"],
        &["bench", "x", "--batch", "0"],
        &["bench", "x", "--rounds", "two"],
    ] {
        assert_eq!(fatnn(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn failures_are_one_line_and_exit_with_1() {
    let directory = Directory::new("failures");
    let (file, input) = (directory.at("net.safetensors"), directory.at("x.npy"));
    network(&file, "relu");
    let run = || fails(&[Path::new("run"), &file, &input]);
    assert!(fails(&[Path::new("inspect"), &directory.at("absent")]).contains("absent"));
    assert!(run().contains("x.npy"));
    std::fs::write(&input, "1 2 3").unwrap();
    assert!(run().contains("expected an array in .npy format"));
    let x = bytes(&image(1));
    npy(&input, "<f8", false, "(3, 6, 8, 8)", &x);
    assert!(run().contains("expected float32, little-endian ('<f4'), got '<f8'"));
    npy(&input, "<f4", true, "(1, 6, 8, 8)", &x);
    assert!(run().contains("Fortran order"));
    npy(&input, "<f4", false, "(1, 6, 8, 9)", &x[..99]);
    assert!(run().contains("99 bytes of values disagree"));
    npy(&input, "<f4", false, "(4294967296, 4294967296, 8)", &x);
    assert!(run().contains("disagree"));
    npy(&input, "<f4", false, "(-1, 6)", &x);
    assert!(run().contains("is invalid"));
    npy(&input, "<f4", false, "(1, 6, 8, 8)", &x[..x.len() - 8]);
    assert!(run().contains("disagree"));
    npy(&input, "<f4", false, "(1, 3, 8, 16)", &x);
    assert!(run().contains("6 channels"));
    npy(&input, "<f4", false, "(1, 6, 8, 8)", &[&f32::NAN.to_le_bytes(), &x[4..]].concat());
    assert!(run().contains("NaN"));
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    for command in ["inspect", "bench"] {
        assert!(fails(&[Path::new(command), &file]).contains("net.safetensors"));
    }
    std::fs::write(&file, &whole).unwrap();
    assert!(
        fails(&[Path::new("bench"), &file, Path::new("--threads"), Path::new("0")])
            .contains("threads")
    );
}
