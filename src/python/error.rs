//! Errors as `weldment.Error`, which is defined in Python.

use cli::CallError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The exception for an error.
pub(crate) fn raised(py: Python<'_>, error: &CallError) -> PyErr {
    let made = || {
        let about = &error.about;
        let fields = PyDict::new(py);
        fields.set_item("message", &error.message)?;
        fields.set_item("hint", &error.hint)?;
        fields.set_item("file", about.file.as_ref().map(|file| file.as_os_str()))?;
        fields.set_item("tensor", &about.tensor)?;
        fields.set_item("model", &about.model)?;
        fields.set_item("line", about.line)?;
        fields.set_item("exit_code", error.exit_code)?;
        let class = py.import("weldment._error")?.getattr("Error")?;
        class.call((&error.text,), Some(&fields))
    };
    made().map_or_else(|failed| failed, PyErr::from_value)
}
