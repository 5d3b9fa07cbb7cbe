//! The driver over frames: for kernels that read activations in a layout of their own
//! ([`crate::kernels::PackedInputKernel`]).
//!
//! Output pixels are split among threads; each thread cuts its own into rectangles whose frames fit
//! the second-level cache, writes the frame of one, and runs all panels of weights over it. A frame
//! is written once and read for every tap and every panel; neighbouring rectangles write their
//! common rows twice, a few percent.
//!
//! Several products whose results belong in the same place, one added to the other, run rectangle
//! by rectangle: the second finds the first's results where it has just left them, and only the sum
//! goes out to memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::codec::{Act, CodesLayout};
use crate::conv::ConvShape;
use crate::conv::tiled::{OutputChunk, Sink, for_each_piece};
use crate::error::Result;
use crate::kernels::{AccBlock, CacheLine, PackedInput, PackedInputKernel, Panel, Pixels, TileAcc};
use crate::memory;
use crate::pack::PackedWeights;
use crate::parallel;

/// Bytes of a frame that may stay in the second-level cache beside weights and results.
const FRAME_BYTES: usize = 512 << 10;
/// Bytes of results that may stay there until the last panel has passed: else every panel fetches
/// its part of every row anew.
const OUTPUT_BYTES: usize = 384 << 10;
/// Positions that a thread should have at least: below, weights are expanded for too little.
const MIN_PARALLEL_POSITIONS: usize = 128;
/// No frame is larger: the window of a convolution that would need one spans more of the input than
/// is sensible.
const MAX_BYTES: usize = 1 << 30;
/// Columns of a rectangle, where there are as many.
const NARROWEST: usize = 64;
/// Channels of a unit.
const CHANNELS: usize = 64;
/// Bytes of a unit of planes.
const PLANES: usize = 16;

/// A thread's working memory, kept from call to call.
struct Scratch {
    frame: Vec<CacheLine>,
    kernel: Vec<CacheLine>,
    offsets: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { frame: Vec::new(), kernel: Vec::new(), offsets: Vec::new() })
    };
}

/// A tap of the window: its phase, and how many rows and columns of the phase it is away.
#[derive(Clone, Copy, Debug)]
struct Tap {
    phase: usize,
    shift: [usize; 2],
}

/// What of a convolution's geometry does not depend on where in the output one is.
#[derive(Debug)]
pub(crate) struct FramePlan {
    taps: Vec<Tap>,
    /// Offsets within the stride that some tap has.
    phases: Vec<[usize; 2]>,
    /// Largest shift of any tap.
    reach: [usize; 2],
}

impl FramePlan {
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
        Ok(FramePlan { taps, phases, reach })
    }

    /// Bytes that a frame for an output so wide has at most, with a margin for rectangles of more
    /// than one row; a position takes `unit_bytes` in every phase. `None` above [`MAX_BYTES`].
    /// Counts what [`FramePlan::new`] would make.
    pub fn frame_bytes(shape: &ConvShape, width: usize, unit_bytes: usize) -> Option<usize> {
        let reach = [0, 1].map(|axis| {
            (shape.kernel[axis] - 1).saturating_mul(shape.dilation[axis]) / shape.stride[axis]
        });
        let double = reach.map(|reach| reach.saturating_mul(2));
        let sides = [double[0].saturating_add(NARROWEST), double[1].saturating_add(width)];
        memory::product([sides[0], sides[1], Self::phases(shape), unit_bytes])
            .filter(|bytes| *bytes <= MAX_BYTES)
    }

    /// Bytes of the plan itself, while it is made.
    pub fn bytes(shape: &ConvShape) -> u128 {
        let taps = shape.kernel[0].saturating_mul(shape.kernel[1]);
        taps as u128 * size_of::<Tap>() as u128 + Self::phases(shape) as u128 * 64
    }

    /// How many offsets within the stride taps have.
    fn phases(shape: &ConvShape) -> usize {
        // The multiples of the dilation take `stride / gcd` values, of which a kernel meets as many
        // as it has taps.
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

/// A convolution's input and everything that says where in it a frame lies.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub codes: &'a [u8],
    pub layout: CodesLayout,
    pub shape: ConvShape,
    pub plan: &'a FramePlan,
    /// Output height and width.
    pub output: [usize; 2],
}

