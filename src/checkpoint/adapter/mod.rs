//! Adapters (LoRA, DoRA, LoHa, LoKr): applies `model+adapter` while tensors are read.
//!
//! PEFT's files are read as PEFT reads them; nothing is merged beforehand, on disk or in memory. Every tensor of the
//! adapter must match a tensor of the model, or it is an error. This module must not know recipes or methods.

mod config;
mod conv1d;
mod cuts;
mod error;
mod experts;
mod keys;
mod lycoris;
mod modules;
mod pattern;
mod pieces;
mod single;
mod subject;
mod targets;
#[cfg(test)]
mod tests;
mod tied;
mod vocabulary;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

pub use error::AdapterError;
pub(super) use subject::Subject;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::locate::Location;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{EncodedTensor, TensorEntry, TensorSource};
use config::AdapterConfig;
use lycoris::PairPiece;
use numeric::{
    Elements, Factor, FloatType, Lengths, LowRank, Norms, Order, Paired, Patch, Patched, Stored,
    Tail,
};
use single::SingleFile;
use weights::AdapterWeights;

/// An adapter applied to the tensors of any source.
#[derive(Debug)]
pub struct Adapter {
    location: Location,
    weights: Arc<AdapterWeights>,
    /// What its updates are multiplied with.
    weight: f64,
    /// The source below it.
    base: Arc<dyn TensorSource>,
    /// The tensors with the adapter applied: those of the base, and a head that was untied.
    entries: Vec<TensorEntry>,
    /// For each tensor, the tensor of the base that it starts from.
    from: Vec<usize>,
    /// The changes, by index of the tensor.
    changes: BTreeMap<usize, Change>,
}

/// An adapter that is applied to a model, or to a part of it.
#[derive(Debug, Clone)]
pub struct AppliedAdapter {
    /// The index of the part's first tensor in the model.
    pub first: usize,
    /// The adapter.
    pub adapter: Arc<Adapter>,
}

impl AppliedAdapter {
    /// The model's tensors that it changes, as indexes, in order.
    pub fn changed(&self) -> impl Iterator<Item = usize> {
        self.adapter.changed().map(|index| self.first + index)
    }
}

/// How a tensor changes: it is replaced, whole or by rows, or updated, or first replaced and then updated.
#[derive(Debug, Default)]
struct Change {
    /// The adapter's tensor that replaces it.
    whole: Option<usize>,
    /// The adapter's tensor whose rows replace some of its rows, and which these are, in the same order.
    rows: Option<(usize, Vec<usize>)>,
    /// In the order of what they are for, without overlaps.
    updates: Vec<Update>,
}

/// An update of a tensor, or of some of its rows; see [`LowRank`] and [`Paired`].
#[derive(Debug)]
struct Update {
    /// One of the adapter's tensors, to name it by.
    key: usize,
    /// The first element that it changes.
    first: u64,
    /// How many rows, of so many elements.
    rows: usize,
    columns: usize,
    scale: f64,
    added: Added,
}

/// What an update adds to a matrix, but for the scale.
#[derive(Debug)]
enum Added {
    /// The product of two factors.
    Product {
        left: Side,
        right: Side,
        rank: usize,
        /// DoRA's norms: the adapter's tensor, and the computed norms.
        lengths: Option<(usize, Norms)>,
    },
    /// The product of two matrices, or some of its rows.
    Pair {
        pair: Box<PairPiece>,
        /// The first of these rows.
        first_row: usize,
    },
}

/// What an adapter adds to a matrix: `scale * left right'`.
#[derive(Debug, Clone, Copy)]
pub struct AdapterProduct<'a> {
    /// A vector of length `rank` for each row of the matrix as it is stored.
    pub left: Factor<'a>,
    /// A vector of length `rank` for each of its columns.
    pub right: Factor<'a>,
    /// The rank.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f64,
}

