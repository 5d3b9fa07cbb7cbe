//! The canonical file: one format, versioned, equal on every machine.
//!
//! A [safetensors](https://github.com/huggingface/safetensors) file. Its metadata has one entry, `fatnn-rs`, a JSON object:
//!
//! | key | value |
//! | --- | --- |
//! | `version` | [`FORMAT_VERSION`] |
//! | `sha256` | hex digest over everything else that the file says, as below |
//! | `ternary` | name → shape, for tensors of codes stored as `u8`, five trits a byte ([`crate::codec::trits`]) |
//! | `two_bit` | name → shape, for weights -3, -1, 1, 3 stored as `u8`, four a byte ([`crate::codec::two_bit`]); absent where there are none |
//! | `graph` | the network's graph as JSON text |
//!
//! The digest is over parts, each preceded by its length as a little-endian `u64`: the graph's text; then, for every tensor in
//! order of names, its name, its kind (`f32`, `i32`, `i64`, `i8`, `ternary` or `two_bit`), its sizes as little-endian `u64`, and its bytes
//! in the file. (Files without `i8` and `two_bit` tensors are those that releases before them wrote, byte for byte.)
//!
//! In the graph, a node whose codes are activations of two bits says so by an attribute `act`, `"uint2"`; `steps` are then
//! three numbers, and `thresholds` that make such codes have three rows. Networks of ternary codes have neither.
//!
//! What a CPU's kernel wants is derived when a file is loaded and never written, so a file does not depend on the machine
//! that wrote it. Files are written beside their place and moved there, so that a crash leaves the old file or the new one.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::codec::{trits, two_bit};
use crate::error::{Error, Result};
use crate::graph::tensor::{Tensor, check_shape};
use crate::memory;

/// Version of the format that this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u64 = 1;

const ENTRY: &str = "fatnn-rs";

/// As stored: type, shape and bytes.
fn stored(tensor: &Tensor) -> Result<Stored> {
    tensor.check()?;
    let (dtype, shape, bytes) = match tensor {
        Tensor::F32(shape, v) => (Dtype::F32, shape.clone(), bytes(v, f32::to_le_bytes)?),
        Tensor::I32(shape, v) => (Dtype::I32, shape.clone(), bytes(v, i32::to_le_bytes)?),
        Tensor::I64(shape, v) => (Dtype::I64, shape.clone(), bytes(v, i64::to_le_bytes)?),
        Tensor::I8(shape, v) => (Dtype::I8, shape.clone(), bytes(v, i8::to_le_bytes)?),
        Tensor::Ternary(_, v) => {
            let mut bytes = memory::filled(FILE, trits::encoded_len(v.len()), 0)?;
            trits::encode(v, &mut bytes)?;
            (Dtype::U8, vec![bytes.len()], bytes) // small: one
        }
        Tensor::TwoBit(_, v) => {
            let mut bytes = memory::filled(FILE, two_bit::encoded_len(v.len()), 0)?;
            two_bit::encode(v, &mut bytes)?;
            (Dtype::U8, vec![bytes.len()], bytes) // small: one
        }
    };
    Ok(Stored { dtype, shape, bytes })
}

/// What memory is for.
const FILE: &str = "tensors of a file";

