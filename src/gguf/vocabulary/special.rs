//! Ids of special tokens, and whether llama.cpp puts them around a text.
//!
//! Source: `SpecialVocab` of gguf-py in llama.cpp v0.5.0: `tokenizer.json` says what is put around a text,
//! `tokenizer_config.json` what special tokens are called, and config.json ids that neither tells.

use super::super::container::{Metadata, Value};
use architecture::llama_cpp::Dialect;
use checkpoint::{Checkpoint, settings};
use errors::Refusal;
use serde_json::{Map, Value as Json};

/// Special tokens as Hugging Face names them, and the keys of their ids.
const KINDS: [(&str, &str); 8] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
    ("eot", "eot_token_id"),
    ("eom", "eom_token_id"),
];

/// Those of them that no setting names.
const UNNAMED: [&str; 2] = ["eot", "eom"];

/// Special tokens of which llama.cpp reads whether they are added.
const ADDED: [&str; 3] = ["bos", "eos", "sep"];

/// Sets the ids of special tokens below `size`, and what is added to a text.
pub(super) fn special_tokens(
    checkpoint: &Checkpoint,
    around: &Around,
    dialect: &Dialect,
    tokenizer: &Json,
    size: usize,
    out: &mut Metadata,
) -> Result<(), Refusal> {
    let config = checkpoint.config().map(|config| config.value());
    let mut put = |key: &str, id: Option<u64>| {
        if let Some(id) = id.filter(|&id| id < size as u64) {
            out.set(format!("tokenizer.ggml.{key}"), Value::U32(id as u32));
        }
    };
    for (kind, key) in KINDS {
        let name = around.names.get(kind);
        let named = name.and_then(|name| id_of(tokenizer, name));
        let written = || id_in(config?, &format!("{kind}_token_id"));
        let written = match UNNAMED.contains(&kind) {
            true => None,
            false => written(),
        };
        let of_family = dialect.special.iter().find(|(of, _)| *of == kind);
        let of_family = of_family.and_then(|(_, text)| id_of(tokenizer, &Json::from(*text)));
        put(key, named.or(written).or(of_family));
    }
    for (key, id) in dialect.special_ids {
        put(key, Some(u64::from(*id)));
    }
    corrected(checkpoint, dialect, size, &mut put)?;
    for kind in ADDED {
        if let Some(Json::Bool(added)) = around.added.get(kind) {
            out.set(
                format!("tokenizer.ggml.add_{kind}_token"),
                Value::Bool(*added),
            );
        }
    }
    // Granite's small models, whose tokenizers are told by their size.
    if dialect.vocab_size && size == 49_152 {
        out.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    }
    for (name, changes) in normalised(&tokenizer["normalizer"]) {
        let key = format!("tokenizer.ggml.normalizer.{name}");
        out.set(key, Value::Bool(changes));
    }
    Ok(())
}

/// Ids that the converter takes from elsewhere: that of CodeLlama, told by its size, and those of HunYuan, whose
/// settings name others.
fn corrected(
    checkpoint: &Checkpoint,
    dialect: &Dialect,
    size: usize,
    put: &mut impl FnMut(&str, Option<u64>),
) -> Result<(), Refusal> {
    if dialect.vocab_size && size == 32_016 {
        put("eot_token_id", Some(32_010));
    }
    if dialect.family == "hunyuan_v1_dense" {
        let config = checkpoint.config().map(|config| config.value());
        put(
            "eos_token_id",
            config.and_then(|config| id_in(config, "eod_token_id")),
        );
        let generation = settings(checkpoint, "generation_config.json");
        let generation = generation.map_err(|error| Refusal::from(&error))?;
        let ends = generation
            .as_ref()
            .and_then(|found| found.get("eos_token_id"));
        if let Some([first, _, ..]) = ends.and_then(Json::as_array).map(Vec::as_slice) {
            put("eot_token_id", first.as_u64());
        }
    }
    Ok(())
}

/// An id that the config gives, or its part for text.
fn id_in(config: &Json, field: &str) -> Option<u64> {
    let found = config.get(field).filter(|id| !id.is_null());
    found
        .or_else(|| config.get("text_config")?.get(field))?
        .as_u64()
}

/// What a normaliser does of what llama.cpp has settings for.
fn normalised(normalizer: &Json) -> Vec<(&'static str, bool)> {
    match normalizer["type"].as_str() {
        Some("Lowercase") => vec![("lowercase", true)],
        Some("StripAccents") => vec![("strip_accents", true)],
        Some("BertNormalizer") => ["lowercase", "strip_accents"]
            .into_iter()
            .filter_map(|name| Some((name, normalizer[name].as_bool()?)))
            .collect(),
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(normalised)
            .collect(),
        _ => Vec::new(),
    }
}

/// The id of an added token.
fn id_of(tokenizer: &Json, content: &Json) -> Option<u64> {
    let tokens = tokenizer["added_tokens"].as_array()?;
    let token = tokens.iter().find(|token| token["content"] == *content)?;
    token["id"].as_u64()
}

