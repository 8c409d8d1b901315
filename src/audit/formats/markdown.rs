//! A report as Markdown, for step summaries and comments on pull requests.

use super::clean::clean;
use super::groups::{FindingGroup, counts, error_lines, groups, skipped};
use crate::{Report, Severity, Table, Verdict};

/// The most bytes in total: GitHub accepts comments of 65,536 characters.
const MAX_BYTES: usize = 60_000;

/// After this many bytes no more findings are shown, to leave room for tables.
const MAX_FINDINGS_BYTES: usize = 40_000;

/// The report as GitHub's Markdown: verdict and counts, a table of findings, and collapsed tables. It is always shorter
/// than 64 kB.
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let icon = match report.verdict() {
        Verdict::Passed => "✅",
        Verdict::Failed => "❌",
        Verdict::Inconclusive => "❔",
        Verdict::Error => "⛔",
    };
    if let Some(error) = &report.error {
        out += &format!(
            "## {icon} weld {} could not run\n\n{}\n\n{}\n",
            report.command.name(),
            code(&report.subject),
            code(&error_lines(error).join(" "))
        );
        return out;
    }
    out += &format!(
        "## {icon} weld {}: {}\n\n{}: {}\n",
        report.command.name(),
        report.verdict().name(),
        code(&report.subject),
        counts(report)
    );
    findings(&mut out, report);
    for group in skipped(report).iter().filter(|group| group.needed) {
        let line = format!(
            "\n**Not checked**: {}: {}\n",
            group.ids.join(", "),
            code(group.why)
        );
        push(&mut out, &line, MAX_BYTES);
    }
    for change in &report.policy {
        push(&mut out, &format!("\nPolicy: {change}\n"), MAX_BYTES);
    }
    let summary = Table {
        title: "Summary".to_owned(),
        columns: vec!["name".to_owned(), "value".to_owned()],
        rows: report
            .summary
            .iter()
            .map(|(name, value)| vec![name.clone(), value.clone()])
            .collect(),
    };
    for table in std::iter::once(&summary).chain(&report.tables) {
        folded(&mut out, table);
    }
    out
}

fn findings(out: &mut String, report: &Report) {
    if report.findings.is_empty() {
        return;
    }
    out.push_str("\n| | check | where | expected | found |\n|---|---|---|---|---|\n");
    let mut left_out = 0;
    for group in groups(report) {
        for finding in group.shown() {
            let line = format!(
                "| {} | {} | {} | {} | {} |\n",
                mark(finding.severity),
                finding.check.id,
                code(&finding.place.to_string()),
                code(&finding.expected),
                code(&finding.found)
            );
            left_out += usize::from(!push(out, &line, MAX_FINDINGS_BYTES));
        }
        left_out += group.more();
    }
    if left_out > 0 {
        out.push_str(&format!("\nAnd {left_out} more findings.\n"));
    }
    out.push_str("\n<details><summary>What to do</summary>\n\n");
    for group in groups(report) {
        push(out, &what_to_do(&group), MAX_FINDINGS_BYTES);
    }
    out.push_str("\n</details>\n");
}

fn what_to_do(group: &FindingGroup<'_>) -> String {
    let check = group.first.check;
    format!(
        "- **{}**: {}. {} What to do: {}.\n",
        check.id,
        check.title,
        check.why,
        match &group.first.remedy {
            Some(remedy) => code(remedy),
            None => check.remedy.to_owned(),
        }
    )
}

fn folded(out: &mut String, table: &Table) {
    if table.rows.is_empty() {
        return;
    }
    let row = |cells: &[String]| {
        let mut line = String::from("|");
        for column in 0..table.columns.len() {
            let cell = cells.get(column).map_or("", String::as_str);
            line += &format!(" {} |", code(cell));
        }
        line + "\n"
    };
    let head = format!(
        "\n<details><summary>{}</summary>\n\n{}|{}\n",
        code(&table.title),
        row(&table.columns),
        "---|".repeat(table.columns.len())
    );
    // Bytes reserved for the closing text.
    const CLOSING: usize = 100;
    if !push(out, &head, MAX_BYTES) {
        return;
    }
    let shown = table
        .rows
        .iter()
        .take_while(|cells| push(out, &row(cells), MAX_BYTES - CLOSING))
        .count();
    if shown < table.rows.len() {
        out.push_str(&format!("\n{} more rows\n", table.rows.len() - shown));
    }
    out.push_str("\n</details>\n");
}

/// Appends a text if it fits.
fn push(out: &mut String, text: &str, max: usize) -> bool {
    let fits = out.len() + text.len() <= max;
    if fits {
        out.push_str(text);
    }
    fits
}

fn mark(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "❌ error",
        Severity::Warning => "⚠️ warning",
        Severity::Note => "ℹ️ note",
    }
}

/// Untrusted text: in `<code>`, where GitHub makes no mentions, links or formulas of it, with every special character
/// of Markdown or HTML written as an entity. A code span would not do, because a `|` inside it ends the table's cell.
fn code(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut out = String::from("<code>");
    for c in clean(text).chars() {
        let plain = match c {
            // Starts an emphasis, except within a word.
            '_' => out.ends_with(char::is_alphanumeric),
            // `www.` would become a link.
            'w' => !out.ends_with('w'),
            '.' | ',' | '-' | ' ' | '(' | ')' | '%' | '=' | '+' | '/' => true,
            c => c.is_alphanumeric() || !c.is_ascii(),
        };
        if plain {
            out.push(c);
        } else {
            out += &format!("&#{};", u32::from(c));
        }
    }
    out + "</code>"
}
