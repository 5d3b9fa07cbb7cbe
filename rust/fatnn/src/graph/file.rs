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

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::file_v1;
use crate::codec::{signs, trits, two_bit};
use crate::dtype::{TensorType, WeightKind};
use crate::error::{Error, Result};
use crate::graph::tensor::{Tensor, check_shape};
use crate::memory;

/// Version of the format that this crate writes. It reads version 1, too.
pub const FORMAT_VERSION: u64 = 2;

const ENTRY: &str = "fatnn-rs";

/// Encodes a tensor for the file.
fn stored(tensor: &Tensor) -> Result<Stored> {
    tensor.check()?;
    let (dtype, shape, bytes) = match tensor {
        Tensor::F32(shape, v) => (Dtype::F32, shape.clone(), bytes(v, f32::to_le_bytes)?),
        Tensor::I32(shape, v) => (Dtype::I32, shape.clone(), bytes(v, i32::to_le_bytes)?),
        Tensor::I64(shape, v) => (Dtype::I64, shape.clone(), bytes(v, i64::to_le_bytes)?),
        Tensor::I8(shape, v) => (Dtype::I8, shape.clone(), bytes(v, i8::to_le_bytes)?),
        Tensor::Bool(shape, v) => (Dtype::BOOL, shape.clone(), bytes(v, u8::to_le_bytes)?),
        Tensor::Codes(kind, _, v) => {
            let mut bytes = memory::filled(FILE, tensor.file_bytes(), 0)?;
            match kind {
                WeightKind::Binary => signs::encode(v, &mut bytes)?,
                WeightKind::Ternary => trits::encode(v, &mut bytes)?,
                WeightKind::TwoBit => two_bit::encode(v, &mut bytes)?,
            }
            (Dtype::U8, vec![bytes.len()], bytes) // small: one
        }
    };
    Ok(Stored { dtype, shape, bytes })
}

/// The purpose of memory, for error messages.
const FILE: &str = "tensors of a file";

fn bytes<T: Copy, const N: usize>(values: &[T], convert: fn(T) -> [u8; N]) -> Result<Vec<u8>> {
    let mut bytes = memory::reserved(FILE, values.len().saturating_mul(N))?;
    bytes.extend(values.iter().flat_map(|value| convert(*value)));
    Ok(bytes)
}

/// A tensor as safetensors stores it.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

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

/// Packed tensors: name → type and shape.
pub(super) type Packed = BTreeMap<String, (TensorType, Vec<usize>)>;

/// The type of a tensor from its type in safetensors and its entry in the list of packed tensors.
fn dtype_of(stored: Dtype, packed: Option<TensorType>) -> Option<TensorType> {
    match (stored, packed) {
        (Dtype::F32, None) => Some(TensorType::F32),
        (Dtype::I32, None) => Some(TensorType::I32),
        (Dtype::I64, None) => Some(TensorType::I64),
        (Dtype::I8, None) => Some(TensorType::I8),
        (Dtype::BOOL, None) => Some(TensorType::Bool),
        (Dtype::U8, packed) => packed,
        _ => None,
    }
}

/// The metadata's list of packed tensors.
fn packed(entry: &Json) -> Option<Packed> {
    let tensor = |(name, said): (&String, &Json)| {
        let fields = said.as_object().filter(|fields| fields.len() == 2)?;
        let dtype = TensorType::from_name(fields.get("dtype")?.as_str()?).ok()?;
        let shape = serde_json::from_value(fields.get("shape")?.clone()).ok()?;
        TensorType::CODES.contains(&dtype).then(|| (name.clone(), (dtype, shape)))
    };
    entry["tensors"].as_object()?.iter().map(tensor).collect()
}

