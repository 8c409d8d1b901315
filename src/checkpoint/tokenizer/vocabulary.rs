//! Whether the token ids of two checkpoints mean the same; averaging the rows of different tokens makes no sense.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::super::bounded::{plain, read_bounded};
use super::super::error::CheckpointError;
use super::super::folder::file_names;
use super::super::home::file_in;
use super::super::json::{LFS_POINTER, is_lfs_pointer};
use super::super::limits::MAX_TOKENIZER_BYTES;
use super::super::reader::Checkpoint;
use super::sentencepiece::{PieceModel, is_sentencepiece};
use super::tekken;
use super::tiktoken::{self, is_tiktoken};

/// The result of comparing two vocabularies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VocabularyComparison {
    /// Every id means the same in both.
    Same,
    /// At least one of the two has no readable vocabulary.
    Unknown,
    /// The ids that both define mean the same.
    Compatible {
        /// Ids that only the first defines.
        only_a: usize,
        /// Ids that only the second defines.
        only_b: usize,
    },
    /// Some ids mean different tokens.
    Conflict {
        /// The number of such ids.
        differing: usize,
        /// The first of them: id, token of the first, token of the second.
        examples: Vec<(u64, String, String)>,
    },
}

/// The most differing ids that are listed.
const EXAMPLES: usize = 5;

/// Bytes of each file that are compared at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Tokens by id.
type Vocabulary = BTreeMap<u64, String>;

/// Compares the meaning of two checkpoints' token ids.
///
/// # Errors
/// A file of a vocabulary cannot be read, is too large, or is not a vocabulary.
pub fn compare_vocabularies(
    a: &Checkpoint,
    b: &Checkpoint,
) -> Result<VocabularyComparison, CheckpointError> {
    if a.is_single_file() || b.is_single_file() {
        return Ok(VocabularyComparison::Unknown);
    }
    if a.tokens().is_some() || b.tokens().is_some() {
        let (Some(a), Some(b)) = (plain_vocabulary(a)?, plain_vocabulary(b)?) else {
            return Ok(VocabularyComparison::Unknown);
        };
        return Ok(compare(&a, &b));
    }
    let (a, b) = (a.vocabulary_folder(), b.vocabulary_folder());
    let files = (file_in(a, "tokenizer.json")?, file_in(b, "tokenizer.json")?);
    if let (Some(a), Some(b)) = files
        && same_bytes(&a, &b)?
    {
        return Ok(VocabularyComparison::Same);
    }
    let (Some(a), Some(b)) = (read_vocabulary(a)?, read_vocabulary(b)?) else {
        return Ok(VocabularyComparison::Unknown);
    };
    let (mut ids_a, mut ids_b) = (a.ids, b.ids);
    match (a.is_pieces, b.is_pieces) {
        (true, false) => ids_a = as_in(ids_a, &mut ids_b),
        (false, true) => ids_b = as_in(ids_b, &mut ids_a),
        _ => {}
    }
    Ok(compare(&ids_a, &ids_b))
}

/// Compares what a file of weights says that its token ids mean with the vocabulary of a folder; `None` if that has none.
///
/// # Errors
/// Those of [`compare_vocabularies`].
pub(in super::super) fn compare_with_folder(
    tokens: &Vocabulary,
    folder: &Path,
) -> Result<Option<VocabularyComparison>, CheckpointError> {
    let beside = read_vocabulary(folder)?;
    Ok(beside.map(|beside| compare(&with_spaces(tokens.clone()), &with_spaces(beside.ids))))
}

/// The vocabulary of a model as a GGUF file has it, which writes tokens of spaces as spaces.
fn plain_vocabulary(model: &Checkpoint) -> Result<Option<Vocabulary>, CheckpointError> {
    let tokens = match model.tokens() {
        Some(tokens) => Some(tokens.clone()),
        None => read_vocabulary(model.vocabulary_folder())?.map(|found| found.ids),
    };
    Ok(tokens.map(with_spaces))
}

fn with_spaces(mut tokens: Vocabulary) -> Vocabulary {
    for token in tokens.values_mut() {
        *token = token.replace('\u{2581}', " ");
    }
    tokens
}

