//! The list of all kinds of findings, for docs, help, policies and tests.

use super::report::CheckInfo;
use super::{check, diff, provenance, verify};

/// The checks of each module other than `check`, in the order of `docs/checks.md`.
static GROUPS: &[&[&CheckInfo]] = &[
    check::runtime::CHECKS,
    check::mutate::CHECKS,
    diff::CHECKS,
    verify::CHECKS,
    provenance::CHECKS,
];

/// All checks.
pub fn all_checks() -> impl Iterator<Item = &'static CheckInfo> {
    let groups = check::CHECKED.iter().chain(GROUPS).copied();
    groups.flatten().copied()
}

/// Finds a check by its id.
pub fn find_check(id: &str) -> Option<&'static CheckInfo> {
    all_checks().find(|check| check.id == id)
}

/// All checks as a Markdown page: `docs/checks.md`.
pub fn checks_as_markdown() -> String {
    let mut out = String::from(
        "# Checks\n\nEvery kind of finding of `weld check`, `weld diff` and `weld verify`. This page is written by \
         `weld check --list`.\n",
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
        out += &format!("\n### `{id}` ({severity})\n\n{title}. {why}\n\nRemedy: {remedy}.\n");
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
