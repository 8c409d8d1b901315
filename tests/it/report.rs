//! Reports in files, policies, and what `docs/ci.md` shows.

use std::fs;
use std::path::Path;

use safetensors::Dtype;

use crate::fixtures::{Bench, floats, llama_config, noise, read_json};

const RECIPE: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.6}}\n- {model: b, parameters: \
                      {weight: 0.4}}\n";

/// A folder with `a`, `b` and their merge as `out`, its lock gone: a note, and nothing wrong.
fn merged() -> Bench {
    let bench = Bench::new();
    let mut config = llama_config(1);
    config["vocab_size"] = 8.into();
    config["hidden_size"] = 4.into();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let tensors: Vec<_> = ["model.embed_tokens.weight", "lm_head.weight"]
            .into_iter()
            .map(|name| floats(name, Dtype::F32, &[8, 4], noise(seed, 32)))
            .collect();
        bench.model(name, &config, &tensors);
    }
    bench.merge(RECIPE, &[]);
    fs::remove_file(bench.path("out/weldment.lock.json")).unwrap();
    bench
}

const VERIFY: [&str; 5] = ["verify", "out", "-q", "--recipe", "recipe.yml"];

fn verify(bench: &Bench, more: &[&str]) -> (Option<i32>, String, String) {
    let outcome = bench.weld(&[&VERIFY, more].concat());
    (outcome.code, outcome.stdout, outcome.stderr)
}

#[test]
fn several_formats_are_written_at_once() {
    let bench = merged();
    fs::write(bench.path("report.xml"), "old").unwrap();
    let (code, stdout, stderr) = verify(
        &bench,
        &[
            "--format",
            "text",
            "--format",
            "junit=report.xml",
            "--format",
            "html=report.html",
            "--format",
            "sarif=report.sarif",
            "--format",
            "markdown=report.md",
        ],
    );
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("passed"), "{stdout}");
    let read = |name| fs::read_to_string(bench.path(name)).unwrap();
    assert!(read("report.xml").starts_with("<?xml"));
    assert!(read("report.html").starts_with("<!doctype html>"));
    assert!(read("report.md").starts_with("## "));
    assert_eq!(read_json(&bench.path("report.sarif"))["version"], "2.1.0");
    // Nothing is left beside them.
    let names = fs::read_dir(bench.path(".")).unwrap();
    let left = names.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".weld-staged")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn outputs_that_cannot_be_are_refused_before_the_work() {
    let bench = merged();
    let refused = |more: &[&str], part: &str| {
        let (code, stdout, stderr) = verify(&bench, more);
        assert_eq!(code, Some(2), "{more:?}: {stderr}");
        assert!(
            stderr.contains(part) && stdout.is_empty(),
            "{more:?}: {stderr}"
        );
    };
    refused(&["--format", "yaml"], "expected one of text, json");
    refused(&["--format", "json="], "the name of a file");
    refused(&["--format", "json=out"], "the name of a file");
    refused(
        &["--format", "json=nowhere/report.json"],
        "no folder nowhere",
    );
    refused(
        &["--format", "json", "--format", "text"],
        "two formats go to stdout",
    );
    refused(
        &["--format", "json=x", "--format", "text=x"],
        "two formats go to x",
    );
    assert!(!bench.path("x").exists());
}