/// The file from which a folder's vocabulary is read, and one more than its largest id; none if there is no vocabulary.
///
/// # Errors
/// The file cannot be read, is too large, or is not a vocabulary.
pub fn vocabulary_end(checkpoint: &Checkpoint) -> Result<Option<(String, u64)>, CheckpointError> {
    if checkpoint.is_single_file() {
        return Ok(None);
    }
    let found = read_vocabulary(checkpoint.vocabulary_folder())?;
    Ok(found.and_then(|found| {
        let (last, _) = found.ids.last_key_value()?;
        Some((found.file, last.saturating_add(1)))
    }))
}

/// A model's vocabulary, as a file has it.
struct ReadVocabulary {
    /// The name of the file.
    file: String,
    ids: Vocabulary,
    /// Whether it is a SentencePiece model, of which tokenizers move the ids by a fixed number, or name tokens of their
    /// own before the others.
    is_pieces: bool,
}

/// The pieces of a SentencePiece model by the ids that they have in another vocabulary if it is of the same model;
/// tokens that only a tokenizer adds are left out of both.
fn as_in(pieces: Vocabulary, other: &mut Vocabulary) -> Vocabulary {
    let by_text: HashMap<&str, u64> = other
        .iter()
        .map(|(id, text)| (text.as_str(), *id))
        .collect();
    let mut moved: BTreeMap<i128, usize> = BTreeMap::new();
    for (id, text) in &pieces {
        if let Some(other) = by_text.get(text.as_str()) {
            *moved
                .entry(i128::from(*other) - i128::from(*id))
                .or_default() += 1;
        }
    }
    let by = moved
        .iter()
        .max_by_key(|(_, count)| **count)
        .map_or(0, |(by, _)| *by);
    let is_piece = |id: &u64| {
        let own = u64::try_from(i128::from(*id) - by).ok();
        own.is_some_and(|own| is_ordinary(own, &pieces))
    };
    other.retain(|id, _| is_piece(id));
    let own = pieces.iter().filter(|(id, _)| is_ordinary(**id, &pieces));
    let own = own
        .filter_map(|(id, text)| Some((u64::try_from(i128::from(*id) + by).ok()?, text.clone())));
    own.collect()
}

/// Whether a piece is text, and no control symbol, which tokenizers give other ids.
fn is_ordinary(id: u64, pieces: &Vocabulary) -> bool {
    let control = |text: &String| {
        text.starts_with('<') && text.ends_with('>') || text.starts_with('[') && text.ends_with(']')
    };
    pieces.get(&id).is_some_and(|text| !control(text))
}

fn compare(a: &Vocabulary, b: &Vocabulary) -> VocabularyComparison {
    let mut shared = 0;
    let mut differing = 0;
    let mut examples = Vec::new();
    for (id, token) in a {
        let Some(other) = b.get(id) else { continue };
        shared += 1;
        if token != other {
            differing += 1;
            if examples.len() < EXAMPLES {
                examples.push((*id, plain(token), plain(other)));
            }
        }
    }
    let (only_a, only_b) = (a.len() - shared, b.len() - shared);
    if differing > 0 {
        VocabularyComparison::Conflict {
            differing,
            examples,
        }
    } else if only_a == 0 && only_b == 0 {
        VocabularyComparison::Same
    } else {
        VocabularyComparison::Compatible { only_a, only_b }
    }
}

/// Whether two files are equal; read side by side, so that neither is held whole.
fn same_bytes(a: &Path, b: &Path) -> Result<bool, CheckpointError> {
    let open = |path: &Path| File::open(path).map_err(|e| CheckpointError::io("open", path, e));
    let (mut file_a, mut file_b) = (open(a)?, open(b)?);
    let (mut chunk_a, mut chunk_b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let len_a = fill(&mut file_a, a, &mut chunk_a)?;
        let len_b = fill(&mut file_b, b, &mut chunk_b)?;
        if chunk_a[..len_a] != chunk_b[..len_b] {
            return Ok(false);
        }
        if len_a < CHUNK_BYTES {
            return Ok(true);
        }
    }
}

/// Reads until the chunk is full or the file ends.
fn fill(file: &mut File, path: &Path, chunk: &mut [u8]) -> Result<usize, CheckpointError> {
    let mut len = 0;
    while len < chunk.len() {
        match file.read(&mut chunk[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CheckpointError::io("read", path, error)),
        }
    }
    Ok(len)
}

