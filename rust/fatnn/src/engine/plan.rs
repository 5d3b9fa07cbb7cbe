//! Sizes and buffers of a run at one set of input shapes.
//!
//! Sizes come from arithmetic only and are checked against the limits before anything is allocated.
//! A buffer is reused after the last read of its value.

use std::collections::BTreeSet;

use super::network::{FusedQuantizer, Network};
use super::value::{Dims, Element, ExecutableOp, Slice, SliceMut, Value};
use crate::error::Result;
use crate::kernels::CacheLine;
use crate::memory;

/// Sizes of everything that a run at one set of input shapes needs.
pub(super) struct Sizes {
    values: Vec<Value>,
    /// Per value: the number of its buffer.
    slots: Vec<usize>,
    /// Bytes of each buffer.
    buffers: Vec<usize>,
    scratch: usize,
}

/// Assigns buffers to values. A buffer is released after the last read of its value.
#[derive(Default)]
struct BufferAllocator {
    bytes: Vec<usize>,
    /// Free buffers as (bytes, number).
    free: BTreeSet<(usize, usize)>,
}

impl BufferAllocator {
    /// The number of a buffer for `bytes`: the free one of the nearest size, enlarged if needed, or
    /// a new one.
    fn allocate(&mut self, bytes: usize) -> usize {
        let below = self.free.range(..(bytes, 0)).next_back().copied();
        let above = self.free.range((bytes, 0)..).next().copied();
        let nearest =
            [below, above].into_iter().flatten().min_by_key(|(size, _)| size.abs_diff(bytes));
        match nearest {
            Some(free @ (size, slot)) => {
                self.free.remove(&free);
                self.bytes[slot] = size.max(bytes);
                slot
            }
            None => {
                self.bytes.push(bytes);
                self.bytes.len() - 1
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.free.insert((self.bytes[slot], slot));
    }
}

/// Executable operations and buffers for one set of input shapes.
#[derive(Debug)]
pub(super) struct Workspace {
    pub input_values: Vec<Value>,
    pub steps: Vec<Box<dyn ExecutableOp>>,
    pub values: Vec<Value>,
    /// Per value: the number of its buffer.
    pub slots: Vec<usize>,
    pub buffers: Vec<Buffer>,
    pub scratch: Vec<CacheLine>,
}

/// Cache lines in a page of 4 KiB.
const PAGE: usize = 64;

/// Memory for a value of any element type, aligned to a cache line.
///
/// A CPU takes a load for one of an earlier store if their addresses agree in the lowest twelve
/// bits. Loops that read one buffer and write another at the same pace would then wait in every
/// row, so each large buffer of a network begins at its own place in such a page. Without that, the
/// layers of 16 channels with a residual took 15.6 µs in some processes and 9.5 in others (Zen 5).
#[derive(Debug, Default)]
pub(super) struct Buffer {
    lines: Vec<CacheLine>,
    /// The line that the value begins at.
    start: usize,
}

impl Buffer {
    /// The bytes that a buffer for `bytes` bytes takes: a page more if it is large.
    fn allocated(bytes: usize) -> usize {
        let page = PAGE * size_of::<CacheLine>();
        if bytes < 4 * page { bytes } else { bytes.saturating_add(page) }
    }

    /// Buffer `number` of a network.
    fn new(number: usize, bytes: usize) -> Result<Self> {
        /// From one buffer's place to the next: eight places, neighbours far from each other.
        const STEP: usize = 40;
        let lines = zeros(Self::allocated(bytes))?;
        if Self::allocated(bytes) == bytes {
            return Ok(Buffer { lines, start: 0 });
        }
        let place = lines.as_ptr().addr() / size_of::<CacheLine>() % PAGE;
        let start = (number % PAGE * STEP + PAGE - place) % PAGE;
        Ok(Buffer { lines, start })
    }

    fn lines(&self) -> &[CacheLine] {
        &self.lines[self.start..]
    }

    pub fn read(&self, value: &Value) -> Slice<'_> {
        let (len, lines) = (value.buffer_len(), self.lines());
        match (value.codes, value.element) {
            (Some(_), _) => Slice::Codes(&CacheLine::bytes(lines)[..len]),
            (None, Element::Float) => Slice::Float(&CacheLine::floats(lines)[..len]),
            (None, Element::Integer) => Slice::Integer(&CacheLine::integers(lines)[..len]),
            (None, Element::Mask) => Slice::Mask(&CacheLine::bytes(lines)[..len]),
            (None, Element::Int8(quantizer)) => {
                Slice::Int8(&CacheLine::bytes(lines)[..len], quantizer)
            }
        }
    }

    pub fn write(&mut self, value: &Value) -> SliceMut<'_> {
        let (len, lines) = (value.buffer_len(), &mut self.lines[self.start..]);
        match (value.codes, value.element) {
            (Some(_), _) => SliceMut::Codes(&mut CacheLine::bytes_mut(lines)[..len]),
            (None, Element::Float) => SliceMut::Float(&mut CacheLine::floats_mut(lines)[..len]),
            (None, Element::Integer) => {
                SliceMut::Integer(&mut CacheLine::integers_mut(lines)[..len])
            }
            (None, Element::Mask) => SliceMut::Mask(&mut CacheLine::bytes_mut(lines)[..len]),
            (None, Element::Int8(_)) => SliceMut::Int8(&mut CacheLine::bytes_mut(lines)[..len]),
        }
    }
}

