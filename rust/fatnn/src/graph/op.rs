//! Operations with typed attributes.
//!
//! [`Op`] holds the attributes of one node. Facts about the operation itself, such as its tensor
//! roles and its rules for types and shapes, are in its row of [`super::ops::OPS`].

use serde_json::Value as Json;

use super::spatial::{ConvTranspose, DepthToSpace, Interpolate};
use crate::dtype::{ActType, ValueType};
use crate::scalar::{Binary, Comparison, Int8Quantizer, Logical, Scalar};

/// A sliding window over two axes. In one dimension the first axis has kernel 1 and no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvParams {
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Distance between neighbouring windows.
    pub stride: [usize; 2],
    /// Elements added on each side of the input.
    pub padding: [usize; 2],
    /// Distance between neighbouring elements of a window.
    pub dilation: [usize; 2],
}

impl ConvParams {
    /// A window of one element on each axis.
    pub const ONE: ConvParams =
        ConvParams { kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
}

/// A float or int8 convolution. The weight gives the kernel size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Spatial axes: 1 or 2.
    pub axes: usize,
    /// Stride, padding and dilation; `kernel` is not used.
    pub params: ConvParams,
    /// Groups of channels.
    pub groups: usize,
    /// Products per input element of the transposed convolution that this convolution replaces;
    /// `None` for any other convolution.
    pub input_products: Option<usize>,
}

/// A convolution or linear layer on codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodesConv {
    /// Kernel, stride, padding and dilation; the window of a linear layer covers the whole map.
    pub params: ConvParams,
    /// Groups of channels.
    pub groups: usize,
    /// Activation type: the values that the codes stand for.
    pub act: ActType,
    /// Input channels, if the node declares them.
    pub channels: Option<usize>,
    /// Spatial axes of the output: 0 for linear layers.
    pub axes: usize,
    /// As [`Conv::input_products`].
    pub input_products: Option<usize>,
}

/// Pooling with a window of a fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Spatial axes: 1 or 2.
    pub axes: usize,
    /// Kernel, stride, padding and dilation.
    pub params: ConvParams,
    /// Whether the last window may extend beyond the padded input.
    pub ceil_mode: bool,
}

/// Every `step`th index of a dimension from `start` up to, but not including, `end`. Negative
/// indices count from the end; indices out of range are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The dimension.
    pub dim: i64,
    /// The first index.
    pub start: i64,
    /// One past the last index.
    pub end: i64,
    /// Distance between neighbouring indices.
    pub step: usize,
}

/// Allowed sizes of an input's first dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRange {
    /// The smallest.
    pub min: usize,
    /// The largest.
    pub max: usize,
    /// Every size must be a multiple of this.
    pub multiple: usize,
}

/// An input of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Dimensions that must have the size of conversion in every run.
    pub fixed: Vec<usize>,
    /// The channel dimension.
    pub channel_dim: Option<usize>,
    /// Allowed sizes of the first dimension, if the model branches on it.
    pub batch: Option<BatchRange>,
}

impl Input {
    /// Reads the attribute `batch`: `[min, max, multiple]`.
    pub(super) fn batch_range(json: &Json) -> Option<BatchRange> {
        let [min, max, multiple] = json.as_array()?.as_slice() else { return None };
        let size =
            |json: &Json| json.as_u64().filter(|n| *n < super::attrs::LIMIT).map(|n| n as usize);
        let multiple = size(multiple).filter(|n| *n > 0)?;
        Some(BatchRange { min: size(min)?, max: size(max)?, multiple })
    }
}

/// The function of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Mean of the elements.
    Mean,
    /// Sum of the elements.
    Sum,
    /// Largest element; NaN if any element is NaN.
    Max,
    /// Smallest element; NaN if any element is NaN.
    Min,
    /// Sum of the elements' magnitudes.
    Norm1,
    /// Square root of the sum of their squares.
    Norm2,
    /// Sum of the squared distances to the mean, divided by the number of elements less
    /// `correction`.
    Variance {
        /// The number to subtract from the number of elements: PyTorch's `correction`.
        correction: i64,
        /// Whether the result is the square root: the standard deviation.
        root: bool,
    },
}

