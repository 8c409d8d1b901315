//! Ids of special tokens, and whether llama.cpp puts them around a text.
//!
//! Source: `SpecialVocab` of gguf-py in llama.cpp v0.5.0: `tokenizer.json` says what is put around a text,
//! `tokenizer_config.json` what special tokens are called, and config.json ids that neither tells.

use super::container::{Metadata, Value};
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
    ("cls", "cls_token_id"),
    ("mask", "mask_token_id"),
    ("eot", "eot_token_id"),
];

/// Special tokens of which llama.cpp reads whether they are added.
const ADDED: [&str; 3] = ["bos", "eos", "sep"];

/// Sets the ids of special tokens below `size`, and what is added to a text.
pub(super) fn special_tokens(
    checkpoint: &Checkpoint,
    tokenizer: &Json,
    size: usize,
    out: &mut Metadata,
) -> Result<(), Refusal> {
    let found =
        settings(checkpoint, "tokenizer_config.json").map_err(|error| Refusal::from(&error))?;
    let config = checkpoint.config().map(|config| config.value());
    let mut around = Around::new(found.unwrap_or_default());
    around.read(tokenizer);
    for (kind, key) in KINDS {
        let named = around
            .names
            .get(kind)
            .and_then(|name| id_of(tokenizer, name));
        let written = || config?.get(format!("{kind}_token_id"))?.as_u64();
        if let Some(id) = named.or_else(written).filter(|&id| id < size as u64) {
            out.set(format!("tokenizer.ggml.{key}"), Value::U32(id as u32));
        }
    }
    for kind in ADDED {
        if let Some(Json::Bool(added)) = around.added.get(kind) {
            out.set(
                format!("tokenizer.ggml.add_{kind}_token"),
                Value::Bool(*added),
            );
        }
    }
    if let Some(Json::Bool(prefix)) = around.settings.get("add_prefix_space") {
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(*prefix));
    }
    Ok(())
}

/// The id of an added token.
fn id_of(tokenizer: &Json, content: &Json) -> Option<u64> {
    let tokens = tokenizer["added_tokens"].as_array()?;
    let token = tokens.iter().find(|token| token["content"] == *content)?;
    token["id"].as_u64()
}

/// What is put around a text, and what special tokens are called.
struct Around {
    settings: Map<String, Json>,
    names: Map<String, Json>,
    added: Map<String, Json>,
}

impl Around {
    fn new(settings: Map<String, Json>) -> Self {
        let name = |kind: &str| match settings.get(&format!("{kind}_token")) {
            Some(Json::Object(token)) => token.get("content").cloned(),
            token => token.filter(|token| token.is_string()).cloned(),
        };
        let names = KINDS
            .iter()
            .filter_map(|(kind, _)| Some(((*kind).to_owned(), name(kind)?)));
        Around {
            names: names.collect(),
            settings,
            added: Map::new(),
        }
    }

    /// Reads the post-processors; what they say comes before the settings.
    fn read(&mut self, tokenizer: &Json) {
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
                self.names.insert("eot".into(), before);
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
