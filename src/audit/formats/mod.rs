//! Writes a report, one file per format. No format knows a command or a check by name.
//!
//! Names, values and paths in a report come from untrusted checkpoints. All formats pass them through `clean` and
//! escape the result by their own rules. Only JSON keeps names whole, and escapes unsafe characters as `\\u001b`.

pub(crate) mod clean;
mod columns;
mod github;
mod groups;
mod html;
mod json;
mod junit;
mod markdown;
#[cfg(test)]
mod samples;
mod sarif;
#[cfg(test)]
mod tests;
mod text;

pub use columns::{columns, cut};
pub use github::github;
pub use html::{PageError, html, page_of, plan_page};
pub use json::json;
pub use junit::junit;
pub use markdown::markdown;
pub use sarif::sarif;
pub use text::text;

use super::report::Report;
use errors::printable_json;

/// A format for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReportFormat {
    /// For people at a terminal.
    Text,
    /// For programs.
    Json,
    /// For the test reports of CI systems.
    Junit,
    /// For code scanning: SARIF 2.1.0.
    Sarif,
    /// For annotations by GitHub's runner.
    Github,
    /// For step summaries and comments on pull requests.
    Markdown,
    /// For people, as a page.
    Html,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The page's template failed.
    #[error("cannot write the page: {0}")]
    Html(#[from] minijinja::Error),
    /// The XML could not be written.
    #[error("cannot write JUnit: {0}")]
    Junit(#[from] quick_junit::SerializeError),
}

impl ReportFormat {
    /// All formats.
    pub const ALL: [ReportFormat; 7] = [
        ReportFormat::Text,
        ReportFormat::Json,
        ReportFormat::Junit,
        ReportFormat::Sarif,
        ReportFormat::Github,
        ReportFormat::Markdown,
        ReportFormat::Html,
    ];

    /// The format's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ReportFormat::Text => "text",
            ReportFormat::Json => "json",
            ReportFormat::Junit => "junit",
            ReportFormat::Sarif => "sarif",
            ReportFormat::Github => "github",
            ReportFormat::Markdown => "markdown",
            ReportFormat::Html => "html",
        }
    }

    /// Writes a sorted report.
    ///
    /// # Errors
    /// The crate that writes the format failed, which no report should cause.
    pub fn write(self, report: &Report) -> Result<String, FormatError> {
        Ok(match self {
            ReportFormat::Text => text(report, None),
            ReportFormat::Json => printable_json(&format!("{:#}\n", json(report))),
            ReportFormat::Junit => junit(report)?,
            ReportFormat::Sarif => printable_json(&format!("{:#}\n", sarif(report))),
            ReportFormat::Github => github(report),
            ReportFormat::Markdown => markdown(report),
            ReportFormat::Html => html(report)?,
        })
    }
}
