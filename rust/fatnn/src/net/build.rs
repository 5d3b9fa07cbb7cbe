//! Building a network: every node of a graph becomes an operation with its weights packed for this CPU; elementwise
//! functions, max pooling and quantizers move into the operation whose output they read, where it can run them on the way, and
//! what makes a summand into the operation that alone adds it.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::codec::CodesLayout;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::kernels::Family;
use crate::limits::{Budget, Limits};
use crate::net::network::{BatchRange, Beside, NetNode, Network, Port};
use crate::net::ops::{LIMIT, Node, Refusal, share};
use crate::net::schema;
use crate::net::value::{Maker, Operation};

/// See [`Network::new`].
pub(super) fn network(
    graph: &str,
    tensors: &BTreeMap<String, Tensor>,
    family: Option<Family>,
    limits: Limits,
) -> Result<Network> {
    let json: Json = serde_json::from_str(graph).map_err(|e| malformed(format!("the graph is not JSON: {e}")))?;
    schema::check(&json).map_err(malformed)?;
    let builder = Builder {
        family,
        budget: Budget::new(limits),
        inputs: Vec::new(),
        nodes: Vec::new(),
        names: BTreeMap::new(),
        kinds: Vec::new(),
        shapes: Vec::new(),
    };
    builder.build(&json, tensors)
}

fn malformed(why: String) -> Error {
    Error::Graph { why }
}

/// The attribute `batch` of an input.
fn batch_range(json: &Json) -> Option<BatchRange> {
    let [least, most, multiple] = json.as_array()?.as_slice() else { return None };
    let size = |json: &Json| json.as_u64().filter(|n| *n < LIMIT).map(|n| n as usize);
    let multiple = size(multiple).filter(|n| *n > 0)?;
    Some(BatchRange { least: size(least)?, most: size(most)?, multiple })
}

/// A node while the graph is built.
struct Draft {
    name: String,
    label: String,
    operation: Box<dyn Operation>,
    inputs: Vec<usize>,
}

