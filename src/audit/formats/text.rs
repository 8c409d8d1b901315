//! A report for people at a terminal.

use std::fmt::{self, Write};

use super::clean::clean;
use super::groups::{counts, error_lines, groups, skipped};
use crate::{Report, Table};

/// The report as text: findings (worst first), tables, summary, verdict.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
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
        write_table(out, table)?;
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

fn write_table(out: &mut String, table: &Table) -> fmt::Result {
    writeln!(out, "{}", clean(&table.title))?;
    let rows = std::iter::once(&table.columns).chain(&table.rows);
    let rows: Vec<Vec<String>> = rows
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }
    writeln!(out)
}
