//! Finds byte-equal tensors. Nothing else in a plan reads weights, and this reads no more than the decision needs.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use super::counterparts::Counterparts;
use super::layers::{Group, Wanted};
use super::models::Models;
use super::planned::SourceTensor;
use checkpoint::{Dtype, TensorEntry};

/// The first bytes of a tensor, which are compared before the rest: nearly all tensors differ in them.
const HEAD: usize = 256;

/// The most different tensors with equal first bytes that are remembered, such as vectors of ones.
const MOST_ALIKE: usize = 4;

/// What must be equal before two tensors are compared in full: dtype, shape and first bytes.
type Look<'m> = (Discriminant<Dtype>, &'m [usize], &'m [u8]);

/// Tensors with equal first bytes: their indices, and the bytes of each source.
type Alike<'m> = Vec<(usize, Vec<&'m [u8]>)>;

/// The output tensors that are copies of an earlier one in every model, each with the name of that one.
///
/// Files of FSDP and old pickles store a tied embedding twice, under various names.
pub(super) fn copies(
    models: &Models,
    counterparts: &[Counterparts],
    groups: &[Group<'_>],
    wanted: &[Wanted],
) -> HashMap<String, String> {
    let mut seen: HashMap<(usize, Vec<Look<'_>>), Alike<'_>> = HashMap::new();
    let mut copies = HashMap::new();
    for (at, tensor) in wanted.iter().enumerate() {
        let sources = groups[tensor.group].sources.iter().zip(&tensor.picks);
        let sources: Option<Vec<SourceTensor>> = sources
            .map(|(source, name)| {
                let tensor = counterparts[source.model].find_or_tied(name)?;
                Some(SourceTensor {
                    model: source.model,
                    tensor,
                })
            })
            .collect();
        let stored = sources.and_then(|sources| {
            let stored = sources.into_iter().map(|source| stored(models, source));
            stored.collect::<Option<Vec<(&TensorEntry, &[u8])>>>()
        });
        let Some(stored) = stored.filter(|stored| !stored.is_empty()) else {
            continue;
        };
        let look = stored.iter().map(|(entry, bytes)| look(entry, bytes));
        let bytes: Vec<&[u8]> = stored.iter().map(|(_, bytes)| *bytes).collect();
        let alike = seen.entry((tensor.group, look.collect())).or_default();
        match alike.iter().find(|(_, others)| *others == bytes) {
            Some((first, _)) => {
                copies.insert(tensor.name.clone(), wanted[*first].name.clone());
            }
            None if alike.len() < MOST_ALIKE => alike.push((at, bytes)),
            None => {}
        }
    }
    copies
}

/// Whether a model has all tensors of another, equal to the byte.
pub(super) fn are_equal(
    models: &Models,
    counterparts: &[Counterparts],
    model: usize,
    other: usize,
) -> bool {
    let pairs = counterparts[model].names.iter().enumerate();
    let pairs: Option<Vec<_>> = pairs
        .map(|(tensor, name)| {
            let theirs = counterparts[other].find(name)?;
            let ours = stored(models, SourceTensor { model, tensor })?;
            let theirs = stored(
                models,
                SourceTensor {
                    model: other,
                    tensor: theirs,
                },
            )?;
            // The first bytes of every tensor are compared before any tensor is read in full.
            (look(ours.0, ours.1) == look(theirs.0, theirs.1)).then_some((ours.1, theirs.1))
        })
        .collect();
    pairs.is_some_and(|pairs| pairs.iter().all(|(ours, theirs)| ours == theirs))
}

/// A tensor and its bytes, if a file holds them contiguously.
fn stored(models: &Models, source: SourceTensor) -> Option<(&TensorEntry, &[u8])> {
    let checkpoint = &models.checkpoints[source.model];
    let bytes = checkpoint.bytes(source.tensor)?;
    Some((&checkpoint.tensors()[source.tensor], bytes))
}

fn look<'m>(entry: &'m TensorEntry, bytes: &'m [u8]) -> Look<'m> {
    let head = &bytes[..bytes.len().min(HEAD)];
    (discriminant(&entry.dtype), &entry.shape, head)
}
