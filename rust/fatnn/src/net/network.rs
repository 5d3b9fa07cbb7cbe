//! A whole network in one call.
//!
//! [`Network`] is built once from a graph and its tensors: every node becomes an operation with its weights packed for this
//! CPU, and elementwise functions move into the operation whose output they read. The first run at an input shape *plans*: it
//! settles every value's shape and buffer (a buffer is reused as soon as its value has been read for the last time). Later runs
//! at that shape allocate no memory for values. Runs at the same time are safe: each takes a set of buffers of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value as Json;

use crate::codec::CodesLayout;
use crate::error::{Error, Result, bad_value, check_len};
use crate::net::file::{self, Tensor};
use crate::net::ops::{Elementwise, Node, Refusal, share, transpose};
use crate::net::value::{Dims, Floats, Operation, Slice, SliceMut, Step, Value, zeros};

/// Sets of buffers that are kept for later runs.
const KEPT: usize = 8;

/// A network, ready to run.
#[derive(Debug)]
pub struct Network {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    nodes: Vec<NetNode>,
    /// Number of values: inputs first, then one per node.
    values: usize,
    workspaces: Mutex<Vec<Workspace>>,
}

/// An input or an output.
#[derive(Clone, Debug)]
struct Port {
    name: String,
    /// Shape at conversion.
    shape: Vec<usize>,
    /// Dimensions whose size is part of the network: the model was captured for that size only.
    fixed: Vec<usize>,
    value: usize,
}

#[derive(Debug)]
struct NetNode {
    name: String,
    /// For messages.
    label: String,
    operation: Arc<dyn Operation>,
    inputs: Vec<usize>,
    output: usize,
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

/// A node's value, for [`Network::run_observed`]. Elementwise functions that run inside another node are not seen apart.
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
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Buffer {
    Float(Floats),
    Codes(Vec<u8>),
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
        let json: Json = serde_json::from_str(graph).map_err(|e| malformed(format!("the graph is not JSON: {e}")))?;
        crate::kernels::best()?;
        Builder::default().build(&json, tensors)
    }

