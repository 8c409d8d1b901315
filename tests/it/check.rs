//! `weld check`: a good checkpoint passes, and what is wrong with another is said; defects one by one are in `mutate`.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, floats, llama_config, noise, read_json};

/// A whole Llama of four layers: hidden 8, vocabulary 16. Another seed gives other values.
pub(crate) fn whole(seed: u64) -> Vec<Spec> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![16, 8])];
    for layer in 0..4 {
        for (suffix, shape) in [
            ("input_layernorm", vec![8]),
            ("mlp.down_proj", vec![8, 12]),
            ("mlp.gate_proj", vec![12, 8]),
            ("mlp.up_proj", vec![12, 8]),
            ("post_attention_layernorm", vec![8]),
            ("self_attn.k_proj", vec![8, 8]),
            ("self_attn.o_proj", vec![8, 8]),
            ("self_attn.q_proj", vec![8, 8]),
            ("self_attn.v_proj", vec![8, 8]),
        ] {
            shapes.push((format!("model.layers.{layer}.{suffix}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![8]));
    shapes.push(("lm_head.weight".into(), vec![16, 8]));
    (seed * 100..)
        .zip(shapes)
        .map(|(seed, (name, shape))| {
            let count = shape.iter().product();
            floats(&name, Dtype::F32, &shape, noise(seed, count))
        })
        .collect()
}

const FIRST: &str = "m/model-00001-of-00002.safetensors";
const CONFIG: &str = "m/config.json";

/// A good checkpoint of two shards, with a tokenizer.
pub(crate) fn good() -> Bench {
    let bench = Bench::new();
    bench.sharded("m", &llama_config(4), &whole(0));
    tokenizer(&bench, "m");
    bench
}

/// A tokenizer of sixteen tokens for a model, and what goes with it.
pub(crate) fn tokenizer(bench: &Bench, model: &str) {
    let vocab: serde_json::Map<String, Value> =
        (0..16).map(|id| (format!("t{id}"), json!(id))).collect();
    let tokenizer =
        json!({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []});
    bench.file(&format!("{model}/tokenizer.json"), tokenizer.to_string());
    bench.file(
        &format!("{model}/tokenizer_config.json"),
        json!({"eos_token": "t2", "chat_template": "{{ messages }}"}).to_string(),
    );
    bench.file(
        &format!("{model}/generation_config.json"),
        json!({"eos_token_id": 2}).to_string(),
    );
}

fn check(bench: &Bench) -> (Option<i32>, Vec<(String, String)>) {
    let outcome = bench.weld(&["check", "m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids = findings.map(|finding| (text(&finding["check"]), text(&finding["severity"])));
    (outcome.code, ids.collect())
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Writes all tensors to one file.
fn one_file(bench: &Bench, config: &Value, specs: &[Spec]) {
    fs::remove_dir_all(bench.path("m")).unwrap();
    bench.model("m", config, specs);
}

fn config(bench: &Bench, field: &str, value: Value) {
    edit_json(&bench.path(CONFIG), |config| config[field] = value);
}

fn without(specs: Vec<Spec>, part: &str) -> Vec<Spec> {
    specs
        .into_iter()
        .filter(|spec| !spec.name.contains(part))
        .collect()
}

fn cut(path: &Path, by: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - by]).unwrap();
}

#[test]
fn a_good_checkpoint_passes_without_a_finding() {
    assert_eq!(check(&good()), (Some(0), Vec::new()));
}

#[test]
fn every_broken_file_is_named_and_the_rest_is_looked_at() {
    let bench = good();
    cut(&bench.path(FIRST), 10);
    config(&bench, "vocab_size", json!(17));
    fs::write(bench.path("m/tokenizer.json"), "{").unwrap();
    let (code, findings) = check(&bench);
    assert_eq!(code, Some(1));
    for id in [
        "container.truncated",
        "structure.vocab-size",
        "tokenizer.malformed",
    ] {
        assert!(
            findings.iter().any(|(found, _)| found == id),
            "{id}: {findings:?}"
        );
    }
    // What the broken file may hold is not called missing.
    assert!(
        !findings
            .iter()
            .any(|(id, _)| id == "structure.missing-tensor"),
        "{findings:?}"
    );
}

#[test]
fn what_is_not_there_is_no_verdict() {
    let bench = Bench::new();
    assert_eq!(bench.weld(&["check", "nothing"]).code, Some(2));
    fs::create_dir(bench.path("empty")).unwrap();
    assert_eq!(bench.weld(&["check", "empty"]).code, Some(2));
}

#[test]
fn links_of_the_hubs_cache_are_no_finding() {
    let bench = Bench::new();
    let commit = "0123456789012345678901234567890123456789";
    let two_layers = without(without(whole(0), "layers.2"), "layers.3");
    bench.hub_model("org/m", "main", commit, &two_layers);
    let outcome = bench.weld(&["check", "org/m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of_safety = |finding: &Value| finding["check"].as_str().unwrap().starts_with("safety.");
    assert!(!findings.iter().any(of_safety), "{findings:?}");
    assert_eq!(outcome.code, Some(0), "{findings:?}");
}

#[test]
fn pickles_in_subfolders_are_looked_at() {
    let bench = good();
    bench.file(
        "m/checkpoint-5/rng_state.pth",
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93)R.",
    );
    bench.file("m/openvino/openvino_model.bin", [0xee; 64]);
    bench.file("m/openvino/openvino_model.xml", "<net/>");
    std::os::unix::fs::symlink("checkpoint-5", bench.path("m/last")).unwrap();
    let outcome = bench.weld(&["check", "m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let told: Vec<[&Value; 4]> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| ["check", "severity", "file", "found"].map(|key| &finding[key]))
        .collect();
    let expected = json!([
        [
            "safety.dangerous-pickle",
            "error",
            "checkpoint-5/rng_state.pth",
            "torch.os.system"
        ],
        [
            "safety.unread-pickle",
            "note",
            "openvino/openvino_model.bin",
            "it is no pickle, 0xee is no opcode, at byte 0"
        ],
    ]);
    assert_eq!(json!(told), expected);
}

#[test]
fn the_page_of_checks_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checks.md");
    let written = fs::read_to_string(page).unwrap();
    assert!(
        written == weldment::audit::checks_as_markdown(),
        "write it with `weld check --list > docs/checks.md`"
    );
}

/// Any byte of any file may be another: there is a report or a message, and never a panic.
#[test]
fn damaged_files_never_end_in_a_panic() {
    let bench = good();
    bench.file(
        "m/pytorch_model.bin",
        b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.",
    );
    let names = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "pytorch_model.bin",
    ];
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..210 {
        let path = bench.path("m").join(names[round % names.len()]);
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        match draw(4) {
            0 => bytes.truncate(draw(sound.len())),
            1 => bytes.extend_from_within(..draw(sound.len())),
            _ => {
                // Mostly in the beginning, where headers are.
                for _ in 0..=draw(4) {
                    let at = draw(sound.len().min(600));
                    bytes[at] = [0, b'9', b'"', b'-', b'[', 0xff, b'}', draw(256) as u8][draw(8)];
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
        let outcome = bench.weld(&["check", "m", "--format", "json", "-q"]);
        let told = format!("{} {:?}: {}", path.display(), outcome.code, outcome.stderr);
        assert!(matches!(outcome.code, Some(0..=3)), "{told}");
        assert!(!outcome.stderr.contains("panicked"), "{told}");
        fs::write(&path, &sound).unwrap();
    }
}

/// Biases may be left out in all layers, not in one, and not where the config promises them.
#[test]
fn a_bias_that_only_some_layers_have_is_missing_elsewhere() {
    let biases = |layers: std::ops::Range<usize>| {
        let name = |layer| format!("model.layers.{layer}.mlp.down_proj.bias");
        let mut specs = whole(0);
        let hidden = specs.iter().find(|spec| spec.name == "model.norm.weight");
        let hidden = hidden.unwrap().shape[0];
        let values = |layer: usize| crate::fixtures::noise(layer as u64, hidden);
        specs
            .extend(layers.map(|layer| floats(&name(layer), Dtype::F32, &[hidden], values(layer))));
        specs
    };
    let missing = |bench: &Bench| {
        let (_, findings) = check(bench);
        let missing = findings
            .iter()
            .filter(|(id, _)| id == "structure.missing-tensor");
        missing.count()
    };
    let bench = good();
    one_file(&bench, &llama_config(4), &biases(0..4));
    assert_eq!(missing(&bench), 0);
    one_file(&bench, &llama_config(4), &biases(0..3));
    assert_eq!(missing(&bench), 1);
    let mut promised = llama_config(4);
    promised["attention_bias"] = json!(true);
    one_file(&bench, &promised, &whole(0));
    assert!(missing(&bench) > 0, "four biases of each layer");
    promised["model_type"] = json!("mistral");
    one_file(&bench, &promised, &whole(0));
    assert_eq!(missing(&bench), 0, "a Mistral has no such field");
}

/// What publishers put beside the weights is no part of them, and no fault.
#[test]
fn second_forms_of_the_weights_are_no_more_than_notes() {
    let bench = good();
    for name in [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
        "original/consolidated.safetensors",
    ] {
        bench.tensors(&format!("m/{name}"), &whole(0));
    }
    bench.file("m/original/params.json", "{}");
    bench.file("m/original/tokenizer.model", "x");
    let (code, findings) = check(&bench);
    assert_eq!(code, Some(0));
    let orphan = || ("index.orphan-file".to_owned(), "note".to_owned());
    assert_eq!(findings, vec![orphan(); 5]);
    // Another file of weights may be anything.
    bench.tensors("m/other.safetensors", &whole(0));
    let (_, findings) = check(&bench);
    assert_eq!(
        findings[0],
        ("index.orphan-file".to_owned(), "warning".to_owned())
    );
}

#[test]
fn the_token_that_pads_may_be_the_one_beyond_the_last_row() {
    let bench = good();
    let add = |id: u64, text: &str| {
        edit_json(&bench.path("m/tokenizer.json"), |file| {
            file["model"]["vocab"][text] = json!(id);
        });
    };
    add(16, "<pad>");
    let no_row =
        |severity: &str| vec![("tokenizer.id-without-row".to_owned(), severity.to_owned())];
    assert_eq!(
        check(&bench),
        (Some(1), no_row("error")),
        "nothing says what it is for"
    );
    edit_json(&bench.path("m/tokenizer_config.json"), |file| {
        file["pad_token"] = json!("<pad>")
    });
    assert_eq!(check(&bench), (Some(0), no_row("note")));
    add(17, "<more>");
    assert_eq!(check(&bench), (Some(1), no_row("error")));
}
