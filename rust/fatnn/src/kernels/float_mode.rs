//! The float mode of a thread: its rounding direction, and whether it flushes denormals. Both are
//! control registers of each thread, and a caller may have changed them.
//!
//! Results must not depend on which thread computes them, so helping threads use the caller's mode
//! while they work for it. They do not use one fixed mode: float layers that PyTorch runs between
//! ours follow the caller's mode too. So a network under `torch.set_flush_denormal(True)` gives
//! what the eager model gives under it.

/// The control bits that change results. Sticky flags and traps are not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode(u64);

#[cfg(target_arch = "x86_64")]
mod register {
    /// Flush-to-zero, rounding direction and denormals-are-zero.
    pub const MASK: u64 = 0xE040;

    pub fn read() -> u64 {
        let mut value = 0u32;
        // SAFETY: stores the register into the four bytes of `value`.
        unsafe {
            std::arch::asm!(
                "stmxcsr [{}]",
                in(reg) &raw mut value,
                options(nostack, preserves_flags)
            )
        };
        u64::from(value)
    }

    pub fn write(value: u64) {
        let value = value as u32;
        // SAFETY: loads the register from the four bytes of `value`. Only bits of `MASK` differ
        // from what the register held, and a thread of this CPU held those bits before.
        unsafe {
            std::arch::asm!(
                "ldmxcsr [{}]",
                in(reg) &raw const value,
                options(nostack, preserves_flags)
            )
        };
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    /// The fields `DN`, `FZ`, `RMode`, `FZ16`, `AH` and `FIZ`: default NaN, flush-to-zero, rounding
    /// direction, and their variants.
    pub const MASK: u64 = 0x03C8_0003;

    pub fn read() -> u64 {
        let value;
        // SAFETY: every program may read this register.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nostack, preserves_flags))
        };
        value
    }

    pub fn write(value: u64) {
        // SAFETY: every program may write this register, and only bits of `MASK` differ from what
        // it held.
        unsafe {
            std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack, preserves_flags))
        };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    /// On other architectures the register is unknown, so every thread keeps its mode.
    pub const MASK: u64 = 0;

    pub fn read() -> u64 {
        0
    }

    pub fn write(_: u64) {}
}

impl FloatMode {
    /// The mode of this thread.
    pub fn current() -> Self {
        FloatMode(register::read() & register::MASK)
    }

    /// Calls `work` in this mode, then restores the previous mode.
    pub fn run<R>(self, work: impl FnOnce() -> R) -> R {
        struct Restore(u64);
        impl Drop for Restore {
            fn drop(&mut self) {
                register::write(self.0);
            }
        }
        let before = register::read();
        if before & register::MASK == self.0 {
            return work();
        }
        let restore = Restore(before);
        register::write(before & !register::MASK | self.0);
        let result = work();
        drop(restore);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel;

    #[cfg(target_arch = "x86_64")]
    const FLUSHING: FloatMode = FloatMode(0x8040);
    #[cfg(target_arch = "aarch64")]
    const FLUSHING: FloatMode = FloatMode(1 << 24);

    /// Computes denormal products with this number of threads, in every way that runs work in
    /// parallel. The caller holds [`parallel::testing::ThreadCount`].
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn products(threads: usize) -> Vec<u32> {
        parallel::set_num_threads(threads).unwrap();
        let mut out = vec![0.0f32; 64];
        let small = std::hint::black_box(1e-30f32);
        let factor = std::hint::black_box(1e-12f32);
        parallel::for_each_rows(&mut out, 1, 1, usize::MAX, |_, rows| {
            rows.iter_mut()
                .for_each(|y| *y = std::hint::black_box(small) * std::hint::black_box(factor));
        })
        .unwrap();
        let apart = parallel::map_one_per_thread(&parallel::Cancellation::none(), 8, |_| {
            Ok(std::hint::black_box(small) * std::hint::black_box(factor))
        });
        let in_team =
            parallel::with_team(|| std::hint::black_box(small) * std::hint::black_box(factor));
        out.extend(apart.unwrap());
        out.push(in_team);
        out.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn pool_threads_take_the_callers_mode() {
        let _threads = parallel::testing::ThreadCount::lock();
        let before = FloatMode::current();
        for mode in [before, FLUSHING, before] {
            for threads in [1, 2, 3] {
                let found = mode.run(|| products(threads));
                let flushed = mode == FLUSHING;
                assert!(
                    found.iter().all(|&bits| (bits == 0) == flushed),
                    "{mode:?} {threads}: {found:?}"
                );
            }
        }
        assert_eq!(FloatMode::current(), before);
    }
}
