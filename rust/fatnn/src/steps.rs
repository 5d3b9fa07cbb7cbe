//! Training: FATNN's quantizer of unsigned activations, its gradient, and the gradient of a scale
//! per channel, each in one pass over memory.
//!
//! With step reciprocals `α₁, …, αₙ` and edges `e₀ = 0`, `eᵢ = eᵢ₋₁ + 1/αᵢ`:
//!
//! ```text
//! q(x) = Σ round(clip((x - eᵢ₋₁)·αᵢ, 0, 1))
//! ```
//!
//! in float32, where `round` takes ties to even numbers and has the gradient of the identity, and
//! `clip` passes the gradient strictly inside its range. PyTorch needs eight passes for two steps,
//! and more for the gradient.

use crate::error::{Result, bad_value, check_len};
use crate::kernels::{ChannelDots, Level, StepCodes, StepGradient};
use crate::{memory, parallel};

/// Elements whose sums are added in float32; sums of blocks are added in float64. Blocks do not
/// depend on the number of threads.
const BLOCK: usize = 4096;

/// The work of an element, in multiply-accumulates.
const COST: usize = 64;

/// Steps of a quantizer: the reciprocals, and the edges below them.
fn steps<const N: usize>(alphas: &[f32]) -> [(f32, f32); N] {
    let mut edge = 0.0;
    std::array::from_fn(|i| {
        let step = (edge, alphas[i]);
        edge += 1.0 / alphas[i];
        step
    })
}

/// Writes `q(x)` to `codes`: 0 to `alphas.len()`, or NaN if `x` is NaN.
///
/// # Errors
/// [`crate::Error::Shape`] if lengths differ; [`crate::Error::Value`] if there are not two or three
/// steps; otherwise as [`crate::quantize::quantize`] for threads and variables.
pub fn quantize_steps(x: &[f32], alphas: &[f32], codes: &mut [f32]) -> Result<()> {
    check_len("codes", x.len(), codes.len())?;
    match alphas.len() {
        2 => codes_of::<2>(x, alphas, codes),
        3 => codes_of::<3>(x, alphas, codes),
        count => wrong_steps(count),
    }
}

fn wrong_steps<T>(count: usize) -> Result<T> {
    bad_value("number of steps", "two or three", count)
}

fn codes_of<const N: usize>(x: &[f32], alphas: &[f32], codes: &mut [f32]) -> Result<()> {
    let (level, steps) = (Level::usable()?, steps::<N>(alphas));
    let cost = x.len().saturating_mul(COST);
    parallel::for_each_rows(codes, 1, BLOCK, cost, |first, codes| {
        level.run(StepCodes { x: &x[first..][..codes.len()], steps, codes });
    })
}

/// The gradient of [`quantize_steps`]: writes that of `x` to `to_x`, and returns those of `alphas`.
/// `gradient` is the gradient of the codes.
///
/// # Errors
/// As [`quantize_steps`]; [`crate::Error::Memory`] if there is too little memory.
pub fn quantize_steps_gradient(
    x: &[f32],
    alphas: &[f32],
    gradient: &[f32],
    to_x: &mut [f32],
) -> Result<Vec<f32>> {
    check_len("gradient of the codes", x.len(), gradient.len())?;
    check_len("gradient of the input", x.len(), to_x.len())?;
    match alphas.len() {
        2 => gradient_of::<2>(x, alphas, gradient, to_x),
        3 => gradient_of::<3>(x, alphas, gradient, to_x),
        count => wrong_steps(count),
    }
}

fn gradient_of<const N: usize>(
    x: &[f32],
    alphas: &[f32],
    gradient: &[f32],
    to_x: &mut [f32],
) -> Result<Vec<f32>> {
    let (level, steps) = (Level::usable()?, steps::<N>(alphas));
    let whole = x.len() / BLOCK * BLOCK;
    let mut sums = memory::filled("sums of blocks", x.len() / BLOCK + 1, [[0.0; 2]; N])?;
    let of = |first: usize, to_x: &mut [f32]| {
        let range = first..first + to_x.len();
        let work = StepGradient { x: &x[range.clone()], gradient: &gradient[range], steps, to_x };
        level.run(work)
    };
    let (blocks, rest) = to_x.split_at_mut(whole);
    let (block_sums, last) = sums.split_at_mut(x.len() / BLOCK);
    let cost = x.len().saturating_mul(COST);
    parallel::try_for_each_pair(blocks, BLOCK, block_sums, 1, 1, cost, |first, to_x, sums| {
        for (i, (to_x, sums)) in to_x.chunks_mut(BLOCK).zip(sums).enumerate() {
            *sums = of((first + i) * BLOCK, to_x);
        }
        Ok(())
    })?;
    last[0] = of(whole, rest);
    let total = |i: usize, which: usize| -> f64 {
        sums.iter().map(|block| f64::from(block[i][which])).sum()
    };
    // An edge is the sum of the steps below it, so a later step passes on -α times its gradient,
    // and a step 1/α passes on -1/α².
    let alpha = |i: usize| f64::from(alphas[i]);
    Ok((0..N)
        .map(|i| {
            let later: f64 = (i + 1..N).map(|k| total(k, 0) * alpha(k)).sum();
            (total(i, 1) + later / (alpha(i) * alpha(i))) as f32
        })
        .collect()) // small: two or three
}

