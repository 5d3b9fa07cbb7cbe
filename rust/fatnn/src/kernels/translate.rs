//! Replaces bytes, or values that are rounded to bytes, by the entries of a table.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use crate::cpu::Features;
use crate::error::Result;
#[cfg(target_arch = "x86_64")]
use crate::kernels::isa::avx512::ByteEncoder;
#[cfg(target_arch = "x86_64")]
use crate::scalar::Encoder;
use crate::scalar::Lookup;

/// Replaces each byte by its entry of the table, with the best instruction set that may be used.
///
/// # Errors
/// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
pub(crate) fn translate(bytes: &mut [u8], table: &[u8; 256]) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if Features::usable()?.avx512_vbmi {
        // SAFETY: the CPU has VBMI, and so AVX-512 F and BW.
        unsafe { translate_avx512(bytes, table) };
        return Ok(());
    }
    bytes.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
    Ok(())
}

/// [`translate`]: 64 lookups take two permutations of half of the table each, and a choice by the
/// highest bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn translate_avx512(bytes: &mut [u8], table: &[u8; 256]) {
    let table = load_table(table);
    let (whole, rest) = bytes.as_chunks_mut::<64>();
    for bytes in whole {
        // SAFETY: the array has 64 bytes.
        unsafe {
            let x = _mm512_loadu_si512(bytes.as_ptr().cast());
            _mm512_storeu_si512(bytes.as_mut_ptr().cast(), translated(&table, x));
        }
    }
    let valid = (1u64 << rest.len()) - 1;
    // SAFETY: `valid` has a bit for each of the remaining bytes, fewer than 64.
    unsafe {
        let x = _mm512_maskz_loadu_epi8(valid, rest.as_ptr().cast());
        _mm512_mask_storeu_epi8(rest.as_mut_ptr().cast(), valid, translated(&table, x));
    }
}

/// A table in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn load_table(table: &[u8; 256]) -> [__m512i; 4] {
    let mut parts = [_mm512_setzero_si512(); 4];
    for (part, table) in parts.iter_mut().zip(table.as_chunks::<64>().0) {
        // SAFETY: a part has 64 bytes.
        *part = unsafe { _mm512_loadu_si512(table.as_ptr().cast()) };
    }
    parts
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn translated(table: &[__m512i; 4], x: __m512i) -> __m512i {
    let low = _mm512_permutex2var_epi8(table[0], x, table[1]);
    let high = _mm512_permutex2var_epi8(table[2], x, table[3]);
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high)
}

/// Applies a function whose results are rounded to eight bits, in vectors. Returns the rest of the
/// values, which are fewer than a vector, or all of them if the function or the CPU is another.
///
/// # Errors
/// [`crate::Error::Environment`] if a `FATNN_*` variable has an invalid value.
pub(crate) fn lookup_in_vectors<'a>(lookup: &Lookup, x: &'a mut [f32]) -> Result<&'a mut [f32]> {
    #[cfg(target_arch = "x86_64")]
    if let Some((rounds, bytes)) = lookup.rounded()
        && Features::usable()?.avx512_vbmi
    {
        let encoder = lookup.quantizer().encoder();
        // SAFETY: the CPU has VBMI, and so AVX-512 F and BW.
        return Ok(unsafe { lookup_avx512(encoder, bytes, rounds.step_and_zero(), x) });
    }
    let _ = lookup;
    Ok(x)
}

/// [`lookup_in_vectors`]: encodes 64 values, translates their bytes and converts these.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,fma")]
fn lookup_avx512<'a>(
    encoder: Encoder,
    table: &[u8; 256],
    [step, zero]: [f32; 2],
    x: &'a mut [f32],
) -> &'a mut [f32] {
    let table = load_table(table);
    let encoder = ByteEncoder::new(&encoder);
    let (step, zero) = (_mm512_set1_ps(step), _mm512_set1_ps(zero));
    let (whole, rest) = x.as_chunks_mut::<64>();
    for x in whole {
        let mut values = [_mm512_setzero_ps(); 4];
        let mut codes = [_mm512_setzero_si512(); 4];
        for (v, (value, code)) in values.iter_mut().zip(&mut codes).enumerate() {
            // SAFETY: the array has 64 floats.
            *value = unsafe { _mm512_loadu_ps(x.as_ptr().add(v * 16)) };
            *code = encoder.code(*value);
        }
        let packed = translated(&table, encoder.pack(codes));
        let codes = [
            _mm512_castsi512_si128(packed),
            _mm512_extracti32x4_epi32::<1>(packed),
            _mm512_extracti32x4_epi32::<2>(packed),
            _mm512_extracti32x4_epi32::<3>(packed),
        ];
        for (v, (value, code)) in values.iter().zip(codes).enumerate() {
            let result =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)), step, zero);
            // NaN stays.
            let ordered = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(*value, *value);
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr().add(v * 16), ordered, result) };
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::{Int8Quantizer, Scalar};

    #[test]
    fn vectors_look_up_what_the_plain_loop_does() {
        for ([low, high], [out_low, out_high]) in
            [([-127, 127], [0, 255]), ([0, 255], [-128, 127]), ([-3, 9], [-1, 1])]
        {
            let quantizer = Int8Quantizer::new(0.1, low, high).unwrap();
            let rounds = Int8Quantizer::new(0.037, out_low, out_high).unwrap();
            let table: Vec<f32> =
                (low..=high).map(|code| (code as f32 * 0.7).sin() * 4.0).collect();
            let lookup = Lookup::new(quantizer, &table).unwrap().then(Scalar::FakeQuantize(rounds));
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.05, -0.15, 1e30];
            let x: Vec<f32> = (0..330)
                .map(|i| if i % 9 == 4 { special[i / 9 % 7] } else { (i as f32 - 165.0) * 0.11 })
                .collect();
            for len in [0, 1, 63, 64, 65, 192, 330] {
                let (mut got, mut expected) = (x[..len].to_vec(), x[..len].to_vec());
                let rest = lookup_in_vectors(&lookup, &mut got).unwrap();
                lookup.apply(rest);
                lookup.apply(&mut expected);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&expected), "{len} values, codes {low} to {high}");
            }
        }
    }

    #[test]
    fn every_byte_and_every_length() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        for len in (0..=130).chain([255, 256, 1000]) {
            let x: Vec<u8> = (0..len).map(|i| (i * 151 + len) as u8).collect();
            let mut got = x.clone();
            translate(&mut got, &table).unwrap();
            let expected: Vec<u8> = x.iter().map(|&x| table[usize::from(x)]).collect();
            assert_eq!(got, expected, "{len}");
        }
    }
}
