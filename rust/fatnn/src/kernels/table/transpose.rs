//! Transposes a square matrix of `n` rows in `log₂ n` passes. Each pass interleaves the elements of
//! rows `i` and `i + n/2`, which become rows `2 i` and `2 i + 1`.

/// Side of a transposed block of bytes.
pub(super) const BYTE_SIDE: usize = 16;
/// Side of a transposed block of 16-bit words.
pub(super) const WORD_SIDE: usize = 8;

#[inline(always)]
pub(super) fn transpose_bytes(
    mut rows: [[u8; BYTE_SIDE]; BYTE_SIDE],
) -> [[u8; BYTE_SIDE]; BYTE_SIDE] {
    for _ in 0..4 {
        let mut next = rows;
        for i in 0..BYTE_SIDE / 2 {
            [next[2 * i], next[2 * i + 1]] = interleave_bytes(rows[i], rows[i + BYTE_SIDE / 2]);
        }
        rows = next;
    }
    rows
}

#[inline(always)]
pub(super) fn transpose_words(
    mut rows: [[u16; WORD_SIDE]; WORD_SIDE],
) -> [[u16; WORD_SIDE]; WORD_SIDE] {
    for _ in 0..3 {
        let mut next = rows;
        for i in 0..WORD_SIDE / 2 {
            [next[2 * i], next[2 * i + 1]] = interleave_words(rows[i], rows[i + WORD_SIDE / 2]);
        }
        rows = next;
    }
    rows
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleave_bytes(a: [u8; BYTE_SIDE], b: [u8; BYTE_SIDE]) -> [[u8; BYTE_SIDE]; 2] {
    use std::arch::x86_64::*;
    // SAFETY: vectors and arrays have 16 bytes and any bytes are valid in both; every x86-64 CPU
    // has SSE2.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u8; BYTE_SIDE]; 2], [__m128i; 2]>([a, b]);
        std::mem::transmute::<[__m128i; 2], [[u8; BYTE_SIDE]; 2]>([
            _mm_unpacklo_epi8(a, b),
            _mm_unpackhi_epi8(a, b),
        ])
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleave_words(a: [u16; WORD_SIDE], b: [u16; WORD_SIDE]) -> [[u16; WORD_SIDE]; 2] {
    use std::arch::x86_64::*;
    // SAFETY: as above.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u16; WORD_SIDE]; 2], [__m128i; 2]>([a, b]);
        std::mem::transmute::<[__m128i; 2], [[u16; WORD_SIDE]; 2]>([
            _mm_unpacklo_epi16(a, b),
            _mm_unpackhi_epi16(a, b),
        ])
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn interleave_bytes(a: [u8; BYTE_SIDE], b: [u8; BYTE_SIDE]) -> [[u8; BYTE_SIDE]; 2] {
    use std::arch::aarch64::*;
    // SAFETY: vectors and arrays have 16 bytes and any bytes are valid in both; every AArch64 CPU
    // has these instructions.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u8; BYTE_SIDE]; 2], [uint8x16_t; 2]>([a, b]);
        std::mem::transmute::<[uint8x16_t; 2], [[u8; BYTE_SIDE]; 2]>([
            vzip1q_u8(a, b),
            vzip2q_u8(a, b),
        ])
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn interleave_words(a: [u16; WORD_SIDE], b: [u16; WORD_SIDE]) -> [[u16; WORD_SIDE]; 2] {
    use std::arch::aarch64::*;
    // SAFETY: as above.
    unsafe {
        let [a, b] = std::mem::transmute::<[[u16; WORD_SIDE]; 2], [uint16x8_t; 2]>([a, b]);
        std::mem::transmute::<[uint16x8_t; 2], [[u16; WORD_SIDE]; 2]>([
            vzip1q_u16(a, b),
            vzip2q_u16(a, b),
        ])
    }
}
