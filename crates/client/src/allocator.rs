//! Memory that large webhooks took goes back to the system.
//!
//! glibc maps large buffers on their own and gives them back when they are freed, but with each that is freed it raises
//! the size from which it does so, up to 32 MiB (mallopt(3), `M_MMAP_THRESHOLD`, "dynamic mmap threshold"). After the first
//! webhook of 24 MiB all others come from its heaps, which keep them: three in a row left a server at 180 MiB, and at 73 with
//! the size fixed. It can be fixed by a variable, which is read when a process starts, or by a call that is not safe Rust.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Read by glibc at the start of a process. Setting it, to whatever, is the operator's way to have none of this.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";
/// From this size on, in bytes, a buffer is mapped on its own: larger than all that is common.
const THRESHOLD: &str = "1048576";

/// Starts this process anew with the variable set, if it is not: the same process id, arguments and files. To be called
/// before anything else. Where it cannot be done, or the C library is another, nothing happens.
pub fn give_back_large_buffers() {
    if !cfg!(target_env = "gnu") || std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
    // It only returns if it failed: then this process goes on as it is.
    drop(Command::new(program).arg0(name).args(arguments).env(VARIABLE, THRESHOLD).exec());
}
