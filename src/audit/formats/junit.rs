//! A report as JUnit XML: a test case for each check.

use quick_junit::{NonSuccessKind, Property, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::clean::clean;
use super::groups::{FindingGroup, error_lines, groups};
use crate::{CheckInfo, Report, Severity};

/// The report as JUnit XML. A check with errors is a failed test; any other check passes, and its findings become the
/// test's output. A check that was skipped is a skipped test, or an error if the verdict needs it. A command that could
/// not run is a test with an error. Times are left out, so that the same report always gives the same file.
///
/// # Errors
/// The XML cannot be written. Names with characters that XML cannot hold are no reason.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let name = format!("weld {}", report.command.name());
    let mut suite = TestSuite::new(format!("{name} {}", clean(&report.subject)));
    for (key, value) in &report.summary {
        suite.add_property(Property::new(clean(key), clean(value)));
    }
    for change in &report.policy {
        suite.add_property(Property::new("policy", change.to_string()));
    }
    let groups: Vec<FindingGroup<'_>> = groups(report).collect();
    let is_skipped = |check: &CheckInfo| report.skipped.iter().any(|s| s.check.id == check.id);
    let mut checks: Vec<&CheckInfo> = Vec::new();
    let found = groups.iter().map(|group| group.first.check);
    for check in report.checked.iter().copied().chain(found) {
        if !checks.iter().any(|known| known.id == check.id) {
            checks.push(check);
        }
    }
    for check in checks {
        let of: Vec<&FindingGroup<'_>> = groups
            .iter()
            .filter(|group| group.first.check.id == check.id)
            .collect();
        if !of.is_empty() || !is_skipped(check) {
            suite.add_test_case(case(report, check, made(check, &of), &of));
        }
    }
    for skipped in &report.skipped {
        let mut status = match skipped.needed {
            true => TestCaseStatus::non_success(NonSuccessKind::Error),
            false => TestCaseStatus::skipped(),
        };
        status.set_message(clean(&skipped.why));
        status.set_type("skipped");
        suite.add_test_case(case(report, skipped.check, status, &[]));
    }
    if let Some(error) = &report.error {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(clean(&error.to_string()));
        status.set_type("could not run");
        status.set_description(error_lines(error).join("\n"));
        let mut case = TestCase::new("weld could run", status);
        case.set_classname(format!("weld.{}", report.command.name()));
        suite.add_test_case(case);
    }
    let mut junit = quick_junit::Report::new(name);
    junit.add_test_suite(suite);
    // Jenkins' schema allows this attribute in suites only. The first one written is that of the root.
    let skipped = format!(
        " skipped=\"{}\"",
        report.skipped.iter().filter(|s| !s.needed).count()
    );
    Ok(junit.to_string()?.replacen(&skipped, "", 1))
}

/// The result of a check that was made.
fn made(check: &CheckInfo, groups: &[&FindingGroup<'_>]) -> TestCaseStatus {
    let error = |group: &&&FindingGroup<'_>| group.first.severity == Severity::Error;
    let Some(group) = groups.iter().find(error) else {
        return TestCaseStatus::success();
    };
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_message(check.title);
    status.set_type(check.id);
    status.set_description(said(group));
    status
}

fn case(
    report: &Report,
    check: &CheckInfo,
    status: TestCaseStatus,
    groups: &[&FindingGroup<'_>],
) -> TestCase {
    let mut case = TestCase::new(check.id, status);
    case.set_classname(format!("weld.{}", report.command.name()));
    let mild = groups
        .iter()
        .filter(|group| group.first.severity < Severity::Error);
    let mild: Vec<String> = mild.map(|group| said(group)).collect();
    if !mild.is_empty() {
        case.set_system_out(mild.join("\n"));
    }
    case
}

fn said(group: &FindingGroup<'_>) -> String {
    let first = group.first;
    format!(
        "{}: {}\n{}\nhint: {}\n",
        first.severity,
        first.check.title,
        group.lines().join("\n"),
        clean(first.remedy())
    )
}
