//! Shared by `check`, `diff` and `verify`: writes their report, and determines the exit code. Also writes whole files.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{Failure, print};
use audit::formats::Format;
use audit::policy::Policy;
use audit::{Report, Verdict};
use errors::{Refusal, in_one_line};
use run::destination::{Disk, write_whole};

/// Where a report goes.
#[derive(Args)]
pub(super) struct ReportArguments {
    /// Format of the report: text, json, junit, sarif, github, markdown or html; with =FILE, it goes to a file. Can be
    /// repeated; only one format may go to stdout
    #[arg(long = "format", value_name = "FORMAT[=FILE]", default_value = "text", value_parser = output)]
    outputs: Vec<Output>,

    /// A policy (TOML): the severities of checks, limits, required signatures
    #[arg(long, value_name = "FILE", value_parser = policy)]
    policy: Option<Policy>,

    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
}

/// Reads a policy before the work starts.
fn policy(path: &str) -> Result<Policy, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    let mut policy = Policy::parse(&text).map_err(|error| in_one_line(&error))?;
    policy.in_folder(folder(Path::new(path)));
    Ok(policy)
}

/// One format, and its file if it does not go to stdout.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    format: Format,
    file: Option<PathBuf>,
}

/// Parses `FORMAT` or `FORMAT=FILE`. A file that cannot be written is refused here, before the work starts.
fn output(text: &str) -> Result<Output, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, Some(PathBuf::from(file))),
        None => (text, None),
    };
    let format = Format::ALL.into_iter().find(|format| format.name() == name);
    let format = format.ok_or_else(|| {
        let names: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", names.join(", "))
    })?;
    if let Some(file) = &file {
        if file.as_os_str().is_empty() || file.is_dir() {
            return Err("expected the name of a file after `=`".to_owned());
        }
        let folder = folder(file);
        if !folder.is_dir() {
            return Err(format!("there is no folder {}", folder.display()));
        }
    }
    Ok(Output { format, file })
}

impl ReportArguments {
    /// Writes the report; returns its exit code as a failure if it does not pass.
    pub(super) fn finish(&self, report: Report) -> Result<(), Failure> {
        self.finish_beside(report, print)
    }

    /// The same, if stdout is used for something else: its output goes to `other`.
    pub(super) fn finish_beside(
        &self,
        mut report: Report,
        other: impl Fn(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.check()?;
        let mut policy = self.policy.clone().unwrap_or_default();
        if self.strict {
            policy.strict();
        }
        policy.apply(&mut report);
        report.sort();
        for output in &self.outputs {
            let text = output.format.write(&report);
            let text = text.map_err(|error| Failure::tool(error.to_string()))?;
            match &output.file {
                None => other(&text)?,
                Some(file) => write(file, &text)?,
            }
        }
        match report.verdict() {
            Verdict::Passed => Ok(()),
            verdict => Err(Failure::Verdict(verdict)),
        }
    }

    /// The policy, if there is one.
    pub(super) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Checks that no two outputs go to the same place.
    fn check(&self) -> Result<(), Failure> {
        for (at, output) in self.outputs.iter().enumerate() {
            let same = |other: &&Output| other.file == output.file;
            if self.outputs.iter().take(at).any(|other| same(&other)) {
                return Err(Failure::tool(match &output.file {
                    None => Refusal::new("two formats go to stdout")
                        .with_hint("give all but one a file, as in --format junit=report.xml"),
                    Some(file) => Refusal::new(format!("two formats go to {}", file.display())),
                }));
            }
        }
        Ok(())
    }
}

/// The folder that contains a file.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes a file whole or not at all.
pub(super) fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let written = write_whole(&Disk::default(), file, text.as_bytes());
    written.map_err(|error| Failure::tool(error.to_string()))
}
