//! The matrix family for Intel AMX (Sapphire Rapids and later), on Linux.
//!
//! `tdpbssd` multiplies 16×64 by 64×16 int8 in 16 cycles, 1024 products a cycle: eight times what `vpdpbusd` reaches on the
//! same core, five times what the popcount kernel does. Two row tiles × two channel tiles share their operands, so that four
//! products take four tile loads. Weights are expanded from their planes for at most [`STRETCH`] units at a time, 32 KB that
//! stay in the first-level cache while the block's rows pass by; accumulators wait in memory between stretches.
//!
//! Tiles are instructions that compilers do not emit, so the state needs no care but this: configured at the start of a call,
//! released at its end.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::{Family, Kernel, Layout, TileRows, Tiles, epilogue_methods};
use crate::cpu::{Features, Isa};

/// Rows, and channels, of a hardware tile.
const SIDE: usize = 16;
/// Channels in a panel: two hardware tiles.
const NR: usize = 2 * SIDE;
/// Positions of the reduction in a hardware tile: one unit.
const DEPTH: usize = 64;
/// Bytes of a hardware tile.
const TILE: usize = SIDE * DEPTH;
/// Most units whose weights are expanded at a time.
const STRETCH: usize = 16;
/// Bytes of a panel's weights for one unit.
const UNIT_BYTES: usize = NR * 16;
#[derive(Debug)]
struct Amx;

/// Where the CPU has AMX with int8 and AVX-512, and the operating system lets this process use it.
pub(super) fn make(features: Features) -> Option<&'static dyn Kernel> {
    (features.amx_int8 && allowed()).then_some(&Amx)
}

/// Whether the operating system lets this process use tiles. Only where the CPU has them.
pub(super) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(request_tiles)
}

/// Asks the kernel for the tiles' state (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`), once for all threads.
fn request_tiles() -> bool {
    let answer: i64;
    // SAFETY: the system call takes two numbers, touches no memory, and changes registers as declared.
    unsafe {
        asm!("syscall", inlateout("rax") 158i64 => answer, in("rdi") 0x1023, in("rsi") 18, out("rcx") _, out("r11") _,
            options(nostack));
    }
    answer == 0
}

impl Kernel for Amx {
    fn name(&self) -> &'static str {
        "x86_64-matrix-amx"
    }

    fn isa(&self) -> Isa {
        Isa::Avx512
    }

    fn layout(&self) -> Layout {
        Layout { family: Family::Matrix, nr: NR, lanes: SIDE }
    }

    fn mr(&self) -> usize {
        SIDE
    }

    fn block(&self) -> usize {
        128
    }

    fn expand(&self, rows: &TileRows<'_>, expanded: &mut Vec<u8>) {
        expanded.resize(rows.count() * rows.taps().len() * rows.units() * DEPTH, 0);
        // SAFETY: `self` exists, so `make` saw AVX-512.
        unsafe { expand(rows, expanded) }
    }

    fn tiles(&self, tiles: &Tiles<'_>, acc: &mut [i32]) {
        assert_eq!(tiles.expanded().len(), tiles.count() * tiles.taps().len() * tiles.units() * DEPTH);
        assert_eq!(acc.len(), tiles.count() * NR);
        // SAFETY: `self` exists, so `make` saw AVX-512 and AMX and was allowed tiles; sizes were checked.
        unsafe { run(tiles, acc) }
    }

    epilogue_methods!(
        NR,
        at_least,
        super::popcount_avx512::float_at_least,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
    );
}

/// Codes as int8, in hardware tiles: for every 16 rows, for every unit, 16 rows of 64 bytes.
#[target_feature(enable = "avx512f,avx512bw")]
fn expand(rows: &TileRows<'_>, expanded: &mut [u8]) {
    let (one, minus_one) = (_mm512_set1_epi8(1), _mm512_set1_epi8(-1));
    let depth = rows.taps().len() * rows.units();
    for (rows_16, out) in rows.rows::<SIDE>().zip(expanded.chunks_exact_mut(depth * TILE)) {
        for (r, row) in rows_16.into_iter().enumerate() {
            let mut unit = 0;
            for &tap in rows.taps() {
                let mut at = row.wrapping_add(tap).cast::<u64>();
                for _ in 0..rows.units() {
                    // SAFETY: `TileRows::new` checked `units` units of 16 bytes at every tap; `out` has `depth` tiles.
                    unsafe {
                        let (z, p) = (at.read_unaligned(), at.add(1).read_unaligned());
                        let code = _mm512_maskz_mov_epi8(!z, _mm512_mask_blend_epi8(p, minus_one, one));
                        _mm512_storeu_si512(out.as_mut_ptr().add(unit * TILE + r * DEPTH).cast(), code);
                    }
                    at = at.wrapping_add(2);
                    unit += 1;
                }
            }
        }
    }
}

/// The configuration of all eight tiles: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig([u8; 64]);

static CONFIG: TileConfig = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = SIDE as u8;
        tile += 1;
    }
    TileConfig(config)
};

/// Configures this thread's tiles, until [`release`].
///
/// # Safety
/// AMX must be there and [`allowed`]; no other code of this thread holds tiles meanwhile.
#[inline(always)]
pub(super) unsafe fn configure() {
    // SAFETY: the configuration is 64 bytes; the caller vouches for the rest.
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags)) };
}