/// A factor of an update.
#[derive(Debug, Clone, Copy)]
enum Side {
    /// A tensor of the adapter.
    Tensor(usize, Order),
    /// The number one, as a factor of rank one: makes an added vector an update.
    One,
}

impl Update {
    /// The end of what it changes.
    fn end(&self) -> u64 {
        self.first + self.rows as u64 * self.columns as u64
    }

    /// The rank of its factors; LoKr's matrices may have none.
    fn rank(&self) -> Option<usize> {
        match &self.added {
            Added::Product { rank, .. } => Some(*rank),
            Added::Pair { pair, .. } => pair.rank,
        }
    }

    /// DoRA's norms.
    fn lengths(&self) -> Option<&(usize, Norms)> {
        match &self.added {
            Added::Product { lengths, .. } => lengths.as_ref(),
            Added::Pair { .. } => None,
        }
    }

    fn kind(&self) -> &'static str {
        match &self.added {
            Added::Product { lengths: None, .. } => "LoRA",
            Added::Product { .. } => "DoRA",
            Added::Pair { pair, .. } => pair.kind.name(),
        }
    }
}

/// What to do about adapters that do not add up.
const ONE_BY_ONE: &str = "merge the model with one of the two first (`merge_method: passthrough`), and name the result with the other";

/// The number one as an F64.
static ONE: [u8; 8] = 1f64.to_le_bytes();

/// The files of an adapter, before it is put on a model.
#[derive(Debug)]
pub(super) struct AdapterFiles {
    location: Location,
    weights: Arc<AdapterWeights>,
    kind: Kind,
}

/// How an adapter says what it changes.
#[derive(Debug)]
enum Kind {
    /// By PEFT's config and names.
    Peft(Box<AdapterConfig>),
    /// By the names in one file.
    Single(SingleFile),
}

/// What an adapter is put on.
pub(super) struct AttachedTo<'a> {
    /// Where the model is.
    pub(super) location: &'a Location,
    /// The folder of the part of a pipeline; empty for a model by itself.
    pub(super) part: &'a str,
    /// The adapters that are on it.
    pub(super) below: &'a [AppliedAdapter],
}

impl AdapterFiles {
    /// Reads an adapter's config and header. `others` are the files of the model.
    pub(super) fn open(location: &Location, others: &[&Shard]) -> Result<Self, AdapterError> {
        // The engine fetches what models have elsewhere, and nothing of adapters, which are small.
        let elsewhere = location.remote.iter().filter(|file| !file.is_header_only());
        for file in elsewhere {
            file.fetch(&|| false).map_err(AdapterError::Fetch)?;
        }
        let mut weights = weights::open(&location.path)?;
        weights.name_apart(others);
        let kind = match weights.is_single {
            true => Kind::Single(SingleFile::read(&weights)?),
            false => Kind::Peft(Box::new(AdapterConfig::read(&location.path)?)),
        };
        Ok(Self {
            location: location.clone(),
            weights: Arc::new(weights),
            kind,
        })
    }

    /// Whether the adapter there is for one model, and not for the parts of a pipeline.
    pub(super) fn are_for_one_model(location: &Location) -> bool {
        weights::is_for_one_model(&location.path)
    }

    /// For each of its modules whether it was used: none yet.
    pub(super) fn unused(&self) -> Vec<bool> {
        match &self.kind {
            Kind::Peft(_) => Vec::new(),
            Kind::Single(file) => vec![false; file.len()],
        }
    }

    /// Checks that all of its modules were used.
    pub(super) fn check_used(&self, used: &[bool]) -> Result<(), AdapterError> {
        match &self.kind {
            Kind::Peft(_) => Ok(()),
            Kind::Single(file) => file.check_used(&self.weights, used),
        }
    }

