//! Findings of one kind together, as every format for people shows them.

use crate::report::{Finding, More, Report, Severity};

use super::clean::clean;
use plan::count;

/// Findings of one group that are shown before the rest is counted.
pub(super) const SHOWN: usize = 10;

/// Findings of one check and severity, next to each other in a sorted report.
pub(super) struct Group<'r> {
    /// The first of them, which speaks for all.
    pub(super) first: &'r Finding,
    /// All of them that were kept.
    pub(super) findings: &'r [Finding],
    /// How many were only counted.
    counted: usize,
}

impl<'r> Group<'r> {
    /// Those that are shown.
    pub(super) fn shown(&self) -> impl Iterator<Item = &'r Finding> {
        self.findings.iter().take(SHOWN)
    }

    /// How many there are.
    pub(super) fn total(&self) -> usize {
        self.findings.len() + self.counted
    }

    /// How many are not shown.
    pub(super) fn more(&self) -> usize {
        self.total().saturating_sub(SHOWN)
    }

    /// Those that are shown, a line each, and how many there are beside them.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.shown().map(line).collect();
        if self.more() > 0 {
            lines.push(format!("and {} more", self.more()));
        }
        lines
    }
}

/// A finding in a line.
pub(super) fn line(finding: &Finding) -> String {
    format!(
        "{}: expected {}, found {}",
        clean(&finding.place.to_string()),
        clean(&finding.expected),
        clean(&finding.found)
    )
}

/// The groups of a sorted report, worst first.
pub(super) fn groups(report: &Report) -> impl Iterator<Item = Group<'_>> {
    report
        .findings
        .chunk_by(|a, b| a.check.id == b.check.id && a.severity == b.severity)
        .filter_map(|findings| {
            let first = findings.first()?;
            let same =
                |more: &&More| more.check.id == first.check.id && more.severity == first.severity;
            // A policy can make one kind of two.
            let counted = report.more.iter().filter(same).map(|more| more.count).sum();
            Some(Group {
                first,
                findings,
                counted,
            })
        })
}

/// `1 error, 2 warnings, 0 notes, 12 checks made`.
pub(super) fn counts(report: &Report) -> String {
    format!(
        "{}, {}, {}, {} made",
        count(report.count(Severity::Error), "error"),
        count(report.count(Severity::Warning), "warning"),
        count(report.count(Severity::Note), "note"),
        count(report.checked.len(), "check")
    )
}

/// The file of a finding as seen from where the command ran, where that can be said.
pub(super) fn path(report: &Report, finding: &Finding) -> Option<String> {
    let file = finding.place.file.as_deref()?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !file.split('/').all(plain) {
        return None;
    }
    let subject = report.subject.trim_end_matches('/');
    let subject = subject.strip_prefix("./").unwrap_or(subject);
    let is_file = subject.rsplit('/').next() == Some(file);
    Some(match report.command {
        // Two checkpoints: a finding's file says no folder.
        crate::Command::Diff => file.to_owned(),
        _ if is_file => subject.to_owned(),
        _ if subject.is_empty() || subject == "." => file.to_owned(),
        _ => format!("{subject}/{file}"),
    })
}
