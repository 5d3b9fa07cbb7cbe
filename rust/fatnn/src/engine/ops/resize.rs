//! Resizing that only copies pixels: nearest interpolation and `depth_to_space` (pixel shuffle).
//! Both work on floats and on codes.

use std::sync::Arc;

use crate::engine::value::{
    Cost, Dims, ExecutableOp, Operation, Order, OrderAndRank, Slice, SliceMut, Value,
};
use crate::epilogue::{Elementwise, check_channels};
use crate::error::{Result, bad_value};
use crate::graph::spatial::{DepthToSpace, Interpolate, Sampling};
use crate::kernels::apply_all;
use crate::memory;
use crate::parallel;

/// Dimensions of the result of an interpolation. A second input gives height and width.
pub(super) fn output_dims(how: &Interpolate, inputs: &[Value]) -> Result<Dims> {
    let from = inputs[0].dims;
    let mut map = from.map;
    for (axis, size) in map.iter_mut().enumerate().skip(2 - from.axes) {
        let output = match inputs.get(1) {
            Some(like) => Some(like.dims.map[axis]).filter(|size| *size > 0),
            None => how.output(axis + from.axes - 2, from.map[axis]),
        };
        match output.filter(|_| (1..LIMIT).contains(&from.map[axis])) {
            Some(output) => *size = output,
            None => {
                return bad_value(
                    "interpolation",
                    format!("maps of 1 to {LIMIT} pixels on a side"),
                    format!("{how:?} of {:?}", from.map),
                );
            }
        }
    }
    Ok(Dims { map, ..from })
}

/// Height and width must be below this limit.
const LIMIT: usize = 1 << 24;

/// Nearest interpolation.
#[derive(Debug)]
pub(crate) struct Nearest(pub Interpolate);

impl Nearest {
    /// The input index for output index `at`, by PyTorch's rule in float32.
    fn source(&self, at: usize, ratio: f32, size: usize) -> usize {
        let half = if self.0.sampling == Sampling::NearestExact { 0.5 } else { 0.0 };
        (((at as f32 + half) * ratio) as usize).min(size - 1)
    }
}

impl Operation for Nearest {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let dims = output_dims(&self.0, inputs)?;
        let bytes = (dims.map[0] as u128 + dims.map[1] as u128) * size_of::<usize>() as u128;
        let output = Value { dims, rows: None, ..inputs[0] };
        Ok((output, Cost { bytes, ..Cost::of(&dims, 1) }))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let (output, from) = (self.measure(inputs)?.0, inputs[0].dims);
        let ignores_factor = self.0.ignores_factor(from.axes, from.channels, output.dims.map);
        let table = |axis: usize| {
            let (size, count) = (from.map[axis], output.dims.map[axis]);
            let absent = 2 - from.axes;
            let ratio = match axis < absent {
                true => 1.0,
                false if ignores_factor && count == size => 1.0,
                false if ignores_factor && count == 2 * size => 0.5,
                false => self.0.ratio(axis - absent, size, count),
            };
            let sources = (0..count).map(|at| self.source(at, ratio, size));
            memory::collected("pixels of an interpolation", sources)
        };
        let step = NearestStep {
            rows: table(0)?,
            columns: table(1)?,
            map: from.map,
            pixel: pixel_len(&output),
        };
        Ok((output, Box::new(step)))
    }

    fn orders(&self, inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
        orders_of_resized(inputs)
    }
}

/// The orders of an operation that resizes images. Only the sizes of a second input matter.
pub(super) fn orders_of_resized(inputs: &[OrderAndRank]) -> (Vec<Order>, Order) {
    let wanted = inputs
        .iter()
        .enumerate()
        .map(|(i, input)| if i == 0 { Order::ChannelsLast } else { input.order });
    (wanted.collect(), Order::ChannelsLast)
}

/// Length of a pixel in the buffer: floats, or bytes of codes.
fn pixel_len(value: &Value) -> usize {
    value.codes.map_or(value.dims.channels, |layout| layout.pixel_bytes())
}

#[derive(Debug)]
struct NearestStep {
    rows: Vec<usize>,
    columns: Vec<usize>,
    map: [usize; 2],
    pixel: usize,
}

impl NearestStep {
    fn copy<T: Copy + Send + Sync>(&self, x: &[T], out: &mut [T]) -> Result<()> {
        let (pixel, [h, w], count) = (self.pixel, self.map, self.rows.len());
        let row = self.columns.len() * pixel;
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len().saturating_mul(4);
        parallel::try_for_each_rows(out, row, 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let (image, y) = ((first + i) / count, (first + i) % count);
                let x = &x[(image * h + self.rows[y]) * w * pixel..][..w * pixel];
                for (out, &column) in out.chunks_exact_mut(pixel).zip(&self.columns) {
                    out.copy_from_slice(&x[column * pixel..][..pixel]);
                }
            }
            Ok(())
        })
    }
}

