//! Byte-level BPE: tokens are written as bytes, and pairs are merged in their order.

use std::panic::{self, AssertUnwindSafe};

use super::Described;
use super::tokens::{NORMAL, Tokens, by_id};
use errors::Refusal;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

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

/// The tokens of a `tokenizer.json`.
pub(super) fn tokens(
    described: &Described,
    size: usize,
    pretokenizer: Option<&str>,
) -> Result<Tokens, Refusal> {
    let name = match pretokenizer {
        Some(name) => name.to_owned(),
        None => recognise(&described.bytes)?,
    };
    let json = &described.json;
    let mut tokens = Tokens::new("gpt2", name, size, false);
    for (text, id) in by_id(json)? {
        tokens.put(id, text, NORMAL, 0.0)?;
    }
    tokens.put_added(json)?;
    tokens.merges = Some(merges(json)?);
    Ok(tokens)
}

/// The name of the way that text is cut before merging, by the tokens of a probe.
pub(super) fn recognise(bytes: &[u8]) -> Result<String, Refusal> {
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

/// The merges, each two parts with a space between; a space within a part is written as byte-level BPE writes it.
fn merges(json: &Json) -> Result<Vec<String>, Refusal> {
    let pairs = pairs(json)?.into_iter();
    let written = pairs.map(|pair| match pair {
        Pair::Written(merge) => merge.to_owned(),
        Pair::Parts(parts) => {
            let [left, right] = parts.map(|part| part.replace(' ', "\u{120}"));
            format!("{left} {right}")
        }
    });
    Ok(written.collect())
}

/// A pair of tokens that are merged.
pub(super) enum Pair<'j> {
    /// With a space between them.
    Written(&'j str),
    /// Each by itself.
    Parts([&'j str; 2]),
}

/// The pairs that a model merges, in their order.
pub(super) fn pairs(json: &Json) -> Result<Vec<Pair<'_>>, Refusal> {
    let merges = json["model"]["merges"].as_array();
    let merges = merges.ok_or("tokenizer.json: `model.merges` is no list")?;
    let pairs = merges.iter().map(|merge| match merge {
        Json::String(merge) => Some(Pair::Written(merge)),
        Json::Array(parts) => match &parts[..] {
            [Json::String(left), Json::String(right)] => Some(Pair::Parts([left, right])),
            _ => None,
        },
        _ => None,
    });
    let pairs: Option<Vec<Pair<'_>>> = pairs.collect();
    pairs.ok_or_else(|| "tokenizer.json: a merge is not two texts".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::{Metadata, Value};

    #[test]
    fn tokens_have_kinds_and_gaps_are_padded() {
        let json = json!({
            "model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", " b"]]},
            "added_tokens": [
                {"id": 2, "content": "<|end|>", "special": false},
                {"id": 4, "content": "\u{2581}x", "special": false},
            ],
        });
        let described = Described {
            bytes: Vec::new(),
            json,
        };
        let read = |size| tokens(&described, size, Some("qwen2"));
        let mut written = Metadata::default();
        read(6).unwrap().set(&mut written);
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        for (key, value) in [
            (
                "tokens",
                Value::Texts(texts(&["a", "b", "<|end|>", "[PAD3]", " x", "[PAD5]"])),
            ),
            ("token_type", Value::I32s(vec![1, 1, 3, 5, 4, 5])),
            ("merges", Value::Texts(texts(&["a \u{120}b"]))),
            ("pre", Value::Text("qwen2".into())),
        ] {
            assert_eq!(written.get(&format!("tokenizer.ggml.{key}")), Some(&value));
        }
        let message = read(4).unwrap_err().to_string();
        assert!(message.contains("not below vocab_size, 4"), "{message}");
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
