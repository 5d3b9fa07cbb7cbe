//! Counts a function's instructions by single steps, for instructions that valgrind does not
//! support.
//!
//! The CPU's trap flag raises a debug exception after every instruction. The operating system turns
//! it into a signal, and the handler counts. So the program runs with all instructions of its CPU;
//! each one costs a few microseconds, or more on a virtual machine. Instructions inside the
//! operating system are not counted. The repetitions of a string instruction trap one by one but
//! count as one, as in callgrind.

use std::arch::asm;
use std::cell::Cell;
use std::ptr;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// The instruction pointer of the last step.
    static LAST: Cell<i64> = const { Cell::new(0) };
}

extern "C" fn step(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a handler with SA_SIGINFO receives the interrupted thread's context.
    let at =
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    if LAST.replace(at) != at {
        COUNT.set(COUNT.get() + 1);
    }
}

/// The number of instructions of `work` on this thread, plus a few for start and end.
pub fn count(work: impl FnOnce()) -> u64 {
    // SAFETY: an all-zero action is valid. The handler only touches this thread's cells, which need
    // no initialization.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    COUNT.set(0);
    // SAFETY: the trap flag changes no result, and its handler is set. The code uses the
    // stack, so there is no `nostack`.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    work();
    // SAFETY: as above; this clears the flag.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    COUNT.get()
}

/// Checks the counter on a thousand instructions.
pub fn check() {
    // SAFETY: `nop` has no effect.
    let counted = count(|| unsafe {
        asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags))
    });
    assert!((1000..1050).contains(&counted), "a thousand instructions counted as {counted}");
}
