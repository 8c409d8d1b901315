//! Which of several models the others were fine-tuned from, by how far apart samples of their values are.

use checkpoint::Checkpoint;
use numeric::Fill;

/// The tensors that are sampled, the largest first.
const TENSORS: usize = 8;

/// The elements of each that are read.
const ELEMENTS: u64 = 4096;

/// How far the others are from the base, at most, compared with how far they are from each other. Updates that have
/// nothing to do with each other give 0.71.
const MOST: f64 = 0.85;

/// The base among the models, and how it was told; `None` if it cannot be.
pub(super) fn base_of(models: &[&Checkpoint]) -> Option<(usize, String)> {
    if models.len() < 3 {
        return None;
    }
    let samples = samples(models)?;
    let distance = |a: usize, b: usize| {
        let squares = samples[a].iter().zip(&samples[b]);
        let squares = squares.map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let all = || 0..models.len();
    let to_others = |at: usize| {
        let others = all().filter(|other| *other != at);
        others.map(|other| distance(at, other)).sum::<f64>() / (models.len() - 1) as f64
    };
    let base = all().min_by(|a, b| to_others(*a).total_cmp(&to_others(*b)))?;
    let others: Vec<usize> = all().filter(|other| *other != base).collect();
    let pairs = others
        .iter()
        .enumerate()
        .flat_map(|(at, a)| others[at + 1..].iter().map(move |b| (*a, *b)));
    let apart: Vec<f64> = pairs.map(|(a, b)| distance(a, b)).collect();
    let apart = apart.iter().sum::<f64>() / apart.len() as f64;
    let share = to_others(base) / apart;
    // Copies of each other have no base.
    (apart > 0.0 && share <= MOST).then(|| {
        let why = format!(
            "the others are {share:.2} times as far from it as from each other, in a sample of their values"
        );
        (base, why)
    })
}

/// The same elements of all models; `None` if they have too little in common.
fn samples(models: &[&Checkpoint]) -> Option<Vec<Vec<f32>>> {
    let (first, others) = models.split_first()?;
    let in_all = |at: &usize| {
        let tensor = &first.tensors()[*at];
        others.iter().all(|other| {
            let same = other.find(&tensor.name).map(|at| &other.tensors()[at]);
            same.is_some_and(|same| same.shape == tensor.shape)
        })
    };
    let mut shared: Vec<usize> = (0..first.tensors().len()).filter(in_all).collect();
    shared.sort_by_key(|at| std::cmp::Reverse(first.tensors()[*at].elements()));
    shared.truncate(TENSORS);
    let sample = |model: &&Checkpoint| {
        let mut values = Vec::new();
        for at in &shared {
            let tensor = model.find(&first.tensors()[*at].name)?;
            let elements = model.elements(tensor)?;
            let all = model.tensors()[tensor].elements();
            let count = all.min(ELEMENTS);
            let mut part = vec![0.0f32; usize::try_from(count).ok()?];
            // The middle: the first rows of embeddings are those of special tokens, which hardly change.
            Fill::<f32>::fill(elements.as_ref(), (all - count) / 2, &mut part).ok()?;
            values.extend(part);
        }
        values
            .iter()
            .all(|value| value.is_finite())
            .then_some(values)
    };
    let samples: Vec<Vec<f32>> = models.iter().map(sample).collect::<Option<_>>()?;
    samples
        .first()
        .is_some_and(|sample| !sample.is_empty())
        .then_some(samples)
}