/// The elements that share one mean and variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// All elements of this many last dimensions.
    Last(usize),
    /// All pixels and channels of one of this many channel groups.
    Groups(usize),
    /// All pixels of one channel.
    Channels,
}

/// `(x - mean) / √(variance + eps) * weight + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The elements that share statistics.
    pub over: NormOver,
    /// Whether the mean is subtracted; otherwise the mean is 0 and the variance the mean square.
    pub centered: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// The masks that a multi-head attention reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionMasks {
    /// A mask of queries and keys: `[queries, keys]`, or one such for every image and head.
    pub scores: bool,
    /// A mask of the keys of every image: `[images, keys]`.
    pub keys: bool,
}

impl AttentionMasks {
    /// Reads the attribute `masks`: `scores`, `keys`, `scores|keys`, or nothing.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (scores, keys) = match name {
            "" => (false, false),
            "scores" => (true, false),
            "keys" => (false, true),
            "scores|keys" => (true, true),
            _ => return None,
        };
        Some(AttentionMasks { scores, keys })
    }

    /// The number of masks.
    pub fn count(self) -> usize {
        usize::from(self.scores) + usize::from(self.keys)
    }
}

/// The operation of a node, with its attributes.
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
    /// `fma(x, scale, bias)` per channel. Only for graphs described to the engine, never in files.
    Affine,
    /// The same function of every element.
    Scalar(Scalar),
    /// A function of values with eight bits, as a table of its results.
    Lookup(Int8Quantizer),
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
        /// Window and axes.
        pool: Pool,
        /// Whether padding counts as elements of the window.
        count_include_pad: bool,
        /// Divisor; 0 means the number of elements in the window.
        divisor: i64,
    },
    /// Average pooling to a fixed size.
    AdaptiveAvgPool {
        /// Spatial axes: 1 or 2.
        axes: usize,
        /// Sizes of the output; 0 means the input's size.
        size: [usize; 2],
    },
    /// Max pooling to a fixed size.
    AdaptiveMaxPool {
        /// Spatial axes: 1 or 2.
        axes: usize,
        /// Sizes of the output; 0 means the input's size.
        size: [usize; 2],
    },
    /// Resizing of a map. A second input, if there is one, gives the output size.
    Interpolate(Interpolate),
    /// As [`Op::Interpolate`], but for codes.
    InterpolateCodes(Interpolate),
    /// Moves channels to pixels, as `pixel_shuffle`.
    DepthToSpace(DepthToSpace),
    /// As [`Op::DepthToSpace`], but for codes.
    DepthToSpaceCodes(DepthToSpace),
    /// Transposed float convolution.
    ConvTranspose(ConvTranspose),
    /// Reduction of dimensions to one number.
    Reduce {
        /// Mean, sum, maximum or minimum.
        kind: Reduction,
        /// Dimensions to reduce. Negative ones count from the end; an empty list means all.
        dims: Vec<i64>,
        /// Whether reduced dimensions stay, with size 1.
        keepdim: bool,
    },
    /// Normalisation by the input's own statistics.
    Norm(Norm),
    /// Softmax.
    Softmax {
        /// The dimension that sums to 1.
        dim: i64,
        /// Whether the result is the logarithm of the softmax.
        log: bool,
    },
    /// Matrix product over the last two dimensions.
    Matmul,
    /// `softmax(q · kᵀ * scale + mask) · v`. The mask is an optional fourth input.
    Attention {
        /// Whether a query sees only the keys up to its own position.
        causal: bool,
        /// Factor of the scores; `None` means `1 / √(last dimension)`.
        scale: Option<f32>,
    },
    /// Multi-head attention of queries, keys and values, including its linear layers.
    Multihead {
        /// Number of heads.
        heads: usize,
        /// Whether the batch dimension comes before the tokens.
        batch_first: bool,
        /// Masks that are added to the scores: inputs after the values, in this order.
        masks: AttentionMasks,
    },
    /// Merges the dimensions from `start` to `end` into one.
    Flatten {
        /// First merged dimension; negative ones count from the end.
        start: i64,
        /// Last merged dimension.
        end: i64,
    },
    /// Merges all dimensions except the last into one.
    FlattenLeading,
    /// Reshapes the first input to the leading dimensions of the second; the last one stays.
    ReshapeLike,
    /// Padding, as `torch.nn.functional.pad`.
    Pad {
        /// Pairs of sizes before and after, starting with the last dimension. Negative ones cut.
        pad: Vec<i64>,
        /// `constant`, `reflect`, `replicate` or `circular`.
        mode: String,
        /// Fill value of the mode `constant`.
        value: f32,
    },
    /// A function of two values, with PyTorch's broadcasting.
    Binary(Binary),
    /// The same elements, in row-major order, in another shape.
    Reshape {
        /// Output shape. 0 keeps the input's size of the dimension; -1 is inferred.
        shape: Vec<i64>,
    },
    /// Removes a dimension if its size is 1.
    Squeeze {
        /// The dimension.
        dim: i64,
    },
    /// Inserts a dimension of size 1.
    Unsqueeze {
        /// Position of the new dimension in the output.
        dim: i64,
    },
    /// Reorders the dimensions.
    Permute {
        /// For every output dimension, the input dimension that it takes.
        dims: Vec<i64>,
    },
    /// Selects a range of indices of one dimension.
    Slice(Slice),
    /// Repeats dimensions of size 1 and new leading dimensions.
    Expand {
        /// Output shape. -1 keeps the input's size of the dimension; -2 is the size of the second
        /// input's first dimension.
        shape: Vec<i64>,
    },
    /// Concatenates values.
    Cat {
        /// Dimension along which they are joined.
        dim: i64,
    },
    /// A tensor of the graph as a value.
    Constant,
    /// Takes the indices of one dimension that the second input lists.
    IndexSelect {
        /// The dimension.
        dim: i64,
    },
    /// Reverses one dimension.
    Flip {
        /// The dimension.
        dim: i64,
    },
    /// Selects rows of the weight by their indices.
    Embedding,
    /// Elementwise comparison of two values.
    Compare(Comparison),
    /// Elementwise logical function of two masks.
    Logical(Logical),
    /// Elementwise negation of a mask.
    LogicalNot,
    /// Takes an element of the second input if the mask is true, otherwise of the third.
    Where,
    /// `a + value * b * c`, with broadcasting.
    Addcmul {
        /// The factor.
        value: f32,
    },
    /// Converts elements to another type.
    Cast {
        /// `float32`, `int32`, `int64` or `bool`.
        to: ValueType,
    },
    /// Cumulative sum of integers along a dimension.
    Cumsum {
        /// The dimension.
        dim: i64,
    },
    /// Int8 convolution.
    ConvInt8(Conv),
    /// Int8 linear layer.
    LinearInt8,
    /// Quantizes floats to codes.
    Quantize {
        /// Activation type: the values that the codes stand for.
        act: ActType,
        /// Number of channels.
        channels: usize,
        /// Number of channel groups, each packed by itself.
        groups: usize,
        /// Spatial axes, if the node declares them.
        axes: Option<usize>,
    },
    /// Convolution from codes to codes.
    ConvCodes {
        /// Parameters of the convolution.
        conv: CodesConv,
        /// Number of channel groups of the output codes.
        out_groups: usize,
    },
    /// Convolution from codes to floats.
    ConvFloat {
        /// Parameters of the convolution.
        conv: CodesConv,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// Max pooling on codes.
    MaxPoolCodes {
        /// Kernel, stride, padding and dilation.
        params: ConvParams,
        /// Whether the last window may extend beyond the padded input.
        ceil_mode: bool,
    },
    /// An operation that this release does not know.
    Other {
        /// Name of the operation in the graph.
        name: String,
        /// Reason why it cannot run.
        why: String,
    },
}
