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
        "`models[2].parameters.weight`: `models` has 2 entries, [0] to [1], and no [2]",
    );
    refused(&study.replace("models[1]", "models[2]"), 1, "wrong.yml:5:3");
    // What the recipe refuses of a range or a word is told at its line of the study.
    let space = |line: &str| study.replace("score: ", &format!("  {line}\nscore: "));
    refused(
        &space("dtype: {choice: [bfloat61, floaty]}"),
        1,
        "wrong.yml:6:3",
    );
    refused(
        &space("merge_method: {choice: [ties_, tiess]}"),
        1,
        "`merge_method`: unknown",
    );
    let dare = "recipe: dare.yml\ntasks: [sort.jsonl]\ntrials: 2\nspace:\n  parameters.density: {uniform: [0.5, 1.4]}\n";
    bench.file(
        "dare.yml",
        RECIPE
            .replace("task_arithmetic", "dare_linear")
            .replace("weight: 0.5", "weight: 0.5, density: 0.5"),
    );
    refused(dare, 1, "wrong.yml:5:3");
    refused(dare, 1, "`parameters.density` at 1.4: ");
    refused(
        &study.replace("strategy:", "set: {\"models[7].model\": x}\nstrategy:"),
        1,
        "`models[7].model`: `models` has 2 entries",
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
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(
        other.stderr.contains("there is no study in this folder"),
        "{}",
        other.stderr
    );
}

