//! What people see: help, lists, references, errors of the command line.

use std::path::Path;
use std::process::{Command, Stdio};

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::Bench;

#[test]
fn the_reference_of_methods_is_up_to_date() {
    let page = Bench::new()
        .weld(&["methods", "--format", "markdown"])
        .stdout;
    let committed =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md"))
            .unwrap();
    assert!(
        page == committed,
        "run `cargo run -- methods --format markdown > docs/methods.md`"
    );
}

#[test]
fn methods_are_listed_and_explained() {
    let bench = Bench::new();
    let list = bench.weld(&["methods"]).stdout;
    assert_eq!(list.lines().count(), weldment::methods::all().len());
    for method in weldment::methods::all() {
        let info = method.info();
        let page = bench.weld(&["methods", info.name]);
        assert_eq!(page.code, Some(0));
        for param in info.params {
            assert!(
                page.stdout.contains(param.name) && page.stdout.contains(param.doc),
                "{}",
                info.name
            );
        }
    }
    let all: Value =
        serde_json::from_str(&bench.weld(&["methods", "--format", "json"]).stdout).unwrap();
    assert_eq!(
        all.as_array().unwrap().len(),
        weldment::methods::all().len()
    );
    let unknown = bench.weld(&["methods", "tise"]);
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("did you mean `ties`?"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn help_and_completions_name_every_command() {
    let bench = Bench::new();
    let help = bench.weld(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    let completions = bench.weld(&["completions", "bash"]).stdout;
    for command in ["merge", "plan", "inspect", "methods", "completions"] {
        assert!(help.stdout.contains(command));
        assert!(completions.contains(command));
        assert_eq!(bench.weld(&[command, "--help"]).code, Some(0));
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    let bench = Bench::new();
    for arguments in [
        &["merge"] as &[&str],
        &["merge", "r.yml", "out", "--frce"],
        &["merge", "r.yml", "out", "--memory", "lots"],
        &["merge", "r.yml", "out", "--threads", "0"],
        &["frobnicate"],
    ] {
        let outcome = bench.weld(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}");
        assert!(outcome.stderr.contains("error"), "{arguments:?}");
        assert!(outcome.stdout.is_empty());
    }
    // A recipe that is not there is wrong input.
    let missing = bench.weld(&["plan", "r.yml"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("r.yml"), "{}", missing.stderr);
}

#[test]
fn inspect_lists_layers_together_or_each() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    let text = bench.weld(&["inspect", "a"]).stdout;
    assert!(text.contains("llama (LlamaForCausalLM)"), "{text}");
    assert!(text.contains("11 tensors, 792 parameters"), "{text}");
    assert!(
        text.contains("model.layers.{0..1}.mlp.up_proj.weight"),
        "{text}"
    );
    let all = bench.weld(&["inspect", "a", "--all"]).stdout;
    assert!(all.contains("model.layers.1.mlp.up_proj.weight"), "{all}");
    let json: Value = serde_json::from_str(
        &bench
            .weld(&["inspect", "a/model.safetensors", "--format", "json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 11);
    assert_eq!(json["parameters"], 792);
    let missing = bench.weld(&["inspect", "nowhere"]);
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.stderr.contains("`nowhere` not found"),
        "{}",
        missing.stderr
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(["methods", "--format", "markdown"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), b"" as &[u8])
    );
}
