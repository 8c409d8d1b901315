//! Splits text into tokens with a model's `tokenizer.json`.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::ForwardError;
use checkpoint::{Checkpoint, read_bounded, settings};

/// The largest `tokenizer.json` that is read; real ones reach 35 MB.
const MAX_BYTES: u64 = 512 << 20;

/// Splits text into the tokens of a model.
pub struct Tokenizer {
    /// Where it was read from.
    path: PathBuf,
    cutter: tokenizers::Tokenizer,
    /// The text of the token that begins every text, if the model has one.
    beginning: Option<String>,
    /// The token of what the vocabulary has no other for, if there is one.
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint: `tokenizer.json`, and `bos_token` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// If there is no `tokenizer.json`, or it cannot be read.
    pub fn open(checkpoint: &Checkpoint) -> Result<Tokenizer, ForwardError> {
        let folder = &checkpoint.location().path;
        let path = folder.join("tokenizer.json");
        let wrong = |path: &Path, detail: String, hint| ForwardError::Tokenizer {
            path: path.into(),
            detail,
            hint,
        };
        let has = |name: &str| fs::metadata(folder.join(name)).is_ok();
        if checkpoint.is_single_file() || !has("tokenizer.json") {
            let (detail, hint) = match has("tokenizer.model") {
                true => (
                    "there is none, only tokenizer.model, which is not read",
                    "load the tokenizer with transformers and save it: that writes tokenizer.json",
                ),
                false => (
                    "there is none",
                    "copy the tokenizer's files beside the weights",
                ),
            };
            return Err(wrong(&path, detail.into(), hint));
        }
        let bytes = read_bounded(&path, MAX_BYTES, "tokenizer, in bytes")?;
        Self::parse(path, &bytes, beginning(checkpoint)?)
    }

    /// Reads a `tokenizer.json` from its bytes; `beginning` is the text of the token that begins every text, and messages
    /// call the file `path`.
    ///
    /// # Errors
    /// If the file is malformed, or has no such token.
    pub fn parse(
        path: PathBuf,
        bytes: &[u8],
        beginning: Option<String>,
    ) -> Result<Tokenizer, ForwardError> {
        let wrong = |path: &Path, detail: String, hint| ForwardError::Tokenizer {
            path: path.into(),
            detail,
            hint,
        };
        let read = guarded(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut cutter = read.map_err(|detail| {
            wrong(
                &path,
                format!("it is malformed: {detail}"),
                "download it again",
            )
        })?;
        // The file may ask for padding and truncation; states need neither.
        cutter.with_padding(None);
        let untruncated = cutter.with_truncation(None).map(drop);
        untruncated
            .map_err(|error| wrong(&path, shortened(&error.to_string()), "download it again"))?;
        if let Some(token) = &beginning
            && cutter.token_to_id(token).is_none()
        {
            let detail = format!("bos_token `{}` is not in tokenizer.json", shortened(token));
            let hint = "the two files are not of one tokenizer: download them again";
            return Err(wrong(
                &path.with_file_name("tokenizer_config.json"),
                detail,
                hint,
            ));
        }
        let unknown = unknown(bytes, &cutter);
        Ok(Tokenizer {
            path,
            cutter,
            beginning,
            unknown,
        })
    }

    /// The text of the token that begins every text; none if the model has none.
    pub fn beginning(&self) -> Option<&str> {
        self.beginning.as_deref()
    }

    /// The token of what the vocabulary has no other for; none if it has one for everything, or refuses.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The tokens of a text, without those that the tokenizer would add on its own.
    ///
    /// With `add_bos`, the text of the beginning token is put in front, if the model has one. Special tokens written
    /// out in the text become tokens.
    ///
    /// # Errors
    /// If the tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, ForwardError> {
        let before = self.beginning().filter(|_| add_bos).unwrap_or_default();
        let encoded = guarded(|| self.cutter.encode(format!("{before}{text}"), false));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(detail) => Err(ForwardError::Tokenizer {
                path: self.path.clone(),
                detail: format!("`{}` can't be cut: {detail}", shortened(text)),
                hint: "take another text, or a tokenizer with a token for what is unknown",
            }),
        }
    }

    /// The tokens that the file itself puts before a text, as transformers does where it is not told otherwise: mostly the
    /// beginning token, or none.
    ///
    /// # Errors
    /// If the file's rules contradict each other.
    pub fn before_text(&self) -> Result<Vec<u32>, ForwardError> {
        let encoded = guarded(|| self.cutter.encode("", true));
        let encoding = encoded.map_err(|detail| ForwardError::Tokenizer {
            path: self.path.clone(),
            detail,
            hint: "download it again",
        })?;
        // Of what is added to an empty text, that which comes before one is found by a text that is not empty.
        let alone = encoding.get_ids();
        let mark = guarded(|| self.cutter.encode("a", true));
        let Ok(marked) = mark else {
            return Ok(Vec::new());
        };
        let added = marked.get_special_tokens_mask().iter();
        let count = added.take_while(|&&special| special == 1).count();
        Ok(marked.get_ids()[..count.min(alone.len())].to_vec())
    }

    /// The token of that text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.cutter.token_to_id(text)
    }

    /// The tokens whose text begins with this, in the order of the vocabulary.
    ///
    /// # Errors
    /// As of [`decode`](Self::decode).
    pub fn tokens_that_begin_with(&self, start: &str) -> Result<Vec<u32>, ForwardError> {
        let count = self.cutter.get_vocab_size(true) as u32;
        let mut tokens = Vec::new();
        for token in 0..count {
            if self.decode(&[token])?.starts_with(start) {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// If the file's rules contradict each other.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ForwardError> {
        guarded(|| self.cutter.decode(tokens, true)).map_err(|detail| ForwardError::Tokenizer {
            path: self.path.clone(),
            detail,
            hint: "download it again",
        })
    }
}

/// The parts of a `tokenizer.json` that name the token of what is unknown: by its text, or of Unigram by its number.
#[derive(Deserialize)]
struct Named {
    model: NamedModel,
}

#[derive(Deserialize)]
struct NamedModel {
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u32>,
}

fn unknown(bytes: &[u8], cutter: &tokenizers::Tokenizer) -> Option<u32> {
    let Named { model } = serde_json::from_slice(bytes).ok()?;
    let by_text = |text: String| cutter.token_to_id(&text);
    model.unk_token.and_then(by_text).or(model.unk_id)
}

/// Catches panics that a hostile file may cause: the tokenizers crate trusts the tables in it.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(shortened(&error.to_string())),
        Err(_) => Err("its tables contradict each other".into()),
    }
}

/// `bos_token` of `tokenizer_config.json`: a string, or an object with one.
fn beginning(checkpoint: &Checkpoint) -> Result<Option<String>, ForwardError> {
    let found = settings(checkpoint, "tokenizer_config.json")?;
    let token = found.and_then(|mut entries| entries.remove("bos_token"));
    Ok(match token {
        Some(Value::String(text)) => Some(text),
        Some(Value::Object(mut entries)) => match entries.remove("content") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    })
}

/// The beginning of a text, for a message.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}
