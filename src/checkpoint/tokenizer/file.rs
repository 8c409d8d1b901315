//! `tokenizer.json`: reads its tokens and their ids, and writes it with more added tokens.
//!
//! Normaliser, pre-tokeniser, model and post-processor are kept byte for byte: a new token is always an added token,
//! never one of the model's vocabulary.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::bounded::{plain, read_bounded};
use super::super::error::CheckpointError;
use super::super::json::{LFS_POINTER, is_lfs_pointer};
use super::super::limits::{MAX_TOKEN_ID, MAX_TOKENIZER_BYTES};
use super::super::reader::Checkpoint;
use super::super::sidecars::SidecarKind;

/// The kind of tokenizer that a checkpoint has.
pub enum TokenizerKind {
    /// A `tokenizer.json`.
    Fast(Box<Tokenizer>),
    /// Only files of another kind, such as `tokenizer.model`: their names.
    Other(Vec<String>),
    /// Nothing.
    None,
}

/// A `tokenizer.json`.
#[derive(Clone)]
pub struct Tokenizer {
    /// The entries of the file, in order, as written.
    entries: Vec<(String, Box<RawValue>)>,
    ids: HashMap<String, u32>,
    /// Number of entries in the model's vocabulary, without added tokens.
    model_size: u32,
    /// One more than the largest id.
    end: usize,
    /// By id.
    added: Vec<AddedToken>,
    /// The texts of the added tokens.
    added_texts: HashSet<String>,
}

/// A token that is matched in the text before the model splits the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Its flags: `special`, `lstrip`, `normalized` and so on.
    pub flags: Map<String, Value>,
}

impl AddedToken {
    /// A token with the flags that the tokenizers crate gives a plain text.
    pub fn ordinary(content: String) -> Self {
        let flags = json!({
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false,
        });
        Self {
            id: 0,
            content,
            flags: match flags {
                Value::Object(flags) => flags,
                _ => Map::new(),
            },
        }
    }

    /// Its entry in `tokenizer.json`, or, without its id, in `tokenizer_config.json`.
    pub fn entry(&self, with_id: bool) -> Value {
        let mut entry = Map::new();
        if with_id {
            entry.insert("id".into(), self.id.into());
        }
        entry.insert("content".into(), self.content.as_str().into());
        entry.extend(self.flags.clone());
        Value::Object(entry)
    }
}

impl Tokenizer {
    /// The tokenizer of a checkpoint.
    ///
    /// # Errors
    /// If `tokenizer.json` is no file of the folder, too large, malformed, or ambiguous about an id.
    pub fn open(checkpoint: &Checkpoint) -> Result<TokenizerKind, CheckpointError> {
        let kept = checkpoint.sidecars()?;
        let path = checkpoint.file_beside("tokenizer.json")?;
        if let Some(path) = path.filter(|_| kept.iter().any(|file| file.name == "tokenizer.json")) {
            return Ok(TokenizerKind::Fast(Box::new(Self::read(&path)?)));
        }
        let about = ["tokenizer_config.json", "special_tokens_map.json"];
        let names: Vec<String> = kept
            .into_iter()
            .filter(|file| file.kind == SidecarKind::Tokenizer)
            .map(|file| file.name)
            .filter(|name| !about.contains(&name.as_str()))
            .collect();
        Ok(match names.is_empty() {
            true => TokenizerKind::None,
            false => TokenizerKind::Other(names),
        })
    }

    fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = read_bounded(path, MAX_TOKENIZER_BYTES, "tokenizer, in bytes")?;
        Self::parse(&bytes).map_err(|detail| CheckpointError::JsonMalformed {
            path: PathBuf::from(path),
            detail,
        })
    }

    /// Parses a `tokenizer.json`; the error is the reason alone.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if is_lfs_pointer(bytes) {
            return Err(LFS_POINTER.to_owned());
        }
        let Entries(entries) = serde_json::from_slice(bytes).map_err(|error| plain(&error))?;
        let find = |key: &str| {
            entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, raw)| raw.get())
        };
        let in_part = |part: &str, error: serde_json::Error| format!("{part}: {}", plain(&error));
        let Some(model) = find("model") else {
            return Err("no `model`".into());
        };
        let Model { vocab } =
            serde_json::from_str(model).map_err(|error| in_part("model", error))?;
        let listed: Vec<Value> = match find("added_tokens") {
            Some(raw) => serde_json::from_str::<Option<Vec<Value>>>(raw)
                .map_err(|error| in_part("added_tokens", error))?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let mut tokenizer = Self {
            entries: Vec::new(),
            ids: HashMap::with_capacity(vocab.0.len() + listed.len()),
            model_size: u32::try_from(vocab.0.len()).map_err(|_| "too many tokens")?,
            end: 0,
            added: Vec::with_capacity(listed.len()),
            added_texts: HashSet::with_capacity(listed.len()),
        };
        let mut by_id: HashMap<u32, &str> = HashMap::with_capacity(vocab.0.len());
        for (token, id) in &vocab.0 {
            let id = sound_id(*id, token)?;
            if tokenizer.ids.insert(token.clone(), id).is_some() {
                return Err(format!(
                    "the token {:?} stands twice in the vocabulary",
                    plain(token)
                ));
            }
            if let Some(other) = by_id.insert(id, token) {
                return Err(two_tokens(id, other, token));
            }
            tokenizer.end = tokenizer.end.max(id as usize + 1);
        }
        for entry in &listed {
            let (token, listed_id) = added_token(entry)?;
            if tokenizer.is_added(&token.content) {
                return Err(format!(
                    "the added token {:?} stands twice",
                    plain(&token.content)
                ));
            }
            // The tokenizers crate ignores the id here and assigns its own.
            let id = tokenizer.id_for(&token.content);
            if id != listed_id {
                return Err(format!(
                    "the added token {:?} has id {listed_id}, and tokenizers gives it {id}, as ids have a gap",
                    plain(&token.content)
                ));
            }
            tokenizer
                .insert(token)
                .map_err(|other| two_tokens(id, &other, "an added token"))?;
        }
        tokenizer.entries = entries;
        Ok(tokenizer)
    }

    /// The token's id, if it is there.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// One more than the largest id.
    pub fn end(&self) -> usize {
        self.end
    }

    /// All tokens by id.
    pub fn tokens(&self) -> Vec<(u32, &str)> {
        let mut tokens: Vec<(u32, &str)> = self
            .ids
            .iter()
            .map(|(token, id)| (*id, token.as_str()))
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// The added tokens by id.
    pub fn added(&self) -> &[AddedToken] {
        &self.added
    }

    /// Whether the token is an added one.
    pub(crate) fn is_added(&self, token: &str) -> bool {
        self.added_texts.contains(token)
    }

    /// Whether an added token is also in the model's own vocabulary.
    pub fn is_of_model(&self, token: &AddedToken) -> bool {
        token.id < self.model_size
    }

    /// Adds a token and returns its id: that of the same token in the model's vocabulary, or a new one.
    ///
    /// # Errors
    /// The error is the token whose id it would get: the ids of the vocabulary have a gap.
    pub fn add(&mut self, mut token: AddedToken) -> Result<u32, String> {
        token.id = self.id_for(&token.content);
        let id = token.id;
        self.insert(token)?;
        Ok(id)
    }

    /// Drops the tokens whose id is not below `rows` and returns them by id: all of them, or only added tokens that the
    /// model's own vocabulary lacks, without which the file stays sound.
    pub fn drop_beyond(&mut self, rows: usize, all: bool) -> Vec<String> {
        let own = self.model_size;
        let is_dropped = |id: u32| id as usize >= rows && (all || id >= own);
        let mut dropped: Vec<(u32, String)> = match all {
            true => {
                let ids = self.ids.iter().filter(|(_, id)| is_dropped(**id));
                ids.map(|(token, id)| (*id, token.clone())).collect()
            }
            false => {
                let added = self.added.iter().filter(|token| is_dropped(token.id));
                added
                    .map(|token| (token.id, token.content.clone()))
                    .collect()
            }
        };
        dropped.sort_unstable();
        for (_, token) in &dropped {
            self.ids.remove(token);
            self.added_texts.remove(token);
        }
        self.added.retain(|token| !is_dropped(token.id));
        let last = self.ids.values().max();
        self.end = last.map_or(0, |last| *last as usize + 1);
        dropped.into_iter().map(|(_, token)| token).collect()
    }

    /// The id that the tokenizers crate gives to an added token.
    fn id_for(&self, token: &str) -> u32 {
        if let Some(id) = self.id(token) {
            return id;
        }
        match self.added.last() {
            Some(last) if last.id >= self.model_size => last.id.saturating_add(1),
            _ => self.model_size,
        }
    }

    fn insert(&mut self, token: AddedToken) -> Result<(), String> {
        let id = token.id;
        let at = self.added.partition_point(|other| other.id < id);
        if !self.ids.contains_key(&token.content) {
            let beyond = id >= self.model_size && self.added.len() == at;
            // Only the model's own ids may exceed its size; they are searched only if that is possible.
            if (!beyond || self.has_gap())
                && let Some((other, _)) = self.ids.iter().find(|(_, other)| **other == id)
            {
                return Err(other.clone());
            }
            self.ids.insert(token.content.clone(), id);
            self.end = self.end.max(id as usize + 1);
        }
        self.added_texts.insert(token.content.clone());
        self.added.insert(at, token);
        Ok(())
    }

    fn has_gap(&self) -> bool {
        self.end() > self.ids.len()
    }

    /// Drops everything that only [`to_json`](Self::to_json) needs.
    pub fn keep_tokens_only(&mut self) {
        self.entries = Vec::new();
    }

    /// The text of the file with the present added tokens.
    pub fn to_json(&self) -> String {
        let added: Vec<Value> = self.added.iter().map(|token| token.entry(true)).collect();
        let added = Value::Array(added);
        let has_list = self.entries.iter().any(|(key, _)| key == "added_tokens");
        let mut lines: Vec<String> = self
            .entries
            .iter()
            .map(|(key, raw)| {
                let key_text = Value::from(key.as_str());
                match key.as_str() {
                    "added_tokens" => format!("  {key_text}: {added}"),
                    _ => format!("  {key_text}: {}", raw.get()),
                }
            })
            .collect();
        if !has_list {
            lines.insert(0, format!("  \"added_tokens\": {added}"));
        }
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }
}

