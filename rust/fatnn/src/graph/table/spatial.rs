//! Table rows of operations that resize maps, of adaptive max pooling and of instance norm.

use super::layers::FLOAT_CONV;
use super::{DILATION, F32, GROUPS, LAYOUT, PADDING, ROW, STRIDE, SUM, always, optional, role};
use crate::graph::attrs::AttrType::{self, Bool, Floats, Int, Ints, Str};
use crate::graph::attrs::{Attr, Attrs};
use crate::graph::op::{Norm, NormOver, Op};
use crate::graph::ops::{Exactness, Form, OpInfo};
use crate::graph::spatial::{ConvTranspose, DepthToSpace, Interpolate, Sampling};
use crate::graph::{BuildError, shapes, support, types};

const SIZE: Attr = always("size", Ints);
const FACTORS: Attr = always("factors", Floats);
const RECOMPUTE: Attr = always("recompute", Bool);
const MODE: Attr = always("mode", Str);
const NEAREST: &[Attr] = &[SIZE, FACTORS, RECOMPUTE, MODE, LAYOUT];
const BLOCKS: &[Attr] = &[ints("block"), ints("crop"), always("groups", Int), MODE];
const CONV: &[Attr] = &[STRIDE, PADDING, ints("output_padding"), DILATION, GROUPS, LAYOUT];

const fn ints(name: &'static str) -> Attr {
    always(name, AttrType::Ints)
}

const INTERPOLATE: OpInfo = OpInfo {
    inputs: (1, Some(2)),
    attrs: NEAREST,
    form: Form::Select,
    shape: shapes::interpolate,
    support: Some(support::interpolate),
    ..ROW
};
const SHUFFLE: OpInfo = OpInfo {
    attrs: BLOCKS,
    form: Form::Select,
    shape: shapes::depth_to_space,
    support: Some(support::map),
    ..ROW
};
const CONV_TRANSPOSE: OpInfo = OpInfo { attrs: CONV, shape: shapes::conv_transpose, ..FLOAT_CONV };

pub(super) const SPATIAL: &[OpInfo] = &[
    OpInfo {
        name: "interpolate_nearest",
        build: |a| Ok(Op::Interpolate(interpolate(a, nearest(a)?)?)),
        ..INTERPOLATE
    },
    OpInfo {
        name: "interpolate_nearest_codes",
        attrs: &[SIZE, FACTORS, RECOMPUTE, MODE, optional("layout", Str)],
        reads_codes: true,
        makes_codes: true,
        build: |a| Ok(Op::InterpolateCodes(interpolate(a, nearest(a)?)?)),
        types: types::max_pool_codes,
        ..INTERPOLATE
    },
    OpInfo {
        name: "interpolate_linear",
        attrs: &[SIZE, FACTORS, RECOMPUTE, always("align_corners", Bool), LAYOUT],
        exactness: Exactness::SumOrder,
        form: Form::Other,
        build: |a| {
            let sampling = Sampling::Linear { align_corners: a.flag("align_corners")? };
            Ok(Op::Interpolate(interpolate(a, sampling)?))
        },
        ..INTERPOLATE
    },
    OpInfo {
        name: "interpolate_filter",
        attrs: &[
            SIZE,
            FACTORS,
            RECOMPUTE,
            MODE,
            always("align_corners", Bool),
            always("antialias", Bool),
            LAYOUT,
        ],
        exactness: Exactness::SumOrder,
        form: Form::Other,
        build: |a| {
            let mode = a.text("mode")?;
            let (antialias, align_corners) = (a.flag("antialias")?, a.flag("align_corners")?);
            let cubic = match (mode.as_str(), antialias) {
                ("bicubic", _) => true,
                ("bilinear", true) => false,
                _ => {
                    return Err(format!(
                        "mode must be bicubic, or bilinear with antialias, got {mode:?}"
                    )
                    .into());
                }
            };
            let sampling = Sampling::Filter { cubic, antialias, align_corners };
            Ok(Op::Interpolate(interpolate(a, sampling)?))
        },
        support: Some(support::interpolate_filter),
        ..INTERPOLATE
    },
    OpInfo {
        name: "depth_to_space",
        build: |a| Ok(Op::DepthToSpace(depth_to_space(a)?)),
        ..SHUFFLE
    },
    OpInfo {
        name: "depth_to_space_codes",
        reads_codes: true,
        makes_codes: true,
        build: |a| match depth_to_space(a)? {
            how if how.blocks_first => Ok(Op::DepthToSpaceCodes(how)),
            _ => Err("mode must be DCR for codes, got CRD".into()),
        },
        types: shapes::depth_to_space_codes,
        ..SHUFFLE
    },
    OpInfo {
        name: "conv_transpose1d",
        build: |a| conv_transpose(a, 1),
        support: Some(support::rank::<3>),
        ..CONV_TRANSPOSE
    },
    OpInfo {
        name: "conv_transpose2d",
        build: |a| conv_transpose(a, 2),
        support: Some(support::rank::<4>),
        ..CONV_TRANSPOSE
    },
    OpInfo {
        name: "adaptive_max_pool1d",
        attrs: &[SIZE],
        build: |a| Ok(Op::AdaptiveMaxPool { axes: 1, size: a.pair("size", 1, 1)? }),
        shape: shapes::adaptive,
        support: Some(support::rank::<3>),
        ..ROW
    },
    OpInfo {
        name: "adaptive_max_pool2d",
        attrs: &[SIZE],
        build: |a| Ok(Op::AdaptiveMaxPool { axes: 2, size: a.pair("size", 2, 1)? }),
        shape: shapes::adaptive,
        support: Some(support::rank::<4>),
        ..ROW
    },
    OpInfo {
        name: "instance_norm",
        attrs: &[always("eps", AttrType::Float), LAYOUT],
        tensors: &[role("weight", F32, false), role("bias", F32, false)],
        build: |a| match a.float("eps")? {
            eps if eps < 0.0 => Err(format!("eps must not be negative, got {eps}").into()),
            eps => Ok(Op::Norm(Norm { over: NormOver::Channels, centered: true, eps })),
        },
        shape: shapes::norm,
        support: Some(support::map),
        ..SUM
    },
];