#[test]
fn policies_decide_what_fails() {
    let bench = merged();
    let with = |policy: &str, more: &[&str]| {
        bench.file("policy.toml", policy);
        verify(&bench, &[&["--policy", "policy.toml"], more].concat())
    };
    assert_eq!(with("", &["--strict"]).0, Some(0), "a note is no warning");
    let (code, stdout, _) = with("[verify]\nrequire_lock = true\n", &[]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(
        stdout.contains("verify.lock: 1 finding, error instead of note"),
        "{stdout}"
    );
    assert_eq!(
        with("[severity]\n\"verify.lock\" = \"warning\"\n", &[]).0,
        Some(0)
    );
    assert_eq!(
        with("[severity]\n\"verify.lock\" = \"warning\"\n", &["--strict"]).0,
        Some(1)
    );
    let (code, _, stderr) = with("\n[verify]\nalow = \"step\"\n", &[]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("policy.toml: line 3: unknown key `alow`")
            && stderr.contains("hint: did you mean `allow`?"),
        "{stderr}"
    );
    let (code, _, stderr) = verify(&bench, &["--policy", "nowhere.toml"]);
    assert_eq!(code, Some(2), "{stderr}");
}

#[test]
fn a_policy_that_is_no_file_of_a_policys_size_is_refused() {
    let bench = merged();
    let made = std::process::Command::new("mkfifo")
        .arg(bench.path("pipe"))
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    bench.file("most.toml", "#".repeat(1 << 20));
    bench.file("more.toml", "#".repeat((1 << 20) + 1));
    for (policy, code, part) in [
        (
            "/dev/zero",
            Some(2),
            "the policy /dev/zero: expected a TOML file",
        ),
        ("pipe", Some(2), "the policy pipe: expected a TOML file"),
        (".", Some(2), "the policy .: expected a TOML file"),
        ("more.toml", Some(2), "the policy more.toml: too large"),
        ("most.toml", Some(0), ""),
    ] {
        let (found, _, stderr) = verify(&bench, &["--policy", policy]);
        assert_eq!(found, code, "{policy}: {stderr}");
        assert!(stderr.contains(part), "{policy}: {stderr}");
    }
}

#[test]
fn a_command_that_could_not_run_says_so_in_every_format() {
    let bench = merged();
    bench.file("policy.toml", "[verify]\nalow = 1\n");
    bench.file("broken/model.safetensors", "cut");
    bench.file("broken/weldment.lock.json", "{}");
    let header = fs::read(bench.path("a/model.safetensors")).unwrap();
    bench.file("no-lock/model.safetensors", header);
    bench.file("no-lock/weldment.lock.json", "{");
    for words in [
        &["check", "nowhere"] as &[&str],
        &["check", "a", "--policy", "policy.toml"],
        &["check", "a", "--policy", "nowhere.toml"],
        &["diff", "a", "nowhere"],
        &["verify", "nowhere"],
        &["verify", "out"],
        &["attest", "nowhere", "--output", "statement"],
        &["diff", "a", "broken"],
        &["verify", "broken"],
        &["attest", "broken", "--output", "statement"],
        &["verify", "no-lock"],
    ] {
        let mut all = words.to_vec();
        all.extend([
            "--format",
            "github",
            "--format",
            "junit=r.xml",
            "--format",
            "sarif=r.sarif",
        ]);
        all.extend([
            "--format",
            "json=r.json",
            "--format",
            "html=r.html",
            "--format",
            "markdown=r.md",
        ]);
        let outcome = bench.weld(&all);
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert!(
            outcome.stdout.starts_with("::error title=weld "),
            "{words:?}: {}",
            outcome.stdout
        );
        assert_eq!(
            outcome.stdout.lines().count(),
            1,
            "{words:?}: {}",
            outcome.stdout
        );
        let json = read_json(&bench.path("r.json"));
        assert_eq!(json["verdict"], "error");
        let message = json["error"]["message"].as_str().unwrap();
        assert!(
            outcome.stderr.contains(message),
            "{words:?}: {message}: {}",
            outcome.stderr
        );
        for file in ["r.xml", "r.sarif", "r.html", "r.md"] {
            let text = fs::read_to_string(bench.path(file)).unwrap();
            assert!(text.contains("could not run"), "{words:?}: {file}: {text}");
            fs::remove_file(bench.path(file)).unwrap();
        }
    }
    // For people, stderr says it already.
    let text = bench.weld(&["check", "nowhere", "--format", "text"]);
    assert_eq!((text.code, text.stdout.as_str()), (Some(2), ""));
    let json = bench.weld(&["check", "nowhere", "--format", "json"]);
    let parsed: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(parsed["error"]["hint"].is_string(), "{parsed}");
}

#[test]
fn a_recipe_that_cannot_be_read_is_told_in_the_report_with_its_line() {
    let bench = merged();
    bench.file("syntax.yml", "merge_method: linear\nmodels: [\n");
    bench.file("wrong.yml", "merge_method: liner\nmodels:\n- model: a\n");
    bench.passes(&["merge", "recipe.yml", "locked"]);
    let lock = fs::read_to_string(bench.path("locked/weldment.lock.json")).unwrap();
    let mut lock: serde_json::Value = serde_json::from_str(&lock).unwrap();
    lock["recipe"] = "merge_method: [".into();
    bench.file("locked/weldment.lock.json", lock.to_string());
    for (words, parts) in [
        (
            &["verify", "out", "--recipe", "syntax.yml"] as &[&str],
            &["syntax.yml:2:", "invalid YAML"],
        ),
        (
            &["verify", "out", "--recipe", "wrong.yml"],
            &["wrong.yml:1:15", "liner"],
        ),
        (
            &["verify", "out", "--recipe", "none.yml"],
            &["none.yml", "cannot read the recipe"],
        ),
        (
            &["attest", "out", "--recipe", "syntax.yml", "--output", "s"],
            &["syntax.yml:2:", "invalid YAML"],
        ),
        (
            &["verify", "locked"],
            &["weldment.lock.json:1:", "invalid YAML"],
        ),
    ] {
        let formats = [
            "--format",
            "github",
            "--format",
            "junit=r.xml",
            "--format",
            "json=r.json",
        ];
        let outcome = bench.weld(&[words, &formats[..]].concat());
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert_eq!(
            outcome.stderr.matches("error: ").count(),
            1,
            "{}",
            outcome.stderr
        );
        let json = read_json(&bench.path("r.json"));
        let message = json["error"]["message"].as_str().unwrap();
        let junit = fs::read_to_string(bench.path("r.xml")).unwrap();
        for part in parts {
            for text in [message, &outcome.stdout, &junit] {
                assert!(text.contains(part), "{words:?}: {part}: {text}");
            }
        }
    }
    let hint = bench.weld(&["verify", "out", "--recipe", "wrong.yml", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&hint.stdout).unwrap();
    let hint = json["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("did you mean `linear`?"), "{json}");
}

/// The blocks of a language in `docs/ci.md`.
fn blocks(language: &str) -> Vec<String> {
    let text = include_str!("../../docs/ci.md");
    let start = format!("```{language}");
    let after = text.split(&start).skip(1);
    let blocks = after.map(|rest| rest.split("```").next().unwrap());
    blocks
        .map(|block| block.split_once('\n').unwrap().1.to_owned())
        .collect()
}

#[test]
fn the_examples_of_ci_are_yaml_and_call_weld_as_it_is() {
    let bench = merged();
    let hooks = include_str!("../../.pre-commit-hooks.yaml").to_owned();
    let yaml = blocks("yaml");
    assert_eq!(yaml.len(), 5);
    let action = include_str!("../../action.yml").to_owned();
    let release = include_str!("../../.github/workflows/release.yml").to_owned();
    for text in yaml.iter().chain([&hooks, &action, &release]) {
        let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(text);
        assert!(
            parsed.is_ok_and(|value| value.is_object() || value.is_array()),
            "{text}"
        );
    }
    bench.file("policy.toml", &blocks("toml")[0]);
    // Every command line, with the model and the inputs of this test.
    let mut seen = 0;
    for text in &yaml {
        let joined = text.replace("\\\n", " ");
        let starts = "weld verify models/merged";
        for line in joined.lines().filter(|line| line.contains(starts)) {
            seen += 1;
            let (_, arguments) = line.split_once("weld verify ").unwrap();
            let mut words = vec!["verify"];
            words.extend(arguments.split_whitespace().map(|word| match word {
                "models/merged" => "out",
                "models" => ".",
                word => word,
            }));
            words.extend(["--recipe", "recipe.yml"]);
            let outcome = bench.weld(&words);
            // The policy asks for a lock.
            assert_eq!(outcome.code, Some(1), "{words:?}: {}", outcome.stderr);
        }
    }
    assert_eq!(seen, 1);
    for file in ["report.html", "report.xml"] {
        assert!(bench.path(file).is_file(), "{file}");
    }
}

/// What action.yml runs, with the inputs of the job in docs/ci.md.
#[test]
fn the_action_reports_and_ends_with_the_code_of_the_command() {
    let bench = merged();
    bench.file("policy.toml", &blocks("toml")[0]);
    let job: serde_json::Value = serde_saphyr::from_str(&blocks("yaml")[0]).unwrap();
    let with = &job["jobs"]["verify"]["steps"][1]["with"];
    let arguments = with["arguments"].as_str().unwrap().replace("models", ".");
    assert_eq!(with["model"], "models/merged");
    let weld = Path::new(env!("CARGO_BIN_EXE_weld")).parent().unwrap();
    let path = format!("{}:{}", weld.display(), std::env::var("PATH").unwrap());
    let run = |command: &str, model: &str, arguments: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/action");
        let mut action = std::process::Command::new("bash");
        action
            .arg(script)
            .current_dir(bench.path(""))
            .env("PATH", &path);
        action.env("XDG_CACHE_HOME", bench.path("cache"));
        action.env("COMMAND", command).env("MODEL", model);
        action
            .env("ARGUMENTS", arguments)
            .env("REPORTS", "weldment");
        for file in ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"] {
            action.env(file, bench.file(file, ""));
        }
        let ended = action.output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stdout).unwrap(),
        )
    };
    let read = |name: &str| fs::read_to_string(bench.path(name)).unwrap();

    let (code, out) = run(
        "verify",
        "out",
        &format!("{arguments} --recipe 'recipe.yml'"),
    );
    // The policy asks for a lock.
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("::error"), "{out}");
    assert!(read("GITHUB_STEP_SUMMARY").contains("failed"));
    assert_eq!(read("GITHUB_OUTPUT"), "exit-code=1\nreports=weldment\n");
    for file in ["report.html", "report.sarif", "report.xml", "report.json"] {
        assert!(bench.path("weldment").join(file).is_file(), "{file}");
    }
    assert_eq!(run("diff", "a a", "").0, Some(0));
    // What the words hold is neither expanded nor run.
    let (code, _) = run("check", "'a b' $(touch ran)", "; touch ran");
    assert_eq!(code, Some(2));
    assert!(!bench.path("ran").exists());
    assert_eq!(run("merge", "recipe.yml x", "").0, Some(2));
}
