//! Work on a thread of its own, without the GIL; the thread that asked for it tells progress and heeds Ctrl-C.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cli::Listener;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// How often progress is told, and signals are looked for.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);

/// The stack of a thread that works: that of a process's first thread.
pub(crate) const STACK: usize = 8 << 20;

/// How far the work is, and whether it is to stop.
#[derive(Default)]
pub(crate) struct State {
    what: Mutex<String>,
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

impl State {
    /// Asks the work to stop.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Tells a Python function what is done, how much of it so far, and in all.
    fn tell(&self, py: Python<'_>, progress: &Py<PyAny>) -> PyResult<()> {
        let what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        let what = what.clone();
        let total = self.total.load(Relaxed);
        if total > 0 {
            // The total is an estimate: what is read to decide something is not in it.
            let done = self.done.load(Relaxed).min(total);
            progress.call1(py, (what, done, total))?;
        }
        Ok(())
    }
}

impl Listener for State {
    fn begin(&self, what: &str, all: u64) {
        let mut now = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        what.clone_into(&mut now);
        self.done.store(0, Relaxed);
        self.total.store(all, Relaxed);
    }

    fn advance(&self, done: u64) {
        self.done.fetch_add(done, Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// Runs work and waits for it. At Ctrl-C, or if `progress` raises, the work is asked to stop; once it has, the exception
/// is raised here.
///
/// # Errors
/// The exception of a signal's handler or of `progress`; or no thread could be started.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    work: impl FnOnce(Arc<dyn Listener>) -> T + Send,
) -> PyResult<T> {
    let state = Arc::new(State::default());
    let listener = Arc::clone(&state) as Arc<dyn Listener>;
    py.detach(|| {
        thread::scope(|scope| {
            let (at_end, ended) = mpsc::channel::<()>();
            let worker = thread::Builder::new().name("weldment".into());
            let worker = worker.stack_size(STACK).spawn_scoped(scope, move || {
                // Dropped at the end, even of a panic, which is how the end is known.
                let _at_end = at_end;
                work(listener)
            });
            let worker = worker.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
            let mut raised = None;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(INTERVAL) {
                if raised.is_none() {
                    raised = Python::attach(|py| heed(py, &state, progress)).err();
                }
                if raised.is_some() {
                    state.stop();
                }
            }
            let made = worker.join();
            match (raised, made) {
                (Some(raised), _) => Err(raised),
                (None, Ok(made)) => {
                    Python::attach(|py| heed(py, &state, progress))?;
                    Ok(made)
                }
                (None, Err(panic)) => std::panic::resume_unwind(panic),
            }
        })
    })
}

/// Runs the handlers of signals that have come, and tells progress.
pub(crate) fn heed(py: Python<'_>, state: &State, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    progress.map_or(Ok(()), |progress| state.tell(py, progress))
}
