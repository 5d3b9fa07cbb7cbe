//! Functions of one element: each in PyTorch's order of float operations, so that bits agree.
//!
//! They hold for NaN, infinities and signed zeros as in PyTorch. `apply` is compiled for every instruction
//! set by the loops that call it (`kernels::vector`).

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scalar {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, min), max)`.
    Hardtanh {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// `x > 0 ? x : x * negative_slope`.
    LeakyRelu {
        /// The slope below 0.
        negative_slope: f32,
    },
    /// `x * min(max(x + 3, 0), 6) / 6`.
    Hardswish,
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
}

impl Scalar {
    /// The bounds, where it is nothing but a lower and an upper one, in order.
    pub fn bounds(self) -> Option<[f32; 2]> {
        match self {
            Scalar::Relu => Some([0.0, f32::INFINITY]),
            Scalar::Hardtanh { min, max } if min <= max => Some([min, max]),
            _ => None,
        }
    }

    /// Applies it to every element.
    #[inline(always)]
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Scalar::Relu => each(values, relu),
            Scalar::Hardtanh { min, max } => each(values, |x| clamp(x, min, max)),
            Scalar::LeakyRelu { negative_slope } => each(values, |x| if x > 0.0 { x } else { x * negative_slope }),
            Scalar::Hardswish => each(values, |x| x * clamp(x + 3.0, 0.0, 6.0) / 6.0),
        }
    }
}

#[inline(always)]
fn each(values: &mut [f32], function: impl Fn(f32) -> f32) {
    for x in values {
        *x = function(*x);
    }
}

/// Not `max`: NaN and -0 pass through.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// NaN passes through.
#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}
