//! The inner loop of the table family: some table rows × some vectors of indices.

use super::Table;
use super::pack::{SPILL, groups};

/// A vector of bytes of one instruction set.
///
/// # Safety
/// An implementation may access memory only as its methods document.
pub(crate) unsafe trait Vector: Copy {
    /// Bytes in a vector.
    const LANES: usize;
    /// Running sums of low and high nibbles, not yet separated.
    type Sums: Copy;

    /// Loads [`Vector::LANES`] bytes.
    ///
    /// # Safety
    /// The CPU must have the implementation's features. [`Vector::LANES`] bytes must be readable.
    unsafe fn load(at: *const u8) -> Self;
    /// Loads one table row and repeats it in every 16 bytes of the vector.
    ///
    /// # Safety
    /// The CPU must have the implementation's features. 16 bytes must be readable.
    unsafe fn row(at: *const u8) -> Self;
    /// Sums that are zero.
    ///
    /// # Safety
    /// The CPU must have the implementation's features.
    unsafe fn zero_sums() -> Self::Sums;
    /// Looks up `indices` in the row `self`. Every index must be below 16; otherwise its result is
    /// unspecified.
    fn look_up(self, indices: Self) -> Self;
    /// Prefetches the cache line at an address, which may be any address.
    fn prefetch(at: *const u8) {
        let _ = at;
    }
    /// Adds bytes.
    fn add(self, other: Self) -> Self;
    /// Adds the nibbles of one round to `sums`.
    fn add_round(self, sums: &mut Self::Sums);
    /// Separates the sums of low and high nibbles, each as `LANES` 16-bit words, those of even
    /// bytes first. Adds them to what `low` and `high` hold if `accumulate`, otherwise overwrites
    /// it.
    ///
    /// # Safety
    /// The CPU must have the implementation's features. `LANES` words must be readable and writable
    /// at both addresses.
    unsafe fn spill(sums: Self::Sums, accumulate: bool, low: *mut u16, high: *mut u16);
}

/// The operands of one tile: for every group, `P` bytes that select rows and `N` vectors of
/// indices.
pub(crate) struct Tile<'a, const P: usize> {
    pub table: &'a Table,
    /// Addresses of the first group's selecting bytes, before a chunk's offset is added.
    pub rows: [*const u8; P],
    /// Bytes from the selecting byte of one group to that of the next.
    pub row_stride: usize,
    /// Address of the first group's indices, before a chunk's offset is added.
    pub indices: *const u8,
    /// Bytes from the indices of one group to those of the next.
    pub index_stride: usize,
    /// Output of each selecting byte: sums for its low and its high state, `N × LANES` words each.
    pub sums: [[*mut u16; 2]; P],
}

impl<const P: usize> Tile<'_, P> {
    /// Computes one segment of the reduction. Adds its products to the 16-bit sums if `accumulate`,
    /// otherwise overwrites them. For each chunk, `offsets` yields the offset of its
    /// selecting bytes and that of its indices.
    ///
    /// # Safety
    /// The CPU must have the features of `V`. From every offset on, there must be as many groups as
    /// `plan` says. Each group must have a readable byte at each address of `rows`, and `N`
    /// readable vectors at `indices`. `sums` must be readable and writable.
    #[inline(always)]
    pub unsafe fn run<V: Vector, const N: usize, const ROUND: usize, const SCALE: usize>(
        &self,
        plan: &[u8],
        offsets: impl Iterator<Item = (usize, usize)>,
        mut accumulate: bool,
    ) {
        const { assert!(ROUND <= 3 && SCALE <= 16) };
        // SAFETY: the caller promises the features.
        let zero = unsafe { [[V::zero_sums(); N]; P] };
        let mut sums = zero;
        let last = plan.len() - 1;
        for (i, (&plan, (row, index))) in plan.iter().zip(offsets).enumerate() {
            let mut rows = self.rows.map(|at| at.wrapping_add(row));
            let mut indices = self.indices.wrapping_add(index);
            let groups = groups(plan);
            // SAFETY: the caller promises the features and `groups` groups.
            unsafe {
                for _ in 0..groups / ROUND {
                    self.round::<V, N, ROUND, SCALE>(rows, indices, &mut sums);
                    rows = rows.map(|at| at.wrapping_add(ROUND * self.row_stride));
                    indices = indices.wrapping_add(ROUND * self.index_stride);
                }
                match groups % ROUND {
                    1 => self.round::<V, N, 1, SCALE>(rows, indices, &mut sums),
                    2 => self.round::<V, N, 2, SCALE>(rows, indices, &mut sums),
                    _ => {}
                }
            }
            if plan & SPILL != 0 || i == last {
                for (sums, out) in sums.iter().zip(&self.sums) {
                    for (n, &sums) in sums.iter().enumerate() {
                        let [low, high] = out.map(|out| out.wrapping_add(n * V::LANES));
                        // SAFETY: the caller promises the features and `N` vectors of sums.
                        unsafe { V::spill(sums, accumulate, low, high) };
                    }
                }
                sums = zero;
                accumulate = true;
            }
        }
    }

    /// Adds `GROUPS` groups, at most a round, to `sums`.
    ///
    /// # Safety
    /// As [`Tile::run`], for `GROUPS` groups.
    #[inline(always)]
    unsafe fn round<V: Vector, const N: usize, const GROUPS: usize, const SCALE: usize>(
        &self,
        rows: [*const u8; P],
        indices: *const u8,
        sums: &mut [[V::Sums; N]; P],
    ) {
        let table = (&raw const *self.table).cast::<u8>();
        for (p, sums) in sums.iter_mut().enumerate() {
            let row = |g: usize| {
                // SAFETY: the caller promises that the byte is readable. 16 bytes of the table are
                // readable at `SCALE` times any byte.
                unsafe { V::row(table.add(SCALE * usize::from(*rows[p].add(g * self.row_stride)))) }
            };
            let rows: [V; GROUPS] = std::array::from_fn(row);
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller promises that the indices are readable.
                let product = |g: usize| unsafe {
                    rows[g].look_up(V::load(indices.add(g * self.index_stride + n * V::LANES)))
                };
                (1..GROUPS).fold(product(0), |sum, g| sum.add(product(g))).add_round(sums);
            }
        }
    }
}
