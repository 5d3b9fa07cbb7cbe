//! The driver of tiled kernels: decides the order of rows and channels, and which thread computes
//! them.
//!
//! A product has `m` rows (output pixels), `n` columns (output channels) and a reduction over units
//! of 64 channels. Rows are split among threads. Within a block of [`BLOCK`] rows, the outer loop
//! runs over panels of weights. A panel then stays in the first-level cache while the block's
//! activations pass by. The epilogue follows each panel directly, or a few panels side by side,
//! while the accumulators are in cache. Two-bit weights have two panels, whose accumulators are
//! added before the epilogue.
//!
//! If one block holds all rows, threads may share the panels instead ([`by_panels`]): every thread
//! would read all weights for a few rows, and a single row would only keep one thread busy.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::epilogue::{Dequantize, Requantize, Residual};
use crate::error::Result;
use crate::kernels::{
    BLOCK, MAX_COLUMNS, MAX_MR, TileAcc, TileEpilogue, TileRows, TiledKernel, Tiles,
};
use crate::pack::PackedWeights;
use crate::{memory, parallel};

/// A thread's working memory, reused by later calls.
struct Scratch {
    bases: [usize; BLOCK + MAX_MR],
    acc: [i32; (BLOCK + MAX_MR) * MAX_COLUMNS],
    /// Accumulators of the low part of two-bit weights.
    low: [i32; (BLOCK + MAX_MR) * MAX_COLUMNS],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            bases: [0; BLOCK + MAX_MR],
            acc: [0; (BLOCK + MAX_MR) * MAX_COLUMNS],
            low: [0; (BLOCK + MAX_MR) * MAX_COLUMNS],
        })
    };

    /// Of [`run_by_panels`].
    static ALL_PANELS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
}

/// Accumulators that a thread keeps from layer to layer: 1 MiB.
const MAX_KEPT_PANELS: usize = 1 << 18;

/// Byte offsets of windows. A row of a product is the window of one output pixel.
pub(crate) struct Windows {
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Bytes from the first window of an image to that of the next one.
    pub image: usize,
    /// Bytes from the first window of a line to that of the next one.
    pub line: usize,
    /// Bytes from one window of a line to the next one.
    pub pixel: usize,
}

impl Windows {
    /// Sets the offsets of windows from number `first` on, counted over all images.
    fn offsets(&self, first: usize, offsets: &mut [usize]) {
        let [height, width] = self.output;
        let (mut image, at) = (first / (height * width), first % (height * width));
        let (mut y, mut x) = (at / width, at % width);
        for offset in offsets {
            *offset = image * self.image + y * self.line + x * self.pixel;
            // Counting: divisions for every window took 2% of the time of MobileNetV2.
            x += 1;
            if x == width {
                (x, y) = (0, y + 1);
                if y == height {
                    (y, image) = (0, image + 1);
                }
            }
        }
    }
}

/// The activations of a product, by the addresses of their rows.
pub(crate) struct Rows<'a> {
    /// The packed codes of all rows.
    pub codes: &'a [u8],
    /// Where the window of each row is in `codes`, for group 0.
    pub windows: Windows,
    /// Byte offset of each (tap, unit) from the start of a window.
    pub offsets: &'a [usize],
    /// Bytes from one group of channels to the next one.
    pub group_bytes: usize,
}

impl Rows<'_> {
    fn max_offset(&self) -> usize {
        self.offsets.iter().copied().max().unwrap_or(0)
    }

    /// Base addresses of `count` rows from row `first` on, for tiles of `mr` rows. The last row is
    /// repeated to fill its tile; results of the repeats are ignored.
    fn bases<'a>(
        &self,
        bases: &'a mut [usize],
        mr: usize,
        [first, count]: [usize; 2],
    ) -> &'a mut [usize] {
        let bases = &mut bases[..count.next_multiple_of(mr)];
        let (found, repeated) = bases.split_at_mut(count);
        self.windows.offsets(first, found);
        repeated.fill(found[count - 1]);
        bases
    }

    /// The tiles of one group. All groups have the same bases.
    fn tiles<'a>(
        &'a self,
        mr: usize,
        bases: &'a [usize],
        max_offset: usize,
        group: usize,
    ) -> TileRows<'a> {
        let codes = &self.codes[group * self.group_bytes..];
        TileRows::new(mr, codes, bases, (self.offsets, max_offset))
    }
}

