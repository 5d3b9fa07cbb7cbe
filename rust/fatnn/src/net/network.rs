//! A whole network in one call.
//!
//! [`Network`] is built once from a graph and its tensors (`build`). The first run at an input shape *plans*: it
//! settles every value's shape and buffer (a buffer is reused as soon as its value has been read for the last time). Later runs
//! at that shape allocate no memory for values. Runs at the same time are safe: each takes a set of buffers of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::CodesLayout;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::{CacheLine as Line, Family};
use crate::memory;
use crate::net::build;
use crate::net::file::{self, Tensor};
use crate::net::limits::Limits;
use crate::net::ops::transpose;
use crate::net::value::{Dims, Operation, Slice, SliceMut, Step, Value};
use crate::parallel::{self, Watch};

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
    limits: Limits,
    /// Bytes of packed weights.
    weight_bytes: u128,
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
    /// Sizes that the first dimension may have, where the model branches on it.
    pub batch: Option<BatchRange>,
    pub value: usize,
}

/// The attribute `batch` of an input: sizes from `least` to `most` that are multiples of `multiple`. Inputs that have one have
/// one batch size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BatchRange {
    pub least: usize,
    pub most: usize,
    pub multiple: usize,
}

impl BatchRange {
    fn check(self, batch: usize) -> Result<()> {
        if (self.least..=self.most).contains(&batch) && batch.is_multiple_of(self.multiple) {
            return Ok(());
        }
        let BatchRange { least, most, multiple } = self;
        let most = if most >= (1 << 31) - 1 { String::new() } else { format!(" to {most}") };
        let factor = if multiple == 1 { String::new() } else { format!(", in multiples of {multiple}") };
        bad_value(
            "batch of the network's input, on whose size the model branches",
            format!("from {least}{most}{factor}"),
            batch,
        )
    }
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
    ///
    /// # Errors
    /// [`Error::Shape`] where the shape has no channels or another number of values than there are; [`Error::Memory`].
    pub fn channels_first(&self) -> Result<Vec<f32>> {
        let elements = memory::product(self.shape.iter().copied());
        let ([_, channels, map @ ..], true) = (self.shape.as_slice(), elements == Some(self.data.len())) else {
            return Err(Error::Shape {
                what: "output",
                expected: format!("images, channels and axes of {} values in all", self.data.len()),
                got: format!("shape {:?}", self.shape),
            });
        };
        let mut data = memory::filled("output with channels first", self.data.len(), 0.0)?;
        transpose(&self.data, &mut data, map.iter().product(), *channels);
        Ok(data)
    }
}

/// Sizes of everything that a run at one input shape needs, settled by arithmetic only.
struct Sizes {
    values: Vec<Value>,
    /// Per value: its buffer.
    slots: Vec<usize>,
    /// Bytes of each.
    buffers: Vec<usize>,
    scratch: usize,
}

/// Buffers while their sizes are settled: a buffer is reused as soon as its value has been read for the last time.
#[derive(Default)]
struct Slots {
    bytes: Vec<usize>,
    /// Free buffers by size.
    free: BTreeSet<(usize, usize)>,
}

