//! Reads network files.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::{ENTRY, FILE, FORMAT_VERSION, digest, version1};
use crate::codec::{signs, trits, two_bit};
use crate::dtype::{TensorType, WeightKind};
use crate::error::{Error, Result};
use crate::graph::tensor::{Tensor, check_shape};
use crate::memory;

/// Reads a network that [`save`](super::save) wrote: its graph as JSON text and its tensors by name. A file of
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
    parse_named(&bytes, path)
}

/// Like [`load`], from the bytes of a file.
///
/// # Errors
/// Like [`load`], without a path.
pub fn read(bytes: &[u8]) -> Result<(String, BTreeMap<String, Tensor>)> {
    parse_named(bytes, Path::new(""))
}

fn parse_named(bytes: &[u8], path: &Path) -> Result<(String, BTreeMap<String, Tensor>)> {
    parse(bytes).map_err(|error| match error {
        ReadError::Format(why) => Error::Format { path: path.into(), why },
        ReadError::Memory(error) => error,
    })
}

/// Why a file could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Format(String),
    /// [`Error::Memory`].
    Memory(Error),
}

impl From<String> for ReadError {
    fn from(why: String) -> Self {
        ReadError::Format(why)
    }
}

/// Packed tensors: name → type and shape.
pub(super) type Packed = BTreeMap<String, (TensorType, Vec<usize>)>;

/// The metadata's list of packed tensors.
fn packed_tensors(entry: &Json) -> Option<Packed> {
    let tensor = |(name, entry): (&String, &Json)| {
        let fields = entry.as_object().filter(|fields| fields.len() == 2)?;
        let dtype = TensorType::from_name(fields.get("dtype")?.as_str()?).ok()?;
        let shape = serde_json::from_value(fields.get("shape")?.clone()).ok()?;
        TensorType::CODES.contains(&dtype).then(|| (name.clone(), (dtype, shape)))
    };
    entry["tensors"].as_object()?.iter().map(tensor).collect()
}

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

/// Checks and decodes the bytes of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<(String, BTreeMap<String, Tensor>), ReadError> {
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
        .filter(|version| [version1::VERSION, FORMAT_VERSION].contains(version));
    let Some(version) = version else {
        return Err(format!(
            "expected version {FORMAT_VERSION} of the format (or {}), got {}; load it with the \
             release of fatnn-rs that wrote it, or convert and save the model again",
            version1::VERSION,
            entry["version"]
        )
        .into());
    };
    let is_version_1 = version == version1::VERSION;
    let damaged = || {
        "damaged: its content does not match its checksum; copy it again from its source, or \
         convert and save again"
            .to_owned()
    };
    let graph = entry["graph"].as_str().ok_or_else(damaged)?;
    let packed =
        if is_version_1 { version1::packed_tensors(&entry) } else { packed_tensors(&entry) }
            .ok_or_else(damaged)?;
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
            let declared = packed.get(*name);
            let shape = declared.map_or(view.shape(), |(_, shape)| shape);
            let dtype = dtype_of(view.dtype(), declared.map(|(dtype, _)| *dtype))
                .ok_or_else(|| unsupported_type(name, view.dtype()))?;
            Ok((
                *name,
                if is_version_1 { version1::type_name(dtype) } else { dtype.name() },
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
        let shape = memory::copied(FILE, view.shape()).map_err(ReadError::Memory)?;
        let tensor = match (packed.get(name), view.dtype()) {
            (Some((TensorType::Codes(kind), shape)), Dtype::U8) => {
                let len = memory::product(shape.iter().copied()).ok_or_else(damaged)?;
                if TensorType::Codes(*kind).file_bytes(len) != view.data().len() {
                    return Err(damaged().into());
                }
                let mut codes = memory::filled(FILE, len, 0).map_err(ReadError::Memory)?;
                let decode = match kind {
                    WeightKind::Binary => signs::decode,
                    WeightKind::Ternary => trits::decode,
                    WeightKind::TwoBit => two_bit::decode,
                };
                decode(view.data(), &mut codes).map_err(|e| format!("tensor {name:?}: {e}"))?;
                Tensor::Codes(*kind, shape.clone(), codes)
            }
            (None, Dtype::F32) => {
                Tensor::F32(shape, decode_values(view.data(), f32::from_le_bytes)?)
            }
            (None, Dtype::I32) => {
                Tensor::I32(shape, decode_values(view.data(), i32::from_le_bytes)?)
            }
            (None, Dtype::I64) => {
                Tensor::I64(shape, decode_values(view.data(), i64::from_le_bytes)?)
            }
            (None, Dtype::I8) => Tensor::I8(shape, decode_values(view.data(), i8::from_le_bytes)?),
            (None, Dtype::BOOL) => {
                Tensor::Bool(shape, decode_values(view.data(), u8::from_le_bytes)?)
            }
            (_, dtype) => return Err(unsupported_type(name, dtype).into()),
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
    let graph =
        if is_version_1 { version1::upgrade_graph(graph, &mut tensors)? } else { graph.to_owned() };
    Ok((graph, tensors))
}

fn unsupported_type(name: &str, dtype: Dtype) -> String {
    format!(
        "tensor {name:?}: expected {}, got {dtype:?}; load it with the release of fatnn-rs that \
         wrote it, or convert and save the model again",
        TensorType::names(&TensorType::ALL)
    )
}

/// Decodes little-endian numbers.
fn decode_values<T, const N: usize>(
    bytes: &[u8],
    convert: fn([u8; N]) -> T,
) -> Result<Vec<T>, ReadError> {
    memory::collected(FILE, bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)))
        .map_err(ReadError::Memory)
}
