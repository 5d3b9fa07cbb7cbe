//! The operands of one tile, checked once so that kernels need no bounds of their own.

/// Most rows that any kernel's tile has.
pub(crate) const MAX_MR: usize = 8;
/// Most accumulators that any kernel's tile has.
pub(crate) const MAX_TILE: usize = 256;

/// Addresses of one tile's operands.
///
/// The reduction runs over `taps × units`. Row `r`'s activations for tap `t` are the `units` consecutive units that start
/// at byte `bases[r] + taps[t]` of `codes`. (An address is a sum of two small tables rather than one pointer per row and
/// tap: padding is materialised once per image, so that every window is at the same offsets, and building a pointer per
/// row and tap, measured, cost up to a quarter of a 64-channel layer.)
pub struct Tile<'a> {
    codes: &'a [u8],
    bases: &'a [usize],
    taps: &'a [usize],
    units: usize,
    panel: &'a [u8],
}

impl<'a> Tile<'a> {
    /// Checks and makes a tile for `kernel`. `bases` has `mr` elements; `max_tap` is the largest element of `taps`.
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
        assert_eq!(bases.len(), mr);
        debug_assert_eq!(taps.iter().copied().max().unwrap_or(0), max_tap);
        let reach = max_tap + units * layout.family.unit_bytes();
        for &base in bases {
            assert!(base <= codes.len() && reach <= codes.len() - base, "tile outside its codes");
        }
        assert_eq!(panel.len(), layout.panel_bytes(taps.len() * units), "panel of another size");
        Tile { codes, bases, taps, units, panel }
    }

    /// Start of every row's activations, without a tap's offset. All reads at `+ tap + 0..units` units are in bounds.
    #[inline(always)]
    pub(crate) fn rows<const MR: usize>(&self) -> [*const u8; MR] {
        let bases: &[usize; MR] = self.bases.try_into().expect("Tile::new checked mr");
        // `wrapping_add`: in bounds by the check in `new`, so this is ordinary pointer arithmetic.
        bases.map(|base| self.codes.as_ptr().wrapping_add(base))
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
