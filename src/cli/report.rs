//! Shared by `check`, `diff` and `verify`: writes their report, and determines the exit code. Also writes whole files.

use std::convert::Infallible;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::Suggesting;
use super::fit;
use super::output::{Failure, fail, print_made};
use super::spared;
use audit::formats::{self, ReportFormat};
use audit::policy::Policy;
use audit::{Command, Report, Verdict};
use checkpoint::{CheckpointError, read_bounded};
use errors::Refusal;
use run::destination::{Disk, folder_of, write_whole};

/// The largest policy that is read.
const MAX_POLICY_BYTES: u64 = 1 << 20;

/// Where a report goes.
#[derive(Args)]
pub(super) struct ReportArguments {
    /// Format of the report: text, json, junit, sarif, github, markdown or html; with =FILE, it goes to a file. Can be
    /// repeated; only one format may go to stdout
    #[arg(
        long = "format",
        value_name = "FORMAT[=FILE]",
        default_value = "text",
        value_parser = Suggesting(output, format_names),
        hide_possible_values = true
    )]
    outputs: Vec<Output>,

    /// A policy (TOML): the severities of checks, limits, required signatures
    #[arg(long, value_name = "FILE", value_parser = policy)]
    policy: Option<NamedPolicy>,

    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
}

/// A policy, or why it cannot be read, and its file.
type NamedPolicy = (PathBuf, Result<Policy, Refusal>);

/// Reads a policy. One that cannot be read is no wrong argument: the report says why nothing was done.
fn policy(path: &str) -> Result<NamedPolicy, Infallible> {
    let parsed = policy_text(Path::new(path))
        .and_then(|text| Policy::parse(&text).map_err(|error| Refusal::from(&error)));
    let parsed = match parsed {
        Ok(mut policy) => {
            policy.in_folder(folder_of(Path::new(path)));
            Ok(policy)
        }
        Err(refusal) => Err(refusal.within(format_args!("the policy {path}"))),
    };
    Ok((PathBuf::from(path), parsed))
}

fn policy_text(path: &Path) -> Result<String, Refusal> {
    let cannot = |error: &dyn Display| Refusal::new(format!("cannot read it: {error}"));
    let bytes = read_bounded(path, MAX_POLICY_BYTES, "policy, in bytes");
    let bytes = bytes.map_err(|error| match error {
        CheckpointError::NotAFile { .. } => Refusal::new("expected a TOML file, found none"),
        CheckpointError::TooLarge { limit, .. } => {
            Refusal::new(format!("too large: expected at most {limit} bytes"))
        }
        CheckpointError::Io { source, .. } => cannot(&source),
        other => Refusal::from(&other),
    })?;
    String::from_utf8(bytes).map_err(|error| cannot(&error))
}

/// One format, and its file if it does not go to stdout.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    format: ReportFormat,
    file: Option<PathBuf>,
}

/// Parses `FORMAT` or `FORMAT=FILE`. A file that cannot be written is refused here, before the work starts.
fn output(text: &str) -> Result<Output, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, Some(PathBuf::from(file))),
        None => (text, None),
    };
    let format = ReportFormat::ALL
        .into_iter()
        .find(|format| format.name() == name);
    let format = format.ok_or_else(|| format!("expected one of {}", format_names().join(", ")))?;
    if let Some(file) = &file {
        if file.as_os_str().is_empty() || file.is_dir() {
            return Err("expected the name of a file after `=`".to_owned());
        }
        let folder = folder_of(file);
        if !folder.is_dir() {
            return Err(format!("there is no folder {}", folder.display()));
        }
    }
    Ok(Output { format, file })
}

fn format_names() -> Vec<&'static str> {
    ReportFormat::ALL
        .iter()
        .map(|format| format.name())
        .collect()
}

impl Output {
    /// Writes the report to its file, or to where stdout's goes.
    fn write(
        &self,
        report: &Report,
        other: fn(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.file.is_none() && self.format == ReportFormat::Text {
            let text = formats::text(report, fit::stdout_width());
            return other(&fit::to_stdout(&text));
        }
        let text = self.format.write(report);
        let text = text.map_err(|error| Failure::tool(error.to_string()))?;
        match &self.file {
            None => other(&text),
            Some(file) => write(file, &text),
        }
    }
}

impl ReportArguments {
    /// Writes the report that a command made, or that it could not run; returns the exit code as a failure if the
    /// report does not pass. `read` are the files that the command reads, as far as its arguments name them.
    pub(super) fn finish(
        &self,
        command: Command,
        subject: &dyn Display,
        read: &[PathBuf],
        made: impl FnOnce() -> Result<Report, Failure>,
    ) -> Result<(), Failure> {
        let made = || Ok((made()?, ()));
        self.finish_beside(command, subject, read, made, print_made)
    }

