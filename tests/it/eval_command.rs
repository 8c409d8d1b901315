//! `weld eval --command`: what another program measures, and what is left when it fails, hangs, lies or is killed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fixtures::Bench;

const RECIPE: &str = "\
merge_method: task_arithmetic
base_model: family/base
models:
- {model: family/add, parameters: {weight: 0.6}}
dtype: bfloat16
";

/// A folder with the family, a recipe, a place for scratch, and a shell script that scores.
fn bench(script: &str) -> Bench {
    let bench = Bench::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("recipes/family"), bench.path("family")).unwrap();
    bench.recipe(RECIPE);
    fs::create_dir(bench.path("scratch")).unwrap();
    rewrite(&bench, script);
    bench
}

fn rewrite(bench: &Bench, script: &str) {
    bench.file("score", script);
}

fn left(bench: &Bench) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.path("scratch")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The words of a command line that scores the recipe, with these behind them.
fn words<'w>(more: &[&'w str]) -> Vec<&'w str> {
    let words = ["eval", "recipe.yml", "-q", "--scratch", "scratch"];
    [&words[..], more].concat()
}

fn report(bench: &Bench, more: &[&str]) -> Value {
    let outcome = bench.weld(&words(&[more, &["--format", "json"]].concat()));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(left(bench), Vec::<PathBuf>::new());
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn a_merge_is_scored_where_it_lies_for_a_while() {
    let bench = bench(
        r#"ls "$1" | sort > listed; cmp "$1/model.safetensors" written/model.safetensors && same=1
        echo "{\"accuracy\": 0.75, \"loss\": {\"of,all\": 1.5, \"err\": 0.25}, \"same\": ${same:-0}}" > "$2""#,
    );
    bench.passes(&["merge", "recipe.yml", "written", "-q"]);
    let command = ["--command", "sh score '{model}' {out}"];
    let metrics = [
        "--metric",
        "acc=/accuracy",
        "--metric",
        "loss=/loss/of,all",
        "--metric",
        "same=/same",
    ];
    let more = [
        "--metric-error",
        "loss=/loss/err",
        "--lower-is-better",
        "loss",
    ];
    let found = report(&bench, &[&command[..], &metrics, &more].concat());
    assert_eq!(
        found["details"],
        json!({
            "program": "sh",
            "split": "all",
            "metrics": [
                {"name": "acc", "value": 0.75, "standard_error": null, "larger_is_better": true, "items": null},
                {"name": "loss", "value": 1.5, "standard_error": 0.25, "larger_is_better": false, "items": null},
                {"name": "same", "value": 1.0, "standard_error": null, "larger_is_better": true, "items": null},
            ],
        })
    );
    let listed = fs::read_to_string(bench.path("listed")).unwrap();
    assert!(
        listed.contains("config.json\n") && listed.contains("tokenizer.json\n"),
        "{listed}"
    );
    // A folder is scored where it is, and without `{out}` the JSON is what the command prints.
    rewrite(
        &bench,
        r#"echo "{\"length\": ${#1}, \"there\": $(test "$1" -ef family/add && echo 1)}""#,
    );
    let words = [
        "eval",
        "family/add",
        "--command",
        "sh score {model}",
        "--metric",
        "there=/there",
    ];
    let outcome = bench.weld(&words);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stdout.contains("1.0000") && outcome.stderr.contains("running sh"),
        "{outcome:?}"
    );
}

