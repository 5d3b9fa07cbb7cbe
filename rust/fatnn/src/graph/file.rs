//! The file format: versioned, and the same on every machine.
//!
//! A network is a [safetensors](https://github.com/huggingface/safetensors) file. Its metadata has
//! one entry, `fatnn-rs`, a JSON object:
//!
//! | key | value |
//! | --- | --- |
//! | `version` | [`FORMAT_VERSION`] |
//! | `sha256` | hex digest of everything else in the file, as described below |
//! | `tensors` | name → `{"dtype": ..., "shape": [...]}`, for tensors that are packed and stored as `u8` |
//! | `graph` | the network's graph as JSON text |
//!
//! Weight codes are packed: `ternary` five per byte ([`crate::codec::trits`]), `two-bit` four per
//! byte ([`crate::codec::two_bit`]) and `binary` eight per byte ([`crate::codec::signs`]). All
//! other types (`float32`, `int32`, `int64`, `int8` and `bool`) use safetensors' own encoding.
//! `bool`, and operations on integers and masks, were added after the first release of version 2.
//! Older releases refuse such a file and name the type or the operation.
//!
//! The digest covers these parts, each preceded by its length as a little-endian `u64`: the graph's
//! text; then, for every tensor in order of names, its name, the name of its type, its sizes as
//! little-endian `u64`, and its bytes in the file.
//!
//! In the graph every node states the type of its value, and the attribute `act` states what codes
//! stand for: see [`Graph::parse`](crate::graph::Graph::parse). Files of version 1 are read too,
//! and converted to this version.
//!
//! Weights are packed for the CPU's kernels only when a file is loaded, so files do not depend on
//! the machine that wrote them. A file is written under a temporary name in the same directory and
//! then renamed, so a crash leaves either the old file or the new one.

mod read;
mod version1;
mod write;

use sha2::{Digest, Sha256};

pub use self::read::{load, read};
pub use self::write::save;

/// Version of the format that this crate writes. It reads version 1, too.
pub const FORMAT_VERSION: u64 = 2;

/// Key of our entry in the metadata.
const ENTRY: &str = "fatnn-rs";

/// What memory was for, in error messages.
const FILE: &str = "tensors of a file";

/// The digest of a file's content; the module's documentation describes it. `tensors` are sorted by
/// name, with the names of their types and their unpacked shapes.
fn digest<'a>(
    graph: &str,
    tensors: impl Iterator<Item = (&'a str, &'a str, &'a [usize], &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(graph.as_bytes());
    for (name, dtype, shape, bytes) in tensors {
        part(name.as_bytes());
        part(dtype.as_bytes());
        part(&shape.iter().flat_map(|&size| (size as u64).to_le_bytes()).collect::<Vec<u8>>());
        part(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::read::parse;
    use super::*;
    use crate::dtype::WeightKind;
    use crate::error::Error;
    use crate::graph::tensor::Tensor;

    fn codes_of(kind: WeightKind, shape: &[usize], codes: &[i8]) -> Tensor {
        Tensor::Codes(kind, shape.to_vec(), codes.to_vec())
    }

    fn example() -> (String, BTreeMap<String, Tensor>) {
        let codes = (0..63).map(|i| (i % 251 % 3) as i8 - 1).collect();
        let tensors = BTreeMap::from([
            ("a.weight".to_owned(), Tensor::Codes(WeightKind::Ternary, vec![7, 9], codes)),
            ("a.scale".to_owned(), Tensor::F32(vec![3], vec![0.5, f32::MIN_POSITIVE, -1e30])),
            ("a.thresholds".to_owned(), Tensor::I32(vec![2, 2], vec![i32::MIN, -1, 0, i32::MAX])),
            ("b.weight".to_owned(), Tensor::I8(vec![2, 3], vec![i8::MIN, -127, -1, 0, 1, 127])),
            ("step".to_owned(), Tensor::I64(vec![], vec![-7])),
            ("mask".to_owned(), Tensor::Bool(vec![2, 2], vec![0, 1, 1, 0])),
            (
                "c.weight".to_owned(),
                codes_of(WeightKind::TwoBit, &[3, 3], &[-3, -1, 1, 3, 3, 1, -1, -3, 1]),
            ),
            (
                "d.weight".to_owned(),
                codes_of(WeightKind::Binary, &[11], &[-1, 1, 1, -1, -1, -1, 1, 1, -1, 1, 1]),
            ),
            ("e.weight".to_owned(), codes_of(WeightKind::Ternary, &[2], &[-1, 1])),
            ("none".to_owned(), Tensor::F32(vec![0, 4], vec![])),
        ]);
        (r#"{"nodes": ["a"], "ü": 1}"#.to_owned(), tensors)
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("fatnn-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_saved_is_loaded_and_saving_again_gives_the_same_bytes() {
        let folder = folder("round-trip");
        let (graph, tensors) = example();
        let path = folder.join("net.safetensors");
        save(&path, &graph, &tensors).unwrap();
        let (graph_2, tensors_2) = load(&path).unwrap();
        assert_eq!((&graph, &tensors), (&graph_2, &tensors_2));
        let bytes = std::fs::read(&path).unwrap();
        save(&path, &graph_2, &tensors_2).unwrap();
        assert_eq!(bytes, std::fs::read(&path).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let folder = folder("damage");
        let (graph, tensors) = example();
        let path = folder.join("net.safetensors");
        save(&path, &graph, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(read) = parse(&damaged) {
                    // Only the white space between header and tensors may change.
                    assert_eq!(read, (graph.clone(), tensors.clone()), "bit {bit} of byte {at}");
                    assert!(
                        bytes[at].is_ascii_whitespace(),
                        "bit {bit} of byte {at} was not noticed"
                    );
                }
            }
            assert!(parse(&bytes[..at]).is_err(), "cut at {at}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn messages_name_the_file_and_the_way_out() {
        let folder = folder("messages");
        let path = folder.join("net.safetensors");
        let cases: [(&[u8], &str); 2] =
            [(b"", "fatnn_rs.save"), (b"PK\x03\x04 something else entirely", "fatnn_rs.save")];
        for (bytes, words) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = load(&path).unwrap_err().to_string();
            assert!(message.contains("net.safetensors") && message.contains(words), "{message}");
        }
        let (graph, tensors) = example();
        save(&path, &graph, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(13).position(|w| w == br#"\"version\":2"#.as_slice()).unwrap() + 12;
        for version in [b'3', b'0'] {
            let mut bytes = bytes.clone();
            bytes[at] = version;
            std::fs::write(&path, &bytes).unwrap();
            let message = load(&path).unwrap_err().to_string();
            let got = format!("got {}", char::from(version));
            for words in ["version 2", "(or 1)", &got, "convert and save the model again"] {
                assert!(message.contains(words), "{message}");
            }
        }
        assert!(matches!(load(folder.join("absent")), Err(Error::Io { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn values_of_another_type_are_refused_and_named() {
        let folder = folder("values");
        let path = folder.join("net.safetensors");
        for kind in WeightKind::ALL {
            let tensors = BTreeMap::from([(
                "a.weight".to_owned(),
                Tensor::Codes(kind, vec![3], vec![1, -1, 2]),
            )]);
            let message = save(&path, "{}", &tensors).unwrap_err().to_string();
            for words in ["tensor \"a.weight\"", kind.name(), "got 2 at element 2"] {
                assert!(message.contains(words), "{message}");
            }
        }
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
