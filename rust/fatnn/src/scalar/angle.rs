//! Sine and cosine, with the same bits on every CPU.
//!
//! The angle becomes a quarter turn and a rest of at most an eighth of a turn, for which a
//! polynomial in float64 gives the result. Results are within 0.51 units in the last place.

use super::math::ROUND;

/// 2/π in binary, after 64 zeros.
const TWO_OVER_PI: [u64; 5] =
    [0, 0xa2f9_836e_4e44_1529, 0xfc27_57d1_f534_ddc0, 0xdb62_9599_3c43_9041, 0xfe51_63ab_debb_c561];

/// Up to here, the number of quarter turns times the first 33 bits of π/2 is exact in float64.
const MAX_SHORT: f64 = 1_048_576.0;

/// The sine and the cosine.
#[inline(always)]
pub(super) fn sin_cos(x: f32) -> [f32; 2] {
    let wide = f64::from(x);
    if !wide.is_finite() {
        return [f32::NAN; 2];
    }
    let (quarter, rest) = if wide.abs() <= MAX_SHORT { reduce_short(wide) } else { reduce_long(x) };
    let square = rest * rest;
    let sin = rest
        * (1.0
            - square / 6.0
                * (1.0
                    - square / 20.0
                        * (1.0
                            - square / 42.0
                                * (1.0
                                    - square / 72.0
                                        * (1.0 - square / 110.0 * (1.0 - square / 156.0))))));
    let cos = 1.0
        - square / 2.0
            * (1.0
                - square / 12.0
                    * (1.0
                        - square / 30.0
                            * (1.0
                                - square / 56.0
                                    * (1.0
                                        - square / 90.0
                                            * (1.0 - square / 132.0 * (1.0 - square / 182.0))))));
    let [sin, cos] = match quarter & 3 {
        0 => [sin, cos],
        1 => [cos, -sin],
        2 => [-sin, -cos],
        _ => [-cos, sin],
    };
    [sin as f32, cos as f32]
}

/// The quarter turns of an angle of at most [`MAX_SHORT`], and the rest.
#[inline(always)]
fn reduce_short(x: f64) -> (i64, f64) {
    const HIGH: f64 = 1.570_796_326_734_125_6; // the first 33 bits of π/2
    const LOW: f64 = 6.077_100_506_506_192e-11;
    let turns = (x * std::f64::consts::FRAC_2_PI + ROUND) - ROUND;
    (turns as i64, x - turns * HIGH - turns * LOW)
}

/// The quarter turns of a larger angle, and the rest, by integer arithmetic on the 104 bits of 2/π
/// that matter for its exponent.
fn reduce_long(x: f32) -> (i64, f64) {
    const FRACTION: u32 = 102;
    let bits = x.to_bits();
    let mantissa = u128::from(bits & 0x7f_ffff | 0x80_0000);
    // x = mantissa · 2^exponent. Bits that stand for multiples of four quarters are left out.
    let exponent = (bits >> 23 & 0xff) as usize + 62 - 150;
    let (word, shift) = (exponent / 64, exponent % 64);
    let pair = u128::from(TWO_OVER_PI[word]) << 64 | u128::from(TWO_OVER_PI[word + 1]);
    let next = if shift == 0 { 0 } else { TWO_OVER_PI[word + 2] >> (64 - shift) };
    let factor = (pair << shift | u128::from(next)) >> 24;
    let turns = (mantissa * factor) & ((1 << (FRACTION + 2)) - 1);
    let quarter = (turns + (1 << (FRACTION - 1))) >> FRACTION;
    let rest = (turns as i128 - ((quarter as i128) << FRACTION)) as f64;
    let rest = rest / (1u128 << FRACTION) as f64 * std::f64::consts::FRAC_PI_2;
    if x < 0.0 { (-(quarter as i64), -rest) } else { (quarter as i64, rest) }
}
