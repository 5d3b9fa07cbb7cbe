//! Values that operations exchange, and the traits that operations implement.

use std::sync::Arc;

pub(crate) use super::slice::{Slice, SliceMut};
use crate::codec::CodesLayout;
use crate::conv::ConvShape;
use crate::dtype::ValueType;
use crate::error::{Result, bad_value};
use crate::graph::ConvParams;
use crate::memory;
use crate::scalar::Int8Quantizer;

/// Dimensions of a value: batch, channels and its spatial axes. In memory, floats with these
/// dimensions are always `images × height × width × channels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    pub images: usize,
    pub channels: usize,
    /// Height and width; 1 for an axis that the value does not have.
    pub map: [usize; 2],
    /// Number of spatial axes: 0 (output of a linear layer), 1 or 2.
    pub axes: usize,
}

impl Dims {
    pub fn pixels(&self) -> usize {
        self.images * self.map[0] * self.map[1]
    }

    pub fn elements(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Number of elements; saturates instead of overflowing.
    fn saturating_elements(&self) -> u128 {
        [self.images, self.channels, self.map[0], self.map[1]]
            .iter()
            .fold(1, |n, &f| n.saturating_mul(f as u128))
    }

    /// The shape as in PyTorch: batch, channels, then the spatial axes.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = vec![self.images, self.channels];
        shape.extend(&self.map[2 - self.axes..]);
        shape
    }
}

/// The shape of a value, of up to [`MAX_RANK`] dimensions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    sizes: [usize; MAX_RANK],
    rank: usize,
}

/// Maximum number of dimensions of a value.
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
    /// The shape of this convolution over a value with dimensions `dims`.
    pub(crate) fn over(&self, dims: &Dims) -> ConvShape {
        let ConvParams { kernel, stride, padding, dilation } = *self;
        ConvShape { batch: dims.images, input: dims.map, kernel, stride, padding, dilation }
    }
}

/// Order of elements in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Batch, pixels, channels. For values of two to four dimensions, with channels as dimension 1.
    ChannelsLast,
    /// Row-major order of the shape.
    RowMajor,
}

/// Element type in memory of a value that does not hold codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Element {
    #[default]
    Float,
    /// int64; an int32 value is stored as int64 too.
    Integer,
    /// One byte per element: 0 or 1.
    Mask,
    /// A float, stored as a byte of this quantizer.
    Int8(Int8Quantizer),
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::Float => size_of::<f32>(),
            Element::Integer => size_of::<i64>(),
            Element::Mask | Element::Int8(_) => 1,
        }
    }

    /// The element type that stores values of `dtype`.
    pub fn of(dtype: ValueType) -> Self {
        match dtype {
            ValueType::I32 | ValueType::I64 => Element::Integer,
            ValueType::Bool => Element::Mask,
            _ => Element::Float,
        }
    }
}

/// Shape, memory order and element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// Its dimensions as batch, channels and pixels. In row-major order, `channels` is the last
    /// dimension and `images` the product of all others.
    pub dims: Dims,
    /// Its shape if it is in row-major order.
    pub rows: Option<Shape>,
    /// Layout of packed codes; `None` for floats, integers and masks.
    pub codes: Option<CodesLayout>,
    /// Element type if there are no codes.
    pub element: Element,
}

impl Value {
    /// A float value, channels last.
    pub fn float(dims: Dims) -> Self {
        Value { dims, rows: None, codes: None, element: Element::Float }
    }

    /// The same value with another element type.
    pub fn of(self, element: Element) -> Self {
        Value { element, ..self }
    }

    /// A value of packed codes.
    pub fn codes(dims: Dims, layout: CodesLayout) -> Self {
        Value { dims, rows: None, codes: Some(layout), element: Element::Float }
    }

    /// A float value in row-major order. A rank-2 value is channels last too, because both orders
    /// agree.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for more than [`MAX_RANK`] dimensions, or if the number of elements
    /// overflows.
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

