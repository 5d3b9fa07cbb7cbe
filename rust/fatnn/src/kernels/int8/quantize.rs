//! From floats to int8 codes: a plain loop.

use crate::kernels::columns::Element;
use crate::kernels::isa::Simd;
use crate::kernels::vector::VectorLoop;

/// Quantizes floats: `round(clamp(x * inv_step, bounds))`, ties to even. Returns whether no value
/// was NaN.
pub(crate) struct QuantizeInt8<'a> {
    /// How `out` stores codes.
    pub element: Element,
    pub x: &'a [f32],
    pub inv_step: f32,
    /// Lower and upper bound, both in -127..=127.
    pub bounds: [f32; 2],
    pub out: &'a mut [u8],
}

impl VectorLoop for QuantizeInt8<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let QuantizeInt8 { element, x, inv_step, bounds, out } = self;
        match element {
            Element::I8 => quantize_as::<I8>(x, inv_step, bounds, out),
            Element::Biased => quantize_as::<BIASED>(x, inv_step, bounds, out),
            Element::I16 => quantize_as::<I16>(x, inv_step, bounds, out),
        }
    }
}

/// [`Element`] as a constant.
const I8: u8 = 0;
const BIASED: u8 = 1;
const I16: u8 = 2;

#[inline(always)]
fn quantize_as<const ELEMENT: u8>(
    x: &[f32],
    inv_step: f32,
    [low, high]: [f32; 2],
    out: &mut [u8],
) -> bool {
    /// Adding 1.5 · 2²³ to a small float puts the nearest integer, ties to even, in its last bits.
    const ROUND: f32 = 12_582_912.0;
    let code = |x: f32| {
        let y = x * inv_step;
        let y = if y > low { y } else { low };
        let y = if y < high { y } else { high };
        (y + ROUND).to_bits()
    };
    let mut nan = 0;
    if ELEMENT == I16 {
        let out = out.as_chunks_mut::<2>().0;
        assert_eq!(x.len(), out.len());
        for (&x, out) in x.iter().zip(out) {
            nan |= u32::from(x.is_nan());
            *out = (code(x) as u16).to_le_bytes();
        }
    } else {
        assert_eq!(x.len(), out.len());
        let flip = if ELEMENT == BIASED { 128 } else { 0 };
        for (&x, out) in x.iter().zip(out) {
            nan |= u32::from(x.is_nan());
            *out = code(x) as u8 ^ flip;
        }
    }
    nan == 0
}
