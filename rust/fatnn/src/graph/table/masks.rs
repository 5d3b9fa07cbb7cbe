//! Table rows of operations on integers and masks.

use super::{F32, ROW, always, role};
use crate::dtype::ValueType;
use crate::graph::attrs::AttrType::{Int, Str};
use crate::graph::op::Op;
use crate::graph::ops::OpInfo;
use crate::graph::{shapes, support, types};
use crate::scalar::{Comparison, Logical};

const PLAIN: OpInfo = OpInfo { reads_plain: true, support: Some(support::any_rank), ..ROW };
const PAIR: OpInfo = OpInfo { inputs: (2, Some(2)), shape: shapes::broadcast, ..PLAIN };
const COMPARE: OpInfo = OpInfo { types: types::compare, ..PAIR };
const LOGICAL: OpInfo = OpInfo { types: types::logical, ..PAIR };

pub(super) const MASKS: &[OpInfo] = &[
    OpInfo {
        name: "embedding",
        tensors: &[role("weight", F32, true)],
        build: |_| Ok(Op::Embedding),
        types: types::embedding,
        shape: shapes::embedding,
        support: Some(support::embedding),
        ..PLAIN
    },
    OpInfo { name: "eq", build: |_| Ok(Op::Compare(Comparison::Eq)), ..COMPARE },
    OpInfo { name: "ne", build: |_| Ok(Op::Compare(Comparison::Ne)), ..COMPARE },
    OpInfo { name: "lt", build: |_| Ok(Op::Compare(Comparison::Lt)), ..COMPARE },
    OpInfo { name: "le", build: |_| Ok(Op::Compare(Comparison::Le)), ..COMPARE },
    OpInfo { name: "logical_and", build: |_| Ok(Op::Logical(Logical::And)), ..LOGICAL },
    OpInfo { name: "logical_or", build: |_| Ok(Op::Logical(Logical::Or)), ..LOGICAL },
    OpInfo { name: "logical_xor", build: |_| Ok(Op::Logical(Logical::Xor)), ..LOGICAL },
    OpInfo { name: "logical_not", build: |_| Ok(Op::LogicalNot), types: types::logical, ..PLAIN },
    OpInfo {
        name: "where",
        inputs: (3, Some(3)),
        build: |_| Ok(Op::Where),
        types: types::select,
        shape: shapes::broadcast_all,
        ..PLAIN
    },
    OpInfo {
        name: "cast",
        attrs: &[always("to", Str)],
        build: |a| {
            let name = a.text("to")?;
            match ValueType::PLAIN.into_iter().find(|to| to.plain_name() == Some(name.as_str())) {
                Some(to) => Ok(Op::Cast { to }),
                None => Err(format!(
                    "attribute \"to\" must be float32, int32, int64 or bool, got {name:?}"
                )
                .into()),
            }
        },
        types: types::cast,
        ..PLAIN
    },
    OpInfo {
        name: "cumsum",
        attrs: &[always("dim", Int)],
        build: |a| Ok(Op::Cumsum { dim: a.integer("dim")? }),
        types: types::numbers,
        shape: shapes::cumsum,
        ..PLAIN
    },
];
