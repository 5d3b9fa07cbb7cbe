//! Table rows of operations that only move elements.

use super::{ROW, always, optional};
use crate::graph::attrs::AttrType::{Float, Int, Ints, Str};
use crate::graph::op::{Op, Slice};
use crate::graph::ops::{Form, OpInfo};
use crate::graph::{shapes, support, types};

/// Defaults for an operation that moves elements of any type.
const MOVE: OpInfo = OpInfo {
    form: Form::Shape,
    reads_plain: true,
    types: types::same_as_inputs,
    support: Some(support::any_rank),
    ..ROW
};

pub(super) const MOVES: &[OpInfo] = &[
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
        name: "index_select",
        inputs: (2, Some(2)),
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::IndexSelect { dim: a.integer("dim")? }),
        types: types::index_select,
        shape: shapes::index_select,
        form: Form::Other,
        ..MOVE
    },
    OpInfo {
        name: "flip",
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::Flip { dim: a.integer("dim")? }),
        shape: shapes::flip,
        form: Form::Other,
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
];
