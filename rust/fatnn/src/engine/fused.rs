//! The graph that passes rewrite: it says which nodes run inside which others. It is data only;
//! weights are packed later.

use crate::graph::op::Op;
use crate::graph::{Graph, Node, NodeView, Tensors, ValueId};

/// A node and the nodes that are fused into it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FusedNode {
    /// Its number in the graph, which is also the number of its output.
    pub node: ValueId,
    /// Values that it reads. With a shortcut, the second is the shortcut's input.
    pub inputs: Vec<ValueId>,
    /// A function of its input that only clamps, such as ReLU.
    pub bounds: Option<usize>,
    /// Elementwise functions of its input, in the order in which they run.
    pub before: Vec<usize>,
    /// The convolution that computes its input line by line: a 1×1 convolution before a depthwise
    /// one, or a depthwise one before a quantizer. If set, the first input is that convolution's.
    pub source: Option<Box<FusedNode>>,
    /// Elementwise functions of its output, in the order in which they run.
    pub elementwise: Vec<usize>,
    /// Max pooling that follows `elementwise`.
    pub max_pool: Option<usize>,
    /// A `fake_quantize` of its output after `elementwise`: the output is stored as bytes.
    pub int8: Option<usize>,
    /// A quantizer of its output. The node then writes the codes, too.
    pub quantizer: Option<usize>,
    /// Whether only this quantizer reads its floats, which are then not written.
    pub only_codes: bool,
    /// The convolution that computes its residual, the second input.
    pub shortcut: Option<Box<FusedNode>>,
}

/// A graph during rewriting. Values keep their numbers.
#[derive(Clone, Debug)]
pub(crate) struct FusedGraph<'a> {
    pub graph: &'a Graph,
    pub tensors: &'a Tensors,
    /// Indexed by node of the graph; `None` for inputs and for nodes that are fused into others.
    nodes: Vec<Option<FusedNode>>,
    /// Values that the network returns.
    outputs: Vec<ValueId>,
    /// Per value: its number of readers. An output counts as two more, so no node is its only
    /// reader.
    readers: Vec<usize>,
    /// Per value: the value that replaces it; itself unless its node was fused into a producer.
    replaced_by: Vec<ValueId>,
}

impl<'a> FusedGraph<'a> {
    pub fn new(graph: &'a Graph, tensors: &'a Tensors) -> Self {
        let count = graph.nodes.len();
        let outputs = graph.outputs.values();
        let mut readers = vec![0; count]; // small: as long as the graph's text at most
        graph.nodes.iter().flat_map(|node| &node.inputs).for_each(|&value| readers[value] += 1);
        outputs.iter().for_each(|&value| readers[value] += 2);
        let fused = |(n, node): (usize, &Node)| match node.op {
            Op::Input(_) => None,
            _ => Some(FusedNode {
                node: n,
                inputs: node.inputs.clone(),
                bounds: None,
                before: Vec::new(),
                source: None,
                elementwise: Vec::new(),
                max_pool: None,
                int8: None,
                quantizer: None,
                only_codes: false,
                shortcut: None,
            }),
        };
        let nodes = graph.nodes.iter().enumerate().map(fused).collect();
        FusedGraph { graph, tensors, nodes, outputs, readers, replaced_by: (0..count).collect() }
    }

    /// Number of nodes of the graph, including fused ones.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn op(&self, node: usize) -> &'a Op {
        &self.graph.nodes[node].op
    }

    pub fn view(&self, node: usize) -> NodeView<'a> {
        NodeView { node: &self.graph.nodes[node], tensors: self.tensors }
    }

    /// Whether the network returns this value.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(&value)
    }

    /// The node with this number; `None` for an input and for a node that is fused into another.
    pub fn node(&self, node: usize) -> Option<&FusedNode> {
        self.nodes[node].as_ref()
    }

    pub fn node_mut(&mut self, node: usize) -> Option<&mut FusedNode> {
        self.nodes[node].as_mut()
    }

    /// Number of readers of a value; see the field.
    pub fn readers(&self, value: ValueId) -> usize {
        self.readers[value]
    }

    /// The value that now replaces `value`. Each pass adds at most one link to the chain.
    pub fn resolved(&self, mut value: ValueId) -> ValueId {
        while self.replaced_by[value] != value {
            value = self.replaced_by[value];
        }
        value
    }

    /// Input number `input` of a node, after replacements.
    pub fn input(&self, node: usize, input: usize) -> Option<ValueId> {
        self.node(node).and_then(|node| node.inputs.get(input)).map(|&value| self.resolved(value))
    }

    /// Removes a node that was fused into the only producer of its input. The producer's value
    /// replaces the node's.
    pub fn fuse_into_producer(&mut self, node: usize, producer: usize) {
        self.nodes[node] = None;
        self.replaced_by[node] = producer;
        self.readers[producer] = self.readers[node];
    }

    /// Removes a node and returns it. Its value no longer exists, or another node writes it as a
    /// second result.
    pub fn take(&mut self, node: usize) -> Option<FusedNode> {
        self.nodes[node].take()
    }

    /// Moves the node that computes the first input of `node`, its only reader, into `node` as its
    /// source. Returns whether the producer was there.
    pub fn fuse_source(&mut self, node: usize, producer: usize) -> bool {
        let Some(source) = self.take(producer) else { return false };
        if let Some(node) = self.node_mut(node) {
            node.inputs[0] = source.inputs[0];
            node.source = Some(Box::new(source));
        }
        true
    }

    /// The remaining nodes in order, and the values that the network returns.
    pub fn finish(self) -> (Vec<FusedNode>, Vec<ValueId>) {
        let replaced_by = |value: &ValueId| self.resolved(*value);
        let outputs = self.outputs.iter().map(replaced_by).collect();
        let mut nodes: Vec<FusedNode> = self.nodes.iter().flatten().cloned().collect();
        nodes.iter_mut().for_each(|node| {
            node.inputs.iter_mut().for_each(|value| *value = self.resolved(*value))
        });
        (nodes, outputs)
    }
}
