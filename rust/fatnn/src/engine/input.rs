//! Inputs and outputs of a network, and the checks of a run's arrays.

use std::ops::Range;

use super::value::{Element, Order, SliceMut, Value};
use crate::dtype::ValueType;
use crate::error::{Error, Result, bad_value, check_len};
use crate::graph::Node;
use crate::graph::op::{self, BatchRange};
use crate::transpose::transpose;

/// A float32 array; its shape is written as in PyTorch.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Batch, channels and up to two spatial axes; or any other dimensions.
    pub shape: &'a [usize],
    /// Elements in memory order.
    pub data: &'a [f32],
    /// Whether channels are last in memory. The shape is channels-first in both cases.
    pub channels_last: bool,
}

/// An array of any type that the engine accepts. All but float32 are in row-major order.
#[derive(Clone, Copy, Debug)]
pub enum Array<'a> {
    /// float32.
    F32(Input<'a>),
    /// int32, and its shape.
    I32(&'a [usize], &'a [i32]),
    /// int64, and its shape.
    I64(&'a [usize], &'a [i64]),
    /// bool and its shape: 0 is false, anything else true.
    Bool(&'a [usize], &'a [u8]),
}

impl<'a> From<Input<'a>> for Array<'a> {
    fn from(input: Input<'a>) -> Self {
        Array::F32(input)
    }
}

impl<'a> Array<'a> {
    /// Its shape.
    pub fn shape(&self) -> &'a [usize] {
        match *self {
            Array::F32(input) => input.shape,
            Array::I32(shape, _) | Array::I64(shape, _) | Array::Bool(shape, _) => shape,
        }
    }

    /// Number of its elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Array::F32(input) => input.data.len(),
            Array::I32(_, data) => data.len(),
            Array::I64(_, data) => data.len(),
            Array::Bool(_, data) => data.len(),
        }
    }

    fn dtype(&self) -> ValueType {
        match self {
            Array::F32(_) => ValueType::F32,
            Array::I32(..) => ValueType::I32,
            Array::I64(..) => ValueType::I64,
            Array::Bool(..) => ValueType::Bool,
        }
    }

    /// A range of its elements, as an array of the given shape.
    pub(super) fn part(&self, elements: Range<usize>, shape: &'a [usize]) -> Self {
        match *self {
            Array::F32(input) => Array::F32(Input { shape, data: &input.data[elements], ..input }),
            Array::I32(_, data) => Array::I32(shape, &data[elements]),
            Array::I64(_, data) => Array::I64(shape, &data[elements]),
            Array::Bool(_, data) => Array::Bool(shape, &data[elements]),
        }
    }

    /// Copies its elements to `to`, in the order that the network needs.
    pub(super) fn copy_to(&self, value: &Value, to: SliceMut<'_>) {
        match *self {
            Array::F32(input) => input.copy_to(value, to.floats()),
            Array::I32(_, data) => {
                to.integers().iter_mut().zip(data).for_each(|(to, &x)| *to = x.into());
            }
            Array::I64(_, data) => to.integers().copy_from_slice(data),
            Array::Bool(_, data) => {
                to.mask().iter_mut().zip(data).for_each(|(to, &x)| *to = u8::from(x != 0));
            }
        }
    }
}

impl Input<'_> {
    fn copy_to(&self, value: &Value, to: &mut [f32]) {
        let has_channels = self.shape.len().clamp(2, 4) == self.shape.len();
        let source_order =
            if self.channels_last && has_channels { Order::ChannelsLast } else { Order::RowMajor };
        if source_order == value.order() || self.shape.len() <= 2 || to.is_empty() {
            to.copy_from_slice(self.data);
            return;
        }
        let (channels, pixels) = (self.shape[1], self.shape[2..].iter().product());
        match value.order() {
            Order::ChannelsLast => transpose(self.data, to, channels, pixels),
            Order::RowMajor => transpose(self.data, to, pixels, channels),
        }
    }
}

