//! What flows between a network's operations, and the contract that an operation keeps.

use std::sync::Arc;

use crate::codec::CodesLayout;
use crate::conv::ConvShape;
use crate::dtype::ValueType;
use crate::error::{Result, bad_value};
use crate::graph::ConvParams;
use crate::memory;

/// Dimensions of a value: images, channels, and as many spatial axes as it has. In memory, floats
/// are always `images × height × width × channels`.
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
        [self.images, self.channels, self.map[0], self.map[1]]
            .iter()
            .fold(1, |n, &f| n.saturating_mul(f as u128))
    }

    /// As PyTorch writes it: images, channels, then the spatial axes.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = vec![self.images, self.channels];
        shape.extend(&self.map[2 - self.axes..]);
        shape
    }
}

/// Sizes of a value's dimensions, of any rank that values may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    sizes: [usize; MAX_RANK],
    rank: usize,
}

/// The largest rank of a value.
pub(crate) const MAX_RANK: usize = 8;

impl Shape {
    /// # Errors
    /// [`crate::Error::Value`] for more than [`MAX_RANK`] dimensions.
    pub fn new(shape: &[usize]) -> Result<Self> {
        let mut sizes = [0; MAX_RANK];
        match sizes.get_mut(..shape.len()) {
            Some(to) => to.copy_from_slice(shape),
            None => {
                return bad_value(
                    "shape of a value",
                    format!("at most {MAX_RANK} dimensions"),
                    shape.len(),
                );
            }
        }
        Ok(Shape { sizes, rank: shape.len() })
    }
}

impl std::ops::Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl ConvParams {
    /// The convolution of these parameters over such values.
    pub(crate) fn over(&self, dims: &Dims) -> ConvShape {
        let ConvParams { kernel, stride, padding, dilation } = *self;
        ConvShape { batch: dims.images, input: dims.map, kernel, stride, padding, dilation }
    }
}

/// Where elements stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Images, pixels, channels: of values of two to four dimensions, the second of which is
    /// channels.
    ChannelsLast,
    /// As the shape says.
    RowMajor,
}

/// What the elements of a value without codes are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Element {
    #[default]
    Float,
    /// int64, and int32 in as many bytes.
    Integer,
    /// A byte: 0 or 1.
    Mask,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::Float => size_of::<f32>(),
            Element::Integer => size_of::<i64>(),
            Element::Mask => 1,
        }
    }

    /// Of values of such a type.
    pub fn of(dtype: ValueType) -> Self {
        match dtype {
            ValueType::I32 | ValueType::I64 => Element::Integer,
            ValueType::Bool => Element::Mask,
            _ => Element::Float,
        }
    }
}

/// A value that an operation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// Its dimensions as images, channels and pixels. In row-major order, channels are the last
    /// dimension, and images all others.
    pub dims: Dims,
    /// Its shape where it is in row-major order.
    pub rows: Option<Shape>,
    /// `None` for floats, integers and masks.
    pub codes: Option<CodesLayout>,
    /// Which of these, where there are no codes.
    pub element: Element,
}

impl Value {
    /// Floats, channels last.
    pub fn float(dims: Dims) -> Self {
        Value { dims, rows: None, codes: None, element: Element::Float }
    }

    /// The same with elements of another type.
    pub fn of(self, element: Element) -> Self {
        Value { element, ..self }
    }

    /// Codes.
    pub fn codes(dims: Dims, layout: CodesLayout) -> Self {
        Value { dims, rows: None, codes: Some(layout), element: Element::Float }
    }

    /// Floats in row-major order; those of two dimensions are channels last too.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for too many dimensions, or more elements than can be counted.
    pub fn row_major(shape: &[usize]) -> Result<Self> {
        let rows = Some(Shape::new(shape)?).filter(|_| shape.len() != 2);
        let (channels, front) =
            shape.split_last().map_or((1, shape), |(&last, front)| (last, front));
        let Some(images) = memory::product(front.iter().copied()) else {
            return bad_value("size of a value", "one that fits in memory", format!("{shape:?}"));
        };
        let dims = Dims { images, channels, map: [1, 1], axes: 0 };
        Ok(Value { dims, rows, codes: None, element: Element::Float })
    }

