//! Mistral's vocabularies, `tekken.json`: special tokens first, then the bytes of each token in base64.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use serde::Deserialize;

use super::tiktoken::letters;

#[derive(Deserialize)]
struct Tekken {
    config: Config,
    vocab: Vec<Token>,
    /// Older files leave them to the code that reads them.
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    /// How many ids there are. The file may have more tokens, which have none.
    default_vocab_size: u64,
    /// How many of the first ids are of special tokens.
    default_num_special_tokens: u64,
}

#[derive(Deserialize)]
struct Token {
    rank: u64,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: u64,
    token_str: String,
}

/// Tokens by id, their bytes written as `tokenizer.json` writes those of byte-level BPE. The error is the reason alone.
pub(super) fn tokens(bytes: &[u8]) -> Result<BTreeMap<u64, String>, String> {
    let file: Tekken =
        serde_json::from_slice(bytes).map_err(|error| super::super::bounded::plain(&error))?;
    let Config {
        default_vocab_size: end,
        default_num_special_tokens: first,
    } = file.config;
    let mut tokens = BTreeMap::new();
    for Token { rank, token_bytes } in file.vocab {
        let Some(id) = rank.checked_add(first).filter(|id| *id < end) else {
            continue;
        };
        let bytes = Base64::decode_vec(&token_bytes)
            .map_err(|_| format!("the token of rank {rank}: expected its bytes in base64"))?;
        if tokens.insert(id, letters(bytes)).is_some() {
            return Err(format!("the rank {rank} is given twice"));
        }
    }
    for Special { rank, token_str } in file.special_tokens.into_iter().flatten() {
        if rank >= first {
            return Err(format!(
                "the special token of rank {rank}: expected a rank below {first}, the number of special tokens"
            ));
        }
        tokens.insert(rank, token_str);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(vocab: &str, special: &str) -> Vec<u8> {
        let config =
            r#"{"default_vocab_size": 5, "default_num_special_tokens": 2, "version": "v3"}"#;
        format!(r#"{{"config": {config}, "vocab": [{vocab}]{special}}}"#).into_bytes()
    }

    #[test]
    fn ids_begin_with_the_special_tokens() {
        let vocab = r#"{"rank": 0, "token_bytes": "IQ==", "token_str": "!"}, {"rank": 1, "token_bytes": "IHRoZQ=="},
            {"rank": 2, "token_bytes": "5Q=="}, {"rank": 3, "token_bytes": "Ig=="}"#;
        let special = r#", "special_tokens": [{"rank": 0, "token_str": "<unk>", "is_control": true},
            {"rank": 1, "token_str": "<s>"}]"#;
        // The token of rank 3 is beyond the size of the vocabulary.
        let ordinary = [(2, "!"), (3, "Ġthe"), (4, "å")].map(|(id, token)| (id, token.to_owned()));
        assert_eq!(
            tokens(&file(vocab, "")),
            Ok(BTreeMap::from(ordinary.clone()))
        );
        let mut all = BTreeMap::from(ordinary);
        all.extend([(0, "<unk>".to_owned()), (1, "<s>".to_owned())]);
        assert_eq!(tokens(&file(vocab, special)), Ok(all));
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (vocab, special, reason) in [
            (
                r#"{"rank": 0, "token_bytes": "?"}"#,
                "",
                "the token of rank 0",
            ),
            (
                r#"{"rank": 1, "token_bytes": "IQ=="}, {"rank": 1, "token_bytes": "Ig=="}"#,
                "",
                "the rank 1 is given twice",
            ),
            (
                "",
                r#", "special_tokens": [{"rank": 2, "token_str": "<s>"}]"#,
                "the special token of rank 2",
            ),
            (
                r#"{"rank": -1, "token_bytes": "IQ=="}"#,
                "",
                "invalid value",
            ),
        ] {
            let error = tokens(&file(vocab, special)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let ends = file(
            r#"{"rank": 18446744073709551615, "token_bytes": "IQ=="}"#,
            "",
        );
        assert_eq!(tokens(&ends), Ok(BTreeMap::new()));
    }
}
