//! Reads and writes float32, int32, int64 and bool arrays in NumPy's `.npy` format, C order.
//!
//! Without `npyz`: it would bring a dozen crates (`pest`, `num-bigint`), and the checks of shape,
//! order and element type, which are most of this file, would remain.

use std::io::Write;
use std::path::Path;

use fatnn::Error;
use fatnn::net::{Array, Input};

use crate::Failure;

const MAGIC: &[u8] = b"\x93NUMPY";

/// An array's shape and values.
pub(crate) struct NpyArray {
    shape: Vec<usize>,
    values: Values,
}

enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bool(Vec<u8>),
}

impl NpyArray {
    /// As a network takes it.
    pub(crate) fn array(&self) -> Array<'_> {
        let shape = self.shape.as_slice();
        match &self.values {
            Values::F32(data) => Input { shape, data, channels_last: false }.into(),
            Values::I32(data) => Array::I32(shape, data),
            Values::I64(data) => Array::I64(shape, data),
            Values::Bool(data) => Array::Bool(shape, data),
        }
    }
}

/// Reads an array.
pub(crate) fn read(path: &Path) -> Result<NpyArray, Failure> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    parse(&bytes).map_err(|why| format!("{}: {why}", path.display()).into())
}

fn parse(bytes: &[u8]) -> Result<NpyArray, String> {
    let (header, data) = split(bytes)
        .ok_or("expected an array in .npy format, got something else or a damaged file")?;
    let field = |name: &str| {
        let after = header.split_once(&format!("'{name}':")).map(|(_, after)| after.trim_start());
        after.ok_or_else(|| format!("the header of the .npy file has no {name:?}: {header}"))
    };
    let dtype = field("descr")?;
    let dtype = dtype.split_inclusive('\'').take(2).collect::<String>();
    let size = match dtype.as_str() {
        "'<f4'" | "'<i4'" => 4usize,
        "'<i8'" => 8,
        "'|b1'" => 1,
        got => {
            return Err(format!(
                "expected float32, little-endian ('<f4'), got {got}; save array.astype('<f4'), or \
                 int64 ('<i8'), int32 ('<i4') or bool ('|b1') if the network takes those"
            ));
        }
    };
    let shape = field("shape")?.strip_prefix('(').and_then(|shape| shape.split_once(')'));
    let (shape, _) =
        shape.ok_or_else(|| format!("the .npy file's header has an invalid shape: {header}"))?;
    let sizes =
        shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse::<usize>);
    let sizes = sizes
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("the shape ({shape}) is invalid: {e}"))?;
    if field("fortran_order")?.starts_with("True") && sizes.len() > 1 {
        return Err(
            "expected C order, got Fortran order; save numpy.ascontiguousarray(array)".into()
        );
    }
    let wanted = sizes.iter().try_fold(size, |n, &d| n.checked_mul(d));
    if wanted != Some(data.len()) {
        let got = data.len();
        return Err(format!(
            "the shape ({shape}) and the file's {got} bytes of values disagree; \
             save the array again"
        ));
    }
    let values = match dtype.as_str() {
        "'<i4'" => Values::I32(numbers(data, i32::from_le_bytes)),
        "'<i8'" => Values::I64(numbers(data, i64::from_le_bytes)),
        "'|b1'" => Values::Bool(data.to_vec()),
        _ => Values::F32(numbers(data, f32::from_le_bytes)),
    };
    Ok(NpyArray { shape: sizes, values })
}

fn numbers<T, const N: usize>(data: &[u8], convert: fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|x| convert(*x)).collect()
}

/// The header's text, and the data after it.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (version, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(2)?;
    let (length, rest) = match version[0] {
        1 => rest
            .split_first_chunk()
            .map(|(length, rest)| (u16::from_le_bytes(*length).into(), rest))?,
        2 | 3 => {
            rest.split_first_chunk().map(|(length, rest)| (u32::from_le_bytes(*length), rest))?
        }
        _ => return None,
    };
    let (header, data) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// Writes an array; replaces an existing file.
pub(crate) fn write(path: &Path, shape: &[usize], values: &[f32]) -> Result<(), Failure> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
    // Values start at a multiple of 64 bytes, after the header's newline.
    let start = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', start - MAGIC.len() - 4 - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len())?.to_le_bytes();
    let data = values.iter().flat_map(|x| x.to_le_bytes());
    let bytes: Vec<u8> = MAGIC
        .iter()
        .copied()
        .chain([1, 0])
        .chain(length)
        .chain(header.bytes())
        .chain(data)
        .collect();
    let io = |source| Error::Io { path: path.into(), source };
    std::fs::File::create(path).and_then(|mut file| file.write_all(&bytes)).map_err(io)?;
    Ok(())
}
