//! Tests every format on a realistic report and on a hostile one.

use std::path::Path;

use super::samples::{HOSTILE, hostile, realistic};
use super::*;
use crate::{Command, Verdict};

fn written(format: ReportFormat, report: &Report) -> String {
    let written = format.write(report);
    written.unwrap_or_else(|error| panic!("{}: {error}", format.name()))
}

/// Writes samples of all formats into a folder, to look at them or to validate them against schemas.
#[test]
#[ignore = "writes target/report-samples"]
fn samples_to_look_at() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/report-samples");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, report) in [("realistic", realistic()), ("hostile", hostile())] {
        for format in ReportFormat::ALL {
            let path = folder.join(format!("{name}.{}", format.name()));
            std::fs::write(path, written(format, &report)).unwrap();
        }
    }
}

#[test]
fn no_format_shows_what_cannot_be_seen() {
    for format in ReportFormat::ALL {
        let out = written(format, &hostile());
        let bad = out.chars().find(|c| {
            (c.is_control() && *c != '\n')
                || matches!(c, '\u{202e}' | '\u{2066}' | '\u{fffe}' | '\u{ffff}')
        });
        assert_eq!(bad, None, "{}", format.name());
    }
}

#[test]
fn no_line_is_a_command_to_a_runner_but_those_of_its_format() {
    for format in ReportFormat::ALL {
        for line in written(format, &hostile()).lines() {
            let line = line.trim_start();
            let own = format == ReportFormat::Github
                && ["::error ", "::warning ", "::notice "]
                    .iter()
                    .any(|start| line.starts_with(start));
            assert!(own || !line.starts_with("::"), "{}: {line}", format.name());
            assert!(!line.contains("##["), "{}: {line}", format.name());
        }
    }
}

#[test]
fn nothing_is_endless() {
    let mut report = hostile();
    report.details = serde_json::Value::Null;
    for format in [
        ReportFormat::Text,
        ReportFormat::Github,
        ReportFormat::Sarif,
        ReportFormat::Junit,
        ReportFormat::Html,
    ] {
        let bytes = written(format, &report).len();
        assert!(bytes < 3_000_000, "{}: {bytes}", format.name());
    }
}

#[test]
fn annotations_are_few_and_each_is_a_line() {
    let out = written(ReportFormat::Github, &realistic());
    insta::assert_snapshot!(out);
    let mut many = realistic();
    let finding = many.findings[0].clone();
    let checks = crate::all_checks();
    many.findings = checks
        .map(|check| crate::Finding {
            check,
            ..finding.clone()
        })
        .collect();
    let out = written(ReportFormat::Github, &many);
    assert_eq!(out.matches("::error ").count(), 10, "{out}");
    assert!(out.contains("more kinds of findings"), "{out}");
}

#[test]
fn markdown_is_short_and_holds_no_markup_of_strangers() {
    for report in [realistic(), hostile()] {
        assert!(written(ReportFormat::Markdown, &report).len() < 64_000);
    }
    let mut out = written(ReportFormat::Markdown, &hostile());
    // What the checks say of themselves is ours, and may hold Markdown.
    for check in crate::all_checks() {
        for text in [check.title, check.why, check.remedy] {
            out = out.replace(text, "");
        }
    }
    for bad in [
        "<script", "<img", "](", "`", "@e", "www.e", "~~", "$x", "<!--", "{{",
    ] {
        assert!(!out.contains(bad), "{bad}");
    }
    assert_eq!(
        out.matches("<details>").count(),
        out.matches("</details>").count()
    );
    // Every row of a table has as many cells as the heading.
    let mut columns = None;
    for line in out.lines() {
        let cells = line.matches('|').count();
        match columns {
            _ if !line.starts_with('|') => columns = None,
            None => columns = Some(cells),
            Some(columns) => assert_eq!(cells, columns, "{line}"),
        }
    }
    insta::assert_snapshot!(written(ReportFormat::Markdown, &realistic()));
}

