//! A mixture whose experts are read in the other layout: all in two tensors, or each by itself.
//!
//! Nothing is copied: a fused tensor is read from its parts, and an expert from its place in a fused one.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::behind::Reclaim;
use super::config::ModelConfig;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use architecture::{
    ExpertLayouts, Experts, Matrix, Names, WeightOrder, expert_layouts, linear_weight,
};
use numeric::{Elements, FloatType, Joined, Picks, Submatrix};

/// The tensors of a source with other ones in the place of its experts.
#[derive(Debug)]
pub(super) struct Relaid {
    base: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    from: Vec<From>,
}

/// What a tensor is read from.
#[derive(Debug, Clone)]
enum From {
    /// A tensor of the base.
    Same(usize),
    /// Several, one after the other.
    Stack(Vec<usize>),
    /// A part of one: its first element.
    Part(usize, u64),
}

/// How experts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Each,
    Fused,
}

impl Layout {
    /// The layout that names have; `None` if there are no experts of the family.
    fn of<'n>(mut names: impl Iterator<Item = &'n str>, layouts: &ExpertLayouts) -> Option<Self> {
        let fused = layouts.fused.tensor(0, Matrix::Down);
        names.find_map(|name| {
            let each = layouts.each.expert_of(name, Matrix::Down).is_some();
            match (each, name.ends_with(&fused)) {
                (true, _) => Some(Self::Each),
                (false, true) => Some(Self::Fused),
                (false, false) => None,
            }
        })
    }
}

impl Relaid {
    /// The source with its experts laid as those of `other`, a model of this type; `None` if they are, or if they are
    /// not complete and alike.
    pub(super) fn find(
        base: &Arc<dyn TensorSource>,
        config: Option<&ModelConfig>,
        other: &[TensorEntry],
        model_type: Option<&str>,
    ) -> Option<Relaid> {
        let to = layout(other, &expert_layouts(model_type))?;
        Relaid::to(base, config, to, model_type)
    }

    /// The source, a model of this type, with its experts fused or each by itself; `None` if they are, or if they are not
    /// complete and alike.
    pub(super) fn with_experts(
        base: &Arc<dyn TensorSource>,
        config: Option<&ModelConfig>,
        fused: bool,
        model_type: Option<&str>,
    ) -> Option<Relaid> {
        let to = if fused { Layout::Fused } else { Layout::Each };
        Relaid::to(base, config, to, model_type)
    }

    /// Whether a model of this type has experts that are fused; `None` if it has none.
    pub(super) fn is_fused(entries: &[TensorEntry], model_type: Option<&str>) -> Option<bool> {
        let layout = layout(entries, &expert_layouts(model_type))?;
        Some(layout == Layout::Fused)
    }

    fn to(
        base: &Arc<dyn TensorSource>,
        config: Option<&ModelConfig>,
        to: Layout,
        model_type: Option<&str>,
    ) -> Option<Relaid> {
        let layouts = expert_layouts(model_type);
        let entries = base.entries();
        let (to, replaced) = match (layout(entries, &layouts)?, to) {
            (Layout::Each, Layout::Fused) => (layouts.fused, fused(entries, &layouts)?),
            (Layout::Fused, Layout::Each) => (layouts.each, apart(entries, config, &layouts)?),
            _ => return None,
        };
        let router = match to.router == layouts.each.router {
            true => layouts.fused.router,
            false => layouts.each.router,
        };
        let mut relaid = Relaid {
            base: Arc::clone(base),
            entries: Vec::with_capacity(entries.len()),
            from: Vec::with_capacity(entries.len()),
        };
        for (index, entry) in entries.iter().enumerate() {
            match replaced.get(&index) {
                Some(new) => {
                    for (entry, from) in new {
                        relaid.entries.push(entry.clone());
                        relaid.from.push(from.clone());
                    }
                }
                None => {
                    let layer = entry.name.strip_suffix(router);
                    relaid.entries.push(TensorEntry {
                        name: match layer {
                            Some(layer) => format!("{layer}{}", to.router),
                            None => entry.name.clone(),
                        },
                        ..entry.clone()
                    });
                    relaid.from.push(From::Same(index));
                }
            }
        }
        Some(relaid)
    }
}

