//! The driver of kernels with an input layout of their own ([`crate::kernels::PackedInputKernel`]).
//!
//! Output pixels are split among threads. Each thread splits its pixels into rectangles. It packs
//! the input of one rectangle, small enough for the second-level cache, and runs all panels of
//! weights over it. So the input is packed once and read for every tap and panel. Adjacent
//! rectangles both pack the rows that they share, a few percent of the work.
//!
//! Several convolutions that add into one output run rectangle by rectangle. The second one then
//! finds the first one's results in cache, and only the sum goes to memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::codec::{Act, CodesLayout};
use crate::conv::ConvShape;
use crate::conv::tiled::{OutputChunk, Sink, for_each_chunk};
use crate::error::Result;
use crate::kernels::{AccBlock, CacheLine, PackedInput, PackedInputKernel, Panel, Pixels, TileAcc};
use crate::memory;
use crate::pack::PackedWeights;
use crate::parallel;

/// Limit for the packed input of a rectangle: it shares the second-level cache with weights and
/// results.
const PACKED_BYTES: usize = 512 << 10;
/// Limit for a rectangle's results. They stay in cache until the last panel, because every panel
/// writes some channels of each row.
const OUTPUT_BYTES: usize = 384 << 10;
/// Minimum number of positions per thread: with fewer, expanding the weights would dominate.
const MIN_PARALLEL_POSITIONS: usize = 128;
/// Limit for any packed input. A convolution that needs more has an unreasonably large window.
const MAX_BYTES: usize = 1 << 30;
/// Minimum number of columns of a rectangle, if the output has as many.
const MIN_COLUMNS: usize = 64;
/// Channels per unit.
const CHANNELS: usize = 64;
/// Bytes of a unit's two bit planes.
const PLANES: usize = 16;

/// A thread's working memory, reused by later calls.
struct Scratch {
    packed: Vec<CacheLine>,
    kernel: Vec<CacheLine>,
    offsets: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { packed: Vec::new(), kernel: Vec::new(), offsets: Vec::new() })
    };
}

/// A tap of the window: its phase, and its shift in rows and columns of that phase.
#[derive(Clone, Copy, Debug)]
struct Tap {
    phase: usize,
    shift: [usize; 2],
}

/// The part of a convolution's geometry that is the same for all rectangles.
#[derive(Debug)]
pub(crate) struct PackedInputPlan {
    taps: Vec<Tap>,
    /// The phases: offsets modulo the stride that some tap has.
    phases: Vec<[usize; 2]>,
    /// Largest shift of any tap.
    reach: [usize; 2],
}

impl PackedInputPlan {
    pub fn new(shape: &ConvShape) -> Result<Self> {
        let mut phases = Vec::new();
        let mut numbers = BTreeMap::new();
        let mut taps = memory::reserved(
            "taps of a convolution",
            shape.kernel[0].saturating_mul(shape.kernel[1]),
        )?;
        for y in 0..shape.kernel[0] {
            for x in 0..shape.kernel[1] {
                let offset = [y * shape.dilation[0], x * shape.dilation[1]];
                let of = [offset[0] % shape.stride[0], offset[1] % shape.stride[1]];
                let phase = *numbers.entry(of).or_insert_with(|| {
                    phases.push(of);
                    phases.len() - 1
                });
                taps.push(Tap {
                    phase,
                    shift: [offset[0] / shape.stride[0], offset[1] / shape.stride[1]],
                });
            }
        }
        let reach = [0, 1].map(|axis| taps.iter().map(|tap| tap.shift[axis]).max().unwrap_or(0));
        Ok(PackedInputPlan { taps, phases, reach })
    }

