//! `weld study` on the small family: killed and resumed, shared by processes, reported, and its winner written.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::{Bench, load};

const RECIPE: &str = "\
merge_method: task_arithmetic
base_model: family/base
models:
- model: family/sort
- model: family/reverse
parameters: {weight: 0.5}
dtype: bfloat16
";

/// Problems of two skills, the same every time.
fn problems(count: u64) -> (String, String) {
    let (mut sort, mut reverse) = (String::new(), String::new());
    let mut state = 7_u64;
    let mut below = |most: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    for _ in 0..count {
        let mut digits: Vec<u64> = (0..8).map(|_| below(10)).collect();
        let shown: String = digits.iter().map(u64::to_string).collect();
        digits.sort_unstable();
        let sorted: String = digits.iter().map(u64::to_string).collect();
        writeln!(
            sort,
            "{{\"prompt\": \"sort:{shown}=\", \"answer\": \"{sorted}\"}}"
        )
        .unwrap();
        let word: String = (0..7 + below(3))
            .map(|_| char::from(b'a' + below(26) as u8))
            .collect();
        let back: String = word.chars().rev().collect();
        writeln!(
            reverse,
            "{{\"prompt\": \"rev:{word}=\", \"answer\": \"{back}\"}}"
        )
        .unwrap();
    }
    (sort, reverse)
}

/// A bench with the family, tasks, and a study with these lines.
fn bench(lines: &str) -> Bench {
    let bench = Bench::new();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    std::os::unix::fs::symlink(family, bench.path("family")).unwrap();
    let (sort, reverse) = problems(24);
    bench.file("sort.jsonl", sort);
    bench.file("reverse.jsonl", reverse);
    bench.recipe(RECIPE);
    bench.file(
        "study.yml",
        format!(
            "recipe: recipe.yml
tasks: [sort.jsonl, reverse.jsonl]
space:
  models[0].parameters.weight: {{uniform: [0, 1]}}
  models[1].parameters.weight: {{uniform: [0, 1]}}
score: log_likelihood
{lines}"
        ),
    );
    bench
}

