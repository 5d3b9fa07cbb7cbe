//! Running a network.

use std::sync::PoisonError;

use super::input::{Array, ValueInfo};
use super::network::{FusedQuantizer, NetNode, Network};
use super::plan::{Buffer, Workspace};
use super::value::{Dims, Order, Slice, Value};
use crate::codec::CodesLayout;
use crate::error::{Error, Result, bad_value, check_len};
use crate::kernels::CacheLine;
use crate::memory;
use crate::parallel::{self, Cancellation};
use crate::scalar::Int8Quantizer;
use crate::transpose::transpose;

/// Smaller images are not passed to threads one by one: their layers take less time than that.
const MIN_PARALLEL_ELEMENTS: usize = 32 << 10;
/// Workspaces that are kept for later runs; more if there are more threads.
const MAX_CACHED_WORKSPACES: usize = 8;

/// A node's value, for [`Network::run_observed`]. Nodes that are fused into another have no value
/// of their own, except quantizers; the value is the result of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Run time of the node in nanoseconds; 0 for a fused quantizer.
    pub nanoseconds: u128,
    dims: Dims,
    /// The value of a node with floats, in memory order.
    pub floats: Option<&'a [f32]>,
    /// The value of a node with floats that are stored as bytes, and their quantizer. `node` is
    /// then the name of the `fake_quantize`.
    pub int8: Option<(&'a [u8], Int8Quantizer)>,
    /// The value of a node with packed codes: `images × height × width` pixels of this layout.
    pub codes: Option<(&'a [u8], CodesLayout)>,
}

impl Observed<'_> {
    /// Images, height and width.
    pub fn pixels(&self) -> [usize; 3] {
        [self.dims.images, self.dims.map[0], self.dims.map[1]]
    }
}

/// Converts arrays of one type to [`Array`].
fn arrays<'a, I: Into<Array<'a>> + Copy>(inputs: &[I]) -> Vec<Array<'a>> {
    inputs.iter().map(|&input| input.into()).collect() // small: an input each
}

/// A float32 output of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The shape as in PyTorch: batch, channels and up to two spatial axes; or any other
    /// dimensions.
    pub shape: Vec<usize>,
    /// Elements in memory order.
    pub data: Vec<f32>,
    /// Whether channels, dimension 1 of the shape, are last in memory. Otherwise memory is
    /// row-major.
    pub channels_last: bool,
}

impl Output {
    /// The elements in row-major order of the shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape has no channels or does not match the number of elements;
    /// [`Error::Memory`].
    pub fn channels_first(&self) -> Result<Vec<f32>> {
        if !self.channels_last {
            return memory::copied("output with channels first", &self.data);
        }
        let elements = memory::product(self.shape.iter().copied());
        let ([_, channels, map @ ..], true) =
            (self.shape.as_slice(), elements == Some(self.data.len()))
        else {
            return Err(Error::Shape {
                what: "output",
                expected: format!("images, channels and axes of {} values in all", self.data.len()),
                got: format!("shape {:?}", self.shape),
            });
        };
        let mut data = memory::filled("output with channels first", self.data.len(), 0.0)?;
        transpose(&self.data, &mut data, map.iter().product(), *channels);
        Ok(data)
    }
}

impl Network {
    /// Runs the network.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] if the inputs do not fit the network,
    /// [`Error::NotANumber`] if a quantizer reads NaN, [`Error::Limit`] if the run would cost more
    /// than the limits, [`Error::Memory`] if there is no memory.
    pub fn run<'a, I: Into<Array<'a>> + Copy>(&self, inputs: &[I]) -> Result<Vec<Output>> {
        self.run_cancellable(&arrays(inputs), &Cancellation::none())
    }

