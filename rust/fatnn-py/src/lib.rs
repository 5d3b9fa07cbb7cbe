//! `fatnn_rs._core`: the Python bindings of the core. Each function checks its arrays, releases the
//! GIL, calls the core and converts its errors; it computes nothing itself. `fatnn_rs.ops`
//! documents the arguments for users.

use fatnn::dtype::CodeType;
use fatnn::net;
use pyo3::prelude::*;

mod array;
mod codes;
mod conv;
mod errors;
mod file;
mod graph;
mod info;
mod network;
mod spatial;
mod weights;

/// The Rust core of fatnn-rs.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("FORMAT_VERSION", net::FORMAT_VERSION)?;
    module.add("MAX_BYTES", net::Limits::DEFAULT.max_bytes)?;
    module.add("MAX_MACS", net::Limits::DEFAULT.max_macs)?;
    module.add("CODE_TYPES", CodeType::ALL.map(CodeType::name))?;
    module.add_class::<network::Network>()?;
    for function in [
        wrap_pyfunction!(info::cpu_info, module)?,
        wrap_pyfunction!(info::int8_kernel_for, module)?,
        wrap_pyfunction!(info::kernel_for, module)?,
        wrap_pyfunction!(info::kernels_for, module)?,
        wrap_pyfunction!(info::set_num_threads, module)?,
        wrap_pyfunction!(info::set_default_threads, module)?,
        wrap_pyfunction!(info::get_num_threads, module)?,
        wrap_pyfunction!(codes::packed_bytes, module)?,
        wrap_pyfunction!(codes::quantize, module)?,
        wrap_pyfunction!(codes::quantize_steps, module)?,
        wrap_pyfunction!(codes::quantize_steps_gradient, module)?,
        wrap_pyfunction!(codes::channel_dots, module)?,
        wrap_pyfunction!(codes::pack_codes, module)?,
        wrap_pyfunction!(codes::unpack_codes, module)?,
        wrap_pyfunction!(weights::prepack, module)?,
        wrap_pyfunction!(weights::packed_info, module)?,
        wrap_pyfunction!(weights::packed_shape, module)?,
        wrap_pyfunction!(conv::conv_codes, module)?,
        wrap_pyfunction!(conv::conv_float, module)?,
        wrap_pyfunction!(conv::conv_acc, module)?,
        wrap_pyfunction!(codes::max_pool_codes, module)?,
        wrap_pyfunction!(weights::prepack_int8, module)?,
        wrap_pyfunction!(conv::conv_int8, module)?,
        wrap_pyfunction!(file::save, module)?,
        wrap_pyfunction!(file::load, module)?,
        wrap_pyfunction!(file::file_bytes, module)?,
        wrap_pyfunction!(graph::ops, module)?,
        wrap_pyfunction!(graph::check_graph, module)?,
        wrap_pyfunction!(graph::engine_refusal, module)?,
        wrap_pyfunction!(graph::shapes_in_every_run, module)?,
        wrap_pyfunction!(graph::macs, module)?,
        wrap_pyfunction!(graph::graph_report, module)?,
        wrap_pyfunction!(spatial::sub_pixel, module)?,
    ] {
        module.add_function(function)?;
    }
    Ok(())
}
