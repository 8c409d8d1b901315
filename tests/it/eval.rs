//! `weld eval`: scores of the small family, recipes in memory, baselines and bounds, and the job of `docs/ci.md`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::fixtures::{Bench, read_json};

/// Sums, of which the fine-tune `add` has most right and the base about a third.
fn sums() -> String {
    let sums = (0..80u32).map(|at| {
        let (a, b) = (at * 29 % 100, at * 53 % 100);
        format!(
            "{{\"prompt\": \"add:{a:02}+{b:02}=\", \"answer\": \"{:03}\"}}\n",
            a + b
        )
    });
    sums.collect()
}

/// A folder with the family and tasks.
fn bench() -> Bench {
    let bench = Bench::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("recipes/family"), bench.path("family")).unwrap();
    bench.file("sums.jsonl", sums());
    bench.file(
        "choices.jsonl",
        "{\"prompt\": \"add:37+45=\", \"choices\": [\"081\", \"082\"], \"answer\": \"082\"}\n",
    );
    bench.file("texts.jsonl", "{\"text\": \"sort:31425926=12234569\"}\n");
    bench
}

/// Runs `weld eval` with `-q`; the exit code, stdout and stderr.
fn eval(bench: &Bench, words: &[&str]) -> (Option<i32>, String, String) {
    let outcome = bench.weld(&[&["eval", "-q"], words].concat());
    (outcome.code, outcome.stdout, outcome.stderr)
}