/// Writes a network: its graph as JSON text and its tensors by name.
///
/// # Errors
/// [`Error::Node`], naming a tensor whose values do not fit its shape or type; [`Error::Io`] if the
/// file cannot be written.
pub fn save(path: impl AsRef<Path>, graph: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let path = path.as_ref();
    let (mut parts, mut packed) = (BTreeMap::new(), serde_json::Map::new());
    for (name, tensor) in tensors {
        let named = |error| match error {
            Error::Memory { .. } => error,
            other => Error::Node { node: format!("tensor {name:?}"), source: Box::new(other) },
        };
        parts.insert(name.as_str(), stored(tensor).map_err(named)?);
        if let Tensor::Codes(kind, shape, _) = tensor {
            packed.insert(name.clone(), json!({"dtype": kind.name(), "shape": shape}));
        }
    }
    let digested = parts.iter().map(|(name, t)| {
        let tensor = &tensors[*name];
        (*name, tensor.dtype().name(), tensor.shape(), t.bytes.as_slice())
    });
    let sha256 = digest(graph, digested);
    let entry =
        json!({"version": FORMAT_VERSION, "sha256": sha256, "tensors": packed, "graph": graph});
    let entry = entry.to_string();
    let views = parts
        .iter()
        .map(|(name, t)| Ok((*name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>();
    let failed = |e| match e {
        SafeTensorError::IoError(source) => Error::Io { path: path.into(), source },
        other => Error::Format {
            path: path.into(),
            why: format!("cannot be written as safetensors: {other}"),
        },
    };
    let views = views.map_err(failed)?;
    let metadata = Some(HashMap::from([(ENTRY.to_owned(), entry)]));
    let io = |source| Error::Io { path: path.into(), source };
    write(path, io, |beside| {
        safetensors::serialize_to_file(views, metadata, beside).map_err(failed)
    })
}

/// Calls `fill` to write a temporary file, then renames it to `path`. If `path` is a symbolic link,
/// its target is replaced. An existing file keeps its permissions; a new one has the default ones.
fn write(
    path: &Path,
    io: impl Fn(std::io::Error) -> Error,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    let before = std::fs::metadata(path).ok();
    if before.as_ref().is_some_and(|target| !target.is_file()) {
        return Err(io(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file; only regular files are replaced",
        )));
    }
    let name =
        path.file_name().ok_or_else(|| io(std::io::Error::other("not the name of a file")))?;
    let mut beside = name.to_owned();
    // A unique name, also among threads and processes.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    beside.push(format!(".{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let beside = path.with_file_name(beside);
    let written = (|| {
        let made = std::fs::File::create(&beside).and_then(|file| file.metadata()).map_err(&io)?;
        fill(&beside)?;
        let permissions = before.map_or(made.permissions(), |target| target.permissions());
        std::fs::OpenOptions::new()
            .write(true)
            .open(&beside)
            .and_then(|file| file.sync_all())
            .map_err(&io)?;
        std::fs::set_permissions(&beside, permissions).map_err(&io)?;
        std::fs::rename(&beside, path).map_err(&io)
    })();
    if written.is_err() {
        // If removing fails too, report the first error.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Reads a network that [`save`] wrote: its graph as JSON text and its tensors by name. A file of
/// version 1 is converted to this version.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is truncated, damaged, not a
/// safetensors file, not a network of this crate, or of an unknown version.
pub fn load(path: impl AsRef<Path>) -> Result<(String, BTreeMap<String, Tensor>)> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::OutOfMemory => {
            let len = std::fs::metadata(path).map_or(u64::MAX, |file| file.len());
            Error::Memory { what: "the file", bytes: usize::try_from(len).unwrap_or(usize::MAX) }
        }
        _ => Error::Io { path: path.into(), source },
    })?;
    read_named(&bytes, path)
}

/// Like [`load`], from the bytes of a file.
///
/// # Errors
/// Like [`load`], without a path.
pub fn read(bytes: &[u8]) -> Result<(String, BTreeMap<String, Tensor>)> {
    read_named(bytes, Path::new(""))
}

fn read_named(bytes: &[u8], path: &Path) -> Result<(String, BTreeMap<String, Tensor>)> {
    parse(bytes).map_err(|wrong| match wrong {
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
            "not a network saved by fatnn-rs, or cut short ({why}); save it again with \
             fatnn_rs.save, or copy it again"
        )
    };
    let file =
        SafeTensors::deserialize(bytes).map_err(|e| not_ours(format!("as safetensors: {e}")))?;
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| not_ours(format!("as safetensors: {e}")))?;
    let entry = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(ENTRY))
        .ok_or_else(|| not_ours(format!("its metadata has no entry {ENTRY:?}")))?;
    let entry: Json = serde_json::from_str(entry)
        .map_err(|e| not_ours(format!("its entry {ENTRY:?} is not JSON: {e}")))?;
    let version = entry["version"]
        .as_u64()
        .filter(|version| [file_v1::VERSION, FORMAT_VERSION].contains(version));
    let Some(version) = version else {
        return Err(format!(
            "expected version {FORMAT_VERSION} of the format (or {}), got {}; load it with the \
             release of fatnn-rs that wrote it, or convert and save the model again",
            file_v1::VERSION,
            entry["version"]
        )
        .into());
    };
    let old = version == file_v1::VERSION;
    let damaged = || {
        "damaged: its content does not match its checksum; copy it again from its source, or \
         convert and save again"
            .to_owned()
    };
    let graph = entry["graph"].as_str().ok_or_else(damaged)?;
    let packed = if old { file_v1::packed(&entry) } else { packed(&entry) }.ok_or_else(damaged)?;
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
            let said = packed.get(*name);
            let shape = said.map_or(view.shape(), |(_, shape)| shape);
            let dtype = dtype_of(view.dtype(), said.map(|said| said.0))
                .ok_or_else(|| unknown(name, view.dtype()))?;
            Ok((
                *name,
                if old { file_v1::type_name(dtype) } else { dtype.name() },
                shape,
                view.data(),
            ))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let found = digest(graph, parts.into_iter());
    // Fuzzing skips this check, because random bytes never match a digest.
    if !cfg!(fuzzing) && entry["sha256"].as_str() != Some(found.as_str()) {
        return Err(damaged().into());
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let declared = packed.get(name).map_or(view.shape(), |(_, shape)| shape);
        check_shape(declared)
            .map_err(|e| format!("tensor {name:?}: {e}; convert and save the model again"))?;
        let shape = memory::copied(FILE, view.shape()).map_err(Wrong::Memory)?;
        let tensor = match (packed.get(name), view.dtype()) {
            (Some((TensorType::Codes(kind), shape)), Dtype::U8) => {
                let len = memory::product(shape.iter().copied()).ok_or_else(damaged)?;
                if TensorType::Codes(*kind).file_bytes(len) != view.data().len() {
                    return Err(damaged().into());
                }
                let mut codes = memory::filled(FILE, len, 0).map_err(Wrong::Memory)?;
                let decode = match kind {
                    WeightKind::Binary => signs::decode,
                    WeightKind::Ternary => trits::decode,
                    WeightKind::TwoBit => two_bit::decode,
                };
                decode(view.data(), &mut codes).map_err(|e| format!("tensor {name:?}: {e}"))?;
                Tensor::Codes(*kind, shape.clone(), codes)
            }
            (None, Dtype::F32) => Tensor::F32(shape, values(view.data(), f32::from_le_bytes)?),
            (None, Dtype::I32) => Tensor::I32(shape, values(view.data(), i32::from_le_bytes)?),
            (None, Dtype::I64) => Tensor::I64(shape, values(view.data(), i64::from_le_bytes)?),
            (None, Dtype::I8) => Tensor::I8(shape, values(view.data(), i8::from_le_bytes)?),
            (None, Dtype::BOOL) => Tensor::Bool(shape, values(view.data(), u8::from_le_bytes)?),
            (_, dtype) => return Err(unknown(name, dtype).into()),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    if let Some((missing, (dtype, _))) =
        packed.iter().find(|(name, _)| !tensors.contains_key(*name))
    {
        return Err(format!(
            "{} tensor {missing:?} is missing; convert and save the model again",
            dtype.name()
        )
        .into());
    }
    let graph = if old { file_v1::upgrade_graph(graph, &mut tensors)? } else { graph.to_owned() };
    Ok((graph, tensors))
}

fn unknown(name: &str, dtype: Dtype) -> String {
    format!(
        "tensor {name:?}: expected {}, got {dtype:?}; load it with the release of fatnn-rs that \
         wrote it, or convert and save the model again",
        TensorType::names(&TensorType::ALL)
    )
}

fn values<T, const N: usize>(bytes: &[u8], convert: fn([u8; N]) -> T) -> Result<Vec<T>, Wrong> {
    memory::collected(FILE, bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)))
        .map_err(Wrong::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;

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
