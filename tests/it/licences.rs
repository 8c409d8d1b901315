//! Licences of the inputs: read from cards and licence files, listed by `plan` and in the card, noted where they may not
//! go together.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, floats, noise};

const LINEAR: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n\
                      - {model: b, parameters: {weight: 0.5}}\n";

/// Two models with these files beside their weights.
fn bench(files: &[(&str, &str)]) -> Bench {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    for (name, text) in files {
        bench.file(name, text);
    }
    bench.recipe(LINEAR);
    bench
}

fn plan(bench: &Bench) -> (String, Value) {
    let text = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let json = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
    (text.stdout, serde_json::from_str(&json.stdout).unwrap())
}

fn line<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find(|line| line.starts_with(label))
}

fn card(bench: &Bench) -> String {
    let merged = bench.weld(&["merge", "recipe.yml", "out", "--force"]);
    assert_eq!(merged.code, Some(0), "{}", merged.stderr);
    fs::read_to_string(bench.path("out/README.md")).unwrap()
}

#[test]
fn licences_that_may_not_go_together_are_listed_and_noted() {
    let bench = bench(&[
        ("a/README.md", "---\nlicense: apache-2.0\n---\n# A\n"),
        (
            "b/README.md",
            "---\nlicense: other\nlicense_name: Super-Non-Commercial\nlicense_link: https://x.y/z\n---\n",
        ),
    ]);
    let (text, json) = plan(&bench);
    assert_eq!(
        line(&text, "licences"),
        Some("licences apache-2.0 (a), Super-Non-Commercial (b)")
    );
    let notes: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("note"))
        .collect();
    let licences: Vec<&&str> = notes
        .iter()
        .filter(|note| note.contains("licence"))
        .collect();
    assert_eq!(licences.len(), 1, "{notes:?}");
    for part in [
        "may not go together",
        "`a` (apache-2.0, README.md)",
        "`b` (Super-Non-Commercial, README.md) limits commercial use",
    ] {
        assert!(licences[0].contains(part), "{part}: {licences:?}");
    }
    assert_eq!(
        json["licenses"],
        json!([
            {"model": "a", "license": "apache-2.0", "license_name": null, "license_link": null, "file": "README.md"},
            {"model": "b", "license": "other", "license_name": "Super-Non-Commercial", "license_link": "https://x.y/z",
             "file": "README.md"},
        ])
    );
    let merged = bench.weld(&["merge", "recipe.yml", "out"]);
    assert!(
        merged.stderr.contains("may not go together"),
        "{}",
        merged.stderr
    );
    let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
    assert!(!card.contains("\nlicense:"), "{card}");
    let section = "- `a`: `apache-2.0`\n- `b`: `Super-Non-Commercial`, `https://x.y/z`\n";
    assert!(card.contains(section), "{card}");
}

#[test]
fn one_licence_of_all_inputs_is_that_of_the_card() {
    let apache = "Apache License\nVersion 2.0, January 2004\n";
    let bench = bench(&[
        ("a/README.md", "---\nlicense: Apache-2.0\n---\n"),
        ("b/LICENSE", apache),
    ]);
    let (text, json) = plan(&bench);
    assert_eq!(line(&text, "licences"), Some("licences apache-2.0 (a, b)"));
    assert!(!text.contains("may not go together"), "{text}");
    assert_eq!(json["licenses"][1]["file"], "LICENSE");
    assert!(card(&bench).contains("\nlicense: \"apache-2.0\"\n"));
    // What is made of it states the same again.
    bench.file(
        "again.yml",
        "merge_method: passthrough\nmodels:\n- model: out\n",
    );
    let again = bench.weld(&["plan", "again.yml"]).stdout;
    assert_eq!(line(&again, "licences"), Some("licences apache-2.0 (out)"));
}

#[test]
fn inputs_that_state_nothing_are_noted_where_others_do_and_only_there() {
    let silent = bench(&[("a/README.md", "# A model\n")]);
    let (text, json) = plan(&silent);
    assert_eq!(line(&text, "licences"), None);
    assert!(!text.contains("licence"), "{text}");
    assert_eq!(json["licenses"], json!([]));
    assert!(!card(&silent).contains("icence"));
    let one = bench(&[("a/README.md", "---\nlicense: llama3.1\n---\n")]);
    let (text, _) = plan(&one);
    assert_eq!(
        line(&text, "licences"),
        Some("licences llama3.1 (a), not stated (b)")
    );
    for part in ["`b` states none", "begins with `Llama`"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let card = card(&one);
    assert!(card.contains("- `b`: not stated\n"), "{card}");
    assert!(!card.contains("\nlicense:"), "{card}");
}

/// An adapter is an input with a licence of its own, and a document that others use has inputs too.
#[test]
fn adapters_and_documents_have_licences() {
    let bench = bench(&[
        ("a/README.md", "---\nlicense: mit\n---\n"),
        ("b/README.md", "---\nlicense: mit\n---\n"),
        ("lora/README.md", "---\nlicense: gemma\n---\n"),
        (
            "lora/adapter_config.json",
            r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}"#,
        ),
    ]);
    let name =
        |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
    bench.tensors(
        "lora/adapter_model.safetensors",
        &[
            floats(&name("A"), Dtype::F32, &[1, 8], noise(1, 8)),
            floats(&name("B"), Dtype::F32, &[8, 1], noise(2, 8)),
        ],
    );
    bench.recipe(
        "name: first\nmerge_method: linear\nmodels:\n- {model: a+lora, parameters: {weight: 0.5}}\n\
         - {model: b, parameters: {weight: 0.5}}\n---\n\
         merge_method: linear\nmodels:\n- {model: first, parameters: {weight: 0.5}}\n\
         - {model: a, parameters: {weight: 0.5}}\n",
    );
    let (text, _) = plan(&bench);
    assert_eq!(
        line(&text, "licences"),
        Some("licences mit (a, b), gemma (lora)"),
        "{text}"
    );
    assert_eq!(text.matches("may not go together").count(), 1, "{text}");
    assert!(card(&bench).contains("- `lora`: `gemma`\n"));
}

#[test]
fn mixtures_of_experts_list_them_too() {
    let bench = Bench::new();
    let family = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    for name in ["sort", "add"] {
        fs::create_dir_all(bench.path(name)).unwrap();
        for file in fs::read_dir(family.join(name)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), bench.path(name).join(file.file_name())).unwrap();
        }
    }
    bench.file("sort/README.md", "---\nlicense: cc-by-nc-4.0\n---\n");
    bench.file("add/README.md", "---\nlicense: mit\n---\n");
    bench.recipe("base_model: sort\ngate_mode: random\nexperts:\n- source_model: sort\n- source_model: add\n");
    let (text, _) = plan(&bench);
    assert_eq!(
        line(&text, "licences"),
        Some("licences cc-by-nc-4.0 (sort), mit (add)"),
        "{text}"
    );
    assert_eq!(text.matches("may not go together").count(), 1, "{text}");
}

/// A card is written by strangers: nothing of it steers a terminal or breaks the output's card.
#[test]
fn hostile_licences_are_shown_inert() {
    let hostile = "---\nlicense: \"x\\u001b[31m\\n::error::y`\\n- z\"\n---\n";
    let bench = bench(&[("a/README.md", hostile), ("b/README.md", hostile)]);
    let (text, _) = plan(&bench);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("::")), "{text}");
    let card = card(&bench);
    assert!(!card.lines().any(|line| line.starts_with("- z")), "{card}");
}
