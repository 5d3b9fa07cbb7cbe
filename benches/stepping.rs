//! Counts the instructions of a function by single steps: for processors' instructions that
//! valgrind does not know.
//!
//! The trap flag makes the CPU raise a debug exception behind every instruction, which the
//! operating system turns into a signal whose handler counts. So the program itself runs, on its
//! own CPU, with every instruction that this has; each costs a few microseconds, or some more on a
//! virtual machine. What a system call does inside the operating system is not counted. Repetitions
//! of a string instruction trap one by one and count as one, as for callgrind.

use std::arch::asm;
use std::cell::Cell;
use std::ptr;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Where the last step began.
    static LAST: Cell<i64> = const { Cell::new(0) };
}

extern "C" fn step(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a handler with SA_SIGINFO is given the interrupted thread's context.
    let at =
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    if LAST.replace(at) != at {
        COUNT.set(COUNT.get() + 1);
    }
}

/// The instructions that `work` takes on this thread, a few more included for beginning and end.
pub fn count(work: impl FnOnce()) -> u64 {
    // SAFETY: an all-zero action is a valid one; the handler only touches this thread's cells,
    // which need no initialisation.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    COUNT.set(0);
    // SAFETY: the trap flag changes no result; the handler for what it raises was set above.
    // (Pushes, so not `nostack`.)
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    work();
    // SAFETY: as above.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    COUNT.get()
}

/// Counts a function whose instructions are known.
pub fn check() {
    // SAFETY: a thousand instructions that do nothing.
    let counted = count(|| unsafe {
        asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags))
    });
    assert!((1000..1050).contains(&counted), "a thousand instructions counted as {counted}");
}