    /// Finds the tensors of a model, or of a part of one, that it changes; `None` if it changes none.
    ///
    /// `model` becomes the model with the adapter applied: if the adapter unties a head from its embedding, the head
    /// becomes a tensor, and the config says so.
    pub(super) fn attach(
        &self,
        on: &AttachedTo<'_>,
        model: &mut Subject,
        base: Arc<dyn TensorSource>,
        weight: f64,
        used: &mut [bool],
    ) -> Result<Option<Adapter>, AdapterError> {
        let weights = &self.weights;
        let mut changes = match &self.kind {
            Kind::Peft(config) => {
                let placed = pieces::gather(weights, config, model)?;
                let changes = modules::place(weights, config, placed, model)?;
                model.notes.extend(config.notes.iter().cloned());
                model.notes.extend(other_base(config, on.location));
                changes
            }
            Kind::Single(file) => {
                let placed = file.gather(weights, on.part, model, used)?;
                if placed.is_empty() {
                    return Ok(None);
                }
                let config = AdapterConfig::none(&weights.path);
                modules::place(weights, &config, placed, model)?
            }
        };
        for update in changes.values_mut().flat_map(|change| &mut change.updates) {
            update.scale *= weight;
        }
        let adapter = Adapter {
            location: self.location.clone(),
            weights: Arc::clone(weights),
            weight,
            base,
            entries: model.tensors.clone(),
            from: model.from.clone(),
            changes,
        };
        adapter.check_sum(on.below)?;
        Ok(Some(adapter))
    }
}

impl Adapter {
    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What its update is multiplied with.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Checks that it can be weighed and added to others: it adds products, and replaces nothing that others change.
    fn check_sum(&self, below: &[AppliedAdapter]) -> Result<(), AdapterError> {
        let refused = |key: usize, why, hint| AdapterError::Unsupported {
            path: self.weights.path.clone(),
            what: format!("`{}`", self.weights.key(key)),
            why,
            hint,
        };
        for (index, change) in &self.changes {
            let replaced = change.whole.or(change.rows.as_ref().map(|(key, _)| *key));
            let mut lengths = change.updates.iter().filter_map(Update::lengths);
            let measured = lengths.next().map(|(key, _)| *key);
            let is_changed = || below.iter().any(|other| other.adapter.changes(*index));
            match (replaced, measured) {
                (Some(key), _) | (None, Some(key)) if self.weight != 1.0 => {
                    let why = "sets values and adds none, so that it has no weight";
                    return Err(refused(key, why, "leave the weight of this adapter out"));
                }
                (Some(key), _) | (None, Some(key)) if is_changed() => {
                    let why = "sets values that another adapter of the model changes too";
                    return Err(refused(key, why, ONE_BY_ONE));
                }
                _ => {}
            }
        }
        let of_dora = |other: &&AppliedAdapter| {
            let mut both = other.adapter.changes.iter();
            let changed = both.find(|(index, change)| {
                let dora = change
                    .updates
                    .iter()
                    .any(|update| update.lengths().is_some());
                dora && self.changes.contains_key(index)
            });
            changed.is_some()
        };
        match (below.iter().find(of_dora), self.changes.values().next()) {
            (Some(_), Some(change)) => {
                let key = change.updates.first().map_or(0, |update| update.key);
                let why = "is added to a weight to which another adapter gives new lengths (DoRA)";
                Err(refused(key, why, ONE_BY_ONE))
            }
            _ => Ok(()),
        }
    }