    /// An upper bound for the bytes of one rectangle's packed input, computed without a plan.
    /// `width` is the output's width; a position takes `unit_bytes` bytes per phase. `None` above
    /// [`MAX_BYTES`].
    pub fn packed_bytes(shape: &ConvShape, width: usize, unit_bytes: usize) -> Option<usize> {
        let reach = [0, 1].map(|axis| {
            (shape.kernel[axis] - 1).saturating_mul(shape.dilation[axis]) / shape.stride[axis]
        });
        let double = reach.map(|reach| reach.saturating_mul(2));
        let sides = [double[0].saturating_add(MIN_COLUMNS), double[1].saturating_add(width)];
        memory::product([sides[0], sides[1], Self::phases(shape), unit_bytes])
            .filter(|bytes| *bytes <= MAX_BYTES)
    }

    /// Bytes that [`PackedInputPlan::new`] needs.
    pub fn bytes(shape: &ConvShape) -> u128 {
        let taps = shape.kernel[0].saturating_mul(shape.kernel[1]);
        taps as u128 * size_of::<Tap>() as u128 + Self::phases(shape) as u128 * 64
    }

    /// The number of phases.
    fn phases(shape: &ConvShape) -> usize {
        // The multiples of the dilation have `stride / gcd` residues; a kernel meets at most one
        // per tap.
        let gcd = |mut a: usize, mut b: usize| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let axis = |axis: usize| {
            let stride = shape.stride[axis];
            shape.kernel[axis].min(stride / gcd(stride, shape.dilation[axis]))
        };
        axis(0).saturating_mul(axis(1))
    }
}

/// A convolution's input, and how it is packed.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub codes: &'a [u8],
    pub layout: CodesLayout,
    pub shape: ConvShape,
    pub plan: &'a PackedInputPlan,
    /// Output height and width.
    pub output: [usize; 2],
}

/// A convolution, and the sink of its results.
pub(crate) struct Job<'a, S> {
    pub kernel: &'a (dyn PackedInputKernel + Sync),
    pub weights: &'a PackedWeights<'a>,
    pub input: Input<'a>,
    pub sink: &'a S,
}

/// A rectangle of output pixels in one image.
#[derive(Clone, Copy)]
struct Rectangle {
    image: usize,
    corner: [usize; 2],
    size: [usize; 2],
}

impl Rectangle {
    /// The next rectangle of the pixels `first..end`, counted over all images: whole rows if
    /// possible. It has at most `max_pixels` pixels and reads at most `limit` input positions. A
    /// minimum size keeps packing cheap compared with the products.
    fn next(
        [height, width]: [usize; 2],
        [reach_y, reach_x]: [usize; 2],
        [first, end]: [usize; 2],
        limit: usize,
        max_pixels: usize,
    ) -> Self {
        let (image, at) = (first / (height * width), first % (height * width));
        let (y, x) = (at / width, at % width);
        let max_columns = (limit / (1 + reach_y))
            .saturating_sub(reach_x)
            .min(max_pixels)
            .max(reach_x)
            .max(MIN_COLUMNS);
        let columns = (width - x).min(end - first).min(max_columns);
        let rows = if columns < width {
            1
        } else {
            let max_rows =
                (limit / (width + reach_x)).saturating_sub(reach_y).min(max_pixels / width);
            let max_rows = max_rows.max(reach_y).max(MIN_COLUMNS.div_ceil(width));
            ((end - first) / width).min(height - y).min(max_rows)
        };
        Rectangle { image, corner: [y, x], size: [rows, columns] }
    }
}

impl Input<'_> {
    /// Whether each window is one pixel. Image borders do not matter then.
    fn is_pixelwise(&self) -> bool {
        self.shape.kernel == [1, 1] && self.shape.stride == [1, 1] && self.shape.padding == [0, 0]
    }

    /// Joins all images into one. Otherwise each image of a linear layer (one pixel, or a short
    /// sequence) would be a rectangle of its own.
    fn as_one_image(self) -> Self {
        // `Geometry::run` checked that this product does not overflow.
        let ([height, width], batch) = (self.output, self.shape.batch);
        let output = if width == 1 { [1, batch * height] } else { [batch * height, width] };
        Input { shape: ConvShape { batch: 1, input: output, ..self.shape }, output, ..self }
    }
}