fn layout(entries: &[TensorEntry], layouts: &ExpertLayouts) -> Option<Layout> {
    Layout::of(entries.iter().map(|entry| entry.name.as_str()), layouts)
}

/// What stands in the place of a tensor of the base: nothing where it is a part of what stands elsewhere.
type Replaced = HashMap<usize, Vec<(TensorEntry, From)>>;

/// The experts of a layer: for each matrix and expert the tensor.
type OfLayer = BTreeMap<(usize, usize), usize>;

/// The tensors that hold all experts, each in the place of its first part.
fn fused(entries: &[TensorEntry], layouts: &ExpertLayouts) -> Option<Replaced> {
    let mut layers: BTreeMap<&str, OfLayer> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        for (number, matrix) in Matrix::ALL.into_iter().enumerate() {
            if let Some((layer, expert)) = layouts.each.expert_of(&entry.name, matrix) {
                layers
                    .entry(layer)
                    .or_default()
                    .insert((number, expert), index);
            }
        }
    }
    let mut replaced = Replaced::new();
    for (layer, tensors) in layers {
        replaced.extend(tensors.values().map(|&index| (index, Vec::new())));
        let experts = tensors.len() / Matrix::ALL.len();
        for matrices in [&[0, 1][..], &[2]] {
            let each = (0..experts)
                .flat_map(|expert| matrices.iter().map(move |&matrix| (matrix, expert)));
            let parts: Vec<usize> = each
                .map(|at| tensors.get(&at).copied())
                .collect::<Option<_>>()?;
            let first = &entries[*parts.first()?];
            let alike = |&part: &usize| {
                let entry = &entries[part];
                (entry.dtype, &entry.shape) == (first.dtype, &first.shape)
            };
            FloatType::from_dtype(first.dtype)?;
            let &[rows, columns] = first.shape.as_slice() else {
                return None;
            };
            if !parts.iter().all(alike) || tensors.len() != experts * Matrix::ALL.len() {
                return None;
            }
            let matrix = Matrix::ALL[matrices[0]];
            let entry = TensorEntry {
                name: format!("{layer}{}", layouts.fused.tensor(0, matrix)),
                shape: vec![experts, matrices.len() * rows, columns],
                len: first.len * parts.len() as u64,
                ..first.clone()
            };
            let place = replaced.entry(parts[0]).or_default();
            place.push((entry, From::Stack(parts)));
        }
    }
    Some(replaced)
}

/// The tensors of each expert, in the places of those that hold all.
fn apart(
    entries: &[TensorEntry],
    config: Option<&ModelConfig>,
    layouts: &ExpertLayouts,
) -> Option<Replaced> {
    let Names {
        experts: Experts::Fused { input, output },
        ..
    } = layouts.fused
    else {
        return None;
    };
    let mut replaced = Replaced::new();
    for (index, entry) in entries.iter().enumerate() {
        let (layer, matrices) = match (
            entry.name.strip_suffix(*input),
            entry.name.strip_suffix(*output),
        ) {
            (Some(layer), _) => (layer, &[Matrix::Gate, Matrix::Up][..]),
            (None, Some(layer)) => (layer, &[Matrix::Down][..]),
            (None, None) => continue,
        };
        let order = linear_weight(&entry.name, &entry.shape, config.map(ModelConfig::value));
        let (&[experts, rows, columns], Some(WeightOrder::OutIn)) = (entry.shape.as_slice(), order)
        else {
            return None;
        };
        let size = FloatType::from_dtype(entry.dtype)?.size() as u64;
        let each = rows / matrices.len();
        if each * matrices.len() != rows || experts == 0 || entry.len == 0 {
            return None;
        }
        let elements = (each * columns) as u64;
        let parts =
            (0..experts).flat_map(|expert| matrices.iter().map(move |&matrix| (expert, matrix)));
        let parts = (0u64..).zip(parts).map(|(number, (expert, matrix))| {
            let part = TensorEntry {
                name: format!("{layer}{}", layouts.each.tensor(expert, matrix)),
                shape: vec![each, columns],
                len: elements * size,
                ..entry.clone()
            };
            (part, From::Part(index, number * elements))
        });
        replaced.insert(index, parts.collect());
    }
    Some(replaced)
}

