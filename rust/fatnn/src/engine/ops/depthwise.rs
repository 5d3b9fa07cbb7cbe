//! Int8 depthwise convolution as an operation: see [`crate::conv::depthwise`].

use std::sync::{Arc, OnceLock};

use crate::codec::CodesLayout;
use crate::conv::depthwise::{
    Geometry, Input, InputLines, Layer, LineQuantizer, Output, SumThresholds, UNBOUNDED,
};
use crate::conv::int8_sink::{Int8Role, Int8Sink};
use crate::conv::{Constants, Padded};
use crate::engine::ops::line_source::{
    Int8Lines, LineSizes, Source, SourceConv, SourceStep, TernaryLines,
};
use crate::engine::value::{Cost, Dims, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::epilogue::{DequantizeInt8, Elementwise, Quantizer, Residual, check_channels};
use crate::error::{Result, bad_value, check_len};
use crate::graph::ConvParams;
use crate::kernels::FloatMode;
use crate::kernels::depthwise::QuantizeParams;
use crate::pack::PackedWeights;
use crate::scalar::Encoder;

/// An int8 depthwise convolution.
#[derive(Debug)]
pub(crate) struct DepthwiseConv {
    pub weights: PackedWeights<'static>,
    pub constants: Constants,
    pub window: ConvParams,
    /// Number of spatial axes.
    pub axes: usize,
    /// Minimum and maximum that its input is clamped to.
    pub bounds: [f32; 2],
    /// Elementwise functions of its input, which run before the bounds.
    pub before: Vec<Elementwise>,
    /// The convolution that computes its input line by line. If set, the input is that
    /// convolution's codes.
    pub source: Option<Source>,
    /// Elementwise functions of its output.
    pub post: Vec<Elementwise>,
    /// The quantizer that is the only reader of its floats. If set, its output is codes.
    pub quantizer: Option<OutputQuantizer>,
    /// The quantizer's thresholds for sums, from the first plan on, and the float mode in which
    /// they were found: in another mode, floats differ.
    pub sums: OnceLock<(FloatMode, Option<SumThresholds>)>,
}

/// A quantizer that runs on the output lines of a depthwise convolution.
#[derive(Debug)]
pub(crate) struct OutputQuantizer {
    /// Name of the convolution's node; the operation has the name of the quantizer's.
    pub conv_name: String,
    /// Name of the convolution in error messages.
    pub conv_label: String,
    pub label: String,
    pub thresholds: Vec<f32>,
    pub layout: CodesLayout,
}

impl DepthwiseConv {
    /// Dimensions of the floats that it reads, and the cost of the source that computes them.
    fn input_dims(&self, dims: Dims) -> Result<(Dims, Cost)> {
        match &self.source {
            None => Ok((dims, Cost::default())),
            Some(source) => source.sizes(&dims),
        }
    }

    /// How the source makes the bytes of its lines: by the quantizer, or by a table if functions
    /// precede the quantizer and the first one rounds to eight bits; else `None`.
    fn line_bytes(&self) -> Option<LineBytes> {
        let QuantizeParams { inv_step, bounds } =
            QuantizeParams::new(self.constants.inv_step, self.bounds);
        let encoder = Encoder::biased(inv_step, bounds);
        if self.before.is_empty() {
            return Some(LineBytes { encoder, table: None });
        }
        let lookup = Elementwise::as_lookup(&self.before)?;
        let table = Some(lookup.encoded(encoder)?);
        Some(LineBytes { encoder: lookup.quantizer().encoder(), table })
    }

    /// Its quantizer's thresholds for sums, if there are any. `rest` is the index of the first
    /// function that does not run in the epilogue.
    fn sum_thresholds(
        &self,
        constants: &Constants,
        clamp: [f32; 2],
        rest: usize,
    ) -> Result<Option<SumThresholds>> {
        let Some(OutputQuantizer { thresholds, layout, .. }) = &self.quantizer else {
            return Ok(None);
        };
        let (weights, post) = (&self.weights, &self.post[rest..]);
        let layer = Layer { weights, constants, bounds: self.bounds, clamp, post };
        SumThresholds::new(&layer, &Quantizer::new(thresholds, *layout)?)
    }

    fn value(&self, dims: Dims) -> Value {
        match &self.quantizer {
            None => Value::float(dims),
            Some(quantizer) => Value::codes(dims, quantizer.layout),
        }
    }

    fn sizes(&self, dims: &Dims) -> Result<(Geometry, Dims)> {
        let channels = self.weights.shape().out_channels;
        let geometry = Geometry::new(&self.weights, &self.window.over(dims))?;
        let out = Dims { images: dims.images, channels, map: geometry.output, axes: self.axes };
        Ok((geometry, out))
    }
}

impl Operation for DepthwiseConv {
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let source = self.source.iter().flat_map(Source::products);
        let name = self.quantizer.as_ref().map_or(name, |quantizer| &quantizer.conv_name);
        source
            .chain([(name, self.weights.kernel().name(), self.weights.as_bytes().len())])
            .collect()
    }

    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (dims, source) = self.input_dims(inputs[0].dims)?;
        check_len("channels", self.weights.shape().channels, dims.channels)?;
        check_channels(&self.before, dims.channels)?;
        check_channels(&self.post, self.weights.shape().out_channels)?;
        if dims.axes != self.axes {
            let expected = format!("images, channels and {} spatial axes", self.axes);
            return bad_value(
                "an int8 layer's input",
                expected,
                format!("shape {:?}", dims.shape()),
            );
        }
        // Arithmetic only: this allocates nothing.
        let (geometry, out) = self.sizes(&dims)?;
        let mut cost = Cost::of(&out, self.weights.shape().reduction());
        cost.bytes = geometry.thread_bytes().saturating_add(source.bytes);
        cost.macs = cost.macs.saturating_add(source.macs);
        cost.scratch = source.scratch;
        if self.source.is_some() || !self.before.is_empty() {
            cost.bytes = cost.bytes.saturating_add(geometry.strip_bytes(dims.channels));
        }
        if let Some(quantizer) = &self.quantizer {
            check_len("channels", quantizer.layout.channels(), out.channels)?;
            cost.bytes = cost.bytes.saturating_add(geometry.output_bytes());
        }
        Ok((self.value(out), cost))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (input_dims, _) = self.input_dims(inputs[0].dims)?;
        let (geometry, out) = self.sizes(&input_dims)?;
        let lines = geometry.strip_lines(input_dims.channels);
        let source = self.source.as_ref();
        let step = source.map(|source| source.plan(&inputs[0], &input_dims, lines)).transpose()?;
        let from_bytes = match source.map(|source| &source.conv) {
            Some(SourceConv::Ternary(conv))
                if geometry.reads_bytes() && conv.has_finite_constants() =>
            {
                self.line_bytes()
            }
            _ => None,
        };
        // A BatchNorm and then bounds run in the epilogue; all other functions run after it.
        let (mut constants, mut clamp, mut rest) = (self.constants.clone(), UNBOUNDED, 0);
        if let Some(Elementwise::Affine(scale, bias)) = self.post.first() {
            constants.affine =
                Some((Padded::new(&self.weights, scale)?, Padded::new(&self.weights, bias)?));
            rest = 1;
        }
        if let Some(Elementwise::Scalar(scalar)) = self.post.get(rest)
            && let Some(bounds) = scalar.bounds()
        {
            (clamp, rest) = (bounds, rest + 1);
        }
        if self.sums.get().is_none() {
            let found = self.sum_thresholds(&constants, clamp, rest)?;
            let _ = self.sums.set((FloatMode::current(), found));
        }
        Ok((
            self.value(out),
            Box::new(DepthwiseStep {
                conv: self,
                geometry,
                input_dims,
                source: step,
                constants,
                clamp,
                rest,
                from_bytes,
            }),
        ))
    }
}

