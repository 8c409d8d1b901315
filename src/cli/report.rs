//! What `check`, `diff` and `verify` share: how their report is written down, and the exit code it gives.

use clap::{Args, ValueEnum};

use super::output::{Failure, print};
use crate::audit::{Report, Verdict, formats};

/// How a report is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Where a report goes.
#[derive(Args)]
pub(super) struct ReportArguments {
    /// What is printed
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    format: ReportFormat,
}

impl ReportArguments {
    /// Writes the report down; a report that does not pass gives its exit code.
    pub(super) fn finish(&self, mut report: Report) -> Result<(), Failure> {
        report.sort();
        print(&match self.format {
            ReportFormat::Text => formats::text(&report),
            ReportFormat::Json => format!("{:#}", formats::json(&report)),
        })?;
        match report.verdict() {
            Verdict::Passed => Ok(()),
            verdict => Err(Failure::Verdict(verdict)),
        }
    }
}
