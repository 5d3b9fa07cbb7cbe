//! What int8 kernels read: windows of activations at a constant distance in memory, which may
//! overlap, and a panel of weights.
//!
//! A row has as many values as the reduction is long, rounded up to [`Int8Layout::depth`]; what
//! lies behind the window meets weights that are 0. No kernel can saturate: weights and activations
//! are in -127..=127, and reductions so short that 127² times their length fits `i32`.

use super::int8::Finish;
use super::kernel::{Family, Inner, Layout, OperandTypes, private};
use super::panels::PanelWeights;

/// How a kernel wants to read activations.
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

    /// The byte that the code 0 consists of.
    pub(crate) fn zero(self) -> u8 {
        match self {
            Element::I8 | Element::I16 => 0,
            Element::Biased => 128,
        }
    }
}

/// How a kernel's operands are laid out. Weights lie as
/// `[reduction / depth][width / lanes][depth / unit][lanes][unit]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Int8Layout {
    /// Tells layouts apart at the head of packed weights.
    pub id: u32,
    /// What the reduction is rounded up to.
    pub depth: usize,
    /// Neighbours in the reduction that lie side by side.
    pub unit: usize,
    /// Channels that lie side by side.
    pub lanes: usize,
    /// Most channels in a panel.
    pub panel: usize,
    /// Rows are read in multiples of this.
    pub rows: usize,
    /// Type of activations.
    pub element: Element,
}

impl Int8Layout {
    /// Channels, padding included, of a panel of so many.
    pub(crate) fn width(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.lanes).min(self.panel)
    }

    /// Bytes of a panel: weights, then where activations are biased an `i32` per channel for sums
    /// to begin with.
    pub(crate) fn panel_bytes(&self, reduction: usize, width: usize) -> usize {
        let start = if self.element == Element::Biased { 4 } else { 0 };
        (reduction.next_multiple_of(self.depth) + start) * width
    }

    /// What of it all families have.
    pub(super) fn common(&self) -> Layout {
        Layout { family: Family::Int8, nr: self.panel, lanes: self.lanes }
    }

    /// Packs a panel, whose weights are in the order in which rows hold activations.
    fn pack(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        let (reduction, width) = (weights.taps * weights.inputs, self.width(weights.count));
        assert_eq!(panel.len(), self.panel_bytes(reduction, width));
        panel.fill(0);
        let start = reduction.next_multiple_of(self.depth) * width;
        for j in 0..width {
            let Some(weight) = weights.channel(j) else { continue };
            assert_eq!(weight.len(), reduction);
            for (k, &w) in weight.iter().enumerate() {
                let (deep, rest) = (k / self.depth, k % self.depth);
                let tile = deep * (width / self.lanes) + j / self.lanes;
                let unit = tile * (self.depth / self.unit) + rest / self.unit;
                panel[(unit * self.lanes + j % self.lanes) * self.unit + rest % self.unit] =
                    w.cast_unsigned();
            }
            if self.element == Element::Biased {
                let sum = weight.iter().fold(0i32, |sum, &w| sum + i32::from(w));
                panel[start + j * 4..][..4].copy_from_slice(&sum.wrapping_mul(-128).to_le_bytes());
            }
        }
    }
}

/// Rows of activations: windows, one every `stride` bytes. Lines of `length` rows begin every
/// `period` rows; rows between them are nothing.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// What the first one begins.
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) lines: usize,
    pub(crate) period: usize,
    pub(crate) length: usize,
}

/// Rows of activations, a panel of weights and what becomes of their products, whose sizes fit each
/// other.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub(super) rows: Rows<'a>,
    /// The reduction, rounded up to the layout's depth.
    pub(super) depth: usize,
    pub(super) panel: &'a [u8],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels know it"))]
    pub(super) width: usize,
    pub(super) finish: Finish<'a>,
}

impl<'a> Product<'a> {
    /// Rows of `reduction` values, and a panel of as many channels as `finish` has constants.
    ///
    /// # Panics
    /// Where reading them would leave the slices: a bug in the caller.
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

    /// Floats, from the first one on, that a kernel may write between.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "other kernels write slices")
    )]
    pub(super) fn outputs(&self) -> usize {
        (self.rows.lines * self.rows.length - 1) * self.finish.pitch + self.finish.channels
    }

    /// Calls `tile(first row, rows, first output)` for at most `most` rows at a time, line by line.
    #[inline(always)]
    pub(super) fn tiles(&self, most: usize, mut tile: impl FnMut(usize, usize, usize)) {
        for line in 0..self.rows.lines {
            for x in (0..self.rows.length).step_by(most) {
                let count = most.min(self.rows.length - x);
                tile(
                    line * self.rows.period + x,
                    count,
                    (line * self.rows.length + x) * self.finish.pitch,
                );
            }
        }
    }
}

/// The inner loop of a kernel that reads int8 windows, each in one piece of memory.
pub trait ColumnsKernel: private::Sealed + Sync + std::fmt::Debug {
    /// Layout of what it reads.
    fn layout(&self) -> &'static Int8Layout;

    /// Packs a panel, whose weights are in the order in which rows hold activations.
    fn pack_panel(&self, weights: &PanelWeights<'_>, panel: &mut [u8]) {
        self.layout().pack(weights, panel);
    }

    /// Whether it is worth it for a few rows only.
    fn for_few_rows(&self) -> bool {
        true
    }

    /// Products of all rows with the panel, to floats: see `Finish`. `out` begins with the first
    /// channel of the panel of the first row, and has `Product::outputs` elements.
    fn multiply(&self, product: &Product<'_>, out: &mut [f32]);
}

/// The inner loop for int8 operands.
pub(super) fn inner<'a>(
    operands: OperandTypes,
    kernel: &'a dyn ColumnsKernel,
) -> Option<Inner<'a>> {
    (operands == OperandTypes::Int8).then_some(Inner::Columns(kernel))
}
