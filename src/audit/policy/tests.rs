//! Tests of policies.

use super::*;
use crate::{Command, Finding, Place, Verdict, find_check};

fn message(text: &str) -> String {
    errors::in_one_line(&Policy::parse(text).expect_err(text))
}

#[test]
fn what_is_not_known_is_an_error_with_its_line() {
    let check = |text: &str, parts: &[&str]| {
        let message = message(text);
        for part in parts {
            assert!(message.contains(part), "{text}: {message}");
        }
    };
    check(
        "[provenance]\nrequire_signatur = \"x\"",
        &["line 2: ", "`require_signatur`", "`require_signature`"],
    );
    for wrong in ["require_signature = true", "require_attestation = \"\""] {
        check(
            &format!("[provenance]\n{wrong}"),
            &["line 2: ", "public key"],
        );
    }
    check(
        "[provenance]\nallow_inputs = \"a\"",
        &["line 2: ", "expected a list"],
    );
    check("[provenance]\nallow_inputs = [\"[\"]", &["line 2: "]);
    check(
        "fail_om = \"error\"",
        &["line 1: ", "`fail_om`", "`fail_on`"],
    );
    check(
        "[severity]\n\n\"verify.locc\" = \"off\"",
        &["line 3: ", "`verify.locc`", "`verify.lock`"],
    );
    check(
        "[severity]\nverify.lock = \"off\"",
        &["line 2: ", "in quotes"],
    );
    check(
        "[severity]\n\"verify.lock\" = \"of\"",
        &["line 2: ", "\"off\""],
    );
    check("fail_on = 3", &["line 1: ", "\"error\", \"warning\""]);
    check("[diff]\nmax_steps = -1", &["line 2: ", "a whole number"]);
    check(
        "[diff]\nmin_cosine = 1.5",
        &["line 2: ", "a number of -1 to 1"],
    );
    check("[diff]\nmax_relative_l2 = nan", &["line 2: ", "0 or more"]);
    check("[[diff.roles]]\nmax_steps = 1", &["line 1: ", "`match`"]);
    check("[[diff.roles]]\nmatch = \"[\"", &["line 2: "]);
    check("[eval]\nmax_drop = -0.1", &["line 2: ", "0 or more"]);
    check(
        "[eval]\nmetric = \"perplexity\"",
        &["line 2: ", "`accuracy_normalised`"],
    );
    check("[eval]\nmax_dorp = 0.1", &["line 2: ", "`max_drop`"]);
    check("[[eval.tasks]]\nmatch = \"a\"", &["line 1: ", "`max_drop`"]);
    check("[verify]\nallow = \"steps\"", &["line 2: ", "\"step\""]);
    check(
        "[verify]\nrequire_lock = true\n[severity]\n\"verify.lock\" = \"off\"",
        &["line 2: ", "contradicts"],
    );
    check(
        "[provenance]\nallow_inputs = [\n\"a\",\n3]",
        &["line 4: ", "string"],
    );
    check("diff = 3", &["line 1: ", "expected a table"]);
    check(
        "[[diff.roles]]\nmatch = \"a\"\nmax_step = 1",
        &["line 3: ", "did you mean `max_steps`?"],
    );
    check(
        "\"fail_on`, expected `x\" = 1",
        &["line 1: ", "unknown key `fail_on`, expected `x`"],
    );
    check("[", &["line 1: "]);
    check("a = 1\na = 2", &["line 2: "]);
    check(&"[".repeat(100_000), &["line 1: "]);
    check(&format!("x = {}", "[".repeat(100_000)), &["line 1: "]);
    check(
        &format!("{} = 1", "a.".repeat(100_000) + "a"),
        &["line 1: "],
    );
}

