//! A report as workflow commands, which GitHub's runner turns into annotations.

use super::clean::clean;
use super::groups::{FindingGroup, counts, error_lines, groups, path, skipped};
use crate::{Report, Severity, Verdict};

/// The most annotations of one level that the runner accepts from a step.
const MAX_OF_A_KIND: usize = 10;

/// The report as workflow commands, one per line: an annotation for each check and severity with findings, then the
/// verdict.
pub fn github(report: &Report) -> String {
    if let Some(error) = &report.error {
        let title = format!("weld {} could not run", report.command.name());
        let message = error_lines(error).join("\n");
        return command(Severity::Error, None, &title, &message);
    }
    let mut out = String::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Note] {
        let of: Vec<FindingGroup<'_>> = groups(report)
            .filter(|group| group.first.severity == severity)
            .collect();
        let not_made = not_made(report, severity);
        // One annotation is reserved for a summary of those left out.
        let all = of.len() + not_made.len();
        let room = if all > MAX_OF_A_KIND {
            MAX_OF_A_KIND - 1
        } else {
            all
        };
        let annotations = of.iter().map(|group| annotation(report, group));
        let lines: Vec<String> = annotations.chain(not_made).collect();
        for line in lines.iter().take(room) {
            out += line;
        }
        if all > room {
            let more = format!(
                "{} more kinds of findings: see the whole report",
                all - room
            );
            out += &command(severity, None, "weldment", &more);
        }
    }
    let verdict = report.verdict().name();
    out += &format!("{verdict} {}: {}\n", clean(&report.subject), counts(report));
    out
}

/// Messages on checks that were skipped. One that the verdict needs is a warning, because it shows nowhere else.
fn not_made(report: &Report, severity: Severity) -> Vec<String> {
    let open = report.verdict() == Verdict::Inconclusive && severity == Severity::Warning;
    let needed = skipped(report)
        .into_iter()
        .filter(|group| open && group.needed);
    needed
        .map(|group| {
            let title = format!("not checked: {}", group.ids.join(", "));
            command(severity, None, &clean(&title), &clean(group.why))
        })
        .collect()
}

fn annotation(report: &Report, group: &FindingGroup<'_>) -> String {
    let first = group.first;
    let title = format!("{}: {}", first.check.id, first.check.title);
    let mut message = group.lines();
    message.push(format!("hint: {}", clean(first.remedy())));
    let file = path(report, first);
    command(first.severity, file.as_deref(), &title, &message.join("\n"))
}

fn command(severity: Severity, file: Option<&str>, title: &str, message: &str) -> String {
    let kind = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let file = file.map_or(String::new(), |file| {
        format!("file={},", property(&clean(file)))
    });
    format!(
        "::{kind} {file}title={}::{}\n",
        property(title),
        data(message)
    )
}

/// Escapes a message: line ends and the escape character.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// Escapes a property, which also ends at `:` and `,`.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
