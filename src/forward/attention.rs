//! Causal attention, one sequence at a time, a block of queries at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::states::{Sequence, States};
use numeric::{View, add_product, multiply_into};

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
    pub(super) fn apply(
        &self,
        query: &mut States,
        key: &States,
        value: &States,
        sequences: &[Sequence],
    ) {
        let tokens = query.tokens;
        let size = self.head_dim * key.tokens;
        let group = self.heads / self.key_heads;
        let heads = query.values.par_chunks_exact_mut(self.head_dim * tokens);
        heads
            .enumerate()
            .for_each_init(Vec::new, |scores, (head, queries)| {
                let first = head / group * size;
                let mut head = Head {
                    queries,
                    tokens,
                    keys: &key.values[first..][..size],
                    values: &value.values[first..][..size],
                    slots: key.tokens,
                };
                for sequence in sequences {
                    for start in sequence.tokens.clone().step_by(QUERIES) {
                        let block = start..sequence.tokens.end.min(start + QUERIES);
                        self.block(&mut head, sequence, block, scores);
                    }
                }
            });
    }

    /// Computes a block of queries of a sequence.
    fn block(
        &self,
        head: &mut Head,
        sequence: &Sequence,
        block: Range<usize>,
        scores: &mut Vec<f32>,
    ) {
        // The position of the first query, and of the first key that it sees.
        let position = sequence.position() + block.start - sequence.tokens.start;
        let first = match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        let hidden = first.min(sequence.shared.len());
        let shared = sequence.shared.start + hidden..sequence.shared.end;
        let own = sequence.own.start + (first - hidden)
            ..sequence.own.end - (sequence.tokens.end - block.end);
        let (count, seen) = (block.len(), shared.len() + own.len());
        // Queries x keys.
        scores.resize(count * seen, 0.0);
        let queries = View {
            values: &head.queries[block.start..],
            rows: count,
            columns: self.head_dim,
            down: 1,
            beside: head.tokens,
        };
        if !shared.is_empty() {
            multiply_into(
                scores,
                seen,
                queries,
                self.part(head.keys, head.slots, &shared),
            );
        }
        let keys = self.part(head.keys, head.slots, &own);
        multiply_into(&mut scores[shared.len()..], seen, queries, keys);
        for (row, position) in scores.chunks_exact_mut(seen).zip(position..) {
            let from = match self.window {
                Some(window) => (position + 1).saturating_sub(window).max(first),
                None => first,
            };
            softmax(row, from - first..position + 1 - first, self.scale);
        }
        // Values are features x keys, scores queries x keys; the result is features x queries.
        let weights = |from: usize, keys: usize| View {
            values: &scores[from..],
            rows: keys,
            columns: count,
            down: 1,
            beside: seen,
        };
        let values = self.part(head.values, head.slots, &own);
        let out = &mut head.queries[block.start..];
        multiply_into(out, head.tokens, values, weights(shared.len(), own.len()));
        if !shared.is_empty() {
            let values = self.part(head.values, head.slots, &shared);
            add_product(out, head.tokens, values, weights(0, shared.len()), 1.0);
        }
    }

    /// The keys or values of a head in those slots: features x keys.
    fn part<'h>(&self, values: &'h [f32], slots: usize, keys: &Range<usize>) -> View<'h> {
        View {
            values: &values[keys.start..],
            rows: self.head_dim,
            columns: keys.len(),
            down: slots,
            beside: 1,
        }
    }
}

/// The data of one head.
struct Head<'a> {
    /// Features x tokens; overwritten by the result, block by block.
    queries: &'a mut [f32],
    tokens: usize,
    /// Features x slots.
    keys: &'a [f32],
    values: &'a [f32],
    slots: usize,
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