#[test]
fn thresholds_of_a_later_pattern_count_more() {
    let policy = Policy::parse(
        "[diff]\nmax_relative_l2 = 1\nmin_cosine = 0.9\n[[diff.roles]]\nmatch = \"mlp.*\"\nmax_relative_l2 = 0.5\n\
         [[diff.roles]]\nmatch = \"*.up_proj.weight\"\nmax_relative_l2 = 2e-1\nmax_steps = 0x10\n",
    )
    .unwrap();
    let l2 = |role| policy.diff.of(role).max_relative_l2;
    assert_eq!(l2("self_attn.q_proj.weight"), Some(1.0));
    assert_eq!(l2("mlp.down_proj.weight"), Some(0.5));
    assert_eq!(l2("mlp.up_proj.weight"), Some(0.2));
    assert_eq!(policy.diff.of("mlp.up_proj.weight").min_cosine, Some(0.9));
    assert_eq!(policy.diff.of("mlp.up_proj.weight").max_steps, Some(16));
    assert!(!policy.diff.is_empty() && Policy::default().diff.is_empty());
}

fn report() -> Report {
    let mut report = Report::new(Command::Verify, "out");
    for id in [
        "verify.lock",
        "verify.numerics",
        "verify.rounding",
        "verify.rounding",
    ] {
        let check = find_check(id).expect(id);
        report
            .findings
            .push(Finding::new(check, Place::default(), "a", "b"));
        report.checked.push(check);
    }
    report
}

fn applied(text: &str, strict: bool) -> Report {
    let mut report = report();
    let mut policy = Policy::parse(text).unwrap();
    if strict {
        policy.strict();
    }
    policy.apply(&mut report);
    report
}

#[test]
fn severities_change_and_the_report_says_so() {
    let said = |report: &Report| -> Vec<String> {
        report.policy.iter().map(ToString::to_string).collect()
    };
    let report = applied("", false);
    assert_eq!((report.findings.len(), said(&report).len()), (4, 0));
    let report = applied("[severity]\n\"verify.rounding\" = \"off\"", false);
    assert_eq!(report.verdict(), Verdict::Passed);
    assert_eq!(
        said(&report),
        ["verify.rounding: 2 findings left out (error)"]
    );
    assert_eq!(report.skipped[0].check.id, "verify.rounding");
    assert!(
        report
            .checked
            .iter()
            .all(|check| check.id != "verify.rounding")
    );
    let mild = "fail_on = \"error\"\n[severity]\n\"verify.rounding\" = \"warning\"";
    assert_eq!(applied(mild, false).verdict(), Verdict::Passed);
    let report = applied(mild, true);
    assert_eq!(report.count(Severity::Error), 2 + 1);
    assert_eq!(
        said(&report),
        ["verify.numerics: 1 finding, error instead of warning"]
    );
    let report = applied("[verify]\nrequire_lock = true", false);
    assert_eq!(
        said(&report),
        ["verify.lock: 1 finding, error instead of note"]
    );
    assert_eq!(
        applied("fail_on = \"note\"", true).count(Severity::Error),
        4
    );
}

#[test]
fn what_the_command_made_milder_stays_so_and_what_is_needed_stays_needed() {
    let mut report = report();
    report.findings[2].severity = Severity::Note;
    report.skipped.push(Skipped {
        check: find_check("verify.replay").unwrap(),
        why: "no input".into(),
        needed: true,
    });
    let text = "[severity]\n\"verify.rounding\" = \"warning\"\n\"verify.replay\" = \"off\"";
    Policy::parse(text).unwrap().apply(&mut report);
    assert_eq!(report.findings[2].severity, Severity::Note);
    assert_eq!(report.findings[3].severity, Severity::Warning);
    assert_eq!(report.verdict(), Verdict::Inconclusive);
}

#[test]
fn the_last_pattern_that_matches_a_task_bounds_it() {
    let text = "[eval]\nmax_drop = 0.01\nmetric = \"accuracy_normalised\"\n[[eval.tasks]]\nmatch = \"arc*\"\nmax_drop = 0.02\n\
                [[eval.tasks]]\nmatch = \"*easy\"\nmax_drop = 0\n";
    let policy = Policy::parse(text).unwrap().eval;
    for (task, bound) in [("gsm8k", 0.01), ("arc", 0.02), ("arc_easy", 0.0)] {
        assert_eq!(policy.max_drop(task), Some(bound), "{task}");
    }
    assert_eq!(policy.normalised, Some(true));
    assert!(Policy::parse("").unwrap().eval.is_empty());
}
