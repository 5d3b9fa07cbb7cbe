//! Table rows of float layers, per-channel functions and pooling.

use super::{
    DILATION, F32, GROUPS, KERNEL, LAYOUT, PADDING, ROW, STRIDE, SUM, always, in_files, role,
};
use crate::graph::attrs::AttrType::{Bool, Float, Int, Ints};
use crate::graph::attrs::{Attr, Attrs};
use crate::graph::op::{Conv, Op, Pool};
use crate::graph::ops::{Exactness, Form, OpInfo, Products, Role};
use crate::graph::{BuildError, shapes, support};

pub(super) const CEIL_MODE: Attr = always("ceil_mode", Bool);
const CONV: &[Attr] = &[STRIDE, PADDING, DILATION, GROUPS, LAYOUT];
const WEIGHTED: &[Role] = &[role("weight", F32, true), role("bias", F32, false)];
const MAX_POOL: &[Attr] = &[KERNEL, STRIDE, PADDING, in_files("dilation", Ints), CEIL_MODE];
pub(super) const FLOAT_CONV: OpInfo = OpInfo {
    attrs: CONV,
    tensors: WEIGHTED,
    exactness: Exactness::SumOrder,
    products: Products::Float,
    shape: shapes::conv,
    ..ROW
};
const POOL: OpInfo = OpInfo { form: Form::Pool, attrs: MAX_POOL, shape: shapes::pool, ..ROW };
const CHANNEL: OpInfo =
    OpInfo { form: Form::Channel, shape: shapes::channel, support: Some(support::channel), ..ROW };

pub(super) const LAYERS: &[OpInfo] = &[
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
];

pub(super) fn conv(attrs: &Attrs<'_>, axes: usize) -> Result<Conv, BuildError> {
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
