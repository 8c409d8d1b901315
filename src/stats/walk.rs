//! The way of several models' texts through the model that these are merged into, layer by layer (RegMean++).
//!
//! Of each model the layer is run on what the merged layers before it make of the model's texts, and the inputs of its
//! linear layers are summed up. By these sums the layer is merged, and what it makes of the texts enters the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Bytes, Checkpoint, InMemory, Location, SidecarsFrom, StatisticsInfo};
use errors::Refusal;
use eval::Listener;
use forward::{Decoder, Passage};
use run::check_unchanged;
use run::destination::{Disk, write_with};

use super::collection::{
    ALWAYS, Collection, Keep, OF_THREAD, Request, Written, check_memory, check_running, held, into,
    layout, of_model, tensors, threads,
};
use super::error::StatsError;
use super::sums::Sums;

/// What RegMean needs.
const GRAM: Keep = Keep {
    gram: true,
    magnitude: false,
};

/// Merges the models, as far as it is asked.
pub trait Merger {
    /// The merged model, with the values of the tensors of these names alone. `statistics` are a file for each model, in
    /// their order, which lack what these tensors do not need.
    ///
    /// # Errors
    /// They cannot be merged.
    fn merged(
        &mut self,
        names: &BTreeSet<&str>,
        statistics: Vec<Checkpoint>,
    ) -> Result<Checkpoint, StatsError>;
}

/// Statistics of several models on the way through their merge, before they are collected.
pub struct Walk<'a> {
    collections: Vec<Collection<'a>>,
    paths: Vec<PathBuf>,
    memory: u64,
}

