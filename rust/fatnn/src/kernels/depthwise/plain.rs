//! Depthwise convolution as plain loops, for instruction sets that have no kernel of their own.

use super::{DepthwiseKernel, DepthwiseLayout, Product, QuantizeParams, Rows, SumLevels, inner};
use crate::codec::MAX_THRESHOLDS;
use crate::cpu::{Features, Isa};
use crate::kernels::columns::Element;
use crate::kernels::int8::QuantizeInt8;
use crate::kernels::isa::Simd;
use crate::kernels::kernel::{Inner, Kernel, Layout, OperandTypes, UNIT_BYTES, private};
use crate::kernels::vector::VectorLoop;

/// Channels in a block.
const BLOCK: usize = 32;
/// Channels whose sums are in registers at a time.
const LANES: usize = 16;

static LAYOUT: DepthwiseLayout =
    DepthwiseLayout { id: 0x11, rows: 1, block: BLOCK, element: Element::I16 };

#[derive(Debug)]
struct Plain<S> {
    simd: S,
    name: &'static str,
    isa: Isa,
}

/// The kernel in portable Rust.
pub(crate) fn scalar(_: Features) -> Option<&'static dyn Kernel> {
    use crate::kernels::isa::scalar::Scalar;
    static KERNEL: Plain<Scalar> =
        Plain { simd: Scalar, name: "generic-depthwise-scalar", isa: Isa::Scalar };
    Some(&KERNEL)
}

/// The kernel for NEON, if the CPU has it.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) fn neon(features: Features) -> Option<&'static dyn Kernel> {
    use crate::kernels::isa::neon::Neon;
    use std::sync::OnceLock;
    static KERNEL: OnceLock<Plain<Neon>> = OnceLock::new();
    let simd = Neon::new(features)?;
    Some(KERNEL.get_or_init(|| Plain { simd, name: "aarch64-depthwise-neon", isa: Isa::Neon }))
}

impl<S> private::Sealed for Plain<S> {}

impl<S: Simd> Kernel for Plain<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn isa(&self) -> Isa {
        self.isa
    }

    fn layout(&self) -> Layout {
        LAYOUT.common()
    }

    fn layout_id(&self) -> u32 {
        LAYOUT.id
    }

    fn inner(&self, operands: OperandTypes) -> Option<Inner<'_>> {
        inner(operands, self)
    }
}

impl<S: Simd> DepthwiseKernel for Plain<S> {
    fn layout(&self) -> &'static DepthwiseLayout {
        &LAYOUT
    }

    fn quantize(
        &self,
        x: &[f32],
        channels: usize,
        params: &QuantizeParams,
        out: &mut [u8],
    ) -> bool {
        let &QuantizeParams { inv_step, bounds } = params;
        let pitch = LAYOUT.pixel_bytes(channels);
        let mut no_nan = true;
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(pitch)) {
            let (out, padding) = out.split_at_mut(channels * 2);
            no_nan &=
                self.simd.run(QuantizeInt8 { element: Element::I16, x, inv_step, bounds, out });
            padding.fill(0);
        }
        no_nan
    }

    fn interleave(&self, rows: &Rows<'_>, out: &mut [u8]) {
        let steps = rows.check(&LAYOUT, out);
        const BYTES: usize = BLOCK * 2;
        for (x, out) in out.chunks_exact_mut(BYTES * steps).take(rows.count).enumerate() {
            for (out, at) in out.chunks_exact_mut(BYTES).zip(rows.offsets) {
                out.copy_from_slice(&rows.bytes[at + x * rows.pitch..][..BYTES]);
            }
        }
    }

    fn multiply(&self, product: &Product<'_>, out: &mut [f32]) {
        product.check_floats(&LAYOUT, out);
        self.simd.run(Multiply { product, out: To::Floats(out) });
    }

    fn multiply_to_codes(&self, product: &Product<'_>, to: &SumLevels<'_>, out: &mut [u8]) {
        product.check_codes(&LAYOUT, LANES, to, out);
        self.simd.run(Multiply { product, out: To::Codes(out, to) });
    }
}

struct Multiply<'a> {
    product: &'a Product<'a>,
    out: To<'a>,
}

enum To<'a> {
    Floats(&'a mut [f32]),
    Codes(&'a mut [u8], &'a SumLevels<'a>),
}

impl VectorLoop for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Multiply { product, mut out } = self;
        let [height, width] = product.kernel;
        for x in 0..product.width {
            for first in (0..product.finish.channels).step_by(LANES) {
                let mut acc = [0; LANES];
                for kx in 0..width {
                    let column =
                        (x * product.stride + kx * product.dilation) * height * BLOCK + first;
                    for y in 0..height {
                        let values = vector(product.columns, column + y * BLOCK);
                        let weights = vector(product.panel, (kx * height + y) * BLOCK + first);
                        for j in 0..LANES {
                            acc[j] += i32::from(values[j]) * i32::from(weights[j]);
                        }
                    }
                }
                match &mut out {
                    To::Floats(out) => {
                        let pixel = x * product.pixel_pitch / size_of::<f32>();
                        finish(product, &acc, first, &mut out[pixel + first..]);
                    }
                    To::Codes(out, to) => {
                        let out = &mut out[x * product.pixel_pitch + first / 8..];
                        store_codes(simd, to, &acc, first, out);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn vector(bytes: &[u8], at: usize) -> [i16; LANES] {
    let bytes = &bytes.as_chunks::<2>().0[at..at + LANES];
    let mut vector = [0; LANES];
    for j in 0..LANES {
        vector[j] = i16::from_le_bytes(bytes[j]);
    }
    vector
}

#[inline(always)]
fn store_codes<S: Simd>(
    simd: S,
    to: &SumLevels<'_>,
    acc: &[i32; LANES],
    first: usize,
    out: &mut [u8],
) {
    let vector =
        |levels: &[i32]| -> [i32; LANES] { *levels[first..].first_chunk().expect("whole") };
    let (mut sums, flip) = (*acc, vector(to.flip));
    for j in 0..LANES {
        sums[j] ^= flip[j];
    }
    let mut reached = [0; MAX_THRESHOLDS];
    for (reached, levels) in reached.iter_mut().zip(to.levels).take(to.coding.thresholds()) {
        *reached = simd.ge_mask(&sums, &vector(levels));
    }
    let [low, high] = to.coding.planes(reached).map(|bits| (bits as u16).to_le_bytes());
    out[..2].copy_from_slice(&low);
    out[UNIT_BYTES / 2..][..2].copy_from_slice(&high);
}

#[inline(always)]
fn finish(product: &Product<'_>, acc: &[i32; LANES], first: usize, out: &mut [f32]) {
    let finish = &product.finish;
    let channels = LANES.min(finish.channels - first);
    let (scale, bias) = (&finish.scale[first..first + LANES], &finish.bias[first..first + LANES]);
    let [min, max] = finish.clamp;
    let mut y = [0.0; LANES];
    for j in 0..LANES {
        y[j] = acc[j] as f32 * scale[j] + bias[j];
    }
    if let Some((scale, bias)) = finish.affine {
        let (scale, bias) = (&scale[first..first + LANES], &bias[first..first + LANES]);
        for j in 0..LANES {
            y[j] = y[j].mul_add(scale[j], bias[j]);
        }
    }
    for y in &mut y {
        // Not `max` and `min`, because NaN and -0.0 must pass through.
        *y = if *y < min { min } else { *y };
        *y = if *y > max { max } else { *y };
    }
    match channels {
        LANES => out[..LANES].copy_from_slice(&y),
        _ => out[..channels].copy_from_slice(&y[..channels]),
    }
}
