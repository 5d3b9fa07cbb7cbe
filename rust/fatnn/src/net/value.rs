//! What flows between a network's operations, and the contract that an operation keeps.

use std::any::Any;
use std::sync::Arc;

use crate::codec::CodesLayout;
use crate::epilogue::Quantizer;
use crate::error::{Result, bad_value};
use crate::memory;

/// Dimensions of a value: images, channels, and as many spatial axes as it has. In memory, floats are always
/// `images × height × width × channels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    pub images: usize,
    pub channels: usize,
    /// Height and width; 1 for axes that the value does not have.
    pub map: [usize; 2],
    /// Spatial axes: 0 (a linear layer's), 1 or 2.
    pub axes: usize,
}

impl Dims {
    pub fn pixels(&self) -> usize {
        self.images * self.map[0] * self.map[1]
    }

    pub fn elements(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Elements, where only arithmetic can overflow.
    fn counted(&self) -> u128 {
        [self.images, self.channels, self.map[0], self.map[1]].iter().fold(1, |n, &f| n.saturating_mul(f as u128))
    }

    /// As PyTorch writes it: images, channels, then the spatial axes.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = vec![self.images, self.channels];
        shape.extend(&self.map[2 - self.axes..]);
        shape
    }
}

/// A value that an operation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub dims: Dims,
    /// `None` for floats.
    pub codes: Option<CodesLayout>,
}

impl Value {
    pub fn float(dims: Dims) -> Self {
        Value { dims, codes: None }
    }

    /// `Ok` where all its sizes, in bytes too, are far from overflow, and axes that it does not have are of size 1.
    pub fn check(&self) -> Result<()> {
        let Dims { images, channels, map, axes } = self.dims;
        if map[..2 - axes].iter().any(|side| *side != 1) {
            let expected = format!("a map of {axes} spatial axes");
            return bad_value("shape of a value", expected, format!("{} × {} pixels", map[0], map[1]));
        }
        let per_pixel = self.codes.map_or(channels.saturating_mul(4), CodesLayout::pixel_bytes);
        match memory::product([images, map[0], map[1], per_pixel]) {
            Some(bytes) if bytes < 1 << 42 => Ok(()),
            _ => bad_value("size of a value", "one that fits in memory", format!("{:?}", self.dims.shape())),
        }
    }

    /// Elements of its buffer: floats, or bytes of codes.
    pub fn buffer_len(&self) -> usize {
        match self.codes {
            None => self.dims.elements(),
            Some(layout) => self.dims.pixels() * layout.pixel_bytes(),
        }
    }

    /// Bytes of its buffer.
    pub fn buffer_bytes(&self) -> usize {
        let element = if self.codes.is_some() { 1 } else { size_of::<f32>() };
        self.buffer_len() * element
    }
}

/// A buffer with a value in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    Float(&'a [f32]),
    Codes(&'a [u8]),
}

impl<'a> Slice<'a> {
    /// The floats; which kind a value has was settled when the graph was built.
    pub fn floats(self) -> &'a [f32] {
        match self {
            Slice::Float(x) => x,
            Slice::Codes(_) => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The codes.
    pub fn codes(self) -> &'a [u8] {
        match self {
            Slice::Codes(x) => x,
            Slice::Float(_) => unreachable!("the graph's kinds were checked"),
        }
    }
}

/// A buffer to be written.
#[derive(Debug)]
pub(crate) enum SliceMut<'a> {
    Float(&'a mut [f32]),
    Codes(&'a mut [u8]),
}

impl<'a> SliceMut<'a> {
    pub fn floats(self) -> &'a mut [f32] {
        match self {
            SliceMut::Float(x) => x,
            SliceMut::Codes(_) => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn codes(self) -> &'a mut [u8] {
        match self {
            SliceMut::Codes(x) => x,
            SliceMut::Float(_) => unreachable!("the graph's kinds were checked"),
        }
    }
}

/// What running an operation costs, counted from sizes alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Multiply-accumulates, or other operations on an element.
    pub macs: u128,
    /// Bytes of tables and of a thread's working memory, beside values and scratch.
    pub bytes: u128,
    /// Bytes of scratch memory that [`Step::run`] wants.
    pub scratch: usize,
}

impl Cost {
    /// Of a value each of whose elements takes so many operations.
    pub fn of(dims: &Dims, each: usize) -> Self {
        Cost { macs: dims.counted().saturating_mul(each as u128), ..Cost::default() }
    }
}

/// An operation on its way into another.
#[derive(Debug)]
pub(crate) struct Maker {
    /// Of its node.
    pub name: String,
    /// For messages.
    pub label: String,
    pub operation: Box<dyn Operation>,
}

/// An operation with its weights, for any input shape.
pub(crate) trait Operation: Any + Send + Sync + std::fmt::Debug {
    /// Whether it makes codes, and of which layout, given what it reads; checks kinds.
    fn codes(&self, inputs: &[Option<CodesLayout>]) -> Result<Option<CodesLayout>>;
    /// Checks the sizes of what it reads; what it makes, and what that costs. Allocates nothing that sizes decide.
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)>;
    /// Settles everything that depends on shapes: what it makes, and how. Comes after [`Operation::measure`] of the same.
    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn Step>)>;
    /// Takes over elementwise functions of its output, where it can run them on the way; else gives them back.
    fn absorb(&mut self, functions: Vec<super::ops::Elementwise>) -> Option<Vec<super::ops::Elementwise>> {
        Some(functions)
    }
    /// Takes over a quantizer of its output, where it can make codes on the way: [`Step::run_beside`] then does. False where
    /// it cannot, or has one already.
    fn quantize(&mut self, quantizer: Quantizer) -> bool {
        let _ = quantizer;
        false
    }
    /// Takes over max pooling of its output, where it can pool on the way; whether it does.
    fn pool(&mut self, pool: &super::ops::Pool) -> bool {
        let _ = pool;
        false
    }
    /// The max pooling that this operation is, where it is one.
    fn max_pool(&self) -> Option<&super::ops::Pool> {
        None
    }
    /// Whether its output may stand where its second input stood, of the same shape: [`Step::run_beside`] then gets the first
    /// alone, and finds the second in the output.
    fn adds_in_place(&self) -> bool {
        false
    }
    /// The quantizer that this operation is, where it is one.
    fn quantizer(&self) -> Option<Quantizer> {
        None
    }
    /// Takes over the operation that alone makes its second input, where it can run that on the way: it then reads what that one
    /// read in this input's place. Else gives it back.
    fn summand(&mut self, maker: Maker) -> Option<Maker> {
        Some(maker)
    }
    /// The products that this operation of that name is: the node's name, the kernel's, and the bytes of the weights as they are
    /// laid out.
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let _ = name;
        Vec::new()
    }
    /// The elementwise functions that this operation consists of, where it is nothing else.
    fn elementwise(&mut self) -> Option<Vec<super::ops::Elementwise>> {
        None
    }
}

/// An operation for one shape.
pub(crate) trait Step: Send + Sync + std::fmt::Debug {
    /// Runs it. Buffers have the planned sizes, `scratch` at least [`Cost::scratch`] bytes.
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()>;
    /// Runs it and writes `codes` of the output, where [`Operation::quantize`] asked for them; else `codes` is empty.
    fn run_beside(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>, codes: &mut [u8]) -> Result<()> {
        debug_assert!(codes.is_empty());
        self.run(inputs, scratch, out)
    }
}
