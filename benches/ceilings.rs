//! The machine's ceiling: the int8 products per second of the best instruction, with no other work.
//!
//! A loop of independent 512-bit `vpdpbusd` (64 products each) bounds every int8 runtime without a
//! matrix unit. On CPUs without VNNI, the bound is 256-bit `vpmaddubsw` + `vpmaddwd` + `vpaddd` (32
//! products).

/// The instruction that [`int8`] measures on this machine, or `None` if there is none.
pub fn int8_name() -> Option<&'static str> {
    let features = fatnn::cpu::Features::detected();
    match (features.avx512_vnni, features.avx2) {
        (true, _) => Some("vpdpbusd, 512 bits"),
        (false, true) => Some("vpmaddubsw + vpmaddwd, 256 bits"),
        (false, false) => None,
    }
}

/// Runs the int8 loop for some microseconds, and returns the number of products. The result means
/// nothing if [`int8_name`] is `None`.
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

/// Other architectures have no measured ceiling.
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
    // Twelve chains exceed latency × throughput on all CPUs so far.
    let mut sums = [_mm512_setzero_si512(); 12];
    let (a, b) = std::hint::black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(-1)));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
        // Keeps the compiler from noticing that all chains are equal.
        sums = opaque(sums);
    }
    std::hint::black_box(sums);
    STEPS * 12 * 64
}

/// Returns `v`, hidden from the optimizer, still in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn opaque(mut v: [std::arch::x86_64::__m512i; 12]) -> [std::arch::x86_64::__m512i; 12] {
    for v in &mut v {
        // SAFETY: the template is a comment without any instruction; it only names a register.
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
            // SAFETY: the template is a comment without any instruction; it only names a register,
            // which keeps the product in the loop.
            unsafe {
                std::arch::asm!(
                    "/* {0} */",
                    inout(ymm_reg) pairs,
                    options(pure, nomem, nostack, preserves_flags)
                )
            };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    std::hint::black_box(sums);
    STEPS * 8 * 32
}