/// What is put around a text, and what special tokens are called.
pub(super) struct Around {
    settings: Map<String, Json>,
    names: Map<String, Json>,
    added: Map<String, Json>,
}

impl Around {
    /// Of tokenizer_config.json and tokenizer.json. What is `implied` is not added unless one of them says so.
    pub(super) fn read(settings: Map<String, Json>, tokenizer: &Json, implied: &[&str]) -> Self {
        let mut around = Self::new(settings);
        around.process(tokenizer);
        for kind in implied {
            around.added.entry(*kind).or_insert(false.into());
        }
        around
    }

    fn new(settings: Map<String, Json>) -> Self {
        let name = |kind: &str| match settings.get(&format!("{kind}_token")) {
            Some(Json::Object(token)) => token.get("content").cloned(),
            token => token.filter(|token| token.is_string()).cloned(),
        };
        let kinds = KINDS.iter().map(|(kind, _)| *kind).chain(["cls"]);
        let named = kinds.filter(|kind| !UNNAMED.contains(kind));
        let names = named.filter_map(|kind| Some((kind.to_owned(), name(kind)?)));
        Around {
            names: names.collect(),
            settings,
            added: Map::new(),
        }
    }

    /// Reads the post-processors; what they say comes before the settings.
    fn process(&mut self, tokenizer: &Json) {
        for (kind, stand_in) in [("bos", "cls"), ("eos", "sep")] {
            if let (None, Some(name)) = (self.names.get(kind), self.names.get(stand_in).cloned()) {
                self.names.insert(kind.into(), name);
            }
        }
        let top = &tokenizer["post_processor"];
        let single = std::slice::from_ref(top);
        for processor in top["processors"].as_array().map_or(single, Vec::as_slice) {
            match processor["type"].as_str() {
                Some("ByteLevel") => {
                    self.added.entry("bos").or_insert(false.into());
                    self.added.entry("eos").or_insert(false.into());
                }
                Some("RobertaProcessing") => {
                    for kind in ADDED {
                        self.added.insert(kind.into(), true.into());
                    }
                    for kind in ["cls", "sep"] {
                        let token = processor[kind][0].clone();
                        self.names.entry(kind).or_insert(token);
                    }
                }
                Some("TemplateProcessing") => self.template(processor),
                _ => {}
            }
        }
        for kind in ADDED {
            if let Some(Json::Bool(added)) = self.settings.get(&format!("add_{kind}_token")) {
                self.added.entry(kind).or_insert((*added).into());
            }
        }
    }

    /// Reads what a template puts before and behind one text, and between two.
    fn template(&mut self, processor: &Json) {
        let list = |name: &str| processor[name].as_array().map_or(&[][..], Vec::as_slice);
        let special = |piece: &Json| piece["SpecialToken"]["id"].as_str().map(Json::from);
        let (single, pair) = (list("single"), list("pair"));
        let (mut first, mut last) = (None, None);
        if let [start, .., end] = single {
            (first, last) = (special(start), special(end));
        }
        if let Some(first) = &first {
            let is_start = |names: &Map<String, Json>| {
                [names.get("bos"), names.get("cls")].contains(&Some(first))
            };
            if !is_start(&self.names) {
                self.names.entry("bos").or_insert_with(|| first.clone());
                self.names.entry("cls").or_insert_with(|| first.clone());
            }
            let added = is_start(&self.names);
            self.added.insert("bos".into(), added.into());
        }
        if let Some(last) = &last {
            let before = self.names.insert("eos".into(), last.clone());
            if let Some(before) = before.filter(|before| before != last) {
                let place = match self.names.contains_key("eot") {
                    true => "eom",
                    false => "eot",
                };
                self.names.insert(place.into(), before);
            }
            self.added.insert("eos".into(), true.into());
        }
        self.between(pair, first, last, special);
    }

    fn between(
        &mut self,
        mut pair: &[Json],
        first: Option<Json>,
        last: Option<Json>,
        special: impl Fn(&Json) -> Option<Json>,
    ) {
        let is = |piece: Option<&Json>, token: &Option<Json>| {
            token.is_some() && piece.and_then(&special) == *token
        };
        if is(pair.first(), &first) {
            pair = &pair[1..];
        }
        if is(pair.last(), &last) {
            pair = &pair[..pair.len() - 1];
        }
        let [a, between @ .., b] = pair else {
            return;
        };
        if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" || between.is_empty() {
            return;
        }
        let separates = |piece: &Json| {
            special(piece).is_some_and(|token| {
                [self.names.get("sep"), self.names.get("eos")].contains(&Some(&token))
            })
        };
        let alone = separates(&between[0]) && last.is_none();
        let added = alone || between.len() == 2 && separates(&between[1]);
        self.added.insert("sep".into(), added.into());
    }
}
