//! Commands called as functions: they make what the command line prints as JSON, and say what errors are about.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, floats, llama};
use crate::sources::{in_memory, model};
use weldment::cli::{Answer, CallError, Listener, call, options, plan_with};

const RECIPE: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.6}}\n- {model: b, parameters: \
                      {weight: 0.4}}\n";

/// Counts bytes, and asks to stop after the first if it is told so.
#[derive(Default)]
struct Counting {
    announced: AtomicU64,
    bytes: AtomicU64,
    stops: bool,
}

impl Listener for Counting {
    fn begin(&self, _what: &str, bytes: u64) {
        self.announced.fetch_add(bytes, Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stops
    }
}

fn bench() -> Bench {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::BF16);
    bench.recipe(RECIPE);
    bench
}

fn called(words: &[OsString], listener: Counting) -> (Result<Answer, CallError>, Arc<Counting>) {
    let listener = Arc::new(listener);
    let answer = call(
        words.iter().cloned(),
        Arc::clone(&listener) as Arc<dyn Listener>,
    );
    (answer, listener)
}

/// The words of a command, with the paths of a bench.
fn words(bench: &Bench, command: &str, files: &[&str], more: &[&str]) -> Vec<OsString> {
    let files = files.iter().map(|file| bench.path(file).into_os_string());
    let more = more.iter().map(|word| OsString::from(*word));
    [command.into()]
        .into_iter()
        .chain(files)
        .chain(more)
        .collect()
}

#[test]
fn a_call_makes_what_the_command_line_prints() {
    let bench = bench();
    bench.merge(RECIPE, &[]);
    for (command, files, more) in [
        ("plan", &["recipe.yml"][..], &["--seed", "3"][..]),
        ("check", &["out"], &[]),
        ("diff", &["a", "b"], &["--threads", "1"]),
        ("verify", &["out"], &["--sample-seed", "7", "--strict"]),
    ] {
        let mut words = words(&bench, command, files, more);
        if command == "verify" {
            // Where a merge found its inputs is recorded for the user, who is another one in tests of the command line.
            words.extend(["--inputs".into(), bench.path("").into_os_string()]);
        }
        let (answer, listener) = called(&words, Counting::default());
        let Ok(answer) = answer else {
            panic!("{command}: {:?}", answer.err());
        };
        let printed: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let printed = bench.weld(&[&printed[..], &["--format", "json"]].concat());
        let printed: Value = serde_json::from_str(&printed.stdout).unwrap();
        assert_eq!(answer.json(), printed, "{command}");
        if command != "plan" {
            assert!(listener.announced.load(Relaxed) > 0, "{command}");
            assert!(listener.bytes.load(Relaxed) > 0, "{command}");
        }
    }
}

/// Statistics and what fine-tunes have in common, for programs.
#[test]
fn texts_and_task_vectors_are_measured_by_calls() {
    let bench = bench();
    bench.file("texts.jsonl", "{\"text\": [1, 4, 5]}\n{\"text\": [2, 6]}\n");
    let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    let family = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/family");
    let (a, b) = (format!("{family}/base"), format!("{family}/sort"));
    let texts = path("texts.jsonl");
    let (by_call, printed) = (path("call.safetensors"), path("printed.safetensors"));
    let words = ["stats", &a, "--data", &texts, "--keep", "gram"];
    let call = [&words[..], &["--out", &by_call]].concat();
    let call: Vec<OsString> = call.iter().map(OsString::from).collect();
    let made = called(&call, Counting::default()).0;
    let made = made.unwrap_or_else(|error| panic!("{error:?}")).json();
    assert_eq!(
        (&made["inputs"], &made["out"]),
        (&16.into(), &by_call.clone().into())
    );
    bench.passes(&[&words[..], &["--out", &printed, "-q"]].concat());
    let read = |file: &str| std::fs::read(file).unwrap();
    assert!(read(&by_call) == read(&printed));
    let words = ["analyse", &b, "--base", &a];
    let (answer, listener) = called(&words.map(OsString::from), Counting::default());
    let answer = answer.unwrap_or_else(|error| panic!("{error:?}"));
    let printed = bench.weld(&[&words[..], &["--format", "json"]].concat());
    let printed: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(answer.json(), printed);
    assert!(listener.bytes.load(Relaxed) > 0);
    // It stops while texts are cut, before anything else is looked at.
    let words = [
        "stats",
        &a,
        "--data",
        &texts,
        "--memory",
        "1MB",
        "--out",
        &path("none"),
    ];
    let stops = Counting {
        stops: true,
        ..Counting::default()
    };
    let error = called(&words.map(OsString::from), stops).0.err().unwrap();
    assert_eq!(error.exit_code, 130, "{error:?}");
}