/// Name, shape and type of an input or output.
#[derive(Clone, Debug)]
pub(super) struct ValueInfo {
    pub name: String,
    /// Shape at conversion.
    pub shape: Vec<usize>,
    /// Dimensions of fixed size: the model was captured for that size only.
    pub fixed: Vec<usize>,
    /// The channel dimension, if there is one. Its size is fixed too.
    pub channel_dim: Option<usize>,
    /// Allowed batch sizes, if the model branches on the batch size.
    pub batch: Option<BatchRange>,
    /// Type of its elements.
    pub dtype: ValueType,
    /// The order that the network needs for an input.
    pub order: Order,
    pub value: usize,
}

impl BatchRange {
    /// Returns an error if a batch may not have this size.
    fn check(self, batch: usize) -> Result<()> {
        if (self.min..=self.max).contains(&batch) && batch.is_multiple_of(self.multiple) {
            return Ok(());
        }
        let BatchRange { min, max, multiple } = self;
        let max = if max >= (1 << 31) - 1 { String::new() } else { format!(" to {max}") };
        let factor =
            if multiple == 1 { String::new() } else { format!(", in multiples of {multiple}") };
        bad_value(
            "batch of the network's input, on whose size the model branches",
            format!("from {min}{max}{factor}"),
            batch,
        )
    }
}

impl ValueInfo {
    pub fn input(
        node: &Node,
        input: &op::Input,
        order: Order,
        value: usize,
        dtype: ValueType,
    ) -> Self {
        let (name, shape, fixed) = (node.name.clone(), node.shape.clone(), input.fixed.clone());
        // 0 means that the channel dimension is unknown.
        let channel_dim = input.channel_dim.filter(|dim| (1..shape.len()).contains(dim));
        ValueInfo { name, shape, fixed, channel_dim, batch: input.batch, dtype, order, value }
    }

    pub fn output(node: &Node, value: usize) -> Self {
        let (name, shape) = (node.name.clone(), node.shape.clone());
        ValueInfo {
            name,
            shape,
            fixed: Vec::new(),
            channel_dim: None,
            batch: None,
            dtype: ValueType::F32,
            order: Order::RowMajor,
            value,
        }
    }

    /// Checks an input against the conversion. Only the batch and spatial sizes may differ, unless
    /// they are fixed.
    pub fn value(&self, input: &Array<'_>) -> Result<Value> {
        let shape = input.shape();
        if input.dtype() != self.dtype {
            return bad_value(
                "type of the network's input",
                self.dtype.plain_name().unwrap_or_default(),
                input.dtype().plain_name().unwrap_or_default(),
            );
        }
        if shape.len() != self.shape.len()
            || self.channel_dim.is_some_and(|dim| shape[dim] != self.shape[dim])
        {
            let channels = self
                .channel_dim
                .map_or(String::new(), |dim| format!(" with {} channels", self.shape[dim]));
            return Err(Error::Shape {
                what: "input of the network",
                expected: format!("{} dimensions{channels}, as {:?}", self.shape.len(), self.shape),
                got: format!("{shape:?}"),
            });
        }
        if self.fixed.iter().any(|&d| shape[d] != self.shape[d]) {
            let size = |(d, n): (usize, &usize)| {
                if self.fixed.contains(&d) { n.to_string() } else { "any".into() }
            };
            let sizes: Vec<String> = self.shape.iter().enumerate().map(size).collect();
            return Err(Error::Shape {
                what: "input of the network, which was captured for one shape only",
                expected: format!("[{}]", sizes.join(", ")),
                got: format!("{shape:?}"),
            });
        }
        if let (Some(batch), Some(&images)) = (self.batch, shape.first()) {
            batch.check(images)?;
        }
        let elements =
            shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n < 1 << 40);
        let sides = shape.iter().all(|side| *side < 1 << 31);
        let Some(elements) = elements.filter(|_| sides) else {
            return bad_value(
                "input of the network",
                "a size that fits in memory",
                format!("{shape:?}"),
            );
        };
        check_len("values of the input", elements, input.len())?;
        Ok(Value::ordered(shape, self.order)?.of(Element::of(self.dtype)))
    }

    /// The value with its shape at conversion.
    pub fn at_conversion(&self) -> Result<Value> {
        if self.shape.iter().any(|side| *side >= 1 << 31) {
            return bad_value(
                "input of the network",
                "sizes below 2³¹",
                format!("{:?}", self.shape),
            );
        }
        Ok(Value::ordered(&self.shape, self.order)?.of(Element::of(self.dtype)))
    }
}
