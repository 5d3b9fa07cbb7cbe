//! CPU features. Only this module detects them.
//!
//! [`Features`] is a struct of booleans rather than `bitflags`: kernels read its fields in some
//! forty places, and flags would make each of them longer.

use std::sync::OnceLock;

use crate::config;
use crate::error::Result;

/// Instruction-set tiers, named as in `FATNN_ISA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust.
    Scalar,
    /// AArch64 Advanced SIMD.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Isa {
    /// Its lower-case name, as in `FATNN_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512].into_iter().find(|isa| isa.name() == name)
    }

    /// Whether the limit `cap` allows this tier. A limit of `neon` leaves only `scalar` on x86, and
    /// vice versa.
    fn allowed_under(self, cap: Isa) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Neon => cap == Isa::Neon,
            Isa::Avx2 => matches!(cap, Isa::Avx2 | Isa::Avx512),
            Isa::Avx512 => cap == Isa::Avx512,
        }
    }
}

/// The CPU features that kernels ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// NEON.
    pub neon: bool,
    /// AVX2, FMA and POPCNT.
    pub avx2: bool,
    /// AVX-512 F, BW, DQ and VL; implies `avx2`.
    pub avx512: bool,
    /// `VPOPCNTD/Q`; implies `avx512`.
    pub avx512_vpopcntdq: bool,
    /// `VPERMI2B` and the other VBMI instructions; implies `avx512`.
    pub avx512_vbmi: bool,
    /// `VPDPBUSD` on 512 bits; implies `avx512`.
    pub avx512_vnni: bool,
    /// Affine maps on bits; implies `avx512`.
    pub gfni: bool,
    /// AMX tiles and their int8 products; implies `avx512`. The kernels ask the operating system
    /// for permission to use tiles.
    pub amx_int8: bool,
}

impl Features {
    /// What this CPU has, regardless of `FATNN_ISA`.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Features> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// What kernels may use: the detected features that `FATNN_ISA` allows.
    ///
    /// # Errors
    /// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
    pub fn usable() -> Result<Self> {
        let all = Self::detected();
        Ok(match config::get()?.isa {
            None => all,
            Some(cap) => all.capped(cap),
        })
    }

    fn capped(self, cap: Isa) -> Self {
        let avx512 = Isa::Avx512.allowed_under(cap);
        Features {
            neon: self.neon && Isa::Neon.allowed_under(cap),
            avx2: self.avx2 && Isa::Avx2.allowed_under(cap),
            avx512: self.avx512 && avx512,
            avx512_vpopcntdq: self.avx512_vpopcntdq && avx512,
            avx512_vbmi: self.avx512_vbmi && avx512,
            avx512_vnni: self.avx512_vnni && avx512,
            gfni: self.gfni && avx512,
            amx_int8: self.amx_int8 && avx512,
        }
    }

    /// Names of the features that are present.
    pub fn names(self) -> Vec<&'static str> {
        [
            ("neon", self.neon),
            ("avx2", self.avx2),
            ("avx512", self.avx512),
            ("avx512_vpopcntdq", self.avx512_vpopcntdq),
            ("avx512_vbmi", self.avx512_vbmi),
            ("avx512_vnni", self.avx512_vnni),
            ("gfni", self.gfni),
            ("amx_int8", self.amx_int8),
        ]
        .into_iter()
        .filter_map(|(name, on)| on.then_some(name))
        .collect()
    }
}

/// Whether the CPU is an AMD Zen 4 or later, recognized by its AVX-512. The kernels' costs were
/// measured there.
pub(crate) fn is_zen4() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static AMD: OnceLock<bool> = OnceLock::new();
        *AMD.get_or_init(|| {
            let vendor = raw_cpuid::CpuId::new().get_vendor_info();
            vendor.is_some_and(|vendor| vendor.as_str() == "AuthenticAMD")
                && Features::detected().avx512
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Features {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("popcnt");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    Features {
        neon: false,
        avx2,
        avx512,
        avx512_vpopcntdq: avx512 && is_x86_feature_detected!("avx512vpopcntdq"),
        avx512_vbmi: avx512 && is_x86_feature_detected!("avx512vbmi"),
        avx512_vnni: avx512 && is_x86_feature_detected!("avx512vnni"),
        gfni: avx512 && is_x86_feature_detected!("gfni"),
        amx_int8: avx512
            && raw_cpuid::CpuId::new()
                .get_extended_feature_info()
                .is_some_and(|info| info.has_amx_tile() && info.has_amx_int8()),
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Features {
    Features { neon: std::arch::is_aarch64_feature_detected!("neon"), ..Features::default() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Features {
    Features::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_removes_only_the_features_above_it() {
        let all = Features {
            neon: true,
            avx2: true,
            avx512: true,
            avx512_vpopcntdq: true,
            avx512_vbmi: true,
            avx512_vnni: true,
            gfni: true,
            amx_int8: true,
        };
        assert_eq!(all.capped(Isa::Scalar).names(), Vec::<&str>::new());
        assert_eq!(all.capped(Isa::Avx2).names(), ["avx2"]);
        assert_eq!(all.capped(Isa::Neon).names(), ["neon"]);
        assert_eq!(all.capped(Isa::Avx512).names().len(), 7);
    }

    #[test]
    fn every_isa_name_parses_to_its_own_tier() {
        for isa in [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512] {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("sse9"), None);
    }
}