impl Workspace {
    pub fn bytes(&self) -> usize {
        let buffers =
            self.buffers.iter().map(|buffer| buffer.lines.capacity() * size_of::<CacheLine>());
        buffers.sum::<usize>() + self.scratch.capacity() * size_of::<CacheLine>()
    }
}

impl Network {
    /// A workspace for these inputs: a cached one, or a new one.
    pub(super) fn take(&self, inputs: &[Value]) -> Result<Workspace> {
        let mut kept = self.lock();
        match kept.iter().rposition(|w| w.input_values == inputs) {
            Some(at) => Ok(kept.remove(at)),
            None => {
                drop(kept);
                self.plan(inputs)
            }
        }
    }

    fn plan(&self, inputs: &[Value]) -> Result<Workspace> {
        let Sizes { values, slots, buffers, scratch } = self.measure(inputs)?;
        let mut steps: Vec<Box<dyn ExecutableOp>> =
            memory::reserved("steps of the network", self.nodes.len())?;
        for node in &self.nodes {
            let (_, step) =
                node.operation.clone().plan(&node.read(&values)).map_err(|e| node.error(e))?;
            steps.push(step);
        }
        let mut allocated = memory::reserved("values of the network", buffers.len())?;
        for (number, bytes) in buffers.into_iter().enumerate() {
            allocated.push(Buffer::new(number, bytes)?);
        }
        // Constants read nothing, so they are written once here and not in every run.
        for (node, step) in self.nodes.iter().zip(&steps).filter(|(node, _)| node.inputs.is_empty())
        {
            let out = allocated[slots[node.output]].write(&values[node.output]);
            step.run(&[], &mut [], out).map_err(|e| node.error(e))?;
        }
        let scratch = zeros(scratch)?;
        let input_values = memory::copied("values of the network", inputs)?;
        Ok(Workspace { input_values, steps, values, slots, buffers: allocated, scratch })
    }

