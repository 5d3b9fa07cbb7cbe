//! The state of AMX tiles: permission of the operating system, and configuration.

use std::arch::asm;
use std::sync::OnceLock;

/// Rows, and channels, of a tile.
pub(crate) const SIDE: usize = 16;
/// Bytes of the reduction in a tile.
pub(crate) const DEPTH: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE: usize = SIDE * DEPTH;

/// Whether the operating system lets this process use tiles. Only where the CPU has them.
pub(crate) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(request_tiles)
}

/// Asks the kernel for the tiles' state (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`),
/// once for all threads.
fn request_tiles() -> bool {
    let answer: i64;
    // SAFETY: the system call takes two numbers, touches no memory, and changes registers as
    // declared.
    unsafe {
        asm!("syscall", inlateout("rax") 158i64 => answer, in("rdi") 0x1023, in("rsi") 18, out("rcx") _, out("r11") _,
            options(nostack));
    }
    answer == 0
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
pub(crate) unsafe fn configure() {
    // SAFETY: the configuration is 64 bytes; the caller vouches for the rest.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags))
    };
}

/// Gives tiles back.
///
/// # Safety
/// Tiles were configured by [`configure`].
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: as the caller promises.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}
