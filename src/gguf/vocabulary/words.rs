//! WordPiece: a word becomes the longest token that it begins with, and so on with what is left of it.

use super::super::container::Value;
use super::Described;
use super::byte_pairs::recognise;
use super::tokens::{NORMAL, Tokens, by_id};
use errors::Refusal;
use serde_json::Value as Json;

/// The tokens of a `tokenizer.json`. llama.cpp marks the beginning of a word, where WordPiece marks what goes on.
pub(super) fn tokens(
    described: &Described,
    size: usize,
    pretokenizer: Option<&str>,
    config: Option<&Json>,
) -> Result<Tokens, Refusal> {
    let json = &described.json;
    let pre = match pretokenizer {
        Some(name) => name.to_owned(),
        // llama.cpp does not look at it for this kind.
        None => recognise(&described.bytes).unwrap_or_else(|_| "default".into()),
    };
    let mut tokens = Tokens::new("bert", pre, size, false);
    for (text, id) in by_id(json)? {
        tokens.put(id, text, NORMAL, 0.0)?;
    }
    tokens.put_added(json)?;
    tokens.implied = &["bos", "sep"];
    let goes_on = json["model"]["continuing_subword_prefix"].as_str();
    let goes_on = goes_on.unwrap_or("##");
    tokens.change_words(|text| match text.strip_prefix(goes_on) {
        Some(rest) => rest.to_owned(),
        None => format!("\u{2581}{text}"),
    });
    let types = config.and_then(|config| config["type_vocab_size"].as_u64());
    let types = types.and_then(|types| u32::try_from(types).ok());
    let further = ("token_type_count", Value::U32(types.unwrap_or(1)));
    tokens.further.push(further);
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::Metadata;

    #[test]
    fn words_are_marked_where_they_begin() {
        let json = json!({
            "model": {"type": "WordPiece", "vocab": {"[CLS]": 0, "word": 1, "##s": 2}},
            "added_tokens": [{"id": 0, "content": "[CLS]", "special": true}],
        });
        let described = Described {
            bytes: json.to_string().into_bytes(),
            json,
        };
        let mut written = Metadata::default();
        let config = json!({"type_vocab_size": 2});
        let read = tokens(&described, 4, None, Some(&config)).unwrap();
        read.set(&mut written);
        let texts = ["[CLS]", "\u{2581}word", "s", "\u{2581}[PAD3]"].map(str::to_owned);
        for (key, value) in [
            ("model", Value::Text("bert".into())),
            ("pre", Value::Text("default".into())),
            ("tokens", Value::Texts(texts.into())),
            ("token_type", Value::I32s(vec![3, 1, 1, 5])),
            ("token_type_count", Value::U32(2)),
        ] {
            let key = format!("tokenizer.ggml.{key}");
            assert_eq!(written.get(&key), Some(&value), "{key}");
        }
    }
}
