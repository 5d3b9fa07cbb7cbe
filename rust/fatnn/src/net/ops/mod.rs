//! The operations a graph may hold: a row each, from a file's node to an [`Operation`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::codec::{Act, CodesLayout, Coding};
use crate::error::{Error, Result, bad_value};
use crate::kernels::{self, Family, Kernel, Operands};
use crate::memory;
use crate::net::file::Tensor;
use crate::net::limits::Budget;
use crate::net::value::Operation;
use crate::weights::{PackedWeights, WeightShape};

pub(super) mod codes;
pub(super) mod elementwise;
mod int8;
pub(super) mod linear;
mod pad;
mod pool;

pub use elementwise::Elementwise;
pub(crate) use elementwise::apply_all;
pub(crate) use linear::transpose;
pub(crate) use pool::{Pool, PoolStep};

use codes::{MaxPoolCodes, Quantize, Tail, TernaryConv, Window};
use elementwise::{Add, Map};
use linear::{Flatten, FloatConv};
use pad::Pad;
use pool::{Reduce, Windows};

/// A node of a file's graph, with access to its attributes and tensors.
pub(crate) struct Node<'a> {
    /// Dimensions of the first value that it reads.
    pub rank: usize,
    pub attrs: &'a serde_json::Map<String, Json>,
    pub tensors: &'a BTreeMap<String, String>,
    pub all: &'a BTreeMap<String, Tensor>,
    /// The family whose kernels products take; what suits the CPU where `None`.
    pub family: Option<Family>,
    /// Counts the memory of weights before it is allocated.
    pub budget: &'a Budget,
}

/// Why a node could not be made into an operation.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It means nothing: the graph is damaged.
    Malformed(String),
    /// It means something that only PyTorch can run.
    Foreign(String),
    /// There is no memory for it, or it may not have so much, or the environment means nothing.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Memory { .. } | Error::Limit { .. } | Error::Environment { .. } => Refusal::Failed(error),
            other => Refusal::Malformed(other.to_string()),
        }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal::Malformed(why)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        Refusal::Malformed(why.into())
    }
}

/// An operation, or why there is none.
type Made = std::result::Result<Box<dyn Operation>, Refusal>;

/// A row: an operation's name and how to make it.
type Row = (&'static str, fn(&Node<'_>) -> Made);