    /// Computes all sizes at these input shapes and checks them against the limits. Allocates only
    /// a few numbers per node.
    pub(super) fn measure(&self, inputs: &[Value]) -> Result<Sizes> {
        // Values of fused nodes are never written and stay empty.
        let nothing = Value::float(Dims { images: 0, channels: 0, map: [1, 1], axes: 0 });
        let mut values = memory::filled("values of the network", self.values, nothing)?;
        for (value, input) in values.iter_mut().zip(inputs) {
            *value = *input;
            value.check()?;
        }
        // The value whose memory each value uses: another's if it is a view.
        let mut roots = memory::collected("values of the network", 0..self.values)?;
        let images =
            inputs.first().and_then(|input| input.shape().first().copied()).map_or(1, |n| n.max(1))
                as u128;
        let (mut scratch, mut tables, mut macs) = (0, 0u128, 0u128);
        for node in &self.nodes {
            let read = node.read(&values);
            let (value, cost) = node.operation.measure(&read).map_err(|e| node.error(e))?;
            value.check().map_err(|e| node.error(e))?;
            values[node.output] = value;
            if let (Some(&first), true) = (node.inputs.first(), node.operation.is_view(&read)) {
                roots[node.output] = roots[first];
            }
            let mut bytes = value.buffer_bytes() as u128 + cost.scratch as u128 + cost.bytes;
            if let Some(FusedQuantizer { value, layout, .. }) = node.quantizer {
                values[value] = Value::codes(values[node.output].dims, layout);
                values[value].check().map_err(|e| node.error(e))?;
                bytes += values[value].buffer_bytes() as u128;
            }
            self.limits.check_bytes(|| node.label.clone(), bytes)?;
            macs = macs.saturating_add(cost.macs);
            self.limits.check_macs(
                || format!("{}, with the nodes before it", node.label),
                macs / images,
            )?;
            scratch = scratch.max(cost.scratch);
            tables = tables.saturating_add(cost.bytes);
        }
        // The last node that reads each value's memory. Outputs and constants are kept until the
        // end.
        let mut last = memory::filled("values of the network", self.values, 0)?;
        for (n, node) in self.nodes.iter().enumerate() {
            for &value in &node.inputs {
                last[roots[value]] = n;
            }
        }
        let mut output_bytes = 0;
        for output in &self.outputs {
            last[roots[output.value]] = usize::MAX;
            output_bytes += values[output.value].buffer_bytes() as u128;
        }
        let mut allocator = BufferAllocator::default();
        let mut slots = memory::filled("values of the network", self.values, usize::MAX)?;
        // Constants first, so that no other value ever uses their buffers.
        for node in self.nodes.iter().filter(|node| node.inputs.is_empty()) {
            last[node.output] = usize::MAX;
            slots[node.output] = allocator.allocate(values[node.output].buffer_bytes());
        }
        for v in 0..self.inputs.len() {
            slots[v] = allocator.allocate(values[v].buffer_bytes());
        }
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.inputs.is_empty()) {
            // A sum may overwrite its residual if this is the last read of it.
            let residual = match *node.inputs.as_slice() {
                [a, b]
                    if roots[a] != roots[b]
                        && last[roots[b]] == n
                        && values[b] == values[node.output] =>
                {
                    Some(b)
                }
                _ => None,
            };
            let replaced = residual.filter(|_| node.operation.adds_in_place());
            let viewed =
                node.inputs.first().copied().filter(|first| roots[node.output] == roots[*first]);
            for written in node.written() {
                slots[written] = match viewed.or(replaced) {
                    Some(value) if written == node.output => slots[value],
                    _ => allocator.allocate(values[written].buffer_bytes()),
                };
            }
            for (i, &value) in node.inputs.iter().enumerate() {
                let again = node.inputs[..i].iter().any(|before| roots[*before] == roots[value]);
                if last[roots[value]] == n && replaced != Some(value) && !again {
                    allocator.release(slots[value]);
                }
            }
        }
        let buffers = allocator.bytes;
        let values_bytes = buffers.iter().fold(0, |n, &bytes| n + Buffer::allocated(bytes) as u128);
        let all = values_bytes + output_bytes + scratch as u128 + tables;
        self.limits.check_bytes(
            || "the network, with its weights and values".into(),
            all + self.weight_bytes,
        )?;
        Ok(Sizes { values, slots, buffers, scratch })
    }
}

/// Zeroed memory of at least `bytes`.
fn zeros(bytes: usize) -> Result<Vec<CacheLine>> {
    memory::filled("values of the network", bytes.div_ceil(size_of::<CacheLine>()), CacheLine::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_begin_at_different_places_of_a_page() {
        for bytes in [1, 100, 16 << 10, 70_000] {
            let places: Vec<usize> = (0..8)
                .map(|number| {
                    let buffer = Buffer::new(number, bytes).unwrap();
                    assert!(CacheLine::bytes(buffer.lines()).len() >= bytes);
                    buffer.lines().as_ptr().addr() % 4096
                })
                .collect();
            if bytes >= 16 << 10 {
                assert_eq!(places, [0, 2560, 1024, 3584, 2048, 512, 3072, 1536]);
            }
        }
    }
}
