//! Operations that read or write codes: thin wrappers of [`crate::quantize`], [`crate::conv`] and
//! [`crate::pool`].

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::CodesLayout;
use crate::conv::tiled::FloatSink;
use crate::conv::{ConvShape, Geometry, check_thresholds};
use crate::engine::value::{Cost, Dims, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{Dequantize, Elementwise, Quantizer, Requantize, Residual, check_channels};
use crate::error::{Error, Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::kernels::{BLOCK_PIXELS, apply_all};
use crate::memory;
use crate::pack::PackedWeights;
use crate::parallel;
use crate::pool::pool_checked;
use crate::quantize::{PixelOrder, quantize};

/// Quantizes floats to codes.
#[derive(Debug)]
pub(crate) struct Quantize {
    pub thresholds: Vec<f32>,
    pub layout: CodesLayout,
    /// Elementwise functions of its input, which run before the quantizer.
    pub before: Vec<Elementwise>,
}

impl Operation for Quantize {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = inputs[0].dims;
        check_len("channels", self.layout.channels(), dims.channels)?;
        check_channels(&self.before, dims.channels)?;
        let mut cost = Cost::of(&dims, 1 + self.before.len());
        if !self.before.is_empty() {
            cost.bytes = chunk_pixels(dims.channels) as u128 * dims.channels as u128 * 4;
        }
        Ok((Value::codes(dims, self.layout), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let dims = inputs[0].dims;
        Ok((Value::codes(dims, self.layout), Box::new(QuantizeStep { quantize: self, dims })))
    }
}

#[derive(Debug)]
struct QuantizeStep {
    quantize: Arc<Quantize>,
    dims: Dims,
}

/// Pixels that functions and quantizer process together: their floats stay in the first-level
/// cache.
fn chunk_pixels(channels: usize) -> usize {
    (4096 / channels.max(1)).next_multiple_of(BLOCK_PIXELS).max(BLOCK_PIXELS)
}

thread_local! {
    /// Floats of one chunk. The buffer is kept between calls, so only the first run allocates.
    static CHUNK: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl QuantizeStep {
    /// Applies the functions and the quantizer to pixels. `first` is the number of the first pixel.
    fn pixels(&self, x: &[f32], first: usize, out: &mut [u8]) -> Result<()> {
        let (q, channels) = (&*self.quantize, self.dims.channels);
        let (pixels, bytes) = (chunk_pixels(channels), q.layout.pixel_bytes());
        let mut at = first * channels;
        CHUNK.with_borrow_mut(|floats| {
            for out in out.chunks_mut(pixels * bytes) {
                let pixels = out.len() / bytes;
                memory::grow("pixels of a quantizer", floats, pixels * channels, 0.0)?;
                let floats = &mut floats[..pixels * channels];
                floats.copy_from_slice(&x[at..at + floats.len()]);
                apply_all(&q.before, floats, channels)?;
                let order = PixelOrder::ChannelsLast;
                let quantize = || quantize(floats, 1, pixels, order, &q.thresholds, q.layout, out);
                // Stay on this thread: the buffer is borrowed from its thread-local storage.
                parallel::on_this_thread(quantize).map_err(|error| error.counted_from(at))?;
                at += floats.len();
            }
            Ok(())
        })
    }
}

impl ExecutableOp for QuantizeStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (q, x) = (&self.quantize, inputs[0].floats());
        if !q.before.is_empty() {
            let cost = x.len().saturating_mul(32 + 16 * q.before.len());
            let bytes = q.layout.pixel_bytes();
            return parallel::try_for_each_rows(
                out.codes(),
                bytes,
                chunk_pixels(self.dims.channels),
                cost,
                |first, out| self.pixels(x, first, out),
            );
        }
        let pixels = self.dims.map[0] * self.dims.map[1];
        let order = PixelOrder::ChannelsLast;
        quantize(x, self.dims.images, pixels, order, &q.thresholds, q.layout, out.codes())
    }
}

/// What a ternary convolution turns its accumulators into.
#[derive(Debug)]
pub(crate) enum Epilogue {
    /// Codes by integer thresholds: see [`Requantize`].
    Codes { thresholds: Vec<i32>, layout: CodesLayout },
    /// Floats: `fma(acc, scale, bias)`, plus a residual from the second input, then ReLU. With
    /// `codes`, the quantized result is written too.
    Float { scale: Option<Vec<f32>>, bias: Option<Vec<f32>>, relu: bool, codes: Option<Quantizer> },
}

/// A ternary convolution. A linear layer is one whose window covers the whole map.
#[derive(Debug)]
pub(crate) struct TernaryConv {
    pub weights: PackedWeights<'static>,
    pub window: ConvParams,
    /// Number of spatial axes of the output.
    pub axes: usize,
    pub epilogue: Epilogue,
    /// The convolution that computes the residual. If set, the second input is its codes.
    pub shortcut: Option<Shortcut>,
}

/// A shortcut convolution read only by the residual add. It runs inside that convolution, so its
/// floats stay in cache instead of going through memory.
#[derive(Debug)]
pub(crate) struct Shortcut {
    /// Name of its node.
    pub name: String,
    /// Name used in error messages.
    pub label: String,
    pub conv: Box<TernaryConv>,
}

impl TernaryConv {
    /// Checks the epilogue's sizes against the weights.
    pub fn check(self) -> Result<Self> {
        let n = self.weights.shape().out_channels;
        match &self.epilogue {
            Epilogue::Codes { thresholds, layout } => {
                check_thresholds(n, &Requantize { thresholds, layout: *layout })?
            }
            Epilogue::Float { scale, bias, .. } => {
                for values in [scale, bias].into_iter().flatten() {
                    check_len("scale or bias", n, values.len())?;
                }
            }
        }
        Ok(self)
    }

    /// The dimensions of the output, and its cost, for an input of dimensions `dims`.
    pub(super) fn sizes(&self, dims: &Dims) -> Result<(Dims, Cost)> {
        if self.axes == 0 && self.window.kernel != dims.map {
            let ([h, w], [got_h, got_w]) = (self.window.kernel, dims.map);
            return bad_value(
                "map before a linear layer",
                format!("{h}x{w} pixels, as when the network was converted"),
                format!("{got_h}x{got_w}; give inputs of that size"),
            );
        }
        if self.axes > 0 && self.axes != dims.axes {
            let expected = format!("codes with {} spatial axes", self.axes);
            return bad_value(
                "a ternary convolution's input",
                expected,
                format!("shape {:?}", dims.shape()),
            );
        }
        let sizes = Geometry::sizes(&self.weights, &self.window.over(dims))?;
        let shape = self.weights.shape();
        let out = Dims {
            images: dims.images,
            channels: shape.out_channels,
            map: sizes.output,
            axes: self.axes,
        };
        // Checked because stride and padding can enlarge an axis that the output does not have.
        Value::float(out).check()?;
        let cost = Cost {
            bytes: sizes.table_bytes,
            scratch: sizes.padded_bytes,
            ..Cost::of(&out, shape.reduction())
        };
        Ok((out, cost))
    }

    pub(super) fn geometry(&self, dims: &Dims) -> Result<Geometry> {
        Geometry::new(&self.weights, &self.window.over(dims))
    }

    /// The sink of a float epilogue; `None` for codes.
    pub(super) fn sink<'a>(&'a self, residual: Residual<'a>) -> Option<FloatSink<'a>> {
        let Epilogue::Float { scale, bias, relu, codes } = &self.epilogue else { return None };
        let channels = self.weights.shape().out_channels;
        let (scale, bias) = (scale.as_deref(), bias.as_deref());
        Some(FloatSink::new(
            Dequantize { scale, bias, relu: *relu, channels, codes: *codes },
            residual,
        ))
    }
}

impl Operation for TernaryConv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let shortcut =
            self.shortcut.iter().flat_map(|shortcut| shortcut.conv.products(&shortcut.name));
        shortcut
            .chain([(name, self.weights.kernel().name(), self.weights.as_bytes().len())])
            .collect()
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (out, mut cost) = self.sizes(&inputs[0].dims)?;
        let mut residual = inputs.get(1).map(|residual| residual.dims);
        if let (Some(Shortcut { label, conv, .. }), Some(dims)) = (&self.shortcut, residual) {
            let (dims, more) = conv.sizes(&dims).map_err(|error| error.in_node(label))?;
            residual = Some(dims);
            cost.macs = cost.macs.saturating_add(more.macs);
            cost.bytes = cost.bytes.saturating_add(more.bytes);
            cost.scratch = cost.scratch.max(more.scratch);
        }
        if let Some(residual) = residual
            && residual.shape() != out.shape()
        {
            return bad_value(
                "residual",
                format!("shape {:?}", out.shape()),
                format!("{:?}", residual.shape()),
            );
        }
        let output = match self.epilogue {
            Epilogue::Codes { layout, .. } => Value::codes(out, layout),
            Epilogue::Float { .. } => Value::float(out),
        };
        Ok((output, cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (value, geometry) = (self.measure(inputs)?.0, self.geometry(&inputs[0].dims)?);
        let shortcut = match (&self.shortcut, inputs.get(1)) {
            (Some(Shortcut { conv, .. }), Some(residual)) => Some(conv.geometry(&residual.dims)?),
            _ => None,
        };
        let step = ConvStep { conv: self, geometry, shortcut, residual: inputs.len() == 2 };
        Ok((value, Box::new(step)))
    }

    fn adds_in_place(&self) -> bool {
        self.shortcut.is_none()
    }
}

#[derive(Debug)]
struct ConvStep {
    conv: Arc<TernaryConv>,
    geometry: Geometry,
    /// Geometry of the shortcut, if there is one.
    shortcut: Option<Geometry>,
    /// Whether there is a residual. If it is not among the inputs, the output buffer holds it.
    residual: bool,
}

impl ExecutableOp for ConvStep {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        self.run_with_codes(inputs, scratch, out, &mut [])
    }

    fn run_with_codes(
        &self,
        inputs: &[Slice<'_>],
        scratch: &mut [u8],
        out: SliceMut<'_>,
        codes_out: &mut [u8],
    ) -> Result<()> {
        let (codes, weights) = (inputs[0].codes(), &self.conv.weights);
        if let Epilogue::Codes { thresholds, layout } = &self.conv.epilogue {
            let to = Requantize { thresholds, layout: *layout };
            return self.geometry.run(codes, weights, &to, scratch, out.codes(), codes_out);
        }
        let residual = match inputs.get(1) {
            Some(residual) if self.shortcut.is_none() => Residual::Of(residual.floats()),
            _ if self.residual => Residual::InPlace,
            _ => Residual::None,
        };
        let sink = self.conv.sink(residual).expect("a float epilogue");
        let out = out.floats();
        match (&self.shortcut, &self.conv.shortcut) {
            (Some(geometry), Some(Shortcut { conv, .. })) => {
                let shortcut_sink =
                    conv.sink(Residual::None).expect("a shortcut's epilogue makes floats");
                Geometry::run_sum(
                    [geometry, &self.geometry],
                    [inputs[1].codes(), codes],
                    [&conv.weights, weights],
                    [&shortcut_sink, &sink],
                    scratch,
                    out,
                    codes_out,
                )?;
            }
            _ => self.geometry.run(codes, weights, &sink, scratch, out, codes_out)?,
        }
        if sink.nan.into_inner()
            && let Some(index) = out.iter().position(|y| y.is_nan())
        {
            return Err(Error::NotANumber { what: "input", index });
        }
        Ok(())
    }
}

/// Max pooling on codes.
#[derive(Debug)]
pub(crate) struct MaxPoolCodes {
    pub window: ConvParams,
    pub ceil_mode: bool,
}

impl Operation for MaxPoolCodes {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let shape = self.window.over(&inputs[0].dims);
        let map = crate::engine::ops::pool::output_map(&shape, self.ceil_mode)?;
        let dims = Dims { map, ..inputs[0].dims };
        let taps: usize =
            (0..2).map(|axis| shape.kernel[axis].min(shape.input[axis].max(1))).product();
        Ok((
            Value { dims, ..inputs[0] },
            Cost { bytes: crate::engine::ops::pool::table_bytes(map), ..Cost::of(&dims, taps) },
        ))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (value, shape) = (self.measure(inputs)?.0, self.window.over(&inputs[0].dims));
        let Some(layout) = value.codes else {
            return bad_value("max pooling on codes", "one input of codes", "floats");
        };
        Ok((value, Box::new(MaxPoolStep { shape, layout, map: value.dims.map })))
    }
}

#[derive(Debug)]
struct MaxPoolStep {
    shape: ConvShape,
    layout: CodesLayout,
    map: [usize; 2],
}

impl ExecutableOp for MaxPoolStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        pool_checked(inputs[0].codes(), self.layout, &self.shape, self.map, out.codes())
    }
}
