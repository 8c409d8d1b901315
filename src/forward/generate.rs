//! Greedy decoding: the likeliest token after each prompt, again and again.

use rayon::prelude::*;

use super::cache::Cache;
use super::decoder::{Decoder, Head, pool};
use super::error::ForwardError;
use super::states::{Batch, Sequence};

/// The prompts of a small model that one thread goes on with.
const GROUP: usize = 128;

/// When a text that is written ends.
pub trait Until {
    /// Whether what has been written after a prompt is complete: the last of `tokens` is new.
    fn is_complete(&self, prompt: usize, tokens: &[u32]) -> bool;
}

impl Decoder<'_> {
    /// The bytes that [`generate`](Self::generate) keeps for each token of a prompt and of what it writes.
    pub fn cached_bytes_per_token(&self) -> u64 {
        (2 * 4 * self.layers.len() * self.key_features()) as u64
    }

    fn key_features(&self) -> usize {
        self.settings.key_heads * self.settings.head_dim
    }

    /// Writes after each prompt the likeliest token, of equally likely ones the lowest, until what is written is complete or
    /// has `most` tokens. All prompts go on together; a token is run once, and its keys and values are kept.
    ///
    /// # Errors
    /// As for [`logits`](Self::logits).
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        most: usize,
        until: &(dyn Until + Sync),
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, ForwardError> {
        if prompts.is_empty() {
            return Err(ForwardError::NoPrompt);
        }
        let group = match self.is_small() {
            true => GROUP,
            false => prompts.len(),
        };
        pool(threads)?.install(|| {
            let head = self.head()?;
            let groups = prompts.par_chunks(group).enumerate();
            let written = groups
                .map(|(number, prompts)| self.write(&head, prompts, number * group, most, until));
            let written: Result<Vec<Vec<Vec<u32>>>, ForwardError> = written.collect();
            Ok(written?.concat())
        })
    }

    /// The same for prompts of which the first has that number.
    fn write(
        &self,
        head: &Head,
        prompts: &[Vec<u32>],
        first: usize,
        most: usize,
        until: &(dyn Until + Sync),
    ) -> Result<Vec<Vec<u32>>, ForwardError> {
        let mut batch = Batch::new(prompts, self.settings.vocabulary)?;
        let mut slots = 0;
        for sequence in &mut batch.sequences {
            let length = sequence.tokens.len();
            sequence.own = slots..slots + length;
            // What the last token is followed by is not run.
            slots += length + most.saturating_sub(1);
        }
        let mut cache = Cache::new(self.layers.len(), self.key_features(), slots)?;
        let mut written = vec![Vec::new(); prompts.len()];
        let mut going: Vec<usize> = (0..prompts.len()).collect();
        while !going.is_empty() && most > 0 {
            let last = batch.last_tokens();
            let states = self.last_states(&batch, &last, Some(&mut cache))?;
            let likeliest = self.likeliest(head, &states)?;
            for (&prompt, token) in going.iter().zip(&likeliest) {
                written[prompt].push(*token);
            }
            let sequences = std::mem::take(&mut batch.sequences);
            batch.tokens.clear();
            let mut still = Vec::new();
            for (&prompt, sequence) in going.iter().zip(sequences) {
                let tokens: &Vec<u32> = &written[prompt];
                if tokens.len() == most || until.is_complete(first + prompt, tokens) {
                    continue;
                }
                let at = batch.tokens.len();
                batch.tokens.extend(tokens.last());
                batch.sequences.push(Sequence {
                    tokens: at..at + 1,
                    shared: 0..0,
                    own: sequence.own.start..sequence.own.end + 1,
                });
                still.push(prompt);
            }
            going = still;
        }
        Ok(written)
    }
}
