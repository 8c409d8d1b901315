//! What the small files beside a model say of its tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::EvalError;
use chat::ChatTemplate;
use checkpoint::{Checkpoint, CheckpointError, default_template, parse_json, read_bounded};
use errors::Refusal;
use forward::{ForwardError, Tokenizer};

/// The largest file beside a model that is read; a `tokenizer.json` reaches 35 MB.
const MAX_BYTES: u64 = 512 << 20;

/// The tokenizer of a model and its special tokens.
pub struct Surroundings {
    /// The model, as messages call it.
    pub(crate) label: String,
    tokenizer: Result<Arc<Tokenizer>, Refusal>,
    /// What the tokenizer puts before a text.
    pub(crate) before: Vec<u32>,
    /// The tokens that end what the model writes.
    pub(crate) ends: Vec<u32>,
    /// The token that a text is scored after: that of its beginning, or else of an end.
    pub(crate) beginning: Option<u32>,
    /// The most tokens of a prompt and what follows it.
    pub(crate) longest: Option<usize>,
    /// The chat template, as it is written.
    template: Result<Option<String>, Refusal>,
    /// The texts of special tokens, by their names in the tokenizer's config.
    special: BTreeMap<String, String>,
}

/// Where the files beside a model are.
enum Files<'f> {
    Folder(&'f Checkpoint),
    Memory(&'f BTreeMap<String, Vec<u8>>),
}

impl Surroundings {
    /// Reads them from the folder of a checkpoint.
    ///
    /// # Errors
    /// A file is malformed. That there is no tokenizer is an error only where text has to be cut.
    pub fn of_checkpoint(model: &Checkpoint) -> Result<Surroundings, EvalError> {
        Self::read(model.label(), &Files::Folder(model))
    }

    /// Reads them from files that are in memory, by name; messages call the model `label`.
    ///
    /// # Errors
    /// As of [`of_checkpoint`](Self::of_checkpoint).
    pub fn of_files(
        label: &str,
        files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Surroundings, EvalError> {
        Self::read(label, &Files::Memory(files))
    }

    fn read(label: &str, files: &Files<'_>) -> Result<Surroundings, EvalError> {
        let config = files.object("config.json")?.unwrap_or_default();
        let generation = files.object("generation_config.json")?.unwrap_or_default();
        let of_tokenizer = files.object("tokenizer_config.json")?.unwrap_or_default();
        let special = |name: &str| text_of(of_tokenizer.get(name));
        let tokenizer = match files.bytes("tokenizer.json")? {
            Some((path, bytes)) => {
                let read = Tokenizer::parse(path, &bytes, special("bos_token"));
                Ok(Arc::new(read.map_err(EvalError::forward(label))?))
            }
            None => Err(Refusal::new(format!(
                "model `{label}`: there is no tokenizer.json, and the tasks hold text"
            ))
            .with_hint(
                "put the tokenizer's files beside the weights, or write tokens in place of text",
            )),
        };
        let of_text = |name: &str| {
            let tokenizer = tokenizer.as_ref().ok()?;
            tokenizer.token(&special(name)?)
        };
        let mut ends = tokens_of(&generation, "eos_token_id");
        if ends.is_empty() {
            ends = tokens_of(&config, "eos_token_id");
        }
        if ends.is_empty() {
            ends.extend(of_text("eos_token"));
        }
        let beginning = of_text("bos_token")
            .or_else(|| of_text("eos_token"))
            .or_else(|| tokens_of(&config, "bos_token_id").first().copied())
            .or_else(|| ends.first().copied());
        let before = match &tokenizer {
            Ok(tokenizer) => tokenizer.before_text().map_err(EvalError::forward(label))?,
            Err(_) => Vec::new(),
        };
        let special = of_tokenizer.iter().filter_map(|(name, value)| {
            let text = text_of(Some(value)).filter(|_| name.ends_with("_token"))?;
            Some((name.clone(), text))
        });
        let longest = config
            .get("max_position_embeddings")
            .and_then(Value::as_u64);
        Ok(Surroundings {
            label: label.to_owned(),
            tokenizer,
            before,
            ends,
            beginning,
            longest: longest.and_then(|longest| usize::try_from(longest).ok()),
            special: special.collect(),
            template: files.template(&of_tokenizer),
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(crate) fn chat_template(&self) -> Result<ChatTemplate, EvalError> {
        let label = &self.label;
        let text = match &self.template {
            Err(why) => return Err(why.clone().into()),
            Ok(None) => {
                let why = format!("model `{label}`: there is no chat template beside it");
                let hint = "score without a chat template, or put chat_template.jinja beside the weights (in a recipe, \
                            `chat_template: chatml`)";
                return Err(Refusal::new(why).with_hint(hint).into());
            }
            Ok(Some(text)) => text,
        };
        let template = ChatTemplate::new(text, self.special.clone());
        template.map_err(|why| {
            let why = format!("model `{label}`: its chat template is not sound Jinja: {why}");
            Refusal::new(why)
                .with_hint("mend chat_template.jinja")
                .into()
        })
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>, EvalError> {
        self.tokenizer
            .as_ref()
            .map_err(|why| EvalError::Refused(why.clone()))
    }

    pub(crate) fn failed(&self, error: ForwardError) -> EvalError {
        EvalError::forward(&self.label)(error)
    }
}

impl Files<'_> {
    fn bytes(&self, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, EvalError> {
        match self {
            Files::Folder(model) => match model.file_beside(name)? {
                Some(path) => {
                    let bytes = read_bounded(&path, MAX_BYTES, "file beside a model, in bytes")?;
                    Ok(Some((path, bytes)))
                }
                None => Ok(None),
            },
            Files::Memory(files) => {
                let found = files.get(name);
                Ok(found.map(|bytes| (PathBuf::from(name), bytes.clone())))
            }
        }
    }

    /// The chat template: a file of its own goes before the entries of others, as for transformers.
    fn template(&self, of_tokenizer: &Map<String, Value>) -> Result<Option<String>, Refusal> {
        let read = |error: EvalError| Refusal::from(&error);
        if let Some((path, bytes)) = self.bytes("chat_template.jinja").map_err(read)? {
            let text = String::from_utf8(bytes);
            return text
                .map(Some)
                .map_err(|error| Refusal::new(format!("{}: {error}", path.display())));
        }
        let entry =
            |entries: &Map<String, Value>| default_template(entries.get("chat_template").cloned()?);
        match entry(of_tokenizer) {
            Some(text) => Ok(Some(text)),
            None => {
                let beside = self.object("chat_template.json").map_err(read)?;
                Ok(beside.as_ref().and_then(entry))
            }
        }
    }

    fn object(&self, name: &str) -> Result<Option<Map<String, Value>>, EvalError> {
        let Some((path, bytes)) = self.bytes(name)? else {
            return Ok(None);
        };
        let malformed = |detail| CheckpointError::JsonMalformed { path, detail };
        match parse_json(&bytes) {
            Ok(Value::Object(entries)) => Ok(Some(entries)),
            Ok(_) => Err(malformed("expected an object".into()).into()),
            Err(error) => Err(malformed(error).into()),
        }
    }
}

/// A special token's text: a string, or an object that holds it.
fn text_of(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(entries) => Some(entries.get("content")?.as_str()?.to_owned()),
        _ => None,
    }
}

/// Tokens of a config: one, a list or none, at the top or in its part about text.
fn tokens_of(config: &Map<String, Value>, name: &str) -> Vec<u32> {
    let nested = || config.get("text_config")?.get(name);
    let found = config.get(name).filter(|value| !value.is_null());
    let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match found.or_else(nested) {
        Some(Value::Array(list)) => list.iter().filter_map(token).collect(),
        Some(one) => token(one).into_iter().collect(),
        None => Vec::new(),
    }
}
