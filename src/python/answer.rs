//! What a command made, in the formats that Python asks for.

use errors::printable_json;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What a command made.
#[pyclass(frozen, module = "weldment")]
pub(crate) struct Answer(pub(crate) cli::Answer);

#[pymethods]
impl Answer {
    /// What the command line prints with `--format json`.
    fn json(&self) -> String {
        printable_json(&self.0.json().to_string())
    }

    /// The answer in a format of the command line: those of `--format`.
    fn written(&self, format: &str) -> PyResult<String> {
        self.0.written(format).map_err(PyValueError::new_err)
    }
}
