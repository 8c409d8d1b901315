//! The output's vocabulary: which tokens it has, and which row of which model stands for each.
//!
//! This module knows tokens, ids and rows. `tensors` finds the tensors with a row per token, `ids` renumbers ids in
//! configs, `files` writes the vocabulary's files, `chat` the chat template, `stops` the tokens that end its turns.

mod chat;
mod files;
mod ids;
mod rows;
mod stops;
mod tensors;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub(super) use chat::chat_template;
pub(super) use files::{made_files, with_template};
pub use rows::Filled;
pub(super) use stops::stop_at_turns;
pub(super) use tensors::Aligned;

use super::models::Models;
use super::problems::{Problems, count, some_of};
use architecture::is_input_embedding;
use checkpoint::{AddedToken, Checkpoint, Tokenizer, TokenizerKind};
use recipe::{Position, Recipe, RowSource, TokenName, Tokenizer as TokenizerKey, VocabularySource};
use rows::GroupRows;

/// The most rows of an output's embedding.
const MAX_ROWS: usize = 1 << 26;

/// The vocabulary of the output, as plans show it.
#[derive(Debug, Clone)]
pub struct VocabularySummary {
    /// `union`, `base`, or the model whose tokens it has.
    pub source: String,
    /// How many tokens it has.
    pub tokens: usize,
    /// How many rows its embeddings have.
    pub rows: usize,
    /// How many tokens were added because the source lacked them.
    pub added: usize,
    /// For each merged model, by its index, the rows that come from elsewhere.
    pub models: Vec<(usize, Filled)>,
}

/// The output's vocabulary, compared with every model's.
pub(super) struct Alignment<'a> {
    models: &'a Models,
    key: &'a TokenizerKey,
    /// The model whose tokenizer the output gets, extended by added tokens at most.
    pub(super) source: usize,
    /// The source's tokenizer, unchanged.
    original: Tokenizer,
    /// Number of the source's tokens that the output has.
    of_source: usize,
    vocabulary: Tokenizer,
    /// Rows of the output's embeddings.
    rows: usize,
    /// For each checkpoint that matters, the tokens of the vocabulary that it has.
    tokens: Vec<Option<ModelTokens>>,
    /// The recipe's rules by id.
    rules: HashMap<u32, Rule>,
    /// Row maps by the models of a group and its base.
    groups: RefCell<BTreeMap<GroupKey, Arc<GroupRows>>>,
    /// Tensors that were taken for aligned because of their shape alone.
    by_shape: RefCell<Vec<String>>,
    /// Tensors that look as if they had rows for tokens, but are not aligned.
    alike: RefCell<Vec<String>>,
    /// The first group that was aligned: its models, and their rows.
    first: RefCell<Option<(Vec<usize>, Arc<GroupRows>)>>,
}

/// The models of a group, and its base.
type GroupKey = (Vec<usize>, Option<usize>);

/// Which tokens of the output's vocabulary a model has.
struct ModelTokens {
    /// The tensor that is its embedding.
    embedding: usize,
    /// Number of rows of that tensor.
    rows: usize,
    /// For each id of the output, the row of the same token here.
    own: Vec<Option<u32>>,
    /// For each row, whether it belongs to a token of this model.
    named: Vec<bool>,
}

/// The recipe's rule for where the row of a token comes from.
struct Rule {
    force: bool,
    row: Option<RowOf>,
}

/// A row that the recipe names.
enum RowOf {
    Zero,
    Row(usize, u32),
}

