//! Folders and files as people have them: what is read, what is refused, and what is said about it.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{
    Bench, Spec, by_name, config_with, floats, llama, llama_config, load, noise, with, without,
};

const MEAN: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in:\n{message}");
    }
}

/// The findings of a check of `m`: id, severity, what was found, what to do.
fn findings(bench: &Bench) -> (Option<i32>, Vec<[String; 4]>) {
    let outcome = bench.weld(&["check", "m", "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().expect("findings");
    let fields =
        |finding: &Value| ["check", "severity", "found", "remedy"].map(|key| text(&finding[key]));
    (outcome.code, findings.iter().map(fields).collect())
}

#[test]
fn a_whole_file_beside_an_index_is_what_is_merged_and_both_are_named() {
    let bench = Bench::new();
    bench.sharded("m", &llama_config(2), &llama(1, 2, Dtype::F32));
    let single = llama(2, 2, Dtype::F32);
    bench.tensors("m/model.safetensors", &single);
    let out = bench.merge("merge_method: passthrough\nmodels: [{model: m}]\n", &[]);
    assert_eq!(by_name(&out), by_name(&bench.path("m/model.safetensors")));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    says(
        &plan,
        &["model.safetensors.index.json and the shards that it names were not read"],
    );
    let (_, found) = findings(&bench);
    let stale: Vec<_> = found
        .iter()
        .filter(|[id, ..]| id == "index.stale-single-file")
        .collect();
    assert_eq!(stale.len(), 1, "{found:?}");
    assert!(
        !found.iter().any(|[id, ..]| id == "index.orphan-file"),
        "{found:?}"
    );
}

#[test]
fn a_pointer_in_place_of_weights_is_named_with_its_remedy() {
    let bench = Bench::new();
    bench.model("m", &llama_config(2), &llama(1, 2, Dtype::F32));
    for (content, found, remedy) in [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer, not the weights",
            "run `git lfs pull`",
        ),
        (
            "<!doctype html><html></html>",
            "a web page",
            "download the file itself",
        ),
        (
            "Entry not found",
            "what a server answered",
            "download the file itself",
        ),
    ] {
        for name in ["model.safetensors", "pytorch_model.bin"] {
            let _ = fs::remove_file(bench.path("m/model.safetensors"));
            let _ = fs::remove_file(bench.path("m/pytorch_model.bin"));
            bench.file(&format!("m/{name}"), content);
            let (code, all) = findings(&bench);
            assert_eq!(code, Some(1));
            let [_, severity, what, what_to_do] = all
                .iter()
                .find(|[id, ..]| id == "container.stand-in")
                .unwrap_or_else(|| panic!("{name}: {all:?}"));
            assert_eq!(severity, "error");
            says(what, &[found]);
            says(what_to_do, &[remedy]);
            let message = bench.refused("merge_method: passthrough\nmodels: [{model: m}]\n", &[]);
            says(&message, &[found, remedy]);
        }
    }
}

#[test]
fn what_was_not_compared_is_not_called_the_same() {
    let bench = Bench::new();
    bench.model("m", &llama_config(2), &llama(1, 2, Dtype::F32));
    bench.tensors(
        "m/consolidated.safetensors",
        &[floats("w", Dtype::F32, &[1], [0.0])],
    );
    bench.tensors(
        "m/model.fp16.safetensors",
        &[floats("w", Dtype::F32, &[1], [0.0])],
    );
    let (_, found) = findings(&bench);
    let orphans: Vec<_> = found
        .iter()
        .filter(|[id, ..]| id == "index.orphan-file")
        .collect();
    assert_eq!(orphans.len(), 2, "{found:?}");
    for [_, severity, what, _] in orphans {
        assert_eq!(severity, "note");
        says(what, &["was not compared with the checkpoint"]);
    }
}

#[test]
fn an_entry_of_a_pickle_is_merged_and_verified() {
    let bench = Bench::new();
    let pickled = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/pickled");
    for file in ["nested.pt", "protocol4.pt"] {
        fs::copy(pickled.join(file), bench.path(file)).unwrap();
    }
    let recipe = |model: &str| format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
    let message = bench.refused(&recipe("nested.pt"), &[]);
    says(
        &message,
        &[
            "choose its tensors by their entry: `nested.pt#a` (8 tensors), `nested.pt#b` (8 tensors)",
        ],
    );
    let message = bench.refused(&recipe("nested.pt#c"), &[]);
    says(
        &message,
        &["found no entry `c`", "`nested.pt#a` (8 tensors)"],
    );
    let message = bench.refused(&recipe("gone.pt#a"), &[]);
    says(&message, &["model `gone.pt` not found"]);
    let expected = by_name(&bench.merge(&recipe("protocol4.pt"), &[]));
    for entry in ["'nested.pt#a'", "'./nested.pt#b'"] {
        let out = bench.merge(&recipe(entry), &[]);
        assert_eq!(by_name(&out), expected, "{entry}");
        bench.passes(&["verify", "out", "--full", "-q"]);
    }
    // A name that is there as it is written is no entry.
    fs::copy(bench.path("protocol4.pt"), bench.path("x#a.pt")).unwrap();
    assert_eq!(by_name(&bench.merge(&recipe("'x#a.pt'"), &[])), expected);
}

#[test]
fn embeddings_that_differ_in_padding_are_said_to_and_the_remedy_works() {
    let bench = Bench::new();
    let rows = |seed: u64, rows: usize| {
        let matrix =
            |name: &str, seed: u64| floats(name, Dtype::F32, &[rows, 8], noise(seed, rows * 8));
        let specs = with(
            llama(seed, 2, Dtype::F32),
            matrix("model.embed_tokens.weight", seed),
        );
        with(specs, matrix("lm_head.weight", seed + 9))
    };
    let tokenizer =
        json!({"model": {"type": "WordLevel", "vocab": {"<s>": 0, "x": 1}, "unk_token": "<s>"}});
    for (name, seed, count) in [("a", 1, 16), ("b", 2, 24)] {
        bench.model(
            name,
            &config_with(2, json!({"vocab_size": count})),
            &rows(seed, count),
        );
        bench.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    }
    let message = bench.refused(MEAN, &[]);
    says(
        &message,
        &[
            "shape [16, 8] in `a` and [24, 8] in `b`: their tokenizers are the same, so they differ in rows for padding",
            "add `tokenizer: {source: base}` to the recipe",
        ],
    );
    let out = by_name(&bench.merge(&format!("{MEAN}tokenizer: {{source: base}}\n"), &[]));
    let embedding = "model.embed_tokens.weight";
    assert_eq!(out[embedding].shape, [16, 8]);
    let of = |model: &str| by_name(&bench.path(model))[embedding].values();
    let (a, b, merged) = (of("a"), of("b"), out[embedding].values());
    for at in 0..16 * 8 {
        assert_eq!(merged[at], f64::from(((a[at] + b[at]) / 2.0) as f32));
    }
}

#[test]
fn tensors_that_have_nothing_in_common_are_listed_for_except() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let more = [
        floats("score.weight", Dtype::F32, &[1], [1.0]),
        floats("value", Dtype::F32, &[1], [1.0]),
    ];
    let specs: Vec<Spec> = llama(2, 2, Dtype::F32).into_iter().chain(more).collect();
    bench.model("b", &llama_config(2), &specs);
    let message = bench.refused(MEAN, &[]);
    let except = "except: [{tensors: ['score.weight', 'value'], action: drop}]";
    says(&message, &[except]);
    let out = by_name(&bench.merge(&format!("{MEAN}{except}\n"), &[]));
    assert_eq!(out.len(), by_name(&bench.path("a")).len());
    // A pattern that only names tensors of another model does its work, and fits.
    let ema: Vec<Spec> = (0..2)
        .map(|layer| floats(&format!("model_ema.{layer}.w"), Dtype::F32, &[1], [1.0]))
        .chain(llama(2, 2, Dtype::F32))
        .collect();
    bench.model("b", &llama_config(2), &ema);
    let dropped = format!("{MEAN}except: [{{tensors: 'model_ema.*', action: drop}}]\n");
    bench.merge(&dropped, &[]);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(!plan.contains("fits no tensor"), "{plan}");
}

