//! Values of tokens, `features x tokens`, and the prompts that the tokens belong to.

use std::ops::Range;

use super::error::ForwardError;
use numeric::NonFinite;

/// A matrix with one row per feature and one column per token, in row order.
#[derive(Debug, Clone)]
pub(super) struct States {
    pub(super) values: Vec<f32>,
    pub(super) rows: usize,
    pub(super) tokens: usize,
}

impl States {
    /// Zeros.
    pub(super) fn zeros(rows: usize, tokens: usize) -> Result<States, ForwardError> {
        let mut values = Vec::new();
        let length = rows.checked_mul(tokens);
        let reserved = length.and_then(|length| values.try_reserve_exact(length).ok());
        let (Some(length), Some(())) = (length, reserved) else {
            return Err(ForwardError::Memory { rows, tokens });
        };
        values.resize(length, 0.0);
        Ok(States {
            values,
            rows,
            tokens,
        })
    }

    /// A selection of the tokens, in the given order.
    pub(super) fn select(&self, tokens: &[usize]) -> Result<States, ForwardError> {
        let mut selected = States::zeros(self.rows, tokens.len())?;
        let rows = self.values.chunks_exact(self.tokens);
        for (out, row) in selected.values.chunks_exact_mut(tokens.len()).zip(rows) {
            for (out, &token) in out.iter_mut().zip(tokens) {
                *out = row[token];
            }
        }
        Ok(selected)
    }

    /// Adds `factor` times another matrix.
    pub(super) fn add(&mut self, others: &States, factor: f32) {
        for (value, other) in self.values.iter_mut().zip(&others.values) {
            *value += factor * other;
        }
    }

    /// `tokens x features`, in row order.
    pub(super) fn by_token(&self, out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.values.len(), 0.0);
        for (feature, row) in self.values.chunks_exact(self.tokens).enumerate() {
            for (token, value) in row.iter().enumerate() {
                out[token * self.rows + feature] = *value;
            }
        }
    }

    /// Returns an error if any value is NaN or infinite.
    pub(super) fn check(&self, place: impl FnOnce() -> String) -> Result<(), ForwardError> {
        let NonFinite { nan, infinite } = NonFinite::count(&self.values);
        if nan + infinite == 0 {
            return Ok(());
        }
        Err(ForwardError::NotFinite {
            place: place(),
            nan,
            infinite,
        })
    }
}

/// Tokens of a batch that follow one another, and the keys that they see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Its tokens in the batch; none is empty.
    pub(super) tokens: Range<usize>,
    /// The keys of what comes before it and is shared with other sequences; may be empty.
    pub(super) shared: Range<usize>,
    /// The keys of its own: at the end those of its tokens, before them those of earlier runs.
    pub(super) own: Range<usize>,
}

impl Sequence {
    /// The position of its first token.
    pub(super) fn position(&self) -> usize {
        self.length() - self.tokens.len()
    }

    /// How many tokens the last of its tokens sees, itself among them.
    pub(super) fn length(&self) -> usize {
        self.shared.len() + self.own.len()
    }
}

/// Tokens that are run together, one sequence after the other.
#[derive(Debug, Default, Clone)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) sequences: Vec<Sequence>,
}

impl Batch {
    /// Joins prompts, and checks that their tokens are below `vocabulary`.
    pub(super) fn new(prompts: &[Vec<u32>], vocabulary: usize) -> Result<Batch, ForwardError> {
        if prompts.is_empty() {
            return Err(ForwardError::NoPrompt);
        }
        let mut batch = Batch::default();
        for (prompt, tokens) in prompts.iter().enumerate() {
            batch.add(prompt, tokens, 0..0, vocabulary)?;
        }
        Ok(batch)
    }

    /// Adds the tokens of a prompt that follow those of the range `shared`; messages call it by its number.
    pub(super) fn add(
        &mut self,
        prompt: usize,
        tokens: &[u32],
        shared: Range<usize>,
        vocabulary: usize,
    ) -> Result<Range<usize>, ForwardError> {
        if tokens.is_empty() {
            return Err(ForwardError::EmptyPrompt { prompt });
        }
        check(prompt, tokens, vocabulary)?;
        let range = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend(tokens);
        self.sequences.push(Sequence {
            tokens: range.clone(),
            shared,
            own: range.clone(),
        });
        Ok(range)
    }

    /// The range of tokens of each sequence.
    pub(super) fn ranges(&self) -> Vec<Range<usize>> {
        let sequences = self.sequences.iter();
        sequences.map(|sequence| sequence.tokens.clone()).collect()
    }

    /// The index of the last token of each sequence.
    pub(super) fn last_tokens(&self) -> Vec<usize> {
        let sequences = self.sequences.iter();
        sequences.map(|sequence| sequence.tokens.end - 1).collect()
    }
}

/// Checks that the tokens of a prompt are below `vocabulary`.
pub(super) fn check(prompt: usize, tokens: &[u32], vocabulary: usize) -> Result<(), ForwardError> {
    let unknown = tokens.iter().find(|&&token| token as usize >= vocabulary);
    match unknown {
        None => Ok(()),
        Some(&token) => Err(ForwardError::Token {
            prompt,
            token,
            vocabulary,
        }),
    }
}
