//! AMX tiles: the permission of the operating system to use them, and their configuration.

use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile. Also its columns of 32 bits.
pub(crate) const SIDE: usize = 16;
/// Bytes in a row of a tile: 64 int8 values of the reduction.
pub(crate) const TILE_ROW_BYTES: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = SIDE * TILE_ROW_BYTES;

/// Whether the operating system lets this process use tiles. Call only if the CPU has AMX.
pub(crate) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(request_tiles)
}

/// Asks the Linux kernel for permission to use tile data, with `arch_prctl(ARCH_REQ_XCOMP_PERM,
/// XFEATURE_XTILEDATA)`. One call covers all threads of the process.
fn request_tiles() -> bool {
    let answer: i64;
    // SAFETY: the system call takes two numbers and touches no memory. All registers that it
    // changes are declared.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 158i64 => answer,
            in("rdi") 0x1023,
            in("rsi") 18,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// A tile configuration: eight tiles of 16 rows × 64 bytes.
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

/// Configures the tiles of this thread. They stay configured until [`release`].
///
/// # Safety
/// The CPU must have AMX, and [`allowed`] must have returned true. No other code of this thread may
/// use tiles until [`release`].
#[inline(always)]
pub(crate) unsafe fn configure() {
    // SAFETY: the configuration has 64 bytes; the caller promises the rest.
    unsafe {
        asm!(
            "ldtilecfg [{0}]",
            in(reg) &raw const CONFIG,
            options(nostack, readonly, preserves_flags)
        )
    };
}

/// Releases the tiles of this thread.
///
/// # Safety
/// The tiles must have been configured by [`configure`].
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: the caller promises that the tiles are configured.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}
