//! `tokenizer:`, `tokenizer_source:` and `chat_template:`: the vocabulary of the output.

use super::keys::Place;
use super::problem::{Located, Position, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;

/// The vocabulary of the output.
#[derive(Debug)]
pub struct Tokenizer {
    /// Where its tokens come from.
    pub source: VocabularySource,
    /// The position of the source, or of the key if no source is given.
    pub at: Position,
    /// Tokens that it has in any case, and where their rows come from; in the recipe's order, without duplicates.
    pub tokens: Vec<TokenRule>,
    /// Rows are added until their number is a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
    /// Whether tokens whose id lies beyond their model's embedding are dropped; otherwise they are an error.
    pub drops_beyond_embedding: bool,
}

/// Where the output's tokens come from.
#[derive(Debug)]
pub enum VocabularySource {
    /// The tokens of the base (or the first model), then those of the others that it lacks.
    Union,
    /// The tokens of the base, or of the first model.
    Base,
    /// The tokens of this model.
    Model(Located<ModelRef>),
}

/// An entry of `tokens:`.
#[derive(Debug)]
pub struct TokenRule {
    /// The token.
    pub token: Located<String>,
    /// Where the row comes from for a model that lacks the token; `None` for the general rule.
    pub source: Option<RowSource>,
    /// Whether models that have the token get that row too.
    pub force: bool,
}

/// Where a row comes from.
#[derive(Debug)]
pub enum RowSource {
    /// The row of the same token in this model.
    Model(Located<ModelRef>),
    /// Zeros.
    Zero,
    /// The row of a token of this model.
    Token(Located<ModelRef>, TokenName),
}

/// A token of another model.
#[derive(Debug)]
pub enum TokenName {
    /// Its text.
    Text(String),
    /// Its row.
    Id(u32),
}

impl Tokenizer {
    /// Every reference to a model, in the order of the recipe.
    pub fn mentions(&self) -> impl Iterator<Item = &Located<ModelRef>> {
        let source = match &self.source {
            VocabularySource::Model(model) => Some(model),
            VocabularySource::Union | VocabularySource::Base => None,
        };
        let rules = self.tokens.iter().filter_map(|rule| match &rule.source {
            Some(RowSource::Model(model) | RowSource::Token(model, _)) => Some(model),
            Some(RowSource::Zero) | None => None,
        });
        source.into_iter().chain(rules)
    }
}

const TOKENIZER: Place = Place {
    name: "`tokenizer`",
    keys: &["source", "tokens", "pad_to_multiple_of", "beyond_embedding"],
};

const RULE: Place = Place {
    name: "an entry of `tokens`",
    keys: &["source", "force"],
};

const ROW: Place = Place {
    name: "the source of a token",
    keys: &["kind", "model", "token", "token_id"],
};

/// The hint for a row source that cannot be parsed.
const ROW_FORMS: &str =
    "a source is a model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ...}`";

impl Walk<'_> {
    /// `tokenizer:`.
    pub(super) fn tokenizer(&mut self, entry: &Entry) -> Option<Tokenizer> {
        let node = &entry.node;
        let Value::Map(entries) = &node.value else {
            let message = format!(
                "expected a mapping for `tokenizer`, found {}",
                node.value.found()
            );
            let hint = match node.value {
                Value::Text(_) => "write `tokenizer: {source: ...}`, or `tokenizer_source: ...`",
                _ => "such as `tokenizer: {source: union}`",
            };
            self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
            return None;
        };
        let mut tokenizer = Tokenizer {
            source: VocabularySource::Union,
            at: entry.key_at,
            tokens: Vec::new(),
            pad_to_multiple_of: None,
            drops_beyond_embedding: false,
        };
        for entry in entries {
            match entry.key.as_str() {
                "source" | "tokens" | "pad_to_multiple_of" | "beyond_embedding"
                    if entry.node.is_null() => {}
                "source" => {
                    tokenizer.source = self.vocabulary_source(&entry.node)?;
                    tokenizer.at = entry.node.at;
                }
                "tokens" => tokenizer.tokens = self.token_rules(&entry.node),
                "pad_to_multiple_of" => {
                    tokenizer.pad_to_multiple_of = self.multiple(entry);
                }
                "beyond_embedding" => {
                    tokenizer.drops_beyond_embedding = self.beyond_embedding(entry)?;
                }
                _ => self.other_key(&TOKENIZER, entry),
            }
        }
        Some(tokenizer)
    }

    /// `tokenizer_source:`, the short form.
    pub(super) fn tokenizer_source(&mut self, entry: &Entry) -> Option<Tokenizer> {
        Some(Tokenizer {
            source: self.vocabulary_source(&entry.node)?,
            at: entry.node.at,
            tokens: Vec::new(),
            pad_to_multiple_of: None,
            drops_beyond_embedding: false,
        })
    }

    /// Refuses the second of the two keys.
    pub(super) fn second_tokenizer(&mut self, first: &str, entry: &Entry) {
        let message =
            format!("expected one of `tokenizer` and `tokenizer_source`, found {first} too");
        self.problem(ProblemKind::Invalid, entry.key_at, message);
    }

    fn vocabulary_source(&mut self, node: &Node) -> Option<VocabularySource> {
        match &node.value {
            Value::Text(text) if text == "union" => Some(VocabularySource::Union),
            Value::Text(text) if text == "base" => Some(VocabularySource::Base),
            Value::Text(text) => {
                // The spelling of early recipes.
                let path = text.strip_prefix("model:").unwrap_or(text);
                let node = Node {
                    value: Value::Text(path.to_owned()),
                    at: node.at,
                    end: node.end,
                };
                self.model(&node).map(VocabularySource::Model)
            }
            Value::Map(_) => self.model(node).map(VocabularySource::Model),
            other => {
                let message = format!(
                    "expected `union`, `base` or a model, found {}",
                    other.found()
                );
                self.problem(ProblemKind::Invalid, node.at, message);
                None
            }
        }
    }

    /// `tokens:`, a mapping from tokens to the sources of their rows.
    fn token_rules(&mut self, node: &Node) -> Vec<TokenRule> {
        let Value::Map(entries) = &node.value else {
            let message = format!(
                "expected tokens and their sources, found {}",
                node.value.found()
            );
            let hint = "such as `tokens: {\"<|im_end|>\": {source: {kind: zero}}}`";
            self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
            return Vec::new();
        };
        entries
            .iter()
            .filter_map(|entry| self.token_rule(entry))
            .collect()
    }

    fn token_rule(&mut self, entry: &Entry) -> Option<TokenRule> {
        if entry.key.is_empty() {
            self.problem(ProblemKind::Invalid, entry.key_at, "a token can't be empty");
            return None;
        }
        let Value::Map(entries) = &entry.node.value else {
            let message = format!(
                "expected a mapping for the token {}, found {}",
                quoted(&entry.key),
                entry.node.value.found()
            );
            let hint = "such as `{source: {kind: zero}}`";
            self.refuse(ProblemKind::Invalid, entry.node.at, message, Some(hint));
            return None;
        };
        let mut rule = TokenRule {
            token: Located {
                value: entry.key.clone(),
                at: entry.key_at,
            },
            source: None,
            force: false,
        };
        let mut force_at = None;
        for entry in entries {
            match entry.key.as_str() {
                "source" | "force" if entry.node.is_null() => {}
                "source" => rule.source = Some(self.row_source(&entry.node)?),
                "force" => {
                    rule.force = self.flag(entry)?;
                    force_at = Some(entry.key_at);
                }
                _ => self.other_key(&RULE, entry),
            }
        }
        if let (true, None, Some(at)) = (rule.force, &rule.source, force_at) {
            let message = "`force` has no source to force";
            self.refuse(ProblemKind::Invalid, at, message, Some(ROW_FORMS));
            return None;
        }
        Some(rule)
    }

    fn row_source(&mut self, node: &Node) -> Option<RowSource> {
        let entries = match &node.value {
            Value::Map(entries) if entries.iter().any(|entry| entry.key == "kind") => entries,
            Value::Map(_) | Value::Text(_) => return self.model(node).map(RowSource::Model),
            other => {
                let message = format!("expected the source of a token, found {}", other.found());
                self.refuse(ProblemKind::Invalid, node.at, message, Some(ROW_FORMS));
                return None;
            }
        };
        let (mut kind, mut model, mut names) = (None, None, Vec::new());
        for entry in entries {
            match entry.key.as_str() {
                "kind" => kind = Some((self.text(entry)?, entry.node.at)),
                "model" | "token" | "token_id" if entry.node.is_null() => {}
                "model" => model = Some((self.model(&entry.node)?, entry.key_at)),
                "token" => names.push((TokenName::Text(self.text(entry)?), entry.key_at)),
                "token_id" => names.push((TokenName::Id(self.token_id(entry)?), entry.key_at)),
                _ => self.other_key(&ROW, entry),
            }
        }
        let (kind, kind_at) = kind?;
        match kind.as_str() {
            "zero" => {
                let other = model
                    .map(|(_, at)| at)
                    .or_else(|| names.first().map(|name| name.1));
                if let Some(at) = other {
                    let message = "zeros need no model and no token";
                    self.problem(ProblemKind::Invalid, at, message);
                    return None;
                }
                Some(RowSource::Zero)
            }
            "model_token" => {
                let Some((model, _)) = model else {
                    let message = "missing `model` in the source of a token";
                    self.problem(ProblemKind::Missing, node.at, message);
                    return None;
                };
                if let Some((_, second)) = names.get(1) {
                    let message = "expected one of `token` and `token_id`, found both";
                    self.problem(ProblemKind::Invalid, *second, message);
                    return None;
                }
                let Some((name, _)) = names.pop() else {
                    let message = "missing `token` or `token_id` in the source of a token";
                    self.problem(ProblemKind::Missing, node.at, message);
                    return None;
                };
                Some(RowSource::Token(model, name))
            }
            _ => {
                let message = format!("unknown kind {} of a source", quoted(&kind));
                self.refuse(ProblemKind::Unknown, kind_at, message, Some(ROW_FORMS));
                None
            }
        }
    }

    fn token_id(&mut self, entry: &Entry) -> Option<u32> {
        if let Value::Int(id) = entry.node.value
            && let Ok(id) = u32::try_from(id)
        {
            return Some(id);
        }
        let found = entry.node.value.found();
        let message = format!("expected a token's number for `token_id`, found {found}");
        self.problem(ProblemKind::Invalid, entry.node.at, message);
        None
    }

    /// `drop` or `error`: whether tokens beyond an embedding are dropped.
    fn beyond_embedding(&mut self, entry: &Entry) -> Option<bool> {
        match self.text(entry)?.as_str() {
            "drop" => Some(true),
            "error" => Some(false),
            other => {
                let message = format!("unknown word {} for `beyond_embedding`", quoted(other));
                let hint = "the words are `error` (the default) and `drop`";
                self.refuse(ProblemKind::Unknown, entry.node.at, message, Some(hint));
                None
            }
        }
    }

    fn multiple(&mut self, entry: &Entry) -> Option<usize> {
        match entry.node.value {
            Value::Int(number) if (1..=1 << 20).contains(&number) => usize::try_from(number).ok(),
            ref other => {
                let message = format!(
                    "expected a whole number from 1 to {} for `pad_to_multiple_of`, found {}",
                    1 << 20,
                    other.found()
                );
                self.problem(ProblemKind::Invalid, entry.node.at, message);
                None
            }
        }
    }

    pub(super) fn flag(&mut self, entry: &Entry) -> Option<bool> {
        if let Value::Bool(flag) = entry.node.value {
            return Some(flag);
        }
        let message = format!(
            "expected `true` or `false` for {}, found {}",
            quoted(&entry.key),
            entry.node.value.found()
        );
        self.problem(ProblemKind::Invalid, entry.node.at, message);
        None
    }

    /// `chat_template:`, a word or a template.
    pub(super) fn chat_template(&mut self, entry: &Entry) -> Option<Located<String>> {
        let value = self.text(entry)?;
        if value.trim().is_empty() {
            let message = format!("expected a chat template, found {}", quoted(&value));
            let hint = "`auto`, a template's name, or the template itself";
            self.refuse(ProblemKind::Invalid, entry.node.at, message, Some(hint));
            return None;
        }
        Some(Located {
            value,
            at: entry.node.at,
        })
    }
}
