//! Floats that are stored as bytes: see [`crate::scalar::Int8Quantizer`].

use std::sync::Arc;

use crate::engine::ops::elementwise::in_rows;
use crate::engine::value::{Cost, Element, ExecutableOp, Operation, Slice, SliceMut, Value};
use crate::error::Result;
use crate::kernels::dequantize;

/// Turns bytes into floats.
#[derive(Debug)]
pub(crate) struct Dequantize;

impl Operation for Dequantize {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        Ok((inputs[0].of(Element::Float), Cost::of(&inputs[0].dims, 1)))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        Ok((self.measure(inputs)?.0, Box::new(DequantizeStep)))
    }

    fn reads_int8(&self, _: usize) -> bool {
        true
    }
}

#[derive(Debug)]
struct DequantizeStep;

impl ExecutableOp for DequantizeStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let (bytes, quantizer) = inputs[0].int8();
        in_rows(out.floats(), 1, |first, out| {
            dequantize(&bytes[first..first + out.len()], quantizer, out)
        })
    }
}
