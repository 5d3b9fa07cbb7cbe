//! Operations with typed attributes.
//!
//! [`Op`] says what a node does. What all nodes of an operation have in common, such as roles of
//! tensors and rules for types and shapes, is its row in [`super::ops::OPS`].

use serde_json::Value as Json;

use super::spatial::{ConvTranspose, DepthToSpace, Interpolate};
use crate::dtype::{ActType, ValueType};
use crate::scalar::{Binary, Comparison, Logical, Scalar};

/// A window that slides over two axes. In one dimension the first axis has kernel 1 and no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvParams {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Steps from one window to the next.
    pub stride: [usize; 2],
    /// Elements added on each side.
    pub padding: [usize; 2],
    /// Steps between two elements of a window.
    pub dilation: [usize; 2],
}

impl ConvParams {
    /// A window of one element on each axis.
    pub const ONE: ConvParams =
        ConvParams { kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
}

/// A float or int8 convolution. The kernel's size is that of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Spatial axes: 1 or 2.
    pub axes: usize,
    /// Stride, padding and dilation; `kernel` is not used.
    pub params: ConvParams,
    /// Groups of channels.
    pub groups: usize,
    /// Of a part of a transposed convolution: how many products that has per element of the input.
    pub input_products: Option<usize>,
}

/// A convolution or linear layer on codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodesConv {
    /// Its window; a linear layer's covers the map.
    pub params: ConvParams,
    /// Groups of channels.
    pub groups: usize,
    /// What the codes stand for.
    pub act: ActType,
    /// Channels that it reads, where the node says so.
    pub channels: Option<usize>,
    /// Spatial axes of the result: 0 for linear layers.
    pub axes: usize,
    /// As [`Conv::input_products`].
    pub input_products: Option<usize>,
}

/// Pooling with a window of a fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Spatial axes: 1 or 2.
    pub axes: usize,
    /// The window.
    pub params: ConvParams,
    /// Whether the last window may reach over the edge.
    pub ceil_mode: bool,
}

/// Every `step`th index of a dimension from `start` to before `end`; negative ones count from the
/// end, others are brought inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The dimension.
    pub dim: i64,
    /// The first index.
    pub start: i64,
    /// Behind the last index.
    pub end: i64,
    /// From one index to the next.
    pub step: usize,
}

/// Sizes that an input's first dimension may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRange {
    /// The smallest.
    pub min: usize,
    /// The largest.
    pub max: usize,
    /// A factor of all of them.
    pub multiple: usize,
}

/// An input of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Dimensions whose size is part of the network.
    pub fixed: Vec<usize>,
    /// The dimension of channels.
    pub channel_dim: Option<usize>,
    /// Sizes of the first dimension, where the model branches on it.
    pub batch: Option<BatchRange>,
}

impl Input {
    /// The attribute `batch`.
    pub(super) fn batch_range(json: &Json) -> Option<BatchRange> {
        let [min, max, multiple] = json.as_array()?.as_slice() else { return None };
        let size =
            |json: &Json| json.as_u64().filter(|n| *n < super::attrs::LIMIT).map(|n| n as usize);
        let multiple = size(multiple).filter(|n| *n > 0)?;
        Some(BatchRange { min: size(min)?, max: size(max)?, multiple })
    }
}

/// What dimensions become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
    /// The largest; NaN where one is there.
    Max,
    /// The smallest.
    Min,
}

/// Elements whose statistics are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// So many last dimensions.
    Last(usize),
    /// Channels of one group, and their pixels.
    Groups(usize),
    /// The pixels of one channel.
    Channels,
}

