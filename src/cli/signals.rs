//! Signals: Ctrl-C stops a run cleanly; a mapped file that was cut short ends it with a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use signal_hook::consts::{SIGBUS, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::output::Failure;

/// What is said when a mapped page is gone.
const TRUNCATED: &[u8] =
    b"error: an input file was cut short while it was read; nothing was written\n\n\
                           hint: see that nothing writes to the models, and run the merge again\n";

/// Installs the handlers; the flag is set when the user asks to stop. A second time ends the process at once.
pub(super) fn install() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
        }
        on_bus_error()
    };
    register().map_err(|error| Failure::tool(format!("cannot handle signals: {error}")))?;
    Ok(stop)
}

/// Turns the fault of reading past the end of a file that was truncated under its map into an error.
///
/// The handler replaces that of Rust's runtime and does not follow it, as signal-hook would have it: the
/// runtime's sets the default action back before it returns, and a second thread that faults in that moment
/// kills the process.
#[expect(
    unsafe_code,
    reason = "a signal handler can be installed in no other way"
)]
fn on_bus_error() -> std::io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`: no flags, no signal blocked; the rest is set here. The handler
    // has the signature of one without SA_SIGINFO, and calls async-signal-safe functions only.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = cut_short as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // On the stack that Rust gives each thread for its signals.
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(SIGBUS, &action, std::ptr::null_mut()) != 0
    };
    match failed {
        true => Err(std::io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// Says what happened and ends the process; what was staged stays beside the output for the next run to clean.
extern "C" fn cut_short(_: libc::c_int) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, SeqCst) {
        let _ = rustix::io::write(rustix::stdio::stderr(), TRUNCATED);
        low_level::exit(2);
    }
    // Another thread is saying so: returning would only fault again.
    loop {
        std::hint::spin_loop();
    }
}