    /// A float value of this shape in this order.
    ///
    /// # Errors
    /// As [`Value::row_major`]; [`crate::Error::Value`] if the order does not allow the rank.
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

    /// The same float value with another number of channels, or another last dimension in row-major
    /// order.
    pub fn with_channels(self, channels: usize) -> Self {
        let rows = self.rows.map(|mut rows| {
            rows.sizes[rows.rank.max(1) - 1] = channels;
            rows
        });
        Value { dims: Dims { channels, ..self.dims }, rows, codes: None, element: Element::Float }
    }

    /// Its shape as in PyTorch.
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

    /// Distance in elements between consecutive indices, per dimension of the shape.
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

    /// Returns an error if its bytes could overflow, or if an axis that it does not have is not 1.
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

    /// Length of its buffer: elements, or bytes of packed codes.
    pub fn buffer_len(&self) -> usize {
        match self.codes {
            None => self.dims.elements(),
            Some(layout) => self.dims.pixels() * layout.pixel_bytes(),
        }
    }

    /// Size of its buffer in bytes.
    pub fn buffer_bytes(&self) -> usize {
        let element = if self.codes.is_some() { 1 } else { self.element.bytes() };
        self.buffer_len() * element
    }
}

/// Order and rank of a value, known before its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrderAndRank {
    pub order: Order,
    pub rank: usize,
}

/// Cost of running an operation, computed from sizes only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Multiply-accumulates, or other operations per element.
    pub macs: u128,
    /// Bytes of tables and of per-thread memory, without values and scratch.
    pub bytes: u128,
    /// Bytes of scratch memory that [`ExecutableOp::run`] needs.
    pub scratch: usize,
}

impl Cost {
    /// Cost of computing a value with `each` operations per element.
    pub fn of(dims: &Dims, each: usize) -> Self {
        Cost { macs: dims.saturating_elements().saturating_mul(each as u128), ..Cost::default() }
    }
}

/// An operation with its packed weights, for any input shape.
pub(crate) trait Operation: Send + Sync + std::fmt::Debug {
    /// Checks the sizes of its inputs. Returns its output and what that costs. Allocates nothing
    /// whose size depends on the inputs.
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)>;
    /// Prepares everything that depends on shapes. Returns its output and the executable operation.
    /// Called after [`Operation::measure`] with the same inputs.
    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)>;

    /// The order that it asks for per input, and the order of its output. `inputs` has the current
    /// orders. Rank-2 values satisfy both orders.
    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![Order::ChannelsLast; inputs.len()], Order::ChannelsLast) // small: an order each
    }

    /// Whether its output is its first input's memory, unchanged. Then it is not run.
    fn is_view(&self, inputs: &[Value]) -> bool {
        let _ = inputs;
        false
    }

    /// Whether it can read an input of floats that are stored as bytes.
    fn reads_int8(&self, input: usize) -> bool {
        let _ = input;
        false
    }

    /// Whether its output may overwrite its second input, of the same shape.
    /// [`ExecutableOp::run_with_codes`] then gets only the first input, and the output buffer holds
    /// the second.
    fn adds_in_place(&self) -> bool {
        false
    }

    /// The products that this operation computes: the node's name, the kernel's name, and the bytes
    /// of the packed weights. `name` is the name of its node.
    fn products<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'static str, usize)> {
        let _ = name;
        Vec::new()
    }
}

/// An operation that is planned for one set of input shapes.
pub(crate) trait ExecutableOp: Send + Sync + std::fmt::Debug {
    /// Runs it. Buffers have the planned sizes, and `scratch` has at least [`Cost::scratch`] bytes.
    fn run(&self, inputs: &[Slice<'_>], scratch: &mut [u8], out: SliceMut<'_>) -> Result<()>;
    /// Runs it and also writes `codes` of the output if it was built with a quantizer; otherwise
    /// `codes` is empty.
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