/// Builds the vocabulary that the recipe asks for; none if it asks for none, or if something is wrong.
pub(super) fn align<'a>(
    recipe: &'a Recipe,
    models: &'a Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<Alignment<'a>> {
    let key = recipe.tokenizer.as_ref()?;
    let source = match &key.source {
        VocabularySource::Union | VocabularySource::Base => models.donor,
        VocabularySource::Model(model) => models.index(&model.value)?,
    };
    let mut tokenizers = read_all(key, models, source, notes, problems)?;
    let original = tokenizers.get(source)?.as_ref()?.clone();
    if key.drops_beyond_embedding {
        drop_beyond(models, source, &mut tokenizers, notes);
    }
    let mut vocabulary = tokenizers.get(source)?.as_ref()?.clone();
    let of_source = vocabulary.len();
    let mut builder = Builder {
        vocabulary: &mut vocabulary,
        ordinary: Vec::new(),
        disagreeing: Vec::new(),
    };
    let built = builder.build(key, models, source, &tokenizers);
    let (ordinary, disagreeing) = (builder.ordinary, builder.disagreeing);
    if let Err((token, other)) = built {
        let message = format!(
            "{token:?} can't be added to the vocabulary of `{}`: the id it would get is that of {other:?}",
            models.label(source)
        );
        let hint = "the ids of that tokenizer have gaps; take the tokens of another model";
        problems.add(Some(key.at), message, Some(hint.to_owned()));
        return None;
    }
    if !ordinary.is_empty() {
        notes.push(format!(
            "{} of other vocabularies ({}) become added tokens, as a tokenizer's own merges and scores are not \
             extended: text that contains one is cut there first",
            count(ordinary.len(), "ordinary token"),
            some_of(&ordinary)
        ));
    }
    if !disagreeing.is_empty() {
        notes.push(format!(
            "the models give {} different flags ({}); the first model's hold",
            count(disagreeing.len(), "added token"),
            some_of(&disagreeing)
        ));
    }
    let mut alignment = Alignment {
        models,
        key,
        source,
        rows: 0,
        original,
        of_source,
        vocabulary,
        tokens: Vec::new(),
        rules: HashMap::new(),
        groups: RefCell::default(),
        by_shape: RefCell::default(),
        alike: RefCell::default(),
        first: RefCell::default(),
    };
    alignment.hold(&tokenizers, problems)?;
    Some(alignment)
}

/// The model's input embedding and its number of rows; of several embeddings, the one that its config describes.
fn embedding(checkpoint: &Checkpoint) -> Option<(usize, usize)> {
    let said = checkpoint.config().and_then(|config| config.vocab_size());
    let tensors = checkpoint.tensors().iter().enumerate();
    let found: Vec<(usize, usize)> = tensors
        .filter(|(_, tensor)| is_input_embedding(&tensor.name))
        .filter_map(|(index, tensor)| Some((index, *tensor.shape.first()?)))
        .collect();
    found
        .iter()
        .find(|(_, rows)| Some(*rows) == said)
        .or(found.first())
        .copied()
}

/// Drops the tokens that have no row in their model's embedding. The source's own vocabulary stays, as its file could not
/// be written without a part of it.
fn drop_beyond(
    models: &Models,
    source: usize,
    tokenizers: &mut [Option<Tokenizer>],
    notes: &mut Vec<String>,
) {
    for (model, tokenizer) in tokenizers.iter_mut().enumerate() {
        let rows = embedding(&models.checkpoints[model]).map(|(_, rows)| rows);
        let (Some(tokenizer), Some(rows)) = (tokenizer, rows) else {
            continue;
        };
        let dropped = tokenizer.drop_beyond(rows, model != source);
        if !dropped.is_empty() {
            notes.push(format!(
                "{} of `{}` dropped, as its embedding has {rows} rows: {}",
                count(dropped.len(), "token"),
                models.label(model),
                some_of(&dropped)
            ));
        }
    }
}

