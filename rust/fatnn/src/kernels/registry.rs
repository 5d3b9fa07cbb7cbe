//! Every kernel of every family: one table, which tests, benches and the choice go through.

use std::sync::OnceLock;

use super::kernel::{Family, Kernel, OperandTypes};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::matrix;
use super::{depthwise, int8, popcount, table};
use crate::cpu::Features;
use crate::error::{Result, bad_value};

/// Makes a kernel where its features are among those given, and the system allows them.
type KernelCtor = fn(Features) -> Option<&'static dyn Kernel>;

/// Every kernel of this architecture, for each type of operands best first.
const KERNELS: &[KernelCtor] = &[
    #[cfg(target_arch = "x86_64")]
    popcount::avx512::make,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    matrix::amx::make,
    #[cfg(target_arch = "x86_64")]
    popcount::avx2::make,
    #[cfg(target_arch = "x86_64")]
    table::avx512::channels,
    #[cfg(target_arch = "x86_64")]
    table::avx512::pixels,
    #[cfg(target_arch = "x86_64")]
    table::avx2::channels,
    #[cfg(target_arch = "x86_64")]
    table::avx2::pixels,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    popcount::neon::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    table::neon::channels,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    table::neon::pixels,
    popcount::scalar::make,
    table::scalar::make,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    int8::amx::make,
    #[cfg(target_arch = "x86_64")]
    int8::avx512::make,
    #[cfg(target_arch = "x86_64")]
    int8::avx2::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    int8::neon::make,
    int8::scalar::make,
    #[cfg(target_arch = "x86_64")]
    depthwise::avx512::make,
    #[cfg(target_arch = "x86_64")]
    depthwise::avx2::make,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    depthwise::plain::neon,
    depthwise::plain::scalar,
];

fn with(features: Features) -> Vec<&'static dyn Kernel> {
    KERNELS.iter().filter_map(|make| make(features)).collect()
}

/// Every kernel that this CPU can run, without regard to the environment: for tests and benchmarks.
pub fn detected() -> Vec<&'static dyn Kernel> {
    with(Features::detected())
}

/// Those of [`detected`] that run such operands.
pub fn detected_for(operands: impl Into<OperandTypes>) -> Vec<&'static dyn Kernel> {
    let operands = operands.into();
    detected().into_iter().filter(|kernel| operands.supported_by(*kernel)).collect()
}

/// The kernels of every family that this CPU has, below the tier that `FATNN_ISA` sets.
pub(super) fn usable() -> Result<&'static [&'static dyn Kernel]> {
    static USABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let features = Features::usable()?;
    Ok(USABLE.get_or_init(|| with(features)))
}

/// The kernels that this process may run, for each type of operands best first. `FATNN_KERNEL`
/// leaves the kernels of its family, if there are any, and those of int8 layers; a family other
/// than `matrix` keeps these off matrix units.
///
/// # Errors
/// [`crate::Error::Environment`] where a `FATNN_*` variable has a meaningless value.
pub fn available() -> Result<&'static [&'static dyn Kernel]> {
    static AVAILABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let usable = usable()?;
    let family = crate::config::get()?.family;
    Ok(AVAILABLE.get_or_init(|| {
        let of = |kernel: &&dyn Kernel| kernel.layout().family;
        // A family that this CPU does not have restricts no codes.
        let have = family.is_some_and(|family| usable.iter().any(|kernel| of(kernel) == family));
        let allowed = |kernel: &&'static dyn Kernel| match (of(kernel), family) {
            (_, None) => true,
            (Family::Int8, Some(family)) => family == Family::Matrix || !kernel.uses_matrix_unit(),
            (other, Some(family)) => other == family || !have,
        };
        usable.iter().copied().filter(allowed).collect()
    }))
}

/// The kernels that may run these operands, best first: of those that [`available`] gives or, where
/// none of these can, of all families.
///
/// # Errors
/// As [`available`].
pub fn available_for(operands: impl Into<OperandTypes>) -> Result<Vec<&'static dyn Kernel>> {
    let operands = operands.into();
    let able = |kernels: &[&'static dyn Kernel]| -> Vec<_> {
        kernels.iter().copied().filter(|kernel| operands.supported_by(*kernel)).collect()
    };
    let found = able(available()?);
    Ok(if found.is_empty() { able(usable()?) } else { found })
}

/// The kernel of that name, without regard to the environment: for tests and benchmarks.
///
/// # Errors
/// [`crate::Error::Value`] where this CPU has none.
pub fn named(name: &str) -> Result<&'static dyn Kernel> {
    let kernels = detected();
    match kernels.iter().find(|kernel| kernel.name() == name) {
        Some(&kernel) => Ok(kernel),
        None => {
            let names: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
            let expected = format!("one that this CPU has: {}", names.join(", "));
            bad_value("kernel", expected, format!("{name:?}"))
        }
    }
}

/// The best kernel that reads weights of the layout with this id, and runs these operands.
///
/// # Errors
/// [`crate::Error::Packed`] where there is none; as [`available`].
pub(crate) fn for_layout(
    id: u32,
    operands: impl Into<OperandTypes>,
) -> Result<&'static dyn Kernel> {
    let operands = operands.into();
    let found = available_for(operands)?.into_iter().find(|kernel| kernel.layout_id() == id);
    found.ok_or_else(|| {
        let kind = if operands.act().is_none() { "int8 " } else { "" };
        let why = format!("they are laid out for another CPU's {kind}kernel (layout {id:#x})");
        crate::Error::Packed { why }
    })
}