fn nearest(attrs: &Attrs<'_>) -> Result<Sampling, String> {
    match attrs.text("mode")?.as_str() {
        "nearest" => Ok(Sampling::Nearest),
        "nearest-exact" => Ok(Sampling::NearestExact),
        other => Err(format!("mode must be nearest or nearest-exact, got {other:?}")),
    }
}

fn interpolate(attrs: &Attrs<'_>, sampling: Sampling) -> Result<Interpolate, String> {
    let (size, factors) = (attrs.integers("size")?, attrs.numbers("factors")?);
    let recompute = attrs.flag("recompute")?;
    if size.contains(&0) || !size.is_empty() && !factors.is_empty() {
        return Err(format!(
            "expected a size of at least 1 per axis, or factors, but not both, \
             got size {size:?} and factors {factors:?}"
        ));
    }
    if !factors.iter().all(|factor| *factor > 0.0 && *factor < 1e9) {
        return Err(format!("factors must be positive, got {factors:?}"));
    }
    let channels_last = match attrs.has("layout") {
        // The format of the first value; a second one only gives sizes.
        true => Some(attrs.text("layout")?.split('|').next() == Some("channels_last")),
        false => None,
    };
    Ok(Interpolate { sampling, size, factors, recompute, channels_last })
}

fn depth_to_space(attrs: &Attrs<'_>) -> Result<DepthToSpace, String> {
    let crop = match attrs.integers("crop")?.as_slice() {
        &[top, bottom, left, right] => [[top, bottom], [left, right]],
        other => return Err(format!("crop must have four numbers, got {other:?}")),
    };
    let blocks_first = match attrs.text("mode")?.as_str() {
        "DCR" => true,
        "CRD" => false,
        other => return Err(format!("mode must be DCR or CRD, got {other:?}")),
    };
    let (block, groups) = (attrs.positive_pair("block", 2)?, attrs.number("groups")?);
    if groups == 0 || block[0].saturating_mul(block[1]).saturating_mul(groups) >= 1 << 31 {
        return Err(format!(
            "block and groups must be at least 1, with a product below 2^31, \
             got {block:?} and {groups}"
        ));
    }
    Ok(DepthToSpace { block, crop, groups, blocks_first })
}

fn conv_transpose(attrs: &Attrs<'_>, axes: usize) -> Result<Op, BuildError> {
    let groups = attrs.number("groups")?;
    if groups == 0 {
        return Err("groups must be at least 1".into());
    }
    Ok(Op::ConvTranspose(ConvTranspose {
        axes,
        params: attrs.conv_without_kernel(axes)?,
        output_padding: attrs.pair("output_padding", axes, 0)?,
        groups,
    }))
}
