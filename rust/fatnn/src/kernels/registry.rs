//! One table with every kernel of every family. Tests, benchmarks and the choice of kernels use it.

use std::sync::OnceLock;

use super::kernel::{Family, Kernel, OperandTypes};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::matrix;
use super::{depthwise, int8, popcount, table};
use crate::cpu::Features;
use crate::error::{Result, bad_value};

/// Returns a kernel if `Features` has what it needs and the operating system allows it.
type KernelCtor = fn(Features) -> Option<&'static dyn Kernel>;

/// Every kernel of this architecture. For each operand type, preferred kernels come first.
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
    #[cfg(target_arch = "x86_64")]
    super::dot::avx512::make,
    #[cfg(target_arch = "x86_64")]
    popcount::taps::make,
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

fn kernels_with(features: Features) -> Vec<&'static dyn Kernel> {
    KERNELS.iter().filter_map(|make| make(features)).collect()
}

/// Every kernel that this CPU can run, ignoring environment variables. For tests and benchmarks.
pub fn detected() -> Vec<&'static dyn Kernel> {
    kernels_with(Features::detected())
}

/// The kernels of [`detected`] that run these operands.
pub fn detected_for(operands: impl Into<OperandTypes>) -> Vec<&'static dyn Kernel> {
    let operands = operands.into();
    detected().into_iter().filter(|kernel| operands.supported_by(*kernel)).collect()
}

/// Kernels of all families that this CPU has, up to the tier that `FATNN_ISA` sets.
pub(super) fn usable() -> Result<&'static [&'static dyn Kernel]> {
    static USABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let features = Features::usable()?;
    Ok(USABLE.get_or_init(|| kernels_with(features)))
}

/// The kernels that this process may run. For each operand type, preferred kernels come first.
///
/// If `FATNN_KERNEL` names a family and this CPU has kernels of it, only these and int8 kernels are
/// left. Int8 kernels that use a matrix unit are left only if that family is `matrix`.
///
/// # Errors
/// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
pub fn available() -> Result<&'static [&'static dyn Kernel]> {
    static AVAILABLE: OnceLock<Vec<&'static dyn Kernel>> = OnceLock::new();
    let usable = usable()?;
    let family = crate::config::get()?.family;
    Ok(AVAILABLE.get_or_init(|| {
        let family_of = |kernel: &&dyn Kernel| kernel.layout().family;
        // If this CPU lacks that family, the variable does not restrict kernels of packed codes.
        let family_exists =
            family.is_some_and(|family| usable.iter().any(|kernel| family_of(kernel) == family));
        let allowed = |kernel: &&'static dyn Kernel| match (family_of(kernel), family) {
            (_, None) => true,
            (Family::Int8, Some(family)) => family == Family::Matrix || !kernel.uses_matrix_unit(),
            (other, Some(family)) => other == family || !family_exists,
        };
        usable.iter().copied().filter(allowed).collect()
    }))
}

/// The kernels that may run these operands, best first. They come from [`available`], or from all
/// families if [`available`] has none.
///
/// # Errors
/// As [`available`].
pub fn available_for(operands: impl Into<OperandTypes>) -> Result<Vec<&'static dyn Kernel>> {
    let operands = operands.into();
    let supporting = |kernels: &[&'static dyn Kernel]| -> Vec<_> {
        kernels.iter().copied().filter(|kernel| operands.supported_by(*kernel)).collect()
    };
    let found = supporting(available()?);
    Ok(if found.is_empty() { supporting(usable()?) } else { found })
}

/// The kernel with this name, ignoring environment variables. For tests and benchmarks.
///
/// # Errors
/// [`crate::Error::Value`] if this CPU has no such kernel.
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

/// The best kernel that reads weights with this layout id and runs these operands.
///
/// # Errors
/// [`crate::Error::Packed`] if there is none; otherwise as [`available`].
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