    /// The same for a command that makes more than a report, and gives it if the report passes. What goes to stdout
    /// otherwise goes to `other`.
    ///
    /// A reader that goes away, or a file that cannot be written, stops no other output and changes no verdict.
    pub(super) fn finish_beside<T>(
        &self,
        command: Command,
        subject: &dyn Display,
        read: &[PathBuf],
        made: impl FnOnce() -> Result<(Report, T), Failure>,
        other: fn(&str) -> Result<(), Failure>,
    ) -> Result<T, Failure> {
        self.check(read)?;
        let (report, made) = match self.made_beside(made) {
            Ok((report, made)) => (report, Ok(made)),
            Err(failure) => match failure.refusal() {
                Some(refusal) => {
                    let report = Report::of_error(command, subject.to_string(), refusal);
                    (report, Err(failure))
                }
                None => return Err(failure),
            },
        };
        // What cannot run is said on stderr in any case, which is enough for people.
        let said = |output: &&Output| {
            made.is_err() && output.format == ReportFormat::Text && output.file.is_none()
        };
        let outputs = self.outputs.iter().filter(|output| !said(output));
        let written: Vec<Result<(), Failure>> =
            outputs.map(|output| output.write(&report, other)).collect();
        let mut failures = written.into_iter().filter_map(Result::err);
        let unwritten = failures.find(|failure| !matches!(failure, Failure::BrokenPipe));
        match (made, report.verdict(), unwritten) {
            (Ok(made), Verdict::Passed, None) => Ok(made),
            (Ok(_), Verdict::Passed, Some(unwritten)) => Err(unwritten),
            (Err(failure), ..) => Err(failure),
            (Ok(_), verdict, unwritten) => {
                if let Some(unwritten) = unwritten {
                    fail(&unwritten);
                }
                Err(Failure::Verdict(verdict))
            }
        }
    }

    /// The report that a command makes, as the policy judges it.
    pub(super) fn made(
        &self,
        made: impl FnOnce() -> Result<Report, Failure>,
    ) -> Result<Report, Failure> {
        let (report, ()) = self.made_beside(|| Ok((made()?, ())))?;
        Ok(report)
    }

    /// The same for a command that makes more than a report.
    fn made_beside<T>(
        &self,
        made: impl FnOnce() -> Result<(Report, T), Failure>,
    ) -> Result<(Report, T), Failure> {
        // A policy that cannot be read is told before the work.
        self.policy()?;
        let (report, made) = made()?;
        Ok((self.judged(report)?, made))
    }

    /// The report as the policy judges it.
    fn judged(&self, mut report: Report) -> Result<Report, Failure> {
        let mut policy = self.policy()?.cloned().unwrap_or_default();
        if self.strict {
            policy.strict();
        }
        policy.apply(&mut report);
        report.sort();
        Ok(report)
    }

    /// Checks that an output is not written over what a command reads, the policy included. `option` is how it was named.
    ///
    /// # Errors
    /// It would be.
    pub(super) fn spare(
        &self,
        option: &str,
        output: &Path,
        read: &[PathBuf],
    ) -> Result<(), Failure> {
        let policy = self.policy.iter().map(|(path, _)| path.clone());
        let read: Vec<PathBuf> = read.iter().cloned().chain(policy).collect();
        spared::check(option, output, &read)
    }

    /// The files that reports go to.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.outputs
            .iter()
            .filter_map(|output| output.file.as_ref())
    }

    /// The policy, if there is one.
    pub(super) fn policy(&self) -> Result<Option<&Policy>, Failure> {
        let policy = self.policy.as_ref().map(|(_, policy)| policy.as_ref());
        policy
            .transpose()
            .map_err(|refusal| Failure::Tool(refusal.clone()))
    }

    /// Checks that no two outputs go to the same place, and none to where something is read.
    fn check(&self, read: &[PathBuf]) -> Result<(), Failure> {
        for (at, output) in self.outputs.iter().enumerate() {
            if let Some(file) = &output.file {
                let option = format!("--format {}={}", output.format.name(), file.display());
                self.spare(&option, file, read)?;
            }
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

/// Writes a file whole or not at all.
pub(super) fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let written = write_whole(&Disk::default(), file, text.as_bytes());
    written.map_err(|error| Failure::tool(error.to_string()))
}
