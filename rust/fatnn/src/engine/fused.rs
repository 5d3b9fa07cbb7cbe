//! The graph that passes rewrite: which nodes run inside which. Data only; weights are packed
//! later.

use crate::graph::op::Op;
use crate::graph::{Graph, Node, NodeView, Tensors, ValueId};

/// A node, with the nodes that run inside it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FusedNode {
    /// Its number in the graph, and that of the value it makes.
    pub node: ValueId,
    /// Values that it reads. With a shortcut the second is what the shortcut reads.
    pub inputs: Vec<ValueId>,
    /// The function before it, which only bounds its input.
    pub bounds: Option<usize>,
    /// Functions of its input, in order.
    pub before: Vec<usize>,
    /// The convolution that makes its input line by line: then the first input is what that reads.
    pub source: Option<Box<FusedNode>>,
    /// Functions of its output, in order.
    pub elementwise: Vec<usize>,
    /// Max pooling after those.
    pub max_pool: Option<usize>,
    /// A quantizer of its output, whose codes it makes next to it.
    pub quantizer: Option<usize>,
    /// The convolution that makes its residual, the second input.
    pub shortcut: Option<Box<FusedNode>>,
}

/// A graph while it is rewritten. Values keep their numbers.
#[derive(Clone, Debug)]
pub(crate) struct FusedGraph<'a> {
    pub graph: &'a Graph,
    pub tensors: &'a Tensors,
    /// Per node of the graph; `None` for inputs and for nodes that run inside others.
    nodes: Vec<Option<FusedNode>>,
    /// Values that the network returns.
    outputs: Vec<ValueId>,
    /// Per value: how many read it. An output counts twice, so that nothing else is its only
    /// reader.
    readers: Vec<usize>,
    /// Per value: the one that stands for it, itself unless its node runs inside another.
    stands: Vec<ValueId>,
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
                quantizer: None,
                shortcut: None,
            }),
        };
        let nodes = graph.nodes.iter().enumerate().map(fused).collect();
        FusedGraph { graph, tensors, nodes, outputs, readers, stands: (0..count).collect() }
    }

    /// Number of nodes of the graph, fused ones too.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn op(&self, node: usize) -> &'a Op {
        &self.graph.nodes[node].op
    }

    pub fn view(&self, node: usize) -> NodeView<'a> {
        NodeView { node: &self.graph.nodes[node], tensors: self.tensors }
    }

    /// The node of that number, unless it is an input or runs inside another.
    pub fn node(&self, node: usize) -> Option<&FusedNode> {
        self.nodes[node].as_ref()
    }

    pub fn node_mut(&mut self, node: usize) -> Option<&mut FusedNode> {
        self.nodes[node].as_mut()
    }

    /// How many read a value.
    pub fn readers(&self, value: ValueId) -> usize {
        self.readers[value]
    }

    /// The value that stands for another. Each pass adds a link at most.
    pub fn resolved(&self, mut value: ValueId) -> ValueId {
        while self.stands[value] != value {
            value = self.stands[value];
        }
        value
    }

    /// Value `input` of a node.
    pub fn input(&self, node: usize, input: usize) -> Option<ValueId> {
        self.node(node).and_then(|node| node.inputs.get(input)).map(|&value| self.resolved(value))
    }

    /// Removes a node whose only producer now also does its work: the producer's value stands for
    /// the node's.
    pub fn fuse_into_producer(&mut self, node: usize, producer: usize) {
        self.nodes[node] = None;
        self.stands[node] = producer;
        self.readers[producer] = self.readers[node];
    }

    /// Takes a node out; its value is no longer made, or is made next to another.
    pub fn take(&mut self, node: usize) -> Option<FusedNode> {
        self.nodes[node].take()
    }

    /// The nodes that are left, in order, and the values that are returned.
    pub fn finish(self) -> (Vec<FusedNode>, Vec<ValueId>) {
        let stands = |value: &ValueId| self.resolved(*value);
        let outputs = self.outputs.iter().map(stands).collect();
        let mut nodes: Vec<FusedNode> = self.nodes.iter().flatten().cloned().collect();
        nodes.iter_mut().for_each(|node| {
            node.inputs.iter_mut().for_each(|value| *value = self.resolved(*value))
        });
        (nodes, outputs)
    }
}