#[derive(Debug)]
struct DepthwiseStep {
    conv: Arc<DepthwiseConv>,
    geometry: Geometry,
    /// Dimensions of the floats that it reads.
    input_dims: Dims,
    source: Option<SourceStep>,
    constants: Constants,
    clamp: [f32; 2],
    /// Index of the first function that does not run in the epilogue.
    rest: usize,
    /// Set if the source quantizes its lines.
    from_bytes: Option<LineBytes>,
}

/// How a source makes the bytes that a depthwise convolution reads.
#[derive(Clone, Debug)]
struct LineBytes {
    encoder: Encoder,
    /// The byte for each byte of the encoder, if they differ.
    table: Option<Box<[u8; 256]>>,
}

impl ExecutableOp for DepthwiseStep {
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let Some(OutputQuantizer { conv_label, label, thresholds, layout, .. }) =
            &self.conv.quantizer
        else {
            return self.run_to(inputs, scratch, Output::Floats(out.floats()));
        };
        let sums = self.conv.sums.get().filter(|(mode, _)| *mode == FloatMode::current());
        let sums = sums.and_then(|(_, sums)| sums.as_ref());
        let to = LineQuantizer { label, thresholds, layout: *layout, sums };
        let codes = Output::Codes(out.codes(), to);
        self.run_to(inputs, scratch, codes).map_err(|error| error.in_node(conv_label))
    }
}

impl DepthwiseStep {
    fn run_to(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: Output<'_>) -> Result<()> {
        let (conv, post) = (&*self.conv, &self.conv.post[self.rest..]);
        let (weights, constants) = (&conv.weights, &self.constants);
        let layer = Layer { weights, constants, bounds: conv.bounds, clamp: self.clamp, post };
        let before = conv.before.as_slice();
        let Some((Source { label, .. }, step)) = conv.source.as_ref().zip(self.source.as_ref())
        else {
            let input = Input { lines: InputLines::InMemory(inputs[0].floats()), before };
            return self.geometry.run(input, &layer, out);
        };
        let images = self.input_dims.images;
        let (source, strips) = match step {
            SourceStep::Ternary(source, strips) => (source, strips),
            SourceStep::Int8(step) => {
                let (geometry, inner) = (&step.geometry, step.layer());
                let image = geometry
                    .quantize(inputs[0].floats(), &inner, scratch)
                    .map_err(|error| error.in_node(label))?;
                let source = &Int8Lines { geometry, layer: inner, image };
                let lines = InputLines::Computed { images, source };
                return self.geometry.run(Input { lines, before }, &layer, out);
            }
        };
        let codes = inputs[0].codes();
        let sink = source.sink(Residual::None).expect("a source's epilogue makes floats");
        let line = LineSizes {
            bytes: self.input_dims.map[1] * source.weights.codes_layout()?.pixel_bytes(),
            values: self.input_dims.map[1] * self.input_dims.channels,
        };
        let weights = &source.weights;
        if let Some(LineBytes { encoder, table }) = &self.from_bytes {
            let to = DequantizeInt8::encoded(sink.to, *encoder);
            let sink = Int8Sink::new(Int8Role::Write(to, Residual::None));
            let table = table.as_deref();
            let source = &TernaryLines { weights, strips, sink, codes, line, table };
            let lines = InputLines::Bytes { images, source };
            return self.geometry.run(Input { lines, before: &[] }, &layer, out);
        }
        let source = &TernaryLines { weights, strips, sink, codes, line, table: None };
        let lines = InputLines::Computed { images, source };
        self.geometry.run(Input { lines, before }, &layer, out)
    }
}