impl<'a> Walk<'a> {
    /// Cuts all texts into tokens and finds the inputs of linear layers; no weight is read but for the fingerprints. Each
    /// model has the file that is written of it; of what is asked for, only Gram matrices are kept.
    ///
    /// # Errors
    /// There is no model, one cannot be run, its texts cannot be cut, the memory does not suffice, or the listener asks to
    /// stop.
    pub fn plan(
        models: &[(Request<'a>, PathBuf)],
        listener: &dyn Listener,
    ) -> Result<Self, StatsError> {
        let Some((first, _)) = models.first() else {
            return Err(Refusal::new("no model has a file of statistics").into());
        };
        let (allowed, count) = (first.memory, threads(first.options.threads));
        let collect = |(request, _): &(Request<'a>, PathBuf)| {
            let keep = GRAM;
            Collection::plan(&Request { keep, ..*request }, listener)
        };
        let mut collections: Vec<Collection<'_>> =
            models.iter().map(collect).collect::<Result<_, _>>()?;
        let together = StatisticsInfo::together(collections.iter().map(|each| &each.info));
        for each in &mut collections {
            each.info.together.clone_from(&together);
            each.layout = layout(&each.info, &each.inputs, GRAM)?;
        }
        let all = |of: fn(&Collection<'_>) -> u64| {
            collections.iter().map(of).fold(0, u64::saturating_add)
        };
        let most = |of: fn(&Collection<'_>) -> u64| collections.iter().map(of).max().unwrap_or(0);
        // The way of each; of one at a time a copy, what running a layer takes, and its sums.
        let memory = all(|each| each.decoder.passage_bytes(&each.sequences))
            .saturating_add(most(|each| each.decoder.passage_bytes(&each.sequences)))
            .saturating_add(most(|each| each.decoder.layer_bytes(&each.sequences)))
            .saturating_add(most(|each| held(&each.inputs, GRAM)))
            .saturating_add(all(|each| bytes_of(each, widest(each))))
            .saturating_add(ALWAYS + OF_THREAD * count);
        let walk = Self {
            collections,
            paths: models.iter().map(|(_, path)| path.clone()).collect(),
            memory,
        };
        walk.check_memory(0, allowed)?;
        Ok(walk)
    }

    /// Checks that its memory and that of what merges layers may be used together.
    ///
    /// # Errors
    /// It may not.
    pub fn check_memory(&self, merging: u64, allowed: u64) -> Result<(), StatsError> {
        let sequences: Vec<Vec<u32>> = self.sequences().cloned().collect();
        let needed = self.memory.saturating_add(merging);
        check_memory(needed, allowed, &sequences).map_err(|why| {
            let hint = "allow more with --memory, or take fewer texts with --limit";
            StatsError::Refused(why.with_hint(hint))
        })
    }

    fn sequences(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.collections.iter().flat_map(|each| &each.sequences)
    }

    /// How many tokens the models are run on.
    pub fn tokens(&self) -> usize {
        self.sequences().map(Vec::len).sum()
    }

    /// Bytes of memory that it takes at the most, about, without what merging layers takes.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// The length of all files.
    pub fn bytes(&self) -> u64 {
        self.collections.iter().map(Collection::bytes).sum()
    }

    /// A file for each model as [`Merger::merged`] gets them for the layer whose inputs are largest, all zeros: by them a
    /// merge can be planned.
    ///
    /// # Errors
    /// There is no memory.
    pub fn largest(&self) -> Result<Vec<Checkpoint>, StatsError> {
        let zeros = |each: &Collection<'_>, path: &Path| {
            let layer = widest(each);
            let of_input = each.inputs_of(layer).iter().map(|input| {
                let lengths = tensors(input, GRAM)
                    .into_iter()
                    .map(|(_, dtype, shape)| shape.iter().product::<usize>() * dtype.bitsize() / 8);
                vec![0u8; lengths.sum()]
            });
            in_memory(each, path, layer, of_input.collect())
        };
        let pairs = self.collections.iter().zip(&self.paths);
        pairs.map(|(each, path)| zeros(each, path)).collect()
    }

    /// Runs the models and writes their files, each whole or not at all. `goes_on` is asked between layers and says
    /// whether to.
    ///
    /// # Errors
    /// A model cannot be run or merged, there is no room for the files, one cannot be written, or the work is to stop.
    pub fn write(
        &self,
        disk: &Disk,
        merger: &mut dyn Merger,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Written>, StatsError> {
        for (each, path) in self.collections.iter().zip(&self.paths) {
            each.check_space(path)?;
        }
        let mut unreached = vec![0; self.collections.len()];
        with_files(disk, &self.paths, Vec::new(), &mut |outs| {
            self.fill(outs, merger, goes_on, &mut unreached)
        })?;
        let pairs = self.collections.iter().zip(unreached);
        Ok(pairs
            .map(|(each, unreached)| each.written(unreached))
            .collect())
    }

    fn fill(
        &self,
        outs: &mut [Out<'_>],
        merger: &mut dyn Merger,
        goes_on: &(dyn Fn() -> bool + Sync),
        unreached: &mut [usize],
    ) -> Result<(), StatsError> {
        for ((each, out), path) in self.collections.iter().zip(&mut *outs).zip(&self.paths) {
            each.prepare(goes_on)?;
            into(&mut **out, path)(&each.layout.header)?;
        }
        let frame = merger.merged(&BTreeSet::new(), Vec::new())?;
        let frame = decoder(&frame)?;
        let layers = frame.layers();
        self.check_layers(layers)?;
        let mut passages =
            self.embedded(&merger.merged(&[frame.embedding_name()].into(), Vec::new())?)?;
        for layer in 0..layers {
            check_running(goes_on)?;
            let mut statistics = Vec::new();
            for (at, each) in self.collections.iter().enumerate() {
                let path = &self.paths[at];
                // The layers before are the merged ones; this one is the model's own.
                let sums = each.sums(layer, &mut passages[at].clone())?;
                let bytes = encoded(sums, &mut unreached[at])?;
                let mut put = into(&mut *outs[at], path);
                bytes.iter().try_for_each(|bytes| put(bytes))?;
                statistics.push(in_memory(each, path, layer, bytes)?);
            }
            if layer + 1 == layers {
                break;
            }
            let merged = merger.merged(&frame.layer_names(layer), statistics)?;
            let decoder = decoder(&merged)?;
            for (each, passage) in self.collections.iter().zip(&mut passages) {
                let run = decoder.run_layer(layer, passage, each.threads);
                run.map_err(|source| of_model(&merged, source))?;
            }
        }
        Ok(check_unchanged(
            self.collections.iter().map(|each| each.model),
        )?)
    }

    /// Checks that every model has a layer for each of the merged one.
    fn check_layers(&self, merged: usize) -> Result<(), StatsError> {
        let other = self
            .collections
            .iter()
            .find(|each| each.decoder.layers() != merged);
        match other {
            None => Ok(()),
            Some(other) => Err(Refusal::new(format!(
                "model `{}` has {} layers, and the merged model has {merged}",
                other.model.label(),
                other.decoder.layers()
            ))
            .with_hint("merge whole models")
            .into()),
        }
    }

    /// The texts of each model, with the embeddings of the merged one.
    fn embedded(&self, merged: &Checkpoint) -> Result<Vec<Passage>, StatsError> {
        let decoder = decoder(merged)?;
        let embedded = |each: &Collection<'_>| {
            let passage = decoder.embedded(&each.sequences);
            passage.map_err(|source| of_model(merged, source))
        };
        self.collections.iter().map(embedded).collect()
    }
}

fn decoder(model: &Checkpoint) -> Result<Decoder<'_>, StatsError> {
    let Some(config) = model.config() else {
        let why = format!("the merged model `{}` has no config.json", model.label());
        return Err(Refusal::new(why)
            .with_hint("name the folders of the models")
            .into());
    };
    Decoder::new(config.value(), model).map_err(|source| of_model(model, source))
}

/// The layer whose statistics are largest.
fn widest(collection: &Collection<'_>) -> usize {
    let layers = 0..collection.decoder.layers();
    layers
        .rev()
        .max_by_key(|&layer| bytes_of(collection, layer))
        .unwrap_or(0)
}

/// Bytes of the statistics of a layer.
fn bytes_of(collection: &Collection<'_>, layer: usize) -> u64 {
    let features = collection
        .inputs_of(layer)
        .iter()
        .map(|input| input.features as u64);
    features.fold(0, |sum, features| {
        sum.saturating_add(features.saturating_mul(features).saturating_mul(4))
    })
}

/// What is written of each input of a layer.
fn encoded(sums: Vec<Sums>, unreached: &mut usize) -> Result<Vec<Vec<u8>>, StatsError> {
    let encode = |sums: Sums| {
        *unreached += usize::from(sums.tokens == 0);
        let mut bytes = Vec::new();
        sums.write(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    };
    sums.into_iter().map(encode).collect()
}

/// A file of the statistics of one layer, from what is written of each input.
fn in_memory(
    collection: &Collection<'_>,
    path: &Path,
    layer: usize,
    bytes: Vec<Vec<u8>>,
) -> Result<Checkpoint, StatsError> {
    let mut all = Vec::new();
    for (input, bytes) in collection.inputs_of(layer).iter().zip(bytes) {
        let bytes = Arc::new(bytes);
        let mut start = 0;
        for (name, dtype, shape) in tensors(input, GRAM) {
            let end = start + shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let part: Bytes = Box::new(PartOf(Arc::clone(&bytes), start..end));
            all.push((name, dtype, shape, part));
            start = end;
        }
    }
    let tensors = InMemory::new(all).map_err(|error| Refusal::new(error.to_string()))?;
    let (key, text) = collection.info.metadata();
    let tensors = tensors.with_metadata(BTreeMap::from([(key.to_owned(), text)]));
    let label = path.display().to_string();
    Ok(Checkpoint::new(
        &label,
        Location::local(path),
        None,
        SidecarsFrom::Nothing,
        Arc::new(tensors),
    ))
}

/// A range of bytes.
struct PartOf(Arc<Vec<u8>>, std::ops::Range<usize>);

impl AsRef<[u8]> for PartOf {
    fn as_ref(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
}

/// A file that is being written.
type Out<'o> = &'o mut (dyn Write + Send);

/// Writes several files, each whole or not at all; the last is in its place first.
fn with_files(
    disk: &Disk,
    paths: &[PathBuf],
    mut outs: Vec<Out<'_>>,
    fill: &mut dyn FnMut(&mut [Out<'_>]) -> Result<(), StatsError>,
) -> Result<(), StatsError> {
    match paths.split_first() {
        None => fill(&mut outs),
        Some((path, rest)) => write_with(disk, path, |out| {
            // They live as long as the last of them.
            let mut all: Vec<Out<'_>> = Vec::new();
            for out in outs {
                all.push(out);
            }
            all.push(out);
            with_files(disk, rest, all, fill)
        }),
    }
}
