//! A report for people at a terminal.

use std::fmt::Write;

use crate::audit::{Report, Severity};

/// Findings of one check that are shown before the rest is counted.
const SHOWN: usize = 10;

/// The report as text: findings first, worst on top, then tables, then the summary and the verdict.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let mut rest = report.findings.as_slice();
    while let Some(first) = rest.first() {
        let same = |f: &crate::audit::Finding| {
            f.check.id == first.check.id && f.severity == first.severity
        };
        let count = rest.iter().take_while(|finding| same(finding)).count();
        let (group, after) = rest.split_at(count);
        rest = after;
        writeln!(
            out,
            "{}[{}]: {}",
            first.severity, first.check.id, first.check.title
        )?;
        for finding in group.iter().take(SHOWN) {
            writeln!(
                out,
                "  {}: expected {}, found {}",
                finding.place, finding.expected, finding.found
            )?;
        }
        if count > SHOWN {
            writeln!(out, "  and {} more", count - SHOWN)?;
        }
        writeln!(out, "  hint: {}\n", first.remedy())?;
    }
    for table in &report.tables {
        writeln!(out, "{}", table.title)?;
        let rows = std::iter::once(&table.columns).chain(&table.rows);
        let width = |column: usize| {
            let cells = rows.clone().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
        for row in rows.clone() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(out, "  {}", cells.join("  ").trim_end())?;
        }
        writeln!(out)?;
    }
    for (name, value) in &report.summary {
        writeln!(out, "{name:<10} {value}")?;
    }
    for skipped in &report.skipped {
        writeln!(out, "not made   {}: {}", skipped.check.id, skipped.why)?;
    }
    writeln!(
        out,
        "{:<10} {}: {} errors, {} warnings, {} notes, {} checks made",
        report.verdict().name(),
        report.subject,
        report.count(Severity::Error),
        report.count(Severity::Warning),
        report.count(Severity::Note),
        report.checked.len()
    )
}