/// Computes the whole output of one convolution, or of several with the same kernel. Those run one
/// after the other on each rectangle. The last sink defines the rows.
pub(crate) fn run<S: Sink, const N: usize>(
    jobs: [Job<'_, S>; N],
    chunk: OutputChunk<'_, S::Elem>,
) -> Result<()> {
    const { assert!(N > 0) };
    let pixelwise = jobs.iter().all(|job| job.input.is_pixelwise() && job.input.shape.batch > 1);
    let jobs = jobs
        .map(|job| if pixelwise { Job { input: job.input.as_one_image(), ..job } } else { job });
    let Input { shape: ConvShape { batch, .. }, output: output @ [height, width], .. } =
        jobs[N - 1].input;
    let position_bytes = |job: &Job<'_, S>| {
        job.input.plan.phases.len() * job.input.layout.group_units() * job.kernel.unit_bytes()
    };
    let limit = PACKED_BYTES / jobs.iter().map(position_bytes).max().unwrap_or(1);
    let reach =
        [0, 1].map(|axis| jobs.iter().map(|job| job.input.plan.reach[axis]).max().unwrap_or(0));
    let sinks = jobs.each_ref().map(|job| job.sink);
    let kept: usize = sinks.iter().map(|sink| sink.kept_bytes()).sum();
    let row_bytes = sinks[N - 1].row_len() * size_of::<S::Elem>() + sinks[N - 1].codes_len() + kept;
    let panels: usize =
        jobs.iter().map(|job| job.weights.groups() * job.weights.panels_per_group()).sum();
    let max_pixels = if panels > 1 { OUTPUT_BYTES / row_bytes } else { usize::MAX };
    let pixels = batch * height * width;
    // Chunks are whole rows.
    let granularity = if height > 1 {
        let least = MIN_PARALLEL_POSITIONS.div_ceil(width);
        parallel::chunk_of_at_least(least, batch * height)? * width
    } else {
        MIN_PARALLEL_POSITIONS
    };
    let macs: usize = jobs.iter().map(|job| job.weights.macs_per_row()).sum();
    for_each_chunk(
        jobs[N - 1].kernel.epilogue(),
        &sinks,
        chunk,
        granularity,
        pixels.saturating_mul(macs),
        |first, count, write| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut done = 0;
                while done < count {
                    let range = [first + done, first + count];
                    let rectangle = Rectangle::next(output, reach, range, limit, max_pixels);
                    for sink in sinks {
                        sink.begin(first + done, rectangle.size[0] * rectangle.size[1])?;
                    }
                    for (j, job) in jobs.iter().enumerate() {
                        for group in 0..job.weights.groups() {
                            rectangle
                                .run(job, group, scratch, |tile, row| write(j, tile, done + row))?;
                        }
                    }
                    done += rectangle.size[0] * rectangle.size[1];
                }
                Ok(())
            })
        },
    )
}

