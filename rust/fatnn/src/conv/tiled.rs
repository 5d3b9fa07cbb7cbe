//! The driver over tiles: which rows and channels are computed when and by which thread.
//!
//! A product has `m` rows (output pixels), `n` columns (output channels) and a reduction of so many
//! steps of 64 channels. Rows are split among threads; within a block of rows ([`BLOCK`]), panels
//! of weights are the outer loop, so that a panel stays in the first-level cache while the block's
//! activations pass by. The epilogue runs right behind each panel, on a few kilobytes of
//! accumulators that have not left the cache. Weights of two bits have two panels, whose
//! accumulators are added up before it.
//!
//! Where one block holds all rows, threads share the panels instead: pieces of a few rows would
//! read all the weights each, and a single row would leave all threads but one idle.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::epilogue::{Dequantize, Requantize, Residual};
use crate::error::Result;
use crate::kernels::{BLOCK, MAX_MR, MAX_NR, TileAcc, TileEpilogue, TileRows, TiledKernel, Tiles};
use crate::pack::PackedWeights;
use crate::{memory, parallel};

/// A thread's working memory, kept from call to call.
struct Scratch {
    bases: [usize; BLOCK + MAX_MR],
    acc: [i32; (BLOCK + MAX_MR) * MAX_NR],
    /// Of the low bits, where weights have two.
    low: [i32; (BLOCK + MAX_MR) * MAX_NR],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            bases: [0; BLOCK + MAX_MR],
            acc: [0; (BLOCK + MAX_MR) * MAX_NR],
            low: [0; (BLOCK + MAX_MR) * MAX_NR],
        })
    };
}

/// The activations of a product: where row `m`'s codes are.
pub(crate) struct Rows<'a, F> {
    /// All codes that rows point into.
    pub codes: &'a [u8],
    /// Byte offset of a row's window in `codes`, for group 0 and tap offset 0.
    pub base: F,
    /// Byte offset of every step's unit in the window.
    pub steps: &'a [usize],
    /// Bytes from one group of channels to the next.
    pub group_bytes: usize,
}

impl<F: Fn(usize) -> usize> Rows<'_, F> {
    fn max_step(&self) -> usize {
        self.steps.iter().copied().max().unwrap_or(0)
    }

    /// Bases of `count` rows from `first` on, for tiles of `mr`: rows past the end repeat the last
    /// one, their results are dropped.
    fn bases<'a>(
        &self,
        bases: &'a mut [usize],
        mr: usize,
        [first, count]: [usize; 2],
    ) -> &'a mut [usize] {
        let bases = &mut bases[..count.next_multiple_of(mr)];
        for (r, base) in bases.iter_mut().enumerate() {
            *base = (self.base)(first + r.min(count - 1));
        }
        bases
    }

    /// Tiles of a group, at the same bases for every group.
    fn tiles<'a>(
        &'a self,
        mr: usize,
        bases: &'a [usize],
        max_step: usize,
        group: usize,
    ) -> TileRows<'a> {
        let codes = &self.codes[group * self.group_bytes..];
        TileRows::new(mr, codes, bases, (self.steps, max_step))
    }
}

/// Rows of the output, and of the codes next to it where there are any.
pub(crate) struct OutputChunk<'a, T> {
    pub out: &'a mut [T],
    pub codes_out: &'a mut [u8],
}

/// Where results go: what a finished tile turns into.
pub(crate) trait Sink: Sync {
    /// Element of the output.
    type Elem: Send + Copy + Default;
    /// Elements in an output row.
    fn row_len(&self) -> usize;
    /// Bytes in a row of the codes next to the output.
    fn codes_len(&self) -> usize {
        0
    }
    /// Whether [`Sink::write`] only sets bits, so that the output must be zeroed before.
    const ZEROED: bool = false;
    /// Writes tiles. `piece` starts at their first row, which is row `row` of the whole product.
    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        row: usize,
        piece: OutputChunk<'_, Self::Elem>,
    );
}

/// Raw accumulators.
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
        piece: OutputChunk<'_, i32>,
    ) {
        epilogue.to_acc(tile, self.channels, piece.out);
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
        piece: OutputChunk<'_, u8>,
    ) {
        epilogue.to_codes(tile, self, piece.out);
    }
}

/// Float32 results, with an optional residual of the output's shape.
pub(crate) struct FloatSink<'a> {
    pub to: Dequantize<'a>,
    pub residual: Residual<'a>,
    /// Set where a value that became a code may be NaN.
    pub nan: AtomicBool,
}

impl<'a> FloatSink<'a> {
    pub fn new(to: Dequantize<'a>, residual: Residual<'a>) -> Self {
        FloatSink { to, residual, nan: AtomicBool::new(false) }
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
        piece: OutputChunk<'_, f32>,
    ) {
        let residual = match self.residual {
            Residual::Of(r) => Residual::Of(&r[row * self.to.channels..]),
            other => other,
        };
        if !epilogue.to_float(tile, &self.to, residual, piece.out, piece.codes_out) {
            self.nan.store(true, Ordering::Relaxed);
        }
    }
}

