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
const THRESHOLD: &str = "131072";
/// Says that this was done: glibc removes its own variable from a program with privileges, and then this would go on for
/// ever.
const DONE: &str = "_GITSTAFETTE_STARTED";

/// Starts this process anew with the variable set, if it is not: the same process id, arguments and files. To be called
/// before anything else, with the program's name. Where it cannot be done, or the program runs under another name (a
/// loader's), or the C library is another, nothing happens.
pub fn give_back_large_buffers(name: &str) {
    let is_set = |variable| std::env::var_os(variable).is_some();
    if !cfg!(target_env = "gnu") || is_set(VARIABLE) || is_set(DONE) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    if program.file_name().is_none_or(|file| file != name) {
        return;
    }
    let mut arguments = std::env::args_os();
    let shown = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
    let mut again = Command::new(program);
    // It only returns if it failed: then this process goes on as it is.
    drop(again.arg0(shown).args(arguments).env(VARIABLE, THRESHOLD).env(DONE, "1").exec());
}
