//! The native half of the Python module `weldment`: commands as functions, tensors in memory, and the command `weld`.
//!
//! It decides nothing that `cli` decides: words go in, parsed as those of a command line, and an answer comes out. What
//! Python users see is in `weldment/*.py`.

mod answer;
mod error;
mod foreign;
mod model;
mod stream;
mod watched;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;

use pyo3::prelude::*;

use answer::Answer;
use foreign::ForeignTensor;
use model::Model;
use stream::Stream;
use watched::watched;

/// The native half of the module.
#[pymodule]
mod _weldment {
    #[pymodule_export]
    use super::{Answer, Model, Stream, call, main, open, options, streamed, version};
}

/// Runs `weld` with these arguments, of which the first is the program's name; returns the exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| {
        let code = cli::run(arguments);
        // A library has no end of `main` at which the standard library would do it.
        let _ = std::io::stdout().flush();
        code
    })
}

/// Runs a command for its answer. `progress` is called with what is done, how much of it so far, and in all.
#[pyfunction]
#[pyo3(signature = (words, progress=None))]
fn call(py: Python<'_>, words: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<Answer> {
    let answer = watched(py, progress.as_ref(), |listener| cli::call(words, listener))?;
    match answer {
        Ok(answer) => Ok(Answer(answer)),
        Err(error) => Err(error::raised(py, &error)),
    }
}

/// Opens a model.
#[pyfunction]
fn open(py: Python<'_>, model: &str) -> PyResult<Model> {
    let opened = py.detach(|| cli::open(model));
    opened.map(Model).map_err(|error| error::raised(py, &error))
}

/// Starts a merge whose tensors are given one by one. `words` are those of `plan`; `held` are models in memory: name,
/// tensors, config as JSON.
#[pyfunction]
#[pyo3(signature = (words, held, progress=None))]
fn streamed(
    py: Python<'_>,
    words: Vec<OsString>,
    held: Vec<(String, Vec<ForeignTensor>, Option<String>)>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Stream> {
    let mut models = BTreeMap::new();
    for (name, tensors, config) in held {
        let model = foreign::model(&name, tensors, config.as_deref())?;
        models.insert(name, Arc::new(model));
    }
    let plan = watched(py, None, |_| cli::plan_with(words, models))?;
    let plan = plan.map_err(|error| error::raised(py, &error))?;
    Stream::start(plan, progress)
}

/// The options and arguments of a command: name, help, whether it is positional, takes a value, may be repeated.
#[pyfunction]
fn options(command: &str) -> Vec<(String, String, bool, bool, bool)> {
    let all = cli::options(command).into_iter();
    let row = |option: cli::OptionInfo| {
        let cli::OptionInfo {
            name,
            help,
            positional,
            takes_value,
            repeats,
        } = option;
        (name, help, positional, takes_value, repeats)
    };
    all.map(row).collect()
}

/// The version.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
