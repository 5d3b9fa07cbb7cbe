//! Embedding: looks up rows of a table by their ids.

use std::sync::Arc;

use crate::engine::value::{
    Cost, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::error::{Result, bad_value, check_len};
use crate::memory;
use crate::parallel;

/// A table of `rows × width` floats; ids are row numbers.
#[derive(Debug)]
pub(crate) struct Embedding {
    table: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Embedding {
    /// A copy of `table`, whose shape is `[rows, width]`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] or [`crate::Error::Shape`] if the shape does not fit the table;
    /// [`crate::Error::Memory`].
    pub fn new(table: &[f32], shape: &[usize]) -> Result<Self> {
        let &[rows, width] = shape else {
            return bad_value("table of an embedding", "two dimensions", format!("{shape:?}"));
        };
        check_len("table of an embedding", rows.saturating_mul(width), table.len())?;
        Ok(Embedding { table: memory::copied("table of an embedding", table)?, rows, width })
    }
}

impl Operation for Embedding {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let shape = [&*inputs[0].shape(), &[self.width]].concat();
        let output = Value::row_major(&shape)?;
        Ok((output, Cost::of(&output.dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        Ok((self.measure(inputs)?.0, Box::new(EmbeddingStep(self))))
    }

    fn orders(&self, _: &[OrderAndRank]) -> (Vec<Order>, Order) {
        (vec![Order::RowMajor], Order::RowMajor) // small: one
    }
}

#[derive(Debug)]
struct EmbeddingStep(Arc<Embedding>);

impl ExecutableOp for EmbeddingStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (ids, out, Embedding { table, rows, width }) =
            (inputs[0].integers(), out.floats(), &*self.0);
        let row = |id: i64| usize::try_from(id).ok().filter(|row| row < rows);
        if let Some(at) = ids.iter().position(|&id| row(id).is_none()) {
            return bad_value(
                "ids of an embedding",
                format!("ids from 0 to {} for a table of {rows} rows", *rows as i64 - 1),
                format!("{} (element {at}): index out of range", ids[at]),
            );
        }
        let (width, cost) = (*width, out.len() * 4);
        if width == 0 {
            return Ok(());
        }
        parallel::try_for_each_rows(out, width, 1, cost, |first, out| {
            for (out, &id) in out.chunks_exact_mut(width).zip(&ids[first..]) {
                let at = row(id).unwrap_or_default() * width;
                out.copy_from_slice(&table[at..at + width]);
            }
            Ok(())
        })
    }
}
