//! Reads and writes float32 arrays in NumPy's `.npy` format, C order.
//!
//! Without `npyz`: it would bring a dozen crates (`pest`, `num-bigint`), and the checks of shape,
//! order and element type, which are most of this file, would remain.

use std::io::Write;
use std::path::Path;

use fatnn::Error;

use crate::Failure;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Returns shape and values.
pub(crate) fn read(path: &Path) -> Result<(Vec<usize>, Vec<f32>), Failure> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    parse(&bytes).map_err(|why| format!("{}: {why}", path.display()).into())
}

fn parse(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>), String> {
    let (header, data) = split(bytes)
        .ok_or("expected an array in .npy format, got something else or a damaged file")?;
    let field = |name: &str| {
        let after = header.split_once(&format!("'{name}':")).map(|(_, after)| after.trim_start());
        after.ok_or_else(|| format!("the header of the .npy file has no {name:?}: {header}"))
    };
    let dtype = field("descr")?;
    if !dtype.starts_with("'<f4'") {
        let got = dtype.split_inclusive('\'').take(2).collect::<String>();
        return Err(format!(
            "expected float32, little-endian ('<f4'), got {got}; save array.astype('<f4')"
        ));
    }
    let shape = field("shape")?.strip_prefix('(').and_then(|shape| shape.split_once(')'));
    let (shape, _) = shape
        .ok_or_else(|| format!("the shape in the .npy file's header means nothing: {header}"))?;
    let sizes =
        shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse::<usize>);
    let sizes = sizes
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("the shape ({shape}) means nothing: {e}"))?;
    if field("fortran_order")?.starts_with("True") && sizes.len() > 1 {
        return Err(
            "expected C order, got Fortran order; save numpy.ascontiguousarray(array)".into()
        );
    }
    let wanted = sizes.iter().try_fold(4usize, |n, &d| n.checked_mul(d));
    if wanted != Some(data.len()) {
        let got = data.len();
        return Err(format!(
            "the shape ({shape}) and the file's {got} bytes of values disagree; \
             save the array again"
        ));
    }
    let (values, _) = data.as_chunks();
    Ok((sizes, values.iter().map(|x| f32::from_le_bytes(*x)).collect()))
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
