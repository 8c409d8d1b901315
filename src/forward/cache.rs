//! Keys and values of tokens that have been run, so that those that follow need not run them again.

use super::error::ForwardError;
use super::states::{Batch, States};

/// The keys and values of each layer, features x slots. A sequence has slots that follow one another.
pub(super) struct Cache {
    layers: Vec<(States, States)>,
}

impl Cache {
    /// An empty cache of that many layers, features of keys, and slots.
    pub(super) fn new(layers: usize, features: usize, slots: usize) -> Result<Cache, ForwardError> {
        let layers = (0..layers).map(|_| {
            let keys = States::zeros(features, slots)?;
            Ok((keys, States::zeros(features, slots)?))
        });
        Ok(Cache {
            layers: layers.collect::<Result<_, ForwardError>>()?,
        })
    }

    /// Puts the keys and values of a batch into the last of its sequences' own slots; returns all of the layer.
    pub(super) fn keep(
        &mut self,
        layer: usize,
        key: &States,
        value: &States,
        batch: &Batch,
    ) -> (&States, &States) {
        let (keys, values) = &mut self.layers[layer];
        for (kept, new) in [(&mut *keys, key), (&mut *values, value)] {
            let rows = kept.values.chunks_exact_mut(kept.tokens);
            for (row, new) in rows.zip(new.values.chunks_exact(new.tokens)) {
                for sequence in &batch.sequences {
                    let new = &new[sequence.tokens.clone()];
                    row[sequence.own.end - new.len()..sequence.own.end].copy_from_slice(new);
                }
            }
        }
        (keys, values)
    }
}
