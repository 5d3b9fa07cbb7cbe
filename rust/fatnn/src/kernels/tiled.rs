//! The operands of a column of tiles, checked once so that kernels need no bounds of their own.

use super::epilogue::TileEpilogue;
use super::kernel::{Layout, UNIT_BYTES, private};
use super::panels::PanelWeights;
use super::popcount::{self, PopcountMode};

/// Most rows that any kernel's tile has.
pub(crate) const MAX_MR: usize = 4;
/// Most channels that any kernel's tile has.
pub(crate) const MAX_NR: usize = 16;

/// Rows that a driver takes at a time: all panels of weights pass by while these rows' activations
/// are in cache.
pub(crate) const BLOCK: usize = 64;

/// The inner loop of a kernel that reads codes as they pass between layers.
pub trait TiledKernel: private::Sealed {
    /// Output rows in a tile, at most `MAX_MR`.
    fn mr(&self) -> usize;

    /// Layout of the weights, of at most `MAX_NR` channels a panel.
    fn layout(&self) -> Layout;

    /// What it counts, which settles what panels hold.
    fn mode(&self) -> PopcountMode {
        PopcountMode::Ternary
    }

    /// Bytes of a panel over `units` units, all taps counted.
    fn panel_bytes(&self, units: usize) -> usize {
        popcount::panel_bytes(self.layout(), self.mode(), units)
    }

    /// Packs one panel of [`TiledKernel::panel_bytes`] bytes.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        popcount::pack_panel(self.layout(), self.mode(), weights, panel);
    }

    /// Accumulates tiles into `acc[row * nr + channel]`, which has `nr` elements for every row of
    /// `tiles`.
    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]);

    /// What follows, for tiles of this width.
    fn epilogue(&self) -> &'static dyn TileEpilogue;
}

/// Addresses of the activations of one or more tiles below each other, `mr` rows each.
///
/// Row `r`'s unit of activations for step `i` of the reduction starts at byte `bases[r] + steps[i]`
/// of `codes`. (An address is a sum of two small tables rather than one pointer per row and tap:
/// padding is materialised once per image, so that every window is at the same offsets, and
/// building a pointer per row and tap, measured, cost up to a quarter of a 64-channel layer.)
#[derive(Clone, Copy)]
pub struct TileRows<'a> {
    codes: &'a [u8],
    bases: &'a [usize],
    steps: &'a [usize],
}

impl<'a> TileRows<'a> {
    /// Checks and makes tiles of `mr` rows. `bases` has a multiple of `mr` elements; `max_step` is
    /// the largest element of `steps`.
    ///
    /// # Panics
    /// Where an address would fall outside `codes`: a bug in the driver, since the public functions
    /// check shapes first.
    #[inline]
    pub(crate) fn new(
        mr: usize,
        codes: &'a [u8],
        bases: &'a [usize],
        (steps, max_step): (&'a [usize], usize),
    ) -> Self {
        assert!(bases.len().is_multiple_of(mr));
        debug_assert_eq!(steps.iter().copied().max().unwrap_or(0), max_step);
        let reach = max_step + UNIT_BYTES;
        for &base in bases {
            assert!(base <= codes.len() && reach <= codes.len() - base, "tile outside its codes");
        }
        TileRows { codes, bases, steps }
    }

    /// Start of every row's activations, tile by tile, without a step's offset. Units at `+ step`
    /// are in bounds.
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> impl Iterator<Item = [*const u8; MR]> {
        let codes = self.codes.as_ptr();
        // `wrapping_add`: in bounds by the check in `new`, so this is ordinary pointer arithmetic.
        self.bases
            .as_chunks::<MR>()
            .0
            .iter()
            .map(move |bases| bases.map(|base| codes.wrapping_add(base)))
    }
}

/// One or more tiles below each other and the panel of weights that they all meet. (Several at a
/// time, because checks, calls and set-up for each cost a tenth of a tile with a short reduction.)
pub struct Tiles<'a> {
    rows: TileRows<'a>,
    panel: &'a [u8],
}

impl<'a> Tiles<'a> {
    /// Tiles for a panel.
    ///
    /// # Panics
    /// Where `panel` has the wrong size: a bug in the driver.
    #[inline]
    pub(crate) fn new(kernel: &dyn TiledKernel, rows: TileRows<'a>, panel: &'a [u8]) -> Self {
        assert_eq!(panel.len(), kernel.panel_bytes(rows.steps.len()), "panel of another size");
        Tiles { rows, panel }
    }

    /// See [`TileRows::rows`].
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> impl Iterator<Item = [*const u8; MR]> {
        self.rows.rows()
    }

    /// Byte offset of every step's unit from a row's start.
    #[inline(always)]
    pub(crate) fn steps(&self) -> &'a [usize] {
        self.rows.steps
    }

    /// The panel's weights, of `NR` channels for every step, and what is added to the channels'
    /// counts, little-endian.
    #[inline(always)]
    pub(crate) fn panel<const NR: usize>(&self) -> (&'a [u8], &'a [[u8; 4]; NR]) {
        let (weights, constants) = self.panel.split_at(self.panel.len() - NR * 4);
        (weights, constants.as_chunks().0.try_into().expect("as many constants as channels"))
    }
}
