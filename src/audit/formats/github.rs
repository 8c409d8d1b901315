//! A report as workflow commands, which GitHub's runner turns into annotations.

use super::clean::clean;
use super::groups::{Group, counts, groups, path};
use crate::{Report, Severity, Verdict};

/// Annotations of a kind that the runner takes from one step.
const MAX_OF_A_KIND: usize = 10;

/// The report as workflow commands, a line each: one annotation for each check and severity that something was found
/// of, then the verdict.
pub fn github(report: &Report) -> String {
    let mut out = String::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Note] {
        let of: Vec<Group<'_>> = groups(report)
            .filter(|group| group.first.severity == severity)
            .collect();
        let not_made = not_made(report, severity);
        // One place is kept to say what the others were.
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

/// What leaves a report open is a warning, and shows where nothing else does.
fn not_made(report: &Report, severity: Severity) -> Vec<String> {
    let open = report.verdict() == Verdict::Inconclusive && severity == Severity::Warning;
    let needed = report
        .skipped
        .iter()
        .filter(|skipped| open && skipped.needed);
    needed
        .map(|skipped| {
            let title = format!("{}: not checked", skipped.check.id);
            command(severity, None, &title, &clean(&skipped.why))
        })
        .collect()
}

fn annotation(report: &Report, group: &Group<'_>) -> String {
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

/// A message: what would end the line is escaped, and the escape itself.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property: also what would end it.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