/// Turns JSON into nodes.
struct Builder {
    family: Option<Family>,
    budget: Budget,
    inputs: Vec<Port>,
    /// `None` where a node has moved into another.
    nodes: Vec<Option<Draft>>,
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
        let values = self.inputs.len() + self.nodes.len();
        let nodes = finish(self.nodes, self.inputs.len());
        let cost = (self.budget.limits, self.budget.spent());
        Network::of(self.inputs, outputs, nodes, values, cost).map_err(|e| match e {
            Error::Memory { .. } | Error::Limit { .. } | Error::Environment { .. } => e,
            other => malformed(format!("at the shapes that it was converted at: {other}")),
        })
    }

    fn add(&mut self, json: &Json, tensors: &BTreeMap<String, Tensor>, foreign: &mut Vec<String>) -> Result<()> {
        let text = |key: &str| json[key].as_str().ok_or_else(|| malformed(format!("a node's {key:?} is no string")));
        let (name, op) = (text("name")?, text("op")?);
        let wrong = |why: String| malformed(format!("node {name:?} ({op}): {why}"));
        let shape = json["shape"].as_array().ok_or_else(|| wrong("it has no shape".into()))?;
        let shape: Option<Vec<usize>> =
            shape.iter().map(|d| d.as_u64().filter(|d| *d < LIMIT).map(|d| d as usize)).collect();
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
            let batch = match json["attrs"].get("batch") {
                None => None,
                Some(range) => {
                    Some(batch_range(range).ok_or_else(|| wrong("its range of batch sizes means nothing".into()))?)
                }
            };
            self.inputs.push(Port { name: name.to_owned(), shape, fixed, batch, value });
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
        let (attrs, family, budget) = (object("attrs")?, self.family, &self.budget);
        let node = Node { rank, attrs, tensors: &named, all: tensors, family, budget };
        let operation = match node.make(op) {
            Ok(operation) => operation,
            Err(Refusal::Malformed(why)) => return Err(wrong(why)),
            // A limit says what it counts; here is where it was met.
            Err(Refusal::Failed(Error::Limit { what, needed, unit, argument, limit })) => {
                let what = format!("node {name:?} ({op}): {what}");
                return Err(Error::Limit { what, needed, unit, argument, limit });
            }
            Err(Refusal::Failed(error)) => return Err(error),
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
        self.nodes.push(Some(Draft { name: name.to_owned(), label, operation, inputs }));
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
                let shape = self.shapes[value].clone();
                found.push(Port { name: name.clone(), shape, fixed: Vec::new(), batch: None, value });
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
            // Keys in an order of their own: pairs of key and item.
            ("dict_items" | "ordered_dict", Json::Array(items)) => {
                for item in items {
                    let pair =
                        item.as_array().filter(|pair| pair.len() == 2 && pair[0].is_string()).ok_or_else(wrong)?;
                    self.outputs(&pair[1], found)?;
                }
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Moves elementwise functions and max pooling into the operation whose output they alone read, and what alone makes a summand
    /// into the operation that alone reads it. Values keep their numbers; the time is linear in the number of nodes.
    fn fuse(&mut self, outputs: &mut [Port]) {
        let first = self.inputs.len();
        let mut readers = vec![0; self.kinds.len()]; // small: as long as the graph's text at most
        for &value in self.nodes.iter().flatten().flat_map(|node| &node.inputs) {
            readers[value] += 1;
        }
        for output in outputs.iter() {
            readers[output.value] += 2;
        }
        // Per value: the one that stands for it, itself unless its node has moved.
        let mut stands: Vec<usize> = (0..self.kinds.len()).collect(); // small: as above
        for n in 0..self.nodes.len() {
            // A node reads those before it, which are settled.
            let Some(mut node) = self.nodes[n].take() else { continue };
            node.inputs.iter_mut().for_each(|value| *value = stands[*value]);
            let alone = |value: usize| value >= first && readers[value] == 1;
            let kept = match *node.inputs.as_slice() {
                [source] if alone(source) => match self.moved(node, source - first) {
                    None => {
                        stands[first + n] = source;
                        readers[source] = readers[first + n];
                        None
                    }
                    kept => kept,
                },
                [_, summand] if alone(summand) => Some(self.summed(node, summand - first)),
                _ => Some(node),
            };
            self.nodes[n] = kept;
        }
        outputs.iter_mut().for_each(|port| port.value = stands[port.value]);
    }

    /// The node, into which node `summand` has moved if it takes that.
    fn summed(&mut self, mut node: Draft, summand: usize) -> Draft {
        let Some(Draft { name, label, operation, inputs }) = self.nodes[summand].take_if(|d| d.inputs.len() == 1)
        else {
            return node;
        };
        match node.operation.summand(Maker { name, label, operation }) {
            None => node.inputs[1] = inputs[0],
            Some(Maker { name, label, operation }) => {
                self.nodes[summand] = Some(Draft { name, label, operation, inputs });
            }
        }
        node
    }

    /// Moves a node into node `source`, where that takes it; gives back what is left of it.
    fn moved(&mut self, mut node: Draft, source: usize) -> Option<Draft> {
        let Some(source) = &mut self.nodes[source] else { return Some(node) };
        if let Some(functions) = node.operation.elementwise() {
            let rest = source.operation.absorb(functions)?;
            node.operation.absorb(rest);
            return Some(node);
        }
        let moved = node.operation.max_pool().is_some_and(|pool| source.operation.pool(pool));
        (!moved).then_some(node)
    }
}

/// The finished nodes; draft `n` makes value `first + n`. A quantizer whose source can run it moves there.
fn finish(drafts: Vec<Option<Draft>>, first: usize) -> Vec<NetNode> {
    let mut kept: Vec<(Draft, usize, Option<Beside>)> = Vec::new();
    // Per value: which of those makes it.
    let mut makers: BTreeMap<usize, usize> = BTreeMap::new();
    for (n, draft) in drafts.into_iter().enumerate() {
        let Some(draft) = draft else { continue };
        let value = first + n;
        if let Some(quantizer) = draft.operation.quantizer()
            && let Some(&maker) = makers.get(&draft.inputs[0])
            && let (source, _, beside @ None) = &mut kept[maker]
            && source.operation.quantize(quantizer)
        {
            *beside = Some(Beside { name: draft.name, label: draft.label, value, layout: quantizer.layout });
            continue;
        }
        makers.insert(value, kept.len());
        kept.push((draft, value, None));
    }
    let node = |(Draft { name, label, operation, inputs }, output, beside)| NetNode {
        name,
        label,
        operation: share(operation),
        inputs,
        output,
        beside,
    };
    kept.into_iter().map(node).collect()
}
