//! Compares configs, tokenizers and other files of two checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checks;
use crate::fields::{differences, shown};
use crate::{Finding, Place, Severity};
use checkpoint::{Checkpoint, Sidecar, Tokenizer, TokenizerKind, parse_json, read_sidecar};
use errors::some_of;

/// Files that are compared field by field, in folders of parts too.
const BY_FIELD: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model_index.json",
    "scheduler_config.json",
    "tokenizer_config.json",
];

/// The most tokens that are named; the others are counted.
const TOKENS_SHOWN: usize = 8;

/// Fields that record which program wrote a config.
const WRITER_FIELDS: [&str; 2] = ["transformers_version", "_name_or_path"];

/// Compares the files other than weights.
pub(super) fn compare(a: &Checkpoint, b: &Checkpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    if a.is_single_file() || b.is_single_file() {
        return findings;
    }
    let config = |model: &Checkpoint| model.config().map(|config| config.value().clone());
    if let (Some(a), Some(b)) = (config(a), config(b)) {
        findings.extend(fields("config.json", &a, &b));
    }
    let files = |model: &Checkpoint| -> BTreeMap<String, Sidecar> {
        let files = model.sidecars().unwrap_or_default().into_iter();
        files.map(|file| (file.name.clone(), file)).collect()
    };
    let (of_a, of_b) = (files(a), files(b));
    let names: BTreeSet<&String> = of_a.keys().chain(of_b.keys()).collect();
    for name in names {
        findings.extend(file(name, of_a.get(name), of_b.get(name)));
    }
    findings.extend(tokens(a, b));
    findings
}

fn fields(file: &str, a: &Value, b: &Value) -> Vec<Finding> {
    differences(a, b)
        .into_iter()
        .map(|field| {
            let (a, b) = (shown(field.first.as_ref()), shown(field.second.as_ref()));
            let finding = Finding::new(&checks::CONFIG, Place::field(file, &field.path), a, b);
            match WRITER_FIELDS.contains(&field.path.as_str()) {
                true => finding.with_severity(Severity::Note),
                false => finding,
            }
        })
        .collect()
}

fn file(name: &str, a: Option<&Sidecar>, b: Option<&Sidecar>) -> Vec<Finding> {
    let read = |file: &Sidecar| read_sidecar(&file.path).ok();
    let (a, b) = (a.map(read), b.map(read));
    if a == b {
        return Vec::new();
    }
    let json = |bytes: &Option<Option<Vec<u8>>>| -> Option<Value> {
        parse_json(bytes.as_ref()?.as_ref()?).ok()
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    if BY_FIELD.contains(&last)
        && let (Some(a), Some(b)) = (json(&a), json(&b))
    {
        return fields(name, &a, &b);
    }
    let text = |file: Option<Option<Vec<u8>>>| match file {
        None => "none".to_owned(),
        Some(None) => "a file that cannot be read".to_owned(),
        Some(Some(bytes)) => {
            let digest = blake3::hash(&bytes).to_string();
            format!("{} bytes, BLAKE3 {}", bytes.len(), &digest[..16])
        }
    };
    vec![Finding::new(
        &checks::FILE,
        Place::file(name),
        text(a),
        text(b),
    )]
}

/// Tokens with different ids or in only one of the two: one finding per kind.
fn tokens(a: &Checkpoint, b: &Checkpoint) -> Vec<Finding> {
    let (Ok(TokenizerKind::Fast(a)), Ok(TokenizerKind::Fast(b))) =
        (Tokenizer::open(a), Tokenizer::open(b))
    else {
        return Vec::new();
    };
    let (mut gone, mut moved, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for (id, token) in a.tokens() {
        match b.id(token) {
            None => gone.push(format!("{token:?} ({id})")),
            Some(other) if other != id => moved.push(format!("{token:?} ({id}, {other})")),
            Some(_) => {}
        }
    }
    for (id, token) in b.tokens() {
        if a.id(token).is_none() {
            new.push(format!("{token:?} ({id})"));
        }
    }
    let kinds = [
        (gone, "tokens that only the first has", "none of them"),
        (new, "no others", "tokens that only the second has"),
        (moved, "the same ids", "other ids"),
    ];
    kinds
        .into_iter()
        .filter(|(tokens, ..)| !tokens.is_empty())
        .map(|(tokens, expected, found)| {
            let place = Place::file("tokenizer.json");
            let count = tokens.len();
            let shown = some_of(&tokens, TOKENS_SHOWN);
            let found = format!("{found}; {count} in all: {shown}");
            Finding::new(&checks::TOKENS, place, expected, found)
        })
        .collect()
}