#[test]
fn the_page_is_whole_by_itself_and_holds_no_markup_of_strangers() {
    let out = written(ReportFormat::Html, &hostile());
    for bad in [
        "<script",
        "<img",
        "javascript:alert(1)\"",
        "<?xml",
        "<!-- hidden",
    ] {
        assert!(!out.contains(bad), "{bad}");
    }
    for tag in ["style", "title", "table", "section", "article", "svg"] {
        let opened =
            out.matches(&format!("<{tag}>")).count() + out.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, out.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let quiet = written(ReportFormat::Html, &realistic());
    for bad in ["<script", "http:", "https:", "url(", "@import", "src="] {
        assert!(!quiet.contains(bad), "{bad}");
    }
    assert!(quiet.contains("prefers-color-scheme: dark"));
    assert!(quiet.len() < 100_000, "{}", quiet.len());
}

#[test]
fn junit_has_a_case_for_each_check() {
    insta::assert_snapshot!(written(ReportFormat::Junit, &realistic()));
    let out = written(ReportFormat::Junit, &hostile());
    assert_eq!(out.matches("<testsuite ").count(), 1);
    // A check that the verdict needs must not be a skipped test, which CI shows as green.
    assert!(!out.contains("<skipped"), "{}", &out[..1000]);
    assert_eq!(out.matches("<error").count(), HOSTILE.len() + 1);
}

#[test]
fn sarif_has_a_result_for_each_check_and_a_place_for_each_result() {
    let report = realistic();
    insta::assert_snapshot!(written(ReportFormat::Sarif, &report));
    for report in [report, hostile()] {
        let sarif = sarif(&report);
        let run = &sarif["runs"][0];
        for result in run["results"].as_array().unwrap() {
            let index = result["ruleIndex"].as_u64().unwrap() as usize;
            assert_eq!(
                run["tool"]["driver"]["rules"][index]["id"],
                result["ruleId"]
            );
            let locations = result["locations"].as_array().unwrap();
            assert!((1..=10).contains(&locations.len()));
            for location in locations {
                let uri = location["physicalLocation"]["artifactLocation"]["uri"]
                    .as_str()
                    .unwrap();
                assert!(uri.is_ascii() && !uri.contains(' '), "{uri}");
                assert!(!uri.contains("../"), "{uri}");
            }
        }
    }
}

#[test]
fn text_says_what_a_person_needs() {
    insta::assert_snapshot!(written(ReportFormat::Text, &realistic()));
}

#[test]
fn every_format_tells_why_a_command_could_not_run() {
    let error = errors::Refusal::new("model `<a>\x1b` not found").with_hint("run `hf download a`");
    let report = Report::of_error(Command::Check, "<a>\x1b", error);
    assert_eq!(report.verdict(), Verdict::Error);
    assert_eq!(report.verdict().exit_code(), 2);
    for format in ReportFormat::ALL {
        let out = written(format, &report);
        assert!(
            out.contains("not found") && out.contains("hf download"),
            "{}: {out}",
            format.name()
        );
        assert!(
            !out.contains('\x1b') && !out.contains("None."),
            "{}: {out}",
            format.name()
        );
    }
    let github = written(ReportFormat::Github, &report);
    assert!(
        github.starts_with("::error title=weld check could not run::"),
        "{github}"
    );
    let junit = written(ReportFormat::Junit, &report);
    assert!(
        junit.contains("errors=\"1\"") && junit.contains("<error "),
        "{junit}"
    );
    assert_eq!(
        sarif(&report)["runs"][0]["invocations"][0]["executionSuccessful"],
        false
    );
    assert_eq!(json(&report)["verdict"], "error");
}

#[test]
fn checks_that_were_skipped_for_one_reason_are_told_together() {
    let mut report = Report::new(Command::Check, "m");
    let checks: Vec<_> = crate::all_checks().take(7).collect();
    for (at, check) in checks.iter().enumerate() {
        report.skipped.push(crate::Skipped {
            check,
            why: if at < 5 {
                "no tensor could be read"
            } else {
                "there is no config"
            }
            .into(),
            needed: at == 6,
        });
    }
    let text = written(ReportFormat::Text, &report);
    let told: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("skipped"))
        .collect();
    let alone = format!("skipped    {}: there is no config", checks[6].id);
    let other = format!("skipped    {}: there is no config", checks[5].id);
    assert_eq!(
        told,
        [
            &*alone,
            "skipped    5 checks: no tensor could be read",
            &*other
        ]
    );
    // What a check looks for was not found: its title must not read as if it were.
    let page = written(ReportFormat::Html, &report);
    for check in checks {
        assert!(
            page.contains(check.id) && !page.contains(check.title),
            "{}",
            check.id
        );
    }
    assert_eq!(page.matches("<article").count(), 3);
}

#[test]
fn an_empty_report_can_be_written() {
    let report = Report::new(Command::Check, "");
    assert_eq!(report.verdict(), Verdict::Passed);
    for format in ReportFormat::ALL {
        assert!(!written(format, &report).is_empty(), "{}", format.name());
    }
}
