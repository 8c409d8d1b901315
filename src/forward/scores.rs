//! What a model says of given tokens: the log-probability of each, and the token that it holds for the likeliest.

use rayon::prelude::*;

use super::decoder::{Decoder, Head, pool};
use super::error::ForwardError;
use super::states::{Batch, States, check};

/// Below so many elements, a model is read quickly enough to be read once for each group of items.
const SMALL_MODEL: u64 = 16 << 20;
/// The tokens of a group of items, which one thread runs, of a small model.
const GROUP: usize = 512;

/// A prompt and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The tokens before, at least one.
    pub prompt: Vec<u32>,
    /// Tokens that follow the prompt, each list on its own.
    pub continuations: Vec<Vec<u32>>,
}

impl Continued {
    /// How many tokens are run for it: the prompt once, and of each continuation all but the last, as what follows that
    /// one is not asked.
    pub fn tokens(&self) -> usize {
        let continuations = self.continuations.iter();
        let seen = continuations.map(|tokens| tokens.len().saturating_sub(1));
        self.prompt.len() + seen.sum::<usize>()
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

    /// Whether threads rather run groups of prompts apart from each other than share the work on each matrix.
    pub(super) fn is_small(&self) -> bool {
        let tensors = self.weights.tensors().iter();
        tensors.map(|tensor| tensor.elements()).sum::<u64>() <= SMALL_MODEL
    }

    /// The scores of each token of each continuation, by prompt and continuation.
    ///
    /// A prompt is run once, whatever the number of its continuations. The weights are read once; those of a model so small
    /// that all of it is at hand once for each group of items, which threads run apart from each other.
    ///
    /// # Errors
    /// As for [`logits`](Self::logits).
    pub fn score(
        &self,
        items: &[Continued],
        threads: usize,
    ) -> Result<Vec<Vec<Vec<TokenScore>>>, ForwardError> {
        if items.is_empty() {
            return Err(ForwardError::NoPrompt);
        }
        let size = if self.is_small() { GROUP } else { usize::MAX };
        let groups = groups(items, size);
        pool(threads)?.install(|| {
            let head = self.head()?;
            let groups = groups.into_par_iter();
            let scores =
                groups.map(|group| self.score_group(&head, &items[group.clone()], group.start));
            let scores: Result<Vec<_>, ForwardError> = scores.collect();
            Ok(scores?.concat())
        })
    }

    /// The scores of items, of which the first has that number in messages.
    fn score_group(
        &self,
        head: &Head,
        items: &[Continued],
        first: usize,
    ) -> Result<Vec<Vec<Vec<TokenScore>>>, ForwardError> {
        let vocabulary = self.settings.vocabulary;
        let mut batch = Batch::default();
        let mut asked = Vec::new();
        for (item, number) in items.iter().zip(first..) {
            if item.prompt.is_empty() {
                return Err(ForwardError::EmptyPrompt { prompt: number });
            }
            let seen = |tokens: &[u32]| tokens.len().saturating_sub(1);
            let longest = item.continuations.iter().map(|tokens| seen(tokens)).max();
            let longest = item.prompt.len() + longest.unwrap_or(0);
            let shares =
                item.continuations.len() != 1 && self.rope.may_share(item.prompt.len(), longest);
            let prompt = match shares {
                true => batch.add(number, &item.prompt, 0..0, vocabulary)?,
                false => 0..0,
            };
            for tokens in &item.continuations {
                check(number, tokens, vocabulary)?;
                let seen = &tokens[..seen(tokens)];
                // The state before the first token is the last of the prompt.
                let (before, rest) = match (shares, seen) {
                    (true, []) => (prompt.end - 1, 0),
                    (true, seen) => {
                        let own = batch.add(number, seen, prompt.clone(), vocabulary)?;
                        (prompt.end - 1, own.start)
                    }
                    (false, seen) => {
                        let whole = [&item.prompt, seen].concat();
                        let own = batch.add(number, &whole, 0..0, vocabulary)?;
                        let before = own.start + item.prompt.len() - 1;
                        (before, before + 1)
                    }
                };
                let states = std::iter::once(before).chain(rest..);
                let each = states.zip(tokens);
                asked.extend(each.map(|(state, &token)| Asked { state, token }));
            }
        }
        let mut scores = self.judge(head, &batch, &asked)?.into_iter();
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
        let followed = batch.sequences.iter();
        let followed = followed.flat_map(|of| of.tokens.start..of.tokens.end - 1);
        let asked: Vec<Asked> = followed
            .map(|state| Asked {
                state,
                token: batch.tokens[state + 1],
            })
            .collect();
        let scores = pool(threads)?.install(|| self.judge(&self.head()?, &batch, &asked))?;
        let mut given = scores.iter().map(|score| score.log_probability);
        let parts = prompts.iter();
        Ok(parts
            .map(|tokens| given.by_ref().take(tokens.len() - 1).collect())
            .collect())
    }

    /// The likeliest token after each state; of equally likely ones, the lowest.
    pub(super) fn likeliest(&self, head: &Head, states: &States) -> Result<Vec<u32>, ForwardError> {
        let (sums, _) = self.sums(head, states, &[])?;
        Ok(sums.iter().map(|sum| sum.likeliest).collect())
    }

    /// The score of each token that is asked for, in their order.
    fn judge(
        &self,
        head: &Head,
        batch: &Batch,
        asked: &[Asked],
    ) -> Result<Vec<TokenScore>, ForwardError> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut wanted: Vec<usize> = asked.iter().map(|asked| asked.state).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let states = self.last_states(batch, &wanted, None)?;
        // Places among the wanted states: each is there.
        let places = asked.iter().map(|asked| Asked {
            state: wanted.partition_point(|&state| state < asked.state),
            token: asked.token,
        });
        let asked: Vec<Asked> = places.collect();
        let (sums, logits) = self.sums(head, &states, &asked)?;
        let scores = asked.iter().zip(logits).map(|(asked, logit)| {
            let sum = &sums[asked.state];
            TokenScore {
                log_probability: logit - sum.logarithm(),
                likeliest: sum.likeliest,
            }
        });
        Ok(scores.collect())
    }

