//! Transcendental functions in plain Rust, with the same bits on every CPU.
//!
//! They use only additions, multiplications and divisions, which every instruction set rounds in
//! the same way. Most compute in float64 and round to float32 once: results are within 0.51 units
//! in the last place of the exact ones. `narrow.rs` has those that compute in float32. The compiler
//! vectorizes loops over these functions.

use super::Parity;

/// A polynomial by Horner's rule, highest power first. A macro, because a loop over coefficients
/// would have to be unrolled before the loop over elements could be vectorized.
macro_rules! polynomial {
    ($x:expr; $first:expr, $($factor:expr),+ $(,)?) => {{
        let sum = $first;
        $(let sum = sum * $x + $factor;)+
        sum
    }};
}

mod narrow;

pub(super) use narrow::{sigmoid, silu};

/// Adding this number rounds to an integer and leaves that integer in the low bits.
pub(super) const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52

/// `e^x`, with a relative error of about 1e-11.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    // Outside this range the result is 0 or infinity in float32.
    let inside = if x < -700.0 { -700.0 } else { x };
    let inside = if inside > 700.0 { 700.0 } else { inside };
    let shifted = inside * std::f64::consts::LOG2_E + ROUND;
    let rest = inside - (shifted - ROUND) * std::f64::consts::LN_2;
    // 1 / k! from k = 9 down to 0.
    let sum = polynomial!(rest;
        1.0 / 362_880.0, 1.0 / 40_320.0, 1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0,
        1.0 / 6.0, 0.5, 1.0, 1.0,
    );
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    let result = if x < -700.0 { 0.0 } else { sum * power };
    if x > 700.0 { f64::INFINITY } else { result }
}

/// `e^x - 1`.
#[inline(always)]
pub(super) fn exp_m1(x: f64) -> f64 {
    let small = x + x * x * 0.5;
    if x.abs() < 1e-5 { small } else { exp(x) - 1.0 }
}

/// The natural logarithm of a float32.
#[inline(always)]
pub(super) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    // Splits x into 2^k times a mantissa from √½ to √2.
    const SHIFT: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits().wrapping_sub(SHIFT);
    // The exponent plus 1023, converted to float by writing it into the mantissa of 2^52.
    let exponent = f64::from_bits(
        (bits.wrapping_add(1023 << 52) >> 52) | 4_503_599_627_370_496.0f64.to_bits(),
    );
    let power = exponent - (4_503_599_627_370_496.0 + 1023.0);
    let m = f64::from_bits((bits & MANTISSA).wrapping_add(SHIFT));
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let sum = polynomial!(square;
        1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0,
        1.0 / 3.0, 1.0,
    );
    let result = power * std::f64::consts::LN_2 + 2.0 * s * sum;
    let result = if x == f64::INFINITY { x } else { result };
    let result = if x == 0.0 { f64::NEG_INFINITY } else { result };
    // `x >= 0` is false for NaN, so NaN gives NaN.
    if x >= 0.0 { result } else { f64::NAN }
}

/// `ln(1 + x)` for `x >= 0`.
#[inline(always)]
fn ln_1p(x: f64) -> f64 {
    let small = x - x * x * 0.5;
    if x < 1e-5 { small } else { ln(1.0 + x) }
}

/// `ln(1 + x)`.
#[inline(always)]
pub(super) fn log1p(x: f64) -> f64 {
    let small = x - x * x * 0.5;
    let large = ln(1.0 + x);
    if x.abs() < 1e-5 { small } else { large }
}

/// The error function.
#[inline(always)]
pub(super) fn erf(x: f64) -> f64 {
    let square = x * x;
    // (-1)^k / (k! (2k + 1)) from k = 10 down to 0.
    let sum = polynomial!(square;
        1.0 / 76_204_800.0, -1.0 / 6_894_720.0, 1.0 / 685_440.0, -1.0 / 75_600.0, 1.0 / 9_360.0,
        -1.0 / 1_320.0, 1.0 / 216.0, -1.0 / 42.0, 0.1, -1.0 / 3.0, 1.0,
    );
    let small = std::f64::consts::FRAC_2_SQRT_PI * x * sum;
    let large = (1.0 - scaled_erfc(x.abs()) * exp(-square)).copysign(x);
    if x.abs() < 0.7 { small } else { large }
}

/// ELU with PyTorch's fixed limit and factor.
#[inline(always)]
pub(super) fn selu(x: f64) -> f64 {
    const LIMIT: f64 = 1.673_263_242_354_377_2;
    const FACTOR: f64 = 1.050_700_987_355_480_5;
    FACTOR * if x > 0.0 { x } else { LIMIT * exp_m1(x) }
}

/// `x^power`.
#[inline(always)]
pub(super) fn pow(x: f64, power: f64, parity: Parity) -> f64 {
    let magnitude = exp(power * ln(x.abs()));
    let negative = match parity {
        Parity::Even => magnitude,
        Parity::Odd => -magnitude,
        Parity::Fraction => f64::NAN,
    };
    // For +x, ±0 and -infinity. Only odd powers keep the sign of x.
    let signed = if parity == Parity::Odd { magnitude.copysign(x) } else { magnitude };
    if x < 0.0 && x > f64::NEG_INFINITY { negative } else { signed }
}

#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    let square = x * x;
    let small = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)));
    let e = exp(-2.0 * x.abs());
    let large = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.01 { small } else { large }
}

/// `(1 - erf(z)) · e^(z²)` for `z >= 0`, with an error of about 1e-11.
#[inline(always)]
fn scaled_erfc(z: f64) -> f64 {
    let t = 3.0 / (3.0 + z);
    let sum = polynomial!(t;
        0.007292327920940543, -0.04376733731859138, 0.09783541141364975, -0.08456020483889361,
        -0.004668264236222568, 0.0422004601259685, -0.048733808989252544, 0.056335556219305805,
        0.04581201436309126, 0.09511086351115779, 0.1266297854281785, 0.1567755055409447,
        0.17761113460182518, 0.18806336478204838, 0.18806319148669717,
    );
    t * sum
}

/// `x · (1 + erf(x / √2)) / 2`, without cancellation for negative `x`.
#[inline(always)]
pub(super) fn gelu(x: f64) -> f64 {
    let z = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let tail = 0.5 * scaled_erfc(z) * exp(-0.5 * x * x);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f64) -> f64 {
    let inner = std::f64::consts::FRAC_2_SQRT_PI
        * std::f64::consts::FRAC_1_SQRT_2
        * x
        * (1.0 + 0.044715 * x * x);
    x / (1.0 + exp(-2.0 * inner))
}

/// `ln(1 + e^(beta·x)) / beta`, or `x` if `beta·x` is above the threshold.
#[inline(always)]
pub(super) fn softplus(x: f64, beta: f64, threshold: f64) -> f64 {
    let scaled = x * beta;
    let result = ln_1p(exp(scaled)) / beta;
    if scaled > threshold { x } else { result }
}

/// `-ln(1 + e^-x)`, computed without overflow.
#[inline(always)]
pub(super) fn log_sigmoid(x: f64) -> f64 {
    let negative = if x < 0.0 { x } else { 0.0 };
    let y = negative - ln_1p(exp(-x.abs()));
    if x.is_nan() { x } else { y }
}

/// `x · tanh(ln(1 + e^x))`.
#[inline(always)]
pub(super) fn mish(x: f64) -> f64 {
    let w = exp(if x > 40.0 { 40.0 } else { x });
    let product = w * (w + 2.0);
    x * (product / (product + 2.0))
}
