//! The table of operations: one row each. Checks, shape inference, reports, the engine's choice of
//! nodes and the bindings read it; nothing else lists operations.

use super::attrs::AttrType::{self, Bool, Float, Int, Ints, Str};
use super::attrs::{Attr, Attrs, Presence};
use super::op::{CodesConv, Conv, Input, Op, Pool, Slice};
use super::ops::{Exactness, Form, OpInfo, Products, Role};
use super::table_masks::MASKS;
use super::table_scalar::SCALARS;
use super::table_spatial::SPATIAL;
use super::table_sums::SUMS;
use super::{BuildError, shapes, support, types};
use crate::dtype::TensorType;
use crate::scalar::Binary;

pub(super) const fn always(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::Always }
}

const fn in_files(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::InFiles }
}

pub(super) const fn optional(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::Optional }
}

pub(super) const fn role(
    name: &'static str,
    dtypes: &'static [TensorType],
    required: bool,
) -> Role {
    Role { name, dtypes, required }
}

pub(super) const F32: &[TensorType] = &[TensorType::F32];
const PLAIN: &[TensorType] = &[TensorType::F32, TensorType::I32, TensorType::I64, TensorType::Bool];
const I32: &[TensorType] = &[TensorType::I32];
const I8: &[TensorType] = &[TensorType::I8];
const CODES: &[TensorType] = TensorType::CODES;

const KERNEL: Attr = always("kernel", Ints);
pub(super) const STRIDE: Attr = always("stride", Ints);
pub(super) const PADDING: Attr = always("padding", Ints);
pub(super) const DILATION: Attr = always("dilation", Ints);
pub(super) const GROUPS: Attr = always("groups", Int);
const CEIL_MODE: Attr = always("ceil_mode", Bool);
pub(super) const LAYOUT: Attr = in_files("layout", Str);
const ACT: Attr = always("act", Str);
const INPUT_PRODUCTS: Attr = optional("input_products", Int);

const CONV: &[Attr] = &[STRIDE, PADDING, DILATION, GROUPS, LAYOUT];
const WEIGHTED: &[Role] = &[role("weight", F32, true), role("bias", F32, false)];
const MAX_POOL: &[Attr] = &[KERNEL, STRIDE, PADDING, in_files("dilation", Ints), CEIL_MODE];
const CONV_INT8: &[Attr] = &[STRIDE, PADDING, DILATION, GROUPS, INPUT_PRODUCTS];
const INT8: &[Role] = &[
    role("weight", I8, true),
    role("scale", F32, true),
    role("inv_step", F32, true),
    role("bias", F32, false),
];

/// A row of an operation that reads one value of floats, makes floats of the same shape, and that
/// the engine always has.
pub(super) const ROW: OpInfo = OpInfo {
    name: "",
    inputs: (1, Some(1)),
    attrs: &[],
    tensors: &[],
    reads_codes: false,
    reads_plain: false,
    makes_codes: false,
    exactness: Exactness::Exact,
    products: Products::None,
    form: Form::Other,
    in_files: true,
    build: |_| Err(BuildError::Invalid("no operation".into())),
    types: types::floats,
    shape: shapes::same,
    support: Some(support::image),
};

pub(super) const FLOAT_CONV: OpInfo = OpInfo {
    attrs: CONV,
    tensors: WEIGHTED,
    exactness: Exactness::SumOrder,
    products: Products::Float,
    shape: shapes::conv,
    ..ROW
};
const INT8_CONV: OpInfo = OpInfo {
    attrs: CONV_INT8,
    tensors: INT8,
    products: Products::Int8,
    types: types::int8,
    shape: shapes::conv,
    ..ROW
};
const POOL: OpInfo = OpInfo { form: Form::Pool, attrs: MAX_POOL, shape: shapes::pool, ..ROW };
const BINARY: OpInfo = OpInfo {
    inputs: (2, Some(2)),
    reads_plain: true,
    types: types::arithmetic,
    shape: shapes::broadcast,
    support: Some(support::any),
    ..ROW
};
/// A row of an operation that moves elements of any type.
const MOVE: OpInfo = OpInfo {
    form: Form::Shape,
    reads_plain: true,
    types: types::moved,
    support: Some(support::any),
    ..ROW
};
const CHANNEL: OpInfo =
    OpInfo { form: Form::Channel, shape: shapes::channel, support: Some(support::channel), ..ROW };
pub(super) const SUM: OpInfo = OpInfo { exactness: Exactness::SumOrder, ..ROW };