impl ExecutableOp for NearestStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        match out {
            SliceMut::Float(out) => self.copy(inputs[0].floats(), out),
            SliceMut::Integer(out) => self.copy(inputs[0].integers(), out),
            SliceMut::Mask(out) => self.copy(inputs[0].mask(), out),
            SliceMut::Int8(out) => self.copy(inputs[0].int8().0, out),
            SliceMut::Codes(out) => self.copy(inputs[0].codes(), out),
        }
    }
}

/// Moves channels to pixels (`depth_to_space`). On floats, functions of the result can follow.
#[derive(Debug)]
pub(crate) struct Shuffle {
    pub how: DepthToSpace,
    pub functions: Vec<Elementwise>,
}

impl Operation for Shuffle {
    fn measure(&self, inputs: &[Value]) -> Result<(Value, Cost)> {
        let (how, from) = (&self.how, inputs[0].dims);
        let blocks = how.pixels().saturating_mul(how.groups);
        let groups = inputs[0].codes.map_or(blocks, |layout| layout.groups());
        let map = [0, 1].map(|axis| how.output(axis, from.map[axis]));
        let ([Some(h), Some(w)], true, true) = (
            map,
            blocks > 0 && from.channels.is_multiple_of(blocks),
            groups.is_multiple_of(blocks.max(1)),
        ) else {
            return bad_value(
                "channels that become pixels",
                format!("channels and a map for {how:?}"),
                format!("shape {:?}", from.shape()),
            );
        };
        let channels = from.channels / how.pixels();
        let dims = Dims { channels, map: [h, w], ..from };
        check_channels(&self.functions, channels)?;
        let codes = match inputs[0].codes {
            Some(layout) => {
                let output = crate::codec::CodesLayout::new(channels, groups / how.pixels())?;
                Some(output.with(layout.coding()))
            }
            None => None,
        };
        let output = Value { dims, codes, rows: None, ..inputs[0] };
        Ok((output, Cost::of(&dims, 1 + self.functions.len())))
    }

    fn plan(self: Arc<Self>, inputs: &[Value]) -> Result<(Value, Box<dyn ExecutableOp>)> {
        let output = self.measure(inputs)?.0;
        let step = ShuffleStep {
            how: self.how,
            shuffle: self,
            from: inputs[0].dims.map,
            map: output.dims.map,
            pixel: pixel_len(&output),
        };
        Ok((output, Box::new(step)))
    }
}

/// [`Shuffle`], planned for one input shape.
#[derive(Debug)]
pub(super) struct ShuffleStep {
    shuffle: Arc<Shuffle>,
    how: DepthToSpace,
    /// Height and width of the input.
    from: [usize; 2],
    map: [usize; 2],
    /// Length of a pixel of the result in the buffer.
    pixel: usize,
}

impl ShuffleStep {
    /// Copies every row, then calls `then` on it.
    fn copy<T: Copy + Send + Sync>(
        &self,
        x: &[T],
        out: &mut [T],
        then: impl Fn(&mut [T]) -> Result<()> + Sync,
    ) -> Result<()> {
        let ShuffleStep { how, from: [h, w], map: [rows, columns], pixel, .. } = *self;
        let ([block_y, block_x], [[top, _], [left, _]]) = (how.block, how.crop);
        let (pixels, row) = (how.pixels(), columns * pixel);
        let part = pixel / how.groups;
        if out.is_empty() {
            return Ok(());
        }
        let cost = out.len().saturating_mul(4);
        parallel::try_for_each_rows(out, row, 1, cost, |first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let (image, y) = ((first + i) / rows, (first + i) % rows + top);
                let line = (image * h + y / block_y) * w;
                for (at, out) in out.chunks_exact_mut(pixel).enumerate() {
                    let at = at + left;
                    let phase = y % block_y * block_x + at % block_x;
                    let x = &x[(line + at / block_x) * pixel * pixels..][..pixel * pixels];
                    for (group, out) in out.chunks_exact_mut(part).enumerate() {
                        let x = &x[group * part * pixels..][..part * pixels];
                        if how.blocks_first {
                            out.copy_from_slice(&x[phase * part..][..part]);
                        } else {
                            out.iter_mut()
                                .zip(x[phase..].iter().step_by(pixels))
                                .for_each(|(to, from)| *to = *from);
                        }
                    }
                }
                then(out)?;
            }
            Ok(())
        })
    }
}

impl ExecutableOp for ShuffleStep {
    fn run(&self, inputs: &[Slice<'_>], _: &mut [u8], out: SliceMut<'_>) -> Result<()> {
        let functions = &self.shuffle.functions;
        match out {
            SliceMut::Float(out) => self.copy(inputs[0].floats(), out, |row| {
                if functions.is_empty() { Ok(()) } else { apply_all(functions, row, self.pixel) }
            }),
            SliceMut::Integer(out) => self.copy(inputs[0].integers(), out, |_| Ok(())),
            SliceMut::Mask(out) => self.copy(inputs[0].mask(), out, |_| Ok(())),
            SliceMut::Int8(out) => self.copy(inputs[0].int8().0, out, |_| Ok(())),
            SliceMut::Codes(out) => self.copy(inputs[0].codes(), out, |_| Ok(())),
        }
    }
}
