//! Shared by [`super::trits`] and [`super::base3`]: `N` codes per byte as base-3 digits, least
//! significant digit first.

use crate::codec::check_codes;
use crate::error::{Result, bad_value, check_len};

/// The digits of every byte, minus one. Entries from `3^N` on are unused: such bytes are invalid.
const fn table<const N: usize>() -> [[i8; N]; 256] {
    let mut table = [[0i8; N]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut rest, mut i) = (byte, 0);
        while i < N {
            table[byte][i] = (rest % 3) as i8 - 1;
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
}

/// Lookup table from a byte to its `N` codes.
struct Table<const N: usize>;

impl<const N: usize> Table<N> {
    const CODES: [[i8; N]; 256] = table::<N>();
    const STATES: usize = 3usize.pow(N as u32);
}

#[inline(always)]
fn byte(codes: &[i8]) -> u8 {
    codes.iter().rev().fold(0, |sum, &code| sum * 3 + (code + 1) as u8)
}

/// Packs `codes` into `codes.len().div_ceil(N)` bytes; code 0 pads the last one.
pub(super) fn encode<const N: usize>(
    what: &'static str,
    codes: &[i8],
    out: &mut [u8],
) -> Result<()> {
    check_len(what, codes.len().div_ceil(N), out.len())?;
    check_codes("codes", codes)?;
    let whole = codes.chunks_exact(N);
    let tail = whole.remainder();
    for (codes, out) in whole.zip(out.iter_mut()) {
        *out = byte(codes);
    }
    if !tail.is_empty() {
        let mut last = [0i8; N];
        last[..tail.len()].copy_from_slice(tail);
        out[codes.len() / N] = byte(&last);
    }
    Ok(())
}

/// The inverse of [`encode`]; rejects bytes that [`encode`] never writes.
pub(super) fn decode<const N: usize>(
    what: &'static str,
    bytes: &[u8],
    codes: &mut [i8],
) -> Result<()> {
    let n = codes.len();
    check_len(what, n.div_ceil(N), bytes.len())?;
    let states = Table::<N>::STATES;
    if let Some(at) = bytes.iter().position(|&b| usize::from(b) >= states) {
        return bad_value(
            what,
            format!("bytes below {states}"),
            format!("{} at byte {at}", bytes[at]),
        );
    }
    for (&byte, codes) in bytes.iter().zip(codes.chunks_mut(N)) {
        codes.copy_from_slice(&Table::<N>::CODES[usize::from(byte)][..codes.len()]);
    }
    let unused = n.next_multiple_of(N) - n;
    if let Some(&last) = bytes.last()
        && Table::<N>::CODES[usize::from(last)][N - unused..].iter().any(|&code| code != 0)
    {
        return bad_value(
            what,
            format!("code 0 in the {unused} unused digits of the last byte"),
            last,
        );
    }
    Ok(())
}