impl Slots {
    /// A buffer for so many bytes: the free one whose size is nearest, or a new one.
    fn place(&mut self, bytes: usize) -> usize {
        let below = self.free.range(..(bytes, 0)).next_back().copied();
        let above = self.free.range((bytes, 0)..).next().copied();
        let nearest = [below, above].into_iter().flatten().min_by_key(|(size, _)| size.abs_diff(bytes));
        match nearest {
            Some(free @ (size, slot)) => {
                self.free.remove(&free);
                self.bytes[slot] = size.max(bytes);
                slot
            }
            None => {
                self.bytes.push(bytes);
                self.bytes.len() - 1
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.free.insert((self.bytes[slot], slot));
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
    /// The one or two values that it reads, and how many.
    fn read(&self, values: &[Value]) -> ([Value; 2], usize) {
        let at = |i: usize| values[self.inputs[i.min(self.inputs.len() - 1)]];
        ([at(0), at(1)], self.inputs.len().min(2))
    }

    /// An error that names it.
    fn error(&self, error: Error) -> Error {
        match error {
            // A summand that runs inside it has named itself.
            Error::Node { .. } => error,
            _ => Error::Node { node: self.label.clone(), source: Box::new(error) },
        }
    }

    /// The values that it makes: its output first.
    fn makes(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.output).chain(self.beside.iter().map(|beside| beside.value))
    }
}

impl Network {
    /// Reads a network that [`crate::net::save`] wrote.
    ///
    /// # Errors
    /// As [`crate::net::load`]; [`Error::Unsupported`] naming the nodes that only PyTorch can run; [`Error::Limit`] where it
    /// would cost more than [`Limits::DEFAULT`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_within(path, Limits::default())
    }

    /// As [`Network::load`], within other limits. They hold when it is loaded, for the shapes that it was converted at, and in
    /// every run for the shapes that it gets then.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn load_within(path: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let path = path.as_ref();
        let (graph, tensors) = file::load(path)?;
        Self::within(&graph, &tensors, limits).map_err(|e| match e {
            Error::Graph { why } => Error::Format { path: path.into(), why },
            other => other,
        })
    }

    /// Builds a network from a graph's JSON (as a file has it) and its tensors.
    ///
    /// # Errors
    /// [`Error::Graph`] where the graph is not well-formed, [`Error::Unsupported`] naming the nodes that only PyTorch can run,
    /// [`Error::Limit`] where it would cost more than [`Limits::DEFAULT`], [`Error::Memory`] where there is no memory for its
    /// weights, [`Error::Environment`] where a `FATNN_*` variable has a meaningless value.
    pub fn new(graph: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        Self::within(graph, tensors, Limits::default())
    }

    /// As [`Network::new`], within other limits: see [`Network::load_within`].
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn within(graph: &str, tensors: &BTreeMap<String, Tensor>, limits: Limits) -> Result<Self> {
        crate::kernels::best()?;
        build::network(graph, tensors, None, limits)
    }

    /// As [`Network::new`], all its products on one family of kernels: for benchmarks.
    ///
    /// # Errors
    /// As [`Network::new`]; [`Error::Unsupported`] naming the nodes where the family has no kernel for its operands.
    pub fn for_family(graph: &str, tensors: &BTreeMap<String, Tensor>, family: Family) -> Result<Self> {
        build::network(graph, tensors, Some(family), Limits::NONE)
    }

    /// Checks that it can run at the shapes it was converted at, and within the limits.
    pub(super) fn of(
        inputs: Vec<Port>,
        outputs: Vec<Port>,
        nodes: Vec<NetNode>,
        values: usize,
        (limits, weight_bytes): (Limits, u128),
    ) -> Result<Self> {
        let net = Network { inputs, outputs, nodes, values, limits, weight_bytes, workspaces: Mutex::default() };
        let noted = net.inputs.iter().map(Port::noted).collect::<Result<Vec<_>>>()?;
        net.measure(&noted)?;
        Ok(net)
    }

