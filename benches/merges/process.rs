//! A process, and what it took.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a process took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) wall: Duration,
    pub(crate) processor: Duration,
    /// Its largest resident set in bytes, mapped files included.
    pub(crate) resident: u64,
}

/// Runs a process to its end.
pub(crate) fn measure(command: &mut Command) -> io::Result<Usage> {
    let started = Instant::now();
    let child = command.spawn()?;
    let mut status = 0;
    // SAFETY: plain integers, for which zeros are valid, to be filled by the call.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: the child is ours and is waited for only here; both pointers are to live values.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let wall = started.elapsed();
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        return Err(io::Error::other(format!("{command:?} failed")));
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(Usage {
        wall,
        processor: time(usage.ru_utime) + time(usage.ru_stime),
        resident: usage.ru_maxrss as u64 * 1024,
    })
}