/// Calls `work(first_row, rows, write)` over disjoint pieces of the output; `write(sink, tile,
/// row)` hands finished tiles, which begin at row `row` of the piece, to the sink of that number.
/// The last sink says what a row is.
pub(crate) fn for_each_piece<S: Sink>(
    epilogue: &dyn TileEpilogue,
    sinks: &[&S],
    piece: OutputChunk<'_, S::Elem>,
    granularity: usize,
    cost: usize,
    work: impl Fn(usize, usize, &mut dyn FnMut(usize, &TileAcc<'_>, usize)) -> Result<()> + Sync,
) -> Result<()> {
    let (row_len, codes_len) =
        sinks.last().map_or((0, 0), |sink| (sink.row_len(), sink.codes_len()));
    let OutputChunk { out, codes_out } = piece;
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
                let piece = OutputChunk {
                    out: &mut out[row * row_len..],
                    codes_out: &mut codes_out[row * codes_len..],
                };
                sinks[sink].write(epilogue, tile, first + row, piece);
            })
        },
    )
}

/// Computes `piece.out.len() / sink.row_len()` rows.
pub(crate) fn run<S: Sink>(
    tiled: &(dyn TiledKernel + Sync),
    weights: &PackedWeights<'_>,
    rows: &Rows<'_, impl Fn(usize) -> usize + Sync>,
    sink: &S,
    piece: OutputChunk<'_, S::Elem>,
) -> Result<()> {
    let (layout, mr, max_step) = (tiled.layout(), tiled.mr(), rows.max_step());
    let m = piece.out.len().checked_div(sink.row_len()).unwrap_or(0);
    let cost = m.saturating_mul(weights.macs_per_row());
    if m <= BLOCK
        && weights.groups() * weights.panels_per_group() > 1
        && parallel::threads_for(cost)? > 1
    {
        return by_panels(tiled, weights, rows, sink, piece);
    }
    for_each_piece(tiled.epilogue(), &[sink], piece, mr, cost, |first, count, write| {
        SCRATCH.with_borrow_mut(|Scratch { bases, acc, low }| {
            for block in (0..count).step_by(BLOCK) {
                let block_rows = BLOCK.min(count - block);
                let bases = rows.bases(bases, mr, [first + block, block_rows]);
                let acc = &mut acc[..bases.len() * layout.nr];
                for group in 0..weights.groups() {
                    let tile_rows = rows.tiles(mr, bases, max_step, group);
                    for panel in 0..weights.panels_per_group() {
                        sums(tiled, weights, tile_rows, [group, panel], acc, low);
                        write(0, &tile_of(weights, [group, panel], acc, block_rows), block);
                    }
                }
            }
        });
        Ok(())
    })
}

/// [`run`] for at most a block of rows: sums panel by panel, by all threads, then the epilogue.
fn by_panels<S: Sink>(
    tiled: &(dyn TiledKernel + Sync),
    weights: &PackedWeights<'_>,
    rows: &Rows<'_, impl Fn(usize) -> usize + Sync>,
    sink: &S,
    piece: OutputChunk<'_, S::Elem>,
) -> Result<()> {
    let (mr, max_step) = (tiled.mr(), rows.max_step());
    let m = piece.out.len() / sink.row_len();
    let mut bases = [0; BLOCK + MAX_MR];
    let bases: &[usize] = rows.bases(&mut bases, mr, [0, m]);
    let panels = weights.panels_per_group();
    let len = bases.len() * tiled.layout().nr;
    let mut every =
        memory::filled("sums of a layer with few rows", weights.groups() * panels * len, 0)?;
    let cost = m.saturating_mul(weights.macs_per_row());
    parallel::try_for_each_rows(&mut every, len, 1, cost, |first, every| {
        SCRATCH.with_borrow_mut(|Scratch { low, .. }| {
            for (i, acc) in every.chunks_exact_mut(len).enumerate() {
                let at = [(first + i) / panels, (first + i) % panels];
                sums(tiled, weights, rows.tiles(mr, bases, max_step, at[0]), at, acc, low);
            }
        });
        Ok(())
    })?;
    // In one piece: next to the sums it costs nothing.
    for_each_piece(tiled.epilogue(), &[sink], piece, m, 0, |_, _, write| {
        for (i, acc) in every.chunks_exact(len).enumerate() {
            write(0, &tile_of(weights, [i / panels, i % panels], acc, m), 0);
        }
        Ok(())
    })
}

/// The sums of a group's panel at some rows; `low` has room for those of the low bits, where
/// weights have two.
#[inline]
fn sums(
    tiled: &dyn TiledKernel,
    weights: &PackedWeights<'_>,
    rows: TileRows<'_>,
    [group, panel]: [usize; 2],
    acc: &mut [i32],
    low: &mut [i32],
) {
    tiled.tiles(&Tiles::new(tiled, rows, weights.panel(group, panel)), acc);
    if let Some(panel) = weights.low_panel(group, panel) {
        let low = &mut low[..acc.len()];
        tiled.tiles(&Tiles::new(tiled, rows, panel), low);
        for (acc, low) in acc.iter_mut().zip(low) {
            *acc = 2 * *acc + *low;
        }
    }
}

/// A group's panel of `rows` rows, for the epilogue.
fn tile_of<'a>(
    weights: &PackedWeights<'_>,
    [group, panel]: [usize; 2],
    acc: &'a [i32],
    rows: usize,
) -> TileAcc<'a> {
    let (nr, of_group) = (weights.kernel().layout().nr, weights.group_out_channels());
    TileAcc {
        acc,
        rows,
        first_channel: group * of_group + panel * nr,
        channels: nr.min(of_group - panel * nr),
    }
}
