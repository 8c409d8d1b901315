//! Tokens by id, as every kind of tokenizer gives them.

use super::super::container::{Metadata, Value};
use errors::Refusal;
use serde_json::Value as Json;

/// Kinds of tokens, as llama.cpp numbers them.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The score of tokens that were added to a tokenizer, where tokens have scores.
pub(super) const ADDED_SCORE: f32 = -1000.0;

/// The score of ids without a token.
const UNUSED_SCORE: f32 = -10_000.0;

/// A vocabulary for a file.
#[derive(Debug)]
pub(super) struct Tokens {
    /// What llama.cpp calls this kind of tokenizer.
    pub model: &'static str,
    /// What it calls the way that text is cut first.
    pub pre: String,
    texts: Vec<Option<String>>,
    kinds: Vec<i32>,
    scores: Option<Vec<f32>>,
    /// Pairs that are merged.
    pub merges: Option<Vec<String>>,
    /// Whether a space is put before a text; none: as llama.cpp has it for this kind.
    pub adds_space: Option<bool>,
    /// Special tokens that llama.cpp puts around a text of this kind unless it is told otherwise, and a `tokenizer.json`
    /// does not unless it says so.
    pub implied: &'static [&'static str],
    /// Further keys, behind `tokenizer.ggml.`.
    pub further: Vec<(&'static str, Value)>,
}

impl Tokens {
    /// So many ids without tokens.
    pub(super) fn new(model: &'static str, pre: String, size: usize, scored: bool) -> Self {
        Tokens {
            model,
            pre,
            texts: vec![None; size],
            kinds: vec![UNUSED; size],
            scores: scored.then(|| vec![UNUSED_SCORE; size]),
            merges: None,
            adds_space: None,
            implied: &[],
            further: Vec::new(),
        }
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Puts a token in its place; it must be one of the model's.
    pub(super) fn put(
        &mut self,
        id: Option<u64>,
        text: &str,
        kind: i32,
        score: f32,
    ) -> Result<(), Refusal> {
        let place = id.and_then(|id| usize::try_from(id).ok());
        match place.filter(|&place| place < self.len()) {
            Some(place) => {
                self.put_at(place, text, kind, score);
                Ok(())
            }
            None => {
                let size = self.len();
                Err(Refusal::new(format!(
                    "tokenizer.json: the id of the token `{text}` is not below vocab_size, {size}"
                ))
                .with_hint("`weld check` compares the tokenizer with the embedding"))
            }
        }
    }

    /// Puts a token at a place below [`len`](Self::len).
    pub(super) fn put_at(&mut self, place: usize, text: &str, kind: i32, score: f32) {
        self.texts[place] = Some(text.to_owned());
        self.kinds[place] = kind;
        if let Some(scores) = &mut self.scores {
            scores[place] = score;
        }
    }

    /// Changes all texts but those of special tokens.
    pub(super) fn change_words(&mut self, change: impl Fn(&str) -> String) {
        for (id, (text, kind)) in self.texts.iter_mut().zip(&self.kinds).enumerate() {
            if *kind != CONTROL {
                *text = Some(change(text.as_deref().unwrap_or(&padding(id))));
            }
        }
    }

    /// Puts the tokens that `tokenizer.json` adds to its model.
    pub(super) fn put_added(&mut self, json: &Json) -> Result<(), Refusal> {
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            let special = token["special"].as_bool().unwrap_or(false);
            let (text, kind) = added(text, special);
            self.put(token["id"].as_u64(), &text, kind, ADDED_SCORE)?;
        }
        Ok(())
    }

    /// Sets the keys.
    pub(super) fn set(self, out: &mut Metadata) {
        let texts = self.texts.into_iter().enumerate();
        let texts = texts.map(|(id, text)| text.unwrap_or_else(|| padding(id)));
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        out.set(key("model"), Value::Text(self.model.into()));
        out.set(key("pre"), Value::Text(self.pre));
        out.set(key("tokens"), Value::Texts(texts.collect()));
        out.set(key("token_type"), Value::I32s(self.kinds));
        if let Some(scores) = self.scores {
            out.set(key("scores"), Value::F32s(scores));
        }
        if let Some(merges) = self.merges {
            out.set(key("merges"), Value::Texts(merges));
        }
        if let Some(adds) = self.adds_space {
            out.set(key("add_space_prefix"), Value::Bool(adds));
        }
        for (name, value) in self.further {
            out.set(key(name), value);
        }
    }
}

/// What stands for an id without a token.
fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The text and kind of an added token. llama.cpp looks for spaces where SentencePiece writes U+2581.
pub(super) fn added(text: &str, special: bool) -> (String, i32) {
    match special || looks_special(text) {
        true => (text.to_owned(), CONTROL),
        false => (text.replace('\u{2581}', " "), USER_DEFINED),
    }
}

/// Whether an added token that is not marked as special is one all the same, as llama.cpp's converter has it.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Whether a token stands for a byte: `<0x00>` to `<0xFF>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| {
        digits.len() == 2 && digits.chars().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// The tokens of a model that lists them with their ids.
pub(super) fn by_id(json: &Json) -> Result<impl Iterator<Item = (&String, Option<u64>)>, Refusal> {
    let vocabulary = json["model"]["vocab"].as_object();
    let vocabulary = vocabulary.ok_or("tokenizer.json: `model.vocab` is no object")?;
    Ok(vocabulary.iter().map(|(text, id)| (text, id.as_u64())))
}
