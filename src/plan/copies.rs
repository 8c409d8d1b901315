//! Finds tensors that hold the same bytes. Nothing else in a plan reads weights, and this reads a few hundred bytes of
//! a tensor however large it is: a plan may be made from headers that lie far away.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::ops::Range;

use super::counterparts::Counterparts;
use super::layers::{GroupSource, OutputTensor, SourceGroup};
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

/// Fetches the starts that are compared first, of tensors that lie elsewhere, all at once.
fn fetch_starts<'s>(models: &Models, sources: impl Iterator<Item = &'s Vec<SourceTensor>>) {
    let firsts: Vec<&SourceTensor> = sources.filter_map(|sources| sources.first()).collect();
    for (model, checkpoint) in models.checkpoints.iter().enumerate() {
        let of_model = firsts.iter().filter(|source| source.model == model);
        let wanted = of_model.map(|source| {
            let probe = first_probe(&checkpoint.tensors()[source.tensor]);
            (source.tensor, probe)
        });
        // What cannot be fetched is not peeked at.
        let _ = checkpoint.peek_all(&wanted.collect::<Vec<_>>());
    }
}

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
    let sources = wanted.iter().map(|tensor| {
        let sources = groups[tensor.group].sources.iter().zip(&tensor.picks);
        let source = |(source, name): (&GroupSource<'_>, &String)| {
            let tensor = counterparts[source.model].find_or_tied(name)?;
            Some(SourceTensor {
                model: source.model,
                tensor,
            })
        };
        sources.map(source).collect::<Option<Vec<SourceTensor>>>()
    });
    let sources: Vec<Option<Vec<SourceTensor>>> = sources.collect();
    fetch_starts(models, sources.iter().flatten());
    for (at, (tensor, sources)) in wanted.iter().zip(sources).enumerate() {
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
    let (Some(our_entry), Some(their_entry)) = (stored(models, ours), stored(models, theirs))
    else {
        return false;
    };
    // Each is read when the one before it agrees.
    let mut probes = probes(our_entry.len as usize);
    kind(our_entry) == kind(their_entry)
        && our_entry.len == their_entry.len
        && probes.all(|probe| {
            let peek = |source: SourceTensor| {
                models.checkpoints[source.model].peek(source.tensor, probe.clone())
            };
            peek(ours).is_some_and(|ours| peek(theirs) == Some(ours))
        })
}

/// What is compared of so many bytes: some at the start, in the middle and at the end.
fn probes(len: usize) -> impl Iterator<Item = Range<usize>> {
    let last = len.saturating_sub(PROBE);
    [0, last / 2, last]
        .into_iter()
        .map(move |at| at..len.min(at + PROBE))
}

/// The probe at the start of a tensor.
fn first_probe(entry: &TensorEntry) -> Range<usize> {
    0..(entry.len as usize).min(PROBE)
}

fn start(models: &Models, source: SourceTensor) -> Option<Start<'_>> {
    let entry = stored(models, source)?;
    let (dtype, shape) = kind(entry);
    let bytes = models.checkpoints[source.model].peek(source.tensor, first_probe(entry))?;
    Some((dtype, shape, bytes))
}

fn kind(entry: &TensorEntry) -> (Discriminant<Dtype>, &[usize]) {
    (discriminant(&entry.dtype), &entry.shape)
}

/// A tensor, if a file holds its bytes contiguously.
fn stored(models: &Models, source: SourceTensor) -> Option<&TensorEntry> {
    let checkpoint = &models.checkpoints[source.model];
    checkpoint.bytes(source.tensor)?;
    Some(&checkpoint.tensors()[source.tensor])
}
