//! Tokens of text, from valid and invalid files.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::Tokenizer;
use super::fixtures::{safetensors, write};
use checkpoint::{Checkpoint, Location};

/// Words between spaces, with a beginning token that the file would add on its own, padding and truncation.
fn words() -> Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "cat": 3}, "unk_token": "<unk>"},
    })
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("model.safetensors"),
        &safetensors(&[("w", "F32", &[1])]),
    );
    for (name, bytes) in files {
        write(&folder.path().join(name), bytes);
    }
    folder
}

fn open(path: &Path) -> Result<Tokenizer, String> {
    let checkpoint = Checkpoint::open("m", &Location::local(path)).unwrap();
    Tokenizer::open(&checkpoint).map_err(|error| errors::in_one_line(&error))
}

fn opened(tokenizer: &[u8], settings: &Value) -> Result<Tokenizer, String> {
    let settings = settings.to_string();
    let files = [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings.as_bytes()),
    ];
    open(folder(&files).path())
}

#[test]
fn only_the_beginning_is_added_and_nothing_is_cut_off_or_padded() {
    let file = words().to_string();
    for bos in [json!("<s>"), json!({"content": "<s>", "lstrip": false})] {
        let tokenizer = opened(file.as_bytes(), &json!({"bos_token": bos})).unwrap();
        assert_eq!(tokenizer.beginning(), Some("<s>"));
        assert_eq!(
            tokenizer.encode("a cat dog a", true).unwrap(),
            [1, 2, 3, 0, 2]
        );
        assert_eq!(
            tokenizer.encode("a cat dog a", false).unwrap(),
            [2, 3, 0, 2]
        );
        assert_eq!(tokenizer.encode("a<s>cat", false).unwrap(), [2, 1, 3]);
        assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
        assert_eq!(tokenizer.encode("", false).unwrap(), [0u32; 0]);
    }
    for settings in [
        json!({}),
        json!({"bos_token": null}),
        json!({"bos_token": false}),
    ] {
        let tokenizer = opened(file.as_bytes(), &settings).unwrap();
        assert_eq!(tokenizer.beginning(), None);
        assert_eq!(tokenizer.encode("a", true).unwrap(), [2]);
    }
}

#[test]
fn other_files_are_refused_with_what_to_do() {
    let none = open(folder(&[]).path()).err().unwrap();
    assert!(
        none.contains("tokenizer.json: there is none; hint: copy"),
        "{none}"
    );
    let old = open(folder(&[("tokenizer.model", b"x")]).path())
        .err()
        .unwrap();
    assert!(
        old.contains("only tokenizer.model, which is not read; hint: load"),
        "{old}"
    );
    let single = open(&folder(&[]).path().join("model.safetensors"))
        .err()
        .unwrap();
    assert!(single.contains("there is none"), "{single}");
    let file = words().to_string();
    let strange = opened(file.as_bytes(), &json!({"bos_token": "<bos>"}))
        .err()
        .unwrap();
    assert!(
        strange.contains("bos_token `<bos>` is not in tokenizer.json"),
        "{strange}"
    );
}

#[test]
fn hostile_files_are_errors() {
    let file = words().to_string();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut cases: Vec<Vec<u8>> = vec![
        b"".into(),
        b"{}".into(),
        b"[]".into(),
        b"\xff\xfe".into(),
        deep.into(),
        file.replace("WordLevel", "Other").into(),
        file.replace("Whitespace", "Other").into(),
    ];
    cases.extend(
        (1..file.len())
            .step_by(97)
            .map(|end| file.as_bytes()[..end].to_vec()),
    );
    for case in cases {
        let error = opened(&case, &json!({})).err().unwrap();
        assert!(
            error.contains("tokenizer.json: it is malformed: "),
            "{error}"
        );
    }
}

/// Tables that are well-formed but contradict each other lead to a token or an error, not to a panic.
#[test]
fn lying_tables_do_not_panic() {
    let mut cases = Vec::new();
    let mut with = |part: &str, value: Value| {
        let mut file = words();
        file[part] = value;
        cases.push(file);
    };
    with(
        "model",
        json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}),
    );
    with(
        "model",
        json!({"type": "Unigram", "unk_id": null, "vocab": []}),
    );
    with(
        "model",
        json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
    );
    with(
        "model",
        json!({"type": "BPE", "vocab": {"a": u32::MAX}, "merges": [], "unk_token": "x"}),
    );
    with(
        "model",
        json!({"type": "WordLevel", "vocab": {}, "unk_token": "none"}),
    );
    with(
        "model",
        json!({"type": "WordPiece", "vocab": {}, "unk_token": "none",
        "continuing_subword_prefix": "", "max_input_chars_per_word": 0}),
    );
    with(
        "normalizer",
        json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}),
    );
    with(
        "normalizer",
        json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}),
    );
    with(
        "pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}),
    );
    with(
        "pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
    );
    for case in cases {
        if let Ok(tokenizer) = opened(case.to_string().as_bytes(), &json!({})) {
            for text in [
                "a cat",
                "",
                "\u{1f408}\u{200d}",
                &format!("{}b", "a".repeat(40)),
            ] {
                let _ = tokenizer.encode(text, true);
            }
        }
    }
}
