//! The tokenizer as llama.cpp reads it: tokens with their kinds, merges, special ids, chat template.

use std::panic::{self, AssertUnwindSafe};

use super::container::{Metadata, Value};
use super::special::special_tokens;
use checkpoint::{Checkpoint, chat_template, parse_json, read_bounded};
use errors::Refusal;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// The largest `tokenizer.json` that is read; real ones reach 35 MB.
const MAX_BYTES: u64 = 512 << 20;

/// Kinds of tokens, as llama.cpp numbers them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// How llama.cpp names the ways of cutting text before byte pairs are merged, each with digests of what
/// [`PROBE`] becomes. Source: `get_vocab_base_pre` of its converter, v0.5.0.
const PRETOKENIZERS: &str = include_str!("pretokenizers.tsv");

/// A text that is cut differently by each of them: the one whose tokens the digests are of.
const PROBE: &str = include_str!("probe.txt");

/// The names that `pretokenizers.tsv` knows.
pub fn pretokenizers() -> Vec<&'static str> {
    let mut names: Vec<_> = known().map(|(name, _)| name).collect();
    names.dedup();
    names
}

fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRETOKENIZERS
        .lines()
        .filter_map(|line| line.split_once('\t'))
}

/// Sets the keys of the tokenizer, with so many tokens.
pub(super) fn vocabulary(
    checkpoint: &Checkpoint,
    size: usize,
    pretokenizer: Option<&str>,
    out: &mut Metadata,
) -> Result<(), Refusal> {
    if has(checkpoint, "tokenizer.model")? {
        return Err(
            Refusal::new("tokenizer.model: SentencePiece models are not exported yet")
                .with_hint("llama.cpp's convert_hf_to_gguf.py reads it"),
        );
    }
    let Some(path) = checkpoint
        .file_beside("tokenizer.json")
        .map_err(|error| Refusal::from(&error))?
    else {
        return Err(
            Refusal::new("there is no tokenizer.json beside the weights").with_hint(
                "copy the tokenizer's files beside them, or save them with transformers",
            ),
        );
    };
    let bytes = read_bounded(&path, MAX_BYTES, "tokenizer, in bytes")
        .map_err(|error| Refusal::from(&error))?;
    let json =
        parse_json(&bytes).map_err(|detail| format!("tokenizer.json is malformed: {detail}"))?;
    byte_level(&json)?;
    let name = match pretokenizer {
        Some(name) => name.to_owned(),
        None => recognise(&bytes)?,
    };
    let (tokens, kinds) = tokens(&json, size)?;
    out.set("tokenizer.ggml.model", Value::Text("gpt2".into()));
    out.set("tokenizer.ggml.pre", Value::Text(name));
    out.set("tokenizer.ggml.tokens", Value::Texts(tokens));
    out.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    out.set("tokenizer.ggml.merges", Value::Texts(merges(&json)?));
    special_tokens(checkpoint, &json, size, out)?;
    let template = chat_template(checkpoint).map_err(|error| Refusal::from(&error))?;
    if let Some(template) = template.filter(|template| !template.is_empty()) {
        out.set("tokenizer.chat_template", Value::Text(template));
    }
    Ok(())
}

fn has(checkpoint: &Checkpoint, name: &str) -> Result<bool, Refusal> {
    let found = checkpoint
        .file_beside(name)
        .map_err(|error| Refusal::from(&error))?;
    Ok(found.is_some())
}

/// Refuses a tokenizer that does not merge pairs of bytes.
fn byte_level(json: &Json) -> Result<(), Refusal> {
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    let falls_back = model["byte_fallback"].as_bool().unwrap_or(false);
    if kind == "BPE" && !falls_back {
        return Ok(());
    }
    let found = match kind {
        "BPE" => "BPE with byte_fallback",
        other => other,
    };
    Err(Refusal::new(format!(
        "tokenizer.json: expected byte-level BPE, found {found}"
    ))
    .with_hint("llama.cpp's convert_hf_to_gguf.py may read it"))
}

/// The name of the way that text is cut before merging, by the tokens of a probe.
fn recognise(bytes: &[u8]) -> Result<String, Refusal> {
    // The crate trusts the tables of a file, so a hostile one may make it panic.
    let encode = || {
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
        tokenizer.encode(PROBE, true)
    };
    let encoding = match panic::catch_unwind(AssertUnwindSafe(encode)) {
        Ok(Ok(encoding)) => encoding,
        Ok(Err(error)) => return Err(format!("tokenizer.json is malformed: {error}").into()),
        Err(_) => {
            return Err("tokenizer.json is malformed: its tables contradict each other".into());
        }
    };
    let digest = Sha256::digest(format!("{:?}", encoding.get_ids()));
    let digest = base16ct::lower::encode_string(&digest);
    let found = known().find(|(_, known)| *known == digest);
    found.map(|(name, _)| name.to_owned()).ok_or_else(|| {
        Refusal::new("tokenizer.json: llama.cpp's name for this pre-tokenizer is not known")
            .with_hint("say it with --pre-tokenizer, as for the model that the tokenizer comes from: `llama-bpe`, `qwen2`, ...")
    })
}

