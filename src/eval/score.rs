//! Runs a model over prepared items, a batch at a time.

use crate::error::EvalError;
use crate::prepare::{Judged, Options, Prepared, PreparedItem};
use crate::scores::{ItemScore, Scores, TaskScores};
use crate::surroundings::Surroundings;
use crate::task::Tasks;
use checkpoint::Checkpoint;
use errors::Refusal;
use forward::{Continued, Decoder, TokenScore, batches};

/// The scores of the runs of items: by run, continuation and token.
type Runs<'s> = &'s [Vec<Vec<TokenScore>>];

/// Hears how far scoring has come, and may stop it.
pub trait Listener {
    /// So many of all items are done.
    fn scored(&self, items: usize, all: usize);

    /// Whether to stop.
    fn is_stopped(&self) -> bool;
}

/// Hears nothing.
impl Listener for () {
    fn scored(&self, _items: usize, _all: usize) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// Scores a model on tasks, with the tokenizer beside its weights.
///
/// # Errors
/// As of [`Prepared::new`] and [`Prepared::score`].
pub fn score(
    model: &Checkpoint,
    tasks: &Tasks,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Scores, EvalError> {
    let surroundings = Surroundings::of_checkpoint(model)?;
    Prepared::new(&surroundings, tasks, options, listener)?.score(model, listener)
}

impl Prepared {
    /// Scores a model whose vocabulary is that of the items.
    ///
    /// # Errors
    /// The model cannot be run, a token is none of its, or the listener asks to stop.
    pub fn score(&self, model: &Checkpoint, listener: &dyn Listener) -> Result<Scores, EvalError> {
        let label = model.label();
        let failed = EvalError::forward(label);
        let Some(config) = model.config() else {
            let why = Refusal::new(format!("model `{label}`: there is no config.json"));
            return Err(why.with_hint("name the model's folder").into());
        };
        let decoder = Decoder::new(config.value(), model).map_err(failed)?;
        self.check_tokens(decoder.vocabulary())?;
        let items: Vec<&PreparedItem> = self.items.iter().collect();
        let of_token = match self.options.generate {
            Some(_) => decoder.bytes_per_token() + decoder.cached_bytes_per_token(),
            None => decoder.bytes_per_token(),
        };
        let most = self.options.memory / of_token.max(1);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let more = self.options.generate.unwrap_or(0);
        let mut scored = Vec::with_capacity(items.len());
        let tokens =
            |item: &&PreparedItem| more + item.runs.iter().map(Continued::tokens).sum::<usize>();
        for batch in batches(&items, most, tokens) {
            let runs: Vec<Continued> = batch.iter().flat_map(|item| item.runs.clone()).collect();
            let mut scores = Vec::with_capacity(runs.len());
            // A long text is more runs than one batch takes.
            for runs in batches(&runs, most, Continued::tokens) {
                if listener.is_stopped() {
                    return Err(EvalError::Stopped);
                }
                let some = decoder.score(runs, self.options.threads).map_err(failed)?;
                scores.extend(some);
            }
            let mut scores = scores.into_iter();
            for item in batch {
                let of_item: Vec<_> = scores.by_ref().take(item.runs.len()).collect();
                scored.push(item.judge(&of_item));
            }
            if let Some(most) = self.options.generate {
                let first = scored.len() - batch.len();
                self.write(&decoder, batch, &mut scored[first..], most)
                    .map_err(failed)?;
            }
            listener.scored(scored.len(), items.len());
        }
        let tasks = self.tasks.iter().map(|task| {
            let items = task.items.iter().map(|&(line, item)| ItemScore {
                line,
                ..scored[item].clone()
            });
            TaskScores {
                task: task.name.clone(),
                kind: task.kind,
                items: items.collect(),
            }
        });
        Ok(Scores {
            model: label.to_owned(),
            split: self.options.split,
            seed: self.options.seed,
            limit: self.options.limit,
            chat_template: self.options.chat_template,
            tasks: tasks.collect(),
        })
    }
}

impl Prepared {
    /// Checks that every token is one of the model's.
    fn check_tokens(&self, vocabulary: usize) -> Result<(), EvalError> {
        for task in &self.tasks {
            for &(line, item) in &task.items {
                let Some(token) = self.items[item].largest_token() else {
                    continue;
                };
                if token as usize >= vocabulary {
                    let why = format!(
                        "expected tokens below {vocabulary}, as many as the model has, found {token}"
                    );
                    let why = Refusal::new(why)
                        .with_hint("take the tokens of this model's vocabulary, or give text");
                    return Err(EvalError::Line {
                        path: task.file.clone(),
                        line,
                        why,
                    });
                }
            }
        }
        Ok(())
    }
}

impl PreparedItem {
    fn largest_token(&self) -> Option<u32> {
        let of_run = |run: &Continued| {
            let continued = run.continuations.iter().flatten();
            continued.chain(&run.prompt).copied().max()
        };
        self.runs.iter().filter_map(of_run).max()
    }

    fn judge(&self, runs: Runs<'_>) -> ItemScore {
        let sum = |scores: &[TokenScore]| -> f64 {
            scores.iter().map(|score| score.log_probability).sum()
        };
        let mut score = ItemScore {
            item: self.digest,
            line: 0,
            correct: None,
            correct_normalised: None,
            log_likelihood: 0.0,
            tokens: 0,
            bytes: None,
            unknown: self.unknown,
            written: None,
            choices: Vec::new(),
        };
        match &self.judged {
            Judged::Answer { ends, .. } => {
                let written = self.runs[0].continuations.iter().zip(&runs[0]);
                let mut best: Option<(f64, usize)> = None;
                let mut correct = false;
                for (tokens, scores) in written {
                    // The last token stands for any end.
                    let length = tokens.len() - 1;
                    let same = tokens[..length].iter().zip(scores);
                    let mut same = same.map(|(token, score)| *token == score.likeliest);
                    correct |= same.all(|same| same) && ends.contains(&scores[length].likeliest);
                    let likelihood = sum(&scores[..length]);
                    if best.is_none_or(|(best, _)| likelihood > best) {
                        best = Some((likelihood, length));
                    }
                }
                score.correct = Some(correct);
                (score.log_likelihood, score.tokens) = best.unwrap_or_default();
            }
            Judged::Choices { right, lengths } => {
                score.choices = runs[0].iter().map(|scores| sum(scores)).collect();
                let normalised = score.choices.iter().zip(lengths);
                let normalised: Vec<f64> = normalised
                    .map(|(likelihood, length)| likelihood / *length as f64)
                    .collect();
                score.correct = Some(first_largest(&score.choices) == *right);
                score.correct_normalised = Some(first_largest(&normalised) == *right);
                score.log_likelihood = score.choices[*right];
                score.tokens = runs[0][*right].len();
            }
            Judged::Text { bytes } => {
                let pieces = runs.iter().flatten();
                score.log_likelihood = pieces.clone().map(|piece| sum(piece)).sum();
                score.tokens = pieces.map(Vec::len).sum();
                score.bytes = *bytes;
            }
        }
        score
    }
}

/// The place of the largest value; of equal ones, the first.
fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}
