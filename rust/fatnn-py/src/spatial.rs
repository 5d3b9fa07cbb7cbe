//! Converts a transposed convolution to an ordinary one whose channels become pixels afterwards.

use fatnn::graph::ConvParams;
use fatnn::graph::spatial::{ConvTranspose, SubPixel};
use fatnn::memory;
use numpy::PyArrayDyn;
use pyo3::prelude::*;

use crate::array::{ReadonlyArray, array};
use crate::conv::Pair;
use crate::errors::{detached, guarded, input_error};

/// The int8 weight of the ordinary convolution, its padding and dilation, and the rows and columns
/// to crop after it: top, bottom, left, right.
type OrdinaryConv<'py> = (Bound<'py, PyArrayDyn<i8>>, Pair, Pair, [usize; 4]);

/// Converts weight codes of a transposed convolution, (channels, n / groups, height, width), to
/// those of an ordinary convolution of stride 1. It has `n` output channels for each of the `s²`
/// pixels of a block, with stride `s`. Within a group, all channels of the first pixel come first,
/// then those of the second. Taps that a pixel does not have are 0.
#[pyfunction]
pub(crate) fn sub_pixel<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: usize,
) -> PyResult<OrdinaryConv<'py>> {
    guarded(py, || {
        let weight = ReadonlyArray::<i8>::new(weight, "weight", Some(4))?;
        let &[channels, out, height, width] = weight.shape() else {
            unreachable!("four axes were checked")
        };
        let shape = [channels, out, height, width];
        let params = ConvParams { kernel: [height, width], stride, padding, dilation };
        let layer = ConvTranspose { axes: 2, params, output_padding, groups };
        let invalid = |why: String| input_error(py, &why);
        let sub = SubPixel::new(&layer, params.kernel).map_err(invalid)?;
        let conv_shape = sub.weight_shape(shape).map_err(invalid)?;
        let count = conv_shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let Some(count) = count.filter(|_| !shape.contains(&0)) else {
            return Err(invalid(format!("weight: unsupported shape {shape:?}")));
        };
        let values = weight.slice()?;
        let spread = detached(py, || {
            let mut spread = memory::filled("weights of a transposed convolution", count, 0i8)?;
            sub.spread(values, shape, &mut spread);
            Ok(spread)
        })?;
        let (conv, [[top, bottom], [left, right]]) = (sub.conv(), sub.shuffle().crop);
        let conv_weight = array(py, spread, conv_shape.to_vec())?; // small: four sizes
        Ok((conv_weight, conv.padding, conv.dilation, [top, bottom, left, right]))
    })
}
