//! The addresses of a convolution of codes, and how it runs on each type of kernel.

use super::ConvShape;
use super::packed_input::{self, Input, Job, PackedInputPlan};
use super::tiled::{self, OutputChunk, Rows, Sink, Windows};
use crate::codec::{Act, CodesLayout};
use crate::error::{Result, bad_value, check_len};
use crate::kernels::{Inner, PackedInputKernel, UNIT_BYTES};
use crate::memory;
use crate::pack::PackedWeights;

/// The byte that fills a pixel of zeros. Level 0 has no bit set; code 0 of the full range has both.
fn zero_planes(act: Act) -> u8 {
    match act {
        Act::Full => 0xFF,
        Act::Half | Act::Uint2 | Act::Binary => 0x00,
    }
}

/// The addresses of a convolution, computed once per shape.
#[derive(Debug)]
pub(crate) struct Geometry {
    shape: ConvShape,
    pub(super) layout: CodesLayout,
    /// Byte that fills the padding.
    zero: u8,
    /// Height and width with padding.
    padded: [usize; 2],
    /// Bytes of the padded input; 0 if there is no padding.
    pub padded_bytes: usize,
    /// Output height and width.
    pub output: [usize; 2],
    /// Byte offsets of a window's units, ordered by tap, then by unit.
    offsets: Vec<usize>,
    /// For kernels with an input layout of their own.
    plan: Option<PackedInputPlan>,
}

/// Sizes of a convolution, computed before any allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Output height and width.
    pub output: [usize; 2],
    /// Height and width with padding.
    padded: [usize; 2],
    /// As [`Geometry::padded_bytes`].
    pub padded_bytes: usize,
    /// Bytes of the tables of addresses, and of one thread's packed input.
    pub table_bytes: u128,
}

impl Geometry {
    /// Computes the sizes, and checks that the shape fits the weights.
    pub fn sizes(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Sizes> {
        let w = weights.shape();
        let layout = weights.codes_layout()?;
        if w.kernel != shape.kernel {
            return bad_value(
                "kernel",
                format!("{:?}, as the weights were packed", w.kernel),
                format!("{:?}", shape.kernel),
            );
        }
        let output = shape.output()?;
        let pixel = layout.pixel_bytes();
        let padded = [shape.input[0] + 2 * shape.padding[0], shape.input[1] + 2 * shape.padding[1]];
        let bytes = shape.size("padded input", padded, pixel)?;
        let taps = shape.kernel[0].saturating_mul(shape.kernel[1]);
        let (padded_bytes, table_bytes) = match weights.inner() {
            Inner::Tiled(_) | Inner::Columns(_) | Inner::Depthwise(_) => {
                let units = layout.group_bytes() / UNIT_BYTES;
                (if shape.padding == [0, 0] { 0 } else { bytes }, taps as u128 * units as u128 * 8)
            }
            Inner::PackedInput(packed) => {
                let unit_bytes = layout.group_units().saturating_mul(packed.unit_bytes());
                let Some(packed_bytes) =
                    PackedInputPlan::packed_bytes(shape, output[1], unit_bytes)
                else {
                    let got =
                        format!("dilation {:?} of a kernel of {:?}", shape.dilation, shape.kernel);
                    return bad_value(
                        "convolution",
                        "a window whose part of the input fits in memory",
                        got,
                    );
                };
                (
                    0,
                    PackedInputPlan::bytes(shape)
                        + taps as u128 * layout.group_units() as u128 * 8
                        + packed_bytes as u128,
                )
            }
        };
        Ok(Sizes { output, padded, padded_bytes, table_bytes })
    }

    pub fn new(weights: &PackedWeights<'_>, shape: &ConvShape) -> Result<Self> {
        let Sizes { output, padded, padded_bytes, .. } = Self::sizes(weights, shape)?;
        let layout = weights.codes_layout()?;
        let pixel = layout.pixel_bytes();
        let plan = match weights.inner() {
            Inner::Tiled(_) | Inner::Columns(_) | Inner::Depthwise(_) => None,
            Inner::PackedInput(_) => Some(PackedInputPlan::new(shape)?),
        };
        let taps = shape.kernel[0] * shape.kernel[1];
        // The plan of a packed input has offsets of its own.
        let units = if plan.is_some() { 0 } else { layout.group_bytes() / UNIT_BYTES };
        let mut offsets =
            memory::reserved("addresses of a convolution", taps.saturating_mul(units))?;
        for (y, x) in (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| (y, x))) {
            let tap = (y * shape.dilation[0] * padded[1] + x * shape.dilation[1]) * pixel;
            offsets.extend((0..units).map(|unit| tap + unit * UNIT_BYTES));
        }
        Ok(Geometry {
            shape: *shape,
            layout,
            zero: zero_planes(weights.code_operands()?.act),
            padded,
            padded_bytes,
            output,
            offsets,
            plan,
        })
    }