/// Every operation.
pub static OPS: &[OpInfo] = &joined::<
    { ROWS.len() + SCALARS.len() + SUMS.len() + MASKS.len() + SPATIAL.len() },
>(&[ROWS, SCALARS, SUMS, MASKS, SPATIAL]);

/// Parts of the table as one.
const fn joined<const N: usize>(parts: &[&[OpInfo]]) -> [OpInfo; N] {
    let (mut all, mut at, mut part) = ([ROW; N], 0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[at] = parts[part][i];
            (at, i) = (at + 1, i + 1);
        }
        part += 1;
    }
    all
}

const ROWS: &[OpInfo] = &[
    OpInfo {
        name: "input",
        inputs: (0, Some(0)),
        attrs: &[
            in_files("fixed", Ints),
            in_files("channel_dim", Int),
            optional("batch", Ints),
            optional("layout", Str),
        ],
        build: |a| {
            let fixed = if a.has("fixed") { a.integers("fixed")? } else { Vec::new() };
            let batch = match a.0.get("batch") {
                None => None,
                Some(range) => Some(
                    Input::batch_range(range).ok_or("its range of batch sizes means nothing")?,
                ),
            };
            let channel_dim = a.optional_number("channel_dim")?;
            Ok(Op::Input(Input { fixed, channel_dim, batch }))
        },
        types: types::input,
        shape: shapes::noted,
        ..ROW
    },
    OpInfo {
        name: "conv1d",
        build: |a| conv(a, 1).map(Op::Conv),
        support: Some(support::rank::<3>),
        ..FLOAT_CONV
    },
    OpInfo {
        name: "conv2d",
        build: |a| conv(a, 2).map(Op::Conv),
        support: Some(support::rank::<4>),
        ..FLOAT_CONV
    },
    OpInfo {
        name: "linear",
        attrs: &[LAYOUT],
        build: |_| Ok(Op::Linear),
        shape: shapes::linear,
        support: Some(support::linear),
        ..FLOAT_CONV
    },
    OpInfo {
        name: "batch_norm",
        attrs: &[always("eps", Float), LAYOUT],
        tensors: &[
            role("mean", F32, true),
            role("var", F32, true),
            role("weight", F32, false),
            role("bias", F32, false),
        ],
        build: |a| Ok(Op::BatchNorm { eps: a.float("eps")? }),
        ..CHANNEL
    },
    OpInfo {
        name: "affine",
        tensors: &[role("scale", F32, true), role("bias", F32, true)],
        in_files: false,
        build: |_| Ok(Op::Affine),
        ..CHANNEL
    },
    OpInfo {
        name: "prelu",
        attrs: &[in_files("shared", Bool)],
        tensors: &[role("weight", F32, true)],
        build: |_| Ok(Op::Prelu),
        ..CHANNEL
    },
    OpInfo {
        name: "channel_scale",
        attrs: &[in_files("trailing", Int)],
        tensors: &[role("scale", F32, true)],
        build: |a| Ok(Op::ChannelScale { trailing: a.optional_number("trailing")? }),
        ..CHANNEL
    },
    OpInfo {
        name: "channel_bias",
        attrs: &[in_files("trailing", Int)],
        tensors: &[role("bias", F32, true)],
        build: |a| Ok(Op::ChannelBias { trailing: a.optional_number("trailing")? }),
        ..CHANNEL
    },
    OpInfo {
        name: "max_pool1d",
        build: |a| max_pool(a, 1),
        support: Some(support::rank::<3>),
        ..POOL
    },
    OpInfo {
        name: "max_pool2d",
        build: |a| max_pool(a, 2),
        support: Some(support::rank::<4>),
        ..POOL
    },
    OpInfo {
        name: "avg_pool1d",
        attrs: &[KERNEL, STRIDE, PADDING, CEIL_MODE, always("count_include_pad", Bool), LAYOUT],
        build: |a| avg_pool(a, 1, 0),
        shape: shapes::pool,
        support: Some(support::rank::<3>),
        ..SUM
    },
    OpInfo {
        name: "avg_pool2d",
        attrs: &[
            KERNEL,
            STRIDE,
            PADDING,
            CEIL_MODE,
            always("count_include_pad", Bool),
            always("divisor", Int),
            LAYOUT,
        ],
        build: |a| avg_pool(a, 2, a.integer("divisor")?),
        shape: shapes::pool,
        support: Some(support::avg_pool2d),
        ..SUM
    },
    OpInfo {
        name: "adaptive_avg_pool1d",
        attrs: &[always("size", Ints), LAYOUT],
        build: |a| Ok(Op::AdaptiveAvgPool { axes: 1, size: a.pair("size", 1, 1)? }),
        shape: shapes::adaptive,
        support: Some(support::rank::<3>),
        ..SUM
    },
    OpInfo {
        name: "adaptive_avg_pool2d",
        attrs: &[always("size", Ints), LAYOUT],
        build: |a| Ok(Op::AdaptiveAvgPool { axes: 2, size: a.pair("size", 2, 1)? }),
        shape: shapes::adaptive,
        support: Some(support::rank::<4>),
        ..SUM
    },
    OpInfo {
        name: "flatten",
        attrs: &[always("start", Int), always("end", Int)],
        build: |a| Ok(Op::Flatten { start: a.integer("start")?, end: a.integer("end")? }),
        shape: shapes::flatten,
        ..MOVE
    },
    OpInfo {
        name: "flatten_leading",
        build: |_| Ok(Op::FlattenLeading),
        shape: shapes::flatten_leading,
        support: Some(support::linear),
        ..MOVE
    },
    OpInfo {
        name: "reshape_like",
        inputs: (2, Some(2)),
        build: |_| Ok(Op::ReshapeLike),
        shape: shapes::reshape_like,
        support: Some(support::linear),
        ..MOVE
    },
    OpInfo {
        name: "pad",
        attrs: &[always("pad", Ints), always("mode", Str), always("value", Float)],
        build: |a| {
            Ok(Op::Pad { pad: a.integers("pad")?, mode: a.text("mode")?, value: a.float("value")? })
        },
        shape: shapes::pad,
        support: Some(support::pad),
        ..ROW
    },
    OpInfo { name: "add", build: |_| Ok(Op::Binary(Binary::Add)), ..BINARY },
    OpInfo { name: "sub", build: |_| Ok(Op::Binary(Binary::Sub)), ..BINARY },
    OpInfo { name: "mul", build: |_| Ok(Op::Binary(Binary::Mul)), ..BINARY },
    OpInfo { name: "div", build: |_| Ok(Op::Binary(Binary::Div)), ..BINARY },
    OpInfo {
        name: "reshape",
        attrs: &[always("shape", Ints)],
        build: |a| Ok(Op::Reshape { shape: a.integers("shape")? }),
        shape: shapes::reshape,
        ..MOVE
    },
    OpInfo {
        name: "squeeze",
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::Squeeze { dim: a.integer("dim")? }),
        shape: shapes::squeeze,
        ..MOVE
    },
    OpInfo {
        name: "unsqueeze",
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::Unsqueeze { dim: a.integer("dim")? }),
        shape: shapes::unsqueeze,
        ..MOVE
    },
    OpInfo {
        name: "permute",
        attrs: &[always("dims", Ints)],
        build: |a| Ok(Op::Permute { dims: a.integers("dims")? }),
        shape: shapes::permute,
        ..MOVE
    },
    OpInfo {
        name: "slice",
        attrs: &[
            always("dim", Int),
            always("start", Int),
            always("end", Int),
            always("step", Int),
            optional("layout", Str),
        ],
        build: |a| {
            let (dim, start, end) = (a.integer("dim")?, a.integer("start")?, a.integer("end")?);
            match a.number("step")? {
                0 => Err("step must be at least 1".into()),
                step => Ok(Op::Slice(Slice { dim, start, end, step })),
            }
        },
        shape: shapes::slice,
        ..MOVE
    },
    OpInfo {
        name: "expand",
        inputs: (1, Some(2)),
        attrs: &[always("shape", Ints), optional("layout", Str)],
        build: |a| Ok(Op::Expand { shape: a.integers("shape")? }),
        shape: shapes::expand,
        ..MOVE
    },
    OpInfo {
        name: "cat",
        inputs: (1, None),
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::Cat { dim: a.integer("dim")? }),
        shape: shapes::cat,
        support: Some(support::cat),
        ..MOVE
    },
    OpInfo {
        name: "constant",
        inputs: (0, Some(0)),
        tensors: &[role("value", PLAIN, true)],
        types: types::constant,
        build: |_| Ok(Op::Constant),
        shape: shapes::constant,
        support: Some(support::any),
        ..ROW
    },
    OpInfo {
        name: "conv1d_int8",
        build: |a| conv(a, 1).map(Op::ConvInt8),
        support: Some(support::rank::<3>),
        ..INT8_CONV
    },
    OpInfo {
        name: "conv2d_int8",
        build: |a| conv(a, 2).map(Op::ConvInt8),
        support: Some(support::rank::<4>),
        ..INT8_CONV
    },
    OpInfo {
        name: "linear_int8",
        attrs: &[],
        build: |_| Ok(Op::LinearInt8),
        shape: shapes::linear,
        support: Some(support::rank::<2>),
        ..INT8_CONV
    },
    OpInfo {
        name: "quantize",
        attrs: &[GROUPS, always("channels", Int), ACT, in_files("dims", Int)],
        tensors: &[role("steps", F32, true)],
        makes_codes: true,
        build: |a| {
            let (act, channels, groups) = (a.act()?, a.number("channels")?, a.number("groups")?);
            Ok(Op::Quantize { act, channels, groups, axes: a.optional_number("dims")? })
        },
        types: types::quantize,
        shape: shapes::quantize,
        ..ROW
    },
    OpInfo {
        name: "conv_codes",
        attrs: CODES_TO_CODES,
        tensors: &[role("weight", CODES, true), role("thresholds", I32, true)],
        reads_codes: true,
        makes_codes: true,
        products: Products::Codes,
        build: |a| Ok(Op::ConvCodes { conv: codes_conv(a)?, out_groups: a.number("out_groups")? }),
        types: types::conv_codes,
        shape: shapes::codes_conv,
        ..ROW
    },
    OpInfo {
        name: "conv_float",
        inputs: (1, Some(2)),
        attrs: CODES_TO_FLOAT,
        tensors: &[
            role("weight", CODES, true),
            role("scale", F32, false),
            role("bias", F32, false),
        ],
        reads_codes: true,
        products: Products::Codes,
        build: |a| Ok(Op::ConvFloat { conv: codes_conv(a)?, relu: a.flag("relu")? }),
        types: types::conv_float,
        shape: shapes::codes_conv,
        ..ROW
    },
    OpInfo {
        name: "max_pool_codes",
        attrs: &[KERNEL, STRIDE, PADDING, DILATION, CEIL_MODE],
        reads_codes: true,
        makes_codes: true,
        build: |a| Ok(Op::MaxPoolCodes { params: a.conv(2)?, ceil_mode: a.flag("ceil_mode")? }),
        types: types::max_pool_codes,
        shape: shapes::max_pool_codes,
        ..ROW
    },
];

