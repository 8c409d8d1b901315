//! Signals: Ctrl-C stops a run cleanly; a mapped file that was cut short ends it with a message.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
#[expect(
    unsafe_code,
    reason = "a signal handler can be installed in no other way"
)]
fn on_bus_error() -> std::io::Result<()> {
    let handler = || {
        // What was staged stays beside the output; the next run cleans it away.
        let _ = rustix::io::write(rustix::stdio::stderr(), TRUNCATED);
        low_level::exit(2);
    };
    // SAFETY: the handler calls write(2) and _exit(2) only, both async-signal-safe, and does not return.
    unsafe { low_level::register(SIGBUS, handler) }.map(drop)
}