    /// What its updates are called, in the order of the alphabet: `LoRA`, `DoRA`, `LoHa`, `LoKr`.
    pub fn kinds(&self) -> Vec<&'static str> {
        let kinds: BTreeSet<_> = self.updates().map(Update::kind).collect();
        kinds.into_iter().collect()
    }

    /// The smallest and the largest rank; none if it has no factors.
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let ranks = || self.updates().filter_map(Update::rank);
        Some((ranks().min()?, ranks().max()?))
    }

    /// Whether it gives rows or columns new norms (DoRA).
    pub fn is_dora(&self) -> bool {
        self.updates().any(|update| update.lengths().is_some())
    }

    /// The checkpoint's tensors that it changes, as indexes, in order.
    pub fn changed(&self) -> impl ExactSizeIterator<Item = usize> {
        self.changes.keys().copied()
    }

    /// Whether it changes a tensor.
    pub fn changes(&self, tensor: usize) -> bool {
        self.changes.contains_key(&tensor)
    }

    /// What it adds to a tensor that it changes; `None` where it does more than add a product of two factors to a matrix
    /// (DoRA, LoHa, LoKr, a tensor that is replaced, a vector, a stack of matrices).
    pub fn product(&self, index: usize) -> Option<AdapterProduct<'_>> {
        let change = self.changes.get(&index)?;
        let [update] = change.updates.as_slice() else {
            return None;
        };
        let Added::Product {
            left,
            right,
            rank,
            lengths: None,
        } = update.added
        else {
            return None;
        };
        let is_plain = change.whole.is_none() && change.rows.is_none();
        if !is_plain || self.entries[index].shape != [update.rows, update.columns] {
            return None;
        }
        let otherwise = FloatType::from_dtype(self.entries[index].dtype)?;
        Some(AdapterProduct {
            left: self.factor(left, otherwise),
            right: self.factor(right, otherwise),
            rank,
            scale: update.scale,
        })
    }

    fn updates(&self) -> impl Iterator<Item = &Update> {
        self.changes.values().flat_map(|change| &change.updates)
    }

    /// A tensor some rows of which are replaced.
    fn with_rows<'a>(
        &'a self,
        index: usize,
        (tensor, rows): &'a (usize, Vec<usize>),
        base: Box<dyn Elements + 'a>,
    ) -> Box<dyn Elements + 'a> {
        let width: usize = self.entries[index].shape[1..].iter().product();
        let new: Arc<dyn Elements + 'a> = Arc::new(self.weights.stored(*tensor, base.format()));
        let patch = |(at, &row): (usize, &usize)| Patch {
            range: (row * width) as u64..((row + 1) * width) as u64,
            values: Box::new(Tail {
                base: Arc::clone(&new),
                first: (at * width) as u64,
            }),
        };
        let patches = rows.iter().enumerate().map(patch).collect();
        Box::new(Patched::new(Arc::from(base), patches))
    }

    /// A tensor with its updates.
    fn with_updates<'a>(
        &'a self,
        index: usize,
        updates: &'a [Update],
        base: Box<dyn Elements + 'a>,
    ) -> Box<dyn Elements + 'a> {
        let elements = self.entries[index].elements();
        match updates {
            [] => base,
            [update] if update.first == 0 && update.end() == elements => self.updated(update, base),
            updates => {
                let base: Arc<dyn Elements + 'a> = Arc::from(base);
                let patch = |update: &'a Update| Patch {
                    range: update.first..update.end(),
                    values: self.updated(
                        update,
                        Box::new(Tail {
                            base: Arc::clone(&base),
                            first: update.first,
                        }),
                    ),
                };
                let patches = updates.iter().map(patch).collect();
                Box::new(Patched::new(base, patches))
            }
        }
    }

    /// A factor of an update; `otherwise` is a format for tensors of none, which were refused.
    fn factor(&self, side: Side, otherwise: FloatType) -> Factor<'_> {
        match side {
            Side::Tensor(index, order) => Factor {
                values: self.weights.stored(index, otherwise),
                order,
            },
            Side::One => Factor {
                values: Stored {
                    bytes: &ONE,
                    format: FloatType::F64,
                },
                order: Order::ByRank,
            },
        }
    }

    /// An update, on top of what it changes.
    fn updated<'a>(
        &'a self,
        update: &'a Update,
        base: Box<dyn Elements + 'a>,
    ) -> Box<dyn Elements + 'a> {
        let otherwise = base.format();
        match &update.added {
            Added::Product {
                left,
                right,
                rank,
                lengths,
            } => Box::new(LowRank {
                base,
                rows: update.rows,
                columns: update.columns,
                left: self.factor(*left, otherwise),
                right: self.factor(*right, otherwise),
                rank: *rank,
                scale: update.scale,
                lengths: lengths.as_ref().map(|(wanted, found)| Lengths {
                    wanted: self.weights.stored(*wanted, otherwise),
                    found,
                }),
            }),
            Added::Pair { pair, first_row } => {
                let [first, second] = pair.matrices(&self.weights, otherwise);
                Box::new(Paired {
                    base,
                    columns: update.columns,
                    first_row: *first_row,
                    pairing: pair.pairing(),
                    first,
                    second,
                    scale: update.scale,
                })
            }
        }
    }
}

