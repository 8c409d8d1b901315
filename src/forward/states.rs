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

/// Prompts, one after the other.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    /// The range of tokens of each prompt; none is empty.
    pub(super) prompts: Vec<Range<usize>>,
}

impl Batch {
    /// Joins prompts, and checks that their tokens are below `vocabulary`.
    pub(super) fn new(prompts: &[Vec<u32>], vocabulary: usize) -> Result<Batch, ForwardError> {
        if prompts.is_empty() {
            return Err(ForwardError::NoPrompt);
        }
        let mut tokens: Vec<u32> = Vec::new();
        let mut ranges = Vec::new();
        for (prompt, of_prompt) in prompts.iter().enumerate() {
            if of_prompt.is_empty() {
                return Err(ForwardError::EmptyPrompt { prompt });
            }
            if let Some(&token) = of_prompt
                .iter()
                .find(|&&token| token as usize >= vocabulary)
            {
                return Err(ForwardError::Token {
                    prompt,
                    token,
                    vocabulary,
                });
            }
            let start = tokens.len();
            tokens.extend(of_prompt);
            ranges.push(start..tokens.len());
        }
        Ok(Batch {
            tokens,
            prompts: ranges,
        })
    }

    /// The index of the last token of each prompt.
    pub(super) fn last_tokens(&self) -> Vec<usize> {
        self.prompts.iter().map(|range| range.end - 1).collect()
    }
}
