//! Operands of int8 kernels: a panel of weights, and windows of activations at a constant distance
//! in memory, which may overlap.
//!
//! A row has as many values as the reduction is long, rounded up to [`Int8Layout::depth`]. The
//! values after its window are multiplied by weights that are 0. Sums never overflow: weights and
//! activations are in -127..=127, and reductions are short enough that 127² times their length fits
//! `i32`.

use super::int8::Finish;
use super::kernel::{Family, Inner, Layout, OperandTypes, private};
use super::panels::PanelWeights;

/// How a kernel reads activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `i8`.
    I8,
    /// `u8`: the code plus 128.
    Biased,
    /// `i16`.
    I16,
}

impl Element {
    /// Bytes of a value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Element::I8 | Element::Biased => 1,
            Element::I16 => 2,
        }
    }

    /// The byte of which the code 0 consists.
    pub(crate) fn zero(self) -> u8 {
        match self {
            Element::I8 | Element::I16 => 0,
            Element::Biased => 128,
        }
    }
}

/// How the operands of a kernel are laid out. Packed weights are
/// `[reduction / depth][width / lanes][depth / k_pack][lanes][k_pack]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Int8Layout {
    /// Identifies the layout in the header of packed weights.
    pub id: u32,
    /// The reduction is padded to a multiple of this.
    pub depth: usize,
    /// Consecutive values of the reduction that are stored together for each channel, because one
    /// instruction adds up their products.
    pub k_pack: usize,
    /// Channels that are stored next to each other: one vector.
    pub lanes: usize,
    /// Largest number of channels in a panel.
    pub panel: usize,
    /// The kernel reads a multiple of this number of rows.
    pub rows: usize,
    /// Type of the activations.
    pub element: Element,
}

impl Int8Layout {
    /// Channels with padding, of a panel in which `channels` exist.
    pub(crate) fn width(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.lanes).min(self.panel)
    }

    /// Bytes of a panel: the weights, and for biased activations an `i32` per channel with which
    /// its sum starts.
    pub(crate) fn panel_bytes(&self, reduction: usize, width: usize) -> usize {
        let start = if self.element == Element::Biased { 4 } else { 0 };
        (reduction.next_multiple_of(self.depth) + start) * width
    }

    /// The part of the layout that all families have.
    pub(super) fn common(&self) -> Layout {
        Layout { family: Family::Int8, nr: self.panel, lanes: self.lanes }
    }

    /// Packs a panel. Its weights must be in the order of the activations in a row.
    fn pack(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        let (reduction, width) = (weights.taps * weights.inputs, self.width(weights.count));
        assert_eq!(panel.len(), self.panel_bytes(reduction, width));
        panel.fill(0);
        let start = reduction.next_multiple_of(self.depth) * width;
        for j in 0..width {
            let Some(weight) = weights.channel(j) else { continue };
            assert_eq!(weight.len(), reduction);
            for (k, &w) in weight.iter().enumerate() {
                let (block, rest) = (k / self.depth, k % self.depth);
                let tile = block * (width / self.lanes) + j / self.lanes;
                let group = tile * (self.depth / self.k_pack) + rest / self.k_pack;
                panel[(group * self.lanes + j % self.lanes) * self.k_pack + rest % self.k_pack] =
                    w.cast_unsigned();
            }
            if self.element == Element::Biased {
                let sum = weight.iter().fold(0i32, |sum, &w| sum + i32::from(w));
                panel[start + j * 4..][..4].copy_from_slice(&sum.wrapping_mul(-128).to_le_bytes());
            }
        }
    }
}

/// Rows of activations. Row `r` is the window that begins at byte `r * stride`. There are `lines`
/// lines of the output, with `length` rows each. Line `l` begins at row `l * period`; the rows
/// between lines are unused.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Begins with the first row.
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) lines: usize,
    pub(crate) period: usize,
    pub(crate) length: usize,
}

/// Rows of activations, a panel of weights and the epilogue. Their sizes match.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub(super) rows: Rows<'a>,
    /// Length of the reduction, padded.
    pub(super) depth: usize,
    pub(super) panel: &'a [u8],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels know it"))]
    pub(super) width: usize,
    pub(super) finish: Finish<'a>,
}

impl<'a> Product<'a> {
    /// `rows` of `reduction` values times a panel of as many channels as `finish` has constants.
    ///
    /// # Panics
    /// If the sizes do not match or a read would leave a slice, which is a bug in the caller.
    pub(crate) fn new(
        layout: &Int8Layout,
        rows: Rows<'a>,
        reduction: usize,
        panel: &'a [u8],
        finish: Finish<'a>,
    ) -> Self {
        let width = finish.scale.len();
        assert!(
            reduction > 0
                && (1..=width).contains(&finish.channels)
                && finish.channels <= finish.pitch
        );
        assert!(
            width.is_multiple_of(layout.lanes)
                && width <= layout.panel
                && width == finish.bias.len()
        );
        assert!(
            finish.affine.is_none_or(|(scale, bias)| scale.len() == width && bias.len() == width)
        );
        assert_eq!(panel.len(), layout.panel_bytes(reduction, width));
        assert!(
            rows.lines > 0 && rows.length > 0 && (rows.lines == 1 || rows.period >= rows.length)
        );
        let depth = reduction.next_multiple_of(layout.depth);
        let count = (rows.lines - 1) * rows.period + rows.length;
        let last = (count.next_multiple_of(layout.rows) - 1).checked_mul(rows.stride);
        let end = last.and_then(|at| at.checked_add(depth * layout.element.bytes()));
        assert!(end.is_some_and(|end| end <= rows.bytes.len()), "{end:?} of {}", rows.bytes.len());
        Product { rows, depth, panel, width, finish }
    }

    /// Number of floats from the first output to the last.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "other kernels write slices")
    )]
    pub(super) fn outputs(&self) -> usize {
        (self.rows.lines * self.rows.length - 1) * self.finish.pitch + self.finish.channels
    }

    /// Calls `tile(first row, rows, index of the first output)` for at most `max_rows` rows at a
    /// time, line by line.
    #[inline(always)]
    pub(super) fn tiles(&self, max_rows: usize, mut tile: impl FnMut(usize, usize, usize)) {
        for line in 0..self.rows.lines {
            for x in (0..self.rows.length).step_by(max_rows) {
                let count = max_rows.min(self.rows.length - x);
                tile(
                    line * self.rows.period + x,
                    count,
                    (line * self.rows.length + x) * self.finish.pitch,
                );
            }
        }
    }
}

/// An inner loop that reads int8 windows, each contiguous in memory.
pub trait ColumnsKernel: private::Sealed + Sync + std::fmt::Debug {
    /// Layout of the operands.
    fn layout(&self) -> &'static Int8Layout;

    /// Packs a panel. Its weights must be in the order of the activations in a row.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        self.layout().pack(weights, panel);
    }

    /// Whether the kernel is fast for a few rows, as a linear layer has.
    fn for_few_rows(&self) -> bool {
        true
    }

    /// Multiplies all rows by the panel and converts the sums to floats (see `Finish`). `out`
    /// begins with the panel's first channel of the first row, and has `Product::outputs` elements.
    fn multiply(&self, product: &Product<'_>, out: &mut [f32]);
}

/// The inner loop for int8 operands.
pub(super) fn inner<'a>(
    operands: OperandTypes,
    kernel: &'a dyn ColumnsKernel,
) -> Option<Inner<'a>> {
    (operands == OperandTypes::Int8).then_some(Inner::Columns(kernel))
}