/// Every operation that runs in this crate. What is not here runs in PyTorch or not at all.
pub(crate) const OPERATIONS: &[Row] = &[
    ("conv1d", |node| float_conv(node, 1)),
    ("conv2d", |node| float_conv(node, 2)),
    ("linear", linear),
    ("conv1d_int8", |node| int8::make(node, 1)),
    ("conv2d_int8", |node| int8::make(node, 2)),
    ("linear_int8", |node| int8::make(node, 0)),
    ("batch_norm", |node| {
        let eps = node.float("eps")?;
        if eps < 0.0 {
            return Err(format!("eps must not be negative, got {eps}").into());
        }
        let (mean, var) = (node.floats("mean")?, node.floats("var")?);
        let (weight, bias) = (node.optional("weight")?, node.optional("bias")?);
        if [Some(var), weight, bias].into_iter().flatten().any(|v| v.len() != mean.len()) {
            return Err("its tensors have different sizes".into());
        }
        map(Elementwise::batch_norm(mean, var, weight, bias, eps)?)
    }),
    ("affine", |node| {
        let (scale, bias) = (node.floats("scale")?, node.floats("bias")?);
        match scale.len() == bias.len() {
            true => map(Elementwise::Affine(node.owned("scale")?, node.owned("bias")?)),
            false => Err("scale and bias have different sizes".into()),
        }
    }),
    ("relu", |_| map(Elementwise::Relu)),
    ("hardtanh", |node| map(Elementwise::Clamp(node.float("min_val")?, node.float("max_val")?))),
    ("leaky_relu", |node| map(Elementwise::Leaky(vec![node.float("negative_slope")?]))),
    ("prelu", |node| match node.floats("weight")? {
        [] => Err("a slope per channel, or one, must be there".into()),
        _ => map(Elementwise::Leaky(node.owned("weight")?)),
    }),
    ("channel_scale", |node| map(Elementwise::Scale(node.owned("scale")?))),
    ("channel_bias", |node| map(Elementwise::Bias(node.owned("bias")?))),
    ("add", |_| Ok(Box::new(Add::default()))),
    ("pad", pad),
    ("max_pool1d", |node| pool(node.pool_window(1)?, node.flag("ceil_mode")?, Reduce::Max)),
    ("max_pool2d", |node| pool(node.pool_window(2)?, node.flag("ceil_mode")?, Reduce::Max)),
    ("avg_pool1d", |node| {
        let reduce = Reduce::Mean { count_padding: node.flag("count_include_pad")?, divisor: 0 };
        pool(node.pool_window(1)?, node.flag("ceil_mode")?, reduce)
    }),
    ("avg_pool2d", |node| {
        let divisor = node.number("divisor")?;
        let reduce = Reduce::Mean { count_padding: node.flag("count_include_pad")?, divisor };
        pool(node.pool_window(2)?, node.flag("ceil_mode")?, reduce)
    }),
    ("adaptive_avg_pool1d", |node| adaptive(node, 1)),
    ("adaptive_avg_pool2d", |node| adaptive(node, 2)),
    ("mean", |node| {
        let dims: Vec<i64> = node.integers("dims")?;
        let mut reduced: Vec<i64> = dims.iter().map(|d| if *d < 0 { d + node.rank as i64 } else { *d }).collect();
        reduced.sort_unstable();
        if reduced != (2..node.rank as i64).collect::<Vec<_>>() || reduced.is_empty() {
            return Err(Refusal::Foreign(format!("a mean over the dimensions {dims:?}, which are not all pixels")));
        }
        let axes = if node.flag("keepdim")? { None } else { Some(0) };
        let reduce = Reduce::Mean { count_padding: false, divisor: 0 };
        Ok(Box::new(Pool { windows: Windows::Whole, reduce, axes }))
    }),
    ("flatten", |node| match (node.integer("start")?, node.integer("end")?) {
        (1, end) if end == -1 || end + 1 == node.rank as i64 => Ok(Box::new(Flatten)),
        (start, end) => Err(Refusal::Foreign(format!("flattening the dimensions from {start} to {end}"))),
    }),
    ("quantize", |node| {
        let (steps, coding) = (node.floats("steps")?, node.act()?.coding());
        if steps.len() != coding.thresholds() {
            return Err(format!("steps must be {} numbers, got {}", coding.thresholds(), steps.len()).into());
        }
        let layout = layout(node.number("channels")?, node.number("groups")?)?.with(coding);
        if !steps.windows(2).all(|pair| pair[0] <= pair[1]) {
            return Err(format!("steps must not fall, got {steps:?}").into());
        }
        Ok(Box::new(Quantize { thresholds: node.owned("steps")?, layout }))
    }),
    ("conv_codes", |node| {
        let (shape, thresholds) = node.int32("thresholds")?;
        let coding = match shape {
            [2, _] => Coding::Ternary,
            [3, _] => Coding::Uint2,
            _ => return Err(format!("thresholds must have shape (2 or 3, channels), got {shape:?}").into()),
        };
        let layout = layout(shape[1], node.number("out_groups")?)?.with(coding);
        let thresholds = memory::copied("thresholds", thresholds)?;
        ternary_conv(node, Tail::Codes { thresholds, layout })
    }),
    ("conv_float", |node| {
        let (scale, bias, relu) = (node.owned_optional("scale")?, node.owned_optional("bias")?, node.flag("relu")?);
        if bias.is_some() && scale.is_none() {
            return Err("a bias needs a scale".into());
        }
        ternary_conv(node, Tail::Float { scale, bias, relu, codes: None })
    }),
    ("max_pool_codes", |node| {
        Ok(Box::new(MaxPoolCodes { window: node.window(2)?, ceil_mode: node.flag("ceil_mode")? }))
    }),
];