impl TensorSource for Adapter {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let Some(change) = self.changes.get(&index) else {
            return self.base.elements(self.from[index]);
        };
        let format = FloatType::from_dtype(self.entries[index].dtype)?;
        let base = match change.whole {
            Some(whole) => Box::new(self.weights.stored(whole, format)),
            None => self.base.elements(self.from[index])?,
        };
        let base = match &change.rows {
            Some(rows) => self.with_rows(index, rows, base),
            None => base,
        };
        Some(self.with_updates(index, &change.updates, base))
    }

    /// The bytes of the adapter's own tensor, if it replaces the model's and has the same dtype.
    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let Some(change) = self.changes.get(&index) else {
            return self.base.bytes(self.from[index]);
        };
        let whole = change.whole?;
        let alike = self.weights.tensors()[whole].dtype == self.entries[index].dtype;
        let is_all = change.updates.is_empty() && change.rows.is_none();
        (alike && is_all).then(|| self.weights.bytes(whole))
    }

    /// `None` for an embedding that got another number of rows.
    fn stored(&self, index: usize) -> Option<&[u8]> {
        let from = self.from[index];
        let same = self.base.entries()[from].shape == self.entries[index].shape;
        same.then(|| self.base.stored(from))?
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        let mut encoded = self.base.encoded(self.from[index])?;
        if self.changes.contains_key(&index) {
            encoded.parts.clear();
        }
        Some(encoded)
    }

    /// Without the factors.
    fn bytes_read(&self, index: usize) -> u64 {
        match self.changes.get(&index).and_then(|change| change.whole) {
            Some(whole) => self.weights.tensors()[whole].len,
            None => self.base.bytes_read(self.from[index]),
        }
    }

    fn shards(&self) -> Vec<&Shard> {
        let mut shards = self.base.shards();
        shards.extend(self.weights.files.shards());
        shards
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.base.place(self.from[index])
    }

    /// Those of the tensor before it is changed: an adapter itself is here.
    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        self.base.remote(self.from[index])
    }

    fn read_ahead(&self) {
        self.base.read_ahead();
        self.weights.files.read_ahead();
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.base.release(self.from[index], bytes, reclaim);
    }

    /// In addition to the base: a number for each row or column with a new norm.
    fn held(&self) -> u64 {
        let lengths = self.updates().filter_map(Update::lengths);
        let own = lengths.map(|(wanted, _)| {
            self.weights.tensors()[*wanted].elements() * size_of::<f64>() as u64
        });
        self.base.held() + own.sum::<u64>()
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.base.check_unchanged()?;
        self.weights.files.check_unchanged()
    }
}

/// Notes that the adapter names a base model other than this one, as far as names can tell.
fn other_base(config: &AdapterConfig, model: &Location) -> Option<String> {
    let trained = config.base_model.as_deref()?;
    let last = |name: &str| -> String {
        let name = name.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\'])
            .next()
            .unwrap_or(name)
            .to_lowercase()
    };
    let used = match (&model.hub, &model.store) {
        (Some(hub), _) => hub.repo.clone(),
        (None, Some(store)) => store.address.clone(),
        (None, None) => model.path.display().to_string(),
    };
    (last(trained) != last(&used)).then(|| {
        format!(
            "{} says that it was trained on `{trained}`, and it is used with `{used}`",
            config.path().display()
        )
    })
}