    /// The sum of the powers of each state's logits, and the logits that are asked for.
    ///
    /// Logits are not stored: they are summed as they are computed, a tile of the head at a time.
    fn sums(
        &self,
        head: &Head,
        states: &States,
        asked: &[Asked],
    ) -> Result<(Vec<LogSum>, Vec<f64>), ForwardError> {
        let states = self.normed(&head.norm, states)?;
        let mut sums = vec![LogSum::default(); states.tokens];
        let mut logits = vec![0.0; asked.len()];
        let measure = |first: usize, tile: Vec<f32>| {
            let of_tile = LogSum::of_tile(first as u32, &tile, states.tokens);
            let rows = tile.len() / states.tokens;
            let here = asked.iter().enumerate().filter_map(|(at, asked)| {
                let row = (asked.token as usize).checked_sub(first)?;
                let logit = (row < rows).then(|| tile[row * states.tokens + asked.state]);
                Some((at, f64::from(logit?)))
            });
            Ok((of_tile, here.collect::<Vec<(usize, f64)>>()))
        };
        self.by_tiles(&head.matrix, &states, measure, |(of_tile, here)| {
            for (sum, tile) in sums.iter_mut().zip(of_tile) {
                sum.fold(tile);
            }
            for (at, logit) in here {
                logits[at] = logit;
            }
        })?;
        Ok((sums, logits))
    }
}

/// Cuts items into groups of about so many tokens.
fn groups(items: &[Continued], size: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (at, item) in items.iter().enumerate() {
        tokens += item.tokens();
        if tokens >= size || at + 1 == items.len() {
            groups.push(start..at + 1);
            (start, tokens) = (at + 1, 0);
        }
    }
    groups
}

/// A token that is asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// The place of the state that it follows.
    state: usize,
    token: u32,
}

/// The logarithm of a sum of powers, and its largest term.
#[derive(Debug, Clone, Copy)]
struct LogSum {
    largest: f32,
    /// The token of the largest logit.
    likeliest: u32,
    /// The sum of powers, divided by the largest power.
    sum: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        LogSum {
            largest: f32::NEG_INFINITY,
            likeliest: 0,
            sum: 0.0,
        }
    }
}

impl LogSum {
    /// The sums of a tile of logits, `tokens of the vocabulary x states`, of which the first row is token `first`.
    fn of_tile(first: u32, tile: &[f32], states: usize) -> Vec<LogSum> {
        let mut sums = vec![LogSum::default(); states];
        for (row, token) in tile.chunks_exact(states).zip(first..) {
            for (sum, &logit) in sums.iter_mut().zip(row) {
                if logit > sum.largest {
                    (sum.largest, sum.likeliest) = (logit, token);
                }
            }
        }
        // The terms are at most one, so that f32 suffices for each, and their sum is f64.
        for row in tile.chunks_exact(states) {
            for (sum, &logit) in sums.iter_mut().zip(row) {
                sum.sum += f64::from((logit - sum.largest).exp());
            }
        }
        sums
    }

    /// Adds the terms of later tokens.
    fn fold(&mut self, other: LogSum) {
        let distance = f64::from(other.largest) - f64::from(self.largest);
        if distance <= 0.0 {
            self.sum += other.sum * distance.exp();
        } else {
            self.sum = other.sum + self.sum * (-distance).exp();
            (self.largest, self.likeliest) = (other.largest, other.likeliest);
        }
    }

    fn logarithm(&self) -> f64 {
        f64::from(self.largest) + self.sum.ln()
    }
}