#[test]
fn a_call_that_is_stopped_writes_nothing() {
    let bench = bench();
    let words = words(&bench, "merge", &["recipe.yml", "out"], &["--no-check"]);
    let stops = Counting {
        stops: true,
        ..Counting::default()
    };
    let error = called(&words, stops).0.err().unwrap();
    assert_eq!(error.exit_code, 130, "{error:?}");
    assert!(!bench.path("out").exists() && !bench.staging().exists());
}

#[test]
fn an_error_says_what_it_is_about() {
    let bench = bench();
    let error = |command: &str, files: &[&str], more: &[&str]| {
        let words = words(&bench, command, files, more);
        called(&words, Counting::default()).0.err().unwrap()
    };

    bench.recipe(&RECIPE.replace("model: b", "model: nowhere/at-all"));
    let missing = error("plan", &["recipe.yml"], &[]);
    assert_eq!(missing.about.file, Some(bench.path("recipe.yml")));
    assert_eq!(missing.about.line, Some(4));
    assert_eq!(missing.about.model.as_deref(), Some("nowhere/at-all"));
    assert_eq!(missing.exit_code, 2);
    assert!(missing.hint.is_some() && missing.text.contains(&missing.message));

    bench.recipe(RECIPE);
    bench.model(
        "b",
        &crate::fixtures::llama_config(2),
        &[floats("head", Dtype::BF16, &[1], [f64::NAN])],
    );
    bench.model(
        "a",
        &crate::fixtures::llama_config(2),
        &[floats("head", Dtype::BF16, &[1], [1.0])],
    );
    let words = words(&bench, "merge", &["recipe.yml", "out"], &["--no-check"]);
    let nan = called(&words, Counting::default()).0.err().unwrap();
    assert_eq!(nan.about.tensor.as_deref(), Some("head"), "{nan:?}");
    assert_eq!(nan.about.model.as_deref(), Some("b"));
    assert_eq!(nan.about.file, Some(PathBuf::from("model.safetensors")));
    assert_eq!(nan.exit_code, 1);

    bench.file("b/model.safetensors", b"short");
    let broken = error("diff", &["a", "b"], &[]);
    assert_eq!(broken.about.file, Some(bench.path("b/model.safetensors")));

    let misspelt = error("plan", &["recipe.yml"], &["--sede", "1"]);
    assert!(misspelt.message.contains("--sede"), "{misspelt:?}");
    assert!(!misspelt.message.contains("Usage"), "{misspelt:?}");
    assert_eq!(misspelt.exit_code, 2);
}

#[test]
fn every_option_is_named_but_for_those_about_printing() {
    let names = |command: &str| -> Vec<String> {
        options(command)
            .into_iter()
            .map(|option| option.name)
            .collect()
    };
    let merge = names("merge");
    for name in ["recipe", "out", "force", "shard-size", "seed"] {
        assert!(merge.iter().any(|known| known == name), "{name}: {merge:?}");
    }
    // mergekit's options are hidden, and printing is not for programs.
    for name in ["lazy-unpickle", "format", "quiet", "help"] {
        assert!(
            !merge.iter().any(|known| known == name),
            "{name}: {merge:?}"
        );
    }
    assert!(names("nothing").is_empty());
}

#[test]
fn a_merge_is_planned_of_models_that_a_program_holds() {
    let bench = bench();
    let on_disk = called(
        &words(&bench, "plan", &["recipe.yml"], &[]),
        Counting::default(),
    );
    let on_disk = on_disk.0.ok().unwrap().json();
    let held = |names: [&str; 2]| {
        let seeds = names.into_iter().zip([1, 2]);
        let held = seeds.map(|(name, seed)| {
            let tensors = in_memory(llama(seed, 2, Dtype::BF16));
            (name.to_owned(), Arc::new(model(name, tensors)))
        });
        plan_with(words(&bench, "plan", &["recipe.yml"], &[]), held.collect())
    };
    std::fs::remove_dir_all(bench.path("b")).unwrap();
    let plan = held(["a", "b"]).ok().unwrap();
    assert_eq!(weldment::plan::json(&plan)["tensors"], on_disk["tensors"]);

    bench.llama("b", 2, Dtype::BF16);
    let idle = held(["a", "c"]).err().unwrap();
    assert!(
        idle.message.contains("`c`") && idle.hint.is_some(),
        "{idle:?}"
    );
}
