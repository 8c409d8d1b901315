//! Tied tensors that a plan leaves out: each must be a copy of the one that is kept.

use super::error::RunError;
use super::feed::{Feed, in_steps};
use checkpoint::Checkpoint;
use engine::{Observer, Piece, pieces, scan};
use plan::Plan;

/// Bytes that a worker compares at a time.
const PIECE: u64 = 1 << 20;

/// Compares what a plan, and the results that are computed with it, leave out with what is kept.
///
/// Tensors are compared as they are stored: an adapter of the one that is kept changes the other with it. Tensors of which
/// not all bytes are stored are no copies of each other.
///
/// # Errors
/// Two differ, the observer stopped it, or the threads could not be started.
pub(super) fn check(
    plan: &Plan,
    feed: Option<&Feed>,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let pairs = pairs(plan);
    in_steps(feed, pairs.len(), observer, |items| {
        compare(&pairs[items], plan.settings.threads, observer)
    })
}

/// A model, a tensor of it that is left out, and the one that is kept.
type Pair<'p> = (&'p Checkpoint, usize, usize);

/// The pairs that are compared, in order.
pub(super) fn pairs(plan: &Plan) -> Vec<Pair<'_>> {
    let results = plan.computed_results().into_iter();
    let plans = results.map(|result| &result.plan).chain([plan]);
    let pairs = plans.flat_map(|plan| {
        let pairs = plan.equal.iter();
        pairs.map(|&(model, left_out, kept)| (plan.models[model].as_ref(), left_out, kept))
    });
    pairs.collect()
}

fn compare(pairs: &[Pair<'_>], threads: usize, observer: &dyn Observer) -> Result<(), RunError> {
    let lengths = pairs
        .iter()
        .map(|(model, left_out, _)| model.tensors()[*left_out].len);
    let same = |_: &mut (), Piece { of, range }: &Piece| {
        let (model, left_out, kept) = pairs[*of];
        let range = range.start as usize..range.end as usize;
        let bytes = |tensor: usize| model.stored(tensor)?.get(range.clone());
        observer.advance(2 * range.len() as u64);
        match (bytes(left_out), bytes(kept)) {
            (Some(left_out), Some(kept)) if left_out == kept => Ok(()),
            _ => Err(RunError::NotTied {
                model: model.label().to_owned(),
                head: model.tensors()[left_out].name.clone(),
                embedding: model.tensors()[kept].name.clone(),
            }),
        }
    };
    let stopped = || observer.cancelled();
    scan(&pieces(lengths, PIECE), threads, &stopped, same)?;
    Ok(())
}
