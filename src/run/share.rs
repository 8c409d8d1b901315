//! Which weight files and tensors of a plan are one worker's.

use std::ops::Range;

use super::error::RunError;
use super::part_number::Part;
use plan::{Operation, Plan};

/// What one worker computes and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its weight files, as a range of [`Plan::shards`].
    pub shards: Range<usize>,
    /// The tensors in them, by number, ascending.
    pub tensors: Vec<usize>,
    /// The most bytes that it reads, over all passes, without those of results that are made once.
    pub read: u64,
    /// The bytes of its weight files.
    pub written: u64,
}

impl Share {
    /// All of a plan.
    pub fn whole(plan: &Plan) -> Self {
        Self::of(plan, 0..plan.shards.len())
    }

    /// Whether it has the first weight file. What concerns the whole output, and no tensor of it, is done with that.
    pub(super) fn is_first(&self) -> bool {
        self.shards.start == 0
    }

    /// Whether a tensor, by its number in the plan, is in one of its weight files.
    pub fn has(&self, tensor: usize) -> bool {
        self.tensors.binary_search(&tensor).is_ok()
    }

    /// The tensors of some weight files.
    fn of(plan: &Plan, shards: Range<usize>) -> Self {
        let files = &plan.shards[shards.clone()];
        let tensors = files.iter().flat_map(|file| &file.tensors);
        let mut tensors: Vec<usize> = tensors.map(|(tensor, _)| *tensor).collect();
        tensors.sort_unstable();
        Self {
            shards,
            read: tensors.iter().map(|&tensor| plan.reads_of(tensor)).sum(),
            written: files.iter().map(|file| file.file_size).sum(),
            tensors,
        }
    }
}

/// Cuts a plan into so many parts: consecutive weight files each, so that the part that reads and writes most does so as
/// little as possible. The same plan is cut alike everywhere.
///
/// # Errors
/// There are too few weight files for so many parts.
pub fn shares(plan: &Plan, count: usize) -> Result<Vec<Share>, RunError> {
    let units = units(plan);
    if !(1..=units.len()).contains(&count) {
        return Err(RunError::TooManyParts {
            parts: count,
            most: units.len(),
        });
    }
    let costs: Vec<u64> = units
        .iter()
        .map(|files| Share::of(plan, files.clone()))
        .map(|share| share.read.saturating_add(share.written))
        .collect();
    let shares = cut(&costs, count).into_iter();
    let shares = shares.map(|run| Share::of(plan, units[run.start].start..units[run.end - 1].end));
    Ok(shares.collect())
}

/// The most parts that a plan can be cut into.
pub(super) fn most_parts(plan: &Plan) -> usize {
    units(plan).len()
}

/// The runs of weight files that one worker must write. Codes and their scales are computed together, and may lie in two
/// files.
fn units(plan: &Plan) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    for (number, file) in plan.shards.iter().enumerate() {
        // A file holds tensors whose numbers follow each other.
        let first = file.tensors.iter().map(|(tensor, _)| *tensor).min();
        let torn = first.is_some_and(|first| {
            matches!(plan.tensors[first].operation, Operation::Scales) && first > 0
        });
        match units.last_mut() {
            Some(unit) if torn => unit.end = number + 1,
            _ => units.push(number..number + 1),
        }
    }
    units
}

/// The share of one part.
///
/// # Errors
/// As of [`shares`].
pub fn share(plan: &Plan, part: Part) -> Result<Share, RunError> {
    Ok(shares(plan, part.count)?.swap_remove(part.number - 1))
}

/// Cuts costs into so many runs, none empty, of which the largest is as small as it can be.
fn cut(costs: &[u64], count: usize) -> Vec<Range<usize>> {
    let total = costs
        .iter()
        .fold(0, |sum: u64, cost| sum.saturating_add(*cost));
    let (mut least, mut most) = (costs.iter().copied().max().unwrap_or(0), total);
    while least < most {
        let middle = least + (most - least) / 2;
        match runs(costs, count, middle).len() <= count {
            true => most = middle,
            false => least = middle + 1,
        }
    }
    runs(costs, count, least)
}

/// Runs of at most `limit`, as long as they can be while each of `count` runs gets something.
fn runs(costs: &[u64], count: usize, limit: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (at, &cost) in costs.iter().enumerate() {
        let grown = cost.saturating_add(sum);
        // As many runs are still to come as there are items.
        let must_begin = runs.len() < count && costs.len() - at <= count - runs.len();
        match runs.last_mut() {
            Some(run) if grown <= limit && !must_begin => {
                run.end = at + 1;
                sum = grown;
            }
            _ => {
                runs.push(at..at + 1);
                sum = cost;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cut_is_even() {
        assert_eq!(cut(&[1, 1, 1, 1], 2), [0..2, 2..4]);
        assert_eq!(cut(&[5, 1, 1, 1], 2), [0..1, 1..4]);
        assert_eq!(cut(&[0, 0, 0, 9], 3), [0..2, 2..3, 3..4]);
        assert_eq!(cut(&[u64::MAX, u64::MAX], 2), [0..1, 1..2]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_run_and_no_cut_is_better(
            costs in prop::collection::vec(0u64..50, 1..9),
            count in 1usize..9,
        ) {
            let count = count.min(costs.len());
            let found = cut(&costs, count);
            prop_assert_eq!(found.len(), count);
            let items: Vec<usize> = found.iter().cloned().flatten().collect();
            prop_assert_eq!(items, (0..costs.len()).collect::<Vec<_>>());
            prop_assert!(found.iter().all(|run| !run.is_empty()));
            let largest = |runs: &[Range<usize>]| {
                runs.iter().map(|run| costs[run.clone()].iter().sum::<u64>()).max()
            };
            // All other cuts, by the bits of a number: a bit for each gap.
            for gaps in 0u32..1 << (costs.len() - 1) {
                if gaps.count_ones() as usize != count - 1 {
                    continue;
                }
                let mut other: Vec<Range<usize>> = Vec::new();
                for at in 0..costs.len() {
                    match other.last_mut() {
                        Some(run) if gaps >> (at - 1) & 1 == 0 => run.end = at + 1,
                        _ => other.push(at..at + 1),
                    }
                }
                prop_assert!(largest(&found) <= largest(&other));
            }
        }
    }
}