/// A bench whose models are copies that may be changed.
fn copied(lines: &str) -> Bench {
    let bench = bench(lines);
    fs::remove_file(bench.path("family")).unwrap();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    for model in ["base", "sort", "reverse"] {
        let to = bench.path("family").join(model);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(family.join(model)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    bench
}

/// A bench of copies, and a study that has been run.
fn studied(lines: &str) -> Bench {
    let bench = copied(lines);
    finished(&bench, "study");
    bench
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}

/// Whatever the scores depend on and has changed since is named: the winner is not written, the study does not go on,
/// and the report says it in every format. Put back, all goes on.
#[test]
fn what_has_changed_since_is_named() {
    let bench = studied("strategy: random\ntrials: 2\n");
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let last = bytes.len() - 1;
        bytes[last - 16] ^= 1;
        bytes
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            assert!(text.contains(from));
            text.replace(from, to).into_bytes()
        }
    };
    let added =
        |bytes: &[u8]| [bytes, b"{\"prompt\": \"sort:21=\", \"answer\": \"12\"}\n"].concat();
    let spaced = |bytes: &[u8]| [b" ", bytes].concat();
    type Change<'c> = &'c dyn Fn(&[u8]) -> Vec<u8>;
    let changes: [(&str, Change<'_>, &str); 7] = [
        (
            "family/sort/model.safetensors",
            &flipped,
            "the tensors of `family/sort`",
        ),
        (
            "family/base/model.safetensors",
            &flipped,
            "the tensors of `family/base`",
        ),
        (
            "family/base/tokenizer.json",
            &spaced,
            "tokenizer.json of `family/base`",
        ),
        (
            "recipe.yml",
            &replaced("weight: 0.5", "weight: 0.25"),
            "recipe.yml",
        ),
        ("reverse.jsonl", &added, "reverse.jsonl"),
        (
            "study/study.json",
            &replaced("\"numerics\": ", "\"numerics\": 9"),
            "the version of the arithmetic",
        ),
        (
            "study/study.json",
            &replaced("\"split_seed\": 0", "\"split_seed\": 1"),
            "study.json",
        ),
    ];
    let trials = fs::read(bench.path("study/trials.jsonl")).unwrap();
    for (file, change, expected) in changes {
        let before = fs::read(bench.path(file)).unwrap();
        fs::write(bench.path(file), change(&before)).unwrap();
        let best = bench.weld(&["study", "best", "study", "out"]);
        assert_eq!(best.code, Some(1), "{file}: {}", best.stderr);
        assert!(
            words(&best.stderr).contains(expected),
            "{file}: {}",
            best.stderr
        );
        assert!(
            best.stderr.contains("put back what was changed"),
            "{file}: {}",
            best.stderr
        );
        assert!(!bench.path("out").exists(), "{file}");
        // That a split was another shows in the number of its items already.
        if !expected.ends_with("study.json") {
            for format in ["text", "markdown", "json", "html", "csv"] {
                let report = bench.weld(&["study", "report", "study", "--format", format]);
                assert_eq!(report.code, Some(0), "{file}: {}", report.stderr);
                let text = if format == "csv" {
                    report.stderr
                } else {
                    report.stdout
                };
                let text = words(&text.replace("&#x2f;", "/"));
                assert!(text.contains("Changed since: "), "{file}, {format}: {text}");
                assert!(text.contains(expected), "{file}, {format}: {text}");
            }
        }
        if file != "recipe.yml" {
            let again = bench.weld(&["study", "study.yml", "study"]);
            assert_eq!(again.code, Some(1), "{file}: {}", again.stderr);
            let named = expected.replace("reverse.jsonl", "the task `reverse`");
            let named = named.replace("study.json", "`split_seed` differ");
            assert!(
                words(&again.stderr).contains(&named),
                "{file}: {}",
                again.stderr
            );
        }
        fs::write(bench.path(file), before).unwrap();
        assert_eq!(
            fs::read(bench.path("study/trials.jsonl")).unwrap(),
            trials,
            "{file}"
        );
    }
    let report = bench.weld(&["study", "report", "study"]);
    assert!(!report.stdout.contains("Note"), "{}", report.stdout);
    finished(&bench, "study");
    let best = bench.weld(&["study", "best", "study", "out"]);
    assert_eq!(best.code, Some(0), "{}", best.stderr);
    // A study can be looked at where its models are not.
    fs::rename(bench.path("family"), bench.path("elsewhere")).unwrap();
    let report = bench.weld(&["study", "report", "study"]);
    assert_eq!(report.code, Some(0), "{}", report.stderr);
    assert!(
        words(&report.stdout).contains("was not checked"),
        "{}",
        report.stdout
    );
}

/// A line that contradicts itself, the study or another line is refused with its number, by all that read it.
#[test]
fn a_record_that_contradicts_itself_is_refused() {
    let bench = studied("strategy: random\ntrials: 5\nhalving: {items: 4}\n");
    let file = bench.path("study/trials.jsonl");
    let before = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = before.lines().collect();
    let refused = |text: String, expected: &str| {
        fs::write(&file, text).unwrap();
        let report = ["study", "report", "study"];
        let best = ["study", "best", "study", "out"];
        let on = ["study", "study.yml", "study"];
        for command in [&report[..], &best, &on] {
            let outcome = bench.weld(command);
            assert_eq!(outcome.code, Some(1), "{expected}: {}", outcome.stderr);
            let text = words(&outcome.stderr);
            assert!(
                text.contains("study/trials.jsonl:2: "),
                "{command:?}: {text}"
            );
            assert!(text.contains(expected), "{command:?}, {expected}: {text}");
        }
        assert!(!bench.path("out").exists(), "{expected}");
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut trial: Value = serde_json::from_str(lines[1]).unwrap();
        change(&mut trial);
        format!("{}\n{trial}\n", lines[0])
    };
    type Change<'c> = &'c dyn Fn(&mut Value);
    let cases: [(Change<'_>, &str); 14] = [
        (&|one| one["score"] = 9.0.into(), "expected score"),
        (
            &|one| one["standard_error"] = Value::Null,
            "expected standard_error",
        ),
        (
            &|one| one["number"] = 1_000_000_000_000_000_u64.into(),
            "below 1000000",
        ),
        (&|one| one["number"] = 0.into(), "stands on an earlier line"),
        (&|one| one["search"] = "other".into(), "no search `other`"),
        (
            &|one| one["point"] = serde_json::json!([0.5]),
            "2 numbers from 0 to 1",
        ),
        (&|one| one["point"][1] = 1.5.into(), "2 numbers from 0 to 1"),
        (
            &|one| one["point"][1] = 0.5.into(),
            "those that the `point` stands for",
        ),
        (
            &|one| one["tasks"][0]["values"] = serde_json::json!([-1.0]),
            "task `sort`: expected",
        ),
        (
            &|one| one["tasks"][0]["values"][0] = (-1.0).into(),
            "task `sort`: expected score",
        ),
        (
            &|one| one["tasks"][1]["task"] = "sort".into(),
            "results of the tasks sort, reverse",
        ),
        (
            &|one| one["rungs"] = serde_json::json!([0.5, 0.5, 0.5, 0.5, 0.5]),
            "`rungs`",
        ),
        (
            &|one| one["seconds"] = (-1.0).into(),
            "cannot take -1 seconds",
        ),
        (
            &|one| one["same_as"] = serde_json::json!(["recipe", 0]),
            "as `same_as` says",
        ),
    ];
    for (change, expected) in cases {
        refused(with(change), expected);
    }
    refused(
        format!("{}\n{}\n", lines[0], lines[0]),
        "stands on an earlier line",
    );
    refused(
        format!("{}\n{{\"search\": 1}}\n", lines[0]),
        "no record of a study",
    );
    fs::write(&file, &before).unwrap();
    // What is no score of the study cannot be its test or its comparison either.
    for (name, number) in [("test.jsonl", 2), ("references.jsonl", 4)] {
        let path = bench.path("study").join(name);
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().next().unwrap();
        fs::write(&path, format!("{text}{line}\n")).unwrap();
        let report = bench.weld(&["study", "report", "study"]);
        assert_eq!(report.code, Some(1), "{name}: {}", report.stderr);
        let expected = format!("{name}:{number}: ");
        assert!(report.stderr.contains(&expected), "{}", report.stderr);
        fs::write(&path, text).unwrap();
    }
    finished(&bench, "study");
}

/// What stands in the place of a study's file is not waited for, and a link leads nowhere.
#[test]
fn only_files_are_read_and_written() {
    let bench = studied("strategy: random\ntrials: 1\n");
    bench.file("precious", "not to be touched");
    for name in [
        "study.json",
        "trials.jsonl",
        "test.jsonl",
        "references.jsonl",
        "lock",
    ] {
        let path = bench.path("study").join(name);
        let kept = bench.path("kept");
        fs::rename(&path, &kept).unwrap();
        let pipe = || {
            assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            )
        };
        let folder = || fs::create_dir(&path).unwrap();
        let device = || std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let link = || std::os::unix::fs::symlink("../precious", &path).unwrap();
        let puts: [&dyn Fn(); 4] = [&pipe, &folder, &device, &link];
        for (at, put) in puts.into_iter().enumerate() {
            put();
            let report = ["study", "report", "study"];
            let best = ["study", "best", "study", "out"];
            let on = ["study", "study.yml", "study"];
            for command in [&report[..], &best, &on] {
                let outcome = bench.weld(command);
                assert_eq!(outcome.code, Some(2), "{name} {at}: {}", outcome.stderr);
                assert!(
                    outcome.stderr.contains(name),
                    "{name} {at}: {}",
                    outcome.stderr
                );
            }
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir(&path).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
        fs::rename(&kept, &path).unwrap();
    }
    let precious = fs::read_to_string(bench.path("precious")).unwrap();
    assert_eq!(precious, "not to be touched");
    for name in ["study.yml", "sort.jsonl", "recipe.yml"] {
        fs::remove_file(bench.path(name)).unwrap();
        let made = Command::new("mkfifo")
            .arg(bench.path(name))
            .status()
            .unwrap();
        assert!(made.success());
        let outcome = bench.weld(&["study", "study.yml", "study"]);
        assert_eq!(outcome.code, Some(2), "{name}: {}", outcome.stderr);
        fs::remove_file(bench.path(name)).unwrap();
        // What comes next in order is looked at.
        let text = match name {
            "study.yml" => "recipe: recipe.yml\ntasks: [sort.jsonl]\ntrials: 1\n".to_owned(),
            "sort.jsonl" => "{\"prompt\": \"a\", \"answer\": \"a\"}\n".to_owned(),
            _ => RECIPE.to_owned(),
        };
        bench.file(name, text);
    }
}

/// Trials are scored as `weld eval --chat-template` scores the same merge, and the template is part of what scores depend on.
#[test]
fn a_chat_template_writes_the_prompts_of_all_trials() {
    let bench = copied("strategy: random\ntrials: 1\nchat_template: true\n");
    for model in ["base", "sort", "reverse"] {
        let file = format!("family/{model}/chat_template.jinja");
        bench.file(&file, "{{ bos_token }}add:{{ messages[0].content }}");
    }
    finished(&bench, "study");
    let trial = records(&bench, "study/trials.jsonl").remove(0);
    let set = trial["values"].as_object().unwrap().iter();
    let set: Vec<String> = set
        .flat_map(|(path, value)| ["--set".to_owned(), format!("{path}={value}")])
        .collect();
    let score = |file: &str, more: &[&str]| {
        let mut words = vec![
            "eval",
            "recipe.yml",
            "--tasks",
            file,
            "--split",
            "validation",
        ];
        words.extend(set.iter().map(String::as_str));
        words.extend(["--format", "json", "-q"]);
        words.extend(more);
        let report: Value = serde_json::from_str(&bench.weld(&words).stdout).unwrap();
        let metrics = report["details"]["metrics"][0]["metrics"]
            .as_array()
            .unwrap();
        let metric = metrics.iter().find(|one| one["name"] == "log_likelihood");
        metric.unwrap()["value"].as_f64().unwrap()
    };
    for task in trial["tasks"].as_array().unwrap() {
        let file = format!("{}.jsonl", task["task"].as_str().unwrap());
        let found = task["score"].as_f64().unwrap();
        let written = score(&file, &["--chat-template"]);
        assert!((found - written).abs() < 1e-5, "{file}: {found} {written}");
        assert!((found - score(&file, &[])).abs() > 1e-3, "{file}");
    }
    assert_eq!(records(&bench, "study/references.jsonl").len(), 3);
    let report = bench.weld(&["study", "report", "study"]).stdout;
    assert!(
        words(&report).contains("prompts by the model's chat template"),
        "{report}"
    );
    bench.file(
        "family/base/chat_template.jinja",
        "{{ messages[0].content }}",
    );
    let best = bench.weld(&["study", "best", "study", "out"]);
    let changed = "chat_template.jinja of `family/base`";
    assert!(words(&best.stderr).contains(changed), "{}", best.stderr);
    // Without the key it is another study.
    let text = fs::read_to_string(bench.path("study.yml")).unwrap();
    bench.file("study.yml", text.replace("chat_template: true\n", ""));
    let other = bench.weld(&["study", "study.yml", "study"]);
    assert!(
        other.stderr.contains("`chat_template` differ"),
        "{}",
        other.stderr
    );
}

/// A recipe that is whole only with its searched values is searched.
#[test]
fn a_recipe_may_leave_out_what_is_searched() {
    let bench = bench("strategy: random\ntrials: 1\n");
    bench.recipe(&RECIPE.replace("parameters: {weight: 0.5}\n", ""));
    finished(&bench, "study");
    assert_eq!(records(&bench, "study/trials.jsonl").len(), 1);
}

/// The seed of random masks is searched like any value, and the winner is merged with that of its trial.
#[test]
fn seeds_of_masks_are_searched() {
    let bench = bench("strategy: grid\n");
    bench.recipe(
        &RECIPE
            .replace("task_arithmetic", "dare_linear")
            .replace("weight: 0.5", "weight: 0.5, density: 0.5"),
    );
    let study = fs::read_to_string(bench.path("study.yml")).unwrap();
    let space = study.find("space:").unwrap()..study.find("score:").unwrap();
    let mut searched = study.clone();
    searched.replace_range(space, "space: {random_seed: {grid: [1, 2, 3]}}\n");
    bench.file("study.yml", searched);
    finished(&bench, "study");
    let trials = records(&bench, "study/trials.jsonl");
    let scores: Vec<f64> = trials
        .iter()
        .filter_map(|one| one["score"].as_f64())
        .collect();
    assert_eq!(scores.len(), 3);
    assert!(
        scores[0] != scores[1] && scores[1] != scores[2],
        "{scores:?}"
    );
    for (number, seed) in [("0", "1"), ("2", "3")] {
        let out = format!("out{number}");
        let best = bench.weld(&["study", "best", "study", &out, "--number", number]);
        assert_eq!(best.code, Some(0), "{}", best.stderr);
        let again = format!("again{number}");
        let merged = bench.weld(&["merge", "recipe.yml", &again, "--seed", seed]);
        assert_eq!(merged.code, Some(0), "{}", merged.stderr);
        assert_eq!(
            load(&bench.path(&out)),
            load(&bench.path(&again)),
            "{number}"
        );
    }
}

/// A model is searched like any value: each winner is merged, and one that has changed since is refused, also where only
/// some trials read it.
#[test]
fn models_are_searched() {
    let bench = bench("strategy: grid\n");
    fs::remove_file(bench.path("family")).unwrap();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    for model in ["base", "sort", "reverse", "add"] {
        let to = bench.path("family").join(model);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(family.join(model)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let study = fs::read_to_string(bench.path("study.yml")).unwrap();
    let space = study.find("space:").unwrap()..study.find("score:").unwrap();
    let mut searched = study.clone();
    let models = "space: {\"models[0].model\": {grid: [family/sort, family/add]}}\n";
    searched.replace_range(space, models);
    bench.file("study.yml", searched);
    finished(&bench, "study");
    for number in ["0", "1"] {
        let out = format!("out{number}");
        let best = bench.weld(&["study", "best", "study", &out, "--number", number]);
        assert_eq!(best.code, Some(0), "{}", best.stderr);
    }
    for (number, model) in [("0", "sort"), ("1", "add")] {
        let weights = format!("family/{model}/model.safetensors");
        let before = fs::read(bench.path(&weights)).unwrap();
        let mut flipped = before.clone();
        flipped[before.len() - 17] ^= 1;
        fs::write(bench.path(&weights), flipped).unwrap();
        let best = bench.weld(&["study", "best", "study", "again", "--number", number]);
        assert_eq!(best.code, Some(1), "{model}: {}", best.stderr);
        assert!(
            best.stderr.contains("put back what was changed"),
            "{}",
            best.stderr
        );
        fs::write(bench.path(&weights), before).unwrap();
    }
}