    /// Names of the inputs, with their shapes at conversion.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|port| (port.name.as_str(), port.shape.as_slice()))
    }

    /// Names of the outputs, with their shapes at conversion.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.outputs.iter().map(|port| (port.name.as_str(), port.shape.as_slice()))
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
        self.run_observed(inputs, &mut |_| ())
    }

    /// As [`Network::run`], and shows `observe` every node's value as it is made, and how long that took.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn run_observed(&self, inputs: &[Input<'_>], observe: &mut dyn FnMut(Observed<'_>)) -> Result<Vec<Output>> {
        check_len("inputs of the network", self.inputs.len(), inputs.len())?;
        let dims = self.inputs.iter().zip(inputs).map(|(port, input)| port.dims(input)).collect::<Result<Vec<_>>>()?;
        let mut workspace = self.take(&dims)?;
        let outputs = self.run_in(&mut workspace, inputs, observe)?;
        let mut kept = self.lock();
        if kept.len() == KEPT {
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
        let mut values: Vec<Value> = input_dims.iter().map(|dims| Value::float(*dims)).collect();
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        for node in &self.nodes {
            let read: Vec<Value> = node.inputs.iter().map(|&v| values[v]).collect();
            let (value, step) = node
                .operation
                .clone()
                .plan(&read)
                .map_err(|e| Error::Node { node: node.label.clone(), source: Box::new(e) })?;
            debug_assert_eq!(values.len(), node.output);
            value.check_size().map_err(|e| Error::Node { node: node.label.clone(), source: Box::new(e) })?;
            values.push(value);
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
        let mut buffers: Vec<(bool, usize)> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slots = Vec::new();
        let mut place = |value: &Value, free: &mut Vec<usize>| {
            let (codes, len) = (value.codes.is_some(), value.buffer_len());
            // The free buffer of the kind whose size is nearest.
            let fits = free.iter().enumerate().filter(|(_, b)| buffers[**b].0 == codes);
            match fits.min_by_key(|(_, b)| buffers[**b].1.abs_diff(len)).map(|(at, _)| at) {
                Some(at) => {
                    let slot = free.swap_remove(at);
                    buffers[slot].1 = buffers[slot].1.max(len);
                    slot
                }
                None => {
                    buffers.push((codes, len));
                    buffers.len() - 1
                }
            }
        };
        for value in &values[..self.inputs.len()] {
            slots.push(place(value, &mut free));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            slots.push(place(&values[node.output], &mut free));
            for (value, &slot) in slots.iter().enumerate() {
                if last[value] == n && value != node.output && node.inputs.contains(&value) {
                    free.push(slot);
                }
            }
        }
        let scratch = steps.iter().map(|step| step.scratch()).max().unwrap_or(0);
        let buffers = buffers
            .into_iter()
            .map(|(codes, len)| Ok(if codes { Buffer::Codes(zeros(len)?) } else { Buffer::Float(Floats::zeros(len)?) }))
            .collect::<Result<_>>()?;
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
        for (v, input) in inputs.iter().enumerate() {
            let len = values[v].buffer_len();
            let Buffer::Float(buffer) = &mut buffers[slots[v]] else { unreachable!("inputs are floats") };
            let dims = values[v].dims;
            if input.channels_last || len == 0 {
                buffer[..len].copy_from_slice(input.data);
            } else {
                transpose(input.data, &mut buffer[..len], dims.channels, dims.map[0] * dims.map[1]);
            }
        }
        for (node, step) in self.nodes.iter().zip(steps) {
            let start = std::time::Instant::now();
            let len = values[node.output].buffer_len();
            // An empty stand-in costs nothing and lets the other buffers be read meanwhile.
            let mut out = std::mem::replace(&mut buffers[slots[node.output]], Buffer::Codes(Vec::new()));
            let read = |v: usize| match &buffers[slots[v]] {
                Buffer::Float(x) => Slice::Float(&x[..values[v].buffer_len()]),
                Buffer::Codes(x) => Slice::Codes(&x[..values[v].buffer_len()]),
            };
            let target = match &mut out {
                Buffer::Float(x) => SliceMut::Float(&mut x[..len]),
                Buffer::Codes(x) => SliceMut::Codes(&mut x[..len]),
            };
            let done = match *node.inputs.as_slice() {
                [a] => step.run(&[read(a)], scratch, target),
                [a, b] => step.run(&[read(a), read(b)], scratch, target),
                _ => unreachable!("operations read one or two values"),
            };
            buffers[slots[node.output]] = out;
            done.map_err(|e| Error::Node { node: node.label.clone(), source: Box::new(e) })?;
            let nanoseconds = start.elapsed().as_nanos();
            let (floats, codes) = match &buffers[slots[node.output]] {
                Buffer::Float(x) => (Some(&x[..len]), None),
                Buffer::Codes(x) => (None, values[node.output].codes.map(|layout| (&x[..len], layout))),
            };
            let dims = values[node.output].dims;
            observe(Observed { node: &node.name, nanoseconds, dims, floats, codes });
        }
        let output = |port: &Port| {
            let value = &values[port.value];
            let Buffer::Float(data) = &buffers[slots[port.value]] else { unreachable!("outputs are floats") };
            Output { shape: value.dims.shape(), data: data[..value.buffer_len()].to_vec() }
        };
        Ok(self.outputs.iter().map(output).collect())
    }
}