    /// As [`Network::run`], but stops if `go_on` returns false. It is called on the calling thread
    /// at most every 50 ms, between nodes and while it waits for other threads; the run stops after
    /// the current node.
    ///
    /// # Errors
    /// As [`Network::run`]; [`Error::Interrupted`] if it was stopped.
    pub fn run_while<'a, I: Into<Array<'a>> + Copy>(
        &self,
        inputs: &[I],
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Output>> {
        self.run_cancellable(&arrays(inputs), &Cancellation::new(Some(go_on)))
    }

    fn run_cancellable(
        &self,
        inputs: &[Array<'_>],
        cancel: &Cancellation<'_>,
    ) -> Result<Vec<Output>> {
        match self.independent_images(inputs) {
            None => self.run_whole(inputs, &mut |_| (), cancel),
            Some(images) => self.run_images_separately(inputs, images, cancel),
        }
    }

    /// Batch size if images should run separately: one image fits in cache, and no per-layer
    /// barrier is needed.
    fn independent_images(&self, inputs: &[Array<'_>]) -> Option<usize> {
        let images = *inputs.first()?.shape().first()?;
        let elements: usize = inputs.iter().map(Array::len).sum();
        let alike = inputs.len() == self.inputs.len()
            && inputs.iter().all(|input| {
                // Other shapes are errors, which `run_on_current_thread` reports.
                let elements = input.shape().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                input.shape().first() == Some(&images) && elements == Some(input.len())
            });
        let free = self.independent_images
            && self.inputs.iter().all(|info| !info.fixed.contains(&0) && info.batch.is_none());
        (alike && free && images > 1 && elements / images >= MIN_PARALLEL_ELEMENTS)
            .then_some(images)
    }

    /// Runs each image on its own and concatenates the outputs.
    fn run_images_separately(
        &self,
        inputs: &[Array<'_>],
        images: usize,
        cancel: &Cancellation<'_>,
    ) -> Result<Vec<Output>> {
        let mut shapes: Vec<Vec<usize>> =
            inputs.iter().map(|input| input.shape().to_vec()).collect(); // small: sizes
        for shape in &mut shapes {
            shape[0] = 1;
        }
        let results = parallel::map_one_per_thread(cancel, images, |image| {
            let mut one = inputs.to_vec(); // small: an input each
            for (input, shape) in one.iter_mut().zip(&shapes) {
                let len = input.len() / images;
                *input = input.part(image * len..(image + 1) * len, shape);
            }
            self.run_whole(&one, &mut |_| (), cancel)
        })?;
        let mut results = results.into_iter();
        let mut outputs = results.next().unwrap_or_default();
        for output in &mut outputs {
            let rest = output.data.len().saturating_mul(images - 1);
            memory::reserve("outputs of the network", &mut output.data, rest)?;
            output.shape[0] *= images;
        }
        for image in results {
            for (output, one) in outputs.iter_mut().zip(image) {
                output.data.extend_from_slice(&one.data);
            }
        }
        Ok(outputs)
    }

    /// As [`Network::run`], and calls `observe` with every node's value and run time.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn run_observed<'a, I: Into<Array<'a>> + Copy>(
        &self,
        inputs: &[I],
        observe: &mut (dyn FnMut(Observed<'_>) + Send),
    ) -> Result<Vec<Output>> {
        self.run_whole(&arrays(inputs), observe, &Cancellation::none())
    }

    fn run_whole(
        &self,
        inputs: &[Array<'_>],
        observe: &mut (dyn FnMut(Observed<'_>) + Send),
        cancel: &Cancellation<'_>,
    ) -> Result<Vec<Output>> {
        parallel::with_team(|| self.run_on_current_thread(inputs, observe, cancel))
    }

    /// Runs on this thread. Operations may still share their work with helping threads.
    fn run_on_current_thread(
        &self,
        inputs: &[Array<'_>],
        observe: &mut dyn FnMut(Observed<'_>),
        cancel: &Cancellation<'_>,
    ) -> Result<Vec<Output>> {
        check_len("inputs of the network", self.inputs.len(), inputs.len())?;
        let values = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(info, input)| info.value(input))
            .collect::<Result<Vec<_>>>()?;
        let held = self.inputs.iter().zip(inputs).filter(|(info, _)| info.batch.is_some());
        let mut batches = held.filter_map(|(_, input)| input.shape().first().copied());
        if let Some(first) = batches.next()
            && let Some(other) = batches.find(|images| *images != first)
        {
            return bad_value(
                "batches of the network's inputs",
                "one size",
                format!("{first} and {other}"),
            );
        }
        let mut workspace = self.take(&values)?;
        let outputs = self.run_in(&mut workspace, inputs, observe, cancel)?;
        let mut kept = self.lock();
        if kept.len() >= MAX_CACHED_WORKSPACES.max(parallel::num_threads()?) {
            kept.remove(0);
        }
        kept.push(workspace);
        Ok(outputs)
    }

    /// Whether a node's value shares its first input's buffer.
    fn is_view(node: &NetNode, slots: &[usize]) -> bool {
        slots[node.inputs[0]] == slots[node.output]
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_in(
        &self,
        workspace: &mut Workspace,
        inputs: &[Array<'_>],
        observe: &mut dyn FnMut(Observed<'_>),
        cancel: &Cancellation<'_>,
    ) -> Result<Vec<Output>> {
        let Workspace { steps, values, slots, buffers, scratch, .. } = workspace;
        let scratch = CacheLine::bytes_mut(scratch);
        for (v, input) in inputs.iter().enumerate() {
            input.copy_to(&values[v], buffers[slots[v]].write(&values[v]));
        }
        for (node, step) in self.nodes.iter().zip(steps) {
            if node.inputs.is_empty() {
                continue; // A constant, written during planning.
            }
            cancel.check()?;
            let start = std::time::Instant::now();
            // Take the output buffers out, so that all others can be borrowed for reading.
            let mut taken = |value: usize| std::mem::take(&mut buffers[slots[value]]);
            // A view is not run: its input already has its elements.
            let view = Self::is_view(node, slots);
            let mut out = if view { Buffer::default() } else { taken(node.output) };
            let mut codes_buffer =
                node.quantizer.as_ref().map(|codes_buffer| taken(codes_buffer.value));
            let read = |v: usize| buffers[slots[v]].read(&values[v]);
            let codes = match (&node.quantizer, &mut codes_buffer) {
                (Some(FusedQuantizer { value, .. }), Some(buffer)) => {
                    buffer.write(&values[*value]).codes()
                }
                _ => &mut [],
            };
            let result = match *node.inputs.as_slice() {
                _ if view => Ok(()),
                [a] => {
                    step.run_with_codes(&[read(a)], scratch, out.write(&values[node.output]), codes)
                }
                // The second input is already in the output's buffer.
                [a, b] if slots[b] == slots[node.output] => {
                    step.run_with_codes(&[read(a)], scratch, out.write(&values[node.output]), codes)
                }
                [a, b] => step.run_with_codes(
                    &[read(a), read(b)],
                    scratch,
                    out.write(&values[node.output]),
                    codes,
                ),
                ref many => {
                    let slices: Vec<Slice<'_>> = many.iter().map(|&value| read(value)).collect();
                    step.run_with_codes(&slices, scratch, out.write(&values[node.output]), codes)
                }
            };
            let label = match (&result, &node.quantizer) {
                (Err(Error::NotANumber { .. }), Some(codes_buffer)) => &codes_buffer.label,
                _ => &node.label,
            };
            if !view {
                buffers[slots[node.output]] = out;
            }
            if let (Some(FusedQuantizer { value, .. }), Some(buffer)) =
                (&node.quantizer, codes_buffer)
            {
                buffers[slots[*value]] = buffer;
            }
            result.map_err(|error| error.in_node(label))?;
            let mut nanoseconds = start.elapsed().as_nanos();
            let names = std::iter::once(node.int8.as_ref().unwrap_or(&node.name))
                .chain(node.quantizer.iter().map(|codes_buffer| &codes_buffer.name));
            for (name, value) in names.zip(node.written()) {
                let Value { dims, codes: layout, .. } = values[value];
                let (mut floats, mut int8, mut codes) = (None, None, None);
                match buffers[slots[value]].read(&values[value]) {
                    Slice::Float(x) => floats = Some(x),
                    Slice::Int8(x, quantizer) => int8 = Some((x, quantizer)),
                    Slice::Codes(x) => codes = layout.map(|layout| (x, layout)),
                    Slice::Integer(_) | Slice::Mask(_) => (),
                }
                observe(Observed { node: name, nanoseconds, dims, floats, int8, codes });
                // Codes are written together with the output, so they take no time of their own.
                nanoseconds = 0;
            }
        }
        let output = |info: &ValueInfo| {
            let value = &values[info.value];
            let data = buffers[slots[info.value]].read(value).floats();
            let data = memory::copied("outputs of the network", data)?;
            let channels_last = value.order() == Order::ChannelsLast;
            Ok(Output { shape: value.shape().to_vec(), data, channels_last }) // small: sizes
        };
        self.outputs.iter().map(output).collect()
    }
}
