//! Router rows from prompts: hidden states of the model, or sums of token embeddings.

use std::ops::Range;

use super::rows::{Rows, normalize};
use super::{Prompt, Recipe};
use checkpoint::Checkpoint;
use errors::Refusal;
use forward::{Decoder, Observer};
use recipe::PromptTokens;

/// The rows of all layers, from the states of the prompts.
pub(super) fn hidden(
    recipe: &Recipe,
    model: &Checkpoint,
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Rows>, Refusal> {
    let config = model
        .config()
        .map(|config| config.value())
        .ok_or("the base has no config.json")?;
    let told = |error: forward::ForwardError| {
        Refusal::from(&error).within(format_args!(
            "the states of `{}` for the routers",
            model.label()
        ))
    };
    let decoder = Decoder::new(config, model).map_err(told)?;
    let mut sums = Sums {
        recipe,
        rows: vec![Rows::zero(recipe); recipe.names.len()],
        prompts: &[],
    };
    let last = recipe.layers.last().copied();
    for batch in batches(&recipe.prompts, recipe.most_tokens) {
        if cancelled() {
            return Err("stopped".into());
        }
        sums.prompts = batch;
        let tokens: Vec<Vec<u32>> = batch.iter().map(|prompt| prompt.tokens.clone()).collect();
        decoder
            .run(&tokens, threads, &mut sums, last)
            .map_err(told)?;
    }
    Ok(sums.rows)
}

/// Groups prompts into batches of at most `most` tokens; a longer prompt is a batch of its own. Each batch reads the
/// weights once.
fn batches(prompts: &[Prompt], most: usize) -> Vec<&[Prompt]> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        if tokens + prompt.tokens.len() > most && start < index {
            batches.push(&prompts[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += prompt.tokens.len();
    }
    batches.push(&prompts[start..]);
    batches
}

/// Adds each prompt's state to the row that it counts for.
struct Sums<'r> {
    recipe: &'r Recipe,
    rows: Vec<Rows>,
    /// The prompts of the batch.
    prompts: &'r [Prompt],
}

impl Sums<'_> {
    fn add(&mut self, layer: usize, states: &[f32], ranges: &[Range<usize>]) {
        let hidden = self.recipe.hidden;
        let Some(place) = self.recipe.layers.iter().position(|of| *of == layer) else {
            return;
        };
        for (prompt, range) in self.prompts.iter().zip(ranges) {
            let taken = match self.recipe.tokens {
                PromptTokens::Last => range.end.saturating_sub(1)..range.end,
                // The token that begins every text is left out: it says nothing about this one.
                PromptTokens::Mean => {
                    (range.start + usize::from(prompt.begins)).min(range.end - 1)..range.end
                }
            };
            let weight = prompt.weight / taken.len() as f64;
            let row = &mut self.rows[place].values[prompt.row * hidden..][..hidden];
            for state in states[taken.start * hidden..taken.end * hidden].chunks_exact(hidden) {
                for (sum, value) in row.iter_mut().zip(state) {
                    *sum += weight * f64::from(*value);
                }
            }
        }
    }
}

impl Observer for Sums<'_> {
    fn layer_input(&mut self, layer: usize, states: &[f32], prompts: &[Range<usize>]) {
        if !self.recipe.mode.sees_gate_inputs() {
            self.add(layer, states, prompts);
        }
    }

    fn gate_input(&mut self, layer: usize, states: &[f32], prompts: &[Range<usize>]) {
        if self.recipe.mode.sees_gate_inputs() {
            self.add(layer, states, prompts);
        }
    }

    fn wants_gate_inputs(&self) -> bool {
        self.recipe.mode.sees_gate_inputs()
    }
}

/// The row of each expert from the token embeddings of its prompts: the sum over the positive prompts, scaled to unit
/// length, minus that over the negative ones, scaled likewise.
pub(super) fn embedded(recipe: &Recipe, model: &Checkpoint) -> Result<Rows, Refusal> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let hidden = recipe.hidden;
    let mut rows = Rows::zero(recipe);
    let mut token_row = vec![0f32; hidden];
    for positive in [true, false] {
        let mut sums = Rows::zero(recipe);
        let of_polarity = recipe
            .prompts
            .iter()
            .filter(|prompt| (prompt.weight > 0.0) == positive);
        for prompt in of_polarity {
            let sum = &mut sums.values[prompt.row * hidden..][..hidden];
            for &token in &prompt.tokens {
                forward::read(model, EMBEDDING, token as usize * hidden, &mut token_row).map_err(
                    |error| {
                        Refusal::from(&error).within(format_args!("the embedding of token {token}"))
                    },
                )?;
                for (sum, value) in sum.iter_mut().zip(&token_row) {
                    *sum += f64::from(*value);
                }
            }
        }
        let sign = if positive { 1.0 } else { -1.0 };
        for (row, sum) in rows
            .values
            .chunks_exact_mut(hidden)
            .zip(sums.values.chunks_exact_mut(hidden))
        {
            // Without negative prompts, the sum is zero.
            if normalize(sum) {
                row.iter_mut()
                    .zip(sum)
                    .for_each(|(row, sum)| *row += sign * *sum);
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_batched_in_order_and_none_is_lost() {
        let prompt = |tokens: usize| Prompt {
            row: 0,
            weight: 1.0,
            begins: false,
            tokens: vec![0; tokens],
        };
        let prompts: Vec<Prompt> = [3, 4, 100, 1, 1, 1].map(prompt).into();
        let lens = |most: usize| -> Vec<usize> {
            batches(&prompts, most)
                .iter()
                .map(|batch| batch.len())
                .collect()
        };
        assert_eq!(lens(usize::MAX), [6]);
        // Batches of seven tokens; the longer prompt is alone.
        assert_eq!(lens(7), [2, 1, 3]);
        assert_eq!(lens(0), [1; 6]);
    }
}
