//! Causal attention, one prompt at a time, a block of queries at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::states::{Batch, States};
use numeric::{View, multiply_into};

/// Queries whose scores each thread holds at a time.
const QUERIES: usize = 64;

/// The parameters of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    /// Heads of queries, a multiple of the heads of keys.
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    /// The factor of the products of queries and keys.
    pub(super) scale: f64,
    /// How many keys, up to and including its own, a query sees; all if `None`.
    pub(super) window: Option<usize>,
}

impl Attention {
    /// Computes `softmax(q k) v` for each head, and overwrites the queries with it.
    pub(super) fn apply(&self, query: &mut States, key: &States, value: &States, batch: &Batch) {
        let tokens = query.tokens;
        let size = self.head_dim * tokens;
        let group = self.heads / self.key_heads;
        let heads = query.values.par_chunks_exact_mut(size).enumerate();
        heads.for_each_init(Vec::new, |scores, (head, queries)| {
            let first = head / group * size;
            let mut head = Head {
                queries,
                keys: &key.values[first..][..size],
                values: &value.values[first..][..size],
                tokens,
            };
            for prompt in &batch.prompts {
                for start in prompt.clone().step_by(QUERIES) {
                    let block = start..prompt.end.min(start + QUERIES);
                    self.block(&mut head, prompt.start, block, scores);
                }
            }
        });
    }

    /// Computes a block of queries of the prompt that starts at token `prompt`.
    fn block(&self, head: &mut Head, prompt: usize, block: Range<usize>, scores: &mut Vec<f32>) {
        // The first key that the first query sees.
        let first = match self.window {
            Some(window) => (block.start + 1).saturating_sub(window).max(prompt),
            None => prompt,
        };
        let (count, seen) = (block.len(), block.end - first);
        // Queries x keys.
        scores.resize(count * seen, 0.0);
        let left = View {
            values: &head.queries[block.start..],
            rows: count,
            columns: self.head_dim,
            down: 1,
            beside: head.tokens,
        };
        let right = View {
            values: &head.keys[first..],
            rows: self.head_dim,
            columns: seen,
            down: head.tokens,
            beside: 1,
        };
        multiply_into(scores, seen, left, right);
        for (row, token) in scores.chunks_exact_mut(seen).zip(block.clone()) {
            let from = match self.window {
                Some(window) => (token + 1).saturating_sub(window).max(first),
                None => first,
            };
            softmax(row, from - first..token + 1 - first, self.scale);
        }
        // Values are features x keys, scores queries x keys; the result is features x queries.
        let left = View {
            values: &head.values[first..],
            rows: self.head_dim,
            columns: seen,
            down: head.tokens,
            beside: 1,
        };
        let right = View {
            values: scores,
            rows: seen,
            columns: count,
            down: 1,
            beside: seen,
        };
        multiply_into(&mut head.queries[block.start..], head.tokens, left, right);
    }
}

/// The data of one head: features x tokens each.
struct Head<'a> {
    /// Overwritten by the result, block by block.
    queries: &'a mut [f32],
    keys: &'a [f32],
    values: &'a [f32],
    tokens: usize,
}

/// Turns scores into probabilities: `exp(scale * score)` over their sum where they are visible, zero elsewhere.
fn softmax(scores: &mut [f32], visible: Range<usize>, scale: f64) {
    let scale = scale as f32;
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let scores = &mut scores[visible];
    let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, score| {
        largest.max(scale * score)
    });
    let mut sum = 0f64;
    for score in scores.iter_mut() {
        *score = (scale * *score - largest).exp();
        sum += f64::from(*score);
    }
    let inverse = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|score| *score *= inverse);
}