    /// Runs the convolution. `padded` is working memory of at least `padded_bytes` bytes with
    /// unspecified contents. `codes_out` receives the codes if the sink writes codes as well as its
    /// output; else it is empty.
    pub fn run<S: Sink>(
        &self,
        codes: &[u8],
        weights: &PackedWeights<'_>,
        sink: &S,
        padded: &mut [u8],
        out: &mut [S::Elem],
        codes_out: &mut [u8],
    ) -> Result<()> {
        self.check(codes, sink, out, codes_out)?;
        if out.is_empty() {
            return Ok(());
        }
        let chunk = OutputChunk { out, codes_out };
        let (shape, pixel) = (&self.shape, self.layout.pixel_bytes());
        let tiled = match weights.inner() {
            Inner::Tiled(tiled) => tiled,
            Inner::Columns(_) | Inner::Depthwise(_) => return weights.code_operands().map(|_| ()),
            Inner::PackedInput(kernel) => {
                return packed_input::run([self.job(kernel, codes, weights, sink)], chunk);
            }
        };
        let codes = if self.padded_bytes == 0 {
            codes
        } else {
            let padded = &mut padded[..self.padded_bytes];
            self.copy_padded(codes, padded);
            padded
        };
        let [height, width] = self.padded;
        let [out_h, out_w] = self.output;
        let [stride_y, stride_x] = shape.stride;
        let windows = Windows {
            output: [out_h, out_w],
            image: height * width * pixel,
            line: stride_y * width * pixel,
            pixel: stride_x * pixel,
        };
        let (offsets, group_bytes) = (self.offsets.as_slice(), self.layout.group_bytes());
        let rows = Rows { codes, windows, offsets, group_bytes };
        tiled::run(tiled, weights, &rows, sink, chunk)
    }

    /// Whether [`Geometry::run_sum`] computes both convolutions of a part of the output before it
    /// goes on to the next part.
    pub fn sums_by_parts(weights: [&PackedWeights<'_>; 2]) -> bool {
        Self::packed_input_kernels(weights).is_some()
    }

    /// The kernels, if both convolutions have the same one with an input layout of its own.
    fn packed_input_kernels<'a>(
        weights: [&'a PackedWeights<'_>; 2],
    ) -> Option<[&'a (dyn PackedInputKernel + Sync); 2]> {
        match weights.map(PackedWeights::inner) {
            [Inner::PackedInput(a), Inner::PackedInput(b)]
                if weights[0].kernel().name() == weights[1].kernel().name() =>
            {
                Some([a, b])
            }
            _ => None,
        }
    }

    /// Runs two convolutions into the same output; the second sink adds to the first one's results.
    /// The result is the same as one after the other, but with packed-input kernels the first
    /// results stay in cache. `codes`, `weights` and `sinks` hold one entry
    /// per convolution. `padded` and `codes_out` are as in [`Geometry::run`]; both use them.
    pub fn run_sum<S: Sink>(
        [first, second]: [&Geometry; 2],
        codes: [&[u8]; 2],
        weights: [&PackedWeights<'_>; 2],
        sinks: [&S; 2],
        padded: &mut [u8],
        out: &mut [S::Elem],
        codes_out: &mut [u8],
    ) -> Result<()> {
        if let Some([a, b]) = Self::packed_input_kernels(weights) {
            first.check(codes[0], sinks[0], out, &[])?;
            second.check(codes[1], sinks[1], out, codes_out)?;
            if out.is_empty() {
                return Ok(());
            }
            let jobs = [
                first.job(a, codes[0], weights[0], sinks[0]),
                second.job(b, codes[1], weights[1], sinks[1]),
            ];
            return packed_input::run(jobs, OutputChunk { out, codes_out });
        }
        first.run(codes[0], weights[0], sinks[0], padded, out, &mut [])?;
        second.run(codes[1], weights[1], sinks[1], padded, out, codes_out)
    }

    pub(super) fn check<S: Sink>(
        &self,
        codes: &[u8],
        sink: &S,
        out: &[S::Elem],
        codes_out: &[u8],
    ) -> Result<()> {
        let (shape, pixel) = (&self.shape, self.layout.pixel_bytes());
        check_len("packed codes", shape.size("input", shape.input, pixel)?, codes.len())?;
        check_len("output", shape.size("output", self.output, sink.row_len())?, out.len())?;
        check_len(
            "codes next to the output",
            shape.size("output", self.output, sink.codes_len())?,
            codes_out.len(),
        )
    }

    fn job<'a, S>(
        &'a self,
        kernel: &'a (dyn PackedInputKernel + Sync),
        codes: &'a [u8],
        weights: &'a PackedWeights<'a>,
        sink: &'a S,
    ) -> Job<'a, S> {
        let plan = self.plan.as_ref().expect("a geometry only runs the weights it was made for");
        let input =
            Input { codes, layout: self.layout, shape: self.shape, plan, output: self.output };
        Job { kernel, weights, input, sink }
    }

    /// Copies the codes into an image whose padding is zero-codes.
    fn copy_padded(&self, codes: &[u8], padded: &mut [u8]) {
        let [h, w] = self.shape.input;
        let [pad_y, pad_x] = self.shape.padding;
        let pixel = self.layout.pixel_bytes();
        let [height, width] = self.padded;
        padded.fill(self.zero);
        if h > 0 && w > 0 {
            let images = codes.chunks_exact(h * w * pixel);
            for (padded, image) in padded.chunks_exact_mut(height * width * pixel).zip(images) {
                for (y, row) in image.chunks_exact(w * pixel).enumerate() {
                    let at = ((y + pad_y) * width + pad_x) * pixel;
                    padded[at..at + row.len()].copy_from_slice(row);
                }
            }
        }
    }
}