#[test]
fn the_command_knows_the_split_and_is_no_shell() {
    let bench = bench(r#"printf '%s\n' "$@" > words; echo '{"a": 1}'"#);
    let command = [
        "--command",
        r#"sh score {model} 'x_{split}' $HOME;id "a b" *"#,
        "--metric",
        "a=/a",
    ];
    let found = report(&bench, &[&command[..], &["--split", "test"]].concat());
    assert_eq!(found["details"]["split"], "test");
    let words = fs::read_to_string(bench.path("words")).unwrap();
    let words: Vec<&str> = words.lines().skip(1).collect();
    assert_eq!(words, ["x_test", "$HOME;id", "a b", "*"]);
}

#[test]
fn lm_evals_folder_is_understood() {
    let bench = bench(
        r#"mkdir -p "$2/a__model"; echo '{}' > "$2/a__model/samples_x.jsonl"
        cat > "$2/a__model/results_2026-11-30T10-00-00.json" <<END
{"results": {"sums": {"alias": "sums", "acc,none": 0.5, "acc_stderr,none": NaN}}, "n-samples": {"sums": {"effective": 40}}}
END"#,
    );
    let found = report(&bench, &["--command", "sh score {model} {out}"]);
    let expected = json!([{"name": "sums", "value": 0.5, "standard_error": null, "larger_is_better": true, "items": 40}]);
    assert_eq!(found["details"]["metrics"], expected);
}

/// Whatever the command does, it is no verdict (exit code 2), the reason is told in a bounded text that steers no terminal,
/// and nothing is left.
#[test]
fn what_a_command_does_wrong_is_told() {
    let bench = bench("");
    let long = r#"awk 'BEGIN {printf "{\"a\": \""; for (i = 0; i < 7000000; i++) printf "0123456789"; print "\"}"}'"#;
    let deep =
        r#"awk 'BEGIN {printf "{\"a\": "; for (i = 0; i < 200000; i++) printf "["; print 1}'"#;
    let loud = r#"awk 'BEGIN {for (i = 0; i < 300000; i++) print "warning " i > "/dev/stderr"}'; printf '\033[31mend\007' >&2; exit 7"#;
    for (script, why) in [
        ("exit 3", "ended with exit status: 3"),
        ("kill -9 $$", "signal: 9"),
        (loud, "ended with exit status: 7; the end of its output: "),
        ("", "its output is no JSON"),
        ("echo hello", "its output is no JSON"),
        (
            r#"echo '{"a": NaN}'"#,
            "expected a number for `a` at /a, found null (or NaN)",
        ),
        (r#"echo '{"a": "0.5"}'"#, "found the text \"0.5\""),
        (r#"echo '{"b": 1}'"#, "found nothing"),
        (r#"echo '{"a": 1e999}'"#, "its output is no JSON"),
        (long, "its JSON is too long"),
        (deep, "recursion limit exceeded"),
    ] {
        rewrite(&bench, script);
        let outcome = bench.weld(&words(&[
            "--command",
            "sh score {model}",
            "--metric",
            "a=/a",
        ]));
        assert_eq!(outcome.code, Some(2), "{script}: {outcome:?}");
        assert!(
            outcome.stderr.contains("the command `sh`: ") && outcome.stderr.contains(why),
            "{why}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.len() < 3000 && !outcome.stderr.contains(['\x1b', '\x07']),
            "{}",
            outcome.stderr
        );
        assert_eq!(left(&bench), Vec::<PathBuf>::new(), "{script}");
    }
    // Ten million bytes of JSON are no more than much.
    rewrite(
        &bench,
        r#"awk 'BEGIN {printf "{\"x\": \""; for (i = 0; i < 1000000; i++) printf "0123456789"; print "\", \"a\": 2}"}'"#,
    );
    assert_eq!(
        report(
            &bench,
            &["--command", "sh score {model}", "--metric", "a=/a"]
        )["details"]["metrics"][0]["value"],
        2.0
    );
    let missing = bench.weld(&words(&[
        "--command",
        "./nowhere {model}",
        "--metric",
        "a=/a",
    ]));
    assert!(
        missing
            .stderr
            .contains("cannot run `./nowhere`: No such file"),
        "{missing:?}"
    );
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_runs() {
    let bench = bench("touch ran; echo '{\"a\": 1}'");
    let command = ["--command", "sh score {model}"];
    for (more, why) in [
        (&["--command", "sh score"][..], "does not hold `{model}`"),
        (&["--command", "sh score '{model}"], "within quotes"),
        (
            &[command[0], command[1], "--split", "test"],
            "does not hold `{split}`",
        ),
        (
            &[
                command[0],
                command[1],
                "--metric",
                "a=/a",
                "--metric-error",
                "b=/b",
            ],
            "there is no --metric b=POINTER",
        ),
        (&[command[0], command[1], "--metric", "a"], "a JSON pointer"),
        (
            &[command[0], command[1], "--tasks", "x.jsonl"],
            "cannot be used with",
        ),
        (
            &[
                command[0],
                command[1],
                "--baseline",
                "family/add",
                "--compare-by",
                "accuracy",
            ],
            "cannot be used with",
        ),
        (
            &[command[0], command[1], "--time-limit", "0s"],
            "expected a time",
        ),
        (&["--metric", "a=/a"], "--command"),
    ] {
        let outcome = bench.weld(&words(more));
        assert_eq!(outcome.code, Some(2), "{more:?}");
        assert!(outcome.stderr.contains(why), "{why}: {}", outcome.stderr);
    }
    let file = "family/add/model.safetensors";
    let outcome = bench.weld(&["eval", file, command[0], command[1], "--metric", "a=/a"]);
    assert!(
        outcome.stderr.contains("a command scores a folder"),
        "{outcome:?}"
    );
    assert!(!bench.path("ran").exists());
}

/// What a command measures is held to a baseline, each metric in its own direction.
#[test]
fn a_gate_holds_metrics_to_a_baseline() {
    let script = r#"case "$1" in */family/base) acc=0.75; loss=1.5;; *) acc=0.7; loss=1.25;; esac
        echo "{\"acc\": $acc, \"err\": 0.01, \"loss\": $loss}""#;
    let bench = bench(script);
    let command = [
        "--command",
        "sh score {model}",
        "--metric",
        "acc=/acc",
        "--metric-error",
        "acc=/err",
        "--metric",
        "loss=/loss",
        "--lower-is-better",
        "loss",
    ];
    let run = |more: &[&str]| {
        let outcome = bench.weld(&words(
            &[&command[..], more, &["--format", "json"]].concat(),
        ));
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        (outcome.code, report)
    };
    let base = ["--baseline", "family/base"];
    let (code, report) = run(&base);
    assert_eq!(code, Some(0));
    let compared = report["details"]["comparison"]["metrics"]
        .as_array()
        .unwrap();
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
    assert!(
        near(&compared[0]["drop"], 0.05) && near(&compared[1]["drop"], -0.25),
        "{report}"
    );
    assert!(
        near(
            &compared[0]["half_width"],
            1.959963984540054 * 2f64.sqrt() * 0.01
        ),
        "{report}"
    );
    assert!(compared[1]["half_width"].is_null());
    // Lost 0.05, within 0.06, which the errors leave open.
    for (bound, expected, check) in [("0.06", 0, "eval.uncertain"), ("0.04", 1, "eval.drop")] {
        let (code, report) = run(&[&base[..], &["--max-drop", bound]].concat());
        assert_eq!(code, Some(expected), "{report}");
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 1, "{report}");
        assert_eq!(
            (&findings[0]["check"], &findings[0]["field"]),
            (&check.into(), &"value".into())
        );
    }
    // An earlier result, and a policy; without a baseline the policy cannot be kept.
    let file = ["eval", "family/base", "-q", "--format", "json=before.json"];
    assert_eq!(bench.weld(&[&file[..], &command].concat()).code, Some(0));
    bench.file("policy.toml", "[eval]\nmax_drop = 0.04\n");
    let policy = ["--policy", "policy.toml"];
    let (code, report) = run(&[&["--baseline", "before.json"][..], &policy].concat());
    assert_eq!(
        (code, &report["findings"][0]["check"]),
        (Some(1), &"eval.drop".into())
    );
    assert_eq!(run(&policy).0, Some(3));
    // Scores of weld's own are no metrics of a command.
    bench.file(
        "t.jsonl",
        "{\"prompt\": \"add:37+45=\", \"answer\": \"082\"}\n",
    );
    let own = [
        "eval",
        "family/base",
        "--tasks",
        "t.jsonl",
        "-q",
        "--format",
        "json=own.json",
    ];
    bench.passes(&own);
    let outcome = bench.weld(&words(
        &[&command[..], &["--baseline", "own.json"]].concat(),
    ));
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("holds no metrics of a command"),
        "{outcome:?}"
    );
}

#[test]
fn it_is_run_again_as_often_as_is_allowed() {
    let bench = bench(r#"echo x >> runs; test $(wc -l < runs) -ge 3 || exit 1; echo '{"a": 1}'"#);
    let command = ["--command", "sh score {model}", "--metric", "a=/a"];
    let outcome = bench.weld(&words(&[&command[..], &["--retries", "1"]].concat()));
    assert_eq!(outcome.code, Some(2));
    fs::remove_file(bench.path("runs")).unwrap();
    report(&bench, &[&command[..], &["--retries", "2"]].concat());
    assert_eq!(
        fs::read_to_string(bench.path("runs"))
            .unwrap()
            .lines()
            .count(),
        3
    );
}

#[test]
fn passwords_of_the_environment_are_not_repeated() {
    let bench = bench(r#"echo "the key is $MY_API_KEY, mode $MODE" >&2; exit 1"#);
    let mut process = bench.process(&words(&["--command", "sh score {model}"]));
    let process = process
        .env("MY_API_KEY", "sk-0123456789")
        .env("MODE", "quick-and-dirty");
    let output = process.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("the key is ***, mode quick-and-dirty"),
        "{stderr}"
    );
    assert!(!stderr.contains("sk-0123"), "{stderr}");
}

/// Whether a process is there; one that was killed and that nobody has waited for is not.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until something is so.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that the script has started.
fn pids(bench: &Bench) -> Vec<String> {
    let text = fs::read_to_string(bench.path("pids")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A script that starts another process, and neither ends.
const HANGS: &str = "trap '' TERM; sleep 600 & echo $! >> pids; echo $$ >> pids; wait; sleep 600";

#[test]
fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let bench = bench(HANGS);
    let began = Instant::now();
    let outcome = bench.weld(&words(&[
        "--command",
        "sh score {model}",
        "--time-limit",
        "0.5s",
    ]));
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome
            .stderr
            .contains("it was not done after 0.5 s, which is its time limit"),
        "{outcome:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(60));
    let started = pids(&bench);
    assert_eq!(started.len(), 2);
    wait_for("the processes live on", || {
        !started.iter().any(|pid| is_running(pid))
    });
    assert_eq!(left(&bench), Vec::<PathBuf>::new());
}

fn started(bench: &Bench) -> Child {
    let _ = fs::remove_file(bench.path("pids"));
    let mut process = bench.process(&words(&["--command", "sh score {model}"]));
    let child = process.spawn().unwrap();
    wait_for("the command does not start", || pids(bench).len() == 2);
    child
}

#[test]
fn weld_stopped_or_killed_in_mid_run_leaves_no_merge() {
    let bench = bench(HANGS);
    let mut child = started(&bench);
    assert_eq!(left(&bench).len(), 1);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(left(&bench), Vec::<PathBuf>::new());
    let of_first = pids(&bench);
    wait_for("the processes live on", || {
        !of_first.iter().any(|pid| is_running(pid))
    });
    // What a killed process could not remove, the next one does, but for that of one that lives.
    let mut killed = started(&bench);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let of_killed = pids(&bench);
    let remains = left(&bench);
    assert_eq!(remains.len(), 1);
    let mut lives = started(&bench);
    assert!(!remains[0].exists() && left(&bench).len() == 1);
    let kept = left(&bench);
    rewrite(&bench, "echo '{\"a\": 1}'");
    let outcome = bench.weld(&words(&[
        "--command",
        "sh score {model}",
        "--metric",
        "a=/a",
    ]));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(left(&bench), kept);
    kill_process(Pid::from_child(&lives), Signal::TERM).unwrap();
    lives.wait().unwrap();
    for pid in of_killed {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