fn start(bench: &Bench, dir: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(["study", "study.yml", dir, "--threads", "1"])
        .current_dir(bench.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The records of a file, without how long they took.
fn records(bench: &Bench, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.path(file)).unwrap_or_default();
    let mut records: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for record in &mut records {
        record.as_object_mut().unwrap().remove("seconds");
    }
    records
}

fn finished(bench: &Bench, dir: &str) {
    let output = start(bench, dir).wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Killed after each of its first ten trials, with a line torn each time, it ends with the trials of one that was not.
#[test]
fn a_study_that_is_killed_goes_on_where_it_was() {
    let bench = bench("strategy: cma-es\ntrials: 18\nseed: 5\n");
    finished(&bench, "whole");
    let whole = records(&bench, "whole/trials.jsonl");
    assert_eq!(whole.len(), 18);
    for done in 1..=10 {
        let mut child = start(&bench, "killed");
        let began = Instant::now();
        while records(&bench, "killed/trials.jsonl").len() < done {
            // On a busy machine it may have done more than was waited for.
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "trial {done} does not come"
            );
            thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Part of a line that had not been written whole.
        let file = bench.path("killed/trials.jsonl");
        let torn =
            fs::read_to_string(&file).unwrap() + &"{\"search\": \"recipe\", \"num"[..done * 2];
        fs::write(&file, torn).unwrap();
    }
    finished(&bench, "killed");
    assert_eq!(records(&bench, "killed/trials.jsonl"), whole);
    assert_eq!(
        records(&bench, "killed/test.jsonl"),
        records(&bench, "whole/test.jsonl")
    );
    assert_eq!(records(&bench, "whole/test.jsonl").len(), 1);
    // Nothing is left to do: nothing is done again.
    let before = fs::read(bench.path("killed/trials.jsonl")).unwrap();
    finished(&bench, "killed");
    assert_eq!(fs::read(bench.path("killed/trials.jsonl")).unwrap(), before);
    assert_eq!(records(&bench, "killed/test.jsonl").len(), 1);
}

/// Processes that share a folder make each trial once, and the trials are those of one process.
#[test]
fn two_processes_share_a_study() {
    let bench = bench("strategy: random\ntrials: 12\n");
    let children = [start(&bench, "shared"), start(&bench, "shared")];
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    finished(&bench, "alone");
    let by_number = |dir: &str| {
        let mut trials = records(&bench, &format!("{dir}/trials.jsonl"));
        trials.sort_by_key(|trial| trial["number"].as_u64());
        trials
    };
    assert_eq!(by_number("shared"), by_number("alone"));
    assert_eq!(
        records(&bench, "shared/test.jsonl"),
        records(&bench, "alone/test.jsonl")
    );
    assert_eq!(records(&bench, "shared/references.jsonl").len(), 3);
}

/// The winner is the merge that was scored, and its lock and card say what it is.
#[test]
fn the_winner_is_written_with_its_lock() {
    let bench = bench("strategy: tpe\ntrials: 6\n");
    finished(&bench, "study");
    let best = bench.weld(&["study", "best", "study", "out"]);
    assert_eq!(best.code, Some(0), "{}", best.stderr);
    let trials = records(&bench, "study/trials.jsonl");
    let score = |trial: &Value| trial["score"].as_f64().unwrap();
    let winner = trials
        .iter()
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .unwrap();
    let set: Vec<String> = (0..2)
        .flat_map(|at| {
            let path = format!("models[{at}].parameters.weight");
            [
                "--set".to_owned(),
                format!("{path}={}", winner["values"][&path]),
            ]
        })
        .collect();
    let mut words = vec!["merge", "recipe.yml", "again"];
    words.extend(set.iter().map(String::as_str));
    let again = bench.weld(&words);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(load(&bench.path("out")), load(&bench.path("again")));
    let lock = |dir: &str| fs::read_to_string(bench.path(dir).join("weldment.lock.json")).unwrap();
    assert_eq!(lock("out"), lock("again"));
    let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
    assert!(
        card.contains(&format!("trial {} of 6 by `tpe`", winner["number"])),
        "{card}"
    );
    assert!(card.contains("test items it scores"), "{card}");
    let verified = bench.weld(&["verify", "out", "--inputs", ".", "--full"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
}

/// What is reported is what was recorded, in every format.
#[test]
fn a_report_shows_what_was_recorded() {
    let bench = bench("strategy: random\ntrials: 5\nhalving: {items: 4}\n");
    finished(&bench, "study");
    let report = |format: &str| {
        let outcome = bench.weld(&["study", "report", "study", "--format", format]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout
    };
    let json: Value = serde_json::from_str(&report("json")).unwrap();
    let trials = records(&bench, "study/trials.jsonl");
    let complete = trials.iter().filter(|trial| trial["status"] == "complete");
    let best = complete
        .filter_map(|trial| trial["score"].as_f64())
        .fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(
        json["leaderboard"][0]["validation"]["value"].as_f64(),
        Some(best)
    );
    assert_eq!(json["looks_at_test"], 1);
    assert_eq!(json["references"].as_array().unwrap().len(), 3);
    assert_eq!(report("csv").lines().count(), 6);
    let shown = format!("{best:.4}");
    for format in ["text", "markdown", "html"] {
        let text = report(format);
        assert!(text.contains(&shown), "{format}: {text}");
        assert!(text.contains("family/reverse"), "{format}: {text}");
    }
    let page = report("html");
    assert!(
        page.matches("<svg").count() >= 5 && !page.contains("<script"),
        "{page}"
    );
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let bench = bench("strategy: random\ntrials: 2\n");
    let refused = |study: &str, code: i32, expected: &str| {
        bench.file("wrong.yml", study);
        let outcome = bench.weld(&["study", "wrong.yml", "wrong"]);
        let words: Vec<&str> = outcome.stderr.split_whitespace().collect();
        assert!(
            words.join(" ").contains(expected),
            "{study}: {}",
            outcome.stderr
        );
        assert_eq!(outcome.code, Some(code), "{study}: {}", outcome.stderr);
        assert!(!bench.path("wrong").exists(), "{study}");
    };
    let study = fs::read_to_string(bench.path("study.yml")).unwrap();
    refused(
        &study.replace("models[1]", "models[2]"),
        1,
        "`models` has 2 entries, [0] to [1], and no [2]",
    );
    refused(
        &study.replace("recipe.yml", "nowhere.yml"),
        2,
        "cannot read the recipe: No such file",
    );
    refused(
        &study.replace("sort.jsonl", "nowhere.jsonl"),
        2,
        "nowhere.jsonl",
    );
    refused(
        &study.replace("strategy", "stratgy"),
        1,
        "did you mean `strategy`?",
    );
    let other = bench.weld(&["study", "report", "family"]);
    assert_eq!(other.code, Some(1), "{}", other.stderr);
    assert!(
        other.stderr.contains("there is no study in this folder"),
        "{}",
        other.stderr
    );
}
