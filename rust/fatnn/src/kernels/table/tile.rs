//! The family's inner loop: selectors × vectors of indices.

use super::Table;
use super::pack::{SPILL, steps};

/// A vector of bytes, in the words of an instruction set.
///
/// # Safety
/// An implementation does with memory what its functions say, and nothing else.
pub(crate) unsafe trait Vector: Copy {
    /// Bytes.
    const LANES: usize;
    /// Sums of low and high nibbles that have not parted yet.
    type Sums: Copy;

    /// # Safety
    /// The CPU has the implementation's features; [`Vector::LANES`] bytes are readable.
    unsafe fn load(at: *const u8) -> Self;
    /// A row of a table in every 16 bytes.
    ///
    /// # Safety
    /// The CPU has the implementation's features; 16 bytes are readable.
    unsafe fn row(at: *const u8) -> Self;
    /// Sums of nothing.
    ///
    /// # Safety
    /// The CPU has the implementation's features.
    unsafe fn nothing() -> Self::Sums;
    /// The entries of a row that `indices`, all below 16, name. (What other bytes give is not
    /// said.)
    fn look_up(self, indices: Self) -> Self;
    /// Says that this address will be read; it may be any.
    fn prefetch(at: *const u8) {
        let _ = at;
    }
    /// Sums of bytes.
    fn add(self, other: Self) -> Self;
    /// Adds a round's nibbles.
    fn count(self, sums: &mut Self::Sums);
    /// Parts the sums: those of low nibbles and those of high ones, each as `LANES` words, first
    /// those of even bytes, are added to what is there, or stored where nothing is `yet`.
    ///
    /// # Safety
    /// `LANES` words are readable and writable at both addresses.
    unsafe fn spill(sums: Self::Sums, yet: bool, low: *mut u16, high: *mut u16);
}

/// Where the operands of one tile are: `P` selecting bytes and `N` vectors of indices for every
/// step.
pub(crate) struct Tile<'a, const P: usize> {
    pub table: &'a Table,
    /// Selecting bytes of the first step at offset 0, and bytes from step to step.
    pub rows: [*const u8; P],
    pub row_step: usize,
    /// Indices of the first step at offset 0, and bytes from step to step.
    pub indices: *const u8,
    pub index_step: usize,
    /// Sums of the selectors' low and high states, `N × LANES` each.
    pub sums: [[*mut u16; 2]; P],
}

impl<const P: usize> Tile<'_, P> {
    /// Adds a stretch of the reduction to the 16-bit sums, or stores it where there is nothing
    /// `yet`. `offsets` are those of every (unit, tap)'s selecting bytes and indices.
    ///
    /// # Safety
    /// The CPU has the features of `V`. From each offset on, there are as many steps as `plan`
    /// says, each of a byte at each address of `rows` and of `N` vectors at `indices`; `sums` are
    /// readable and writable.
    #[inline(always)]
    pub unsafe fn run<V: Vector, const N: usize, const ROUND: usize, const SCALE: usize>(
        &self,
        plan: &[u8],
        offsets: impl Iterator<Item = (usize, usize)>,
        mut yet: bool,
    ) {
        const { assert!(ROUND <= 3 && SCALE <= 16) };
        // SAFETY: the caller vouches for the features.
        let nothing = unsafe { [[V::nothing(); N]; P] };
        let mut sums = nothing;
        let last = plan.len() - 1;
        for (i, (&plan, (row, index))) in plan.iter().zip(offsets).enumerate() {
            let mut rows = self.rows.map(|at| at.wrapping_add(row));
            let mut indices = self.indices.wrapping_add(index);
            let steps = steps(plan);
            // SAFETY: the caller vouches for `steps` steps.
            unsafe {
                for _ in 0..steps / ROUND {
                    self.round::<V, N, ROUND, SCALE>(rows, indices, &mut sums);
                    rows = rows.map(|at| at.wrapping_add(ROUND * self.row_step));
                    indices = indices.wrapping_add(ROUND * self.index_step);
                }
                match steps % ROUND {
                    1 => self.round::<V, N, 1, SCALE>(rows, indices, &mut sums),
                    2 => self.round::<V, N, 2, SCALE>(rows, indices, &mut sums),
                    _ => {}
                }
            }
            if plan & SPILL != 0 || i == last {
                for (sums, out) in sums.iter().zip(&self.sums) {
                    for (n, &sums) in sums.iter().enumerate() {
                        let [low, high] = out.map(|out| out.wrapping_add(n * V::LANES));
                        // SAFETY: the caller vouches for `N` vectors of sums.
                        unsafe { V::spill(sums, yet, low, high) };
                    }
                }
                sums = nothing;
                yet = true;
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`], for `S` steps.
    #[inline(always)]
    unsafe fn round<V: Vector, const N: usize, const S: usize, const SCALE: usize>(
        &self,
        rows: [*const u8; P],
        indices: *const u8,
        sums: &mut [[V::Sums; N]; P],
    ) {
        let table = (&raw const *self.table).cast::<u8>();
        for (p, sums) in sums.iter_mut().enumerate() {
            let row = |s: usize| {
                // SAFETY: the caller vouches for the byte; a row of the table begins `SCALE` times
                // as far as any byte says.
                unsafe { V::row(table.add(SCALE * usize::from(*rows[p].add(s * self.row_step)))) }
            };
            let rows: [V; S] = std::array::from_fn(row);
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller vouches for the indices.
                let product = |s: usize| unsafe {
                    rows[s].look_up(V::load(indices.add(s * self.index_step + n * V::LANES)))
                };
                (1..S).fold(product(0), |sum, s| sum.add(product(s))).count(sums);
            }
        }
    }
}