impl Workspace {
    fn bytes(&self) -> usize {
        let buffer = |b: &Buffer| match b {
            Buffer::Float(x) => x.bytes(),
            Buffer::Codes(x) => x.capacity(),
        };
        self.buffers.iter().map(buffer).sum::<usize>() + self.scratch.capacity()
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

fn malformed(why: String) -> Error {
    Error::Graph { why }
}

/// A node while the graph is built.
struct Draft {
    name: String,
    label: String,
    operation: Box<dyn Operation>,
    inputs: Vec<usize>,
}

/// Turns JSON into nodes.
#[derive(Default)]
struct Builder {
    inputs: Vec<Port>,
    nodes: Vec<Draft>,
    /// Name → value; and per value its kind, rank and number of readers.
    names: BTreeMap<String, usize>,
    kinds: Vec<Option<CodesLayout>>,
    shapes: Vec<Vec<usize>>,
}

impl Builder {
    fn build(mut self, json: &Json, tensors: &BTreeMap<String, Tensor>) -> Result<Network> {
        let list = json["nodes"].as_array().ok_or_else(|| malformed("the graph has no list of nodes".into()))?;
        let mut foreign = Vec::new();
        let (inputs, others): (Vec<&Json>, Vec<&Json>) = list.iter().partition(|node| node["op"] == "input");
        for node in inputs.into_iter().chain(others) {
            self.add(node, tensors, &mut foreign)?;
        }
        if !foreign.is_empty() {
            return Err(Error::Unsupported { what: foreign.join("; ") });
        }
        let mut outputs = Vec::new();
        self.outputs(&json["outputs"], &mut outputs)?;
        self.fuse(&mut outputs);
        let first = self.inputs.len();
        let net_node = |(n, Draft { name, label, operation, inputs }): (usize, Draft)| NetNode {
            name,
            label,
            operation: share(operation),
            inputs,
            output: first + n,
        };
        let nodes: Vec<NetNode> = self.nodes.into_iter().enumerate().map(net_node).collect();
        let values = self.inputs.len() + nodes.len();
        Ok(Network { inputs: self.inputs, outputs, nodes, values, workspaces: Mutex::default() })
    }

    fn add(&mut self, json: &Json, tensors: &BTreeMap<String, Tensor>, foreign: &mut Vec<String>) -> Result<()> {
        let text = |key: &str| json[key].as_str().ok_or_else(|| malformed(format!("a node's {key:?} is no string")));
        let (name, op) = (text("name")?, text("op")?);
        let wrong = |why: String| malformed(format!("node {name:?} ({op}): {why}"));
        let shape = json["shape"].as_array().ok_or_else(|| wrong("it has no shape".into()))?;
        let shape: Option<Vec<usize>> = shape.iter().map(|d| d.as_u64().map(|d| d as usize)).collect();
        let shape = shape.ok_or_else(|| wrong("its shape is not a list of sizes".into()))?;
        if self.names.contains_key(name) {
            return Err(wrong("its name is not unique".into()));
        }
        let value = self.kinds.len();
        self.names.insert(name.to_owned(), value);
        self.shapes.push(shape.clone());
        if op == "input" {
            self.kinds.push(None);
            if !(2..=4).contains(&shape.len()) || json["attrs"]["dtype"] != "float32" || shape[1] == 0 {
                foreign.push(format!("input {name:?} is not float32 of two to four dimensions"));
            }
            let fixed = json["attrs"]["fixed"].as_array().map_or(&[][..], Vec::as_slice);
            let fixed = fixed.iter().map(|d| d.as_u64().map(|d| d as usize).filter(|d| *d < shape.len()));
            let fixed =
                fixed.collect::<Option<Vec<_>>>().ok_or_else(|| wrong("its fixed dimensions mean nothing".into()))?;
            self.inputs.push(Port { name: name.to_owned(), shape, fixed, value });
            return Ok(());
        }
        let object = |key: &str| json[key].as_object().ok_or_else(|| wrong(format!("{key:?} is no object")));
        let named: BTreeMap<String, String> =
            serde_json::from_value(json["tensors"].clone()).map_err(|e| wrong(format!("its tensors: {e}")))?;
        let read = json["inputs"].as_array().ok_or_else(|| wrong("it has no inputs".into()))?;
        let mut inputs = Vec::new();
        for input in read {
            let known = input.as_str().and_then(|input| self.names.get(input)).filter(|v| **v < value);
            inputs.push(*known.ok_or_else(|| wrong(format!("it reads {input}, which no node before it makes")))?);
        }
        if !(1..=2).contains(&inputs.len()) {
            foreign.push(format!("node {name:?} ({op}) reads {} values", inputs.len()));
            self.kinds.push(None);
            return Ok(());
        }
        let read = &self.shapes[inputs[0]];
        let rank = read.len();
        let known_rank = match op {
            "linear" | "linear_int8" => rank == 2,
            "conv1d_int8" => rank == 3,
            "conv2d_int8" => rank == 4,
            _ if op.ends_with("1d") => rank == 3,
            _ if op.ends_with("2d") => rank == 4,
            _ => (2..=4).contains(&rank),
        };
        if !known_rank || (op == "add" && inputs.iter().any(|&v| self.shapes[v] != *read)) {
            let shapes: Vec<_> = inputs.iter().map(|&v| &self.shapes[v]).collect();
            foreign.push(format!("node {name:?}: operation {op:?} on the shapes {shapes:?}"));
            self.kinds.push(None);
            return Ok(());
        }
        let node = Node { rank, attrs: object("attrs")?, tensors: &named, all: tensors };
        let operation = match node.make(op) {
            Ok(operation) => operation,
            Err(Refusal::Malformed(why)) => return Err(wrong(why)),
            Err(Refusal::Foreign(why)) => {
                foreign.push(format!("node {name:?}: operation {op:?} ({why})"));
                self.kinds.push(None);
                return Ok(());
            }
        };
        let kinds: Vec<_> = inputs.iter().map(|&v| self.kinds[v]).collect();
        // After a foreign node kinds are unknown; the list of foreign nodes is the error then.
        let kind = match operation.codes(&kinds) {
            Ok(kind) => kind,
            Err(_) if !foreign.is_empty() => None,
            Err(e) => return Err(wrong(e.to_string())),
        };
        self.kinds.push(kind);
        // Messages name the layer, as the model's author knows it.
        let label = match json["layer"].as_str() {
            Some(layer) if !layer.is_empty() => format!("layer '{layer}'"),
            _ => format!("node '{name}'"),
        };
        self.nodes.push(Draft { name: name.to_owned(), label, operation, inputs });
        Ok(())
    }

    /// Flattens the structure of outputs, in order.
    fn outputs(&self, json: &Json, found: &mut Vec<Port>) -> Result<()> {
        let wrong = || malformed(format!("outputs: {json} is no structure of float values"));
        let object = json.as_object().filter(|o| o.len() == 1).ok_or_else(wrong)?;
        let (kind, inner) = object.iter().next().ok_or_else(wrong)?;
        match (kind.as_str(), inner) {
            ("value", Json::String(name)) => {
                let value = *self.names.get(name).ok_or_else(wrong)?;
                if self.kinds[value].is_some() {
                    return Err(wrong());
                }
                found.push(Port { name: name.clone(), shape: self.shapes[value].clone(), fixed: Vec::new(), value });
            }
            ("constant", _) => {}
            ("list" | "tuple", Json::Array(items)) => {
                for item in items {
                    self.outputs(item, found)?;
                }
            }
            ("dict", Json::Object(items)) => {
                for item in items.values() {
                    self.outputs(item, found)?;
                }
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Moves elementwise functions into the operation whose output they alone read; the emptied nodes go.
    fn fuse(&mut self, outputs: &mut [Port]) {
        let first = self.inputs.len();
        let mut readers = vec![0; self.kinds.len()];
        for &value in self.nodes.iter().flat_map(|node| &node.inputs) {
            readers[value] += 1;
        }
        for output in outputs.iter() {
            readers[output.value] += 2;
        }
        let mut n = 0;
        while n < self.nodes.len() {
            let source = self.nodes[n].inputs[0];
            let fusible = source >= first && readers[source] == 1 && self.nodes[n].inputs.len() == 1;
            let functions: Option<Vec<Elementwise>> =
                if fusible { self.nodes[n].operation.elementwise() } else { None };
            let Some(functions) = functions else {
                n += 1;
                continue;
            };
            match self.nodes[source - first].operation.absorb(functions) {
                Some(rest) => {
                    self.nodes[n].operation.absorb(rest);
                    n += 1;
                }
                None => {
                    // Value `first + n` becomes `source`; what comes behind moves up by one.
                    let gone = first + n;
                    self.nodes.remove(n);
                    readers[source] = readers[gone];
                    readers.remove(gone);
                    let moved = |v: &mut usize| {
                        *v = match (*v).cmp(&gone) {
                            std::cmp::Ordering::Less => *v,
                            std::cmp::Ordering::Equal => source,
                            std::cmp::Ordering::Greater => *v - 1,
                        }
                    };
                    let reads = self.nodes.iter_mut().flat_map(|node| &mut node.inputs);
                    reads.chain(outputs.iter_mut().map(|port| &mut port.value)).for_each(moved);
                }
            }
        }
    }
}
