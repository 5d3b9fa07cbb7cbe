//! The driver over tiles: which rows and channels are computed when and by which thread.
//!
//! A product has `m` rows (output pixels), `n` columns (output channels) and a reduction of `taps × units`. Rows are split
//! among threads; within a block of rows ([`Kernel::block`]), panels of weights are the outer loop, so that a panel stays in the
//! first-level cache while the block's activations pass by. The epilogue runs right behind each panel, on a few kilobytes of
//! accumulators that have not left the cache.

use std::cell::RefCell;

use crate::epilogue::{TileAcc, ToCodes, ToFloat};
use crate::error::Result;
use crate::kernels::{Kernel, MAX_BLOCK, MAX_MR, MAX_NR, TileRows, Tiles};
use crate::parallel;
use crate::weights::PackedWeights;

/// A thread's working memory, kept from call to call.
struct Scratch {
    bases: [usize; MAX_BLOCK + MAX_MR],
    acc: [i32; (MAX_BLOCK + MAX_MR) * MAX_NR],
    expanded: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            bases: [0; MAX_BLOCK + MAX_MR],
            acc: [0; (MAX_BLOCK + MAX_MR) * MAX_NR],
            expanded: Vec::new(),
        })
    };
}

/// The activations of a product: where row `m`'s codes are.
pub(crate) struct Rows<'a, F> {
    /// All codes that rows point into.
    pub codes: &'a [u8],
    /// Byte offset of a row's window in `codes`, for group 0 and tap offset 0.
    pub base: F,
    /// Byte offset of every tap in the window.
    pub taps: &'a [usize],
    /// Bytes from one group of channels to the next.
    pub group_bytes: usize,
}

/// Where results go: what a finished tile turns into.
pub(crate) trait Sink: Sync {
    /// Element of the output.
    type Elem: Send + Copy + Default;
    /// Elements in an output row.
    fn row_len(&self) -> usize;
    /// Whether [`Sink::write`] only sets bits, so that the output must be zeroed before.
    const ZEROED: bool = false;
    /// Writes tiles. `out` starts at their first row, which is row `row` of the whole product.
    fn write(&self, kernel: &dyn Kernel, tile: &TileAcc<'_>, row: usize, out: &mut [Self::Elem]);
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

    fn write(&self, kernel: &dyn Kernel, tile: &TileAcc<'_>, _: usize, out: &mut [i32]) {
        kernel.to_acc(tile, self.channels, out);
    }
}

impl Sink for ToCodes<'_> {
    type Elem = u8;
    const ZEROED: bool = true;

    fn row_len(&self) -> usize {
        self.layout.pixel_bytes()
    }

    fn write(&self, kernel: &dyn Kernel, tile: &TileAcc<'_>, _: usize, out: &mut [u8]) {
        kernel.to_codes(tile, self, out);
    }
}

/// Float32 results, with an optional residual of the output's shape.
pub(crate) struct FloatSink<'a> {
    pub to: ToFloat<'a>,
    pub residual: Option<&'a [f32]>,
}

impl Sink for FloatSink<'_> {
    type Elem = f32;

    fn row_len(&self) -> usize {
        self.to.channels
    }

    fn write(&self, kernel: &dyn Kernel, tile: &TileAcc<'_>, row: usize, out: &mut [f32]) {
        kernel.to_float(tile, &self.to, self.residual.map(|r| &r[row * self.to.channels..]), out);
    }
}

/// Computes `out.len() / sink.row_len()` rows.
pub(crate) fn run<S: Sink>(
    kernel: &'static dyn Kernel,
    weights: &PackedWeights<'_>,
    rows: &Rows<'_, impl Fn(usize) -> usize + Sync>,
    sink: &S,
    out: &mut [S::Elem],
) -> Result<()> {
    let layout = kernel.layout();
    let max_tap = rows.taps.iter().copied().max().unwrap_or(0);
    let taps = (rows.taps, max_tap);
    let (mr, units) = (kernel.mr(), weights.units_per_tap());
    let row_len = sink.row_len();
    let m = out.len().checked_div(row_len).unwrap_or(0);
    let block_rows = kernel.block().min(MAX_BLOCK);
    let work = |first: usize, out: &mut [S::Elem]| {
        if S::ZEROED {
            out.fill(S::Elem::default());
        }
        SCRATCH.with_borrow_mut(|Scratch { bases, acc, expanded }| {
            for (b, block) in out.chunks_mut(block_rows * row_len).enumerate() {
                let (row, block_rows) = (first + b * block_rows, block.len() / row_len);
                // Rows past the end repeat the last one; their results are dropped.
                let bases = &mut bases[..block_rows.next_multiple_of(mr)];
                for (r, base) in bases.iter_mut().enumerate() {
                    *base = (rows.base)(row + r.min(block_rows - 1));
                }
                let acc = &mut acc[..bases.len() * layout.nr];
                for group in 0..weights.groups() {
                    let tile_rows = TileRows::new(layout, mr, rows.codes, bases, taps, units);
                    kernel.expand(&tile_rows, expanded);
                    for panel in 0..weights.panels_per_group() {
                        let bytes = weights.panel(group, panel);
                        kernel.tiles(&Tiles::new(layout, tile_rows, bytes, expanded), acc);
                        let tile = TileAcc {
                            acc,
                            rows: block_rows,
                            first_channel: group * weights.group_out_channels() + panel * layout.nr,
                            channels: layout.nr.min(weights.group_out_channels() - panel * layout.nr),
                        };
                        sink.write(kernel, &tile, row, block);
                    }
                    for base in bases.iter_mut() {
                        *base += rows.group_bytes;
                    }
                }
            }
        });
    };
    parallel::for_each_rows(out, row_len, mr, m.saturating_mul(weights.macs_per_row()), work)
}
