//! Walks a result row by row while reading its operands with their own strides.

use crate::engine::value::{MAX_RANK, Value};

/// Dimensions of a result from the outermost in memory to the innermost: the size, and the strides
/// in `N` operands.
#[derive(Debug)]
pub(crate) struct Walk<const N: usize>(Vec<(usize, [usize; N])>);

impl<const N: usize> Walk<N> {
    /// A walk over a value like `output`. `steps` gives the operands' strides of a dimension.
    pub fn new(output: Value, steps: impl Fn(usize) -> [usize; N]) -> Self {
        let (shape, strides) = (output.shape(), output.strides());
        let mut order: Vec<usize> = (0..shape.len()).filter(|&dim| shape[dim] != 1).collect();
        order.sort_by_key(|&dim| std::cmp::Reverse(strides[dim]));
        let mut dims: Vec<(usize, [usize; N])> = Vec::new();
        for dim in order {
            let (size, steps) = (shape[dim], steps(dim));
            match dims.last_mut() {
                // The strides of all operands allow merging the two dimensions.
                Some((outer, before)) if (0..N).all(|i| before[i] == size * steps[i]) => {
                    (*outer, *before) = (*outer * size, steps);
                }
                _ => dims.push((size, steps)),
            }
        }
        if dims.is_empty() {
            dims.push((1, [0; N]));
        }
        Walk(dims)
    }

    /// Length of a row, and the operands' strides within it.
    pub fn row(&self) -> (usize, [usize; N]) {
        self.0[self.0.len() - 1]
    }

    /// Calls `work` on every row of `out` with the row's offsets in the operands. `first` is the
    /// number of the first row.
    pub fn rows<T>(&self, first: usize, out: &mut [T], mut work: impl FnMut([usize; N], &mut [T])) {
        let (outer, (len, _)) = (&self.0[..self.0.len() - 1], self.row());
        let (mut index, mut at) = ([0; MAX_RANK], [0; N]);
        let mut rest = first;
        for (i, &(size, steps)) in outer.iter().enumerate().rev() {
            (index[i], rest) = (rest % size, rest / size);
            (0..N).for_each(|n| at[n] += index[i] * steps[n]);
        }
        for row in out.chunks_exact_mut(len) {
            work(at, row);
            for (i, &(size, steps)) in outer.iter().enumerate().rev() {
                index[i] += 1;
                (0..N).for_each(|n| at[n] += steps[n]);
                if index[i] < size {
                    break;
                }
                (0..N).for_each(|n| at[n] -= size * steps[n]);
                index[i] = 0;
            }
        }
    }
}