/// `Ok(None)`, floats, where all of `count` inputs are floats.
fn floats(what: &'static str, inputs: &[Option<CodesLayout>], count: usize) -> Result<Option<CodesLayout>> {
    if inputs.len() == count && inputs.iter().all(Option::is_none) {
        return Ok(None);
    }
    bad_value(what, format!("{count} inputs of floats"), format!("{inputs:?}"))
}

fn layout(channels: usize, groups: usize) -> Result<CodesLayout> {
    CodesLayout::new(channels, groups)
}

fn map(function: Elementwise) -> Made {
    Ok(Box::new(Map(vec![function])))
}

fn pool(window: Window, ceil_mode: bool, reduce: Reduce) -> Made {
    Ok(Box::new(Pool { windows: Windows::Fixed { window, ceil_mode }, reduce, axes: None }))
}

fn adaptive(node: &Node<'_>, axes: usize) -> Made {
    let size = node.pair("size", axes, 1)?;
    let reduce = Reduce::Mean { count_padding: false, divisor: 0 };
    Ok(Box::new(Pool { windows: Windows::Adaptive(size), reduce, axes: None }))
}

fn float_conv(node: &Node<'_>, axes: usize) -> Made {
    let (shape, weight) = node.float_tensor("weight")?;
    let shape = match (axes, shape) {
        (1, &[n, c, w]) => [n, c, 1, w],
        (2, &[n, c, h, w]) => [n, c, h, w],
        (_, other) => return Err(format!("weight has the shape {other:?}").into()),
    };
    let mut window = node.window_without_kernel(axes)?;
    window.kernel = [shape[2], shape[3]];
    node.budget.spend(size_of_val(weight) as u128)?;
    let bias = node.owned_optional("bias")?;
    Ok(Box::new(FloatConv::new(weight, shape, bias, window, node.number("groups")?, axes)?))
}

fn linear(node: &Node<'_>) -> Made {
    let (shape, weight) = node.float_tensor("weight")?;
    let &[n, c] = shape else { return Err(format!("weight has the shape {shape:?}").into()) };
    let one = [1, 1];
    let window = Window { kernel: one, stride: one, padding: [0, 0], dilation: one };
    node.budget.spend(size_of_val(weight) as u128)?;
    let bias = node.owned_optional("bias")?;
    Ok(Box::new(FloatConv::new(weight, [n, c, 1, 1], bias, window, 1, 0)?))
}

fn ternary_conv(node: &Node<'_>, tail: Tail) -> Made {
    let (shape, codes) = node.codes("weight")?;
    let &[out_channels, group_channels, kh, kw] = shape else {
        return Err(format!("weight has the shape {shape:?}").into());
    };
    let groups = node.number("groups")?;
    let channels = group_channels.checked_mul(groups).ok_or("too many groups")?;
    let shape = WeightShape { out_channels, channels, kernel: [kh, kw], groups };
    let axes = node.number("dims")?;
    if axes > 2 {
        return Err(format!("dims must be 0, 1 or 2, got {axes}").into());
    }
    let act = node.act()?;
    let (shape, operands) = (shape.check()?, Operands::of(codes, act)?);
    if node.attrs.get("channels").is_some_and(|given| given.as_u64() != Some(channels as u64)) {
        return Err(format!("channels {} and weight {shape:?} disagree", node.attrs["channels"]).into());
    }
    let group_out_channels = out_channels / groups;
    let kernel: &'static dyn Kernel = match node.family {
        Some(family) => kernels::choose_in(family, axes == 0, group_out_channels, shape.reduction(), operands)
            .map_err(|e| Refusal::Foreign(e.to_string()))?,
        None if axes == 0 => kernels::choose_for_linear(operands)?,
        None => kernels::choose(group_out_channels, shape.reduction(), operands)?,
    };
    node.budget.spend(PackedWeights::packed_bytes(kernel, shape, operands) as u128)?;
    let weights = PackedWeights::for_kernel(kernel, codes, shape, act)?;
    let window = node.window(2)?;
    if window.kernel != [kh, kw] {
        return Err(format!("kernel {:?} and weight {:?} disagree", window.kernel, shape.kernel).into());
    }
    Ok(Box::new(TernaryConv { weights, window, axes, tail, summand: None }.check()?))
}

