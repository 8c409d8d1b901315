//! LoRA adapters: what `model+adapter` changes in a model, applied while tensors are read.
//!
//! PEFT's files are read as PEFT reads them; nothing is merged beforehand, on disk or in memory. Every tensor of
//! the adapter finds its place in the model, or is an error. It must not know recipes or methods.

mod config;
mod error;
mod keys;
mod modules;
mod pattern;
mod targets;
#[cfg(test)]
mod tests;
mod tied;
mod weights;

use std::collections::BTreeMap;

pub use error::AdapterError;

use super::locate::Location;
use super::reader::Checkpoint;
use config::AdapterConfig;
use numeric::{Elements, Factor, FloatType, Lengths, LowRank, Norms, Order, Stored};
use weights::Weights;

/// An adapter that is attached to a checkpoint.
#[derive(Debug)]
pub struct Adapter {
    location: Location,
    weights: Weights,
    /// Which of the checkpoint's shards is the adapter's file.
    shard: usize,
    /// What becomes of the checkpoint's tensors, by their index.
    changes: BTreeMap<usize, Change>,
}

/// What becomes of a tensor: replaced, updated, or the one and then the other.
#[derive(Debug, Default)]
struct Change {
    /// The adapter's tensor that takes its place.
    whole: Option<usize>,
    update: Option<Update>,
}

/// A low-rank update; see [`LowRank`].
#[derive(Debug)]
struct Update {
    left: Side,
    right: Side,
    rank: usize,
    scale: f64,
    /// The length of a row of the tensor.
    columns: usize,
    /// DoRA's lengths: the adapter's tensor, and those that are found.
    lengths: Option<(usize, Norms)>,
}

/// A factor of an update.
#[derive(Debug, Clone, Copy)]
enum Side {
    /// A tensor of the adapter.
    Tensor(usize, Order),
    /// The number one, of rank one: what a vector is added by.
    One,
}

/// One, as an F64.
static ONE: [u8; 8] = 1f64.to_le_bytes();

impl Adapter {
    /// Reads an adapter's config and header, and finds the tensors of the model that it changes.
    ///
    /// A head that the adapter unties from its embedding becomes a tensor of the checkpoint, and its config
    /// says so.
    pub(super) fn attach(
        location: &Location,
        model: &mut Checkpoint,
    ) -> Result<Adapter, AdapterError> {
        let (weights, shard) = weights::open(&location.path)?;
        let config = AdapterConfig::read(&location.path)?;
        let changes = modules::place(&weights, &config, model)?;
        model.notes.extend(config.notes.iter().cloned());
        model.notes.extend(other_base(&config, model.location()));
        model.shards.push(shard);
        Ok(Adapter {
            location: location.clone(),
            weights,
            shard: model.shards.len() - 1,
            changes,
        })
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The least and the largest rank; none where it only replaces tensors.
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let ranks = || self.updates().map(|update| update.rank);
        Some((ranks().min()?, ranks().max()?))
    }

    /// Whether it gives rows or columns new lengths (DoRA).
    pub fn is_dora(&self) -> bool {
        self.updates().any(|update| update.lengths.is_some())
    }

    /// The checkpoint's tensors that it changes, as indexes, in order.
    pub fn changed(&self) -> impl ExactSizeIterator<Item = usize> {
        self.changes.keys().copied()
    }

    /// Whether it changes a tensor.
    pub fn changes(&self, tensor: usize) -> bool {
        self.changes.contains_key(&tensor)
    }

    /// Bytes that it holds at the end of a run at the most: a number for each row or column with a new length.
    pub fn held(&self) -> u64 {
        self.updates()
            .filter_map(|update| update.lengths.as_ref())
            .map(|(wanted, _)| self.weights.tensors[*wanted].elements() * size_of::<f64>() as u64)
            .sum()
    }

    fn updates(&self) -> impl Iterator<Item = &Update> {
        self.changes
            .values()
            .filter_map(|change| change.update.as_ref())
    }

    /// Bytes of the adapter's tensor that takes the place of the model's, if one does.
    pub(super) fn replaced(&self, tensor: usize) -> Option<u64> {
        let whole = self.changes.get(&tensor)?.whole?;
        Some(self.weights.tensors[whole].len)
    }

    /// The bytes of a tensor that it changes, if they are in its file as they are.
    pub(super) fn bytes<'a>(&'a self, tensor: usize, model: &'a Checkpoint) -> Option<&'a [u8]> {
        let change = self.changes.get(&tensor)?;
        let whole = &self.weights.tensors[change.whole?];
        let alike = change.update.is_none() && whole.dtype == model.tensors()[tensor].dtype;
        alike.then(|| model.shards()[self.shard].slice(whole.offset, whole.len))
    }

    /// The values of a tensor, `stored` without the adapter.
    pub(super) fn elements<'a>(
        &'a self,
        tensor: usize,
        stored: Stored<'a>,
        model: &'a Checkpoint,
    ) -> Box<dyn Elements + 'a> {
        let Some(change) = self.changes.get(&tensor) else {
            return Box::new(stored);
        };
        let own = |index| self.stored(index, stored.format, model);
        let base = change.whole.map_or(stored, own);
        let Some(update) = &change.update else {
            return Box::new(base);
        };
        let factor = |side| match side {
            Side::Tensor(index, order) => Factor {
                values: own(index),
                order,
            },
            Side::One => Factor {
                values: Stored {
                    bytes: &ONE,
                    format: FloatType::F64,
                },
                order: Order::ByRank,
            },
        };
        Box::new(LowRank {
            base,
            columns: update.columns,
            left: factor(update.left),
            right: factor(update.right),
            rank: update.rank,
            scale: update.scale,
            lengths: update.lengths.as_ref().map(|(wanted, found)| Lengths {
                wanted: own(*wanted),
                found,
            }),
        })
    }

    /// A tensor of the adapter; all that are used as numbers were seen to be of a float type.
    fn stored<'a>(&self, index: usize, otherwise: FloatType, model: &'a Checkpoint) -> Stored<'a> {
        let tensor = &self.weights.tensors[index];
        Stored {
            bytes: model.shards()[self.shard].slice(tensor.offset, tensor.len),
            format: FloatType::of(tensor.dtype).unwrap_or(otherwise),
        }
    }
}

/// Notes that the adapter names another model than it is used with, as far as names tell.
fn other_base(config: &AdapterConfig, model: &Location) -> Option<String> {
    let trained = config.base_model.as_deref()?;
    let last = |name: &str| -> String {
        let name = name.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\'])
            .next()
            .unwrap_or(name)
            .to_lowercase()
    };
    let used = match &model.hub {
        Some(hub) => hub.repo.clone(),
        None => model.path.display().to_string(),
    };
    (last(trained) != last(&used)).then(|| {
        format!(
            "{} says that it was trained on `{trained}`, and it is used with `{used}`",
            config.path().display()
        )
    })
}