    /// What it may cost.
    pub fn limits(&self) -> Limits {
        self.limits
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
    /// [`Error::Shape`] or [`Error::Value`] where the inputs do not fit, [`Error::NotANumber`] where a quantizer reads NaN,
    /// [`Error::Limit`] where a run at their sizes would cost more than the limits, [`Error::Memory`] where there is no memory.
    pub fn run(&self, inputs: &[Input<'_>]) -> Result<Vec<Output>> {
        self.run_watched(inputs, &Watch::none())
    }

    /// As [`Network::run`], for as long as `go_on` says so: it is asked on the calling thread, every 50 ms or so, and the run
    /// stops behind the node that is at work then.
    ///
    /// # Errors
    /// As [`Network::run`]; [`Error::Interrupted`] where it was stopped.
    pub fn run_while(&self, inputs: &[Input<'_>], go_on: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Output>> {
        self.run_watched(inputs, &Watch::new(Some(go_on)))
    }

    fn run_watched(&self, inputs: &[Input<'_>], watch: &Watch<'_>) -> Result<Vec<Output>> {
        match self.images_apart(inputs) {
            None => self.run_whole(inputs, &mut |_| (), watch),
            Some(images) => self.run_apart(inputs, images, watch),
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
        let free = self.inputs.iter().all(|port| !port.fixed.contains(&0) && port.batch.is_none());
        (alike && free && images > 1 && elements / images >= WORTHWHILE).then_some(images)
    }

    /// Runs images one by one.
    fn run_apart(&self, inputs: &[Input<'_>], images: usize, watch: &Watch<'_>) -> Result<Vec<Output>> {
        let mut shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape.to_vec()).collect(); // small: sizes
        for shape in &mut shapes {
            shape[0] = 1;
        }
        let apart = parallel::for_each_alone(watch, images, |image| {
            let mut one = inputs.to_vec(); // small: an input each
            for (input, shape) in one.iter_mut().zip(&shapes) {
                let len = input.data.len() / images;
                (input.shape, input.data) = (shape, &input.data[image * len..(image + 1) * len]);
            }
            self.run_whole(&one, &mut |_| (), watch)
        })?;
        let mut apart = apart.into_iter();
        let mut outputs = apart.next().unwrap_or_default();
        for output in &mut outputs {
            let rest = output.data.len().saturating_mul(images - 1);
            memory::reserve("outputs of the network", &mut output.data, rest)?;
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
        self.run_whole(inputs, observe, &Watch::none())
    }

    fn run_whole(
        &self,
        inputs: &[Input<'_>],
        observe: &mut (dyn FnMut(Observed<'_>) + Send),
        watch: &Watch<'_>,
    ) -> Result<Vec<Output>> {
        let elements: usize = inputs.iter().map(|input| input.data.len()).sum();
        if elements < WORTHWHILE {
            return self.run_here(inputs, observe, watch);
        }
        parallel::inside(watch, || self.run_here(inputs, observe, watch))?
    }

    /// [`Network::run_whole`] on this thread, and those that it finds awake.
    fn run_here(
        &self,
        inputs: &[Input<'_>],
        observe: &mut dyn FnMut(Observed<'_>),
        watch: &Watch<'_>,
    ) -> Result<Vec<Output>> {
        check_len("inputs of the network", self.inputs.len(), inputs.len())?;
        let dims = self.inputs.iter().zip(inputs).map(|(port, input)| port.dims(input)).collect::<Result<Vec<_>>>()?;
        let mut batches = self.inputs.iter().zip(&dims).filter(|(port, _)| port.batch.is_some()).map(|(_, d)| d.images);
        if let Some(first) = batches.next()
            && let Some(other) = batches.find(|images| *images != first)
        {
            return bad_value("batches of the network's inputs", "one size", format!("{first} and {other}"));
        }
        let mut workspace = self.take(&dims)?;
        let outputs = self.run_in(&mut workspace, inputs, observe, watch)?;
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
        let Sizes { values, slots, buffers, scratch } = self.measure(input_dims)?;
        let mut steps: Vec<Box<dyn Step>> = memory::reserved("steps of the network", self.nodes.len())?;
        for node in &self.nodes {
            let (read, count) = node.read(&values);
            let (_, step) = node.operation.clone().plan(&read[..count]).map_err(|e| node.error(e))?;
            steps.push(step);
        }
        let mut allocated = memory::reserved("values of the network", buffers.len())?;
        for bytes in buffers {
            allocated.push(Buffer(zeros(bytes)?));
        }
        let scratch = zeros(scratch)?;
        let input_dims = memory::copied("values of the network", input_dims)?;
        Ok(Workspace { input_dims, steps, values, slots, buffers: allocated, scratch })
    }

    /// Settles sizes at these input shapes and checks them against the limits; allocates only a few numbers per node.
    fn measure(&self, input_dims: &[Dims]) -> Result<Sizes> {
        // Values that nothing makes any more, since their node moved into another, stay empty.
        let nothing = Value::float(Dims { images: 0, channels: 0, map: [1, 1], axes: 0 });
        let mut values = memory::filled("values of the network", self.values, nothing)?;
        for (value, dims) in values.iter_mut().zip(input_dims) {
            *value = Value::float(*dims);
            value.check()?;
        }
        let images = input_dims.first().map_or(1, |dims| dims.images.max(1)) as u128;
        let (mut scratch, mut tables, mut macs) = (0, 0u128, 0u128);
        for node in &self.nodes {
            let (read, count) = node.read(&values);
            let (value, cost) = node.operation.measure(&read[..count]).map_err(|e| node.error(e))?;
            value.check().map_err(|e| node.error(e))?;
            values[node.output] = value;
            let mut bytes = value.buffer_bytes() as u128 + cost.scratch as u128 + cost.bytes;
            if let Some(Beside { value, layout, .. }) = node.beside {
                values[value] = Value { codes: Some(layout), ..values[node.output] };
                values[value].check().map_err(|e| node.error(e))?;
                bytes += values[value].buffer_bytes() as u128;
            }
            self.limits.check_bytes(|| node.label.clone(), bytes)?;
            macs = macs.saturating_add(cost.macs);
            self.limits.check_macs(|| format!("{}, with the nodes before it", node.label), macs / images)?;
            scratch = scratch.max(cost.scratch);
            tables = tables.saturating_add(cost.bytes);
        }
        // The last node that reads each value; outputs live to the end.
        let mut last = memory::filled("values of the network", self.values, 0)?;
        for (n, node) in self.nodes.iter().enumerate() {
            for &value in &node.inputs {
                last[value] = n;
            }
        }
        let mut output_bytes = 0;
        for output in &self.outputs {
            last[output.value] = usize::MAX;
            output_bytes += values[output.value].buffer_bytes() as u128;
        }
        let mut placed = Slots::default();
        let mut slots = memory::filled("values of the network", self.values, usize::MAX)?;
        for v in 0..self.inputs.len() {
            slots[v] = placed.place(values[v].buffer_bytes());
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
                    _ => placed.place(values[made].buffer_bytes()),
                };
            }
            for (i, &value) in node.inputs.iter().enumerate() {
                if last[value] == n && replaced != Some(value) && !node.inputs[..i].contains(&value) {
                    placed.release(slots[value]);
                }
            }
        }
        let buffers = placed.bytes;
        let values_bytes = buffers.iter().fold(0u128, |n, &bytes| n + bytes as u128);
        let all = values_bytes + output_bytes + scratch as u128 + tables;
        self.limits.check_bytes(|| "the network, with its weights and values".into(), all + self.weight_bytes)?;
        Ok(Sizes { values, slots, buffers, scratch })
    }

    fn run_in(
        &self,
        workspace: &mut Workspace,
        inputs: &[Input<'_>],
        observe: &mut dyn FnMut(Observed<'_>),
        watch: &Watch<'_>,
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
            watch.check()?;
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
                _ => Err(Error::Graph { why: format!("node {:?} reads {} values", node.name, node.inputs.len()) }),
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
            Ok(Output { shape: value.dims.shape(), data: memory::copied("outputs of the network", data)? })
        };
        self.outputs.iter().map(output).collect()
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
        if let Some(batch) = self.batch {
            batch.check(shape[0])?;
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n < 1 << 40);
        let sides = shape.iter().all(|side| *side < 1 << 31);
        let Some(elements) = elements.filter(|_| sides) else {
            return bad_value("input of the network", "a size that fits in memory", format!("{shape:?}"));
        };
        check_len("values of the input", elements, input.data.len())?;
        Ok(dims(shape))
    }

    /// The dimensions at conversion.
    fn noted(&self) -> Result<Dims> {
        if !(2..=4).contains(&self.shape.len()) || self.shape.iter().any(|side| *side >= 1 << 31) {
            return bad_value("input of the network", "a shape of two to four sizes", format!("{:?}", self.shape));
        }
        Ok(dims(&self.shape))
    }
}

/// Dimensions of a shape of two to four sizes.
fn dims(shape: &[usize]) -> Dims {
    let map = match shape[2..] {
        [h, w] => [h, w],
        [w] => [1, w],
        _ => [1, 1],
    };
    Dims { images: shape[0], channels: shape[1], map, axes: shape.len() - 2 }
}

/// Memory for so many bytes.
fn zeros(bytes: usize) -> Result<Vec<Line>> {
    memory::filled("values of the network", bytes.div_ceil(size_of::<Line>()), Line::ZERO)
}
