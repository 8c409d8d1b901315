//! The page's text: verdict, findings, tables.

use serde::Serialize;

use crate::formats::clean::clean;
use crate::formats::groups::{FindingGroup, error_lines, groups, skipped};
use crate::{Command, Finding, Report, Severity, Table, Verdict};

/// The most findings of a group on the page; the rest is counted.
const MAX_FINDINGS: usize = 200;

/// The most rows of a table on the page.
const MAX_ROWS: usize = 1000;

/// The template's variable `page`.
#[derive(Serialize)]
pub(super) struct Page {
    command: &'static str,
    subject: String,
    version: &'static str,
    verdict: &'static str,
    meaning: &'static str,
    /// Why weld could not run, on a line each.
    error: Vec<String>,
    counts: Vec<Count>,
    summary: Vec<(String, String)>,
    groups: Vec<Shown>,
    policy: Vec<String>,
    skipped: Vec<NotMade>,
    tables: Vec<TableRows>,
    checked: Vec<(&'static str, &'static str)>,
}

#[derive(Serialize)]
struct Count {
    count: usize,
    of: &'static str,
}

#[derive(Serialize)]
struct Shown {
    severity: &'static str,
    id: &'static str,
    title: &'static str,
    why: &'static str,
    remedy: String,
    count: usize,
    findings: Vec<Row>,
    more: usize,
}

#[derive(Serialize)]
struct Row {
    place: String,
    /// The file, unless the place already names it.
    file: Option<String>,
    expected: String,
    found: String,
}

#[derive(Serialize)]
struct NotMade {
    why: String,
    needed: bool,
    ids: Vec<&'static str>,
}

#[derive(Serialize)]
struct TableRows {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
    more: usize,
    open: bool,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    is_number: bool,
}

pub(super) fn page(report: &Report) -> Page {
    let counts = [Severity::Error, Severity::Warning, Severity::Note];
    Page {
        command: report.command.name(),
        subject: clean(&report.subject),
        version: env!("CARGO_PKG_VERSION"),
        verdict: report.verdict().name(),
        meaning: match report.verdict() {
            Verdict::Passed if report.command == Command::Diff => {
                "The checkpoints are equal, or differ within the limits."
            }
            Verdict::Passed if report.command == Command::Analyse => "The models were measured.",
            Verdict::Passed if report.command == Command::Eval => {
                "The scores are within the bounds, if there are any."
            }
            Verdict::Failed if report.command == Command::Eval => {
                "The model is worse than the baseline by more than it may be."
            }
            Verdict::Passed => "Nothing is wrong in what was looked at.",
            Verdict::Failed if report.command == Command::Diff => "The checkpoints differ.",
            Verdict::Failed => "Something is wrong.",
            Verdict::Inconclusive => "Nothing wrong was found, but not all could be looked at.",
            Verdict::Error => "weld could not run, so nothing was looked at.",
        },
        error: report.error.iter().flat_map(error_lines).collect(),
        counts: counts
            .map(|severity| Count {
                count: report.count(severity),
                of: severity.name(),
            })
            .into(),
        summary: report
            .summary
            .iter()
            .map(|(name, value)| (clean(name), clean(value)))
            .collect(),
        groups: groups(report).map(|group| shown(&group)).collect(),
        policy: report.policy.iter().map(ToString::to_string).collect(),
        skipped: skipped(report)
            .into_iter()
            .map(|group| NotMade {
                why: clean(group.why),
                needed: group.needed,
                ids: group.ids,
            })
            .collect(),
        tables: report.tables.iter().map(rows).collect(),
        checked: report
            .checked
            .iter()
            .map(|check| (check.id, check.title))
            .collect(),
    }
}

fn shown(group: &FindingGroup<'_>) -> Shown {
    let first = group.first;
    Shown {
        severity: first.severity.name(),
        id: first.check.id,
        title: first.check.title,
        why: first.check.why,
        remedy: clean(first.remedy()),
        count: group.total(),
        findings: group.findings.iter().take(MAX_FINDINGS).map(row).collect(),
        more: group.total().saturating_sub(MAX_FINDINGS),
    }
}

fn row(finding: &Finding) -> Row {
    Row {
        place: clean(&finding.place.to_string()),
        file: finding
            .place
            .tensor
            .as_ref()
            .and(finding.place.file.as_deref())
            .map(clean),
        expected: clean(&finding.expected),
        found: clean(&finding.found),
    }
}

/// Whether a cell is a number or an interval, which no line break may cut: `97.2 %`, `0.1 to 0.4`, `below 0.0001`.
fn is_number(text: &str) -> bool {
    let is_part = |word: &str| word.parse::<f64>().is_ok() || ["to", "below", "%"].contains(&word);
    text.contains(|digit: char| digit.is_ascii_digit()) && text.split(' ').all(is_part)
}

fn rows(table: &Table) -> TableRows {
    let cell = |text: &String| Cell {
        is_number: is_number(text),
        text: clean(text),
    };
    TableRows {
        title: clean(&table.title),
        columns: table.columns.iter().map(|column| clean(column)).collect(),
        rows: table
            .rows
            .iter()
            .take(MAX_ROWS)
            .map(|row| row.iter().map(cell).collect())
            .collect(),
        more: table.rows.len().saturating_sub(MAX_ROWS),
        open: table.rows.len() <= 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_intervals_are_not_broken() {
        for text in [
            "0.5",
            "-1e-3",
            "97.2 %",
            "-0.1 to 0.4",
            "below 0.0001",
            "12",
        ] {
            assert!(is_number(text), "{text}");
        }
        for text in ["", "to", "model.layers.0", "2 of 3", "v0.1", "-"] {
            assert!(!is_number(text), "{text}");
        }
    }
}
