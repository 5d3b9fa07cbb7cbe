//! The products of one or two output lines, panel by panel.

use super::{Geometry, Layer, SumThresholds};
use crate::codec::CodesLayout;
use crate::kernels::depthwise::{Finish, Product, Rows};

/// The rows under output lines, and memory for the columns of one panel.
pub(super) struct LineInput<'a> {
    /// The ring of quantized rows, then a row of zeros.
    pub rows: &'a [u8],
    /// Byte offset in `rows` of each row of a column.
    pub offsets: &'a [usize],
    /// Columns, with padding already in place.
    pub columns: &'a mut [u8],
    /// Columns that are not padding.
    pub real_columns: usize,
}

/// Whole output lines.
pub(super) enum LineOutput<'a> {
    Floats(&'a mut [f32]),
    /// Packed codes, which are zero before.
    Codes(&'a mut [u8], CodesLayout, &'a SumThresholds),
}

impl Geometry {
    /// Computes `count` output lines.
    pub(super) fn multiply_lines(
        &self,
        layer: &Layer<'_>,
        input: LineInput<'_>,
        count: usize,
        mut out: LineOutput<'_>,
    ) {
        let layout = self.kernel.layout();
        let (column, block) =
            (self.steps * layout.step_bytes(), layout.block * layout.element.bytes());
        let pixel_pitch = match &out {
            LineOutput::Floats(_) => self.channels * size_of::<f32>(),
            LineOutput::Codes(_, layout, _) => layout.pixel_bytes(),
        };
        for panel in layer.weights.panels(0) {
            let source = Rows {
                bytes: &input.rows[panel.index * block..],
                offsets: input.offsets,
                count: input.real_columns,
                pitch: layout.pixel_bytes(self.channels),
                channels: panel.channels,
            };
            self.kernel.interleave(&source, &mut input.columns[self.left * column..]);
            let constants = layer.constants;
            let affine = constants.affine.as_ref();
            let product = Product {
                columns: input.columns,
                panel: layer.weights.panel(0, panel.index),
                kernel: self.shape.kernel,
                stride: self.shape.stride[1],
                dilation: self.shape.dilation[1],
                lines: count,
                shift: self.shape.stride[0],
                width: self.output[1],
                pixel_pitch,
                line_pitch: self.output[1] * pixel_pitch,
                finish: Finish {
                    scale: constants.scale.of(&panel),
                    bias: constants.bias.of(&panel),
                    affine: affine.map(|(scale, bias)| (scale.of(&panel), bias.of(&panel))),
                    clamp: layer.clamp,
                    channels: panel.channels,
                },
            };
            match &mut out {
                LineOutput::Floats(out) => {
                    self.kernel.multiply(&product, &mut out[panel.first..]);
                }
                LineOutput::Codes(out, layout, to) => {
                    let out = &mut out[layout.channel_byte(panel.first)..];
                    self.kernel.multiply_to_codes(&product, &to.of(&panel), out);
                }
            }
        }
    }
}
