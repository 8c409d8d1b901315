//! What a command made, in the formats that Python asks for.

use audit::formats::{ReportFormat, plan_page};
use errors::{printable_json, printable_lines};
use plan::Detail;
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
        match &self.0 {
            cli::Answer::Report(report) => {
                let wanted = ReportFormat::ALL.into_iter();
                let wanted = wanted.clone().find(|one| one.name() == format);
                let Some(wanted) = wanted else {
                    let names = ReportFormat::ALL.map(ReportFormat::name).join(", ");
                    return Err(PyValueError::new_err(format!("expected one of {names}")));
                };
                let written = wanted.write(report);
                written.map_err(|error| PyValueError::new_err(error.to_string()))
            }
            cli::Answer::Plan(plan) => match format {
                "text" => Ok(printable_lines(&plan::text(plan, Detail::Summary))),
                "json" => Ok(self.json()),
                "html" => {
                    let page = plan_page(plan);
                    page.map_err(|error| PyValueError::new_err(error.to_string()))
                }
                _ => Err(PyValueError::new_err("expected one of text, json, html")),
            },
            cli::Answer::Written(_) => match format {
                "json" => Ok(self.json()),
                _ => Err(PyValueError::new_err("expected json")),
            },
        }
    }
}