/// `(x - mean) / √(variance + eps) * weight + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Of which elements.
    pub over: NormOver,
    /// Whether the mean is taken away; otherwise the variance is the mean square.
    pub centered: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// An input of the network.
    Input(Input),
    /// Float convolution.
    Conv(Conv),
    /// Float linear layer over the last dimension.
    Linear,
    /// BatchNorm in evaluation mode.
    BatchNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `fma(x, scale, bias)` per channel. Graphs that are described to the engine have it, files do
    /// not.
    Affine,
    /// A function of one element.
    Scalar(Scalar),
    /// Leaky ReLU with learned slopes: one, or one per channel.
    Prelu,
    /// `x * scale` per channel.
    ChannelScale {
        /// Dimensions after the channels.
        trailing: Option<usize>,
    },
    /// `x + bias` per channel.
    ChannelBias {
        /// Dimensions after the channels.
        trailing: Option<usize>,
    },
    /// Max pooling.
    MaxPool(Pool),
    /// Average pooling.
    AvgPool {
        /// Its window.
        pool: Pool,
        /// Whether padding counts.
        count_include_pad: bool,
        /// Divisor in place of the count; 0: the count.
        divisor: i64,
    },
    /// Average pooling to a fixed size.
    AdaptiveAvgPool {
        /// Spatial axes: 1 or 2.
        axes: usize,
        /// Sizes of the result; 0: as the input.
        size: [usize; 2],
    },
    /// Max pooling to a fixed size.
    AdaptiveMaxPool {
        /// Spatial axes: 1 or 2.
        axes: usize,
        /// Sizes of the result; 0: as the input.
        size: [usize; 2],
    },
    /// A map of another size. With a second input that one's map says the size.
    Interpolate(Interpolate),
    /// As [`Op::Interpolate`], of codes.
    InterpolateCodes(Interpolate),
    /// Channels become pixels.
    DepthToSpace(DepthToSpace),
    /// As [`Op::DepthToSpace`], of codes.
    DepthToSpaceCodes(DepthToSpace),
    /// Transposed float convolution.
    ConvTranspose(ConvTranspose),
    /// Dimensions become one number.
    Reduce {
        /// Which number.
        kind: Reduction,
        /// The dimensions; negative ones count from the end, none means all.
        dims: Vec<i64>,
        /// Whether they stay, with size 1.
        keepdim: bool,
    },
    /// Normalisation by statistics of the value itself.
    Norm(Norm),
    /// Softmax.
    Softmax {
        /// The dimension.
        dim: i64,
        /// Whether logarithms come out.
        log: bool,
    },
    /// Products of the matrices in the last two dimensions.
    Matmul,
    /// `softmax(q · kᵀ * scale + mask) · v`; the mask is a fourth input.
    Attention {
        /// Whether a query sees only the keys up to its own position.
        causal: bool,
        /// `1 / √(last dimension)` where there is none.
        scale: Option<f32>,
    },
    /// Multi-head attention with its linear layers, of queries, keys and values.
    Multihead {
        /// Heads.
        heads: usize,
        /// Whether images come before tokens.
        batch_first: bool,
    },
    /// Dimensions from `start` to `end` become one.
    Flatten {
        /// The first; negative ones count from the end.
        start: i64,
        /// The last.
        end: i64,
    },
    /// All dimensions but the last become one.
    FlattenLeading,
    /// The first input with the leading dimensions of the second.
    ReshapeLike,
    /// Padding. Pairs of sizes before and after, from the last dimension on.
    Pad {
        /// The sizes; negative ones cut.
        pad: Vec<i64>,
        /// `constant`, `reflect`, `replicate` or `circular`.
        mode: String,
        /// The constant.
        value: f32,
    },
    /// A function of two values, with PyTorch's broadcasting.
    Binary(Binary),
    /// The same elements, in row-major order, in another shape.
    Reshape {
        /// 0: the input's size of this dimension; -1: what is left.
        shape: Vec<i64>,
    },
    /// Without a dimension, where its size is 1.
    Squeeze {
        /// The dimension.
        dim: i64,
    },
    /// With a new dimension of size 1.
    Unsqueeze {
        /// The result's dimension.
        dim: i64,
    },
    /// Dimensions in another order.
    Permute {
        /// The input's dimension for each of the result's.
        dims: Vec<i64>,
    },
    /// Some indices of a dimension.
    Slice(Slice),
    /// Dimensions of size 1, and new ones in front, repeated.
    Expand {
        /// -1: the input's size of this dimension; -2: that of the second input's first.
        shape: Vec<i64>,
    },
    /// Values one after the other.
    Cat {
        /// Along this dimension.
        dim: i64,
    },
    /// A tensor of the file.
    Constant,
    /// Rows of the weight, by their numbers.
    Embedding,
    /// Whether two values are related so, element by element.
    Compare(Comparison),
    /// A function of two masks.
    Logical(Logical),
    /// The other mask.
    LogicalNot,
    /// Elements of the second value where the first is true, else of the third.
    Where,
    /// The same elements as another type.
    Cast {
        /// `float32`, `int32`, `int64` or `bool`.
        to: ValueType,
    },
    /// Sums of integers from the first index of a dimension to every other.
    Cumsum {
        /// The dimension.
        dim: i64,
    },
    /// Int8 convolution.
    ConvInt8(Conv),
    /// Int8 linear layer.
    LinearInt8,
    /// Floats to codes.
    Quantize {
        /// What the codes stand for.
        act: ActType,
        /// Channels.
        channels: usize,
        /// Groups of channels.
        groups: usize,
        /// Spatial axes, where the node says so.
        axes: Option<usize>,
    },
    /// Convolution of codes to codes.
    ConvCodes {
        /// The convolution.
        conv: CodesConv,
        /// Groups of the output's channels.
        out_groups: usize,
    },
    /// Convolution of codes to floats.
    ConvFloat {
        /// The convolution.
        conv: CodesConv,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// Max pooling on codes.
    MaxPoolCodes {
        /// The window.
        params: ConvParams,
        /// Whether the last window may reach over the edge.
        ceil_mode: bool,
    },
    /// An operation that this release does not know.
    Other {
        /// Its name.
        name: String,
        /// What is unknown about it.
        why: String,
    },
}
