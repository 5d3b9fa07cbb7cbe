//! Machine ceilings: what the best instruction for int8 products reaches when nothing else is in
//! its way.
//!
//! A loop of independent `vpdpbusd` on 512 bits (64 products an instruction) bounds every int8
//! runtime that does not use a matrix unit. Where there is no VNNI, the bound is `vpmaddubsw` +
//! `vpmaddwd` + `vpaddd` on 256 bits (32 products).

/// The instruction that [`int8`] measures on this machine, or `None` where none is known to it.
pub fn int8_name() -> Option<&'static str> {
    let features = fatnn::cpu::Features::detected();
    match (features.avx512_vnni, features.avx2) {
        (true, _) => Some("vpdpbusd, 512 bits"),
        (false, true) => Some("vpmaddubsw + vpmaddwd, 256 bits"),
        (false, false) => None,
    }
}

/// Runs the int8 loop for some microseconds; returns the products that it computed: meaningless
/// where [`int8_name`] is `None`.
#[cfg(target_arch = "x86_64")]
pub fn int8() -> usize {
    let features = fatnn::cpu::Features::detected();
    if features.avx512_vnni {
        // SAFETY: the features were just detected.
        unsafe { vnni() }
    } else if features.avx2 {
        // SAFETY: the feature was just detected.
        unsafe { avx2() }
    } else {
        1
    }
}

/// No ceiling is measured on other architectures yet.
#[cfg(not(target_arch = "x86_64"))]
pub fn int8() -> usize {
    1
}

#[cfg(target_arch = "x86_64")]
const STEPS: usize = 1000;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni() -> usize {
    use std::arch::x86_64::*;
    // Twelve chains: more than latency × throughput on every CPU so far.
    let mut sums = [_mm512_setzero_si512(); 12];
    let (a, b) = std::hint::black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(-1)));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
        // Keeps the loop as it is written: otherwise compilers may see that all chains are equal.
        sums = opaque(sums);
    }
    std::hint::black_box(sums);
    STEPS * 12 * 64
}

/// The same values, of which the compiler knows nothing, still in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn opaque(mut v: [std::arch::x86_64::__m512i; 12]) -> [std::arch::x86_64::__m512i; 12] {
    for v in &mut v {
        // SAFETY: no instruction; the register is only named.
        unsafe {
            std::arch::asm!(
                "/* {0} */",
                inout(zmm_reg) * v,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
    }
    v
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2() -> usize {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 8];
    let (a, b, ones) =
        std::hint::black_box((_mm256_set1_epi8(1), _mm256_set1_epi8(-1), _mm256_set1_epi16(1)));
    for _ in 0..STEPS {
        for sum in &mut sums {
            let mut pairs = _mm256_maddubs_epi16(a, b);
            // SAFETY: no instruction; the register is only named, so that the product is not
            // hoisted.
            unsafe {
                std::arch::asm!("/* {0} */", inout(ymm_reg) pairs, options(pure, nomem, nostack, preserves_flags))
            };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    std::hint::black_box(sums);
    STEPS * 8 * 32
}