fn sound_id(id: u64, token: &str) -> Result<u32, String> {
    match u32::try_from(id) {
        Ok(id) if id <= MAX_TOKEN_ID => Ok(id),
        _ => Err(format!(
            "the token {:?} has id {id}, expected at most {MAX_TOKEN_ID}",
            plain(&token)
        )),
    }
}

fn two_tokens(id: u32, one: &str, other: &str) -> String {
    format!(
        "id {id} is {:?} and {:?} at once",
        plain(&one),
        plain(&other)
    )
}

/// Parses an entry of `added_tokens`, and the id in it.
fn added_token(entry: &Value) -> Result<(AddedToken, u32), String> {
    let Some(entry) = entry.as_object() else {
        return Err("an entry of `added_tokens` is no object".into());
    };
    let content = match entry.get("content").and_then(Value::as_str) {
        Some("") | None => return Err("an added token has no `content`".into()),
        Some(content) => content,
    };
    let Some(id) = entry.get("id").and_then(Value::as_u64) else {
        return Err(format!("the added token {:?} has no `id`", plain(&content)));
    };
    let id = sound_id(id, content)?;
    let mut flags = entry.clone();
    for key in ["id", "content"] {
        flags.shift_remove(key);
    }
    let token = AddedToken {
        id,
        content: content.to_owned(),
        flags,
    };
    Ok((token, id))
}

/// The entries of an object, in order, each key once.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if entries.iter().any(|(other, _)| *other == key) {
                        return Err(A::Error::custom(format!("the key {key:?} stands twice")));
                    }
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

