//! Vocabularies of SentencePiece: pieces with scores, merged the best first; what is left becomes bytes.

use std::collections::{BTreeSet, HashMap};

use super::byte_pairs::{Pair, pairs};
use super::tokens::{
    ADDED_SCORE, BYTE, CONTROL, NORMAL, Tokens, UNKNOWN, UNUSED, USER_DEFINED, added, by_id,
    is_byte,
};
use checkpoint::{Checkpoint, PieceKind, PieceModel, settings};
use errors::Refusal;
use serde_json::Value as Json;

/// What llama.cpp calls it.
const MODEL: &str = "llama";

/// The score of a token that no merge makes.
const UNMERGED: f32 = -1e9;

/// The pieces of a `tokenizer.model` and the tokens that other files add, as far as the model has ids for them; and how
/// many tokens it has none for.
/// `verbatim`: added tokens are written as they stand, those of `json`, a `tokenizer.json`, too.
pub(super) fn of_model(
    checkpoint: &Checkpoint,
    model: &PieceModel,
    size: usize,
    verbatim: bool,
    json: Option<&Json>,
) -> Result<(Tokens, usize), Refusal> {
    let mut tokens = Tokens::new(MODEL, "default".into(), size, true);
    let mut added_beyond = BTreeSet::new();
    let mut place = |id: Option<u64>| {
        let place = usize::try_from(id?).ok()?;
        if place >= size.max(model.pieces.len()) {
            added_beyond.insert(place);
        }
        (place < size).then_some(place)
    };
    for (place, piece) in model.pieces.iter().enumerate().take(size) {
        let kind = match piece.kind {
            PieceKind::Normal | PieceKind::UserDefined => NORMAL,
            PieceKind::Unknown => UNKNOWN,
            PieceKind::Control => CONTROL,
            PieceKind::Byte => BYTE,
            PieceKind::Unused => UNUSED,
        };
        tokens.put_at(place, &piece.text, kind, piece.score);
    }
    let read = |name: &str| settings(checkpoint, name).map_err(|error| Refusal::from(&error));
    for (text, id) in read("added_tokens.json")?.into_iter().flatten() {
        if let Some(place) = place(id.as_u64()) {
            tokens.put_at(place, &text, USER_DEFINED, ADDED_SCORE);
        }
    }
    let config = read("tokenizer_config.json")?.unwrap_or_default();
    let listed = config.get("added_tokens_decoder").and_then(Json::as_object);
    for (id, token) in listed.into_iter().flatten() {
        let place = place(id.parse().ok());
        if let (Some(place), Some(text)) = (place, token["content"].as_str()) {
            let special = token["special"].as_bool().unwrap_or(false);
            let (text, kind) = match verbatim {
                true => (text.to_owned(), kind_of(special)),
                false => added(text, special),
            };
            tokens.put_at(place, &text, kind, ADDED_SCORE);
        }
    }
    let last = json.filter(|_| verbatim);
    let last = last.and_then(|json| json["added_tokens"].as_array());
    for token in last.into_iter().flatten() {
        let place = place(token["id"].as_u64());
        if let (Some(place), Some(text)) = (place, token["content"].as_str()) {
            let special = token["special"].as_bool().unwrap_or(false);
            tokens.put_at(place, text, kind_of(special), ADDED_SCORE);
        }
    }
    let beyond = model.pieces.len().saturating_sub(size) + added_beyond.len();
    Ok((tokens, beyond))
}

fn kind_of(special: bool) -> i32 {
    match special {
        true => CONTROL,
        false => USER_DEFINED,
    }
}

/// The tokens of a `tokenizer.json` that merges pairs of characters. A token's score is the place of the first merge
/// that makes it, so that llama.cpp merges in the same order; its converter gives all of them -1000.
pub(super) fn of_merges(json: &Json, size: usize) -> Result<Tokens, Refusal> {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, pair) in pairs(json)?.into_iter().enumerate() {
        let merged = match pair {
            Pair::Written(pair) => pair.replacen(' ', "", 1),
            Pair::Parts(parts) => parts.concat(),
        };
        places.entry(merged).or_insert(place);
    }
    let mut tokens = Tokens::new(MODEL, "default".into(), size, true);
    for (text, id) in by_id(json)? {
        let kind = match is_byte(text) {
            true => BYTE,
            false => NORMAL,
        };
        let score = places.get(text).map_or(UNMERGED, |&place| -(place as f32));
        tokens.put(id, text, kind, score)?;
    }
    tokens.put_added(json)?;
    tokens.implied = &["bos"];
    if !prepends(json) {
        tokens.adds_space = Some(false);
    }
    Ok(tokens)
}

/// Whether a tokenizer puts U+2581 before a text.
pub(super) fn prepends(json: &Json) -> bool {
    let parts = |part: &Json, list: &str| -> Vec<Json> {
        match part[list].as_array() {
            Some(parts) => parts.clone(),
            None => vec![part.clone()],
        }
    };
    let normalizers = parts(&json["normalizer"], "normalizers");
    let cutters = parts(&json["pre_tokenizer"], "pretokenizers");
    normalizers.iter().any(|part| part["type"] == "Prepend")
        || cutters.iter().any(|part| {
            let by_flag = part["add_prefix_space"].as_bool().unwrap_or(true);
            let scheme = part["prepend_scheme"].as_str();
            part["type"] == "Metaspace" && scheme.map_or(by_flag, |scheme| scheme != "never")
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::{Metadata, Value};

    #[test]
    fn scores_are_the_order_of_merges() {
        let json = json!({
            "model": {
                "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "abb": 5, "left": 6},
                "merges": ["a b", ["ab", "b"], ["a", "bb"]],
            },
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace"}]},
        });
        let mut written = Metadata::default();
        of_merges(&json, 8).unwrap().set(&mut written);
        let scores = [
            ADDED_SCORE,
            UNMERGED,
            UNMERGED,
            UNMERGED,
            -0.0,
            -1.0,
            UNMERGED,
            -1e4,
        ];
        for (key, value) in [
            ("model", Value::Text("llama".into())),
            ("scores", Value::F32s(scores.into())),
            ("token_type", Value::I32s(vec![3, 6, 1, 1, 1, 1, 1, 5])),
            ("add_space_prefix", Value::Bool(false)),
        ] {
            assert_eq!(written.get(&format!("tokenizer.ggml.{key}")), Some(&value));
        }
    }

    #[test]
    fn a_space_before_a_text_is_found() {
        for (json, expected) in [
            (json!({}), false),
            (
                json!({"normalizer": {"type": "Prepend", "prepend": "\u{2581}"}}),
                true,
            ),
            (
                json!({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}}),
                true,
            ),
            (json!({"pre_tokenizer": {"type": "Metaspace"}}), true),
            (
                json!({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}),
                false,
            ),
            (
                json!({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": false}}),
                false,
            ),
        ] {
            assert_eq!(prepends(&json), expected, "{json}");
        }
    }
}