/// The vocabulary of a folder, from the first of its files that has one.
fn read_vocabulary(folder: &Path) -> Result<Option<ReadVocabulary>, CheckpointError> {
    // A model in memory has no folder.
    let names = match folder.is_dir() {
        true => file_names(folder)?,
        false => BTreeSet::new(),
    };
    let tiktoken = names.iter().filter(|name| name.ends_with(".tiktoken"));
    let mut readers: Vec<(&str, Reader)> = vec![
        ("tokenizer.json", from_tokenizer_json),
        ("vocab.json", from_vocab_json),
        ("vocab.txt", from_vocab_txt),
        ("tekken.json", from_tekken),
    ];
    readers.extend(tiktoken.map(|name| (name.as_str(), from_tiktoken as Reader)));
    readers.extend([
        ("tiktoken.model", from_tiktoken as Reader),
        ("tokenizer.model", from_sentencepiece),
        ("spiece.model", from_sentencepiece),
        ("sentencepiece.bpe.model", from_sentencepiece),
        ("sentencepiece.model", from_sentencepiece),
        ("spm.model", from_sentencepiece),
    ]);
    for (name, read) in readers {
        if let Some(path) = file_in(folder, name)? {
            let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES, "vocabulary, in bytes")?;
            if is_lfs_pointer(&bytes) {
                let detail = LFS_POINTER.to_owned();
                return Err(CheckpointError::JsonMalformed { path, detail });
            }
            let ids = read(folder, &bytes).map_err(|e| e.at(path))?;
            if !ids.is_empty() {
                let is_pieces = name.ends_with(".model") && is_sentencepiece(&bytes);
                let file = name.to_owned();
                return Ok(Some(ReadVocabulary {
                    file,
                    ids,
                    is_pieces,
                }));
            }
        }
    }
    Ok(None)
}

/// Parses one kind of file; it may read more files beside it.
type Reader = fn(&Path, &[u8]) -> Result<Vocabulary, ReadError>;

/// An error in this file or in one beside it.
enum ReadError {
    Json(serde_json::Error),
    /// Why the file is no SentencePiece model, or no vocabulary of tiktoken or Mistral's.
    FileFormat(String),
    Other(CheckpointError),
}

impl ReadError {
    fn at(self, path: PathBuf) -> CheckpointError {
        match self {
            ReadError::Json(error) => CheckpointError::JsonMalformed {
                path,
                detail: plain(&error),
            },
            ReadError::FileFormat(detail) => CheckpointError::JsonMalformed { path, detail },
            ReadError::Other(error) => error,
        }
    }
}

impl From<serde_json::Error> for ReadError {
    fn from(error: serde_json::Error) -> Self {
        ReadError::Json(error)
    }
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    model: Option<TokenizerModel>,
    #[serde(default)]
    added_tokens: Option<Vec<AddedToken>>,
}

#[derive(Deserialize)]
struct TokenizerModel {
    #[serde(default)]
    vocab: Tokens,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u64,
    content: String,
}

fn from_tokenizer_json(_: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    let file: TokenizerFile = serde_json::from_slice(bytes)?;
    let mut vocabulary = file.model.map(|model| model.vocab.0).unwrap_or_default();
    for token in file.added_tokens.into_iter().flatten() {
        // The tokenizers crate, too, looks up an id among the added tokens first.
        vocabulary.insert(token.id, token.content);
    }
    Ok(vocabulary)
}

fn from_sentencepiece(folder: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    // Files of this name may hold something else.
    if !is_sentencepiece(bytes) {
        return match is_tiktoken(bytes) {
            true => from_tiktoken(folder, bytes),
            false => Ok(Vocabulary::new()),
        };
    }
    let model = PieceModel::parse(bytes).map_err(ReadError::FileFormat)?;
    let texts = model.pieces.into_iter().map(|piece| piece.text);
    with_added_tokens(folder, (0..).zip(texts).collect())
}

fn from_tiktoken(folder: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    let tokens = tiktoken::tokens(bytes).map_err(ReadError::FileFormat)?;
    with_added_tokens(folder, tokens)
}

fn from_tekken(_: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    tekken::tokens(bytes).map_err(ReadError::FileFormat)
}

fn from_vocab_json(folder: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    let tokens: Tokens = serde_json::from_slice(bytes)?;
    with_added_tokens(folder, tokens.0)
}

