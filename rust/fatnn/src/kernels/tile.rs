//! The operands of a column of tiles, checked once so that kernels need no bounds of their own.

/// Most rows that any kernel's tile has.
pub(crate) const MAX_MR: usize = 8;
/// Most channels that any kernel's tile has.
pub(crate) const MAX_NR: usize = 64;

/// Addresses of the operands of one or more tiles below each other: `mr` rows each, the same panel of weights for all.
/// (Several at a time, because checks, calls and set-up for each cost a tenth of a tile with a short reduction.)
///
/// The reduction runs over `taps × units`. Row `r`'s activations for tap `t` are the `units` consecutive units that start
/// at byte `bases[r] + taps[t]` of `codes`. (An address is a sum of two small tables rather than one pointer per row and
/// tap: padding is materialised once per image, so that every window is at the same offsets, and building a pointer per
/// row and tap, measured, cost up to a quarter of a 64-channel layer.)
pub struct Tiles<'a> {
    codes: &'a [u8],
    bases: &'a [usize],
    taps: &'a [usize],
    units: usize,
    panel: &'a [u8],
}

impl<'a> Tiles<'a> {
    /// Checks and makes tiles of `mr` rows. `bases` has a multiple of `mr` elements; `max_tap` is the largest element of `taps`.
    ///
    /// # Panics
    /// Where an address would fall outside `codes` or `panel` has the wrong size: a bug in the driver, since the public
    /// functions check shapes first.
    #[inline]
    pub(crate) fn new(
        layout: super::Layout,
        mr: usize,
        codes: &'a [u8],
        bases: &'a [usize],
        (taps, max_tap): (&'a [usize], usize),
        units: usize,
        panel: &'a [u8],
    ) -> Self {
        assert!(bases.len().is_multiple_of(mr));
        debug_assert_eq!(taps.iter().copied().max().unwrap_or(0), max_tap);
        let reach = max_tap + units * layout.family.unit_bytes();
        for &base in bases {
            assert!(base <= codes.len() && reach <= codes.len() - base, "tile outside its codes");
        }
        assert_eq!(panel.len(), layout.panel_bytes(taps.len() * units), "panel of another size");
        Tiles { codes, bases, taps, units, panel }
    }

    /// Start of every row's activations, tile by tile, without a tap's offset. All reads at `+ tap + 0..units` units are in
    /// bounds.
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> impl Iterator<Item = [*const u8; MR]> {
        let codes = self.codes.as_ptr();
        // `wrapping_add`: in bounds by the check in `new`, so this is ordinary pointer arithmetic.
        self.bases.as_chunks::<MR>().0.iter().map(move |bases| bases.map(|base| codes.wrapping_add(base)))
    }

    /// Byte offset of every tap.
    #[inline(always)]
    pub(crate) fn taps(&self) -> &'a [usize] {
        self.taps
    }

    /// Units in every tap.
    #[inline(always)]
    pub(crate) fn units(&self) -> usize {
        self.units
    }

    /// The panel's weights: `taps × units` units of `nr` channels, then `nr` `i32` offsets.
    #[inline(always)]
    pub(crate) fn panel(&self) -> &'a [u8] {
        self.panel
    }
}
