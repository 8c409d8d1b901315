//! Finds tensors that hold the same bytes. Nothing else in a plan reads weights, and this reads a few hundred bytes of
//! a tensor however large it is: a plan may be made from headers that lie far away.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use super::counterparts::Counterparts;
use super::layers::{OutputTensor, SourceGroup};
use super::models::Models;
use super::planned::SourceTensor;
use checkpoint::{Dtype, TensorEntry};

/// How many bytes are compared at the start, in the middle and at the end of a tensor.
const PROBE: usize = 256;

/// The most different tensors with the same start that are remembered, such as vectors of ones.
const MOST_ALIKE: usize = 4;

/// What is compared first: dtype, shape and first bytes. Nearly all tensors differ in them.
type Start<'m> = (Discriminant<Dtype>, &'m [usize], &'m [u8]);

/// Output tensors with the same start in their first source: their indices, and all their sources.
type Alike = Vec<(usize, Vec<SourceTensor>)>;

/// The output tensors that are copies of an earlier one in every model, each with the name of that one.
///
/// Files of FSDP and old pickles store a tied embedding twice, under various names. Copies get one random mask. Two
/// tensors that differ only where nobody looked would get one mask too, which does them no harm.
pub(super) fn copies(
    models: &Models,
    counterparts: &[Counterparts],
    groups: &[SourceGroup<'_>],
    wanted: &[OutputTensor],
) -> HashMap<String, String> {
    let mut seen: HashMap<(usize, Start<'_>), Alike> = HashMap::new();
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
        let Some(sources) = sources else { continue };
        let start = sources.first().and_then(|&source| start(models, source));
        let Some(start) = start else { continue };
        let alike = seen.entry((tensor.group, start)).or_default();
        let same = |others: &[SourceTensor]| {
            let mut pairs = sources.iter().zip(others);
            pairs.all(|(&ours, &theirs)| look_equal(models, ours, theirs))
        };
        match alike.iter().find(|(_, others)| same(others)) {
            Some((first, _)) => {
                copies.insert(tensor.name.clone(), wanted[*first].name.clone());
            }
            None if alike.len() < MOST_ALIKE => alike.push((at, sources)),
            None => {}
        }
    }
    copies
}

/// Whether every tensor of a model looks like that of another: same dtype, shape, first, middle and last bytes.
pub(super) fn models_look_equal(
    models: &Models,
    counterparts: &[Counterparts],
    model: usize,
    other: usize,
) -> bool {
    let names = &counterparts[model].names;
    !names.is_empty()
        && names.iter().enumerate().all(|(tensor, name)| {
            counterparts[other].find(name).is_some_and(|theirs| {
                let theirs = SourceTensor {
                    model: other,
                    tensor: theirs,
                };
                look_equal(models, SourceTensor { model, tensor }, theirs)
            })
        })
}

/// Whether two tensors agree wherever they are compared. Tensors that no file holds contiguously never do.
fn look_equal(models: &Models, ours: SourceTensor, theirs: SourceTensor) -> bool {
    let (Some(ours), Some(theirs)) = (stored(models, ours), stored(models, theirs)) else {
        return false;
    };
    kind(ours.0) == kind(theirs.0)
        && ours.1.len() == theirs.1.len()
        && probes(ours.1).eq(probes(theirs.1))
}

/// The bytes at the start, in the middle and at the end, each read when it is asked for.
fn probes(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let last = bytes.len().saturating_sub(PROBE);
    [0, last / 2, last]
        .into_iter()
        .map(|at| &bytes[at..bytes.len().min(at + PROBE)])
}

fn start(models: &Models, source: SourceTensor) -> Option<Start<'_>> {
    let (entry, bytes) = stored(models, source)?;
    let (dtype, shape) = kind(entry);
    Some((dtype, shape, &bytes[..bytes.len().min(PROBE)]))
}

fn kind(entry: &TensorEntry) -> (Discriminant<Dtype>, &[usize]) {
    (discriminant(&entry.dtype), &entry.shape)
}

/// A tensor and its bytes, if a file holds them contiguously.
fn stored(models: &Models, source: SourceTensor) -> Option<(&TensorEntry, &[u8])> {
    let checkpoint = &models.checkpoints[source.model];
    let bytes = checkpoint.bytes(source.tensor)?;
    Some((&checkpoint.tensors()[source.tensor], bytes))
}
