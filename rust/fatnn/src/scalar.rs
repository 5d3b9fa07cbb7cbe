//! Elementwise functions. Each uses PyTorch's order of float operations, so results have the same
//! bits as PyTorch's.
//!
//! NaN, infinities and signed zeros are handled as in PyTorch. The loops that call `apply`
//! (`kernels::vector`) compile it for every instruction set.

mod angle;
mod int8;
mod lookup;
mod math;

pub(crate) use self::int8::Encoder;
pub use self::int8::Int8Quantizer;
pub use self::lookup::Lookup;

/// Replaces every element by a function of it, computed in float64 and rounded once.
///
/// A macro, because the compiler does not inline long closures: the call compiles for the baseline
/// CPU and prevents vectorization of the loop (GELU took ten times as long).
macro_rules! wide {
    ($values:expr, $x:ident => $result:expr) => {
        for value in $values.iter_mut() {
            let $x = f64::from(*value);
            *value = $result as f32;
        }
    };
}

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
    /// `min(max(x + 3, 0), 6) / 6`.
    Hardsigmoid,
    /// `max(x, min)`.
    ClampMin {
        /// Lower bound.
        min: f32,
    },
    /// `min(x, max)`.
    ClampMax {
        /// Upper bound.
        max: f32,
    },
    /// `|x|`.
    Abs,
    /// `-x`.
    Neg,
    /// `x * x`.
    Square,
    /// `√x`.
    Sqrt,
    /// `1 / √x`.
    Rsqrt,
    /// `1 / x`.
    Reciprocal,
    /// `e^x`.
    Exp,
    /// The natural logarithm.
    Log,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Φ(x)`, with the distribution function Φ of the standard normal distribution.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x > 0 ? x : alpha * (e^x - 1)`.
    Elu {
        /// The function tends to `-alpha` for large negative `x`.
        alpha: f32,
    },
    /// `ln(1 + e^(beta * x)) / beta`.
    Softplus {
        /// Sharpness of the bend at 0.
        beta: f32,
        /// If `beta * x` is above this threshold, the result is `x`.
        threshold: f32,
    },
    /// `x * tanh(ln(1 + e^x))`.
    Mish,
    /// The largest integer that is not larger.
    Floor,
    /// The smallest integer that is not smaller.
    Ceil,
    /// The nearest integer; halves go to the even one.
    Round,
    /// The integer towards 0.
    Trunc,
    /// `x - trunc(x)`.
    Frac,
    /// -1, 0 or 1; 0 of NaN.
    Sign,
    /// `e^x - 1`.
    Expm1,
    /// `2^x`.
    Exp2,
    /// The natural logarithm of `1 + x`.
    Log1p,
    /// The logarithm to base 2.
    Log2,
    /// The logarithm to base 10.
    Log10,
    /// The error function.
    Erf,
    /// The sine.
    Sin,
    /// The cosine.
    Cos,
    /// ELU with fixed limit and factor.
    Selu,
    /// `-ln(1 + e^-x)`.
    LogSigmoid,
    /// `x^exponent`.
    Pow {
        /// The exponent.
        exponent: f32,
    },
    /// Rounds to a multiple of a step that eight bits can count: see [`Int8Quantizer`].
    FakeQuantize(Int8Quantizer),
}

/// How the power of a negative number follows from the power of its magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parity {
    /// They are equal.
    Even,
    /// They differ in sign.
    Odd,
    /// No number.
    Fraction,
}

impl Parity {
    /// The parity of an exponent. Floats from 2^24 on are even integers.
    fn of(exponent: f32) -> Self {
        match exponent.abs() % 2.0 {
            0.0 => Parity::Even,
            1.0 => Parity::Odd,
            _ => Parity::Fraction,
        }
    }
}

/// A comparison of two numbers. With NaN, only [`Comparison::Ne`] is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `a == b`
    Eq,
    /// `a != b`
    Ne,
    /// `a < b`
    Lt,
    /// `a <= b`
    Le,
}

/// A logical operation on two booleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logical {
    /// `a && b`
    And,
    /// `a || b`
    Or,
    /// `a != b`
    Xor,
}

