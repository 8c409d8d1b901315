//! Tokens by what they stand for, so that those of different tokenizers can be compared.

use std::collections::{HashMap, HashSet};

use checkpoint::{Checkpoint, CheckpointError, Tokenizer, TokenizerKind, byte_letter, settings};
use errors::Refusal;

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// The tokens that have a purpose, by the keys of `tokenizer_config.json`.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
];

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Meaning {
    /// A piece of text, in bytes.
    Text(Vec<u8>),
    /// A byte that has no token in a text: `<0x0A>` of SentencePiece.
    Byte(u8),
    /// A token that is matched as it is written: `<|im_start|>`.
    Written(String),
    /// A purpose, one of [`ROLES`].
    Role(&'static str),
}

impl Meaning {
    /// The text that the token stands for, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Meaning::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Meaning::Written(text) => Some(text),
            Meaning::Byte(_) | Meaning::Role(_) => None,
        }
    }

    /// What stands for the same in a vocabulary that has not this.
    pub(super) fn otherwise(&self) -> Option<Meaning> {
        match self {
            Meaning::Byte(byte) => Some(Meaning::Text(vec![*byte])),
            Meaning::Text(text) => match text[..] {
                [byte] => Some(Meaning::Byte(byte)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A model's tokens.
pub(super) struct Vocabulary {
    /// Each token's id, how it is written, and what it stands for; by id.
    pub(super) tokens: Vec<(u32, String, Meaning)>,
    /// The first token of each meaning.
    pub(super) ids: HashMap<Meaning, u32>,
}

impl Vocabulary {
    /// Reads the `tokenizer.json` of a model.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn read(model: &Checkpoint) -> Result<Self, Refusal> {
        let told = |error: CheckpointError| Refusal::from(&error);
        let tokenizer = match Tokenizer::open(model).map_err(told)? {
            TokenizerKind::Fast(tokenizer) => tokenizer,
            TokenizerKind::Other(_) | TokenizerKind::None => {
                let why = format!("`{}` has no tokenizer.json", model.label());
                let hint = "load its tokenizer with transformers and save it: that writes one";
                return Err(Refusal::new(why).with_hint(hint));
            }
        };
        let config = settings(model, "tokenizer_config.json").map_err(told)?;
        let config = config.unwrap_or_default();
        let written = |key: &str| {
            let value = config.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str())
        };
        let roles: Vec<(&str, &'static str)> = ROLES
            .iter()
            .filter_map(|role| Some((written(role)?, *role)))
            .collect();
        let added: HashSet<u32> = tokenizer.added().iter().map(|token| token.id).collect();
        let all = tokenizer.tokens();
        let bytes = bytes_by_letter();
        let begins = |letter: char| {
            all.iter()
                .filter(|(_, token)| token.starts_with(letter))
                .count()
        };
        let is_byte_level = begins('Ġ') > begins(SPACE);
        let meaning = |id: u32, token: &str| {
            if let Some((_, role)) = roles.iter().find(|(written, _)| *written == token) {
                return Meaning::Role(role);
            }
            if added.contains(&id) {
                return Meaning::Written(token.to_owned());
            }
            let letters = token.chars().map(|letter| bytes.get(&letter).copied());
            match letters.collect::<Option<Vec<u8>>>() {
                Some(text) if is_byte_level => Meaning::Text(text),
                _ => match byte(token) {
                    Some(byte) => Meaning::Byte(byte),
                    None => Meaning::Text(token.replace(SPACE, " ").into_bytes()),
                },
            }
        };
        let tokens = all
            .iter()
            .map(|&(id, token)| (id, token.to_owned(), meaning(id, token)));
        let tokens: Vec<(u32, String, Meaning)> = tokens.collect();
        let mut ids = HashMap::new();
        for (id, _, meaning) in &tokens {
            ids.entry(meaning.clone()).or_insert(*id);
        }
        Ok(Self { tokens, ids })
    }

    /// One more than the largest id.
    pub(super) fn end(&self) -> usize {
        self.tokens.last().map_or(0, |(id, _, _)| *id as usize + 1)
    }
}

/// The byte that SentencePiece writes so: `<0x0A>`.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn bytes_by_letter() -> HashMap<char, u8> {
    (0..=255).map(|byte| (byte_letter(byte), byte)).collect()
}
