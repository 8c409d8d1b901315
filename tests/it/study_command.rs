//! Studies whose trials are scored by a command: what it is given, what is recorded, and what is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::fixtures::{Bench, Outcome};

const RECIPE: &str = "\
merge_method: task_arithmetic
base_model: family/base
models:
- model: family/sort
- model: family/add
parameters: {weight: 0.5}
dtype: bfloat16
";

/// A number that only the weights decide: what of it is random to a search is the same in every run.
const SUM: &str = "sum=$(cksum < \"$1/model.safetensors\"); sum=$(( ${sum%% *} % 1000 ))";

/// A folder with the family, a study by a command with these lines, and a script that it runs in the study's folder.
fn bench(lines: &str, script: &str) -> Bench {
    let bench = Bench::new();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    symlink(family, bench.path("family")).unwrap();
    bench.file("lab/recipe.yml", RECIPE.replace("family/", "../family/"));
    bench.file("lab/score", script);
    fs::create_dir(bench.path("lab/scratch")).unwrap();
    let study = format!(
        "recipe: recipe.yml
space:
  models[0].parameters.weight: {{uniform: [0, 1]}}
strategy: random
scratch: scratch
{lines}"
    );
    bench.file("lab/study.yml", study);
    bench
}

fn study(bench: &Bench, dir: &str) -> Outcome {
    bench.weld(&["study", "lab/study.yml", dir, "--run-commands"])
}

fn passes(bench: &Bench, dir: &str) {
    let outcome = study(bench, dir);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(left(bench), 0);
}

/// How many merges lie in scratch.
fn left(bench: &Bench) -> usize {
    fs::read_dir(bench.path("lab/scratch")).unwrap().count()
}

/// Trials by number, without how long they took.
fn trials(bench: &Bench, dir: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.path(dir).join("trials.jsonl")).unwrap_or_default();
    let mut trials: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    trials.sort_by_key(|trial| trial["number"].as_u64());
    for trial in &mut trials {
        trial.as_object_mut().unwrap().remove("seconds");
    }
    trials
}

