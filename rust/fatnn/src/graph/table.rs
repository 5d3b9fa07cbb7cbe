//! The table of operations: one row each. Checks, shape inference, reports, the engine's choice of
//! nodes and the bindings read it; nothing else lists operations.
//!
//! The rows are grouped by subject into the submodules; this file has what they share, and the rows
//! of inputs, constants and arithmetic.

use super::attrs::AttrType::{self, Int, Ints, Str};
use super::attrs::{Attr, Presence};
use super::op::{Input, Op};
use super::ops::{Exactness, Form, OpInfo, Products, Role};
use super::{BuildError, shapes, support, types};
use crate::dtype::TensorType;
use crate::scalar::Binary;

mod layers;
mod masks;
mod moves;
mod quantized;
mod scalar;
mod spatial;
mod sums;

use layers::LAYERS;
use masks::MASKS;
use moves::MOVES;
use quantized::QUANTIZED;
use scalar::SCALARS;
use spatial::SPATIAL;
use sums::SUMS;

const fn always(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::Always }
}

const fn in_files(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::InFiles }
}

const fn optional(name: &'static str, kind: AttrType) -> Attr {
    Attr { name, kind, presence: Presence::Optional }
}

const fn role(name: &'static str, dtypes: &'static [TensorType], required: bool) -> Role {
    Role { name, dtypes, required }
}

const F32: &[TensorType] = &[TensorType::F32];
const PLAIN: &[TensorType] = &[TensorType::F32, TensorType::I32, TensorType::I64, TensorType::Bool];
const KERNEL: Attr = always("kernel", Ints);
const STRIDE: Attr = always("stride", Ints);
const PADDING: Attr = always("padding", Ints);
const DILATION: Attr = always("dilation", Ints);
const GROUPS: Attr = always("groups", Int);
const LAYOUT: Attr = in_files("layout", Str);
const INPUT_PRODUCTS: Attr = optional("input_products", Int);

/// Defaults for a row: reads one float value, returns floats of the same shape, and the engine can
/// always run it.
const ROW: OpInfo = OpInfo {
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
    shape: shapes::same_as_input,
    support: Some(support::image),
};

const BINARY: OpInfo = OpInfo {
    inputs: (2, Some(2)),
    reads_plain: true,
    types: types::arithmetic,
    shape: shapes::broadcast,
    support: Some(support::any_rank),
    ..ROW
};

/// Defaults for an operation whose float sums depend on the order of additions.
const SUM: OpInfo = OpInfo { exactness: Exactness::SumOrder, ..ROW };

/// Every operation.
pub static OPS: &[OpInfo] = &concat::<
    {
        ROWS.len()
            + LAYERS.len()
            + MOVES.len()
            + QUANTIZED.len()
            + SCALARS.len()
            + SUMS.len()
            + MASKS.len()
            + SPATIAL.len()
    },
>(&[ROWS, LAYERS, MOVES, QUANTIZED, SCALARS, SUMS, MASKS, SPATIAL]);

/// Concatenates the parts of the table.
const fn concat<const N: usize>(parts: &[&[OpInfo]]) -> [OpInfo; N] {
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

/// Inputs, constants and arithmetic.
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
                Some(range) => {
                    Some(Input::batch_range(range).ok_or("its range of batch sizes is invalid")?)
                }
            };
            let channel_dim = a.optional_number("channel_dim")?;
            Ok(Op::Input(Input { fixed, channel_dim, batch }))
        },
        types: types::input,
        shape: shapes::declared,
        ..ROW
    },
    OpInfo { name: "add", build: |_| Ok(Op::Binary(Binary::Add)), ..BINARY },
    OpInfo { name: "sub", build: |_| Ok(Op::Binary(Binary::Sub)), ..BINARY },
    OpInfo { name: "mul", build: |_| Ok(Op::Binary(Binary::Mul)), ..BINARY },
    OpInfo { name: "div", build: |_| Ok(Op::Binary(Binary::Div)), ..BINARY },
    OpInfo {
        name: "constant",
        inputs: (0, Some(0)),
        tensors: &[role("value", PLAIN, true)],
        types: types::constant,
        build: |_| Ok(Op::Constant),
        shape: shapes::constant,
        support: Some(support::any_rank),
        ..ROW
    },
];
