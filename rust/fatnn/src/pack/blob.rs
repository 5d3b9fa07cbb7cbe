//! The bytes of packed weights: a header of 64 bytes, then panels. Reading checks the header.

use std::sync::Arc;

use super::WeightShape;
use crate::codec::Act;
use crate::dtype::WeightType;
use crate::error::{Error, Result};
use crate::kernels::{CacheLine, OperandTypes, Operands};
use crate::memory;

/// Bytes of the header.
pub(super) const HEADER: usize = 64;
/// Index of the header's checksum word; it covers the words before it.
const CHECKSUM: usize = HEADER / 4 - 1;
const MAGIC: u32 = u32::from_le_bytes(*b"ftnw");
/// Version of the header.
const VERSION: u32 = 2;

/// FNV-1a over the header's words before the checksum. It detects every change of one word.
fn checksum(header: &[u32; HEADER / 4]) -> u32 {
    header[..CHECKSUM]
        .iter()
        .fold(0x811c_9dc5, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193))
}

/// The error for a blob that cannot be used.
pub(super) fn damaged(why: &str) -> Error {
    Error::Packed { why: why.into() }
}

/// The content of a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Identifies the layout among kernels for the same operands.
    pub layout: u32,
    /// [`Header::read`] does not check it.
    pub shape: WeightShape,
    pub operands: OperandTypes,
}

/// Header numbers of int8 activations; those below are indices into [`Act::ALL`].
const INT8_ACT: usize = Act::ALL.len();
const DEPTHWISE_ACT: usize = INT8_ACT + 1;

impl Header {
    fn words(&self) -> [u32; HEADER / 4] {
        let s = self.shape;
        let number = |at: Option<usize>| at.unwrap_or(usize::MAX) as u32;
        let act = match self.operands {
            OperandTypes::Codes(Operands { act, .. }) => Act::ALL.iter().position(|a| *a == act),
            OperandTypes::Int8 => Some(INT8_ACT),
            OperandTypes::Int8Depthwise => Some(DEPTHWISE_ACT),
        };
        let weights =
            WeightType::ALL.iter().position(|weights| *weights == self.operands.weights());
        let mut header = [0; HEADER / 4];
        header[..10].copy_from_slice(&[
            MAGIC,
            VERSION,
            self.layout,
            s.out_channels as u32,
            s.channels as u32,
            s.kernel[0] as u32,
            s.kernel[1] as u32,
            s.groups as u32,
            number(act),
            number(weights),
        ]);
        header[CHECKSUM] = checksum(&header);
        header
    }

    pub fn read(bytes: &[u8]) -> Result<Self> {
        let (words, _) = bytes
            .get(..HEADER)
            .ok_or_else(|| damaged("they are too short to hold a header"))?
            .as_chunks();
        let header: [u32; HEADER / 4] = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        let [magic, version, layout, out_channels, channels, kh, kw, groups, act, weights, ..] =
            header;
        if magic != MAGIC {
            return Err(damaged("they do not begin with the mark of packed weights"));
        }
        if version != VERSION {
            return Err(damaged(&format!(
                "expected version {VERSION} of their header, got {version}"
            )));
        }
        let (act, weights) = (act as usize, WeightType::ALL.get(weights as usize).copied());
        let operands = match (Act::ALL.get(act), weights) {
            (Some(&act), Some(weights)) => {
                weights.codes().map(|weights| Operands { act, weights }.into())
            }
            (None, Some(WeightType::Int8)) if act == INT8_ACT => Some(OperandTypes::Int8),
            (None, Some(WeightType::Int8)) if act == DEPTHWISE_ACT => {
                Some(OperandTypes::Int8Depthwise)
            }
            _ => None,
        };
        let (Some(operands), true) = (operands, header[CHECKSUM] == checksum(&header)) else {
            return Err(damaged("their header is damaged"));
        };
        let shape = WeightShape {
            out_channels: out_channels as usize,
            channels: channels as usize,
            kernel: [kh as usize, kw as usize],
            groups: groups as usize,
        };
        Ok(Header { layout, shape, operands })
    }
}

/// The bytes of packed weights.
#[derive(Clone, Debug)]
pub(super) enum Blob<'a> {
    Borrowed(&'a [u8]),
    /// Cache lines, and the number of bytes used. Vectors that straddle cache lines cost up to an
    /// eighth more.
    Owned(Arc<Vec<CacheLine>>, usize),
}

impl Blob<'static> {
    /// A blob of `len` bytes. `fill` gets all of them: the header, then zeros for it to fill.
    pub fn new(
        header: &Header,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut lines = memory::filled(
            "packed weights",
            len.div_ceil(size_of::<CacheLine>()),
            CacheLine::ZERO,
        )?;
        let bytes = &mut CacheLine::bytes_mut(&mut lines)[..len];
        for (slot, value) in bytes[..HEADER].chunks_exact_mut(4).zip(header.words()) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        fill(bytes)?;
        Ok(Blob::Owned(Arc::new(lines), len))
    }
}

impl<'a> Blob<'a> {
    /// Borrows a blob, which must have `expected` bytes.
    pub fn borrow(bytes: &'a [u8], expected: usize) -> Result<Self> {
        match bytes.len() {
            got if got == expected => Ok(Blob::Borrowed(bytes)),
            got => Err(damaged(&format!("expected {expected} bytes, got {got}"))),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Blob::Borrowed(bytes) => bytes,
            Blob::Owned(lines, len) => &CacheLine::bytes(lines)[..*len],
        }
    }
}
