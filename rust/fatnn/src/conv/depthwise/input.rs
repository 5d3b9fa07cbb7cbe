//! Where a depthwise convolution's input comes from.

use crate::epilogue::Elementwise;
use crate::error::{Error, Result};
use crate::kernels::apply_all;
use crate::{memory, parallel};

/// Makes lines of a depthwise convolution's input when they are wanted.
pub(crate) trait Lines: Sync {
    /// Writes lines from number `first` of all images' on, as many as `out` has, all of one image.
    ///
    /// # Errors
    /// Whatever goes wrong; NaN is found by who reads the lines.
    fn lines(&self, first: usize, out: &mut [f32]) -> Result<()>;
}

/// The input of a depthwise convolution, channels last.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub lines: InputLines<'a>,
    /// Functions of its elements, before they are bounded.
    pub before: &'a [Elementwise],
}

#[derive(Clone, Copy)]
pub(crate) enum InputLines<'a> {
    /// All of them, in memory.
    Here(&'a [f32]),
    /// Of so many images, made on the way.
    Made(usize, &'a dyn Lines),
}

impl<'a> Input<'a> {
    /// All lines in memory, without functions.
    pub fn of(x: &'a [f32]) -> Self {
        Input { lines: InputLines::Here(x), before: &[] }
    }
}

impl Input<'_> {
    /// Whether its lines are in memory as they are read.
    pub(super) fn here(&self) -> bool {
        matches!(self.lines, InputLines::Here(_)) && self.before.is_empty()
    }

    /// Lines from number `first` on, after their functions.
    pub(super) fn make(
        &self,
        first: usize,
        line: usize,
        channels: usize,
        out: &mut [f32],
    ) -> Result<()> {
        match self.lines {
            InputLines::Here(x) => out.copy_from_slice(&x[first * line..][..out.len()]),
            InputLines::Made(_, lines) => {
                parallel::on_this_thread(|| lines.lines(first, out))?;
            }
        }
        apply_all(self.before, out, channels)
    }

    /// One line, as it is quantized.
    pub(super) fn line<'a>(
        &'a self,
        number: usize,
        line: usize,
        channels: usize,
        made: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        if let (InputLines::Here(x), true) = (self.lines, self.before.is_empty()) {
            return Ok(&x[number * line..][..line]);
        }
        memory::grow("lines of an input", made, line, 0.0)?;
        self.make(number, line, channels, &mut made[..line])?;
        Ok(&made[..line])
    }

    /// The first NaN of an input that has one in a row, whose first element has number `first`.
    pub(super) fn nan(&self, first: usize, row: &[f32]) -> Error {
        let found = |x: &[f32]| x.iter().position(|x| x.is_nan());
        let index = match self.lines {
            InputLines::Here(x) if self.before.is_empty() => found(x),
            _ => found(row).map(|at| first + at),
        };
        Error::NotANumber { what: "input", index: index.unwrap_or(0) }
    }
}
