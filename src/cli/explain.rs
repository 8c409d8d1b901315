//! `weld explain`: what a finding, a method or a runtime means, from the registries.

use std::collections::BTreeSet;
use std::fmt::Write;

use architecture::Runtime;
use clap::Args;
use serde_json::{Value, json};

use super::arguments::{Format, Suggesting, any, method_names};
use super::output::{Failure, print, print_json};
use super::{fit, methods};
use audit::formats::columns;
use audit::{CheckInfo, all_checks, command_of, examples_of};
use errors::Refusal;
use recipe::nearest;

/// Explain a finding by its id, a merge method or a runtime
///
/// Reports name findings by ids such as `container.truncated`. Without a name, lists all of them.
#[derive(Args)]
pub(super) struct Arguments {
    /// The id of a finding, or its part before the dot; a method; a runtime
    #[arg(value_parser = Suggesting(any, names), hide_possible_values = true)]
    name: Option<String>,

    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let name = arguments.name.as_deref().map(bare);
    let checks: Vec<&'static CheckInfo> = match name {
        None => all_checks().collect(),
        Some(name) => all_checks()
            .filter(|check| check.id == name || check.group() == name)
            .collect(),
    };
    match (name, arguments.format, checks.as_slice()) {
        (Some(name), format, []) => other(name, format),
        (_, Format::Json, _) => {
            let checks: Value = checks.into_iter().map(as_json).collect();
            print_json(&checks)
        }
        (Some(name), Format::Text, [check]) if check.id == name => print(&page(check)),
        (_, Format::Text, _) => print(&list(&checks, fit::stdout_width())),
    }
}

/// The id in what a report prints: `container.truncated` of `error[container.truncated]: ...`.
fn bare(name: &str) -> &str {
    let within = name
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    within.map_or(name, |(id, _)| id).trim()
}

/// Explains a method or a runtime.
fn other(name: &str, format: Format) -> Result<(), Failure> {
    if let Some(method) = ::methods::find(name) {
        return match format {
            Format::Text => print(&methods::page(method.info())),
            Format::Json => print_json(&methods::as_json(method.info())),
        };
    }
    let runtimes: Vec<&Runtime> = Runtime::all()
        .filter(|runtime| runtime.name == name)
        .collect();
    match (runtimes.as_slice(), format) {
        ([], _) => Err(unknown(name)),
        (runtimes, Format::Text) => print(&runtime_page(name, runtimes)),
        (runtimes, Format::Json) => {
            let versions: Vec<&str> = runtimes.iter().map(|runtime| runtime.version).collect();
            print_json(&json!({"runtime": name, "versions": versions}))
        }
    }
}

fn unknown(name: &str) -> Failure {
    let near = nearest(name, names()).map(|near| format!("did you mean `{near}`? "));
    let refusal = Refusal::new(format!("there is no finding, method or runtime `{name}`"));
    Failure::input(refusal.with_hint(format!(
        "{}`weld explain` lists the ids of findings, `weld methods` the methods",
        near.unwrap_or_default()
    )))
}

/// All names that can be explained.
fn names() -> Vec<&'static str> {
    let groups: BTreeSet<&str> = all_checks().map(CheckInfo::group).collect();
    let checks = all_checks().map(|check| check.id);
    let others = method_names().into_iter().chain(Runtime::names());
    checks.chain(groups).chain(others).collect()
}

fn list(checks: &[&CheckInfo], width: Option<usize>) -> String {
    let mut out = String::new();
    for group in checks.chunk_by(|a, b| a.group() == b.group()) {
        let command = group.first().map_or("", |check| command_of(check));
        let name = group.first().map_or("", |check| check.group());
        let _ = writeln!(out, "{name}: {command}");
        let rows: Vec<Vec<String>> = group
            .iter()
            .map(|check| vec![check.id.to_owned(), check.title.to_owned()])
            .collect();
        for line in columns(&rows, false, width.map(|width| width.saturating_sub(2))) {
            let _ = writeln!(out, "  {line}");
        }
        out.push('\n');
    }
    out.trim_end().to_owned()
}

fn page(check: &CheckInfo) -> String {
    let CheckInfo {
        id,
        severity,
        title,
        why,
        remedy,
    } = check;
    let mut out = format!("{id} ({severity}): {title}\n\nwhy      {why}\n");
    for example in examples_of(check) {
        let _ = writeln!(out, "example  {example}");
    }
    let _ = write!(
        out,
        "remedy   {remedy}\n\
         found by {}\n\
         policy   `\"{id}\" = \"off\"` or another severity, under `[severity]` (docs/ci.md)\n",
        command_of(check)
    );
    out
}

fn runtime_page(name: &str, runtimes: &[&Runtime]) -> String {
    let versions: Vec<&str> = runtimes.iter().map(|runtime| runtime.version).collect();
    let topics: Vec<&str> = (all_checks().filter(|check| check.group() == "runtime"))
        .map(|check| check.id)
        .collect();
    format!(
        "{name}: a program that runs checkpoints\n\n\
         versions {}\n\
         use      `weld check MODEL --for {name}` finds what it reads otherwise than the checkpoint means it\n\
         findings {}\n",
        versions.join(", "),
        topics.join(", ")
    )
}

fn as_json(check: &CheckInfo) -> Value {
    json!({
        "id": check.id,
        "severity": check.severity.name(),
        "title": check.title,
        "why": check.why,
        "examples": examples_of(check).collect::<Vec<_>>(),
        "remedy": check.remedy,
        "command": command_of(check),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_lines_of_reports() {
        assert_eq!(
            bare("error[container.truncated]: A file"),
            "container.truncated"
        );
        assert_eq!(bare(" ties "), "ties");
        assert_eq!(bare("x[y"), "x[y");
    }

    #[test]
    fn every_name_means_one_thing() {
        let names = names();
        let unique: BTreeSet<&&str> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        for check in all_checks() {
            assert!(page(check).contains(check.why), "{}", check.id);
        }
    }
}
