//! Unigram: each token has a score, and a text becomes the tokens whose scores sum to most.

use super::super::container::Value;
use super::pieces::prepends;
use super::tokens::{ADDED_SCORE, BYTE, NORMAL, Tokens, UNKNOWN, added, is_byte};
use base64ct::{Base64, Encoding};
use errors::Refusal;
use serde_json::Value as Json;

/// The tokens of a `tokenizer.json`.
pub(super) fn tokens(json: &Json, size: usize) -> Result<Tokens, Refusal> {
    let model = &json["model"];
    let listed = model["vocab"].as_array();
    let listed = listed.ok_or("tokenizer.json: `model.vocab` is no list")?;
    let mut tokens = Tokens::new("t5", "default".into(), size, true);
    for (place, token) in listed.iter().enumerate() {
        let id = place as u64;
        let score = token[1]
            .as_f64()
            .filter(|score| (*score as f32).is_finite());
        let (Some(text), Some(score)) = (token[0].as_str(), score) else {
            return Err(format!("tokenizer.json: token {place} is no text with a score").into());
        };
        let kind = match is_byte(text) {
            _ if model["unk_id"].as_u64() == Some(id) => UNKNOWN,
            true => BYTE,
            false => NORMAL,
        };
        tokens.put(Some(id), text, kind, score as f32)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let id = token["id"].as_u64();
        // What stands for unknown text keeps its kind, which llama.cpp looks for.
        if id.is_some() && id == model["unk_id"].as_u64() {
            continue;
        }
        let text = token["content"].as_str().unwrap_or_default();
        let (text, kind) = added(text, token["special"].as_bool().unwrap_or(false));
        let place = id.and_then(|id| usize::try_from(id).ok());
        let score = place.and_then(|place| listed.get(place)?[1].as_f64());
        tokens.put(
            id,
            &text,
            kind,
            score.map_or(ADDED_SCORE, |score| score as f32),
        )?;
    }
    // The converter knows this kind from encoders, for which it counts types of tokens.
    tokens.further.push(("token_type_count", Value::U32(1)));
    tokens.implied = &["eos"];
    tokens.adds_space = Some(prepends(json));
    normalised(&json["normalizer"], &mut tokens)?;
    Ok(tokens)
}

/// What is done to a text before it is cut: by a table, and whether spaces are joined.
fn normalised(normalizer: &Json, tokens: &mut Tokens) -> Result<(), Refusal> {
    let single = std::slice::from_ref(normalizer);
    let parts = normalizer["normalizers"].as_array();
    let mut joins_spaces = false;
    for part in parts.map_or(single, Vec::as_slice) {
        match part["type"].as_str() {
            Some("Precompiled") => {
                let table = part["precompiled_charsmap"].as_str().unwrap_or_default();
                let table = Base64::decode_vec(table).map_err(
                    |_| "tokenizer.json: the `precompiled_charsmap` of its normaliser is no base64",
                )?;
                if !table.is_empty() {
                    let further = ("precompiled_charsmap", Value::Bytes(table));
                    tokens.further.push(further);
                }
            }
            Some("Replace") if part["pattern"]["Regex"] == " {2,}" => joins_spaces = true,
            Some("Replace") if part["pattern"]["String"] == " " => {}
            None | Some("Prepend" | "Strip") => {}
            Some(other) => {
                return Err(Refusal::new(format!(
                    "tokenizer.json: llama.cpp has no normaliser `{other}` for Unigram"
                ))
                .with_hint("it has `Precompiled`, which SentencePiece writes"));
            }
        }
    }
    let further = ("remove_extra_whitespaces", Value::Bool(joins_spaces));
    tokens.further.push(further);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::Metadata;

    fn tokenizer() -> Json {
        json!({
            "model": {"unk_id": 1, "vocab": [["<pad>", 0.0], ["<unk>", 0.0], ["\u{2581}a", -1.5], ["<0x0A>", -3.0]]},
            "added_tokens": [
                {"id": 0, "content": "<pad>", "special": true},
                {"id": 1, "content": "<unk>", "special": true},
            ],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": "AQI="},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ]},
            "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"},
        })
    }

    #[test]
    fn tokens_have_their_scores_and_the_table_its_bytes() {
        let mut written = Metadata::default();
        tokens(&tokenizer(), 5).unwrap().set(&mut written);
        for (key, value) in [
            ("model", Value::Text("t5".into())),
            ("scores", Value::F32s(vec![0.0, 0.0, -1.5, -3.0, -1e4])),
            ("token_type", Value::I32s(vec![3, 2, 1, 6, 5])),
            ("precompiled_charsmap", Value::Bytes(vec![1, 2])),
            ("add_space_prefix", Value::Bool(true)),
            ("remove_extra_whitespaces", Value::Bool(true)),
        ] {
            let key = format!("tokenizer.ggml.{key}");
            assert_eq!(written.get(&key), Some(&value), "{key}");
        }
    }

    #[test]
    fn what_llama_cpp_cannot_do_is_refused() {
        for (change, named) in [
            (json!({"normalizer": {"type": "NFKC"}}), "`NFKC`"),
            (json!({"model": {"vocab": [["a"]]}}), "token 0"),
            (json!({"model": {"vocab": {"a": 0}}}), "no list"),
            (
                json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}),
                "base64",
            ),
        ] {
            let mut json = tokenizer();
            for (name, value) in change.as_object().unwrap() {
                json[name] = value.clone();
            }
            let message = tokens(&json, 5).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