/// The tokenizers that matter, by checkpoint; a model without one is assumed to have the base's.
fn read_all(
    key: &TokenizerKey,
    models: &Models,
    source: usize,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<Vec<Option<Tokenizer>>> {
    let mut matters = vec![false; models.checkpoints.len()];
    let named = key
        .mentions()
        .filter_map(|model| models.index(&model.value));
    for model in (0..models.merged).chain(named).chain([source]) {
        if let Some(matters) = matters.get_mut(model) {
            *matters = true;
        }
    }
    let mut tokenizers: Vec<Option<Tokenizer>> = Vec::new();
    let mut without = Vec::new();
    let mut sound = true;
    for (model, matters) in matters.iter().enumerate() {
        let mut found = None;
        if *matters {
            let label = models.label(model);
            match Tokenizer::open(&models.checkpoints[model]) {
                Ok(TokenizerKind::Fast(mut tokenizer)) => {
                    if model != source {
                        tokenizer.keep_tokens_only();
                    }
                    found = Some(*tokenizer);
                }
                Ok(TokenizerKind::Other(names)) => {
                    sound = false;
                    problems.add(
                        models.at[model],
                        format!("`{label}` has no tokenizer.json, only {}", some_of(&names)),
                        Some(format!(
                            "write one: `AutoTokenizer.from_pretrained(\"{label}\").save_pretrained(\"{label}\")` in \
                             transformers"
                        )),
                    );
                }
                Ok(TokenizerKind::None) => without.push(model),
                Err(error) => {
                    sound = false;
                    problems.add_error(models.at[model], &error);
                }
            }
        }
        tokenizers.push(found);
    }
    let base = models.donor;
    for model in without {
        let rows = |model: usize| embedding(&models.checkpoints[model]).map(|(_, rows)| rows);
        let like_base = model != base && model != source && rows(model) == rows(base);
        if like_base && let Some(of_base) = tokenizers.get(base).cloned().flatten() {
            notes.push(format!(
                "`{}` has no tokenizer; its tokens are taken to be those of `{}`",
                models.label(model),
                models.label(base)
            ));
            tokenizers[model] = Some(of_base);
            continue;
        }
        sound = false;
        problems.add(
            models.at[model],
            format!(
                "`{}` has no tokenizer, so nothing tells what its rows stand for",
                models.label(model)
            ),
            Some("put its tokenizer.json into its folder".to_owned()),
        );
    }
    sound.then_some(tokenizers)
}

/// Adds tokens to the source's vocabulary.
struct Builder<'v> {
    vocabulary: &'v mut Tokenizer,
    /// Tokens of other models' own vocabularies that were added.
    ordinary: Vec<String>,
    /// Added tokens whose flags differ.
    disagreeing: Vec<String>,
}

