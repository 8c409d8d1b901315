//! The tensors of a merge, one after the other, as they are computed: nothing is written.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use cli::{CallError, Listener};
use engine::{Observer, Sink, Tile};
use plan::{Plan, PlannedTensor};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::error;
use crate::watched::{INTERVAL, STACK, State, heed};

/// A tensor: its name, its dtype as safetensors writes it, its shape, its bytes.
type Tensor<'py> = (String, String, Vec<usize>, Bound<'py, PyByteArray>);

/// The tensors of a merge.
#[pyclass(frozen, module = "weldment")]
pub(crate) struct Stream {
    tensors: Arc<Plan>,
    state: Arc<State>,
    progress: Option<Py<PyAny>>,
    /// None once all tensors were given, or the work has failed.
    running: Mutex<Option<Running>>,
}

struct Running {
    ready: Receiver<(usize, Vec<u8>)>,
    worker: JoinHandle<Result<(), CallError>>,
}

impl Stream {
    /// Starts to compute a plan.
    pub(crate) fn start(plan: Plan, progress: Option<Py<PyAny>>) -> PyResult<Self> {
        let (give, ready) = mpsc::sync_channel(1);
        let (tensors, state) = (Arc::new(plan), Arc::new(State::default()));
        let (plan, watched) = (Arc::clone(&tensors), Arc::clone(&state));
        let worker = thread::Builder::new().name("weldment".into());
        let worker = worker.stack_size(STACK);
        let worker = worker.spawn(move || work(&plan, &watched, give));
        let worker = worker.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(Self {
            tensors,
            state,
            progress,
            running: Mutex::new(Some(Running { ready, worker })),
        })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next tensor, while signals are heeded and progress is told.
    fn wait(&self, py: Python<'_>) -> PyResult<Option<(usize, Vec<u8>)>> {
        loop {
            let received = py.detach(|| match &*self.running() {
                Some(running) => running.ready.recv_timeout(INTERVAL),
                None => Err(RecvTimeoutError::Disconnected),
            });
            match received {
                Ok(tensor) => return Ok(Some(tensor)),
                Err(RecvTimeoutError::Disconnected) => return self.end(py).map(|()| None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(raised) = heed(py, &self.state, self.progress.as_ref()) {
                self.state.stop();
                // What the work itself says of being stopped is not told.
                let _ = self.end(py);
                return Err(raised);
            }
        }
    }

    /// Waits for the end of the work.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        let Some(Running { ready, worker }) = self.running().take() else {
            return Ok(());
        };
        drop(ready);
        match py.detach(|| worker.join()) {
            Ok(Ok(())) => heed(py, &self.state, self.progress.as_ref()),
            Ok(Err(error)) => Err(error::raised(py, &error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[pymethods]
impl Stream {
    /// The names of all tensors, in the order of the output.
    fn names(&self) -> Vec<&str> {
        let tensors = self.tensors.tensors.iter();
        tensors.map(|tensor| tensor.name.as_str()).collect()
    }

    fn __iter__(stream: PyRef<'_, Self>) -> PyRef<'_, Self> {
        stream
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Tensor<'py>>> {
        let Some((index, bytes)) = self.wait(py)? else {
            return Ok(None);
        };
        let PlannedTensor {
            name, dtype, shape, ..
        } = &self.tensors.tensors[index];
        let bytes = PyByteArray::new(py, &bytes);
        Ok(Some((
            name.clone(),
            dtype.to_string(),
            shape.clone(),
            bytes,
        )))
    }
}

impl Drop for Stream {
    /// Nobody reads on: the work ends at its next tile, and nobody waits for it.
    fn drop(&mut self) {
        self.state.stop();
    }
}

/// Computes all tensors of a plan.
fn work(plan: &Plan, state: &State, give: SyncSender<(usize, Vec<u8>)>) -> Result<(), CallError> {
    let bytes = plan.bytes_read + plan.scratch_bytes() + plan.bytes_written();
    state.begin(plan.method.name, bytes);
    let sink = Gathered::new(plan, give);
    sink.give_empty()
        .map_err(|_| CallError::from(run::RunError::Cancelled))?;
    run::replay(
        plan,
        None,
        None,
        &std::env::temp_dir(),
        &sink,
        &Watched(state),
    )?;
    Ok(())
}

/// What the engine hears.
struct Watched<'s>(&'s State);

impl Observer for Watched<'_> {
    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn cancelled(&self) -> bool {
        self.0.stopped()
    }
}

/// A sink that gives every tensor once it is complete.
struct Gathered {
    tensors: Vec<Mutex<Gathering>>,
    give: SyncSender<(usize, Vec<u8>)>,
}

/// A tensor that is being computed.
struct Gathering {
    /// Bytes in all.
    len: usize,
    /// Empty until the first bytes come.
    bytes: Vec<u8>,
    /// How many bytes are still to come.
    missing: usize,
}

impl Gathered {
    fn new(plan: &Plan, give: SyncSender<(usize, Vec<u8>)>) -> Self {
        let gathering = |tensor: &PlannedTensor| {
            let elements: usize = tensor.shape.iter().product();
            let len = elements * tensor.dtype.bitsize() / 8;
            Mutex::new(Gathering {
                len,
                bytes: Vec::new(),
                missing: len,
            })
        };
        Self {
            tensors: plan.tensors.iter().map(gathering).collect(),
            give,
        }
    }

    /// Gives the tensors without elements, of which the engine writes nothing.
    fn give_empty(&self) -> io::Result<()> {
        for (index, tensor) in self.tensors.iter().enumerate() {
            let empty = locked(tensor).len == 0;
            if empty {
                self.give(index, Vec::new())?;
            }
        }
        Ok(())
    }

    fn give(&self, index: usize, bytes: Vec<u8>) -> io::Result<()> {
        let gone = |_| io::Error::other("nobody reads the tensors any more");
        self.give.send((index, bytes)).map_err(gone)
    }
}

impl Sink for Gathered {
    fn write(&self, output: usize, offset: u64, tile: Tile) -> io::Result<()> {
        let beyond = || io::Error::other("no place is planned for these bytes");
        let mut tensor = locked(self.tensors.get(output).ok_or_else(beyond)?);
        let Gathering {
            len,
            bytes,
            missing,
        } = &mut *tensor;
        if bytes.is_empty() {
            bytes.try_reserve_exact(*len).map_err(io::Error::other)?;
            bytes.resize(*len, 0);
        }
        let start = usize::try_from(offset).map_err(|_| beyond())?;
        let place = bytes
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..tile.len()));
        place.ok_or_else(beyond)?.copy_from_slice(&tile);
        *missing = missing.checked_sub(tile.len()).ok_or_else(beyond)?;
        if *missing > 0 || *len == 0 {
            return Ok(());
        }
        let whole = std::mem::take(bytes);
        drop(tensor);
        self.give(output, whole)
    }
}

fn locked(tensor: &Mutex<Gathering>) -> MutexGuard<'_, Gathering> {
    tensor.lock().unwrap_or_else(PoisonError::into_inner)
}
