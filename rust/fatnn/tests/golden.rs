//! Saved networks: files written and read, and the golden files of all format versions.

mod common;

use common::example::{C, Example, example, image, one_bit_example, two_bit_example};
use fatnn::graph::check::check;
use fatnn::graph::{Graph, Source};
use fatnn::net::{FORMAT_VERSION, Input, Network, load, save};
use serde_json::Value as Json;

#[test]
fn a_saved_network_gives_the_reference_s_results_after_loading() {
    for (example, name) in [(example(), "ternary"), (two_bit_example(), "two-bits")] {
        runs_from_a_file(&example, name);
    }
}

fn runs_from_a_file(example: &Example, name: &str) {
    let path = std::env::temp_dir()
        .join(format!("fatnn-network-{name}-{}.safetensors", std::process::id()));
    save(&path, &example.graph, &example.tensors).unwrap();
    assert_eq!(load(&path).unwrap(), (example.graph.clone(), example.tensors.clone()));
    let net = Network::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let x = image(1, [8, 8], 6);
    let out = net.run(&[Input { shape: &[1, C, 8, 8], data: &x, channels_last: true }]).unwrap();
    assert_eq!(out[0].data, example.expected(&x, 1, [8, 8]));
    assert_eq!(net.inputs().map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
    assert_eq!(net.outputs().map(|(name, _)| name).collect::<Vec<_>>(), ["y"]);
}

fn golden(name: &str, version: u64) -> std::path::PathBuf {
    let file = format!("tests/golden/{name}-v{version}.safetensors");
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// The networks in the golden files.
fn golden_examples() -> [(&'static str, Example); 3] {
    [
        ("network", example()),
        ("network-two-bits", two_bit_example()),
        ("network-one-bit", one_bit_example()),
    ]
}

#[test]
#[ignore = "writes golden files; run it only if the format version changes"]
fn write_the_golden_files() {
    for (name, example) in golden_examples() {
        save(golden(name, FORMAT_VERSION), &example.graph, &example.tensors).unwrap();
    }
}

/// The golden files were written once, when the format version was new, like users' files.
#[test]
fn golden_files_load_and_are_written_with_the_same_bytes() {
    for (name, example) in golden_examples() {
        let file = golden(name, FORMAT_VERSION);
        let (graph, tensors) = load(&file).unwrap();
        let parsed = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        assert_eq!(parsed(&graph), parsed(&example.graph));
        assert_eq!(tensors, example.tensors);
        let types =
            check(&Graph::parse(&graph, Source::File).unwrap(), &tensors, Source::File).unwrap();
        assert_eq!(types.iter().filter(|dtype| dtype.is_codes()).count(), 3);
        let path = std::env::temp_dir()
            .join(format!("fatnn-golden-{name}-{}.safetensors", std::process::id()));
        save(&path, &graph, &tensors).unwrap();
        let again = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(again == std::fs::read(&file).unwrap(), "the same network gives other bytes");
    }
}

#[test]
fn golden_files_of_version_1_give_equal_tensors_and_results() {
    for (name, example) in golden_examples() {
        let file = golden(name, 1);
        let (graph, tensors) = load(&file).unwrap();
        assert_eq!(tensors, example.tensors);
        let parsed: Json = serde_json::from_str(&graph).unwrap();
        let expected: Json = serde_json::from_str(&example.graph).unwrap();
        for (node, expected) in
            parsed["nodes"].as_array().unwrap().iter().zip(expected["nodes"].as_array().unwrap())
        {
            assert_eq!(node["dtype"], expected["dtype"], "{}", node["name"]);
        }
        let x = image(2, [8, 8], 3);
        let found = Network::load(&file).unwrap().run(&[Input {
            shape: &[2, C, 8, 8],
            data: &x,
            channels_last: true,
        }]);
        assert_eq!(found.unwrap()[0].data, example.expected(&x, 2, [8, 8]));
    }
}