/// The JSON report.
fn json(bench: &Bench, words: &[&str]) -> Value {
    let (code, stdout, stderr) = eval(bench, &[words, &["--format", "json"]].concat());
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn accuracy(report: &Value) -> f64 {
    report["details"]["metrics"][0]["metrics"][0]["value"]
        .as_f64()
        .unwrap()
}

/// Neither reports nor results of items are written over what a command reads, or over a file of a model.
#[test]
fn reports_are_not_written_over_what_is_read() {
    let bench = bench();
    for model in ["add", "base"] {
        let to = bench.path("models").join(model);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(bench.path("family").join(model)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    bench.file("policy.toml", "[eval]\nmax_drop = 0.5\n");
    bench.file(
        "recipe.yml",
        "merge_method: linear\nmodels: [{model: models/add, parameters: {weight: 1}}]\n",
    );
    symlink("models/add/config.json", bench.path("link.json")).unwrap();
    let kept = |file: &str| fs::read(bench.path(file)).unwrap();
    let targets = [
        "sums.jsonl",
        "./sums.jsonl",
        "policy.toml",
        "recipe.yml",
        "link.json",
        "models/add/config.json",
        "models/base/tokenizer.json",
        "models/base/model.safetensors",
    ];
    let eval = [
        "eval",
        "recipe.yml",
        "--tasks",
        "sums.jsonl",
        "--policy",
        "policy.toml",
    ];
    for file in targets {
        let before = kept(file);
        let json = format!("json={file}");
        let of_model = file.starts_with("models");
        let mut commands = vec![
            [&eval[..], &["--items", file]].concat(),
            [&eval[..], &["--format", &json]].concat(),
        ];
        if of_model || file == "policy.toml" || file == "link.json" {
            let policy = ["--policy", "policy.toml", "--format", &json];
            commands.push([&["check", "models/add"], &policy[..]].concat());
            commands.push([&["diff", "models/add", "models/base"], &policy[..]].concat());
            commands.push([&["verify", "models/add"], &policy[..]].concat());
            let analyse = ["analyse", "models/add", "--base", "models/base"];
            commands.push([&analyse[..], &policy].concat());
        }
        for command in commands {
            let outcome = bench.weld(&command);
            assert_eq!(outcome.code, Some(2), "{command:?}: {}", outcome.stderr);
            let text = outcome
                .stderr
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            assert!(
                text.contains("this is read as an input")
                    || text.contains("this is a file of a model"),
                "{command:?}: {text}"
            );
            assert_eq!(kept(file), before, "{command:?}");
        }
    }
    // Other files may be written again and again, beside a model too; so may reports, whatever their names.
    let report = bench
        .weld(&["check", "models/add", "--format", "json"])
        .stdout;
    bench.file("models/add/config-report.json", report);
    for _ in 0..2 {
        let named = "json=models/add/config-report.json";
        let words = ["check", "models/add", "--format", named];
        assert_eq!(bench.weld(&words).code, Some(0));
        let words = [
            "check",
            "models/add",
            "--format",
            "json=models/add/report.json",
        ];
        assert_eq!(bench.weld(&words).code, Some(0));
        let items = [
            "eval",
            "models/add",
            "--tasks",
            "sums.jsonl",
            "--items",
            "items.jsonl",
        ];
        assert_eq!(bench.weld(&items).code, Some(0));
    }
    let same = [
        "eval",
        "models/add",
        "--tasks",
        "sums.jsonl",
        "--items",
        "x",
        "--format",
        "json=x",
    ];
    let outcome = bench.weld(&same);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(!bench.path("x").exists());
}

/// A gate on choices may be by length: of these choices the base has by one metric what it has not by the other.
#[test]
fn a_gate_names_its_metric() {
    let bench = bench();
    let words = [
        "family/base",
        "--tasks",
        "choices.jsonl",
        "--baseline",
        "family/add",
    ];
    let metric = |more: &[&str]| {
        let outcome = eval(&bench, &[&words[..], more, &["--format", "json"]].concat());
        let report: Value = serde_json::from_str(&outcome.1).unwrap();
        report["details"]["comparison"]["tasks"][0]["metric"].clone()
    };
    assert_eq!(metric(&[]), "accuracy");
    assert_eq!(
        metric(&["--compare-by", "accuracy_normalised"]),
        "accuracy_normalised"
    );
    bench.file("policy.toml", "[eval]\nmetric = \"accuracy_normalised\"\n");
    let policy = ["--policy", "policy.toml"];
    assert_eq!(metric(&policy), "accuracy_normalised");
    let command_line = [&policy[..], &["--compare-by", "accuracy"]].concat();
    assert_eq!(metric(&command_line), "accuracy");
    let (code, _, stderr) = eval(
        &bench,
        &[
            "family/base",
            "--tasks",
            "sums.jsonl",
            "--baseline",
            "family/add",
            "--compare-by",
            "accuracy_normalised",
        ],
    );
    assert_eq!(code, Some(2));
    assert!(stderr.contains("no task has choices"), "{stderr}");
}

#[test]
fn tasks_of_all_kinds_are_scored_at_once() {
    let bench = bench();
    let tasks = [
        "--tasks",
        "sums.jsonl",
        "choices.jsonl",
        "--tasks",
        "texts.jsonl",
    ];
    let words = [&["family/add"], &tasks[..], &["--items", "items.jsonl"]].concat();
    let (code, stdout, stderr) = eval(&bench, &words);
    assert_eq!(code, Some(0), "{stderr}");
    for part in [
        "accuracy_normalised",
        "perplexity",
        "bits_per_byte",
        "passed",
        "82 of 3 tasks",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let items = fs::read_to_string(bench.path("items.jsonl")).unwrap();
    let items = items
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let items: Vec<Value> = items.collect();
    assert_eq!(items.len(), 82);
    let right = items[..80]
        .iter()
        .filter(|item| item["correct"] == true)
        .count();
    assert!(right > 50, "{right} of 80");
    assert_eq!(items[80]["choices"].as_array().unwrap().len(), 2);
    let report = json(&bench, &words);
    assert_eq!(accuracy(&report), right as f64 / 80.0);
    assert_eq!(
        report["details"]["scores"]["tasks"][2]["items"][0]["bytes"],
        22
    );
    // Threads and batches change no verdict, and threads no bit.
    let once = json(&bench, &[&words[..], &["--threads", "1"]].concat());
    assert_eq!(once["details"], report["details"]);
    let small = json(&bench, &[&words[..], &["--memory", "1MB"]].concat());
    assert_eq!(accuracy(&small), accuracy(&report));
    for format in ["junit", "markdown", "html"] {
        let words = [&words[..], &["--format", format]].concat();
        let (code, stdout, _) = eval(&bench, &words);
        assert_eq!(code, Some(0));
        assert!(
            stdout.contains("perplexity") || format == "junit",
            "{format}: {stdout}"
        );
    }
}

#[test]
fn a_recipe_is_scored_as_the_merge_it_writes() {
    let bench = bench();
    bench.recipe(
        "merge_method: task_arithmetic\nbase_model: family/base\nmodels:\n- {model: family/add, parameters: {weight: 0.6}}\n\
         - {model: family/sort, parameters: {weight: 0.3}}\ndtype: bfloat16\n",
    );
    let names = || {
        let entries = fs::read_dir(bench.path(".")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let tasks = ["--tasks", "sums.jsonl"];
    let in_memory = json(&bench, &[&["recipe.yml"], &tasks[..]].concat());
    assert_eq!(names(), before, "something was written");
    bench.passes(&["merge", "recipe.yml", "out", "-q"]);
    let written = json(&bench, &[&["out"], &tasks[..]].concat());
    let items = |report: &Value| report["details"]["scores"]["tasks"].clone();
    assert_eq!(items(&in_memory), items(&written));
    let set = ["--set", "models[0].parameters.weight=0.0"];
    let other = json(&bench, &[&["recipe.yml"], &tasks[..], &set].concat());
    assert!(accuracy(&other) < accuracy(&in_memory));
}

#[test]
fn a_model_that_loses_more_than_its_bound_fails() {
    let bench = bench();
    let tasks = ["--tasks", "sums.jsonl"];
    let (code, _, stderr) = eval(
        &bench,
        &[
            &["family/add"],
            &tasks[..],
            &["--format", "json=before.json"],
        ]
        .concat(),
    );
    assert_eq!(code, Some(0), "{stderr}");
    let worse = [&["family/base"], &tasks[..]].concat();
    for baseline in ["before.json", "family/add"] {
        let bound = ["--baseline", baseline, "--max-drop", "0.01"];
        let junit = ["--format", "text", "--format", "junit=eval.xml"];
        let (code, stdout, stderr) = eval(&bench, &[&worse[..], &bound, &junit].concat());
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stdout.contains("error[eval.drop]"), "{stdout}");
        assert!(stdout.contains("a drop of at most 0.0100"), "{stdout}");
        let xml = fs::read_to_string(bench.path("eval.xml")).unwrap();
        assert!(xml.contains("failures=\"1\""), "{xml}");
    }
    let better = ["--baseline", "family/base", "--max-drop", "0"];
    let report = json(&bench, &[&["family/add"], &tasks[..], &better].concat());
    let compared = &report["details"]["comparison"]["tasks"][0];
    assert!(compared["drop"].as_f64().unwrap() < 0.0, "{compared}");
    assert!(compared["p_value"].as_f64().unwrap() < 1e-4, "{compared}");
    // Without a bound, a comparison fails nothing.
    let (code, stdout, _) = eval(
        &bench,
        &[&worse[..], &["--baseline", "before.json"]].concat(),
    );
    assert_eq!(code, Some(0), "{stdout}");
}

#[test]
fn a_policy_holds_bounds_by_task() {
    let bench = bench();
    let worse = [
        "family/base",
        "--tasks",
        "sums.jsonl",
        "--policy",
        "policy.toml",
    ];
    let code = |policy: &str, more: &[&str]| {
        bench.file("policy.toml", policy);
        eval(&bench, &[&worse[..], more].concat()).0
    };
    let beside = ["--baseline", "family/add"];
    assert_eq!(code("[eval]\nmax_drop = 0.01\n", &beside), Some(1));
    assert_eq!(code("[eval]\nmax_drop = 0.99\n", &beside), Some(0));
    let of_task = "[eval]\nmax_drop = 0.01\n[[eval.tasks]]\nmatch = \"sum*\"\nmax_drop = 0.99\n";
    assert_eq!(code(of_task, &beside), Some(0));
    assert_eq!(code("[eval]\nmax_drop = 0.01\n", &[]), Some(3));
    assert_eq!(code("[eval]\nmax_dorp = 0.01\n", &[]), Some(2));
}

#[test]
fn what_cannot_be_scored_ends_with_2_and_says_why() {
    let bench = bench();
    bench.file(
        "wrong.jsonl",
        "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n",
    );
    bench.file("none.json", "{}");
    for (words, part) in [
        (
            &["family/add", "--tasks", "wrong.jsonl"][..],
            "wrong.jsonl:2: expected {\"prompt\", \"answer\"}",
        ),
        (&["family/add", "--tasks", "nowhere.jsonl"], "nowhere.jsonl"),
        (&["family/nobody", "--tasks", "sums.jsonl"], "family/nobody"),
        (&["nowhere.yml", "--tasks", "sums.jsonl"], "nowhere.yml"),
        (
            &["none.json", "--tasks", "sums.jsonl"],
            "expected a model or a recipe",
        ),
        (
            &[
                "family/add",
                "--tasks",
                "sums.jsonl",
                "--baseline",
                "none.json",
            ],
            "it holds no scores",
        ),
        (
            &["family/add", "--tasks", "sums.jsonl", "--max-drop", "0.1"],
            "--baseline",
        ),
        (
            &["family/add", "--tasks", "sums.jsonl", "sums.jsonl"],
            "was given twice",
        ),
        (&["family/add"], "--tasks"),
    ] {
        let (code, stdout, stderr) = eval(&bench, words);
        assert_eq!(code, Some(2), "{words:?}: {stdout}{stderr}");
        assert!(stderr.contains(part), "{words:?}: {stderr}");
    }
    let other = [
        "family/add",
        "--tasks",
        "texts.jsonl",
        "--baseline",
        "before.json",
    ];
    eval(
        &bench,
        &[
            "family/add",
            "--tasks",
            "sums.jsonl",
            "--format",
            "json=before.json",
        ],
    );
    let (code, _, stderr) = eval(&bench, &other);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("was not scored on task `texts`"),
        "{stderr}"
    );
}

/// The step that `docs/ci.md` shows, on a model that has lost a skill and on one that has not.
#[test]
fn the_job_of_ci_refuses_a_merge_that_loses_too_much() {
    let bench = bench();
    let page = include_str!("../../docs/ci.md");
    let start = "- run: weld eval models/merged";
    let line = page.lines().find(|line| line.contains(start)).unwrap();
    let (_, words) = line.split_once("weld ").unwrap();
    fs::create_dir(bench.path("models")).unwrap();
    fs::create_dir(bench.path("tasks")).unwrap();
    fs::copy(bench.path("sums.jsonl"), bench.path("tasks/sums.jsonl")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    symlink(root.join("add"), bench.path("models/before")).unwrap();
    for (merged, expected) in [("base", 1), ("add", 0)] {
        symlink(root.join(merged), bench.path("models/merged")).unwrap();
        let words = words.split_whitespace().map(|word| match word {
            "tasks/*.jsonl" => "tasks/sums.jsonl",
            word => word,
        });
        let outcome = bench.weld(&words.collect::<Vec<&str>>());
        assert_eq!(
            outcome.code,
            Some(expected),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        let summary = fs::read_to_string(bench.path("summary.md")).unwrap();
        assert_eq!(summary.contains("eval.drop"), expected == 1, "{summary}");
        assert!(bench.path("eval.xml").is_file());
        fs::remove_file(bench.path("models/merged")).unwrap();
    }
}

#[test]
fn splits_are_told_and_limits_kept() {
    let bench = bench();
    let of = |split: &str, limit: &str| {
        let words = [
            "family/add",
            "--tasks",
            "sums.jsonl",
            "--split",
            split,
            "--limit",
            limit,
        ];
        let report = json(&bench, &words);
        let items = report["details"]["scores"]["tasks"][0]["items"]
            .as_array()
            .unwrap();
        items
            .iter()
            .map(|item| item["line"].as_u64().unwrap())
            .collect::<Vec<u64>>()
    };
    let (validation, test) = (of("validation", "100"), of("test", "100"));
    assert_eq!(validation.len() + test.len(), 80);
    assert!(validation.iter().all(|line| !test.contains(line)));
    assert_eq!(of("test", "5").len(), 5);
    let path = bench.path("report.json");
    eval(
        &bench,
        &[
            "family/add",
            "--tasks",
            "sums.jsonl",
            "--split",
            "test",
            "--seed",
            "7",
            "--format",
            "json=report.json",
        ],
    );
    assert_eq!(read_json(&path)["summary"]["split"], "test, seed 7");
}

/// Lines that repeat others, and text that the tokenizer does not know, are told; neither changes the verdict.
#[test]
fn items_that_say_less_than_they_seem_to_are_told() {
    let bench = bench();
    bench.file(
        "odd.jsonl",
        "{\"prompt\": \"add:37+45=\", \"answer\": \"082\"}\n\
         {\"prompt\": \"add:37+46=\", \"answer\": \"083\"}\n\
         {\"answer\": \"082\", \"prompt\": \"add:37+45=\", \"id\": 7}\n\
         {\"prompt\": \"ADD:37+45=\", \"answer\": \"082\"}\n",
    );
    let report = json(
        &bench,
        &["family/add", "--tasks", "odd.jsonl", "sums.jsonl"],
    );
    let findings = report["findings"].as_array().unwrap();
    let found: Vec<(&str, &str)> = findings
        .iter()
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap();
            (text("check"), text("found"))
        })
        .collect();
    assert_eq!(
        found,
        [
            (
                "eval.repeated",
                "1 of 4 repeat another: line 3 repeats line 1"
            ),
            ("eval.unknown", "1 of 4 hold some that it does not: lines 4"),
        ]
    );
    // Each line counts.
    assert_eq!(report["details"]["metrics"][0]["items"], 4);
    assert_eq!(report["verdict"], "passed");
    fs::hard_link(bench.path("odd.jsonl"), bench.path("same.jsonl")).unwrap();
    let words = ["family/add", "--tasks", "odd.jsonl", "same.jsonl"];
    let (code, _, stderr) = eval(&bench, &words);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("odd.jsonl and same.jsonl are the same file"),
        "{stderr}"
    );
}

/// Prompts that the model's template writes. The log-likelihoods are those of transformers: `apply_chat_template` with
/// `add_generation_prompt`, in float32.
#[test]
fn a_chat_template_writes_the_prompts() {
    const TEMPLATE: &str = "{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'add:' + message['content'].strip() }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '=' }}
{%- endif %}
";
    let bench = bench();
    let items = [
        (" 37+45 ", "082"),
        ("15+37", "052"),
        ("99+11", "110"),
        ("08+77", "084"),
    ];
    let line = |(prompt, answer)| format!("{{\"prompt\": {prompt:?}, \"answer\": {answer:?}}}\n");
    bench.file("chats.jsonl", items.map(line).concat());
    let words = |model| [model, "--tasks", "chats.jsonl", "--chat-template"];
    // None of the family has a template.
    let (code, _, stderr) = eval(&bench, &words("family/add"));
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("model `family/add`: there is no chat template beside it"),
        "{stderr}"
    );
    assert!(stderr.contains("chat_template.jinja"), "{stderr}");
    fs::create_dir(bench.path("chat")).unwrap();
    for entry in fs::read_dir(bench.path("family/add")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), bench.path("chat").join(entry.file_name())).unwrap();
    }
    let file = bench.file("chat/chat_template.jinja", TEMPLATE);
    let report = json(&bench, &words("chat"));
    let scores = &report["details"]["scores"];
    assert_eq!(scores["chat_template"], true);
    let expected = [
        -0.223_772_363,
        -0.291_162_096,
        -0.716_973_334,
        -1.146_719_057,
    ];
    for (item, expected) in scores["tasks"][0]["items"]
        .as_array()
        .unwrap()
        .iter()
        .zip(expected)
    {
        let found = item["log_likelihood"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
    // A recipe's merge has the template of its tokenizer's model, and the entry of a config is as good as a file.
    fs::remove_file(&file).unwrap();
    let mut config = read_json(&bench.path("chat/tokenizer_config.json"));
    config["chat_template"] = TEMPLATE.into();
    bench.file("chat/tokenizer_config.json", config.to_string());
    bench.recipe(
        "merge_method: linear\nmodels: [{model: chat, parameters: {weight: 1}}]\ndtype: bfloat16\n",
    );
    let merged = json(&bench, &words("recipe.yml"));
    assert_eq!(merged["details"]["scores"]["tasks"], scores["tasks"]);
    // Without it the prompt is another, and the two are not compared.
    let plain = [
        "chat",
        "--tasks",
        "chats.jsonl",
        "--format",
        "json=plain.json",
    ];
    eval(&bench, &plain);
    let (code, _, stderr) = eval(
        &bench,
        &[&words("chat")[..], &["--baseline", "plain.json"]].concat(),
    );
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("scored with --chat-template, and `chat` without it"),
        "{stderr}"
    );
    for (template, why) in [
        (
            "{{ raise_exception('tools only') }}",
            "chats.jsonl:1: the model's chat template does not write this prompt: tools only",
        ),
        ("{% for", "its chat template is not sound Jinja"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more than 200000 steps",
        ),
    ] {
        fs::write(&file, template).unwrap();
        let (code, _, stderr) = eval(&bench, &words("chat"));
        assert_eq!(code, Some(2));
        assert!(stderr.contains(why), "{stderr}");
    }
}