/// An arithmetic operation on two elements.
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
    /// The lower and upper bound, if the function only clamps to a range.
    pub fn bounds(self) -> Option<[f32; 2]> {
        match self {
            Scalar::Relu => Some([0.0, f32::INFINITY]),
            Scalar::Hardtanh { min, max } if min <= max => Some([min, max]),
            _ => None,
        }
    }

    /// Applies the function to every element in place.
    #[inline(always)]
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Scalar::Relu => each(values, relu),
            Scalar::Hardtanh { min, max } => each(values, |x| clamp(x, min, max)),
            Scalar::LeakyRelu { negative_slope } => {
                each(values, |x| if x > 0.0 { x } else { x * negative_slope })
            }
            Scalar::Hardswish => each(values, |x| x * clamp(x + 3.0, 0.0, 6.0) / 6.0),
            Scalar::Hardsigmoid => each(values, |x| clamp(x + 3.0, 0.0, 6.0) / 6.0),
            Scalar::ClampMin { min } => each(values, |x| if x < min { min } else { x }),
            Scalar::ClampMax { max } => each(values, |x| if x > max { max } else { x }),
            Scalar::Abs => each(values, f32::abs),
            Scalar::Neg => each(values, |x| -x),
            Scalar::Square => each(values, |x| x * x),
            Scalar::Sqrt => each(values, f32::sqrt),
            Scalar::Rsqrt => each(values, |x| 1.0 / x.sqrt()),
            Scalar::Reciprocal => each(values, |x| 1.0 / x),
            Scalar::Exp => wide!(values, x => math::exp(x)),
            Scalar::Log => wide!(values, x => math::ln(x)),
            Scalar::Sigmoid => each(values, math::sigmoid),
            Scalar::Tanh => wide!(values, x => math::tanh(x)),
            Scalar::Silu => each(values, math::silu),
            Scalar::Gelu => wide!(values, x => math::gelu(x)),
            Scalar::GeluTanh => wide!(values, x => math::gelu_tanh(x)),
            Scalar::Elu { alpha } => {
                wide!(values, x => if x > 0.0 { x } else { f64::from(alpha) * math::exp_m1(x) });
            }
            Scalar::Softplus { beta, threshold } => {
                let [beta, threshold] = [beta, threshold].map(f64::from);
                wide!(values, x => math::softplus(x, beta, threshold));
            }
            Scalar::Mish => wide!(values, x => math::mish(x)),
            Scalar::Floor => each(values, f32::floor),
            Scalar::Ceil => each(values, f32::ceil),
            Scalar::Round => each(values, f32::round_ties_even),
            Scalar::Trunc => each(values, f32::trunc),
            Scalar::Frac => each(values, |x| x - x.trunc()),
            Scalar::Sign => each(values, |x| f32::from(x > 0.0) - f32::from(x < 0.0)),
            Scalar::Expm1 => wide!(values, x => math::exp_m1(x)),
            Scalar::Exp2 => wide!(values, x => math::exp(x * std::f64::consts::LN_2)),
            Scalar::Log1p => wide!(values, x => math::log1p(x)),
            Scalar::Log2 => wide!(values, x => math::ln(x) * std::f64::consts::LOG2_E),
            Scalar::Log10 => wide!(values, x => math::ln(x) * std::f64::consts::LOG10_E),
            Scalar::Erf => wide!(values, x => math::erf(x)),
            Scalar::Sin => each(values, |x| angle::sin_cos(x)[0]),
            Scalar::Cos => each(values, |x| angle::sin_cos(x)[1]),
            Scalar::Selu => wide!(values, x => math::selu(x)),
            Scalar::LogSigmoid => wide!(values, x => math::log_sigmoid(x)),
            Scalar::Pow { exponent } => {
                let (power, kind) = (f64::from(exponent), Parity::of(exponent));
                wide!(values, x => math::pow(x, power, kind));
            }
            Scalar::FakeQuantize(quantizer) => each(values, |x| quantizer.fake_quantize(x)),
        }
    }
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    math::exp(f64::from(x)) as f32
}

/// The natural logarithm.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    math::ln(x)
}

#[inline(always)]
fn each(values: &mut [f32], function: impl Fn(f32) -> f32) {
    for x in values {
        *x = function(*x);
    }
}

/// Unlike `f32::max`, passes NaN and -0 through.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Clamps to a range; NaN passes through.
#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}
