//! The epilogue of int8 products: a plain loop, which every kernel compiles with its own CPU
//! features.

/// Turns accumulators into floats: `y = acc * scale + bias`, then, if given, `fma(y, scale, bias)`
/// and ReLU.
///
/// Conversions round to nearest, ties to even. Constants are padded to the width of the panel.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// One scale per channel.
    pub scale: &'a [f32],
    /// One bias per channel; -0.0 if there is none, because adding that changes nothing.
    pub bias: &'a [f32],
    /// A scale and a bias per channel: BatchNorm in evaluation mode.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Whether ReLU follows.
    pub relu: bool,
    /// Channels of the panel without padding.
    pub channels: usize,
    /// Floats from one output pixel to the next.
    pub pitch: usize,
}

/// Values that are converted together.
const LANES: usize = 16;

/// Converts rows of accumulators, each as wide as the panel.
#[inline(always)]
pub(super) fn finish(finish: &Finish<'_>, acc: &[i32], out: &mut [f32]) {
    match (finish.affine, finish.relu) {
        (None, false) => finish_rows::<false, false>(finish, (&[], &[]), acc, out),
        (None, true) => finish_rows::<false, true>(finish, (&[], &[]), acc, out),
        (Some(affine), false) => finish_rows::<true, false>(finish, affine, acc, out),
        (Some(affine), true) => finish_rows::<true, true>(finish, affine, acc, out),
    }
}

#[inline(always)]
fn finish_rows<const AFFINE: bool, const RELU: bool>(
    finish: &Finish<'_>,
    affine: (&[f32], &[f32]),
    acc: &[i32],
    out: &mut [f32],
) {
    let width = finish.scale.len();
    for (acc, out) in acc.chunks_exact(width).zip(out.chunks_mut(finish.pitch)) {
        let out = &mut out[..finish.channels];
        let lanes = acc.as_chunks::<LANES>().0.iter().enumerate();
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        let whole_channels = whole.len() * LANES;
        for ((i, acc), out) in lanes.zip(whole) {
            *out = finish_vector::<AFFINE, RELU>(finish, affine, acc, i * LANES);
        }
        // The last, incomplete vector. A panel may also be narrower than a vector.
        if !rest.is_empty() {
            let mut last = [0; LANES];
            let have = (width - whole_channels).min(LANES);
            last[..have].copy_from_slice(&acc[whole_channels..][..have]);
            if have == LANES {
                rest.copy_from_slice(
                    &finish_vector::<AFFINE, RELU>(finish, affine, &last, whole_channels)
                        [..rest.len()],
                );
            } else {
                for (j, (out, acc)) in rest.iter_mut().zip(last).enumerate() {
                    let c = whole_channels + j;
                    *out =
                        finish_one::<AFFINE, RELU>(acc, finish.scale[c], finish.bias[c], affine, c);
                }
            }
        }
    }
}

#[inline(always)]
fn finish_vector<const AFFINE: bool, const RELU: bool>(
    finish: &Finish<'_>,
    affine: (&[f32], &[f32]),
    acc: &[i32; LANES],
    c: usize,
) -> [f32; LANES] {
    let (scale, bias) = (&finish.scale[c..c + LANES], &finish.bias[c..c + LANES]);
    let affine = if AFFINE {
        (&affine.0[c..c + LANES], &affine.1[c..c + LANES])
    } else {
        (&[][..], &[][..])
    };
    // A plain loop: `from_fn` would be compiled without the kernel's CPU features.
    let mut y = [0.0; LANES];
    for j in 0..LANES {
        y[j] = finish_one::<AFFINE, RELU>(acc[j], scale[j], bias[j], affine, j);
    }
    y
}

#[inline(always)]
fn finish_one<const AFFINE: bool, const RELU: bool>(
    acc: i32,
    scale: f32,
    bias: f32,
    affine: (&[f32], &[f32]),
    c: usize,
) -> f32 {
    let mut y = acc as f32 * scale + bias;
    if AFFINE {
        y = y.mul_add(affine.0[c], affine.1[c]);
    }
    if RELU {
        // Not `max`: NaN and -0.0 must pass through.
        y = if y < 0.0 { 0.0 } else { y };
    }
    y
}
