//! Commands as words, and what is read of their output.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::metrics::of_lm_eval;
use super::output::{file, parsed};
use super::*;

fn words(text: &str) -> Vec<String> {
    let line = CommandLine::parse(text).unwrap();
    let run = Run {
        model: Path::new("/m/a b"),
        out: Path::new("/o"),
        split: Split::Test,
        gpus: None,
    };
    let words = line.filled(&run).into_iter();
    words.map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn a_command_is_cut_as_by_a_shell_and_filled_within_words() {
    assert_eq!(
        words(
            "lm_eval --model_args 'pretrained={model},dtype=float32' --tasks my_{split} -o {out}"
        ),
        [
            "lm_eval",
            "--model_args",
            "pretrained=/m/a b,dtype=float32",
            "--tasks",
            "my_test",
            "-o",
            "/o"
        ]
    );
    // What a shell would expand stays as it is, and so do braces that stand for nothing.
    assert_eq!(
        words(r#"x "$HOME;{model}|`id`" '{"a": {b}}' {model}{{out} a\ b"#),
        [
            "x",
            "$HOME;/m/a b|`id`",
            r#"{"a": {b}}"#,
            "/m/a b{/o",
            "a b"
        ]
    );
    // A path that holds a place is not filled again.
    let line = CommandLine::parse("x {model} {out}").unwrap();
    let run = Run {
        model: Path::new("/m/{out}"),
        out: Path::new("/o"),
        split: Split::All,
        gpus: None,
    };
    assert_eq!(line.filled(&run), ["x", "/m/{out}", "/o"]);
}

#[test]
fn what_is_no_command_is_refused() {
    for (text, why) in [
        ("", "names no program"),
        ("'' {model}", "names no program"),
        ("x 'a {model}", "within quotes"),
        ("x {model} \\", "within quotes"),
        ("x --model", "does not hold `{model}`"),
        ("{model}", "does not hold `{model}`"),
        (&"x ".repeat(40_000), "expected at most"),
    ] {
        let error = CommandLine::parse(text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_place_gives_a_number_or_says_what_is_there() {
    let json = json!({"a,none": 0.5, "e": 0.1, "n": null, "t": "0.5", "l": [1], "o": {}, "b": true, "a/b": 2});
    let read = |pointer: &str| {
        let place = MetricPlace {
            name: "acc".into(),
            pointer: pointer.into(),
            error: Some("/e".into()),
            larger_is_better: false,
        };
        place.read(&json)
    };
    let found = read("/a,none").unwrap();
    assert_eq!((found.value, found.standard_error), (0.5, Some(0.1)));
    assert!(!found.larger_is_better);
    assert_eq!(read("/a~1b").unwrap().value, 2.0);
    assert_eq!(read("/l/0").unwrap().value, 1.0);
    for (pointer, found) in [
        ("/n", "null (or NaN)"),
        ("/t", "the text \"0.5\""),
        ("/l", "a list"),
        ("/o", "an object"),
        ("/b", "true"),
        ("/x", "nothing"),
    ] {
        let expected = format!("expected a number for `acc` at {pointer}, found {found}");
        assert_eq!(read(pointer).unwrap_err(), expected);
    }
}

#[test]
fn python_writes_nan_and_nothing_else_that_is_no_json() {
    let text = br#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" Infinity", "d": -1}"#;
    let expected = json!({"a": null, "b": [null, null], "c": "NaN \" Infinity", "d": -1});
    assert_eq!(parsed(text).unwrap(), expected);
    for text in ["", "NaN NaN", "{\"a\": nan}", "{\"a\": 1e999}"] {
        assert!(parsed(text.as_bytes()).is_err(), "{text}");
    }
    let deep = "[".repeat(1 << 20);
    assert!(
        parsed(deep.as_bytes())
            .unwrap_err()
            .contains("recursion limit")
    );
}

#[test]
fn lm_evals_json_needs_no_places() {
    // As lm-eval 0.4.13 writes it, shortened.
    let json: Value = json!({
        "results": {
            "sums": {"alias": "sums", "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.05, "exact_match,loose": 0.5},
            "texts": {"alias": "texts", "bits_per_byte,none": 1.5, "bits_per_byte_stderr,none": "N/A"},
            "group": {"alias": "group", "acc,none": 0.75, "acc_stderr,none": 0.1},
            "part": {"alias": " - part", "acc,none": 0.5},
            "heading": {"alias": "heading"},
            "under": {"alias": " - under", "acc,none": 0.125}
        },
        "group_subtasks": {"group": ["part"], "heading": ["under"], "sums": [], "texts": ["texts"]},
        "higher_is_better": {"sums": {"exact_match": true}, "texts": {"bits_per_byte": false}},
        "n-samples": {"sums": {"original": 100, "effective": 80}}
    });
    let found = of_lm_eval(&json).unwrap();
    let rows: Vec<_> = found
        .iter()
        .map(|one| {
            (
                one.name.as_str(),
                one.value,
                one.standard_error,
                one.larger_is_better,
                one.items,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("sums", 0.25, Some(0.05), true, Some(80)),
            ("texts", 1.5, None, false, None),
            ("group", 0.75, Some(0.1), true, None),
            ("under", 0.125, None, true, None),
        ]
    );
    for (json, why) in [
        (json!({"acc": 1}), "there are no `results`"),
        (json!({"results": []}), "there are no `results`"),
        (
            json!({"results": {"a": {"acc,none": null, "acc": 1}, "b": 2}}),
            "has a number",
        ),
    ] {
        assert!(of_lm_eval(&json).unwrap_err().contains(why));
    }
}

#[test]
fn a_folder_of_results_has_one_file_or_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    assert!(file(&out).unwrap_err().contains("wrote nothing"));
    fs::create_dir_all(out.join("model")).unwrap();
    assert!(file(&out).unwrap_err().contains("no file of JSON"));
    let write = |name: &str| {
        fs::write(out.join(name), "{}").unwrap();
        out.join(name)
    };
    write("model/samples.jsonl");
    let only = write("model/a.json");
    assert_eq!(file(&out).unwrap(), only);
    write("b.json");
    assert!(file(&out).unwrap_err().contains("2 files"));
    write("model/results_2026-11-29.json");
    let newest = write("model/results_2026-11-30.json");
    assert_eq!(file(&out).unwrap(), newest);
    assert_eq!(file(&newest).unwrap(), newest);
}
