//! What a model says of given tokens: the log-probability of each, and the token that it holds for the likeliest.

use rayon::ThreadPool;

use super::decoder::{Decoder, pool};
use super::error::ForwardError;
use super::states::{Batch, States};

/// A prompt and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The tokens before, at least one.
    pub prompt: Vec<u32>,
    /// Tokens that follow the prompt, each list on its own.
    pub continuations: Vec<Vec<u32>>,
}

impl Continued {
    /// How many tokens are run for it. What follows the last token of a continuation is not asked, so that is not run.
    pub fn tokens(&self) -> usize {
        let seen = |continuation: &Vec<u32>| continuation.len().saturating_sub(1);
        let each = self.continuations.iter();
        each.map(|continuation| self.prompt.len() + seen(continuation))
            .sum()
    }
}

/// What a model says of a token, given those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// The natural logarithm of the token's probability.
    pub log_probability: f64,
    /// The likeliest token in its place; of equally likely ones, the lowest.
    pub likeliest: u32,
}

impl Decoder<'_> {
    /// The bytes that a run holds for each token, about: copies of its state, and either its queries, keys and values or
    /// the inner features of an MLP.
    pub fn bytes_per_token(&self) -> u64 {
        let settings = &self.settings;
        let of_attention = 2 * settings.heads + 2 * settings.key_heads;
        let of_experts = settings.mixture.as_ref().map_or(0, |mixture| mixture.width);
        let inner = settings.inner.max(of_experts);
        let widest = (of_attention * settings.head_dim).max(inner);
        (4 * (4 * settings.hidden + widest)) as u64
    }

    /// The scores of each token of each continuation, by prompt and continuation.
    ///
    /// Logits are not stored: they are summed as they are computed, a tile of the head at a time.
    ///
    /// # Errors
    /// As for [`logits`](Self::logits).
    pub fn score(
        &self,
        items: &[Continued],
        threads: usize,
    ) -> Result<Vec<Vec<Vec<TokenScore>>>, ForwardError> {
        let pool = pool(threads)?;
        // What the last token of a continuation is followed by is not asked, so it is not run.
        let mut prompts = Vec::new();
        for item in items {
            for continuation in &item.continuations {
                let seen = &continuation[..continuation.len().saturating_sub(1)];
                prompts.push([&item.prompt, seen].concat());
            }
        }
        let batch = Batch::new(&prompts, self.settings.vocabulary)?;
        let continuations = items.iter().flat_map(|item| {
            let each = item.continuations.iter();
            each.map(|continuation| (item.prompt.len(), continuation))
        });
        let mut asked = Vec::new();
        for (range, (prompt, continuation)) in batch.prompts.iter().zip(continuations) {
            let first = range.start + prompt - 1;
            asked.extend(continuation.iter().enumerate().map(|(at, &token)| Asked {
                state: first + at,
                token,
            }));
        }
        let mut scores = self.judge(&batch, &asked, &pool)?.into_iter();
        let lists = items.iter().map(|item| {
            let each = item.continuations.iter();
            each.map(|tokens| scores.by_ref().take(tokens.len()).collect())
                .collect()
        });
        Ok(lists.collect())
    }

    /// The natural logarithm of the probability of each token but the first, given the tokens before it.
    ///
    /// # Errors
    /// As for [`logits`](Self::logits).
    pub fn log_probabilities(
        &self,
        prompts: &[Vec<u32>],
        threads: usize,
    ) -> Result<Vec<Vec<f64>>, ForwardError> {
        let batch = Batch::new(prompts, self.settings.vocabulary)?;
        let followed = batch.prompts.iter();
        let followed = followed.flat_map(|range| range.start..range.end - 1);
        let asked: Vec<Asked> = followed
            .map(|state| Asked {
                state,
                token: batch.tokens[state + 1],
            })
            .collect();
        let pool = pool(threads)?;
        let scores = self.judge(&batch, &asked, &pool)?;
        let mut given = scores.iter().map(|score| score.log_probability);
        let parts = batch.prompts.iter();
        Ok(parts
            .map(|range| given.by_ref().take(range.len() - 1).collect())
            .collect())
    }

    /// The score of each token that is asked for, in their order.
    fn judge(
        &self,
        batch: &Batch,
        asked: &[Asked],
        pool: &ThreadPool,
    ) -> Result<Vec<TokenScore>, ForwardError> {
        let head = pool.install(|| self.head())?;
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let states = self.last_states(batch, pool)?;
        let wanted: Vec<usize> = asked.iter().map(|asked| asked.state).collect();
        let states = self.normed(&head.norm, &states.select(&wanted)?)?;
        let mut sums = vec![LogSum::default(); asked.len()];
        let measure = |first: usize, tile: Vec<f32>| Ok(measure(first, &tile, &states, asked));
        pool.install(|| {
            self.by_tiles(&head.matrix, &states, measure, |tile| {
                for (sum, tile) in sums.iter_mut().zip(tile) {
                    sum.fold(tile);
                }
            })
        })?;
        Ok(sums.iter().map(LogSum::score).collect())
    }
}

/// A token that is asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// The place of the state that it follows.
    state: usize,
    token: u32,
}

/// The sums of a tile of logits, `tokens of the vocabulary x states`, of which the first row is token `first`.
fn measure(first: usize, tile: &[f32], states: &States, asked: &[Asked]) -> Vec<LogSum> {
    let mut sums = vec![LogSum::default(); states.tokens];
    for (row, token) in tile.chunks_exact(states.tokens).zip(first as u32..) {
        for ((sum, &logit), asked) in sums.iter_mut().zip(row).zip(asked) {
            sum.add(f64::from(logit), token, asked.token);
        }
    }
    sums
}

/// The logarithm of a sum of powers, and one of its terms.
#[derive(Debug, Clone, Copy)]
struct LogSum {
    largest: f64,
    /// The token of the largest logit.
    likeliest: u32,
    /// The sum of powers, divided by the largest power.
    sum: f64,
    /// The logit of the wanted token, once its tile has been read.
    wanted: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        LogSum {
            largest: f64::NEG_INFINITY,
            likeliest: 0,
            sum: 0.0,
            wanted: f64::NEG_INFINITY,
        }
    }
}

impl LogSum {
    fn add(&mut self, logit: f64, token: u32, wanted: u32) {
        self.fold(LogSum {
            largest: logit,
            likeliest: token,
            sum: 1.0,
            wanted: match token == wanted {
                true => logit,
                false => f64::NEG_INFINITY,
            },
        });
    }

    /// Adds the terms of later tokens.
    fn fold(&mut self, other: LogSum) {
        self.wanted = self.wanted.max(other.wanted);
        if other.largest <= self.largest {
            self.sum += other.sum * (other.largest - self.largest).exp();
        } else {
            self.sum = other.sum + self.sum * (self.largest - other.largest).exp();
            (self.largest, self.likeliest) = (other.largest, other.likeliest);
        }
    }

    fn score(&self) -> TokenScore {
        TokenScore {
            log_probability: self.wanted - self.largest - self.sum.ln(),
            likeliest: self.likeliest,
        }
    }
}