/// Largest number in a file: windows and sizes stay far from overflow.
pub(super) const LIMIT: u64 = 1 << 31;

impl Node<'_> {
    fn attr(&self, key: &str) -> Result<&Json, String> {
        self.attrs.get(key).ok_or_else(|| format!("attribute {key:?} is missing"))
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        self.attr(key)?.as_bool().ok_or_else(|| format!("attribute {key:?} must be true or false"))
    }

    /// The kind of activations: ternary ones of either range, unless `act` names another.
    fn act(&self) -> Result<Act, Refusal> {
        let half_range = self.flag("half_range")?;
        match self.attrs.get("act").map(Json::as_str) {
            None if half_range => Ok(Act::Half),
            None => Ok(Act::Full),
            Some(Some("uint2")) if half_range => Ok(Act::Uint2),
            Some(Some("binary")) if half_range => Ok(Act::Binary),
            Some(_) => Err(Refusal::Foreign(format!("activations {}", self.attrs["act"]))),
        }
    }

    /// A number that float32 holds.
    fn float(&self, key: &str) -> Result<f32, String> {
        let found = self.attr(key)?.as_f64().map(|value| value as f32).filter(|value| value.is_finite());
        found.ok_or_else(|| format!("attribute {key:?} must be a number that float32 holds"))
    }

    fn integer(&self, key: &str) -> Result<i64, String> {
        let found = self.attr(key)?.as_i64().filter(|n| n.unsigned_abs() < LIMIT);
        found.ok_or_else(|| format!("attribute {key:?} must be an integer"))
    }

    fn number(&self, key: &str) -> Result<usize, String> {
        usize::try_from(self.integer(key)?).map_err(|_| format!("attribute {key:?} must not be negative"))
    }

    fn integers<T: TryFrom<i64>>(&self, key: &str) -> Result<Vec<T>, String> {
        let wrong = || format!("attribute {key:?} must be a list of integers in range");
        let list = self.attr(key)?.as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|v| {
                v.as_i64().filter(|n| n.unsigned_abs() < LIMIT).and_then(|n| T::try_from(n).ok()).ok_or_else(wrong)
            })
            .collect()
    }

    /// Numbers for two axes; one-dimensional ones are the second.
    fn pair(&self, key: &str, axes: usize, other: usize) -> Result<[usize; 2], String> {
        match (axes, self.integers(key)?.as_slice()) {
            (2, &[h, w]) => Ok([h, w]),
            (1, &[w]) => Ok([other, w]),
            (_, list) => Err(format!("attribute {key:?} must have {axes} numbers, got {list:?}")),
        }
    }

    /// As [`Node::pair`], of numbers that are not 0.
    fn steps(&self, key: &str, axes: usize) -> Result<[usize; 2], String> {
        match self.pair(key, axes, 1)? {
            pair if pair.contains(&0) => Err(format!("attribute {key:?} must have numbers of at least 1")),
            pair => Ok(pair),
        }
    }

    fn window_without_kernel(&self, axes: usize) -> Result<Window, String> {
        Ok(Window {
            kernel: [1, 1],
            stride: self.steps("stride", axes)?,
            padding: self.pair("padding", axes, 0)?,
            dilation: self.steps("dilation", axes)?,
        })
    }

    fn window(&self, axes: usize) -> Result<Window, String> {
        Ok(Window { kernel: self.steps("kernel", axes)?, ..self.window_without_kernel(axes)? })
    }

    /// As [`Node::window`]; average pooling has no dilation.
    fn pool_window(&self, axes: usize) -> Result<Window, String> {
        if self.attrs.contains_key("dilation") {
            return self.window(axes);
        }
        Ok(Window {
            kernel: self.steps("kernel", axes)?,
            stride: self.steps("stride", axes)?,
            padding: self.pair("padding", axes, 0)?,
            dilation: [1, 1],
        })
    }

    fn tensor(&self, role: &str) -> Result<Option<&Tensor>, String> {
        let Some(name) = self.tensors.get(role) else { return Ok(None) };
        let tensor = self.all.get(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
        tensor.check().map_err(|e| format!("tensor {name:?}, its {role}: {e}"))?;
        Ok(Some(tensor))
    }

    fn float_tensor(&self, role: &str) -> Result<(&[usize], &[f32]), String> {
        match self.tensor(role)? {
            Some(Tensor::F32(shape, values)) => Ok((shape, values)),
            _ => Err(format!("tensor {role:?} must be there, as float32")),
        }
    }

    fn floats(&self, role: &str) -> Result<&[f32], String> {
        self.float_tensor(role).map(|(_, values)| values)
    }

    fn optional(&self, role: &str) -> Result<Option<&[f32]>, String> {
        self.tensors.contains_key(role).then(|| self.floats(role)).transpose()
    }

    fn owned(&self, role: &str) -> Result<Vec<f32>, Refusal> {
        let values = self.floats(role)?;
        Ok(memory::copied("constants of a layer", values)?)
    }

    fn owned_optional(&self, role: &str) -> Result<Option<Vec<f32>>, Refusal> {
        self.tensors.contains_key(role).then(|| self.owned(role)).transpose()
    }

    fn int32(&self, role: &str) -> Result<(&[usize], &[i32]), String> {
        match self.tensor(role)? {
            Some(Tensor::I32(shape, values)) => Ok((shape, values)),
            _ => Err(format!("tensor {role:?} must be there, as int32")),
        }
    }

    fn codes(&self, role: &str) -> Result<(&[usize], &[i8]), String> {
        match self.tensor(role)? {
            Some(Tensor::Ternary(shape, values) | Tensor::TwoBit(shape, values)) => Ok((shape, values)),
            _ => Err(format!("tensor {role:?} must be there, as ternary codes or weights of two bits")),
        }
    }

    fn int8(&self, role: &str) -> Result<(&[usize], &[i8]), String> {
        match self.tensor(role)? {
            Some(Tensor::I8(shape, values)) => Ok((shape, values)),
            _ => Err(format!("tensor {role:?} must be there, as int8")),
        }
    }

    /// Makes the operation.
    pub fn make(&self, op: &str) -> Made {
        match OPERATIONS.iter().find(|(name, _)| *name == op) {
            Some((_, make)) => make(self),
            None => Err(Refusal::Foreign("not one of this crate's".into())),
        }
    }
}

/// Padding with a constant. The list is PyTorch's: before and behind, from the last dimension on.
fn pad(node: &Node<'_>) -> Made {
    let around: Vec<i64> = node.integers("pad")?;
    let value = node.float("value")?;
    if !around.len().is_multiple_of(2) {
        return Err("pad must have two numbers for every dimension".into());
    }
    if node.attr("mode")? != "constant" || around.iter().any(|n| *n < 0) || around.len() > 2 * (node.rank - 1) {
        return Err(Refusal::Foreign("padding by anything but constants around pixels and channels".into()));
    }
    let mut sides = around.chunks_exact(2).map(|pair| [pair[0] as usize, pair[1] as usize]);
    let mut map = [[0; 2]; 2];
    // The last dimension is the width where there are pixels at all.
    for axis in (4 - node.rank..2).rev() {
        map[axis] = sides.next().unwrap_or_default();
    }
    Ok(Box::new(Pad { channels: sides.next().unwrap_or_default(), map, value }))
}

/// Puts an operation where plans can share it.
pub(crate) fn share(operation: Box<dyn Operation>) -> Arc<dyn Operation> {
    Arc::from(operation)
}
