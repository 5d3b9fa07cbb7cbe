//! Inputs and outputs of a network: what a run's arrays are checked against.

use super::value::{Order, Value};
use crate::error::{Error, Result, bad_value, check_len};
use crate::graph::Node;
use crate::graph::op::{self, BatchRange};

/// A float32 array: shape as PyTorch writes it.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Images, channels and up to two spatial axes, or any others.
    pub shape: &'a [usize],
    /// Values in memory order.
    pub data: &'a [f32],
    /// Whether channels are last in memory (the shape is written channels-first all the same).
    pub channels_last: bool,
}

/// An input or an output.
#[derive(Clone, Debug)]
pub(super) struct ValueInfo {
    pub name: String,
    /// Shape at conversion.
    pub shape: Vec<usize>,
    /// Dimensions whose size is part of the network: the model was captured for that size only.
    pub fixed: Vec<usize>,
    /// The dimension of channels, whose size is that at conversion, where there is one.
    pub channel_dim: Option<usize>,
    /// Sizes that the first dimension may have, where the model branches on it.
    pub batch: Option<BatchRange>,
    /// Where the network wants the elements of an input.
    pub order: Order,
    pub value: usize,
}

impl BatchRange {
    /// `Ok` where a batch may have this size.
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
    pub fn input(node: &Node, input: &op::Input, order: Order, value: usize) -> Self {
        let (name, shape, fixed) = (node.name.clone(), node.shape.clone(), input.fixed.clone());
        // 0 says that nothing is known about channels.
        let noted = input.channel_dim.filter(|dim| (1..shape.len()).contains(dim));
        let channel_dim = noted.or((order == Order::ChannelsLast).then_some(1));
        ValueInfo { name, shape, fixed, channel_dim, batch: input.batch, order, value }
    }

    pub fn output(node: &Node, value: usize) -> Self {
        let (name, shape) = (node.name.clone(), node.shape.clone());
        ValueInfo {
            name,
            shape,
            fixed: Vec::new(),
            channel_dim: None,
            batch: None,
            order: Order::RowMajor,
            value,
        }
    }

    /// Checks an input against what the network was converted for: everything but images and
    /// spatial sizes is fixed.
    pub fn value(&self, input: &Input<'_>) -> Result<Value> {
        let shape = input.shape;
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
        check_len("values of the input", elements, input.data.len())?;
        Value::ordered(shape, self.order)
    }

    /// The value at conversion.
    pub fn noted(&self) -> Result<Value> {
        if self.shape.iter().any(|side| *side >= 1 << 31) {
            return bad_value(
                "input of the network",
                "sizes below 2³¹",
                format!("{:?}", self.shape),
            );
        }
        Value::ordered(&self.shape, self.order)
    }
}
