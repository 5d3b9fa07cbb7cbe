//! Training: a quantizer of learned steps, its gradient, and that of a scale, as plain loops.
//! [`crate::steps`] says what they compute.

use super::isa::Simd;
use super::vector::VectorLoop;

/// Elements that are processed together.
const LANES: usize = 16;

/// Codes of floats. A step is the edge below it and its reciprocal.
pub(crate) struct StepCodes<'a, const N: usize> {
    pub x: &'a [f32],
    pub steps: [(f32, f32); N],
    pub codes: &'a mut [f32],
}

impl<const N: usize> VectorLoop for StepCodes<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (&x, code) in self.x.iter().zip(self.codes) {
            let mut sum = 0.0;
            for (edge, alpha) in self.steps {
                let z = (x - edge) * alpha;
                // Of 0 to 1, only values above 0.5 round to 1. NaN stays NaN.
                let above = if z > 0.5 { 1.0 } else { 0.0 };
                sum += if z.is_nan() { z } else { above };
            }
            *code = sum;
        }
    }
}

/// Gradients of floats. Returns two sums per step, over the elements inside the step: of the
/// gradient, and of the gradient times the distance from the edge.
pub(crate) struct StepGradient<'a, const N: usize> {
    pub x: &'a [f32],
    pub gradient: &'a [f32],
    pub steps: [(f32, f32); N],
    pub to_x: &'a mut [f32],
}

impl<const N: usize> VectorLoop for StepGradient<'_, N> {
    type Output = [[f32; 2]; N];

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [[f32; 2]; N] {
        let mut sums = [[[0.0; LANES]; 2]; N];
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (gradient, gradient_rest) = self.gradient.as_chunks::<LANES>();
        let (to_x, to_x_rest) = self.to_x.as_chunks_mut::<LANES>();
        for ((x, gradient), to_x) in x.iter().zip(gradient).zip(to_x) {
            for j in 0..LANES {
                to_x[j] = element(&self.steps, x[j], gradient[j], |i, which, value| {
                    sums[i][which][j] += value;
                });
            }
        }
        for (j, ((&x, &gradient), to_x)) in
            x_rest.iter().zip(gradient_rest).zip(to_x_rest).enumerate()
        {
            *to_x = element(&self.steps, x, gradient, |i, which, value| sums[i][which][j] += value);
        }
        sums.map(|step| step.map(|lanes| lanes.iter().sum()))
    }
}

/// The gradient of one element. Calls `add` with what belongs to the sums of each step.
#[inline(always)]
fn element<const N: usize>(
    steps: &[(f32, f32); N],
    x: f32,
    gradient: f32,
    mut add: impl FnMut(usize, usize, f32),
) -> f32 {
    let mut to_x = 0.0;
    for (i, (edge, alpha)) in steps.iter().enumerate() {
        let distance = x - edge;
        let z = distance * alpha;
        let inside = z > 0.0 && z < 1.0;
        let passed = if inside { gradient } else { 0.0 };
        to_x += passed * alpha;
        add(i, 0, passed);
        add(i, 1, if inside { gradient * distance } else { 0.0 });
    }
    to_x
}

/// Adds `a·b` of every pixel to the sums of its channels, one per element of `sums`.
pub(crate) struct ChannelDots<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub sums: &'a mut [f32],
}

impl VectorLoop for ChannelDots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let channels = self.sums.len();
        for (a, b) in self.a.chunks_exact(channels).zip(self.b.chunks_exact(channels)) {
            for ((sum, &a), &b) in self.sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
    }
}
