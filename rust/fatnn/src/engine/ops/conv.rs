//! Operations that read or write codes: thin wrappers of [`crate::quantize`], [`crate::conv`] and
//! [`crate::pool`].

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::CodesLayout;
use crate::conv::int8_sink::{Int8Role, Int8Sink};
use crate::conv::tiled::FloatSink;
use crate::conv::{ConvShape, Geometry, check_thresholds};
use crate::engine::value::{Cost, Dims, Element, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{Dequantize, DequantizeInt8, Quantizer, Requantize, Residual};
use crate::error::{Error, Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::memory;
use crate::pack::PackedWeights;
use crate::pool::pool_checked;
use crate::scalar::Int8Quantizer;

/// What a ternary convolution turns its accumulators into.
#[derive(Debug)]
pub(crate) enum Epilogue {
    /// Codes by integer thresholds: see [`Requantize`].
    Codes { thresholds: Vec<i32>, layout: CodesLayout },
    /// Floats: `fma(acc, scale, bias)`, plus a residual from the second input, then ReLU. With
    /// `codes`, the quantized result is written too.
    Float {
        scale: Option<Vec<f32>>,
        bias: Option<Vec<f32>>,
        relu: bool,
        /// Rounds the result, which is then stored as bytes.
        int8: Option<Int8Quantizer>,
        codes: Option<Quantizer>,
        /// Whether nothing reads the floats, so that they need not be stored.
        only_codes: bool,
    },
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

    /// Whether sums become finite floats or infinities, never NaN.
    pub(super) fn has_finite_constants(&self) -> bool {
        let Epilogue::Float { scale, bias, .. } = &self.epilogue else { return false };
        [scale, bias].into_iter().flatten().flatten().all(|x| x.is_finite())
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
        let Epilogue::Float { scale, bias, relu, codes, only_codes, .. } = &self.epilogue else {
            return None;
        };
        let channels = self.weights.shape().out_channels;
        let (scale, bias) = (scale.as_deref(), bias.as_deref());
        let to = Dequantize { scale, bias, relu: *relu, channels, codes: *codes };
        Some(FloatSink { only_codes: *only_codes, ..FloatSink::new(to, residual) })
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
            Epilogue::Float { int8: None, .. } => Value::float(out),
            Epilogue::Float { int8: Some(quantizer), .. } => {
                if self.shortcut.is_some() {
                    cost.bytes =
                        cost.bytes.saturating_add(Value::float(out).buffer_bytes() as u128);
                }
                Value::float(out).of(Element::Int8(quantizer))
            }
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

    fn reads_int8(&self, input: usize) -> bool {
        input == 1 && self.shortcut.is_none()
    }

    fn adds_in_place(&self) -> bool {
        self.shortcut.is_none() && matches!(self.epilogue, Epilogue::Float { int8: None, .. })
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
            Some(&Slice::Int8(x, quantizer)) => Residual::Int8(x, quantizer),
            Some(residual) if self.shortcut.is_none() => Residual::Of(residual.floats()),
            _ if self.residual => Residual::InPlace,
            _ => Residual::None,
        };
        let sink = self.conv.sink(residual).expect("a float epilogue");
        let Epilogue::Float { int8: Some(quantizer), .. } = self.conv.epilogue else {
            let out = out.floats();
            self.run_to_floats(inputs, scratch, &sink, out, codes_out)?;
            if !sink.nan.into_inner() {
                return Ok(());
            }
            if sink.only_codes {
                // The floats were not stored, nor was a residual in their place overwritten.
                let sink = FloatSink::new(Dequantize { codes: None, ..sink.to }, residual);
                self.run_to_floats(inputs, scratch, &sink, out, &mut [])?;
            }
            return first_nan(out);
        };
        let (out, to) = (out.int8(), sink.to);
        let to_int8 = DequantizeInt8::new(to, quantizer);
        if !self.run_to_int8(inputs, scratch, (to_int8, residual), out, codes_out)? {
            return Ok(());
        }
        // Compute the output as floats to find the NaN.
        let mut floats = memory::filled("output of a convolution", out.len(), 0.0)?;
        let sink = FloatSink::new(Dequantize { codes: None, ..to }, residual);
        self.run_to_floats(inputs, scratch, &sink, &mut floats, &mut [])?;
        first_nan(&floats)
    }
}

/// An error with the index of the first NaN, if there is one.
fn first_nan(x: &[f32]) -> Result<()> {
    match x.iter().position(|x| x.is_nan()) {
        Some(index) => Err(Error::NotANumber { what: "input", index }),
        None => Ok(()),
    }
}

thread_local! {
    /// Floats of a shortcut whose sum is stored as bytes. The buffer is kept between calls, so only
    /// the first run allocates.
    static SHORTCUT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl ConvStep {
    /// The shortcut, and the sink of its floats.
    fn shortcut_sink(&self) -> Option<(&Geometry, &TernaryConv, FloatSink<'_>)> {
        let (geometry, Shortcut { conv, .. }) =
            (self.shortcut.as_ref()?, self.conv.shortcut.as_ref()?);
        let sink = conv.sink(Residual::None).expect("a shortcut's epilogue makes floats");
        Some((geometry, conv, sink))
    }

    fn run_to_floats(
        &self,
        inputs: &[Slice<'_>],
        scratch: &mut [u8],
        sink: &FloatSink<'_>,
        out: &mut [f32],
        codes_out: &mut [u8],
    ) -> Result<()> {
        let (codes, weights) = (inputs[0].codes(), &self.conv.weights);
        match self.shortcut_sink() {
            Some((geometry, shortcut, shortcut_sink)) => Geometry::run_sum(
                [geometry, &self.geometry],
                [inputs[1].codes(), codes],
                [&shortcut.weights, weights],
                [&shortcut_sink, sink],
                scratch,
                out,
                codes_out,
            ),
            None => self.geometry.run(codes, weights, sink, scratch, out, codes_out),
        }
    }

    /// Runs it with an output that is stored as bytes. Returns whether a value is NaN.
    fn run_to_int8(
        &self,
        inputs: &[Slice<'_>],
        scratch: &mut [u8],
        (to, residual): (DequantizeInt8<'_>, Residual<'_>),
        out: &mut [u8],
        codes_out: &mut [u8],
    ) -> Result<bool> {
        let (codes, weights) = (inputs[0].codes(), &self.conv.weights);
        let Some((geometry, shortcut, shortcut_sink)) = self.shortcut_sink() else {
            let sink = Int8Sink::new(Int8Role::Write(to, residual));
            self.geometry.run(codes, weights, &sink, scratch, out, codes_out)?;
            return Ok(sink.nan.into_inner());
        };
        let (from, both) = (inputs[1].codes(), [&shortcut.weights, weights]);
        if Geometry::sums_by_parts(both) {
            let keep = Int8Sink::new(Int8Role::Keep(shortcut_sink.to));
            let add = Int8Sink::new(Int8Role::Add(to));
            let (geometries, sinks) = ([geometry, &self.geometry], [&keep, &add]);
            Geometry::run_sum(geometries, [from, codes], both, sinks, scratch, out, codes_out)?;
            return Ok(add.nan.into_inner());
        }
        // Taken out, so that no borrow lasts while this thread works on other tasks.
        let mut kept = SHORTCUT.take();
        memory::grow("output of a shortcut", &mut kept, out.len(), 0.0)?;
        let floats = &mut kept[..out.len()];
        let first = geometry.run(from, both[0], &shortcut_sink, scratch, floats, &mut []);
        let sink = Int8Sink::new(Int8Role::Write(to, Residual::Of(floats)));
        let sum =
            first.and_then(|()| self.geometry.run(codes, weights, &sink, scratch, out, codes_out));
        let nan = sink.nan.into_inner();
        SHORTCUT.set(kept);
        sum.map(|()| nan)
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