fn lines(bench: &Bench, file: &str) -> Vec<String> {
    let text = fs::read_to_string(bench.path(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_strangers_study_runs_nothing() {
    let command = "command: sh score {model} 'sk-12345; rm -rf ~'\ntrials: 2\n";
    let bench = bench(command, "touch ran; echo '{\"a\": 1}'");
    let refused = bench.weld(&["study", "lab/study.yml", "found"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("sh score '{model}' 'sk-12345; rm -rf ~'"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("--run-commands"),
        "{}",
        refused.stderr
    );
    assert!(!bench.path("found").exists() && !bench.path("lab/ran").exists());
}

#[test]
fn trials_are_scored_by_the_command_and_once() {
    let metrics =
        "metrics: {sum: /sum, cost: {pointer: /cost, better: lower, error: /e}}\ntrials: 4\n";
    let script = format!(
        "{SUM}; echo x >> runs; echo \"{{\\\"sum\\\": $sum, \\\"cost\\\": 3.5, \\\"e\\\": 0.5}}\""
    );
    let bench = bench(
        &format!("command: sh score {{model}} --api-key sk-secret\n{metrics}"),
        &script,
    );
    passes(&bench, "found");
    let found = trials(&bench, "found");
    assert_eq!(found.len(), 4);
    for trial in &found {
        let (sum, cost) = (&trial["tasks"][0], &trial["tasks"][1]);
        assert_eq!(
            (&sum["task"], &cost["task"]),
            (&"sum".into(), &"cost".into())
        );
        assert_eq!(
            (cost["score"].as_f64(), cost["standard_error"].as_f64()),
            (Some(-3.5), Some(0.5))
        );
        let mean = (sum["score"].as_f64().unwrap() - 3.5) / 2.0;
        assert_eq!(trial["score"].as_f64(), Some(mean));
        assert_eq!(trial["status"], "complete");
    }
    // Four trials, and the three models that were merged.
    assert_eq!(lines(&bench, "lab/runs").len(), 7);
    passes(&bench, "found");
    assert_eq!(lines(&bench, "lab/runs").len(), 7);
    for file in ["study.json", "trials.jsonl", "references.jsonl"] {
        let text = fs::read_to_string(bench.path("found").join(file)).unwrap();
        assert!(!text.contains("sk-secret"), "{file}");
    }
    // What tells the trials apart, of which the best is written.
    let report = bench.weld(&["study", "report", "found"]);
    for part in [
        "Chosen by the metrics of a command",
        "sum",
        "cost",
        "No merge has been scored on the test split",
    ] {
        assert!(report.stdout.contains(part), "{part}: {}", report.stdout);
    }
    let score = |trial: &&Value| trial["score"].as_f64().unwrap();
    let best = found
        .iter()
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .unwrap();
    let shown = format!("{:.4}", score(&best));
    assert!(report.stdout.contains(&shown), "{shown}: {}", report.stdout);
    bench.passes(&["study", "best", "found", "merged", "-q"]);
    let rescored = bench.weld(&[
        "eval",
        "merged",
        "--command",
        "sh lab/score {model}",
        "--metric",
        "sum=/sum",
        "--format",
        "json",
        "-q",
    ]);
    let rescored: Value = serde_json::from_str(&rescored.stdout).unwrap();
    assert_eq!(
        rescored["details"]["metrics"][0]["value"],
        best["tasks"][0]["score"]
    );
    // Another command is another study, but how it is run may change.
    let text = fs::read_to_string(bench.path("lab/study.yml")).unwrap();
    bench.file(
        "lab/study.yml",
        format!("{text}retries: 2\ntime_limit: 5min\n"),
    );
    passes(&bench, "found");
    bench.file("lab/study.yml", text.replace("sk-secret", "sk-other"));
    let other = study(&bench, "found");
    assert!(
        other.stderr.contains("`command` or `metrics` differ"),
        "{other:?}"
    );
}

#[test]
fn a_split_is_for_the_command_to_make() {
    let keys =
        "command: sh score {model} {split} {out}\nmetrics: {acc: /acc}\ntrials: 3\nfinalists: 2\n";
    let script = format!("{SUM}; echo $2 >> splits; echo \"{{\\\"acc\\\": 0.$sum}}\" > \"$3\"");
    let bench = bench(keys, &script);
    passes(&bench, "found");
    let splits = lines(&bench, "lab/splits");
    let count = |split: &str| splits.iter().filter(|one| *one == split).count();
    assert_eq!((count("validation"), count("test")), (3 + 3, 3 + 2));
    assert_eq!(lines(&bench, "found/test.jsonl").len(), 2);
}

#[test]
fn a_trial_that_gives_no_number_is_recorded_with_its_reason() {
    // Every trial but the second and the last gives something else.
    let script = r#"echo x >> runs
case $(( $(wc -l < runs) )) in
    1) printf 'broken \033[31m\n' >&2; exit 4 ;;
    2) echo '{"a": 0.25}' ;;
    3) echo '{"a": NaN}' ;;
    4) echo '{"a": "0.9"}' ;;
    5) awk 'BEGIN {for (i = 0; i < 100000; i++) printf "["}' ;;
    6) sleep 60 ;;
    *) echo '{"a": 0.5}' ;;
esac"#;
    let lines = "command: sh score {model}\nmetrics: {a: /a}\ntrials: 7\ntime_limit: 3s\n";
    let bench = bench(lines, script);
    passes(&bench, "found");
    let found = trials(&bench, "found");
    for (number, why) in [
        (
            0,
            "ended with exit status: 4; the end of its output: broken",
        ),
        (2, "found null (or NaN)"),
        (3, "found the text \"0.9\""),
        (4, "recursion limit exceeded"),
        (5, "not done after 3 s"),
    ] {
        let trial: &Value = &found[number];
        assert_eq!(trial["status"], "failed", "{number}");
        assert!(trial["score"].is_null() && trial["tasks"].as_array().unwrap().is_empty());
        let error = trial["error"].as_str().unwrap();
        assert!(error.contains(why) && !error.contains('\x1b'), "{error}");
    }
    let score = |number: usize| found[number]["score"].as_f64();
    assert_eq!((score(1), score(6)), (Some(0.25), Some(0.5)));
}

