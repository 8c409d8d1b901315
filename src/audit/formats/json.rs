//! A report for programs.

use serde_json::{Value, json};

use errors::Hint;

use crate::{Finding, Report, Severity};

/// The report as JSON; its keys are part of the interface.
pub fn json(report: &Report) -> Value {
    json!({
        "tool": {"name": "weldment", "version": env!("CARGO_PKG_VERSION")},
        "command": report.command.name(),
        "subject": report.subject,
        "verdict": report.verdict().name(),
        "error": report.error.as_ref().map(|error| json!({
            "message": error.to_string(), "hint": error.hint(),
        })),
        "summary": report.summary.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "more_findings": report.more.iter().map(|more| json!({
            "check": more.check.id, "severity": more.severity.name(), "findings": more.count,
        })).collect::<Vec<_>>(),
        "checked": report.checked.iter().map(|check| check.id).collect::<Vec<_>>(),
        "skipped": report.skipped.iter().map(|skipped| json!({
            "check": skipped.check.id, "why": skipped.why, "needed": skipped.needed,
        })).collect::<Vec<_>>(),
        "policy": report.policy.iter().map(|change| json!({
            "check": change.check.id,
            "from": change.from.name(),
            "to": change.to.map_or("off", Severity::name),
            "findings": change.count,
        })).collect::<Vec<_>>(),
        "details": report.details,
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "check": finding.check.id,
        "severity": finding.severity.name(),
        "file": finding.place.file,
        "tensor": finding.place.tensor,
        "field": finding.place.field,
        "expected": finding.expected,
        "found": finding.found,
        "remedy": finding.remedy(),
    })
}
