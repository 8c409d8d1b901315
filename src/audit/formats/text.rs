//! A report for people at a terminal.

use std::fmt::{self, Write};

use super::clean::clean;
use super::columns::columns;
use super::groups::{counts, error_lines, groups, skipped};
use crate::{Report, Table};

/// What stands before each row of a table.
const INDENT: &str = "  ";

/// The report as text: findings (worst first), tables, summary, verdict. Tables have at most `width` columns of
/// characters, if it is given.
pub fn text(report: &Report, width: Option<usize>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, report, width);
    out
}

fn write(out: &mut String, report: &Report, width: Option<usize>) -> fmt::Result {
    for group in groups(report) {
        let first = group.first;
        writeln!(
            out,
            "{}[{}]: {}",
            first.severity, first.check.id, first.check.title
        )?;
        for line in group.lines() {
            writeln!(out, "  {line}")?;
        }
        writeln!(out, "  hint: {}\n", clean(first.remedy()))?;
    }
    for table in &report.tables {
        write_table(out, table, width)?;
    }
    for (name, value) in &report.summary {
        writeln!(out, "{:<10} {}", clean(name), clean(value))?;
    }
    for change in &report.policy {
        writeln!(out, "{:<10} {change}", "policy")?;
    }
    for group in skipped(report) {
        writeln!(out, "{:<10} {}", "skipped", group.line())?;
    }
    if let Some(error) = &report.error {
        let lines = error_lines(error).join("\n  ");
        return writeln!(out, "error      {}: {lines}", clean(&report.subject));
    }
    writeln!(
        out,
        "{:<10} {}: {}",
        report.verdict().name(),
        clean(&report.subject),
        counts(report)
    )
}

fn write_table(out: &mut String, table: &Table, width: Option<usize>) -> fmt::Result {
    writeln!(out, "{}", clean(&table.title))?;
    let rows = std::iter::once(&table.columns).chain(&table.rows);
    let rows: Vec<Vec<String>> = rows
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let width = width.map(|width| width.saturating_sub(INDENT.len()));
    for line in columns(&rows, true, width) {
        writeln!(out, "{INDENT}{line}")?;
    }
    writeln!(out)
}