    /// Floats in such an order.
    ///
    /// # Errors
    /// As [`Value::row_major`]; [`crate::Error::Value`] where the rank does not suit the order.
    pub fn ordered(shape: &[usize], order: Order) -> Result<Self> {
        let (map, axes) = match (order, shape) {
            (Order::RowMajor, _) => return Value::row_major(shape),
            (_, [_, _]) => ([1, 1], 0),
            (_, &[_, _, w]) => ([1, w], 1),
            (_, &[_, _, h, w]) => ([h, w], 2),
            _ => {
                return bad_value(
                    "shape of a value",
                    "two to four dimensions",
                    format!("{shape:?}"),
                );
            }
        };
        Ok(Value::float(Dims { images: shape[0], channels: shape[1], map, axes }))
    }

    /// The same with another last dimension, or other channels.
    pub fn with_channels(self, channels: usize) -> Self {
        let rows = self.rows.map(|mut rows| {
            rows.sizes[rows.rank.max(1) - 1] = channels;
            rows
        });
        Value { dims: Dims { channels, ..self.dims }, rows, codes: None, element: Element::Float }
    }

    /// Its shape, as PyTorch writes it.
    pub fn shape(&self) -> Shape {
        self.rows.unwrap_or_else(|| {
            let Dims { images, channels, map: [h, w], axes } = self.dims;
            let mut sizes = [0; MAX_RANK];
            sizes[..4].copy_from_slice(&[images, channels, if axes == 1 { w } else { h }, w]);
            sizes[2 + axes..].fill(0);
            Shape { sizes, rank: 2 + axes }
        })
    }

    pub fn order(&self) -> Order {
        if self.rows.is_some() { Order::RowMajor } else { Order::ChannelsLast }
    }

    /// Elements from one index of each dimension to the next.
    pub fn strides(&self) -> [usize; MAX_RANK] {
        let mut strides = [0; MAX_RANK];
        match self.rows {
            Some(rows) => {
                let mut stride = 1;
                for (to, size) in strides[..rows.rank].iter_mut().zip(rows.iter()).rev() {
                    *to = stride;
                    stride *= size;
                }
            }
            None => {
                let Dims { channels, map: [h, w], axes, .. } = self.dims;
                let pixel = [w * channels, channels];
                strides[..2].copy_from_slice(&[h * w * channels, 1]);
                strides[2..2 + axes].copy_from_slice(&pixel[2 - axes..]);
            }
        }
        strides
    }

