//! Operands of popcount kernels, checked so that kernels need no bounds checks of their own.

use super::cache_line::CacheLine;
use super::epilogue::TileEpilogue;
use super::kernel::{Layout, UNIT_BYTES, prefetch, private};
use super::panels::PanelWeights;
use super::popcount::{self, PopcountMode};

/// Largest number of rows in a tile of any kernel.
pub(crate) const MAX_MR: usize = 4;
/// Largest number of columns that any epilogue of a kernel takes.
pub(crate) const MAX_COLUMNS: usize = 64;

/// Rows that a driver processes together. It runs all panels of weights while the activations of
/// these rows are in cache.
pub(crate) const BLOCK: usize = 64;

const LINE: usize = size_of::<CacheLine>();

/// An inner loop that reads packed codes as layers exchange them.
pub trait TiledKernel: private::Sealed {
    /// Output rows in a tile, at most `MAX_MR`.
    fn mr(&self) -> usize;

    /// Layout of the packed weights. A panel has at most `MAX_COLUMNS` channels.
    fn layout(&self) -> Layout;

    /// Which bits the kernel counts. It determines the contents of panels.
    fn mode(&self) -> PopcountMode {
        PopcountMode::Ternary
    }

    /// Bytes of a panel over `chunks` chunks of the reduction.
    fn panel_bytes(&self, chunks: usize) -> usize {
        popcount::panel_bytes(self.layout(), self.mode(), chunks)
    }

    /// Packs weights into a panel of [`TiledKernel::panel_bytes`] bytes.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        popcount::pack_panel(self.layout(), self.mode(), weights, panel);
    }

    /// Multiplies `tiles`. Writes accumulators to `acc[row * pitch + channel]` with the pitch of
    /// `tiles`. It is the number of channels of a panel, `nr`, or, if there is a
    /// [`TiledKernel::wide_epilogue`], that many panels.
    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]);

    /// Epilogue for tiles of this kernel's width.
    fn epilogue(&self) -> &'static dyn TileEpilogue;

    /// A number of panels whose accumulators lie side by side, and an epilogue as wide as these.
    /// Per row it costs less than one epilogue for each panel.
    fn wide_epilogue(&self) -> Option<(usize, &'static dyn TileEpilogue)> {
        None
    }
}

/// Addresses of the activations of one or more tiles, `mr` rows each.
///
/// Row `r` reads chunk `i` of the reduction at byte `bases[r] + offsets[i]` of `codes`. Padding is
/// written out once per image, so all windows share the same offsets. One pointer per row and tap
/// would cost up to a quarter of the time of a 64-channel layer.
#[derive(Clone, Copy)]
pub struct TileRows<'a> {
    codes: &'a [u8],
    bases: &'a [usize],
    offsets: &'a [usize],
    /// See [`TileRows::prefetching`].
    next: &'a [u8],
}

impl<'a> TileRows<'a> {
    /// Makes tiles of `mr` rows. The length of `bases` must be a multiple of `mr`. `max_offset` is
    /// the largest element of `offsets`.
    ///
    /// # Panics
    /// If an address would be outside `codes`, which is a bug in the driver because the
    /// public functions check shapes first.
    #[inline]
    pub(crate) fn new(
        mr: usize,
        codes: &'a [u8],
        bases: &'a [usize],
        (offsets, max_offset): (&'a [usize], usize),
    ) -> Self {
        assert!(bases.len().is_multiple_of(mr));
        debug_assert_eq!(offsets.iter().copied().max().unwrap_or(0), max_offset);
        let reach = max_offset + UNIT_BYTES;
        for &base in bases {
            assert!(base <= codes.len() && reach <= codes.len() - base, "tile outside its codes");
        }
        TileRows { codes, bases, offsets, next: &[] }
    }

    /// The same tiles, which prefetch `next`, the weights that are multiplied after them. The
    /// first product of a network with each panel waits for memory otherwise: layers of 512
    /// channels on 7×7 pixels took 30% longer.
    #[inline]
    pub(crate) fn prefetching(self, next: &'a [u8]) -> Self {
        TileRows { next, ..self }
    }

    /// Start of the activations of every row, tile by tile. Adding any of the offsets gives the
    /// address of a readable unit.
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> impl Iterator<Item = [*const u8; MR]> {
        let (codes, tiles) = (self.codes.as_ptr(), self.bases.as_chunks::<MR>().0);
        // Every tile prefetches its share of the lines.
        let share = self.next.len().div_ceil(tiles.len().max(1)).next_multiple_of(LINE);
        let mut next = self.next.chunks(share.max(LINE));
        // `wrapping_add` on addresses that `new` found to be in bounds: ordinary pointer
        // arithmetic.
        tiles.iter().map(move |bases| {
            for line in next.next().unwrap_or_default().chunks(LINE) {
                prefetch(line.as_ptr());
            }
            bases.map(|base| codes.wrapping_add(base))
        })
    }
}

/// One or more tiles and the panel of weights that multiplies them. Several tiles share a call
/// because checks, calls and set-up cost a tenth of a tile with a short reduction.
pub struct Tiles<'a> {
    rows: TileRows<'a>,
    panel: &'a [u8],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels know it"))]
    pitch: usize,
}

impl<'a> Tiles<'a> {
    /// Tiles for a panel. The accumulators of two rows are `pitch` apart.
    ///
    /// # Panics
    /// If `panel` has the wrong size, which is a bug in the driver.
    #[inline]
    pub(crate) fn new(
        kernel: &dyn TiledKernel,
        rows: TileRows<'a>,
        panel: &'a [u8],
        pitch: usize,
    ) -> Self {
        assert_eq!(panel.len(), kernel.panel_bytes(rows.offsets.len()), "panel has another size");
        Tiles { rows, panel, pitch }
    }

    /// Elements from the accumulators of one row to those of the next.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// See [`TileRows::rows`].
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> impl Iterator<Item = [*const u8; MR]> {
        self.rows.rows()
    }

    /// Byte offset of every chunk of the reduction from the start of a row.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> &'a [usize] {
        self.rows.offsets
    }

    /// The weights, `NR` channels for every chunk, and the little-endian constants that are added
    /// to the channels' counts.
    #[inline(always)]
    pub(crate) fn panel<const NR: usize>(&self) -> (&'a [u8], &'a [[u8; 4]; NR]) {
        let (weights, constants) = self.panel.split_at(self.panel.len() - NR * 4);
        (weights, constants.as_chunks().0.try_into().expect("as many constants as channels"))
    }
}
