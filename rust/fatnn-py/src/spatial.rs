//! A transposed convolution as an ordinary one whose pixels are blocks of pixels.

use fatnn::graph::ConvParams;
use fatnn::graph::spatial::{ConvTranspose, SubPixel};
use fatnn::memory;
use numpy::PyArrayDyn;
use pyo3::prelude::*;

use crate::array::{In, array};
use crate::conv::Pair;
use crate::errors::{detached, guarded, input_error};

/// The int8 weight of the ordinary convolution, its padding and dilation, and the rows and columns
/// to cut afterwards: top, bottom, left, right.
type Made<'py> = (Bound<'py, PyArrayDyn<i8>>, Pair, Pair, [usize; 4]);

/// Weight codes of a transposed convolution (channels, n / groups, height, width) as those of a
/// convolution of stride 1 with `n` channels for every pixel of a block of the size of the stride.
/// Blocks of a group's channels stand one after the other; taps that a pixel of a block does not
/// have are 0.
#[pyfunction]
pub(crate) fn sub_pixel<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: usize,
) -> PyResult<Made<'py>> {
    guarded(py, || {
        let weight = In::<i8>::new(weight, "weight", Some(4))?;
        let &[channels, out, height, width] = weight.shape() else {
            unreachable!("four axes were checked")
        };
        let shape = [channels, out, height, width];
        let params = ConvParams { kernel: [height, width], stride, padding, dilation };
        let layer = ConvTranspose { axes: 2, params, output_padding, groups };
        let wrong = |why: String| input_error(py, &why);
        let sub = SubPixel::new(&layer, params.kernel).map_err(wrong)?;
        let made = sub.weight_shape(shape).map_err(wrong)?;
        let count = made.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let Some(count) = count.filter(|_| !shape.contains(&0)) else {
            return Err(wrong(format!("weight: its shape {shape:?} cannot be spread")));
        };
        let values = weight.slice()?;
        let spread = detached(py, || {
            let mut spread = memory::filled("weights of a transposed convolution", count, 0i8)?;
            sub.spread(values, shape, &mut spread);
            Ok(spread)
        })?;
        let (conv, [[top, bottom], [left, right]]) = (sub.conv(), sub.shuffle().crop);
        let made = array(py, spread, made.to_vec())?; // small: four sizes
        Ok((made, conv.padding, conv.dilation, [top, bottom, left, right]))
    })
}