/// A convolution and where its results go.
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
    /// The next piece of the pixels `first..end` (counted through all images): whole rows where
    /// possible, and no larger than `limit` positions with their frames' reach, nor than `most`
    /// pixels; but not so small that most of the work would be its frame's.
    fn next(
        [height, width]: [usize; 2],
        [reach_y, reach_x]: [usize; 2],
        [first, end]: [usize; 2],
        limit: usize,
        most: usize,
    ) -> Self {
        let (image, at) = (first / (height * width), first % (height * width));
        let (y, x) = (at / width, at % width);
        let widest =
            (limit / (1 + reach_y)).saturating_sub(reach_x).min(most).max(reach_x).max(NARROWEST);
        let columns = (width - x).min(end - first).min(widest);
        let rows = if columns < width {
            1
        } else {
            let highest = (limit / (width + reach_x)).saturating_sub(reach_y).min(most / width);
            let highest = highest.max(reach_y).max(NARROWEST.div_ceil(width));
            ((end - first) / width).min(height - y).min(highest)
        };
        Rectangle { image, corner: [y, x], size: [rows, columns] }
    }
}

impl Input<'_> {
    /// Whether its window is a pixel, so that it does not matter which image a pixel is in.
    fn pixelwise(&self) -> bool {
        self.shape.kernel == [1, 1] && self.shape.stride == [1, 1] && self.shape.padding == [0, 0]
    }

    /// The same over one image: a linear layer's pairs and vectors of positions would else be one
    /// position each.
    fn joined(self) -> Self {
        // `Geometry::run` found that so many pixels can be counted.
        let ([height, width], batch) = (self.output, self.shape.batch);
        let output = if width == 1 { [1, batch * height] } else { [batch * height, width] };
        Input { shape: ConvShape { batch: 1, input: output, ..self.shape }, output, ..self }
    }
}

