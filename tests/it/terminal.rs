//! What reaches a terminal, a pipe or the log of a CI system: nothing that steers it, and the verdict whatever reads it.

use std::fs;
use std::process::Stdio;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::fixtures::{Bench, Spec, floats, llama, llama_config, noise};

/// Names that control a terminal, forge lines, or give commands to CI systems.
const HOSTILE: [&str; 9] = [
    "\x1b[31m\x1b]0;title\x07",
    "::error::forged",
    "x\n::error::forged",
    "x\r::warning::forged",
    "##[error]forged",
    "##vso[task.complete]forged",
    "\u{202e}desrever",
    "\u{9b}31m",
    "\u{200b}\u{2066}\u{feff}",
];

/// A model all of whose names are hostile, its tensors differing by the seed.
fn hostile_model(bench: &Bench, name: &str, seed: u64) {
    let mut specs: Vec<Spec> = llama(seed, 2, Dtype::F32);
    let hostile = HOSTILE.iter().enumerate();
    specs.extend(hostile.clone().map(|(at, text)| {
        let values = noise(seed * 100 + at as u64, 4);
        floats(&format!("{text}.weight"), Dtype::F32, &[4], values)
    }));
    let mut config = llama_config(2);
    config["model_type"] = HOSTILE[0].into();
    config["architectures"] = json!(HOSTILE);
    config["hidden_act"] = HOSTILE[2].into();
    bench.model(name, &config, &specs);
    let views = specs.iter().map(|spec| {
        let view = TensorView::new(spec.dtype, spec.shape.clone(), &spec.bytes).unwrap();
        (spec.name.as_str(), view)
    });
    let metadata = HOSTILE.map(|text| (text.to_owned(), text.to_owned()));
    let bytes = safetensors::serialize(views, Some(metadata.into_iter().collect())).unwrap();
    bench.file(&format!("{name}/model.safetensors"), bytes);
    let vocabulary: serde_json::Map<_, _> = hostile
        .map(|(id, text)| (format!("{text}{seed}"), json!(id)))
        .collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
    bench.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    bench.file(&format!("{name}/{}.txt", HOSTILE[1]), "a file");
}

/// Fails if a text would steer what shows it.
fn inert(text: &str, what: &str) {
    for line in text.split('\n') {
        let steers = |c: char| {
            (c.is_control() && c != '\t')
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || matches!(c, '\u{200b}' | '\u{2066}' | '\u{feff}')
        };
        assert!(!line.contains(steers), "{what}: {line:?}");
        assert!(!line.trim_start().starts_with("::"), "{what}: {line:?}");
        assert!(
            !line.contains("##[") && !line.contains("##vso["),
            "{what}: {line:?}"
        );
        assert!(!line.starts_with("forged"), "{what}: {line:?}");
    }
}

#[test]
fn no_command_prints_names_that_steer() {
    let bench = Bench::new();
    hostile_model(&bench, "a", 1);
    hostile_model(&bench, "b", 2);
    hostile_model(&bench, "a2", 1);
    bench.tensors("c/model.safetensors", &llama(3, 1, Dtype::F32));
    bench.recipe("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.5}}\n\
                  tokenizer: {source: union}\n");
    bench.file("same.yml", "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: a, parameters: {weight: 0.5}}\n");
    bench.file("apart.yml", "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: c, parameters: {weight: 0.5}}\n");
    let hostile_recipe = format!(
        "merge_method: \"{}\"\nmodels: []\n# \u{202e} ##[error]\nx: ::y\n",
        HOSTILE[1]
    );
    bench.file("hostile.yml", hostile_recipe);
    let mut hostile_arguments: Vec<Vec<&str>> = Vec::new();
    for text in HOSTILE {
        for command in [
            "inspect",
            "check",
            "verify",
            "plan",
            "methods",
            "explain",
            "new",
            "completions",
            text,
        ] {
            hostile_arguments.push(vec![command, text]);
        }
        hostile_arguments.push(vec!["check", "a", "--format", text]);
        hostile_arguments.push(vec!["verify", "a", "--inputs", text]);
        hostile_arguments.push(vec!["merge", "same.yml", "out", "--memory", text]);
    }
    let commands: &[&[&str]] = &[
        &["merge", "same.yml", "out"],
        &["inspect", "a"],
        &["inspect", "a", "--all"],
        &["inspect", "a", "--format", "json"],
        &["plan", "recipe.yml", "--all"],
        &["plan", "same.yml", "--all"],
        &["plan", "same.yml", "--format", "json"],
        &["plan", "same.yml", "--format", "html"],
        &["plan", "apart.yml"],
        &["new", "a", "a2", "--out", "-"],
        &["new", "a", "b", "--out", "-"],
        &["plan", "hostile.yml"],
        &["merge", "recipe.yml", "union"],
        &["check", "a"],
        &["check", "a", "--format", "json"],
        &["check", "a", "--format", "sarif"],
        &["check", "a", "--format", "junit"],
        &["check", "a", "--format", "markdown"],
        &["check", "a", "--format", "html"],
        &["diff", "a", "b"],
        &["diff", "a", "c"],
        &["verify", "out"],
        &["verify", "a"],
        &["attest", "out"],
        &["moe", "same.yml", "moe"],
    ];
    let all = commands.iter().map(|words| words.to_vec());
    for words in all.chain(hostile_arguments) {
        let outcome = bench.weld(&words);
        assert!(outcome.code.is_some(), "{words:?} was killed");
        inert(&outcome.stdout, &format!("stdout of {words:?}"));
        inert(&outcome.stderr, &format!("stderr of {words:?}"));
    }
}

#[test]
fn a_verdict_survives_a_reader_that_goes_away() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    let mut broken = llama(3, 2, Dtype::F32);
    broken[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    bench.model("nan", &llama_config(2), &broken);
    bench.merge("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.5}}\n", &[]);
    let mut changed = fs::read(bench.path("out/model.safetensors")).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(bench.path("out/model.safetensors"), changed).unwrap();
    for (words, code) in [
        (&["check", "nan"] as &[&str], 1),
        (&["diff", "a", "b"], 1),
        (&["diff", "a", "a"], 0),
        (&["verify", "out", "--full"], 1),
        (&["check", "nowhere"], 2),
        (&["plan", "recipe.yml"], 0),
        // The attestation would be lost.
        (&["attest", "out"], 1),
    ] {
        let words = [words, &["--threads", "1"]].concat();
        for report in [&[] as &[&str], &["--format", "json"]] {
            let words = match words[0] {
                "plan" | "check" | "diff" | "verify" => [&words[..], report].concat(),
                _ => words.clone(),
            };
            let mut child = bench
                .process(&words)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            drop(child.stdout.take());
            let output = child.wait_with_output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(code),
                "{words:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    // A file that is asked for is written all the same.
    let words = [
        "check",
        "nan",
        "--format",
        "text",
        "--format",
        "junit=report.xml",
    ];
    let mut child = bench.process(&words).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(bench.path("report.xml").is_file());
}

#[test]
fn an_attestation_that_nobody_reads_is_no_success() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.merge("merge_method: passthrough\nmodels:\n- model: a\n", &[]);
    let mut child = bench.process(&["attest", "out"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--output"), "{stderr}");
}