impl Builder<'_> {
    fn build(
        &mut self,
        key: &TokenizerKey,
        models: &Models,
        source: usize,
        tokenizers: &[Option<Tokenizer>],
    ) -> Result<(), (String, String)> {
        if matches!(key.source, VocabularySource::Union) {
            let others = tokenizers[..models.merged].iter().enumerate();
            for tokenizer in others
                .filter(|(model, _)| *model != source)
                .filter_map(|(_, tokenizer)| tokenizer.as_ref())
            {
                self.unite(tokenizer)?;
            }
        }
        for rule in &key.tokens {
            let token = &rule.token.value;
            if self.vocabulary.id(token).is_none() {
                self.add(AddedToken::ordinary(token.clone()))?;
            }
        }
        Ok(())
    }

    fn unite(&mut self, other: &Tokenizer) -> Result<(), (String, String)> {
        let added: HashMap<&str, &AddedToken> = other
            .added()
            .iter()
            .map(|token| (token.content.as_str(), token))
            .collect();
        let ours: HashMap<String, AddedToken> = self
            .vocabulary
            .added()
            .iter()
            .map(|token| (token.content.clone(), token.clone()))
            .collect();
        for (_, token) in other.tokens() {
            match (added.get(token), ours.get(token)) {
                (Some(theirs), Some(ours)) if theirs.flags != ours.flags => {
                    self.disagreeing.push(token.to_owned());
                }
                (Some(_), Some(_)) => {}
                (Some(theirs), None) => self.add((*theirs).clone())?,
                (None, _) if self.vocabulary.id(token).is_some() => {}
                (None, _) => {
                    self.ordinary.push(token.to_owned());
                    self.add(AddedToken::ordinary(token.to_owned()))?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, token: AddedToken) -> Result<(), (String, String)> {
        let text = token.content.clone();
        match self.vocabulary.add(token) {
            Ok(_) => Ok(()),
            Err(other) => Err((text, other)),
        }
    }
}

impl<'a> Alignment<'a> {
    /// Compares the vocabulary with every model's, and reads the recipe's rules.
    fn hold(&mut self, tokenizers: &[Option<Tokenizer>], problems: &mut Problems) -> Option<()> {
        let embeddings: Vec<Option<(usize, usize)>> = (self.models.checkpoints.iter())
            .map(|model| embedding(model))
            .collect();
        let end = self.vocabulary.end();
        let of_source = embeddings.get(self.source).copied().flatten();
        let rows = of_source.map_or(end, |(_, rows)| rows.max(end));
        let multiple = self.key.pad_to_multiple_of.unwrap_or(1).max(1);
        self.rows = rows.next_multiple_of(multiple);
        if self.rows > MAX_ROWS {
            let message = format!("the output's embedding would have {} rows", self.rows);
            problems.add(Some(self.key.at), message, None);
            return None;
        }
        let by_recipe: HashMap<&str, bool> = self
            .key
            .tokens
            .iter()
            .map(|rule| (rule.token.value.as_str(), rule.source.is_some()))
            .collect();
        let mut sound = true;
        for (model, tokenizer) in tokenizers.iter().enumerate() {
            let Some(tokenizer) = tokenizer else {
                self.tokens.push(None);
                continue;
            };
            let label = self.models.label(model);
            let Some((embedding, rows)) = embeddings[model] else {
                // A tokenizer may come from a model whose weights do not match; rows cannot.
                if model < self.models.merged {
                    sound = false;
                    problems.add(
                        self.models.at[model],
                        format!("`{label}` has no embedding that could be aligned by token"),
                        Some("remove the recipe's tokenizer key".to_owned()),
                    );
                }
                self.tokens.push(None);
                continue;
            };
            let mut own = vec![None; end];
            let mut named = vec![false; rows];
            let mut rowless = Vec::new();
            for (id, token) in tokenizer.tokens() {
                let row = id as usize;
                if let Some(named) = named.get_mut(row) {
                    *named = true;
                }
                let Some(out) = self.vocabulary.id(token) else {
                    continue;
                };
                if row < rows {
                    own[out as usize] = Some(id);
                } else if by_recipe.get(token) != Some(&true) && model < self.models.merged {
                    rowless.push(token.to_owned());
                }
            }
            if !rowless.is_empty() {
                sound = false;
                problems.add(
                    self.models.at[model],
                    format!(
                        "the embedding of `{label}` has {rows} rows, and its tokenizer {} beyond: {}",
                        count(rowless.len(), "token"),
                        some_of(&rowless)
                    ),
                    Some(format!(
                        "say where their rows come from, such as `tokens: {{\"{}\": {{source: {{kind: zero}}}}}}` under \
                         `tokenizer:`, or drop them by `beyond_embedding: drop` there",
                        rowless.first().map_or("", String::as_str)
                    )),
                );
            }
            self.tokens.push(Some(ModelTokens {
                embedding,
                rows,
                own,
                named,
            }));
        }
        if !sound {
            return None;
        }
        for rule in &self.key.tokens {
            let Some(id) = self.vocabulary.id(&rule.token.value) else {
                continue;
            };
            let row = match &rule.source {
                None => None,
                Some(RowSource::Zero) => Some(RowOf::Zero),
                Some(RowSource::Model(model)) => {
                    let index = self.models.index(&model.value)?;
                    let own = self.tokens[index]
                        .as_ref()
                        .map(|tokens| tokens.own[id as usize]);
                    match own.flatten() {
                        Some(row) => Some(RowOf::Row(index, row)),
                        None => {
                            // If every model has the token, the rule does not apply.
                            if rule.force || !self.all_have(id) {
                                sound = false;
                                self.no_row(index, &rule.token.value, model.at, problems);
                            }
                            None
                        }
                    }
                }
                Some(RowSource::Token(model, name)) => {
                    let index = self.models.index(&model.value)?;
                    match self.row_named(index, name, tokenizers) {
                        Ok(row) => Some(RowOf::Row(index, row)),
                        Err(what) => {
                            sound = false;
                            problems.add(Some(model.at), what, None);
                            None
                        }
                    }
                }
            };
            let force = rule.force;
            self.rules.insert(id, Rule { force, row });
        }
        sound.then_some(())
    }

    fn all_have(&self, id: u32) -> bool {
        let merged = self.tokens[..self.models.merged].iter().flatten();
        merged
            .into_iter()
            .all(|tokens| tokens.own[id as usize].is_some())
    }

    fn no_row(&self, model: usize, token: &str, at: Position, problems: &mut Problems) {
        let message = format!(
            "`{}` has no row for the token {token:?}",
            self.models.label(model)
        );
        let hint = "name a model that has it, or another of its tokens: `{kind: model_token, model: ..., token: ...}`";
        problems.add(Some(at), message, Some(hint.to_owned()));
    }

    fn row_named(
        &self,
        model: usize,
        name: &TokenName,
        tokenizers: &[Option<Tokenizer>],
    ) -> Result<u32, String> {
        let label = self.models.label(model);
        let Some(tokens) = &self.tokens[model] else {
            return Err(format!("`{label}` has no embedding to take a row from"));
        };
        let row = match name {
            TokenName::Id(id) => *id,
            TokenName::Text(text) => tokenizers[model]
                .as_ref()
                .and_then(|tokenizer| tokenizer.id(text))
                .ok_or_else(|| format!("`{label}` has no token {text:?}"))?,
        };
        if row as usize >= tokens.rows {
            return Err(format!(
                "`{label}` has no row {row}: its embedding has {} rows",
                tokens.rows
            ));
        }
        Ok(row)
    }

    /// The summary that `weld plan` shows; adds notes on what may surprise.
    pub(super) fn summary(&self, notes: &mut Vec<String>) -> VocabularySummary {
        let by_shape = self.by_shape.borrow();
        if !by_shape.is_empty() {
            notes.push(format!(
                "{} are aligned by token too: they have a row for each token by their shape, if not by their name",
                some_of(&by_shape)
            ));
        }
        let alike = self.alike.borrow();
        if !alike.is_empty() {
            notes.push(format!(
                "{} have a dimension as long as the vocabulary and are not aligned by token",
                some_of(&alike)
            ));
        }
        let first = self.first.borrow();
        let models: Vec<(usize, Filled)> = match &*first {
            Some((group, rows)) => group
                .iter()
                .copied()
                .zip(rows.filled.iter().copied())
                .collect(),
            None => Vec::new(),
        };
        let zeros = models
            .iter()
            .map(|(_, filled)| filled.nowhere)
            .max()
            .unwrap_or(0);
        if zeros > 0 {
            notes.push(format!(
                "no merged model has {} of the vocabulary: zeros stand there (`tokens:` under `tokenizer:` names \
                 other rows)",
                count(zeros, "token")
            ));
        }
        VocabularySummary {
            source: match &self.key.source {
                VocabularySource::Union => "union".to_owned(),
                VocabularySource::Base => "base".to_owned(),
                VocabularySource::Model(_) => self.models.label(self.source).to_owned(),
            },
            tokens: self.vocabulary.len(),
            rows: self.rows,
            added: self.vocabulary.len().saturating_sub(self.of_source),
            models,
        }
    }
}