#[derive(Deserialize)]
struct Model {
    vocab: Tokens,
}

/// A vocabulary: ids by token, or Unigram's list of tokens and scores.
struct Tokens(Vec<(String, u64)>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ids by token, or a list of tokens and scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry::<String, u64>()? {
                    tokens.push(entry);
                }
                Ok(Tokens(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some((token, _)) = seq.next_element::<(String, IgnoredAny)>()? {
                    tokens.push((token, tokens.len() as u64));
                }
                Ok(Tokens(tokens))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Tokenizer, String> {
        Tokenizer::parse(text.as_bytes())
    }

    fn special(content: &str, id: u32) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": false,
               "normalized": false, "special": true})
    }

    fn ids(tokenizer: &Tokenizer) -> Vec<(u32, String)> {
        let tokens = tokenizer.tokens().into_iter();
        tokens.map(|(id, token)| (id, token.to_owned())).collect()
    }

    #[test]
    fn tokens_are_added_as_tokenizers_adds_them_and_nothing_else_changes() {
        let text = r#"{ "version":"1.0", "normalizer": {"type" : "NFC"},
            "added_tokens": [{"id":0,"content":"a","special":true},{"id": 2, "content":"<x>", "special":true, "lstrip":true}],
            "model": {"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a" , "b"]]} }"#;
        let mut tokenizer = parse(text).unwrap();
        assert_eq!((tokenizer.len(), tokenizer.end()), (3, 3));
        assert_eq!(tokenizer.add(AddedToken::ordinary("b".into())), Ok(1));
        assert_eq!(tokenizer.add(AddedToken::ordinary("ü".into())), Ok(3));
        let written = tokenizer.to_json();
        for kept in [
            r#""normalizer": {"type" : "NFC"}"#,
            r#""model": {"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a" , "b"]]}"#,
            r#"{"id":2,"content":"<x>","special":true,"lstrip":true}"#,
        ] {
            assert!(written.contains(kept), "{written}");
        }
        let again = parse(&written).unwrap();
        assert_eq!(ids(&again), ids(&tokenizer));
        assert_eq!(again.added(), tokenizer.added());
        let order: Vec<u32> = again.added().iter().map(|token| token.id).collect();
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[test]
    fn tokens_beyond_an_embedding_are_dropped() {
        let text = json!({
            "model": {"vocab": {"a": 0, "b": 1, "c": 2}},
            "added_tokens": [special("<x>", 3), special("<y>", 4)],
        });
        let tokenizer = parse(&text.to_string()).unwrap();
        let mut file = tokenizer.clone();
        assert_eq!(file.drop_beyond(2, false), ["<x>", "<y>"]);
        assert_eq!((file.len(), file.end()), (3, 3));
        assert!(!file.is_added("<x>"));
        assert_eq!(ids(&parse(&file.to_json()).unwrap()), ids(&file));
        assert_eq!(file.add(AddedToken::ordinary("<z>".into())), Ok(3));
        let mut tokens = tokenizer.clone();
        assert_eq!(tokens.drop_beyond(2, true), ["c", "<x>", "<y>"]);
        assert_eq!((tokens.len(), tokens.end()), (2, 2));
        let mut whole = tokenizer.clone();
        assert!(whole.drop_beyond(5, true).is_empty());
        assert_eq!(ids(&whole), ids(&tokenizer));
    }

    #[test]
    fn every_kind_of_vocabulary_is_read() {
        for (model, expected) in [
            (r#"{"type":"WordPiece","vocab":{"[UNK]":0,"w":1}}"#, 2),
            (
                r#"{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["w",-1.5],["v",-2]]}"#,
                3,
            ),
            (r#"{"type":"BPE","vocab":{},"merges":[]}"#, 0),
        ] {
            let tokenizer = parse(&format!(r#"{{"model": {model}}}"#)).unwrap();
            assert_eq!(tokenizer.len(), expected);
            assert_eq!(tokenizer.is_empty(), expected == 0);
            let mut more = tokenizer.clone();
            assert_eq!(
                more.add(AddedToken::ordinary("<x>".into())),
                Ok(expected as u32)
            );
            assert_eq!(parse(&more.to_json()).unwrap().len(), expected + 1);
        }
    }

    #[test]
    fn hostile_tokenizers_are_errors() {
        let vocab = |text: &str| format!(r#"{{"model": {{"vocab": {text}}}}}"#);
        let added =
            |list: Value| json!({"model": {"vocab": {"a": 0}}, "added_tokens": list}).to_string();
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let cases = [
            ("[]".into(), "an object"),
            ("{}".into(), "no `model`"),
            (r#"{"model": 3}"#.into(), "model: "),
            (r#"{"model": {}}"#.into(), "missing field `vocab`"),
            (
                r#"{"model": {"vocab": {}}, "model": {"vocab": {}}}"#.into(),
                "stands twice",
            ),
            (vocab("3"), "expected ids by token"),
            (vocab(r#"{"a": -1}"#), "invalid value"),
            (vocab(r#"{"a": 1.5}"#), "invalid type"),
            (vocab(r#"{"a": 18446744073709551615}"#), "expected at most"),
            (vocab(r#"{"a": 99999999999999999999999}"#), "model: "),
            (
                vocab(r#"{"a": 0, "b": 0}"#),
                "id 0 is \"a\" and \"b\" at once",
            ),
            (
                vocab(r#"{"a": 0, "a": 1}"#),
                "stands twice in the vocabulary",
            ),
            (vocab(r#"{3: 0}"#), "key must be a string"),
            (vocab(r#"{"\ud800": 0}"#), "model: "),
            (vocab(r#"[["a", 0], ["a", 0]]"#), "stands twice"),
            (vocab(r#"[[3, 0]]"#), "invalid type"),
            (vocab(&deep), "model: "),
            (deep.clone(), "an object"),
            (added(json!([3])), "is no object"),
            (added(json!([{"id": 1}])), "no `content`"),
            (added(json!([{"id": 1, "content": ""}])), "no `content`"),
            (added(json!([{"content": "x"}])), "no `id`"),
            (added(json!([{"content": "x", "id": -1}])), "no `id`"),
            (
                added(json!([special("x", 5)])),
                "has id 5, and tokenizers gives it 1",
            ),
            (
                added(json!([special("x", 1), special("x", 1)])),
                "stands twice",
            ),
            (
                added(json!([special("a", 1)])),
                "has id 1, and tokenizers gives it 0",
            ),
            (added(json!("x")), "added_tokens: "),
        ];
        for (text, expected) in cases {
            let found = parse(&text).err().unwrap_or_default();
            assert!(found.contains(expected), "{expected:?} of {found:?}");
            assert!(found.chars().count() < 500);
        }
        // An id beyond the vocabulary's size leaves no room for new tokens.
        let mut gap = parse(&vocab(r#"{"a": 0, "b": 2}"#)).unwrap();
        assert_eq!(gap.add(AddedToken::ordinary("x".into())), Err("b".into()));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            vocab in prop::collection::hash_set("\\PC{1,4}", 0..20),
            added in prop::collection::vec(("\\PC{1,6}", any::<bool>()), 0..12),
        ) {
            let vocab: Map<String, Value> =
                vocab.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
            let text = json!({"model": {"vocab": vocab}}).to_string();
            let mut tokenizer = parse(&text).unwrap();
            for (token, is_special) in &added {
                let before = tokenizer.id(token);
                if tokenizer.is_added(token) {
                    continue;
                }
                let mut new = AddedToken::ordinary(token.clone());
                new.flags.insert("special".into(), (*is_special).into());
                let end = tokenizer.end() as u32;
                prop_assert_eq!(tokenizer.add(new).unwrap(), before.unwrap_or(end));
            }
            let again = parse(&tokenizer.to_json()).unwrap();
            prop_assert_eq!(ids(&again), ids(&tokenizer));
            prop_assert_eq!(again.added(), tokenizer.added());
        }
    }
}
