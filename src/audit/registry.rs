//! The list of all kinds of findings, for docs, help, policies and tests.

use super::report::CheckInfo;
use super::{check, diff, evaluation, provenance, verify};

/// The checks of each module other than `check`, and the command that makes them, in the order of `docs/checks.md`.
static GROUPS: &[(&str, &[&CheckInfo])] = &[
    ("weld check MODEL --for RUNTIME", check::runtime::CHECKS),
    ("weld check MODEL --mutate", check::mutate::CHECKS),
    ("weld diff A B", diff::CHECKS),
    ("weld verify MODEL", verify::CHECKS),
    ("weld verify MODEL --key PUBLIC-KEY", provenance::CHECKS),
    (
        "weld eval MODEL --tasks FILE --baseline MODEL --max-drop 0.01",
        evaluation::CHECKS,
    ),
];

/// All checks.
pub fn all_checks() -> impl Iterator<Item = &'static CheckInfo> {
    let others = GROUPS.iter().map(|(_, checks)| *checks);
    let groups = check::CHECKED.iter().copied().chain(others);
    groups.flatten().copied()
}

/// The command that makes a check.
pub fn command_of(check: &CheckInfo) -> &'static str {
    let has =
        |(_, checks): &&(&str, &[&CheckInfo])| checks.iter().any(|known| known.id == check.id);
    let others = GROUPS.iter().find(has);
    others.map_or("weld check MODEL", |(command, _)| command)
}

/// Defects that a check finds, in a few words each; none for what `weld check --mutate` does not plant.
pub fn examples_of(check: &CheckInfo) -> impl Iterator<Item = &'static str> {
    let of_check = |defect: &&check::mutate::Defect| defect.check.id == check.id;
    check::mutate::defects()
        .filter(of_check)
        .map(|defect| defect.title)
}

/// Finds a check by its id.
pub fn find_check(id: &str) -> Option<&'static CheckInfo> {
    all_checks().find(|check| check.id == id)
}

/// All checks as a Markdown page: `docs/checks.md`.
pub fn checks_as_markdown() -> String {
    let mut out = String::from(
        "# Checks\n\nEvery kind of finding of `weld check`, `weld diff`, `weld verify` and `weld eval`. `weld explain ID` shows one of \
         them at the terminal. This page is written by `weld check --list`.\n",
    );
    let mut group = "";
    for check in all_checks() {
        if check.group() != group {
            group = check.group();
            out += &format!("\n## {group}\n");
        }
        let CheckInfo {
            id,
            severity,
            title,
            why,
            remedy,
        } = check;
        out += &format!("\n### `{id}` ({severity})\n\n{title}. {why}\n\n");
        let examples: Vec<&str> = examples_of(check).collect();
        if !examples.is_empty() {
            out += &format!("For example: {}.\n\n", examples.join("; "));
        }
        out += &format!("Remedy: {remedy}.\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_check_has_an_id_of_its_own_and_texts_to_read() {
        let mut seen = HashSet::new();
        for check in all_checks() {
            assert!(seen.insert(check.id), "{} twice", check.id);
            let (group, name) = check.id.split_once('.').expect(check.id);
            for part in [group, name] {
                let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                assert!(!part.is_empty() && part.chars().all(kebab), "{}", check.id);
            }
            for text in [check.title, check.why, check.remedy] {
                assert!(text.len() > 10, "{}: `{text}`", check.id);
            }
            assert!(!check.title.ends_with('.'), "{}", check.id);
            assert_eq!(find_check(check.id), Some(check));
        }
    }
}