fn bytes<T: Copy, const N: usize>(values: &[T], convert: fn(T) -> [u8; N]) -> Result<Vec<u8>> {
    let mut bytes = memory::reserved(FILE, values.len().saturating_mul(N))?;
    bytes.extend(values.iter().flat_map(|value| convert(*value)));
    Ok(bytes)
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Digest over everything that a file says: see the module. Tensors come in order of names, with their kinds, and with the
/// shapes that they have once they are read.
fn digest<'a>(graph: &str, tensors: impl Iterator<Item = (&'a str, &'a str, &'a [usize], &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(graph.as_bytes());
    for (name, kind, shape, bytes) in tensors {
        part(name.as_bytes());
        part(kind.as_bytes());
        part(&shape.iter().flat_map(|&size| (size as u64).to_le_bytes()).collect::<Vec<u8>>());
        part(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lists of packed tensors in a file's metadata, which are also their kinds.
const TERNARY: &str = "ternary";
const TWO_BIT: &str = "two_bit";

/// A tensor's kind, by its type in the file and by which list it is in.
fn kind(dtype: Dtype, list: Option<&'static str>) -> Option<&'static str> {
    match (dtype, list) {
        (Dtype::F32, None) => Some("f32"),
        (Dtype::I32, None) => Some("i32"),
        (Dtype::I64, None) => Some("i64"),
        (Dtype::I8, None) => Some("i8"),
        (Dtype::U8, list) => list,
        _ => None,
    }
}

/// Packed tensors: name → the list they are in, and their shape.
type Packed = BTreeMap<String, (&'static str, Vec<usize>)>;

/// Writes a network: its graph as JSON text and its tensors by name.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] for a tensor whose values do not fit its shape or type, [`Error::Io`] where the file
/// cannot be written.
pub fn save(path: impl AsRef<Path>, graph: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let path = path.as_ref();
    let mut parts = BTreeMap::new();
    let (mut ternary, mut two_bit) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in tensors {
        parts.insert(name.as_str(), stored(tensor)?);
        match tensor {
            Tensor::Ternary(shape, _) => ternary.insert(name.as_str(), shape),
            Tensor::TwoBit(shape, _) => two_bit.insert(name.as_str(), shape),
            _ => None,
        };
    }
    let digested = parts.iter().map(|(name, t)| {
        let packed = |list: &BTreeMap<_, _>, name_of| list.contains_key(name).then_some(name_of);
        let list = packed(&ternary, TERNARY).or_else(|| packed(&two_bit, TWO_BIT));
        let kind = kind(t.dtype, list).unwrap_or("unknown");
        (*name, kind, tensors[*name].shape(), t.bytes.as_slice())
    });
    let sha256 = digest(graph, digested);
    let mut entry = serde_json::json!({"version": FORMAT_VERSION, "sha256": sha256, TERNARY: ternary, "graph": graph});
    if !two_bit.is_empty() {
        entry[TWO_BIT] = serde_json::json!(two_bit);
    }
    let entry = entry.to_string();
    let views = parts
        .iter()
        .map(|(name, t)| Ok((*name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>();
    let failed = |e| match e {
        SafeTensorError::IoError(source) => Error::Io { path: path.into(), source },
        other => Error::Format { path: path.into(), why: format!("cannot be written as safetensors: {other}") },
    };
    let views = views.map_err(failed)?;
    let metadata = Some(HashMap::from([(ENTRY.to_owned(), entry)]));
    let io = |source| Error::Io { path: path.into(), source };
    write(path, io, |beside| safetensors::serialize_to_file(views, metadata, beside).map_err(failed))
}

/// Writes next to `path`, then moves into place. A link's file is replaced, not the link; a file keeps its permissions, and a
/// new one has those of any new file.
fn write(path: &Path, io: impl Fn(std::io::Error) -> Error, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    let before = std::fs::metadata(path).ok();
    if before.as_ref().is_some_and(|target| !target.is_file()) {
        return Err(io(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file, which alone is replaced",
        )));
    }
    let name = path.file_name().ok_or_else(|| io(std::io::Error::other("not the name of a file")))?;
    let mut beside = name.to_owned();
    // Unlike that of any other writer, in this process or another.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    beside.push(format!(".{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let beside = path.with_file_name(beside);
    let written = (|| {
        let made = std::fs::File::create(&beside).and_then(|file| file.metadata()).map_err(&io)?;
        fill(&beside)?;
        let permissions = before.map_or(made.permissions(), |target| target.permissions());
        std::fs::OpenOptions::new().write(true).open(&beside).and_then(|file| file.sync_all()).map_err(&io)?;
        std::fs::set_permissions(&beside, permissions).map_err(&io)?;
        std::fs::rename(&beside, path).map_err(&io)
    })();
    if written.is_err() {
        // Nothing more can be done where even this fails; the first error is the one to report.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Reads a network that [`save`] wrote: its graph as JSON text and its tensors by name.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Format`] where it is truncated, damaged, no safetensors file, no
/// network of this crate, or of another version.
pub fn load(path: impl AsRef<Path>) -> Result<(String, BTreeMap<String, Tensor>)> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::OutOfMemory => {
            let len = std::fs::metadata(path).map_or(u64::MAX, |file| file.len());
            Error::Memory { what: "the file", bytes: usize::try_from(len).unwrap_or(usize::MAX) }
        }
        _ => Error::Io { path: path.into(), source },
    })?;
    parse(&bytes).map_err(|wrong| match wrong {
        Wrong::Format(why) => Error::Format { path: path.into(), why },
        Wrong::Memory(error) => error,
    })
}

/// Why a file could not be read.
#[derive(Debug)]
enum Wrong {
    Format(String),
    /// [`Error::Memory`].
    Memory(Error),
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Wrong::Format(why)
    }
}

fn parse(bytes: &[u8]) -> Result<(String, BTreeMap<String, Tensor>), Wrong> {
    let not_ours = |why: String| {
        format!(
            "not a network saved by fatnn-rs, or cut short ({why}); save it again with fatnn_rs.save, or copy it again"
        )
    };
    let file = SafeTensors::deserialize(bytes).map_err(|e| not_ours(format!("as safetensors: {e}")))?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| not_ours(format!("as safetensors: {e}")))?;
    let entry = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(ENTRY))
        .ok_or_else(|| not_ours(format!("its metadata has no entry {ENTRY:?}")))?;
    let entry: serde_json::Value =
        serde_json::from_str(entry).map_err(|e| not_ours(format!("its entry {ENTRY:?} is not JSON: {e}")))?;
    let version = entry["version"].as_u64();
    if version != Some(FORMAT_VERSION) {
        return Err(format!(
            "expected version {FORMAT_VERSION} of the format, got {}; load it with the release of fatnn-rs that wrote it, or \
             convert and save the model again",
            entry["version"]
        )
        .into());
    }
    let damaged = || {
        "damaged: its content does not match its checksum; copy it again from its source, or convert and save again"
            .to_owned()
    };
    let graph = entry["graph"].as_str().ok_or_else(damaged)?;
    let mut packed = Packed::new();
    for list in [TERNARY, TWO_BIT] {
        let absent = list == TWO_BIT && entry[list].is_null();
        let shapes: BTreeMap<String, Vec<usize>> = match absent {
            true => BTreeMap::new(),
            false => serde_json::from_value(entry[list].clone()).map_err(|_| damaged())?,
        };
        for (name, shape) in shapes {
            if packed.insert(name, (list, shape)).is_some() {
                return Err(damaged().into());
            }
        }
    }
    let mut names: Vec<&str> = file.names();
    names.sort_unstable();
    let views = names
        .into_iter()
        .map(|name| file.tensor(name).map(|view| (name, view)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| damaged())?;
    let parts = views
        .iter()
        .map(|(name, view)| {
            let (list, shape) = packed.get(*name).map_or((None, view.shape()), |(list, shape)| (Some(*list), shape));
            let kind = kind(view.dtype(), list).ok_or_else(|| unknown(name, view.dtype()))?;
            Ok((*name, kind, shape, view.data()))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let found = digest(graph, parts.into_iter());
    if entry["sha256"].as_str() != Some(found.as_str()) {
        return Err(damaged().into());
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let declared = packed.get(name).map_or(view.shape(), |(_, shape)| shape);
        check_shape(declared).map_err(|e| format!("tensor {name:?}: {e}; convert and save the model again"))?;
        let shape = memory::copied(FILE, view.shape()).map_err(Wrong::Memory)?;
        let tensor = match (packed.get(name), view.dtype()) {
            (Some((list, shape)), Dtype::U8) => {
                let len = memory::product(shape.iter().copied()).ok_or_else(damaged)?;
                let ternary = *list == TERNARY;
                let expected = if ternary { trits::encoded_len(len) } else { two_bit::encoded_len(len) };
                if expected != view.data().len() {
                    return Err(damaged().into());
                }
                let mut codes = memory::filled(FILE, len, 0).map_err(Wrong::Memory)?;
                let decode = if ternary { trits::decode } else { two_bit::decode };
                decode(view.data(), &mut codes).map_err(|e| format!("tensor {name:?}: {e}"))?;
                if ternary { Tensor::Ternary(shape.clone(), codes) } else { Tensor::TwoBit(shape.clone(), codes) }
            }
            (None, Dtype::F32) => Tensor::F32(shape, values(view.data(), f32::from_le_bytes)?),
            (None, Dtype::I32) => Tensor::I32(shape, values(view.data(), i32::from_le_bytes)?),
            (None, Dtype::I64) => Tensor::I64(shape, values(view.data(), i64::from_le_bytes)?),
            (None, Dtype::I8) => Tensor::I8(shape, values(view.data(), i8::from_le_bytes)?),
            (_, dtype) => return Err(unknown(name, dtype).into()),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    if let Some((missing, (list, _))) = packed.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        return Err(format!("{list} tensor {missing:?} is missing; convert and save the model again").into());
    }
    Ok((graph.to_owned(), tensors))
}

fn unknown(name: &str, dtype: Dtype) -> String {
    format!(
        "tensor {name:?}: expected f32, i32, i64, i8, ternary or two_bit, got {dtype:?}; load it with the release of fatnn-rs \
         that wrote it, or convert and save the model again"
    )
}

fn values<T, const N: usize>(bytes: &[u8], convert: fn([u8; N]) -> T) -> Result<Vec<T>, Wrong> {
    memory::collected(FILE, bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk))).map_err(Wrong::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (String, BTreeMap<String, Tensor>) {
        let codes = (0..63).map(|i| (i % 251 % 3) as i8 - 1).collect();
        let tensors = BTreeMap::from([
            ("a.weight".to_owned(), Tensor::Ternary(vec![7, 9], codes)),
            ("a.scale".to_owned(), Tensor::F32(vec![3], vec![0.5, f32::MIN_POSITIVE, -1e30])),
            ("a.thresholds".to_owned(), Tensor::I32(vec![2, 2], vec![i32::MIN, -1, 0, i32::MAX])),
            ("b.weight".to_owned(), Tensor::I8(vec![2, 3], vec![i8::MIN, -127, -1, 0, 1, 127])),
            ("step".to_owned(), Tensor::I64(vec![], vec![-7])),
            ("c.weight".to_owned(), Tensor::TwoBit(vec![3, 3], vec![-3, -1, 1, 3, 3, 1, -1, -3, 1])),
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
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no file may be left beside it");
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
                    // White space between the header and the tensors means nothing.
                    assert_eq!(read, (graph.clone(), tensors.clone()), "bit {bit} of byte {at}");
                    assert!(bytes[at].is_ascii_whitespace(), "bit {bit} of byte {at} was not noticed");
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
        let old = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains(r#"\"version\":1"#);
        assert!(old, "the version is where the next lines look for it");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(13).position(|w| w == br#"\"version\":1"#.as_slice()).unwrap() + 12;
        bytes[at] = b'9';
        std::fs::write(&path, &bytes).unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(message.contains("version 1") && message.contains("got 9"), "{message}");
        assert!(matches!(load(folder.join("absent")), Err(Error::Io { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