/// `Σ a·b` over the pixels, for every channel: the gradient of a scale per channel, if `a` has what
/// it multiplies and `b` the gradient of the product. Both hold pixels of `channels` floats.
///
/// # Errors
/// [`crate::Error::Shape`] if lengths differ or are not whole pixels; otherwise as
/// [`quantize_steps_gradient`].
pub fn channel_dots(a: &[f32], b: &[f32], channels: usize) -> Result<Vec<f32>> {
    check_len("b", a.len(), b.len())?;
    let pixels = a.len().checked_div(channels).unwrap_or(0);
    check_len("a", pixels.saturating_mul(channels), a.len())?;
    let mut total = memory::filled("sums of channels", channels, 0.0f64)?;
    let level = Level::usable()?;
    let block = (BLOCK / channels.max(1)).max(1) * channels;
    let mut sums =
        memory::filled("sums of blocks", a.len().div_ceil(block.max(1)) * channels, 0.0)?;
    let cost = a.len().saturating_mul(COST);
    parallel::for_each_rows(&mut sums, channels, 1, cost, |first, sums| {
        for (i, sums) in sums.chunks_mut(channels).enumerate() {
            let start = (first + i) * block;
            let range = start..(start + block).min(a.len());
            level.run(ChannelDots { a: &a[range.clone()], b: &b[range], sums });
        }
    })?;
    for sums in sums.chunks(channels.max(1)) {
        total.iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
    }
    Ok(total.into_iter().map(|sum| sum as f32).collect()) // small: one per channel
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Features;
    use crate::parallel::{set_num_threads, testing::ThreadCount};

    /// The formula, one step after another.
    fn expected(x: f32, alphas: &[f32], gradient: f32) -> (f32, f32) {
        let (mut edge, mut code, mut to_x) = (0.0, 0.0, 0.0);
        for &alpha in alphas {
            let z = (x - edge) * alpha;
            code += if z.is_nan() { z } else { z.clamp(0.0, 1.0).round_ties_even() };
            to_x += if z > 0.0 && z < 1.0 { gradient * alpha } else { 0.0 };
            edge += 1.0 / alpha;
        }
        (code + 0.0, to_x)
    }

    fn data(count: usize) -> (Vec<f32>, Vec<f32>) {
        let value = |i: usize, scale: f32| ((i * 7919 % 10007) as f32 / 10007.0 - 0.3) * scale;
        let mut x: Vec<f32> = (0..count).map(|i| value(i, 3.0)).collect();
        let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0, 0.25, 0.5, 0.75, 1.0, 1e-40];
        for (i, &value) in special.iter().enumerate().take(count) {
            x[i * (count / special.len()).max(1) % count] = value;
        }
        (x, (0..count).map(|i| value(i + 5, 2.0)).collect())
    }

    #[test]
    fn every_level_and_thread_count_equals_the_formula() {
        let _threads = ThreadCount::lock();
        for alphas in [&[2.0f32, 1.3][..], &[2.0, 4.0, 0.7]] {
            for count in [0, 1, 15, 16, 33, BLOCK - 1, BLOCK, 5 * BLOCK + 7, 40 * BLOCK] {
                let (x, gradient) = data(count);
                let [mut codes, mut to_x] = [vec![9.0; count], vec![9.0; count]];
                let mut first: Option<(Vec<u32>, Vec<u32>, Vec<u32>)> = None;
                for threads in [1, 2, 5] {
                    set_num_threads(threads).unwrap();
                    quantize_steps(&x, alphas, &mut codes).unwrap();
                    let to_alphas =
                        quantize_steps_gradient(&x, alphas, &gradient, &mut to_x).unwrap();
                    for i in 0..count {
                        let (code, to) = expected(x[i], alphas, gradient[i]);
                        assert!(code.to_bits() == codes[i].to_bits() || code.is_nan());
                        assert_eq!(code.is_nan(), codes[i].is_nan(), "{i}");
                        assert_eq!(to, to_x[i], "{i} {}", x[i]);
                    }
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let all = (bits(&codes), bits(&to_x), bits(&to_alphas));
                    assert_eq!(*first.get_or_insert_with(|| all.clone()), all, "{threads}");
                }
            }
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let (x, gradient) = data(BLOCK - 3);
        let steps = steps::<3>(&[2.0, 4.0, 0.7]);
        let run = |level: Level| {
            let [mut codes, mut to_x] = [vec![9.0; x.len()], vec![9.0; x.len()]];
            level.run(StepCodes { x: &x, steps, codes: &mut codes });
            let work = StepGradient { x: &x, gradient: &gradient, steps, to_x: &mut to_x };
            let sums = level.run(work).map(|sums| sums.map(f32::to_bits));
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            (bits(codes), bits(to_x), sums)
        };
        let levels: Vec<_> = Level::all(Features::detected()).collect();
        for level in &levels {
            assert_eq!(run(*level), run(levels[0]), "{level:?}");
        }
    }

    /// Central differences of the quantizer without rounding, whose gradient this is.
    #[test]
    fn gradients_of_steps_are_those_of_the_unrounded_sum() {
        let (x, gradient): (Vec<f32>, Vec<f32>) = {
            let (x, gradient) = data(3 * BLOCK);
            x.into_iter().zip(gradient).filter(|(x, _)| x.is_finite()).unzip()
        };
        let smooth = |alphas: &[f64]| -> f64 {
            let of = |(&x, &g): (&f32, &f32)| {
                let (mut edge, mut sum) = (0.0, 0.0);
                for alpha in alphas {
                    sum += ((f64::from(x) - edge) * alpha).clamp(0.0, 1.0);
                    edge += 1.0 / alpha;
                }
                sum * f64::from(g)
            };
            x.iter().zip(&gradient).map(of).sum()
        };
        for alphas in [&[2.0f32, 1.3][..], &[2.0, 4.0, 0.7]] {
            let mut to_x = vec![0.0; x.len()];
            let got = quantize_steps_gradient(&x, alphas, &gradient, &mut to_x).unwrap();
            for (i, &got) in got.iter().enumerate() {
                let at = |by: f64| {
                    let mut moved: Vec<f64> = alphas.iter().map(|&a| f64::from(a)).collect();
                    moved[i] += by;
                    smooth(&moved)
                };
                let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
                let error = (f64::from(got) - expected).abs();
                assert!(error <= 2e-3 * expected.abs().max(1.0), "{i}: {got} {expected}");
            }
        }
    }

    #[test]
    fn dots_of_channels_equal_a_plain_sum_on_any_number_of_threads() {
        let _threads = ThreadCount::lock();
        for (pixels, channels) in [(0, 3), (1, 1), (5, 7), (700, 64), (3, 5000), (90_000, 3)] {
            let whole = |i: usize| ((i * 7919 % 13) as f32) - 6.0;
            let a: Vec<f32> = (0..pixels * channels).map(whole).collect();
            let b: Vec<f32> = (0..pixels * channels).map(|i| whole(i + 3)).collect();
            let expected: Vec<f32> = (0..channels)
                .map(|c| (0..pixels).map(|p| a[p * channels + c] * b[p * channels + c]).sum())
                .collect();
            for threads in [1, 2, 5] {
                set_num_threads(threads).unwrap();
                assert_eq!(channel_dots(&a, &b, channels).unwrap(), expected);
            }
        }
        assert!(channel_dots(&[], &[], 0).unwrap().is_empty());
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let refused = |error: crate::Error, part: &str| {
            assert!(error.to_string().contains(part), "{error}");
        };
        refused(quantize_steps(&[0.0; 3], &[1.0; 2], &mut [0.0; 2]).unwrap_err(), "codes");
        refused(quantize_steps(&[0.0], &[1.0], &mut [0.0]).unwrap_err(), "two or three");
        let gradient = |gradient: &[f32], alphas: &[f32]| {
            quantize_steps_gradient(&[0.0; 2], alphas, gradient, &mut [0.0; 2]).unwrap_err()
        };
        refused(gradient(&[0.0], &[1.0; 2]), "gradient of the codes");
        refused(gradient(&[0.0; 2], &[1.0; 4]), "got 4");
        refused(channel_dots(&[0.0; 4], &[0.0; 3], 2).unwrap_err(), "b");
        refused(channel_dots(&[0.0; 4], &[0.0; 4], 3).unwrap_err(), "a");
        refused(channel_dots(&[0.0; 4], &[0.0; 4], 0).unwrap_err(), "a");
    }
}
