//! A report as SARIF 2.1.0, for code scanning.

use serde_json::{Value, json};

use super::clean::clean;
use super::groups::{FindingGroup, error_lines, groups, path};
use crate::{CheckInfo, Finding, Report};

/// The report as SARIF: a rule for each check, and one result for each check and severity with findings. A result lists
/// only the places of its first findings, because viewers of code would not show hundreds of places in one binary file.
pub fn sarif(report: &Report) -> Value {
    let rules = rules(report);
    let results: Vec<Value> = groups(report)
        .map(|group| result(report, &group, &rules))
        .collect();
    let not_made = report.skipped.iter().map(|skipped| {
        json!({
            "level": if skipped.needed { "error" } else { "note" },
            "message": {"text": format!("{} was not checked: {}", skipped.check.id, clean(&skipped.why))},
            "associatedRule": {"id": skipped.check.id},
        })
    });
    let error = report.error.iter().map(|error| {
        json!({
            "level": "error",
            "message": {"text": format!("weld could not run: {}", error_lines(error).join("\n"))},
        })
    });
    let notifications: Vec<Value> = error.chain(not_made).collect();
    let policy: Vec<String> = report.policy.iter().map(ToString::to_string).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "weldment",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.iter().map(|check| rule(check)).collect::<Vec<_>>(),
            }},
            "automationDetails": {"id": format!("weld-{}/", report.command.name())},
            "invocations": [{
                // Any verdict on the checkpoint, even a failed one, means that the tool itself succeeded.
                "executionSuccessful": report.error.is_none(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
            "properties": {
                "subject": clean(&report.subject),
                "verdict": report.verdict().name(),
                "policy": policy,
            },
        }],
    })
}

/// Every check that occurs in the report, once.
fn rules(report: &Report) -> Vec<&'static CheckInfo> {
    let made = report.checked.iter().copied();
    let skipped = report.skipped.iter().map(|skipped| skipped.check);
    let found = report.findings.iter().map(|finding| finding.check);
    let mut rules: Vec<&'static CheckInfo> = Vec::new();
    let mut known = std::collections::HashSet::new();
    rules.extend(
        made.chain(skipped)
            .chain(found)
            .filter(|check| known.insert(check.id)),
    );
    rules
}

fn rule(check: &CheckInfo) -> Value {
    json!({
        "id": check.id,
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": format!("{}. {}", check.title, check.why)},
        "help": {"text": format!("{}\n\nWhat to do: {}.", check.why, check.remedy)},
        "defaultConfiguration": {"level": check.severity.name()},
    })
}

fn result(report: &Report, group: &FindingGroup<'_>, rules: &[&CheckInfo]) -> Value {
    let first = group.first;
    let mut locations: Vec<Value> = Vec::new();
    for finding in group.shown() {
        let location = location(report, finding);
        if !locations.contains(&location) {
            locations.push(location);
        }
    }
    json!({
        "ruleId": first.check.id,
        "ruleIndex": rules.iter().position(|check| check.id == first.check.id),
        "level": first.severity.name(),
        "message": {"text": format!(
            "{}\n{}\nWhat to do: {}.",
            first.check.title,
            group.lines().join("\n"),
            clean(first.remedy())
        )},
        "locations": locations,
        "occurrenceCount": group.total(),
        "partialFingerprints": {"check/v1": format!("{} {}", first.check.id, clean(&report.subject))},
    })
}

fn location(report: &Report, finding: &Finding) -> Value {
    // Viewers of code require a file and a line, even for findings without.
    let file = path(report, finding).unwrap_or_else(|| report.subject.clone());
    let mut location = json!({"physicalLocation": {
        "artifactLocation": {"uri": uri(&file)},
        "region": {"startLine": 1},
    }});
    let logical = finding
        .place
        .tensor
        .as_ref()
        .or(finding.place.field.as_ref());
    if let Some(name) = logical {
        location["logicalLocations"] =
            json!([{"fullyQualifiedName": clean(name), "kind": "member"}]);
    }
    location
}

/// A path as a URI. An absolute path gets its scheme; everything but letters, digits and `-._~/` is escaped.
fn uri(path: &str) -> String {
    let escaped: String = path
        .bytes()
        .take(MAX_PATH)
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect();
    match escaped.starts_with('/') {
        true => format!("file://{escaped}"),
        false => escaped,
    }
}

/// The most bytes of a path that are kept, which is Linux's limit.
const MAX_PATH: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        let check = |path: &str, expected: &str| assert_eq!(uri(path), expected, "{path}");
        check("out/model-00001.safetensors", "out/model-00001.safetensors");
        check("/data/my model", "file:///data/my%20model");
        check("a: b/ü\n", "a%3A%20b/%C3%BC%0A");
    }
}
