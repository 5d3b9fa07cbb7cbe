//! Padding of floats. Height and width are padded by any mode, channels by a constant only (as in
//! the parameter-free shortcut of CIFAR ResNets).

use std::sync::Arc;

use crate::engine::ops::elementwise::in_rows;
use crate::engine::value::{Cost, Dims, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::error::{Result, bad_value};

/// Number of elements added before and after.
pub(crate) type PadSides = [usize; 2];

/// Padding on each side must be below this limit.
const LIMIT: usize = 1 << 24;

/// PyTorch's padding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Constant,
    /// Mirrors the map without repeating the edge.
    Reflect,
    /// Repeats the edge.
    Replicate,
    /// Continues from the opposite side.
    Circular,
}

impl Mode {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "constant" => Mode::Constant,
            "reflect" => Mode::Reflect,
            "replicate" => Mode::Replicate,
            "circular" => Mode::Circular,
            _ => return None,
        })
    }

    /// The input index for output index `at`, or `None` for the constant. `size` is the input's
    /// size, `before` the padding before it; both were checked.
    fn source(self, at: usize, before: usize, size: usize) -> Option<usize> {
        match at.checked_sub(before) {
            Some(inside) if inside < size => Some(inside),
            inside => match (self, inside) {
                (Mode::Constant, _) => None,
                (Mode::Reflect, None) => Some(before - at),
                (Mode::Reflect, Some(at)) => (2 * size).checked_sub(at + 2),
                (Mode::Replicate, None) => Some(0),
                (Mode::Replicate, Some(_)) => Some(size - 1),
                (Mode::Circular, None) => (size + at).checked_sub(before),
                (Mode::Circular, Some(at)) => Some(at - size),
            },
        }
    }
}

/// Pads channels, height and width.
#[derive(Debug)]
pub(crate) struct Pad {
    pub mode: Mode,
    pub channels: PadSides,
    /// Padding of height and width.
    pub map: [PadSides; 2],
    pub value: f32,
}

impl Pad {
    /// Padding of values of rank `rank`, from the argument of `torch.nn.functional.pad`: a pair
    /// (before, after) for each dimension, the last dimension first.
    ///
    /// # Errors
    /// If `around` has an odd length, or the mode is unknown.
    pub fn new(
        around: &[i64],
        mode: &str,
        value: f32,
        rank: usize,
    ) -> std::result::Result<Self, String> {
        let mode = Mode::named(mode).ok_or_else(|| format!("unknown mode of padding {mode:?}"))?;
        if !around.len().is_multiple_of(2) {
            return Err("pad must have two numbers for every dimension".into());
        }
        let mut sides =
            around.chunks_exact(2).map(|pair| [pair[0].max(0) as usize, pair[1].max(0) as usize]);
        let mut map = [[0; 2]; 2];
        // Values of rank 3 and 4 have pixels: the last dimension is the width.
        for axis in (4usize.saturating_sub(rank)..2).rev() {
            map[axis] = sides.next().unwrap_or_default();
        }
        Ok(Pad { mode, channels: sides.next().unwrap_or_default(), map, value })
    }
}

impl Operation for Pad {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let from = inputs[0].dims;
        let all = [self.channels, self.map[0], self.map[1]];
        if all.as_flattened().iter().any(|n| *n >= LIMIT) {
            return bad_value(
                "padding",
                format!("less than {LIMIT} on each side"),
                format!("{all:?}"),
            );
        }
        let max_pad = |size: usize| match self.mode {
            Mode::Constant => LIMIT,
            // An empty map has no pixels to repeat.
            Mode::Reflect => size.saturating_sub(1),
            Mode::Replicate => {
                if size == 0 {
                    0
                } else {
                    LIMIT
                }
            }
            Mode::Circular => size,
        };
        if (0..2).any(|axis| self.map[axis].iter().any(|n| *n > max_pad(from.map[axis]))) {
            let expected = format!("sides that suit padding by {:?}", self.mode);
            return bad_value("padding", expected, format!("{:?} around {:?}", self.map, from.map));
        }
        let grown = |size: usize, [before, after]: PadSides| size.saturating_add(before + after);
        let map = [0, 1].map(|axis| grown(from.map[axis], self.map[axis]));
        let to = Dims { channels: grown(from.channels, self.channels), map, ..from };
        Ok((Value::float(to), Cost::of(&to, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (from, to) = (inputs[0].dims, self.measure(inputs)?.0.dims);
        Ok((Value::float(to), Box::new(PadStep { pad: self, from, to })))
    }
}

#[derive(Debug)]
struct PadStep {
    pad: Arc<Pad>,
    from: Dims,
    to: Dims,
}

impl ExecutableOp for PadStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (x, value) = (inputs[0].floats(), self.pad.value);
        let ([h, w], [out_h, out_w]) = (self.from.map, self.to.map);
        let (channels, [before, _]) = (self.from.channels, self.pad.channels);
        in_rows(out.floats(), self.to.channels, |first, out| {
            for (i, out) in out.chunks_exact_mut(self.to.channels).enumerate() {
                let (image, at) = ((first + i) / (out_h * out_w), (first + i) % (out_h * out_w));
                let y = self.pad.mode.source(at / out_w, self.pad.map[0][0], h);
                let x_at = self.pad.mode.source(at % out_w, self.pad.map[1][0], w);
                let (Some(y), Some(x_at)) = (y, x_at) else {
                    out.fill(value);
                    continue;
                };
                let from = ((image * h + y) * w + x_at) * channels;
                let (front, rest) = out.split_at_mut(before);
                let (middle, after) = rest.split_at_mut(channels);
                front.fill(value);
                middle.copy_from_slice(&x[from..from + channels]);
                after.fill(value);
            }
            Ok(())
        })
    }
}
