//! The tokenizer as llama.cpp reads it: tokens with their kinds, how they are merged, special ids, chat template.
//!
//! A `tokenizer.model` is written as it stands. Of a `tokenizer.json` the kind decides: byte-level BPE, BPE whose bytes
//! are tokens of their own, Unigram or WordPiece.

mod byte_pairs;
mod likeliest;
mod pieces;
mod special;
mod tokens;
mod words;

use super::container::{Metadata, Value};
use architecture::llama_cpp::{Dialect, SpacePrefix};
use checkpoint::{Checkpoint, PieceModel, chat_template, parse_json, read_bounded, settings};
use errors::Refusal;
use serde_json::Value as Json;

pub use byte_pairs::pretokenizers;

/// The largest `tokenizer.json` that is read; real ones reach 35 MB.
const MAX_JSON: u64 = 512 << 20;

/// The largest `tokenizer.model` that is read; real ones reach 5 MB.
const MAX_PIECES: u64 = 64 << 20;

/// A `tokenizer.json`: its bytes, and what they say.
struct Described {
    bytes: Vec<u8>,
    json: Json,
}

/// Sets the keys of the tokenizer, with so many tokens. Returns what llama.cpp does otherwise.
pub(super) fn vocabulary(
    checkpoint: &Checkpoint,
    dialect: &Dialect,
    size: usize,
    pretokenizer: Option<&str>,
    out: &mut Metadata,
) -> Result<Vec<String>, Refusal> {
    let described = described(checkpoint)?;
    let model = match dialect.pieces_first || described.is_none() {
        true => piece_model(checkpoint)?,
        false => None,
    };
    let unigram = model.as_ref().is_some_and(|model| model.is_unigram);
    let config = checkpoint.config().map(|config| config.value());
    let mut notes = Vec::new();
    let mut tokens = match (model, &described) {
        (Some(model), _) => {
            let json = described.as_ref().map(|described| &described.json);
            let (tokens, beyond) =
                pieces::of_model(checkpoint, &model, size, dialect.added_verbatim, json)?;
            if beyond > 0 {
                notes.push(format!(
                    "tokenizer.model and the tokens added to it have {beyond} ids from {size} on, for which the embedding \
                     has no row: they are left out, as llama.cpp's converter has it; text that has them is cut otherwise"
                ));
            }
            tokens
        }
        (None, Some(described)) => match kind(&described.json)? {
            Kind::ByteLevel => byte_pairs::tokens(described, size, pretokenizer)?,
            Kind::ByteFallback => pieces::of_merges(&described.json, size)?,
            Kind::Unigram => likeliest::tokens(&described.json, size)?,
            Kind::WordPiece => words::tokens(described, size, pretokenizer, config)?,
        },
        (None, None) => {
            return Err(
                Refusal::new("there is no tokenizer.json beside the weights").with_hint(
                    "copy the tokenizer's files beside them, or save them with transformers",
                ),
            );
        }
    };
    let settings = settings(checkpoint, "tokenizer_config.json")
        .map_err(|error| Refusal::from(&error))?
        .unwrap_or_default();
    let setting = settings.get("add_prefix_space").and_then(Json::as_bool);
    tokens.adds_space = match (dialect.space_prefix, setting) {
        (SpacePrefix::Never, _) if tokens.model == "llama" => Some(false),
        (SpacePrefix::BySetting, Some(setting)) => Some(setting),
        _ => tokens.adds_space,
    };
    let implied = tokens.implied;
    tokens.set(out);
    let json = described.map_or(Json::Null, |described| described.json);
    let around = special::Around::read(settings, &json, implied);
    special::special_tokens(checkpoint, &around, dialect, &json, size, out)?;
    let template = chat_template(checkpoint).map_err(|error| Refusal::from(&error))?;
    if let Some(template) = template.filter(|template| !template.is_empty()) {
        out.set("tokenizer.chat_template", Value::Text(template));
    }
    if unigram {
        notes.push(
            "tokenizer.model is a Unigram model, and llama.cpp reads it as one that merges pieces, as its converter has \
             it; some text is cut otherwise"
                .into(),
        );
    }
    Ok(notes)
}

/// The `tokenizer.json` beside the weights, if there is one.
fn described(checkpoint: &Checkpoint) -> Result<Option<Described>, Refusal> {
    let Some(bytes) = beside(checkpoint, "tokenizer.json", MAX_JSON)? else {
        return Ok(None);
    };
    let json =
        parse_json(&bytes).map_err(|detail| format!("tokenizer.json is malformed: {detail}"))?;
    Ok(Some(Described { bytes, json }))
}

/// The `tokenizer.model` beside the weights, if there is one.
fn piece_model(checkpoint: &Checkpoint) -> Result<Option<PieceModel>, Refusal> {
    let Some(bytes) = beside(checkpoint, "tokenizer.model", MAX_PIECES)? else {
        return Ok(None);
    };
    let model = PieceModel::parse(&bytes).map_err(|detail| {
        Refusal::new(format!("tokenizer.model is malformed: {detail}"))
            .with_hint("download it again; without it, tokenizer.json is read")
    })?;
    Ok(Some(model))
}

fn beside(checkpoint: &Checkpoint, name: &str, most: u64) -> Result<Option<Vec<u8>>, Refusal> {
    let path = checkpoint.file_beside(name);
    let Some(path) = path.map_err(|error| Refusal::from(&error))? else {
        return Ok(None);
    };
    let bytes = read_bounded(&path, most, "tokenizer, in bytes");
    Ok(Some(bytes.map_err(|error| Refusal::from(&error))?))
}

/// How a tokenizer makes tokens of text.
#[derive(Debug, PartialEq)]
enum Kind {
    /// It merges pairs of bytes.
    ByteLevel,
    /// It merges pairs of characters; what is left becomes bytes.
    ByteFallback,
    /// It takes the tokens that are likeliest together.
    Unigram,
    /// It takes the longest beginning of a word that is a token, again and again.
    WordPiece,
}

fn kind(json: &Json) -> Result<Kind, Refusal> {
    let model = &json["model"];
    let falls_back = model["byte_fallback"].as_bool().unwrap_or(false);
    match model["type"].as_str().unwrap_or("BPE") {
        "BPE" if falls_back => Ok(Kind::ByteFallback),
        "BPE" => Ok(Kind::ByteLevel),
        "Unigram" => Ok(Kind::Unigram),
        "WordPiece" => Ok(Kind::WordPiece),
        other => Err(Refusal::new(format!(
            "tokenizer.json: llama.cpp has no tokenizer of the type `{other}`"
        ))
        .with_hint("it has BPE, Unigram and WordPiece")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_told_by_the_model() {
        for (model, expected) in [
            (json!({"type": "BPE"}), Kind::ByteLevel),
            (json!({"vocab": {}}), Kind::ByteLevel),
            (
                json!({"type": "BPE", "byte_fallback": true}),
                Kind::ByteFallback,
            ),
            (json!({"type": "Unigram"}), Kind::Unigram),
            (json!({"type": "WordPiece"}), Kind::WordPiece),
        ] {
            assert_eq!(kind(&json!({ "model": model })).unwrap(), expected);
        }
        let other = kind(&json!({"model": {"type": "WordLevel"}})).unwrap_err();
        assert!(other.to_string().contains("`WordLevel`"), "{other}");
    }
}