/// Consecutive output rows. `codes_out` has their codes if the sink writes some, else it is empty.
pub(crate) struct OutputChunk<'a, T> {
    pub out: &'a mut [T],
    pub codes_out: &'a mut [u8],
}

/// Takes finished tiles and writes them to the output in its format.
pub(crate) trait Sink: Sync {
    /// Type of the output's elements.
    type Elem: Send + Copy + Default;
    /// Elements per output row.
    fn row_len(&self) -> usize;
    /// Bytes per row of the codes that it writes as well as its output.
    fn codes_len(&self) -> usize {
        0
    }
    /// Bytes per row that it keeps in memory of its own.
    fn kept_bytes(&self) -> usize {
        0
    }
    /// If several convolutions add to one output, called before any of them computes `rows` rows
    /// from row `first` on.
    fn begin(&self, first: usize, rows: usize) -> Result<()> {
        let _ = (first, rows);
        Ok(())
    }
    /// Whether [`Sink::write`] only sets bits. The output must then be zeroed first.
    const ZEROED: bool = false;
    /// Writes a tile. `chunk` starts at the tile's first row, which is row `row` of the product.
    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        row: usize,
        chunk: OutputChunk<'_, Self::Elem>,
    );
}

/// Writes raw accumulators.
pub(crate) struct AccSink {
    pub channels: usize,
}

impl Sink for AccSink {
    type Elem = i32;

    fn row_len(&self) -> usize {
        self.channels
    }

    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        _: usize,
        chunk: OutputChunk<'_, i32>,
    ) {
        epilogue.to_acc(tile, self.channels, chunk.out);
    }
}

impl Sink for Requantize<'_> {
    type Elem = u8;
    const ZEROED: bool = true;

    fn row_len(&self) -> usize {
        self.layout.pixel_bytes()
    }

    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        _: usize,
        chunk: OutputChunk<'_, u8>,
    ) {
        epilogue.to_codes(tile, self, chunk.out);
    }
}

/// Writes float32 results, with an optional residual of the output's shape.
pub(crate) struct FloatSink<'a> {
    pub to: Dequantize<'a>,
    pub residual: Residual<'a>,
    /// Whether only codes are written.
    pub only_codes: bool,
    /// Set if one of the quantized values may be NaN.
    pub nan: AtomicBool,
}

impl<'a> FloatSink<'a> {
    pub fn new(to: Dequantize<'a>, residual: Residual<'a>) -> Self {
        FloatSink { to, residual, only_codes: false, nan: AtomicBool::new(false) }
    }
}

impl Sink for FloatSink<'_> {
    type Elem = f32;

    fn row_len(&self) -> usize {
        self.to.channels
    }

    fn codes_len(&self) -> usize {
        self.to.codes.map_or(0, |codes| codes.layout.pixel_bytes())
    }

    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        row: usize,
        chunk: OutputChunk<'_, f32>,
    ) {
        let residual = self.residual.from(row * self.to.channels);
        let OutputChunk { out, codes_out } = chunk;
        let (residual, out): (_, &mut [f32]) = match (self.only_codes, residual) {
            (false, _) => (residual, out),
            (true, Residual::InPlace) => (Residual::Of(out), &mut []),
            (true, _) => (residual, &mut []),
        };
        if !epilogue.to_float(tile, &self.to, residual, out, codes_out) {
            self.nan.store(true, Ordering::Relaxed);
        }
    }
}