/// Where no trial can be scored the study stops soon, and says why; mended, it begins again.
#[test]
fn a_study_whose_trials_all_fail_says_so() {
    let lines = "command: sh score {model}\nmetrics: {a: /a}\ntrials: 7\n";
    let bench = bench(lines, "exit 5");
    let outcome = study(&bench, "other");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("the command `sh`: it ended with exit status: 5"),
        "{}",
        outcome.stderr
    );
    assert_eq!((trials(&bench, "other").len(), left(&bench)), (3, 0));
    // Run again, it tries others; all of few trials may fail too.
    let again = study(&bench, "other");
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(trials(&bench, "other").len(), 6);
    let last = study(&bench, "other");
    assert!(last.stderr.contains("all 7 trials failed"), "{last:?}");
    let remedy = "remove other/trials.jsonl, and run the same command again";
    assert!(last.stderr.contains(remedy), "{last:?}");
    fs::remove_file(bench.path("other/trials.jsonl")).unwrap();
    bench.file("lab/score", "echo '{\"a\": 0.5}'");
    passes(&bench, "other");
    assert_eq!(trials(&bench, "other").len(), 7);
}

/// A search that cannot be scored does not stop the others.
#[test]
fn a_search_whose_trials_all_fail_is_given_up() {
    let script = "case $(cat \"$1/README.md\") in *linear*) exit 5;; esac; echo '{\"a\": 0.5}'";
    let bench = bench("", script);
    let linear = "merge_method: linear\nmodels: [{model: ../family/sort}, {model: ../family/add}]\nparameters: {weight: 1}\n";
    bench.file("lab/linear.yml", linear);
    let space = "space: {\"models[0].parameters.weight\": {uniform: [0.1, 1]}}";
    let study_file = format!(
        "searches:\n- {{recipe: linear.yml, {space}}}\n- {{recipe: recipe.yml, {space}}}
strategy: random\ntrials: 4\nscratch: scratch\ncommand: sh score {{model}}\nmetrics: {{a: /a}}\n"
    );
    bench.file("lab/study.yml", study_file);
    let outcome = study(&bench, "found");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let note = "`linear` is given up: 3 trials failed, and none was scored";
    assert!(outcome.stderr.contains(note), "{outcome:?}");
    let found = trials(&bench, "found");
    let complete = |trial: &&Value| trial["status"] == "complete";
    assert_eq!((found.len(), found.iter().filter(complete).count()), (7, 4));
}

#[test]
fn slots_score_at_once_each_on_its_gpus() {
    // Each run waits until another is there too, so that one at a time would never end.
    let script = format!(
        r#"{SUM}
echo "$CUDA_VISIBLE_DEVICES" >> gpus
case $2 in validation)
    mkdir -p here; touch here/$$
    for i in $(seq 200); do test $(ls here | wc -l) -ge 2 && break; sleep 0.05; done
    ls here | wc -l >> seen; sleep 0.2; rm here/$$ ;;
esac
echo "{{\"a\": $sum}}""#
    );
    let keys = "command: sh score {model} {split}\nmetrics: {a: /a}\ntrials: 4\n";
    let bench = bench(&format!("{keys}gpus: [\"0,1\", 3]\n"), &script);
    passes(&bench, "two");
    let gpus = lines(&bench, "lab/gpus");
    assert!(
        gpus.contains(&"0,1".to_owned()) && gpus.contains(&"3".to_owned()),
        "{gpus:?}"
    );
    assert_eq!(
        lines(&bench, "lab/seen")
            .iter()
            .filter(|seen| seen.trim() == "2")
            .count(),
        4
    );
    let two = trials(&bench, "two");
    // The same trials as one after the other.
    let text = fs::read_to_string(bench.path("lab/study.yml")).unwrap();
    bench.file("lab/study.yml", text.replace("gpus: [\"0,1\", 3]\n", ""));
    bench.file("lab/score", format!("{SUM}; echo \"{{\\\"a\\\": $sum}}\""));
    passes(&bench, "one");
    assert_eq!(two, trials(&bench, "one"));
}

