//! A whole network in one call.
//!
//! [`Network`] is built once from a graph and its tensors (`build`). The first run at an input shape *plans*: it
//! settles every value's shape and buffer (a buffer is reused as soon as its value has been read for the last time). Later runs
//! at that shape allocate no memory for values. Runs at the same time are safe: each takes a set of buffers of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::CodesLayout;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{Family, Line};
use crate::net::build;
use crate::net::file::{self, Tensor};
use crate::net::ops::transpose;
use crate::net::value::{Dims, Operation, Slice, SliceMut, Step, Value};
use crate::parallel;

/// Elements of the inputs from which threads are woken for a whole run; the layers of networks on less are mostly too small to
/// be split.
const WORTHWHILE: usize = 32 << 10;
/// Sets of buffers that are kept for later runs, or as many as there are threads.
const KEPT: usize = 8;

/// A network, ready to run.
#[derive(Debug)]
pub struct Network {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    nodes: Vec<NetNode>,
    /// Number of values: inputs first, then what nodes make.
    values: usize,
    workspaces: Mutex<Vec<Workspace>>,
}

/// An input or an output.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub name: String,
    /// Shape at conversion.
    pub shape: Vec<usize>,
    /// Dimensions whose size is part of the network: the model was captured for that size only.
    pub fixed: Vec<usize>,
    pub value: usize,
}

#[derive(Debug)]
pub(super) struct NetNode {
    pub name: String,
    /// For messages.
    pub label: String,
    pub operation: Arc<dyn Operation>,
    pub inputs: Vec<usize>,
    pub output: usize,
    /// Codes of the output that the operation makes on the way.
    pub beside: Option<Beside>,
}

/// A quantizer that has moved into the operation whose output it reads.
#[derive(Debug)]
pub(super) struct Beside {
    pub name: String,
    /// For messages.
    pub label: String,
    pub value: usize,
    pub layout: CodesLayout,
}

/// A float32 array: shape as PyTorch writes it (images, channels, spatial axes).
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Images, channels, and up to two spatial axes.
    pub shape: &'a [usize],
    /// Values in memory order.
    pub data: &'a [f32],
    /// Whether channels are last in memory (the shape is written channels-first all the same).
    pub channels_last: bool,
}

/// A node's value, for [`Network::run_observed`]. Elementwise functions, pooling and summands that run inside another node are not
/// seen apart: its value is what they make of it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The node's name.
    pub node: &'a str,
    /// How long it took.
    pub nanoseconds: u128,
    dims: Dims,
    /// Its value, channels last, where it is floats.
    pub floats: Option<&'a [f32]>,
    /// Its value where it is packed codes: `images × height × width` pixels of this layout.
    pub codes: Option<(&'a [u8], CodesLayout)>,
}

impl Observed<'_> {
    /// Images, height and width.
    pub fn pixels(&self) -> [usize; 3] {
        [self.dims.images, self.dims.map[0], self.dims.map[1]]
    }
}

/// A float32 array that a network made.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Images, channels, and up to two spatial axes.
    pub shape: Vec<usize>,
    /// Values, channels last.
    pub data: Vec<f32>,
}

impl Output {
    /// The values in the order of the shape: images, channels, pixels.
    pub fn channels_first(&self) -> Vec<f32> {
        let pixels = self.shape[2..].iter().product();
        let mut data = vec![0.0; self.data.len()];
        if !data.is_empty() {
            transpose(&self.data, &mut data, pixels, self.shape[1]);
        }
        data
    }
}

/// Everything that belongs to one input shape: steps and buffers.
#[derive(Debug)]
struct Workspace {
    input_dims: Vec<Dims>,
    steps: Vec<Box<dyn Step>>,
    values: Vec<Value>,
    /// Per value: its buffer.
    slots: Vec<usize>,
    buffers: Vec<Buffer>,
    scratch: Vec<Line>,
}