    /// `Ok` where all its sizes, in bytes too, are far from overflow, and axes that it does not
    /// have are of size 1.
    pub fn check(&self) -> Result<()> {
        let Dims { images, channels, map, axes } = self.dims;
        if map[..2 - axes].iter().any(|side| *side != 1) {
            let expected = format!("a map of {axes} spatial axes");
            return bad_value(
                "shape of a value",
                expected,
                format!("{} × {} pixels", map[0], map[1]),
            );
        }
        let plain = channels.saturating_mul(self.element.bytes());
        let per_pixel = self.codes.map_or(plain, CodesLayout::pixel_bytes);
        match memory::product([images, map[0], map[1], per_pixel]) {
            Some(bytes) if bytes < 1 << 42 => Ok(()),
            _ => bad_value(
                "size of a value",
                "one that fits in memory",
                format!("{:?}", self.dims.shape()),
            ),
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
        let element = if self.codes.is_some() { 1 } else { self.element.bytes() };
        self.buffer_len() * element
    }
}

/// A buffer with a value in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    Float(&'a [f32]),
    Integer(&'a [i64]),
    Mask(&'a [u8]),
    Codes(&'a [u8]),
}

impl<'a> Slice<'a> {
    /// The floats; which kind a value has was settled when the graph was built.
    pub fn floats(self) -> &'a [f32] {
        match self {
            Slice::Float(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The integers.
    pub fn integers(self) -> &'a [i64] {
        match self {
            Slice::Integer(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The mask.
    pub fn mask(self) -> &'a [u8] {
        match self {
            Slice::Mask(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The codes.
    pub fn codes(self) -> &'a [u8] {
        match self {
            Slice::Codes(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }
}

/// A buffer to be written.
#[derive(Debug)]
pub(crate) enum SliceMut<'a> {
    Float(&'a mut [f32]),
    Integer(&'a mut [i64]),
    Mask(&'a mut [u8]),
    Codes(&'a mut [u8]),
}

impl<'a> SliceMut<'a> {
    pub fn floats(self) -> &'a mut [f32] {
        match self {
            SliceMut::Float(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn integers(self) -> &'a mut [i64] {
        match self {
            SliceMut::Integer(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn mask(self) -> &'a mut [u8] {
        match self {
            SliceMut::Mask(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn codes(self) -> &'a mut [u8] {
        match self {
            SliceMut::Codes(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }
}

/// Order and rank of a value, which are settled before its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ordered {
    pub order: Order,
    pub rank: usize,
}

/// What running an operation costs, counted from sizes alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Multiply-accumulates, or other operations on an element.
    pub macs: u128,
    /// Bytes of tables and of a thread's working memory, next to values and scratch.
    pub bytes: u128,
    /// Bytes of scratch memory that [`ExecutableOp::run`] wants.
    pub scratch: usize,
}

impl Cost {
    /// Of a value each of whose elements takes so many operations.
    pub fn of(dims: &Dims, each: usize) -> Self {
        Cost { macs: dims.counted().saturating_mul(each as u128), ..Cost::default() }
    }
}

/// An operation with its weights, for any input shape.
pub(crate) trait Operation: Send + Sync + std::fmt::Debug {
    /// Checks the sizes of what it reads; what it makes, and what that costs. Allocates nothing
    /// that sizes decide.
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)>;
    /// Settles everything that depends on shapes: what it makes, and how. Comes after
    /// [`Operation::measure`] of the same.
    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)>;

    /// The orders that it wants its inputs in, where they have these, and the order of what it
    /// makes. Values of two dimensions are in both.
    fn orders(&self, inputs: &[Ordered]) -> (Vec<Order>, Order) {
        (vec![Order::ChannelsLast; inputs.len()], Order::ChannelsLast) // small: an order each
    }

    /// Whether its result is its first input's memory, as it is: then it is not run.
    fn is_view(&self, inputs: &[Value]) -> bool {
        let _ = inputs;
        false
    }

    /// Whether its output may take the place of its second input, of the same shape:
    /// [`ExecutableOp::run_with_codes`] then gets only the first, and finds the second in the
    /// output.
    fn adds_in_place(&self) -> bool {
        false
    }

    /// The products that this operation of that name is: the node's name, the kernel's, and the
    /// bytes of the weights as they are laid out.
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let _ = name;
        Vec::new()
    }
}

/// An operation for one shape.
pub(crate) trait ExecutableOp: Send + Sync + std::fmt::Debug {
    /// Runs it. Buffers have the planned sizes, `scratch` at least [`Cost::scratch`] bytes.
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()>;
    /// Runs it and writes `codes` of the output, where it was built with a quantizer; else `codes`
    /// is empty.
    fn run_with_codes(
        &self,
        inputs: &[Slice<'_>],
        scratch: &mut [u8],
        out: SliceMut<'_>,
        codes: &mut [u8],
    ) -> Result<()> {
        debug_assert!(codes.is_empty());
        self.run(inputs, scratch, out)
    }
}