#[test]
fn a_head_is_known_by_its_shape_beside_the_embedding() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let specs = without(llama(seed, 2, Dtype::F32), "lm_head.weight");
        let head = floats("head.weight", Dtype::F32, &[16, 8], noise(seed + 5, 128));
        bench.model(name, &llama_config(2), &with(specs, head));
    }
    let out = bench.merge(MEAN, &[]);
    assert_eq!(load(&out).len(), 11);
    // A matrix of another shape is no head of the vocabulary, and one within a layer is none either.
    for (name, shape) in [
        ("value_head.weight", [1, 8]),
        ("model.layers.0.head.weight", [16, 8]),
    ] {
        for model in ["a", "b"] {
            let specs = without(llama(1, 2, Dtype::F32), "lm_head.weight");
            let other = floats(name, Dtype::F32, &shape, vec![0.5; shape[0] * shape[1]]);
            bench.model(model, &llama_config(2), &with(specs, other));
        }
        fs::remove_dir_all(bench.path("out")).ok();
        says(&bench.refused(MEAN, &[]), &["has no output head"]);
    }
}

#[test]
fn a_config_that_was_not_downloaded_is_an_error_of_check_too() {
    let bench = Bench::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    bench.hub_model("org/name", "main", commit, &llama(1, 2, Dtype::F32));
    let repo = bench.path("no-hub/hub/models--org--name");
    fs::remove_file(repo.join(format!("snapshots/{commit}/config.json"))).unwrap();
    let list = json!({"format_version": 1, "files": {
        "config.json": {"size": 2, "blob_id": "x"}, "model.safetensors": {"size": 2, "blob_id": "x"},
    }});
    bench.file(
        &format!("no-hub/hub/models--org--name/trees/{commit}.json"),
        list.to_string(),
    );
    let command = "hf download org/name --revision main";
    says(
        &bench.refused(
            "merge_method: passthrough\nmodels: [{model: org/name}]\n",
            &[],
        ),
        &["config.json", command],
    );
    let outcome = bench.weld(&["check", "org/name", "-q"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    says(&outcome.stdout, &["error[config.missing]", command]);
}