/// Memory for a value, floats or codes, from the beginning of a cache line.
#[derive(Debug, Default)]
struct Buffer(Vec<Line>);

impl Buffer {
    fn read(&self, value: &Value) -> Slice<'_> {
        match value.codes {
            None => Slice::Float(&Line::floats(&self.0)[..value.buffer_len()]),
            Some(_) => Slice::Codes(&Line::bytes(&self.0)[..value.buffer_len()]),
        }
    }

    fn write(&mut self, value: &Value) -> SliceMut<'_> {
        match value.codes {
            None => SliceMut::Float(&mut Line::floats_mut(&mut self.0)[..value.buffer_len()]),
            Some(_) => SliceMut::Codes(&mut Line::bytes_mut(&mut self.0)[..value.buffer_len()]),
        }
    }
}

impl NetNode {
    /// The values that it makes: its output first.
    fn makes(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.output).chain(self.beside.iter().map(|beside| beside.value))
    }
}

impl Network {
    /// Reads a network that [`crate::net::save`] wrote.
    ///
    /// # Errors
    /// As [`crate::net::load`]; [`Error::Unsupported`] naming the nodes that only PyTorch can run.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (graph, tensors) = file::load(path)?;
        Self::new(&graph, &tensors).map_err(|e| match e {
            Error::Graph { why } => Error::Format { path: path.into(), why },
            other => other,
        })
    }

    /// Builds a network from a graph's JSON (as a file has it) and its tensors.
    ///
    /// # Errors
    /// [`Error::Graph`] where the graph is not well-formed, [`Error::Unsupported`] naming the nodes that only PyTorch can run,
    /// [`Error::Environment`] where a `FATNN_*` variable has a meaningless value.
    pub fn new(graph: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        crate::kernels::best()?;
        build::network(graph, tensors, None)
    }

    /// As [`Network::new`], all its products on one family of kernels: for benchmarks.
    ///
    /// # Errors
    /// As [`Network::new`]; [`Error::Unsupported`] naming the nodes where the family has no kernel for its operands.
    pub fn for_family(graph: &str, tensors: &BTreeMap<String, Tensor>, family: Family) -> Result<Self> {
        build::network(graph, tensors, Some(family))
    }

    pub(super) fn of(inputs: Vec<Port>, outputs: Vec<Port>, nodes: Vec<NetNode>, values: usize) -> Self {
        Network { inputs, outputs, nodes, values, workspaces: Mutex::default() }
    }

    /// Names of the inputs, with their shapes at conversion.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|port| (port.name.as_str(), port.shape.as_slice()))
    }

    /// Names of the outputs, with their shapes at conversion.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.outputs.iter().map(|port| (port.name.as_str(), port.shape.as_slice()))
    }

    /// What every product runs on, in order: the node's name, the kernel's, and the bytes that its weights take as they are laid
    /// out for it.
    pub fn products(&self) -> impl Iterator<Item = (&str, &'static str, usize)> {
        self.nodes.iter().flat_map(|node| node.operation.products(&node.name))
    }

    /// Bytes of the buffers kept at this moment, over all input shapes seen.
    pub fn buffer_bytes(&self) -> usize {
        self.lock().iter().map(Workspace::bytes).sum()
    }

    /// Runs the network.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] where the inputs do not fit, [`Error::NotANumber`] where a quantizer reads NaN.
    pub fn run(&self, inputs: &[Input<'_>]) -> Result<Vec<Output>> {
        match self.images_apart(inputs) {
            None => self.run_observed(inputs, &mut |_| ()),
            Some(images) => self.run_apart(inputs, images),
        }
    }

    /// The number of images, where they are better run one by one: whatever the batch, an image's values stay in cache then, and
    /// threads that have an image each need not wait for each other behind every layer.
    fn images_apart(&self, inputs: &[Input<'_>]) -> Option<usize> {
        let images = *inputs.first()?.shape.first()?;
        let elements: usize = inputs.iter().map(|input| input.data.len()).sum();
        let alike = inputs.len() == self.inputs.len()
            && inputs.iter().all(|input| {
                // Anything else is an error, and `run_observed` says which.
                let elements = input.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                input.shape.first() == Some(&images) && elements == Some(input.data.len())
            });
        let free = self.inputs.iter().all(|port| !port.fixed.contains(&0));
        (alike && free && images > 1 && elements / images >= WORTHWHILE).then_some(images)
    }

    /// Runs images one by one.
    fn run_apart(&self, inputs: &[Input<'_>], images: usize) -> Result<Vec<Output>> {
        let mut shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape.to_vec()).collect();
        for shape in &mut shapes {
            shape[0] = 1;
        }
        let apart = parallel::for_each_alone(images, |image| {
            let mut one = inputs.to_vec();
            for (input, shape) in one.iter_mut().zip(&shapes) {
                let len = input.data.len() / images;
                (input.shape, input.data) = (shape, &input.data[image * len..(image + 1) * len]);
            }
            self.run_observed(&one, &mut |_| ())
        })?;
        let mut apart = apart.into_iter();
        let mut outputs = apart.next().unwrap_or_default();
        for output in &mut outputs {
            output.data.reserve_exact(output.data.len() * (images - 1));
            output.shape[0] *= images;
        }
        for image in apart {
            for (output, one) in outputs.iter_mut().zip(image) {
                output.data.extend_from_slice(&one.data);
            }
        }
        Ok(outputs)
    }

    /// As [`Network::run`], and shows `observe` every node's value as it is made, and how long that took.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn run_observed(
        &self,
        inputs: &[Input<'_>],
        observe: &mut (dyn FnMut(Observed<'_>) + Send),
    ) -> Result<Vec<Output>> {
        let elements: usize = inputs.iter().map(|input| input.data.len()).sum();
        if elements < WORTHWHILE {
            return self.run_here(inputs, observe);
        }
        parallel::inside(|| self.run_here(inputs, observe))?
    }

    /// [`Network::run_observed`] on this thread, and those that it finds awake.
    fn run_here(&self, inputs: &[Input<'_>], observe: &mut dyn FnMut(Observed<'_>)) -> Result<Vec<Output>> {
        check_len("inputs of the network", self.inputs.len(), inputs.len())?;
        let dims = self.inputs.iter().zip(inputs).map(|(port, input)| port.dims(input)).collect::<Result<Vec<_>>>()?;
        let mut workspace = self.take(&dims)?;
        let outputs = self.run_in(&mut workspace, inputs, observe)?;
        let mut kept = self.lock();
        if kept.len() >= KEPT.max(parallel::num_threads()?) {
            kept.remove(0);
        }
        kept.push(workspace);
        Ok(outputs)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A workspace for these shapes: one that is free, or a new one.
    fn take(&self, dims: &[Dims]) -> Result<Workspace> {
        let mut kept = self.lock();
        match kept.iter().rposition(|w| w.input_dims == dims) {
            Some(at) => Ok(kept.remove(at)),
            None => {
                drop(kept);
                self.plan(dims)
            }
        }
    }

    fn plan(&self, input_dims: &[Dims]) -> Result<Workspace> {
        // Values that nothing makes any more, since their node moved into another, stay empty.
        let nothing = Value::float(Dims { images: 0, channels: 0, map: [0, 0], axes: 0 });
        let mut values = vec![nothing; self.values];
        for (value, dims) in values.iter_mut().zip(input_dims) {
            *value = Value::float(*dims);
        }
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        for node in &self.nodes {
            let read: Vec<Value> = node.inputs.iter().map(|&v| values[v]).collect();
            let (value, step) = node
                .operation
                .clone()
                .plan(&read)
                .map_err(|e| Error::Node { node: node.label.clone(), source: Box::new(e) })?;
            value.check_size().map_err(|e| Error::Node { node: node.label.clone(), source: Box::new(e) })?;
            values[node.output] = value;
            if let Some(Beside { value, layout, .. }) = node.beside {
                values[value] = Value { codes: Some(layout), ..values[node.output] };
            }
            steps.push(step);
        }
        // The last node that reads each value; outputs live to the end.
        let mut last = vec![0; self.values];
        for (n, node) in self.nodes.iter().enumerate() {
            for &value in &node.inputs {
                last[value] = n;
            }
        }
        for output in &self.outputs {
            last[output.value] = usize::MAX;
        }
        let mut buffers: Vec<usize> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slots = vec![usize::MAX; self.values];
        let mut place = |value: &Value, free: &mut Vec<usize>| {
            let bytes = value.buffer_bytes();
            // The free buffer whose size is nearest.
            match free.iter().enumerate().min_by_key(|(_, b)| buffers[**b].abs_diff(bytes)).map(|(at, _)| at) {
                Some(at) => {
                    let slot = free.swap_remove(at);
                    buffers[slot] = buffers[slot].max(bytes);
                    slot
                }
                None => {
                    buffers.push(bytes);
                    buffers.len() - 1
                }
            }
        };
        for v in 0..self.inputs.len() {
            slots[v] = place(&values[v], &mut free);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            // A sum may take the place of a summand that nobody else will read.
            let summand = match *node.inputs.as_slice() {
                [a, b] if a != b && last[b] == n && values[b] == values[node.output] => Some(b),
                _ => None,
            };
            let replaced = summand.filter(|_| node.operation.adds_in_place());
            for made in node.makes() {
                slots[made] = match replaced {
                    Some(value) if made == node.output => slots[value],
                    _ => place(&values[made], &mut free),
                };
            }
            for (value, &slot) in slots.iter().enumerate() {
                if last[value] == n && node.inputs.contains(&value) && replaced != Some(value) {
                    free.push(slot);
                }
            }
        }
        let scratch = steps.iter().map(|step| step.scratch()).max().unwrap_or(0);
        let buffers = buffers.into_iter().map(|bytes| Ok(Buffer(zeros(bytes)?))).collect::<Result<_>>()?;
        let scratch = zeros(scratch)?;
        Ok(Workspace { input_dims: input_dims.to_vec(), steps, values, slots, buffers, scratch })
    }

    fn run_in(
        &self,
        workspace: &mut Workspace,
        inputs: &[Input<'_>],
        observe: &mut dyn FnMut(Observed<'_>),
    ) -> Result<Vec<Output>> {
        let Workspace { steps, values, slots, buffers, scratch, .. } = workspace;
        let scratch = Line::bytes_mut(scratch);
        for (v, input) in inputs.iter().enumerate() {
            let len = values[v].buffer_len();
            let (dims, buffer) = (values[v].dims, buffers[slots[v]].write(&values[v]).floats());
            if input.channels_last || len == 0 {
                buffer.copy_from_slice(input.data);
            } else {
                transpose(input.data, buffer, dims.channels, dims.map[0] * dims.map[1]);
            }
        }
        for (node, step) in self.nodes.iter().zip(steps) {
            let start = std::time::Instant::now();
            // Empty stand-ins cost nothing and let the other buffers be read meanwhile.
            let mut taken = |value: usize| std::mem::take(&mut buffers[slots[value]]);
            let mut out = taken(node.output);
            let mut beside = node.beside.as_ref().map(|beside| taken(beside.value));
            let read = |v: usize| buffers[slots[v]].read(&values[v]);
            let target = out.write(&values[node.output]);
            let codes = match (&node.beside, &mut beside) {
                (Some(Beside { value, .. }), Some(buffer)) => buffer.write(&values[*value]).codes(),
                _ => &mut [],
            };
            let done = match *node.inputs.as_slice() {
                [a] => step.run_beside(&[read(a)], scratch, target, codes),
                // The output stands in the second input's place.
                [a, b] if slots[b] == slots[node.output] => step.run_beside(&[read(a)], scratch, target, codes),
                [a, b] => step.run_beside(&[read(a), read(b)], scratch, target, codes),
                _ => unreachable!("operations read one or two values"),
            };
            let label = match (&done, &node.beside) {
                (Err(Error::NotANumber { .. }), Some(beside)) => &beside.label,
                _ => &node.label,
            };
            buffers[slots[node.output]] = out;
            if let (Some(Beside { value, .. }), Some(buffer)) = (&node.beside, beside) {
                buffers[slots[*value]] = buffer;
            }
            done.map_err(|e| Error::Node { node: label.clone(), source: Box::new(e) })?;
            let mut nanoseconds = start.elapsed().as_nanos();
            let names = std::iter::once(&node.name).chain(node.beside.iter().map(|beside| &beside.name));
            for (name, made) in names.zip(node.makes()) {
                let Value { dims, codes: layout } = values[made];
                let (floats, codes) = match buffers[slots[made]].read(&values[made]) {
                    Slice::Float(x) => (Some(x), None),
                    Slice::Codes(x) => (None, layout.map(|layout| (x, layout))),
                };
                observe(Observed { node: name, nanoseconds, dims, floats, codes });
                // Codes beside the output come with it.
                nanoseconds = 0;
            }
        }
        let output = |port: &Port| {
            let value = &values[port.value];
            let data = buffers[slots[port.value]].read(value).floats();
            Output { shape: value.dims.shape(), data: data.to_vec() }
        };
        Ok(self.outputs.iter().map(output).collect())
    }
}

impl Workspace {
    fn bytes(&self) -> usize {
        let buffers = self.buffers.iter().map(|buffer| buffer.0.capacity() * size_of::<Line>());
        buffers.sum::<usize>() + self.scratch.capacity() * size_of::<Line>()
    }
}

impl Port {
    /// Checks an input against what the network was converted for: everything but images and spatial sizes is fixed.
    fn dims(&self, input: &Input<'_>) -> Result<Dims> {
        let shape = input.shape;
        if shape.len() != self.shape.len() || shape[1] != self.shape[1] {
            return Err(Error::Shape {
                what: "input of the network",
                expected: format!(
                    "{} dimensions with {} channels, as {:?}",
                    self.shape.len(),
                    self.shape[1],
                    self.shape
                ),
                got: format!("{shape:?}"),
            });
        }
        if self.fixed.iter().any(|&d| shape[d] != self.shape[d]) {
            let size = |(d, n): (usize, &usize)| if self.fixed.contains(&d) { n.to_string() } else { "any".into() };
            let sizes: Vec<String> = self.shape.iter().enumerate().map(size).collect();
            return Err(Error::Shape {
                what: "input of the network, which was captured for one shape only",
                expected: format!("[{}]", sizes.join(", ")),
                got: format!("{shape:?}"),
            });
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n < 1 << 40);
        let sides = shape.iter().all(|side| *side < 1 << 31);
        let Some(elements) = elements.filter(|_| sides) else {
            return bad_value("input of the network", "a size that fits in memory", format!("{shape:?}"));
        };
        check_len("values of the input", elements, input.data.len())?;
        let map = match shape[2..] {
            [h, w] => [h, w],
            [w] => [1, w],
            _ => [1, 1],
        };
        Ok(Dims { images: shape[0], channels: shape[1], map, axes: shape.len() - 2 })
    }
}

/// Memory for so many bytes, or an error where there is none.
fn zeros(bytes: usize) -> Result<Vec<Line>> {
    let (mut buffer, lines) = (Vec::new(), bytes.div_ceil(size_of::<Line>()));
    if buffer.try_reserve_exact(lines).is_err() {
        return bad_value("memory of the network", "values that fit in memory", format!("{bytes} bytes in one"));
    }
    buffer.resize(lines, Line::ZERO);
    Ok(buffer)
}
