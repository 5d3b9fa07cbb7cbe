//! The int8 family: products of int8 weights and int8 activations, exact in `i32`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod finish;
mod interleave;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(super) mod neon;
mod quantize;
pub(super) mod scalar;

pub use finish::Finish;
pub(crate) use interleave::{COPY_SLACK, Pixels, interleave, roll};
pub(crate) use quantize::QuantizeInt8;
