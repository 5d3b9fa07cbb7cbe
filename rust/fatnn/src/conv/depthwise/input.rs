//! The input of a depthwise convolution: in memory, or computed line by line.

use crate::epilogue::Elementwise;
use crate::error::{Error, Result};
use crate::kernels::apply_all;
use crate::{memory, parallel};

/// Computes lines of a depthwise convolution's input on demand.
pub(crate) trait ComputeLines: Sync {
    /// Fills `out` with lines of one image. `first` is the number of the first line, over all
    /// images.
    ///
    /// # Errors
    /// If the lines cannot be computed. NaN is not an error here: the reader of the lines finds it.
    fn compute(&self, first: usize, out: &mut [f32]) -> Result<()>;
}

/// Computes lines of a depthwise convolution's input on demand, as bytes: the code plus 128. No
/// value is NaN.
pub(crate) trait ComputeBytes: Sync {
    /// As [`ComputeLines::compute`].
    ///
    /// # Errors
    /// If the lines cannot be computed.
    fn compute(&self, first: usize, out: &mut [u8]) -> Result<()>;
}

/// The input of a depthwise convolution, channels last.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub lines: InputLines<'a>,
    /// Functions of its elements, which run before they are clamped and quantized.
    pub before: &'a [Elementwise],
}

/// Where the lines of an input come from.
#[derive(Clone, Copy)]
pub(crate) enum InputLines<'a> {
    /// All lines of all images.
    InMemory(&'a [f32]),
    /// Lines that are computed when they are needed.
    Computed { images: usize, source: &'a dyn ComputeLines },
    /// The same, already quantized. Each output channel must have an input channel of its own.
    Bytes { images: usize, source: &'a dyn ComputeBytes },
}

impl<'a> Input<'a> {
    /// An input in memory, without functions.
    pub fn in_memory(x: &'a [f32]) -> Self {
        Input { lines: InputLines::InMemory(x), before: &[] }
    }
}

impl Input<'_> {
    /// Whether lines are in memory and need no function.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.lines, InputLines::InMemory(_)) && self.before.is_empty()
    }

    /// Whether its floats are not in memory, but made line by line.
    pub(super) fn makes_floats(&self) -> bool {
        !self.is_in_memory() && !matches!(self.lines, InputLines::Bytes { .. })
    }

    /// Copies or computes lines and applies the functions. `first` is the number of the first line,
    /// over all images.
    pub(super) fn read_lines(
        &self,
        first: usize,
        line: usize,
        channels: usize,
        out: &mut [f32],
    ) -> Result<()> {
        match self.lines {
            InputLines::InMemory(x) => out.copy_from_slice(&x[first * line..][..out.len()]),
            InputLines::Computed { source, .. } => {
                parallel::on_this_thread(|| source.compute(first, out))?;
            }
            InputLines::Bytes { .. } => unreachable!("such lines are never read as floats"),
        }
        apply_all(self.before, out, channels)
    }

    /// One line after the functions. `buffer` holds it unless it is in memory.
    pub(super) fn line<'a>(
        &'a self,
        number: usize,
        line: usize,
        channels: usize,
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        if let (InputLines::InMemory(x), true) = (self.lines, self.before.is_empty()) {
            return Ok(&x[number * line..][..line]);
        }
        memory::grow("lines of an input", buffer, line, 0.0)?;
        self.read_lines(number, line, channels, &mut buffer[..line])?;
        Ok(&buffer[..line])
    }

    /// The error for a NaN in `row`, whose first element is number `first` of the input.
    pub(super) fn nan(&self, first: usize, row: &[f32]) -> Error {
        let found = |x: &[f32]| x.iter().position(|x| x.is_nan());
        let index = match self.lines {
            InputLines::InMemory(x) if self.before.is_empty() => found(x),
            _ => found(row).map(|at| first + at),
        };
        Error::NotANumber { what: "input", index: index.unwrap_or(0) }
    }
}