/// Gives tiles back.
///
/// # Safety
/// Tiles were configured by [`configure`].
#[inline(always)]
pub(super) unsafe fn release() {
    // SAFETY: as the caller promises.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// Weights of a stretch, expanded, in hardware tiles.
#[repr(C, align(64))]
struct Stretch([MaybeUninit<u8>; STRETCH * 2 * TILE]);

/// # Safety
/// AMX and AVX-512 must be there; `tiles.expanded()` must be of `tiles`' rows, and `acc` have `NR` elements per row.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn run(tiles: &Tiles<'_>, acc: &mut [i32]) {
    let units = tiles.taps().len() * tiles.units();
    assert!(units > 0, "the loops run at least once");
    let stretches = units.div_ceil(STRETCH);
    let longest = units.div_ceil(stretches);
    let offsets = tiles.panel()[units * UNIT_BYTES..].as_ptr();
    // Not initialised: 32 KB of zeroes for every call would take a tenth of it.
    let mut stretch = Stretch([MaybeUninit::uninit(); STRETCH * 2 * TILE]);
    // SAFETY: as the caller promises; no other code of this thread holds tiles meanwhile.
    unsafe { configure() };
    for first in (0..units).step_by(longest) {
        let count = longest.min(units - first);
        expand_weights(&tiles.panel()[first * UNIT_BYTES..(first + count) * UNIT_BYTES], &mut stretch.0);
        let mut row = 0;
        while row < tiles.count() {
            let two = row + SIDE < tiles.count();
            // Accumulators start at the channel's offset, or where the last stretch left them.
            let out = acc[row * NR..].as_mut_ptr();
            let (start, start_stride) = match first {
                0 => (offsets, 0),
                _ => (out.cast_const().cast::<u8>(), NR * 4),
            };
            let a = tiles.expanded()[(row / SIDE * units + first) * TILE..].as_ptr();
            // SAFETY: rows `row .. row + 16` (or 32, where `two`) of `expanded` have `count` units from `first` on; `stretch`
            // was written for `count` units of two tiles; `out` and, where it is not the offsets, `start` have as many rows of `NR`.
            unsafe {
                let b = stretch.0.as_ptr().cast();
                if two {
                    pair(a, units * TILE, b, count, start, start_stride, out);
                } else {
                    single(a, b, count, start, start_stride, out);
                }
            }
            row += if two { 2 * SIDE } else { SIDE };
        }
    }
    // SAFETY: releases what this function configured.
    unsafe { release() };
}

/// Planes of units of weights to int8, in hardware tiles.
#[target_feature(enable = "avx512f,avx512bw")]
fn expand_weights(planes: &[u8], out: &mut [MaybeUninit<u8>]) {
    let (one, minus_one) = (_mm512_set1_epi8(1), _mm512_set1_epi8(-1));
    for (pair, out) in planes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        let pair = u128::from_le_bytes(*pair);
        let (s, n) = (pair as u64, (pair >> 64) as u64);
        let weight = _mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(n, one), s, minus_one);
        // SAFETY: `out` has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), weight) };
    }
}

/// 32 rows × 32 channels over `count` units; the lower rows' tiles begin `next_tile` bytes behind the upper ones'.
///
/// # Safety
/// Tiles are configured; all addresses hold what [`run`] says.
#[inline(always)]
unsafe fn pair(
    a: *const u8,
    next_tile: usize,
    b: *const u8,
    count: usize,
    start: *const u8,
    start_stride: usize,
    out: *mut i32,
) {
    // SAFETY: the caller vouches for every address; the second row tile begins 16 rows below the first.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {cs}*1]",
            "tileloadd tmm1, [{c} + {cs}*1 + 64]",
            "tileloadd tmm2, [{d} + {cs}*1]",
            "tileloadd tmm3, [{d} + {cs}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {bs}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tileloadd tmm7, [{b} + {bs}*1 + 1024]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{e} + {bs}*1]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {e}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{o} + {os}*1 + 64], tmm1",
            "tilestored [{p} + {os}*1], tmm2",
            "tilestored [{p} + {os}*1 + 64], tmm3",
            a = inout(reg) a => _,
            e = inout(reg) a.wrapping_add(next_tile) => _,
            b = inout(reg) b => _,
            bs = in(reg) DEPTH,
            n = inout(reg) count => _,
            c = in(reg) start,
            d = in(reg) start.wrapping_add(SIDE * start_stride),
            cs = in(reg) start_stride,
            o = in(reg) out,
            p = in(reg) out.wrapping_add(SIDE * NR),
            os = in(reg) NR * 4,
            options(nostack)
        );
    }
}

/// 16 rows × 32 channels over `count` units.
///
/// # Safety
/// As [`pair`].
#[inline(always)]
unsafe fn single(a: *const u8, b: *const u8, count: usize, start: *const u8, start_stride: usize, out: *mut i32) {
    // SAFETY: the caller vouches for every address.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {cs}*1]",
            "tileloadd tmm1, [{c} + {cs}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {bs}*1]",
            "tileloadd tmm6, [{b} + {bs}*1]",
            "tileloadd tmm7, [{b} + {bs}*1 + 1024]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{o} + {os}*1], tmm0",
            "tilestored [{o} + {os}*1 + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            bs = in(reg) DEPTH,
            n = inout(reg) count => _,
            c = in(reg) start,
            cs = in(reg) start_stride,
            o = in(reg) out,
            os = in(reg) NR * 4,
            options(nostack)
        );
    }
}

/// [`crate::epilogue::at_least`]: two comparisons into masks.
#[target_feature(enable = "avx512f")]
#[inline]
fn at_least(acc: &[i32; NR], threshold: &[i32; NR]) -> u64 {
    let half = |i: usize| {
        // SAFETY: both arrays have two vectors.
        let (acc, threshold) = unsafe {
            (
                _mm512_loadu_si512(acc.as_ptr().add(i * 16).cast()),
                _mm512_loadu_si512(threshold.as_ptr().add(i * 16).cast()),
            )
        };
        u64::from(_mm512_cmpge_epi32_mask(acc, threshold))
    };
    half(0) | half(1) << 16
}
