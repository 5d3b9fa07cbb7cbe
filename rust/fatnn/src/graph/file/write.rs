//! Writes network files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::{Dtype, SafeTensorError, TensorView};
use serde_json::json;

use super::{ENTRY, FILE, FORMAT_VERSION, digest};
use crate::codec::{signs, trits, two_bit};
use crate::dtype::WeightKind;
use crate::error::{Error, Result};
use crate::graph::tensor::Tensor;
use crate::memory;

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
        parts.insert(name.as_str(), encode(tensor).map_err(named)?);
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
    write_atomically(path, io, |temporary| {
        safetensors::serialize_to_file(views, metadata, temporary).map_err(failed)
    })
}

/// A tensor as safetensors stores it.
struct EncodedTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Encodes a tensor for the file.
fn encode(tensor: &Tensor) -> Result<EncodedTensor> {
    tensor.check()?;
    let (dtype, shape, bytes) = match tensor {
        Tensor::F32(shape, v) => (Dtype::F32, shape.clone(), encode_values(v, f32::to_le_bytes)?),
        Tensor::I32(shape, v) => (Dtype::I32, shape.clone(), encode_values(v, i32::to_le_bytes)?),
        Tensor::I64(shape, v) => (Dtype::I64, shape.clone(), encode_values(v, i64::to_le_bytes)?),
        Tensor::I8(shape, v) => (Dtype::I8, shape.clone(), encode_values(v, i8::to_le_bytes)?),
        Tensor::Bool(shape, v) => (Dtype::BOOL, shape.clone(), encode_values(v, u8::to_le_bytes)?),
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
    Ok(EncodedTensor { dtype, shape, bytes })
}

/// Encodes numbers as little-endian bytes.
fn encode_values<T: Copy, const N: usize>(
    values: &[T],
    convert: fn(T) -> [u8; N],
) -> Result<Vec<u8>> {
    let mut bytes = memory::reserved(FILE, values.len().saturating_mul(N))?;
    bytes.extend(values.iter().flat_map(|value| convert(*value)));
    Ok(bytes)
}

/// Calls `fill` to write a temporary file, then renames it to `path`. If `path` is a symbolic link,
/// its target is replaced. An existing file keeps its permissions; a new one has the default ones.
fn write_atomically(
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
    let mut temporary = name.to_owned();
    // The name is unique across threads and processes.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    temporary.push(format!(
        ".{}-{}.tmp",
        std::process::id(),
        WRITES.fetch_add(1, Ordering::Relaxed)
    ));
    let temporary = path.with_file_name(temporary);
    let written = (|| {
        let metadata =
            std::fs::File::create(&temporary).and_then(|file| file.metadata()).map_err(&io)?;
        fill(&temporary)?;
        let permissions = before.map_or(metadata.permissions(), |target| target.permissions());
        std::fs::OpenOptions::new()
            .write(true)
            .open(&temporary)
            .and_then(|file| file.sync_all())
            .map_err(&io)?;
        std::fs::set_permissions(&temporary, permissions).map_err(&io)?;
        std::fs::rename(&temporary, path).map_err(&io)
    })();
    if written.is_err() {
        // If removing fails too, report the first error.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