#[test]
fn a_study_stopped_in_mid_run_leaves_no_merge_and_goes_on() {
    let script = format!(
        "{SUM}; echo x >> runs; if test $(wc -l < runs) -eq 3; then echo $$ >> pids; sleep 600; fi; echo \"{{\\\"a\\\": $sum}}\""
    );
    let bench = bench(
        "command: sh score {model}\nmetrics: {a: /a}\ntrials: 5\n",
        &script,
    );
    for signal in [Signal::TERM, Signal::KILL] {
        let mut child = bench
            .process(&["study", "lab/study.yml", "found", "--run-commands"])
            .spawn()
            .unwrap();
        let began = Instant::now();
        while lines(&bench, "lab/runs").len() < 3 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "the third run does not come"
            );
            thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
        assert_eq!(left(&bench), usize::from(signal == Signal::KILL));
        assert_eq!(trials(&bench, "found").len(), 2);
        // The third run of the next process hangs too.
        fs::write(bench.path("lab/runs"), "x\nx\n").unwrap();
    }
    // What a killed process started lives on.
    for pid in lines(&bench, "lab/pids")
        .iter()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
    {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    fs::write(bench.path("lab/runs"), "x\nx\nx\n").unwrap();
    passes(&bench, "found");
    passes(&bench, "whole");
    assert_eq!(trials(&bench, "found"), trials(&bench, "whole"));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (lines, why) in [
        ("command: sh score\ntrials: 1\n", "does not hold `{model}`"),
        (
            "command: \"sh 'score {model}\"\ntrials: 1\n",
            "within quotes",
        ),
        (
            "command: sh score {model}\ntasks: [a.jsonl]\ntrials: 1\n",
            "`command` and `tasks` exclude each other",
        ),
        (
            "command: sh score {model}\nscore: accuracy\ntrials: 1\n",
            "`command` and `score` exclude each other",
        ),
        (
            "command: sh score {model}\nchat_template: true\ntrials: 1\n",
            "`command` and `chat_template` exclude each other",
        ),
        (
            "tasks: [a.jsonl]\nchat_template: chatml\ntrials: 1\n",
            "expected true or false as `chat_template`",
        ),
        (
            "command: sh score {model}\nhalving: {items: 5}\ntrials: 1\n",
            "`command` and `halving` exclude each other",
        ),
        (
            "tasks: [a.jsonl]\nslots: 2\ntrials: 1\n",
            "`slots` is of a study with a `command`",
        ),
        (
            "command: sh score {model}\nmetrics: {a: b}\ntrials: 1\n",
            "`b` is no JSON pointer",
        ),
        (
            "command: sh score {model}\nmetrics: {a: {better: lower}}\ntrials: 1\n",
            "missing `pointer`",
        ),
        (
            "command: sh score {model}\nmetrics: {a: {pointer: /a, better: less}}\ntrials: 1\n",
            "expected one of `higher`, `lower`",
        ),
        (
            "command: sh score {model}\nmetrics: {}\ntrials: 1\n",
            "there are no metrics",
        ),
        (
            "command: sh score {model}\nslots: 3\ngpus: [0, 1]\ntrials: 1\n",
            "there are 3 slots, and GPUs for 2",
        ),
        (
            "command: sh score {model}\nslots: 0\ntrials: 1\n",
            "a whole number from 1 to 64",
        ),
        (
            "command: sh score {model}\ntime_limit: soon\ntrials: 1\n",
            "expected a time",
        ),
    ] {
        let bench = bench(lines, "touch ran");
        let outcome = study(&bench, "found");
        assert_eq!(outcome.code, Some(1), "{lines}: {outcome:?}");
        assert!(outcome.stderr.contains(why), "{why}: {}", outcome.stderr);
        assert!(!bench.path("lab/ran").exists());
    }
}