/// Calls `work(first_row, rows, write)` over disjoint chunks of the output. In it, `write(sink,
/// tile, row)` passes a finished tile to the sink with that index; `row` is the tile's first row in
/// the chunk. The last sink defines the size of a row.
pub(crate) fn for_each_chunk<S: Sink>(
    epilogue: &dyn TileEpilogue,
    sinks: &[&S],
    chunk: OutputChunk<'_, S::Elem>,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, usize, &mut dyn FnMut(usize, &TileAcc<'_>, usize)) -> Result<()> + Sync,
) -> Result<()> {
    let (row_len, codes_len) =
        sinks.last().map_or((0, 0), |sink| (sink.row_len(), sink.codes_len()));
    let OutputChunk { out, codes_out } = chunk;
    parallel::try_for_each_pair(
        out,
        row_len,
        codes_out,
        codes_len,
        granularity,
        cost,
        |first, out, codes_out| {
            if S::ZEROED {
                out.fill(S::Elem::default());
            }
            codes_out.fill(0);
            let rows = out.len() / row_len;
            work(first, rows, &mut |sink, tile, row| {
                let chunk = OutputChunk {
                    out: &mut out[row * row_len..],
                    codes_out: &mut codes_out[row * codes_len..],
                };
                sinks[sink].write(epilogue, tile, first + row, chunk);
            })
        },
    )
}

/// Computes all rows of `chunk`.
pub(crate) fn run<S: Sink>(
    tiled: &(dyn TiledKernel + Sync),
    weights: &PackedWeights<'_>,
    rows: &Rows<'_>,
    sink: &S,
    chunk: OutputChunk<'_, S::Elem>,
) -> Result<()> {
    let (layout, mr, max_offset) = (tiled.layout(), tiled.mr(), rows.max_offset());
    let m = chunk.out.len().checked_div(sink.row_len()).unwrap_or(0);
    let cost = m.saturating_mul(weights.macs_per_row());
    let threads = parallel::threads_for(cost)?;
    if threads > 1 && m <= BLOCK && by_panels(weights, m.div_ceil(mr), m, threads) {
        return run_by_panels(tiled, weights, rows, sink, chunk, threads);
    }
    let (wide, epilogue) = wide_epilogue(tiled, weights);
    let pitch = wide * layout.nr;
    for_each_chunk(epilogue, &[sink], chunk, mr, cost, |first, count, write| {
        SCRATCH.with_borrow_mut(|Scratch { bases, acc, low }| {
            for block in (0..count).step_by(BLOCK) {
                let block_rows = BLOCK.min(count - block);
                let bases = rows.bases(bases, mr, [first + block, block_rows]);
                let acc = &mut acc[..bases.len() * pitch];
                for group in 0..weights.groups() {
                    let tile_rows = rows.tiles(mr, bases, max_offset, group);
                    let panels = weights.panels_per_group();
                    for first in (0..panels).step_by(wide) {
                        for panel in first..panels.min(first + wide) {
                            let acc = &mut acc[(panel - first) * layout.nr..];
                            let rows = match block {
                                0 => tile_rows.prefetching(weights.after_panel(group, panel)),
                                _ => tile_rows,
                            };
                            accumulate(tiled, weights, rows, [group, panel], (acc, pitch), low);
                        }
                        let tile = tile_of(weights, [group, first], (acc, pitch), block_rows);
                        write(0, &tile, block);
                    }
                }
            }
        });
        Ok(())
    })
}

/// Whether threads share the panels of a product with `m` rows in `tiles` tiles, and not its rows.
fn by_panels(weights: &PackedWeights<'_>, tiles: usize, m: usize, threads: usize) -> bool {
    let panels = weights.groups() * weights.panels_per_group();
    if panels.min(threads) != tiles.min(threads) {
        return panels > tiles;
    }
    // By rows, each thread reads all weights. By panels, one thread writes sums that another reads.
    let sums = weights.groups() * weights.group_out_channels() * m;
    panels > 1 && weights.total_bytes() > sums * size_of::<i32>()
}