impl Relaid {
    /// The range of bytes of a part in its tensor.
    fn bytes_of(&self, index: usize, first: u64) -> Range<u64> {
        let entry = &self.entries[index];
        let size = (entry.dtype.bitsize() / 8) as u64;
        first * size..first * size + entry.len
    }

    /// A range of elements of a tensor of the base, as rows of one.
    fn run(&self, tensor: usize, first: u64, count: u64) -> Option<Submatrix<'_>> {
        let (first, count) = (first as usize, count as usize);
        Some(Submatrix {
            matrix: self.base.elements(tensor)?,
            width: 1,
            rows: Picks::Range(first..first + count),
            columns: Picks::Range(0..1),
            factors: None,
        })
    }
}

impl TensorSource for Relaid {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let runs = match &self.from[index] {
            From::Same(tensor) => return self.base.elements(*tensor),
            From::Stack(parts) => {
                let whole = |&part: &usize| self.run(part, 0, self.base.entries()[part].elements());
                parts.iter().map(whole).collect::<Option<Vec<_>>>()?
            }
            From::Part(tensor, first) => {
                vec![self.run(*tensor, *first, self.entries[index].elements())?]
            }
        };
        Some(Box::new(Joined::new(runs)))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        match &self.from[index] {
            From::Same(tensor) => self.base.bytes(*tensor),
            From::Stack(_) => None,
            From::Part(tensor, first) => {
                let range = self.bytes_of(index, *first);
                self.base
                    .bytes(*tensor)?
                    .get(range.start as usize..range.end as usize)
            }
        }
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        match &self.from[index] {
            From::Same(tensor) => self.base.stored(*tensor),
            From::Stack(_) | From::Part(..) => self.bytes(index),
        }
    }

    fn bytes_read(&self, index: usize) -> u64 {
        match &self.from[index] {
            From::Same(tensor) => self.base.bytes_read(*tensor),
            From::Stack(parts) => parts.iter().map(|&part| self.base.bytes_read(part)).sum(),
            From::Part(..) => self.entries[index].len,
        }
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        match &self.from[index] {
            From::Same(tensor) => self.base.place(*tensor),
            From::Stack(_) => None,
            From::Part(tensor, first) => {
                let (shard, offset) = self.base.place(*tensor)?;
                Some((shard, offset + self.bytes_of(index, *first).start))
            }
        }
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        match &self.from[index] {
            From::Same(tensor) => self.base.remote(*tensor),
            From::Part(tensor, first) => {
                let start = self.bytes_of(index, *first).start;
                let places = self.base.remote(*tensor).into_iter();
                let part = |place: RemotePlace| RemotePlace {
                    offset: place.offset + start,
                    ..place
                };
                places.map(part).collect()
            }
            From::Stack(parts) => parts
                .iter()
                .flat_map(|&part| self.base.remote(part))
                .collect(),
        }
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        match &self.from[index] {
            From::Same(tensor) => self.base.release(*tensor, bytes, reclaim),
            From::Part(tensor, first) => {
                let start = self.bytes_of(index, *first).start;
                let bytes = start + bytes.start..start + bytes.end;
                self.base.release(*tensor, bytes, reclaim);
            }
            From::Stack(parts) => {
                let mut start = 0;
                for &part in parts {
                    let end = start + self.base.entries()[part].len;
                    let within = bytes.start.clamp(start, end)..bytes.end.clamp(start, end);
                    if !within.is_empty() {
                        let within = within.start - start..within.end - start;
                        self.base.release(part, within, reclaim);
                    }
                    start = end;
                }
            }
        }
    }
}
