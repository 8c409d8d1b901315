//! Signals: Ctrl-C and the closing of the terminal stop a run cleanly. A file beyond its size limit becomes an error of
//! the write. A truncated mapped file ends the run with a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use signal_hook::consts::{SIGABRT, SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::{flag, low_level};

use super::output::Failure;
use run::destination::remove_staged;

/// What a command does with models.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// It writes a checkpoint.
    Writes,
    /// It only reads.
    Reads,
}

/// The messages if a mapped page cannot be read: the system does not say which of the two causes it is.
const UNREADABLE_WRITING: &[u8] =
    b"error: an input file was cut short while it was read, or its disk cannot be read; nothing was written\n\n\
      hint: see that nothing writes to the models and that their disk is sound, and run it again\n";
const UNREADABLE: &[u8] =
    b"error: a file was cut short while it was read, or its disk cannot be read\n\n\
      hint: see that nothing writes to the files and that their disk is sound, and run it again\n";

/// Whether the command writes a checkpoint, for the handler.
static WRITES: AtomicBool = AtomicBool::new(false);

/// Installs the handlers; the flag is set when the user asks to stop. A second request ends the process at once.
pub(super) fn install(work: Work) -> Result<Arc<AtomicBool>, Failure> {
    WRITES.store(work == Work::Writes, SeqCst);
    let stop = Arc::new(AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        let asked = [SIGINT, SIGTERM, SIGHUP];
        // nohup asks the process to go on when the terminal is closed.
        for signal in asked.into_iter().filter(|signal| !is_ignored(*signal)) {
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
        }
        // With a handler installed, the write returns an error instead.
        flag::register(SIGXFSZ, Arc::default())?;
        // Runs on the stack that Rust gives each thread for its signals.
        handle(SIGBUS, cut_short, libc::SA_ONSTACK)?;
        handle(SIGABRT, aborted, 0)
    };
    register().map_err(|error| Failure::tool(format!("cannot handle signals: {error}")))?;
    Ok(stop)
}

/// Whether the process was started with a signal ignored.
#[expect(
    unsafe_code,
    reason = "what happens at a signal can be asked in no other way"
)]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: without a new action the call only writes to `action`, for which all zeros is a valid value.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Installs a handler for a signal.
///
/// The handler replaces the one of Rust's runtime and does not call it, as signal-hook would. On a bus error the
/// runtime's handler restores the default action before it returns, and a second thread that faults at that moment
/// kills the process.
#[expect(
    unsafe_code,
    reason = "a signal handler can be installed in no other way"
)]
fn handle(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> std::io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`: no flags, no signal blocked; the rest is set here. The handlers have
    // the signature of one without SA_SIGINFO, and call async-signal-safe functions only.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut()) != 0
    };
    match failed {
        true => Err(std::io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// Turns the fault of reading a mapped page that is gone, or that the disk cannot give, into an error: prints a message
/// and ends the process.
extern "C" fn cut_short(_: libc::c_int) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, SeqCst) {
        let message = match WRITES.load(SeqCst) {
            true => UNREADABLE_WRITING,
            false => UNREADABLE,
        };
        let _ = rustix::io::write(rustix::stdio::stderr(), message);
        remove_staged();
        low_level::exit(2);
    }
    // Another thread is already printing it: returning would only fault again.
    loop {
        std::hint::spin_loop();
    }
}

/// Cleans up before the process aborts, as it does when an allocation fails.
extern "C" fn aborted(signal: libc::c_int) {
    static CLEANS: AtomicBool = AtomicBool::new(false);
    if !CLEANS.swap(true, SeqCst) {
        remove_staged();
        // The process still ends by the signal.
        let _ = low_level::emulate_default_handler(signal);
    }
    // Another thread aborts too, and must not end the process before all is removed.
    loop {
        std::hint::spin_loop();
    }
}
