//! Table rows of int8 layers and of operations on packed codes.

use super::layers::{CEIL_MODE, conv};
use super::{
    DILATION, F32, GROUPS, INPUT_PRODUCTS, KERNEL, PADDING, ROW, STRIDE, always, in_files, role,
};
use crate::dtype::TensorType;
use crate::graph::attrs::AttrType::{Bool, Int, Str};
use crate::graph::attrs::{Attr, Attrs};
use crate::graph::op::{CodesConv, Op};
use crate::graph::ops::{OpInfo, Products, Role};
use crate::graph::{BuildError, shapes, support, types};

const I32: &[TensorType] = &[TensorType::I32];
const I8: &[TensorType] = &[TensorType::I8];
const CODES: &[TensorType] = TensorType::CODES;
const ACT: Attr = always("act", Str);
const CONV_INT8: &[Attr] = &[STRIDE, PADDING, DILATION, GROUPS, INPUT_PRODUCTS];
const INT8: &[Role] = &[
    role("weight", I8, true),
    role("scale", F32, true),
    role("inv_step", F32, true),
    role("bias", F32, false),
];
const INT8_CONV: OpInfo = OpInfo {
    attrs: CONV_INT8,
    tensors: INT8,
    products: Products::Int8,
    types: types::int8,
    shape: shapes::conv,
    ..ROW
};
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

pub(super) const QUANTIZED: &[OpInfo] = &[
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