fn from_vocab_txt(folder: &Path, bytes: &[u8]) -> Result<Vocabulary, ReadError> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::to_owned);
    with_added_tokens(folder, (0..).zip(lines).collect())
}

fn with_added_tokens(folder: &Path, mut vocabulary: Vocabulary) -> Result<Vocabulary, ReadError> {
    let added = file_in(folder, "added_tokens.json").map_err(ReadError::Other)?;
    if let Some(path) = added {
        let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES, "added tokens, in bytes")
            .map_err(ReadError::Other)?;
        let added: HashMap<String, u64> = serde_json::from_slice(&bytes)
            .map_err(|e| ReadError::Other(ReadError::Json(e).at(path)))?;
        let mut added: Vec<(String, u64)> = added.into_iter().collect();
        added.sort();
        vocabulary.extend(added.into_iter().map(|(token, id)| (id, token)));
    }
    Ok(vocabulary)
}

/// A vocabulary as a map from token to id, or as Unigram's list of tokens and scores.
#[derive(Default)]
struct Tokens(Vocabulary);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ids by token, or a list of tokens and scores")
            }

            fn visit_unit<E>(self) -> Result<Tokens, E> {
                Ok(Tokens::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vocabulary::new();
                while let Some((token, id)) = map.next_entry::<String, u64>()? {
                    tokens.insert(id, token);
                }
                Ok(Tokens(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vocabulary::new();
                while let Some((token, _)) = seq.next_element::<(String, IgnoredAny)>()? {
                    tokens.insert(tokens.len() as u64, token);
                }
                Ok(Tokens(tokens))
            }
        }

        deserializer.deserialize_any(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sentencepiece::tests::model;
    use super::*;
    use crate::fixtures::{safetensors, write};
    use crate::locate::Location;

    type Files<'a> = &'a [(&'a str, &'a str)];

    fn compared(a: Files, b: Files) -> Result<VocabularyComparison, CheckpointError> {
        let open = |files: Files| {
            let folder = tempfile::tempdir().unwrap();
            let weights = safetensors(&[("w", "F32", &[1])]);
            write(&folder.path().join("model.safetensors"), &weights);
            for (name, text) in files {
                write(&folder.path().join(name), text.as_bytes());
            }
            let location = Location::local(folder.path());
            (Checkpoint::open("m", &location).unwrap(), folder)
        };
        let ((a, _keep_a), (b, _keep_b)) = (open(a), open(b));
        compare_vocabularies(&a, &b)
    }

    const BPE: &str =
        r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}"#;

    #[test]
    fn vocabularies_are_compared_by_id() {
        use VocabularyComparison::*;
        let bpe: Files = &[("tokenizer.json", BPE)];
        let tokenizer = |json| [("tokenizer.json", json)];
        let conflict = |examples: &[(u64, &str, &str)]| Conflict {
            differing: examples.len(),
            examples: examples
                .iter()
                .map(|(id, a, b)| (*id, (*a).into(), (*b).into()))
                .collect(),
        };
        let cases: Vec<(Files, Files, VocabularyComparison)> = vec![
            (bpe, bpe, Same),
            (bpe, &[("vocab.json", r#"{"b": 1, "a": 0}"#)], Same),
            (bpe, &[("vocab.txt", "a\r\nb\n")], Same),
            (bpe, &[], Unknown),
            (&[], &[], Unknown),
            (bpe, &[("tokenizer.json", "{}")], Unknown),
            (
                bpe,
                &[("tokenizer.json", "{}"), ("vocab.txt", "a\nb")],
                Same,
            ),
            (
                bpe,
                &[(
                    "tokenizer.json",
                    r#"{"model": {"vocab": [["a", -1.5], ["b", -2]]}, "added_tokens": [{"id": 2, "content": "<x>"}]}"#,
                )],
                Compatible {
                    only_a: 0,
                    only_b: 1,
                },
            ),
            (
                bpe,
                &[
                    ("vocab.json", r#"{"a": 0}"#),
                    ("added_tokens.json", r#"{"<x>": 5}"#),
                ],
                Compatible {
                    only_a: 1,
                    only_b: 1,
                },
            ),
            (
                bpe,
                &[("vocab.txt", "b\na\n")],
                conflict(&[(0, "a", "b"), (1, "b", "a")]),
            ),
            (
                bpe,
                &[("vocab.txt", "a\n\u{1b}\n")],
                conflict(&[(1, "b", "\\u{1b}")]),
            ),
        ];
        for (a, b, expected) in cases {
            assert_eq!(compared(a, b).unwrap(), expected, "{a:?} {b:?}");
        }
        for json in [
            "{",
            r#"{"model": {"vocab": 3}}"#,
            r#"{"model": {"vocab": {"a": -1}}}"#,
        ] {
            let message = errors::in_one_line(&compared(bpe, &tokenizer(json)).unwrap_err());
            assert!(message.contains("tokenizer.json is malformed"), "{message}");
        }
        let added = [("vocab.txt", "a"), ("added_tokens.json", "[]")];
        let message = errors::in_one_line(&compared(bpe, &added).unwrap_err());
        assert!(
            message.contains("added_tokens.json is malformed"),
            "{message}"
        );
    }

    /// Two folders with these files.
    fn compared_bytes(
        a: (&str, &[u8]),
        b: (&str, &[u8]),
    ) -> Result<VocabularyComparison, CheckpointError> {
        let open = |(name, bytes): (&str, &[u8])| {
            let folder = tempfile::tempdir().unwrap();
            let weights = safetensors(&[("w", "F32", &[1])]);
            write(&folder.path().join("model.safetensors"), &weights);
            write(&folder.path().join(name), bytes);
            let location = Location::local(folder.path());
            (Checkpoint::open("m", &location).unwrap(), folder)
        };
        let ((a, _keep_a), (b, _keep_b)) = (open(a), open(b));
        compare_vocabularies(&a, &b)
    }

    #[test]
    fn sentencepiece_models_are_compared_with_each_other_and_with_tokenizer_json() {
        let one = model(&["<unk>", "<s>", "a", "b", "c"]);
        let other = model(&["<unk>", "<s>", "b", "a", "c"]);
        let differ = |found: Result<VocabularyComparison, CheckpointError>| match found.unwrap() {
            VocabularyComparison::Conflict { differing, .. } => differing,
            VocabularyComparison::Same => 0,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            differ(compared_bytes(
                ("tokenizer.model", &one),
                ("spiece.model", &one)
            )),
            0
        );
        assert_eq!(
            differ(compared_bytes(
                ("tokenizer.model", &one),
                ("tokenizer.model", &other)
            )),
            2
        );
        let json = |tokens: &[&str]| {
            let vocab: Vec<(&str, f64)> = tokens.iter().map(|token| (*token, 0.0)).collect();
            serde_json::json!({"model": {"type": "Unigram", "vocab": vocab}})
                .to_string()
                .into_bytes()
        };
        let same = json(&["<unk>", "<s>", "a", "b", "c"]);
        // fairseq's models begin with other control symbols, so the pieces move.
        let moved = json(&["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c"]);
        let wrong = json(&["<unk>", "<s>", "b", "a", "c"]);
        for (json, expected) in [(&same, 0), (&moved, 0), (&wrong, 2)] {
            assert_eq!(
                differ(compared_bytes(
                    ("tokenizer.model", &one),
                    ("tokenizer.json", json)
                )),
                expected
            );
            assert_eq!(
                differ(compared_bytes(
                    ("tokenizer.json", json),
                    ("tokenizer.model", &one)
                )),
                expected
            );
        }
        let other = compared_bytes(("tokenizer.model", b"what\n"), ("tokenizer.model", &one));
        assert_eq!(other.unwrap(), VocabularyComparison::Unknown);
        let broken = compared_bytes(("tokenizer.model", &one[..9]), ("tokenizer.model", &one));
        assert!(errors::in_one_line(&broken.unwrap_err()).contains("no SentencePiece model"));
    }

    #[test]
    fn vocabularies_of_tiktoken_are_compared_with_each_other_and_with_byte_level_bpe() {
        use VocabularyComparison::*;
        // `!`, ` the` and a byte that is no text of its own.
        let one: &[u8] = b"IQ== 0\nIHRoZQ== 1\n5Q== 2\n";
        let swapped: &[u8] = b"IQ== 0\nIHRoZQ== 2\n5Q== 1\n";
        let longer: &[u8] = b"IQ== 0\nIHRoZQ== 1\n5Q== 2\nIg== 3\n";
        let json = r#"{"model": {"type": "BPE", "vocab": {"!": 0, "\u0120the": 1, "\u00e5": 2}},
                       "added_tokens": [{"id": 9, "content": "<|end|>"}]}"#;
        let conflict = Conflict {
            differing: 2,
            examples: vec![
                (1, "Ġthe".into(), "å".into()),
                (2, "å".into(), "Ġthe".into()),
            ],
        };
        let more = Compatible {
            only_a: 0,
            only_b: 1,
        };
        let names = ["qwen.tiktoken", "tokenizer.model", "tiktoken.model"];
        for name in names {
            for (other, expected) in [(one, &Same), (swapped, &conflict), (longer, &more)] {
                for other_name in names {
                    let found = compared_bytes((name, one), (other_name, other)).unwrap();
                    assert_eq!(found, *expected, "{name} {other_name}");
                }
            }
            let found = compared_bytes((name, one), ("tokenizer.json", json.as_bytes()));
            assert_eq!(found.unwrap(), more, "{name}");
        }
        let pieces = model(&["<unk>", "<s>", "a", "b"]);
        let found = compared_bytes(("qwen.tiktoken", one), ("tokenizer.model", &pieces)).unwrap();
        assert!(!matches!(found, Same | Unknown), "{found:?}");
        let broken = compared_bytes(("qwen.tiktoken", b"IQ== 0\n?"), ("qwen.tiktoken", one));
        let message = errors::in_one_line(&broken.unwrap_err());
        assert!(message.contains("qwen.tiktoken is malformed"), "{message}");
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn a_vocabulary_of_mistral_is_compared_with_itself_and_with_byte_level_bpe() {
        use VocabularyComparison::*;
        let file = |tokens: [&str; 2]| {
            format!(
                r#"{{"config": {{"default_vocab_size": 3, "default_num_special_tokens": 1}},
                    "vocab": [{{"rank": 0, "token_bytes": "{}"}}, {{"rank": 1, "token_bytes": "{}"}}],
                    "special_tokens": [{{"rank": 0, "token_str": "<s>"}}]}}"#,
                tokens[0], tokens[1]
            )
        };
        let (one, swapped) = (file(["IQ==", "IHRoZQ=="]), file(["IHRoZQ==", "IQ=="]));
        let found = |a: &str, b: (&str, &str)| compared(&[("tekken.json", a)], &[b]).unwrap();
        assert_eq!(found(&one, ("tekken.json", &one)), Same);
        let differing = found(&one, ("tekken.json", &swapped));
        assert!(matches!(differing, Conflict { differing: 2, .. }));
        let json = r#"{"model": {"type": "BPE", "vocab": {"!": 1, "\u0120the": 2}},
                       "added_tokens": [{"id": 0, "content": "<s>"}]}"#;
        assert_eq!(found(&one, ("tokenizer.json", json)), Same);
        let broken = compared(&[("tekken.json", "{}")], &[("tekken.json", &one)]);
        let message = errors::in_one_line(&broken.unwrap_err());
        assert!(message.contains("tekken.json is malformed"), "{message}");
    }

    #[test]
    fn examples_are_few_and_long_files_are_compared_to_their_end() {
        let vocab = |shift: usize| -> String {
            (0..50_000)
                .map(|i| format!("t{}\n", i + shift * usize::from(i > 40_000)))
                .collect()
        };
        let found = compared(&[("vocab.txt", &vocab(0))], &[("vocab.txt", &vocab(1))]).unwrap();
        let VocabularyComparison::Conflict {
            differing,
            examples,
        } = found
        else {
            panic!("{found:?}");
        };
        assert_eq!((differing, examples.len()), (9_999, 5));
        assert_eq!(examples[0], (40_001, "t40001".into(), "t40002".into()));

        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let long = vec![7; 3 * CHUNK_BYTES];
        write(&path("a"), &long);
        write(&path("b"), &long);
        write(&path("c"), &long[1..]);
        write(&path("d"), &[&long[1..], &[8]].concat());
        for (other, same) in [("b", true), ("c", false), ("d", false)] {
            assert_eq!(
                same_bytes(&path("a"), &path(other)).unwrap(),
                same,
                "{other}"
            );
        }
        same_bytes(&path("a"), &path("gone")).unwrap_err();
    }
}