impl Rectangle {
    /// Runs one group on the rectangle. `write` gets sums of adjacent pixels, and the index of the
    /// first one in the rectangle.
    fn run<S>(
        &self,
        &Job { kernel, weights, ref input, .. }: &Job<'_, S>,
        group: usize,
        scratch: &mut Scratch,
        mut write: impl FnMut(&TileAcc<'_>, usize),
    ) -> Result<()> {
        let layout = kernel.layout();
        let (plan, units) = (input.plan, input.layout.group_units());
        let [rows, columns] = self.size;
        let (height, width) = (rows + plan.reach[0], columns + plan.reach[1]);
        let slab = height * width * kernel.unit_bytes();
        let bytes = plan.phases.len() * units * slab + kernel.slack();
        let packed = CacheLine::bytes_mut(CacheLine::grow(&mut scratch.packed, bytes)?);
        self.pack(
            kernel,
            weights.operands().act() != Some(Act::Full),
            input,
            group,
            [height, width],
            packed,
        );
        scratch.offsets.clear();
        memory::reserve(
            "addresses in a packed input",
            &mut scratch.offsets,
            units.saturating_mul(plan.taps.len()),
        )?;
        for unit in 0..units {
            for tap in &plan.taps {
                let shift = (tap.shift[0] * width + tap.shift[1]) * kernel.position_bytes();
                scratch.offsets.push((tap.phase * units + unit) * slab + shift);
            }
        }
        // The packed rows are longer than the rectangle's; the positions at their end are ignored.
        let positions = (rows - 1) * width + columns;
        let packed_input = PackedInput::new(
            kernel,
            packed,
            &scratch.offsets,
            [positions, height * width],
            [columns, width],
        );
        for panel in 0..weights.panels_per_group() {
            let channels = layout.nr.min(weights.group_out_channels() - panel * layout.nr);
            let first_channel = group * weights.group_out_channels() + panel * layout.nr;
            let panel =
                Panel::new(kernel, scratch.offsets.len(), weights.panel(group, panel), channels);
            kernel.run(
                &packed_input,
                &panel,
                &mut scratch.kernel,
                &mut |AccBlock { first, acc }| {
                    let end = (first + acc.len() / layout.nr).min(positions);
                    let mut at = first;
                    while at < end {
                        let (y, x) = (at / width, at % width);
                        // If all positions of a row count, adjacent rows are written together.
                        let rows = if columns == width {
                            end - at
                        } else {
                            (end - at).min(columns.saturating_sub(x))
                        };
                        if rows > 0 {
                            let acc =
                                &acc[(at - first) * layout.nr..(at - first + rows) * layout.nr];
                            write(&TileAcc { acc, rows, first_channel, channels }, y * columns + x);
                        }
                        at = (at + rows).max((y + 1) * width);
                    }
                },
            );
        }
        Ok(())
    }

    /// Packs the rectangle's input: a slab of `height × width` positions for each phase and unit.
    fn pack(
        &self,
        kernel: &dyn PackedInputKernel,
        zero_is_level: bool,
        input: &Input<'_>,
        group: usize,
        [height, width]: [usize; 2],
        packed: &mut [u8],
    ) {
        let (shape, units, pixel) =
            (&input.shape, input.layout.group_units(), input.layout.pixel_bytes());
        let [in_h, in_w] = shape.input;
        let slab_bytes = height * width * kernel.unit_bytes();
        let slabs = packed.chunks_exact_mut(slab_bytes).take(input.plan.phases.len() * units);
        for (i, slab) in slabs.enumerate() {
            let ([phase_y, phase_x], unit) = (input.plan.phases[i / units], i % units);
            let channels = (input.layout.group_channels() - unit * CHANNELS).min(CHANNELS);
            // Column `c` of the slab is column `(x + c) · stride + phase` of the padded input.
            // Columns `left..right` lie inside the image, the others in the padding.
            let column = |c: usize| (self.corner[1] + c) * shape.stride[1] + phase_x;
            let [left, right] = [shape.padding[1], shape.padding[1] + in_w]
                .map(|edge| edge.saturating_sub(column(0)).div_ceil(shape.stride[1]).min(width));
            for r in 0..height {
                let row = r * width;
                let y = (self.corner[0] + r) * shape.stride[0] + phase_y;
                let y = y.checked_sub(shape.padding[0]).filter(|&y| y < in_h && left < right);
                let Some(y) = y else {
                    kernel.pack_zeros(zero_is_level, width, slab, row, height * width);
                    continue;
                };
                let first = (self.image * in_h + y) * in_w + column(left) - shape.padding[1];
                let codes = &input.codes
                    [first * pixel + group * input.layout.group_bytes() + unit * PLANES..];
                kernel.pack_zeros(zero_is_level, left, slab, row, height * width);
                let pitch = shape.stride[1] * pixel;
                let pixels = Pixels { planes: codes, pitch, count: right - left, channels };
                kernel.pack_input(&pixels, slab, row + left, height * width);
                kernel.pack_zeros(zero_is_level, width - right, slab, row + right, height * width);
            }
            kernel.finish(slab, channels);
        }
    }
}
