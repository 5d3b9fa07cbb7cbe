//! Transposition by interleaving: `log₂ n` times, rows `i` and `i + n/2` become rows `2 i` and `2 i
//! + 1`.

/// Rows of bytes that are transposed together.
pub(super) const RUN: usize = 16;
/// Words, and rows of them, that are transposed together.
pub(super) const WORDS: usize = 8;

#[inline(always)]
pub(super) fn transpose_bytes(mut rows: [[u8; RUN]; RUN]) -> [[u8; RUN]; RUN] {
    for _ in 0..4 {
        let mut next = rows;
        for i in 0..RUN / 2 {
            [next[2 * i], next[2 * i + 1]] = bytes(rows[i], rows[i + RUN / 2]);
        }
        rows = next;
    }
    rows
}

#[inline(always)]
pub(super) fn transpose_words(mut rows: [[u16; WORDS]; WORDS]) -> [[u16; WORDS]; WORDS] {
    for _ in 0..3 {
        let mut next = rows;
        for i in 0..WORDS / 2 {
            [next[2 * i], next[2 * i + 1]] = words(rows[i], rows[i + WORDS / 2]);
        }
        rows = next;
    }
    rows
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn bytes(a: [u8; RUN], b: [u8; RUN]) -> [[u8; RUN]; 2] {
    use std::arch::x86_64::*;
    // SAFETY: vectors and arrays are 16 bytes, any of which are valid in both; every x86-64 CPU has
    // SSE2.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u8; RUN]; 2], [__m128i; 2]>([a, b]);
        std::mem::transmute::<[__m128i; 2], [[u8; RUN]; 2]>([
            _mm_unpacklo_epi8(a, b),
            _mm_unpackhi_epi8(a, b),
        ])
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn words(a: [u16; WORDS], b: [u16; WORDS]) -> [[u16; WORDS]; 2] {
    use std::arch::x86_64::*;
    // SAFETY: as above.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u16; WORDS]; 2], [__m128i; 2]>([a, b]);
        std::mem::transmute::<[__m128i; 2], [[u16; WORDS]; 2]>([
            _mm_unpacklo_epi16(a, b),
            _mm_unpackhi_epi16(a, b),
        ])
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn bytes(a: [u8; RUN], b: [u8; RUN]) -> [[u8; RUN]; 2] {
    use std::arch::aarch64::*;
    // SAFETY: vectors and arrays are 16 bytes, any of which are valid in both; every AArch64 CPU
    // has the instructions.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u8; RUN]; 2], [uint8x16_t; 2]>([a, b]);
        std::mem::transmute::<[uint8x16_t; 2], [[u8; RUN]; 2]>([vzip1q_u8(a, b), vzip2q_u8(a, b)])
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn words(a: [u16; WORDS], b: [u16; WORDS]) -> [[u16; WORDS]; 2] {
    use std::arch::aarch64::*;
    // SAFETY: as above.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u16; WORDS]; 2], [uint16x8_t; 2]>([a, b]);
        std::mem::transmute::<[uint16x8_t; 2], [[u16; WORDS]; 2]>([
            vzip1q_u16(a, b),
            vzip2q_u16(a, b),
        ])
    }
}