const CODES_TO_CODES: &[Attr] = &[
    KERNEL,
    STRIDE,
    PADDING,
    DILATION,
    GROUPS,
    ACT,
    in_files("channels", Int),
    always("dims", Int),
    always("out_groups", Int),
    INPUT_PRODUCTS,
];
const CODES_TO_FLOAT: &[Attr] = &[
    KERNEL,
    STRIDE,
    PADDING,
    DILATION,
    GROUPS,
    ACT,
    in_files("channels", Int),
    always("dims", Int),
    always("relu", Bool),
    INPUT_PRODUCTS,
];

fn conv(attrs: &Attrs<'_>, axes: usize) -> Result<Conv, BuildError> {
    Ok(Conv {
        axes,
        params: attrs.conv_without_kernel(axes)?,
        groups: attrs.number("groups")?,
        input_products: attrs.optional_number("input_products")?,
    })
}

fn max_pool(attrs: &Attrs<'_>, axes: usize) -> Result<Op, BuildError> {
    Ok(Op::MaxPool(Pool { axes, params: attrs.pool(axes)?, ceil_mode: attrs.flag("ceil_mode")? }))
}

fn avg_pool(attrs: &Attrs<'_>, axes: usize, divisor: i64) -> Result<Op, BuildError> {
    let pool = Pool { axes, params: attrs.pool(axes)?, ceil_mode: attrs.flag("ceil_mode")? };
    Ok(Op::AvgPool { pool, count_include_pad: attrs.flag("count_include_pad")?, divisor })
}

fn codes_conv(attrs: &Attrs<'_>) -> Result<CodesConv, BuildError> {
    let axes = attrs.number("dims")?;
    if axes > 2 {
        return Err(format!("dims must be 0, 1 or 2, got {axes}").into());
    }
    let (act, channels) = (attrs.act()?, attrs.optional_number("channels")?);
    let input_products = attrs.optional_number("input_products")?;
    let (params, groups) = (attrs.conv(2)?, attrs.number("groups")?);
    Ok(CodesConv { params, groups, act, channels, axes, input_products })
}