/// Computes the whole output: of one product, or of several on the same kernel, one after the other
/// for every part of it. The last one's sink says what a row is.
pub(crate) fn run<S: Sink, const N: usize>(
    jobs: [Job<'_, S>; N],
    piece: OutputChunk<'_, S::Elem>,
) -> Result<()> {
    const { assert!(N > 0) };
    let pixelwise = jobs.iter().all(|job| job.input.pixelwise() && job.input.shape.batch > 1);
    let jobs =
        jobs.map(|job| if pixelwise { Job { input: job.input.joined(), ..job } } else { job });
    let Input { shape: ConvShape { batch, .. }, output: output @ [height, width], .. } =
        jobs[N - 1].input;
    let position_bytes = |job: &Job<'_, S>| {
        job.input.plan.phases.len() * job.input.layout.group_units() * job.kernel.unit_bytes()
    };
    let limit = FRAME_BYTES / jobs.iter().map(position_bytes).max().unwrap_or(1);
    let reach =
        [0, 1].map(|axis| jobs.iter().map(|job| job.input.plan.reach[axis]).max().unwrap_or(0));
    let sinks = jobs.each_ref().map(|job| job.sink);
    let row_bytes = sinks[N - 1].row_len() * size_of::<S::Elem>() + sinks[N - 1].codes_len();
    let panels: usize =
        jobs.iter().map(|job| job.weights.groups() * job.weights.panels_per_group()).sum();
    let most = if panels > 1 { OUTPUT_BYTES / row_bytes } else { usize::MAX };
    let pixels = batch * height * width;
    // Whole rows, and for each thread enough of them.
    let rows = MIN_PARALLEL_POSITIONS
        .div_ceil(width)
        .min((batch * height).div_ceil(parallel::num_threads()?));
    let granularity = if height > 1 { rows * width } else { MIN_PARALLEL_POSITIONS };
    let macs: usize = jobs.iter().map(|job| job.weights.macs_per_row()).sum();
    for_each_piece(
        jobs[N - 1].kernel.epilogue(),
        &sinks,
        piece,
        granularity,
        pixels.saturating_mul(macs),
        |first, count, write| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut done = 0;
                while done < count {
                    let rectangle =
                        Rectangle::next(output, reach, [first + done, first + count], limit, most);
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
    /// Runs one group over the rectangle; `write` gets every run of neighbouring pixels, counted
    /// from the rectangle's first.
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
        let plane = height * width * kernel.unit_bytes();
        let bytes = plan.phases.len() * units * plane + kernel.slack();
        let frame = CacheLine::bytes_mut(CacheLine::grow(&mut scratch.frame, bytes)?);
        self.fill(
            kernel,
            weights.operands().act() != Some(Act::Full),
            input,
            group,
            [height, width],
            frame,
        );
        scratch.offsets.clear();
        memory::reserve(
            "addresses of a frame",
            &mut scratch.offsets,
            units.saturating_mul(plan.taps.len()),
        )?;
        for unit in 0..units {
            for tap in &plan.taps {
                let shift = (tap.shift[0] * width + tap.shift[1]) * kernel.position_bytes();
                scratch.offsets.push((tap.phase * units + unit) * plane + shift);
            }
        }
        // Past a row's last column lie positions that only the frame has.
        let positions = (rows - 1) * width + columns;
        let packed_input = PackedInput::new(
            kernel,
            frame,
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
                        // Where rows have no positions but their own, a block of them is one run.
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

    /// Writes the rectangle's frame: `height × width` positions of every phase and unit.
    fn fill(
        &self,
        kernel: &dyn PackedInputKernel,
        of_levels: bool,
        input: &Input<'_>,
        group: usize,
        [height, width]: [usize; 2],
        frame: &mut [u8],
    ) {
        let (shape, units, pixel) =
            (&input.shape, input.layout.group_units(), input.layout.pixel_bytes());
        let [in_h, in_w] = shape.input;
        let plane_bytes = height * width * kernel.unit_bytes();
        let planes = frame.chunks_exact_mut(plane_bytes).take(input.plan.phases.len() * units);
        for (i, plane) in planes.enumerate() {
            let ([phase_y, phase_x], unit) = (input.plan.phases[i / units], i % units);
            // Column `c` of the frame is column `(x + c) · stride + phase` of the padded input:
            // which ones are real?
            let column = |c: usize| (self.corner[1] + c) * shape.stride[1] + phase_x;
            let [left, right] = [shape.padding[1], shape.padding[1] + in_w]
                .map(|edge| edge.saturating_sub(column(0)).div_ceil(shape.stride[1]).min(width));
            for r in 0..height {
                let row = r * width;
                let y = (self.corner[0] + r) * shape.stride[0] + phase_y;
                let y = y.checked_sub(shape.padding[0]).filter(|&y| y < in_h && left < right);
                let Some(y) = y else {
                    kernel.pack_zeros(of_levels, width, plane, row, height * width);
                    continue;
                };
                let first = (self.image * in_h + y) * in_w + column(left) - shape.padding[1];
                let codes = &input.codes
                    [first * pixel + group * input.layout.group_bytes() + unit * PLANES..];
                kernel.pack_zeros(of_levels, left, plane, row, height * width);
                let channels = input.layout.group_channels() - unit * CHANNELS;
                let step = shape.stride[1] * pixel;
                let pixels = Pixels {
                    planes: codes,
                    pitch: step,
                    count: right - left,
                    channels: channels.min(CHANNELS),
                };
                kernel.pack_input(&pixels, plane, row + left, height * width);
                kernel.pack_zeros(of_levels, width - right, plane, row + right, height * width);
            }
            kernel.finish(plane);
        }
    }
}