/// [`run`] for at most one block of rows: threads accumulate different panels, so that each reads
/// its part of the weights, and then finish different rows.
fn run_by_panels<S: Sink>(
    tiled: &(dyn TiledKernel + Sync),
    weights: &PackedWeights<'_>,
    rows: &Rows<'_>,
    sink: &S,
    chunk: OutputChunk<'_, S::Elem>,
    threads: usize,
) -> Result<()> {
    let (mr, max_offset) = (tiled.mr(), rows.max_offset());
    let m = chunk.out.len() / sink.row_len();
    let mut bases = [0; BLOCK + MAX_MR];
    let bases: &[usize] = rows.bases(&mut bases, mr, [0, m]);
    let (panels, nr) = (weights.panels_per_group(), tiled.layout().nr);
    let (wide, epilogue) = match wide_epilogue(tiled, weights) {
        (wide, _) if weights.groups() * panels.div_ceil(wide) < threads => (1, tiled.epilogue()),
        wide => wide,
    };
    let (parts, pitch) = (panels.div_ceil(wide), wide * nr);
    let len = bases.len() * pitch;
    let size = weights.groups() * parts * len;
    let mut kept = ALL_PANELS.take();
    memory::grow("accumulators of a layer with few rows", &mut kept, size, 0)?;
    let all = &mut kept[..size];
    let cost = m.saturating_mul(weights.macs_per_row());
    parallel::try_for_each_rows(all, len, 1, cost, |first, all| {
        SCRATCH.with_borrow_mut(|Scratch { low, .. }| {
            for (i, acc) in all.chunks_exact_mut(len).enumerate() {
                let (group, start) = ((first + i) / parts, (first + i) % parts * wide);
                for panel in start..panels.min(start + wide) {
                    let tile_rows = rows.tiles(mr, bases, max_offset, group);
                    let acc = &mut acc[(panel - start) * nr..];
                    accumulate(tiled, weights, tile_rows, [group, panel], (acc, pitch), low);
                }
            }
        });
        Ok(())
    })?;
    let all = &*all;
    // A value of the epilogue costs about as much as 32 products.
    let cost = all.len().saturating_mul(32);
    for_each_chunk(epilogue, &[sink], chunk, mr, cost, |first, count, write| {
        for (i, acc) in all.chunks_exact(len).enumerate() {
            let acc = (&acc[first * pitch..], pitch);
            write(0, &tile_of(weights, [i / parts, i % parts * wide], acc, count), 0);
        }
        Ok(())
    })?;
    if kept.len() <= MAX_KEPT_PANELS {
        ALL_PANELS.set(kept);
    }
    Ok(())
}

/// The number of panels that one call of the epilogue finishes, and the epilogue.
fn wide_epilogue<'a>(
    tiled: &'a dyn TiledKernel,
    weights: &PackedWeights<'_>,
) -> (usize, &'a dyn TileEpilogue) {
    tiled
        .wide_epilogue()
        .filter(|_| weights.panels_per_group() > 1)
        .unwrap_or((1, tiled.epilogue()))
}

/// Accumulates one panel for some rows, `pitch` elements apart. `low` is working memory for the low
/// part of two-bit weights.
#[inline]
fn accumulate(
    tiled: &dyn TiledKernel,
    weights: &PackedWeights<'_>,
    rows: TileRows<'_>,
    [group, panel]: [usize; 2],
    (acc, pitch): (&mut [i32], usize),
    low: &mut [i32],
) {
    tiled.tiles(&Tiles::new(tiled, rows, weights.panel(group, panel), pitch), acc);
    if let Some(panel) = weights.low_panel(group, panel) {
        let (low, nr) = (&mut low[..acc.len()], tiled.layout().nr);
        tiled.tiles(&Tiles::new(tiled, rows, panel, pitch), low);
        for (acc, low) in acc.chunks_mut(pitch).zip(low.chunks(pitch)) {
            for (acc, low) in acc.iter_mut().zip(low).take(nr) {
                *acc = 2 * *acc + *low;
            }
        }
    }
}

/// The accumulators of `rows` rows, `pitch` elements each, from panel `panel` on, for the epilogue.
fn tile_of<'a>(
    weights: &PackedWeights<'_>,
    [group, panel]: [usize; 2],
    (acc, pitch): (&'a [i32], usize),
    rows: usize,
) -> TileAcc<'a> {
    let (nr, of_group) = (weights.kernel().layout().nr, weights.group_out_channels());
    TileAcc {
        acc,
        rows,
        first_channel: group * of_group + panel * nr,
        channels: pitch.min(of_group - panel * nr),
    }
}
