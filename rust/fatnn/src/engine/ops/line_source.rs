//! Convolutions that compute the input of a depthwise convolution, a few lines at a time.

use std::sync::Arc;

use super::conv::TernaryConv;
use super::int8::{Int8Conv, Int8Step};
use crate::conv::depthwise::{ComputeBytes, ComputeLines};
use crate::conv::int8_sink::Int8Sink;
use crate::conv::tiled::{FloatSink, Sink};
use crate::conv::{self, columns};
use crate::engine::value::{Cost, Dims, Value};
use crate::error::Result;
use crate::kernels::translate::translate;
use crate::memory;
use crate::pack::PackedWeights;

/// A convolution whose floats only a depthwise convolution reads.
#[derive(Debug)]
pub(crate) struct Source {
    /// Name of the source's node.
    pub name: String,
    /// Name used in error messages.
    pub label: String,
    pub conv: SourceConv,
}

#[derive(Debug)]
pub(crate) enum SourceConv {
    /// A ternary 1×1 convolution.
    Ternary(Arc<TernaryConv>),
    /// An int8 convolution without pooling.
    Int8(Arc<Int8Conv>),
}

impl Source {
    /// Dimensions of its floats, and its cost.
    pub fn sizes(&self, dims: &Dims) -> Result<(Dims, Cost)> {
        let sizes = match &self.conv {
            SourceConv::Ternary(conv) => conv.sizes(dims),
            SourceConv::Int8(conv) => conv.sizes(dims),
        };
        sizes.map_err(|error| error.in_node(&self.label))
    }

    pub fn products(&self) -> Vec<(&str, &'static str, usize)> {
        let weights = match &self.conv {
            SourceConv::Ternary(conv) => &conv.weights,
            SourceConv::Int8(conv) => &conv.weights,
        };
        vec![(&self.name, weights.kernel().name(), weights.as_bytes().len())]
    }

    /// Prepares strips of up to `lines` lines. `output` are the dimensions of its floats.
    pub(super) fn plan(&self, input: &Value, output: &Dims, lines: usize) -> Result<SourceStep> {
        match &self.conv {
            SourceConv::Int8(conv) => {
                Int8Step::new(conv.clone(), input.dims).map(|step| SourceStep::Int8(Box::new(step)))
            }
            SourceConv::Ternary(conv) => {
                let mut strips = Vec::new();
                memory::reserve("parts of a convolution", &mut strips, lines)?;
                for count in 1..=lines {
                    let dims = Dims { images: 1, map: [count, output.map[1]], ..input.dims };
                    strips.push(conv.geometry(&dims)?);
                }
                Ok(SourceStep::Ternary(conv.clone(), strips))
            }
        }
    }
}

/// A planned [`Source`].
#[derive(Debug)]
pub(super) enum SourceStep {
    /// The convolution, and its geometry for strips of one line, two lines and so on.
    Ternary(Arc<TernaryConv>, Vec<conv::Geometry>),
    Int8(Box<Int8Step>),
}

/// Sizes of a line of a ternary source.
#[derive(Clone, Copy)]
pub(super) struct LineSizes {
    /// Bytes of an input line of codes.
    pub bytes: usize,
    /// Values of an output line.
    pub values: usize,
}

/// Computes lines with a ternary source.
pub(super) struct TernaryLines<'a, S> {
    pub weights: &'a PackedWeights<'static>,
    pub strips: &'a [conv::Geometry],
    pub sink: S,
    pub codes: &'a [u8],
    pub line: LineSizes,
    /// A table that replaces the bytes of its output.
    pub table: Option<&'a [u8; 256]>,
}

impl<S: Sink> TernaryLines<'_, S> {
    fn run(&self, first: usize, out: &mut [S::Elem]) -> Result<()> {
        let Some(count) = out.len().checked_div(self.line.values).filter(|count| *count > 0) else {
            return Ok(());
        };
        let codes = &self.codes[first * self.line.bytes..][..count * self.line.bytes];
        self.strips[count - 1].run(codes, self.weights, &self.sink, &mut [], out, &mut [])
    }
}

impl ComputeLines for TernaryLines<'_, FloatSink<'_>> {
    fn compute(&self, first: usize, out: &mut [f32]) -> Result<()> {
        self.run(first, out)
    }
}

impl ComputeBytes for TernaryLines<'_, Int8Sink<'_>> {
    fn compute(&self, first: usize, out: &mut [u8]) -> Result<()> {
        self.run(first, out)?;
        self.table.map_or(Ok(()), |table| translate(out, table))
    }
}

/// Computes lines with an int8 source.
pub(super) struct Int8Lines<'a> {
    pub geometry: &'a columns::Geometry,
    pub layer: columns::Layer<'a>,
    /// What [`columns::Geometry::quantize`] returned.
    pub image: &'a [u8],
}

impl ComputeLines for Int8Lines<'_> {
    fn compute(&self, first: usize, out: &mut [f32]) -> Result<()> {
        self.geometry.lines(self.image, &self.layer, first, out)
    }
}
