//! Table rows of reductions, normalisations, softmax, attention and other products of values.

use super::{F32, LAYOUT, ROW, SUM, always, optional, role};
use crate::graph::attrs::AttrType::{Bool, Float, Int, Ints, Str};
use crate::graph::attrs::{Attr, Attrs};
use crate::graph::op::{AttentionMasks, Norm, NormOver, Op, Reduction};
use crate::graph::ops::{Exactness, OpInfo, Role};
use crate::graph::{BuildError, shapes, support};

const OVER: &[Attr] = &[always("dims", Ints), always("keepdim", Bool)];
const VARIANCE: &[Attr] =
    &[always("dims", Ints), always("keepdim", Bool), always("correction", Int), LAYOUT];
const AFFINE: &[Role] = &[role("weight", F32, false), role("bias", F32, false)];

const REDUCE: OpInfo =
    OpInfo { attrs: OVER, shape: shapes::reduce, support: Some(support::reduce), ..SUM };
const NORM: OpInfo =
    OpInfo { tensors: AFFINE, shape: shapes::norm, support: Some(support::any_rank), ..SUM };
const SOFTMAX: OpInfo = OpInfo {
    attrs: &[always("dim", Int), LAYOUT],
    exactness: Exactness::Transcendental,
    shape: shapes::softmax,
    support: Some(support::any_rank),
    ..ROW
};

pub(super) const SUMS: &[OpInfo] = &[
    OpInfo {
        name: "mean",
        // The engine sums in float64 anyway. With `float64`, PyTorch does so, too.
        attrs: &[always("dims", Ints), always("keepdim", Bool), optional("float64", Bool), LAYOUT],
        build: |a| reduce(a, Reduction::Mean),
        ..REDUCE
    },
    OpInfo {
        name: "sum",
        attrs: &[always("dims", Ints), always("keepdim", Bool), LAYOUT],
        build: |a| reduce(a, Reduction::Sum),
        ..REDUCE
    },
    OpInfo {
        name: "amax",
        build: |a| reduce(a, Reduction::Max),
        exactness: Exactness::Exact,
        ..REDUCE
    },
    OpInfo {
        name: "amin",
        build: |a| reduce(a, Reduction::Min),
        exactness: Exactness::Exact,
        ..REDUCE
    },
    OpInfo {
        name: "norm",
        attrs: &[always("dims", Ints), always("keepdim", Bool), always("p", Int), LAYOUT],
        build: |a| match a.integer("p")? {
            1 => reduce(a, Reduction::Norm1),
            2 => reduce(a, Reduction::Norm2),
            p => Err(format!("attribute \"p\" must be 1 or 2, got {p}").into()),
        },
        ..REDUCE
    },
    OpInfo {
        name: "var",
        attrs: VARIANCE,
        build: |a| {
            let correction = a.integer("correction")?;
            reduce(a, Reduction::Variance { correction, root: false })
        },
        ..REDUCE
    },
    OpInfo {
        name: "std",
        attrs: VARIANCE,
        build: |a| {
            let correction = a.integer("correction")?;
            reduce(a, Reduction::Variance { correction, root: true })
        },
        ..REDUCE
    },
    OpInfo {
        name: "addcmul",
        inputs: (3, Some(3)),
        attrs: &[always("value", Float), LAYOUT],
        build: |a| Ok(Op::Addcmul { value: a.float("value")? }),
        shape: shapes::broadcast_all,
        support: Some(support::any_rank),
        ..SUM
    },
    OpInfo {
        name: "layer_norm",
        attrs: &[always("dims", Int), always("eps", Float), LAYOUT],
        build: |a| norm(a, NormOver::Last(a.number("dims")?), true),
        ..NORM
    },
    OpInfo {
        name: "rms_norm",
        attrs: &[always("dims", Int), always("eps", Float), LAYOUT],
        tensors: &[role("weight", F32, false)],
        build: |a| norm(a, NormOver::Last(a.number("dims")?), false),
        ..NORM
    },
    OpInfo {
        name: "group_norm",
        attrs: &[always("groups", Int), always("eps", Float), LAYOUT],
        build: |a| norm(a, NormOver::Groups(a.number("groups")?), true),
        ..NORM
    },
    OpInfo {
        name: "softmax",
        build: |a| Ok(Op::Softmax { dim: a.integer("dim")?, log: false }),
        ..SOFTMAX
    },
    OpInfo {
        name: "log_softmax",
        build: |a| Ok(Op::Softmax { dim: a.integer("dim")?, log: true }),
        ..SOFTMAX
    },
    OpInfo {
        name: "matmul",
        inputs: (2, Some(2)),
        attrs: &[LAYOUT],
        build: |_| Ok(Op::Matmul),
        shape: shapes::matmul,
        support: Some(support::any_rank),
        ..SUM
    },
    OpInfo {
        name: "attention",
        inputs: (3, Some(4)),
        attrs: &[always("causal", Bool), optional("scale", Float), LAYOUT],
        exactness: Exactness::Transcendental,
        build: |a| {
            let scale = if a.has("scale") { Some(a.float("scale")?) } else { None };
            Ok(Op::Attention { causal: a.flag("causal")?, scale })
        },
        shape: shapes::attention,
        support: Some(support::any_rank),
        ..ROW
    },
    OpInfo {
        name: "multihead_attention",
        inputs: (3, Some(5)),
        attrs: &[
            always("heads", Int),
            always("batch_first", Bool),
            always("need_weights", Bool),
            optional("causal", Bool),
            optional("masks", Str),
            LAYOUT,
        ],
        tensors: &[
            role("in_weight", F32, true),
            role("in_bias", F32, false),
            role("out_weight", F32, true),
            role("out_bias", F32, false),
        ],
        exactness: Exactness::Transcendental,
        build: |a| {
            let name = if a.has("masks") { a.text("masks")? } else { String::new() };
            let masks = AttentionMasks::named(&name).ok_or_else(|| {
                format!("attribute \"masks\" must be scores, keys or scores|keys, got {name:?}")
            })?;
            let (heads, batch_first) = (a.number("heads")?, a.flag("batch_first")?);
            Ok(Op::Multihead { heads, batch_first, masks })
        },
        shape: shapes::multihead,
        support: Some(support::any_rank),
        ..ROW
    },
];

fn reduce(attrs: &Attrs<'_>, kind: Reduction) -> Result<Op, BuildError> {
    Ok(Op::Reduce { kind, dims: attrs.integers("dims")?, keepdim: attrs.flag("keepdim")? })
}

fn norm(attrs: &Attrs<'_>, over: NormOver, centered: bool) -> Result<Op, BuildError> {
    match attrs.float("eps")? {
        eps if eps < 0.0 => Err(format!("eps must not be negative, got {eps}").into()),
        eps => Ok(Op::Norm(Norm { over, centered, eps })),
    }
}
