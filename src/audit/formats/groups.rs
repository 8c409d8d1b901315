//! Groups findings of one kind, for every format that people read.

use crate::report::{Finding, More, Report, Severity};

use super::clean::clean;
use errors::{Hint, Refusal};
use plan::count;

/// The most findings of a group that are shown; the rest is counted.
pub(super) const SHOWN: usize = 10;

/// Findings of the same check and severity, adjacent in a sorted report.
pub(super) struct FindingGroup<'r> {
    /// The first finding, whose title and remedy stand for all.
    pub(super) first: &'r Finding,
    /// All findings that were kept.
    pub(super) findings: &'r [Finding],
    /// How many findings were counted only.
    counted: usize,
}

impl<'r> FindingGroup<'r> {
    /// The findings that are shown.
    pub(super) fn shown(&self) -> impl Iterator<Item = &'r Finding> {
        self.findings.iter().take(SHOWN)
    }

    /// The number of findings.
    pub(super) fn total(&self) -> usize {
        self.findings.len() + self.counted
    }

    /// The number of findings that are not shown.
    pub(super) fn more(&self) -> usize {
        self.total().saturating_sub(SHOWN)
    }

    /// The findings that are shown, one per line, and the number of the others.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.shown().map(line).collect();
        if self.more() > 0 {
            lines.push(format!("and {} more", self.more()));
        }
        lines
    }
}

/// A finding as one line.
pub(super) fn line(finding: &Finding) -> String {
    format!(
        "{}: expected {}, found {}",
        clean(&finding.place.to_string()),
        clean(&finding.expected),
        clean(&finding.found)
    )
}

/// Checks that were skipped for the same reason.
pub(super) struct SkippedGroup<'r> {
    /// The reason.
    pub(super) why: &'r str,
    /// Whether the verdict needs them.
    pub(super) needed: bool,
    /// Their ids, in the order of the report.
    pub(super) ids: Vec<&'static str>,
}

impl SkippedGroup<'_> {
    /// What was skipped, and why: `tokenizer.malformed: there is no tokenizer`, `34 checks: no tensor could be read`.
    pub(super) fn line(&self) -> String {
        let what = match self.ids[..] {
            [id] => id.to_owned(),
            _ => count(self.ids.len(), "check"),
        };
        format!("{what}: {}", clean(self.why))
    }
}

/// The skipped checks by their reasons, in the order of the report; those that the verdict needs come first.
pub(super) fn skipped(report: &Report) -> Vec<SkippedGroup<'_>> {
    let mut groups: Vec<SkippedGroup<'_>> = Vec::new();
    for skipped in &report.skipped {
        let (why, needed) = (skipped.why.as_str(), skipped.needed);
        match groups
            .iter_mut()
            .find(|group| group.why == why && group.needed == needed)
        {
            Some(group) => group.ids.push(skipped.check.id),
            None => groups.push(SkippedGroup {
                why,
                needed,
                ids: vec![skipped.check.id],
            }),
        }
    }
    groups.sort_by_key(|group| !group.needed);
    groups
}

/// Why the command could not run, and what to do about it, on a line each.
pub(super) fn error_lines(error: &Refusal) -> Vec<String> {
    let hint = error.hint().map(|hint| format!("hint: {}", clean(&hint)));
    [clean(&error.to_string())]
        .into_iter()
        .chain(hint)
        .collect()
}

/// The groups of a sorted report, worst first.
pub(super) fn groups(report: &Report) -> impl Iterator<Item = FindingGroup<'_>> {
    report
        .findings
        .chunk_by(|a, b| a.check.id == b.check.id && a.severity == b.severity)
        .filter_map(|findings| {
            let first = findings.first()?;
            let same =
                |more: &&More| more.check.id == first.check.id && more.severity == first.severity;
            // A policy can merge findings of two severities into one group.
            let counted = report.more.iter().filter(same).map(|more| more.count).sum();
            Some(FindingGroup {
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

/// The path of a finding's file, relative to where the command was run, if it is known.
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
        // With two checkpoints, the file's name does not say which folder it is in.
        crate::Command::Diff => file.to_owned(),
        _ if is_file => subject.to_owned(),
        _ if subject.is_empty() || subject == "." => file.to_owned(),
        _ => format!("{subject}/{file}"),
    })
}