/// All tokens by id, and their kinds.
fn tokens(json: &Json, size: usize) -> Result<(Vec<String>, Vec<i32>), Refusal> {
    let mut tokens: Vec<Option<String>> = vec![None; size];
    let mut kinds = vec![UNUSED; size];
    let mut put = |text: &str, id: Option<u64>, kind: i32| -> Result<(), Refusal> {
        let place = id
            .and_then(|id| usize::try_from(id).ok())
            .filter(|&id| id < size);
        let Some(place) = place else {
            return Err(Refusal::new(format!(
                "tokenizer.json: the id of the token `{text}` is not below vocab_size, {size}"
            ))
            .with_hint("`weld check` compares the tokenizer with the embedding"));
        };
        tokens[place] = Some(text.to_owned());
        kinds[place] = kind;
        Ok(())
    };
    let vocabulary = json["model"]["vocab"].as_object();
    let vocabulary = vocabulary.ok_or("tokenizer.json: `model.vocab` is no object")?;
    for (text, id) in vocabulary {
        put(text, id.as_u64(), NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        let special = token["special"].as_bool().unwrap_or(false) || looks_special(text);
        match special {
            true => put(text, token["id"].as_u64(), CONTROL)?,
            // llama.cpp looks for spaces where SentencePiece writes U+2581.
            false => put(
                &text.replace('\u{2581}', " "),
                token["id"].as_u64(),
                USER_DEFINED,
            )?,
        }
    }
    let tokens = tokens.into_iter().enumerate();
    let tokens = tokens.map(|(id, token)| token.unwrap_or_else(|| format!("[PAD{id}]")));
    Ok((tokens.collect(), kinds))
}

/// Whether an added token that is not marked as special is one all the same, as llama.cpp's converter has it.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// The merges, each two parts with a space between; a space within a part is written as byte-level BPE writes it.
fn merges(json: &Json) -> Result<Vec<String>, Refusal> {
    let merges = json["model"]["merges"].as_array();
    let merges = merges.ok_or("tokenizer.json: `model.merges` is no list")?;
    let written = merges.iter().map(|merge| match merge {
        Json::String(merge) => Some(merge.clone()),
        Json::Array(parts) => match &parts[..] {
            [Json::String(left), Json::String(right)] => {
                let [left, right] = [left, right].map(|part| part.replace(' ', "\u{120}"));
                Some(format!("{left} {right}"))
            }
            _ => None,
        },
        _ => None,
    });
    let written: Option<Vec<String>> = written.collect();
    written.ok_or_else(|| "tokenizer.json: a merge is not two texts".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_have_kinds_and_gaps_are_padded() {
        let json = json!({
            "model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", " b"]]},
            "added_tokens": [
                {"id": 2, "content": "<|end|>", "special": false},
                {"id": 4, "content": "\u{2581}x", "special": false},
            ],
        });
        let (texts, kinds) = tokens(&json, 6).unwrap();
        assert_eq!(texts, ["a", "b", "<|end|>", "[PAD3]", " x", "[PAD5]"]);
        assert_eq!(kinds, [1, 1, 3, 5, 4, 5]);
        assert_eq!(merges(&json).unwrap(), ["a \u{120}b"]);
        assert!(
            tokens(&json, 4)
                .unwrap_err()
                .to_string()
                .contains("not below vocab_size, 4")
        );
    }

    #[test]
    fn other_tokenizers_are_refused_by_name() {
        for (model, named) in [
            (json!({"type": "Unigram"}), "Unigram"),
            (json!({"type": "WordPiece"}), "WordPiece"),
            (
                json!({"type": "BPE", "byte_fallback": true}),
                "byte_fallback",
            ),
        ] {
            let message = byte_level(&json!({ "model": model }))
                .unwrap_err()
                .to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn the_table_of_pretokenizers_is_whole() {
        for (name, digest) in known() {
            assert!(!name.is_empty() && digest.len() == 64, "{name}");
        }
        assert_eq!(known().count(), PRETOKENIZERS.lines().count());
        assert!(pretokenizers().contains(&"llama-bpe"));
    }
}
