//! Constants of an int8 layer, before and after its products.

use crate::error::{Result, bad_value, check_len};
use crate::memory;
use crate::pack::{PackedWeights, Panel};

/// Quantizes the inputs, and scales the sums to outputs.
#[derive(Clone, Copy, Debug)]
pub struct Int8Epilogue<'a> {
    /// The reciprocal of the activations' quantization step.
    pub inv_step: f32,
    /// One per output channel.
    pub scale: &'a [f32],
    /// One per output channel.
    pub bias: Option<&'a [f32]>,
}

/// One value per output channel, padded as the kernel's panels are.
#[derive(Clone, Debug)]
pub(crate) struct Padded<T = f32>(Vec<T>);

impl Padded {
    pub fn new(weights: &PackedWeights<'_>, values: &[f32]) -> Result<Self> {
        let mut padded = Self::filled(weights, 0.0)?;
        for panel in weights.all_panels() {
            padded.of_mut(&panel)[..panel.channels]
                .copy_from_slice(&values[panel.first..][..panel.channels]);
        }
        Ok(padded)
    }
}

impl<T: Copy> Padded<T> {
    /// The same value for all channels and the padding.
    pub fn filled(weights: &PackedWeights<'_>, value: T) -> Result<Self> {
        memory::filled("constants of an int8 layer", weights.padded_channels(), value).map(Padded)
    }

    pub fn of(&self, panel: &Panel) -> &[T] {
        &self.0[panel.padded..][..panel.width]
    }

    pub fn of_mut(&mut self, panel: &Panel) -> &mut [T] {
        &mut self.0[panel.padded..][..panel.width]
    }
}

/// A layer's constants, checked and padded.
#[derive(Clone, Debug)]
pub(crate) struct Constants {
    pub inv_step: f32,
    pub scale: Padded,
    pub bias: Padded,
    /// BatchNorm after the products. Only networks fuse it.
    pub affine: Option<(Padded, Padded)>,
    pub relu: bool,
}

impl Constants {
    pub fn new(weights: &PackedWeights<'_>, epilogue: &Int8Epilogue<'_>) -> Result<Self> {
        let &Int8Epilogue { inv_step, scale, bias } = epilogue;
        if !(inv_step.is_finite() && inv_step > 0.0) {
            return bad_value("inv_step", "a positive, finite number", inv_step);
        }
        let n = weights.shape().out_channels;
        check_len("scale", n, scale.len())?;
        check_len("bias", n, bias.map_or(n, <[f32]>::len))?;
        let bias = match bias {
            Some(bias) => Padded::new(weights, bias)?,
            None => Padded::filled(weights, -0.0)?,
        };
        Ok(Constants {
            inv_step,
            scale: Padded::new(weights, scale)?,
            bias,
            affine: None,
            relu: false,
        })
    }
}
