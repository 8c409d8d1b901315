//! Intervals of keys: keeps exactly a given number of elements, chosen by the order of their keys.
//!
//! Of elements with equal keys at a threshold, those with the lowest index are kept.

use std::sync::Arc;

use super::order::{Counts, Found, Order, count_equal};
use engine::Measured;
use numeric::Real;

/// The elements of a stream to keep: the `count` largest, after skipping the `skip` largest.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankRange {
    pub(super) stream: usize,
    pub(super) skip: u64,
    /// At least one.
    pub(super) count: u64,
}

impl RankRange {
    /// How many ranks have to be found.
    pub(super) fn ranks(skip: u64) -> usize {
        if skip > 0 { 2 } else { 1 }
    }
}

impl<K: Clone> Order<K> {
    /// The interval for each of `wanted`, or the measure that is needed next.
    pub(super) fn intervals<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        wanted: &[RankRange],
    ) -> Result<Vec<KeyInterval>, Counts<K>> {
        let mut ranks = Vec::new();
        for &RankRange {
            stream,
            skip,
            count,
        } in wanted
        {
            ranks.push((stream, skip + count));
            ranks.extend((skip > 0).then_some((stream, skip)));
        }
        let mut found = self.found(measured, &ranks)?.into_iter();
        let mut intervals = Vec::new();
        for wanted in wanted {
            let Some(low) = found.next() else { break };
            let high = if wanted.skip > 0 { found.next() } else { None };
            intervals.push(KeyInterval::between(&low, high.as_ref()));
        }
        Ok(intervals)
    }
}

/// The keys that are kept: those in `from..below`, and the first elements of those that tie with a threshold.
#[derive(Debug, Clone)]
pub(super) struct KeyInterval {
    from: u32,
    below: u32,
    /// At most two, neither within the bounds.
    ties: Vec<Tie>,
}

/// Of the elements with this key, each block keeps the first `quota`.
#[derive(Debug, Clone)]
struct Tie {
    key: u32,
    quota: Arc<[u64]>,
}

impl KeyInterval {
    /// An interval that keeps nothing.
    pub(super) fn nothing() -> Self {
        Self {
            from: u32::MAX,
            below: 0,
            ties: Vec::new(),
        }
    }

    /// Keeps the elements from this cut up.
    pub(super) fn from(cut: &Found<'_>) -> Self {
        Self::between(cut, None)
    }

    /// Keeps the elements between the two cuts; those that `high` cuts off are the largest, and dropped.
    fn between(low: &Found<'_>, high: Option<&Found<'_>>) -> Self {
        let mut interval = Self {
            from: low.cut.key,
            below: high.map_or(u32::MAX, |high| high.cut.key),
            ties: Vec::new(),
        };
        let mut keep_first = |found: &Found<'_>, count| {
            interval.ties.push(Tie {
                key: found.cut.key,
                quota: quotas(count, found.equal),
            });
        };
        match high {
            Some(high) if high.cut.key == low.cut.key => {
                // Here the upper cut always splits the elements with its key, so they have been counted.
                keep_first(high, low.cut.inside.saturating_sub(high.cut.inside));
            }
            _ => {
                let parted = |found: &Found<'_>| found.cut.inside < found.cut.held;
                if parted(low) {
                    keep_first(low, low.cut.inside);
                }
                if let Some(high) = high.filter(|high| parted(high)) {
                    keep_first(high, high.cut.held - high.cut.inside);
                }
                if parted(low) {
                    interval.from = low.cut.key + 1;
                }
            }
        }
        interval
    }

    /// The interval in one block.
    pub(super) fn in_block(&self, block: usize) -> BlockInterval {
        let left = |place| {
            self.ties.get(place).map_or(NO_TIE, |tie: &Tie| {
                (tie.key, tie.quota.get(block).copied().unwrap_or(0))
            })
        };
        BlockInterval {
            from: self.from,
            below: self.below,
            ties: [left(0), left(1)],
        }
    }
}

/// How many of the counted elements each block may keep, so that the first `wanted` of the tensor are kept; [`ALL`]
/// if the block may keep all it has.
fn quotas(wanted: u64, counts: &[u64]) -> Arc<[u64]> {
    let mut before = 0;
    counts
        .iter()
        .map(|held| {
            let quota = wanted.saturating_sub(before);
            before += held;
            if quota >= *held { ALL } else { quota }
        })
        .collect()
}

/// A quota that is never used up.
const ALL: u64 = u64::MAX;
/// Stands for no tie; larger than every key.
const NO_TIE: (u32, u64) = (u32::MAX, 0);

/// An interval in one block. Elements must be passed in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockInterval {
    from: u32,
    below: u32,
    /// The tied keys, and how many elements of each may still be kept.
    ties: [(u32, u64); 2],
}

/// A range of numbers: an element is kept if its number lies within.
///
/// The number is a key, a random draw, or a flag (zero to drop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    from: u32,
    width: u32,
}

impl Bounds {
    /// Keeps every key.
    pub(super) const ALL: Self = Self::below(u32::MAX);
    /// Keeps every number but zero.
    pub(super) const NON_ZERO: Self = Self {
        from: 1,
        width: u32::MAX,
    };
    /// Keeps nothing.
    pub(super) const NOTHING: Self = Self::below(0);

    /// Keeps numbers below `bound`.
    pub(super) const fn below(bound: u32) -> Self {
        Self {
            from: 0,
            width: bound,
        }
    }

    /// Whether an element with this number is kept.
    #[inline(always)]
    pub(super) fn keep(&self, number: u32) -> bool {
        // One comparison: below `from` the difference wraps to a large number.
        number.wrapping_sub(self.from) < self.width
    }
}

impl BlockInterval {
    /// The bounds that hold in the whole block; `None` if the block keeps only some elements of a tie.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        let whole = |&(_, left): &(u32, u64)| left == 0 || left == ALL;
        self.ties.iter().all(whole).then(|| self.bounds_here())
    }

    /// The bounds if every tie that has a quota left is kept.
    fn bounds_here(&self) -> Bounds {
        let (mut from, mut below) = (self.from, self.below);
        for (key, _) in self.ties.iter().filter(|(_, left)| *left > 0) {
            // A tie is adjacent to the keys that are kept.
            if *key < from {
                from = *key;
            } else {
                below = *key + 1;
            }
        }
        Bounds {
            from,
            width: below.saturating_sub(from),
        }
    }

    /// The bounds for the next elements of the block, whose keys are `keys`.
    ///
    /// If only some elements of a tie are kept here, replaces the keys by ones where an element is kept, and zeros
    /// elsewhere.
    pub(super) fn choose(&mut self, keys: &mut [u32]) -> Bounds {
        // Nearly always, a tie is kept or dropped in the whole block, or at least in the whole strip.
        let counts = self.ties.map(|(key, left)| match left {
            0 | ALL => 0,
            _ => count_equal(keys, key),
        });
        let parted = |((_, left), count): (&(u32, u64), &u64)| *left > 0 && count > left;
        if self.ties.iter().zip(&counts).any(parted) {
            self.choose_one_by_one(keys);
            return Bounds::NON_ZERO;
        }
        let bounds = self.bounds_here();
        for ((_, left), count) in self.ties.iter_mut().zip(counts) {
            *left = less(*left, count);
        }
        bounds
    }

    fn choose_one_by_one(&mut self, keys: &mut [u32]) {
        for key in keys {
            let mut kept = (*key >= self.from) & (*key < self.below);
            for (tied, left) in &mut self.ties {
                let tie = (*key == *tied) & (*left > 0);
                *left = less(*left, u64::from(tie));
                kept |= tie;
            }
            *key = u32::from(kept);
        }
    }
}

/// What remains of a quota.
fn less(left: u64, kept: u64) -> u64 {
    if left == ALL { ALL } else { left - kept }
}

/// One if `yes`, otherwise zero.
#[inline(always)]
pub(super) fn one_if<R: Real>(yes: bool) -> R {
    if yes { R::ONE } else { R::ZERO }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(ALL), 1u64..20]
    }

    proptest! {
        #[test]
        fn keeps_what_a_look_at_each_key_keeps(
            keys in prop::collection::vec(0u32..8, 0..200), from in 1u32..5, width in 0u32..4,
            quotas in [quota(), quota()], strip in 1usize..40,
        ) {
            let below = from + width;
            let tied = [from - 1, below];
            let tie = |(&key, &quota): (&u32, &u64)| Tie { key, quota: Arc::from([quota]) };
            let ties = tied.iter().zip(&quotas).map(tie).collect();
            let interval = KeyInterval { from, below, ties };
            let mut left = quotas;
            let twin: Vec<bool> = keys
                .iter()
                .map(|key| {
                    let Some(tie) = tied.iter().position(|tied| tied == key) else {
                        return (from..below).contains(key);
                    };
                    let kept = left[tie] > 0;
                    left[tie] = left[tie].saturating_sub(1);
                    kept
                })
                .collect();
            let mut strips = interval.in_block(0);
            let mut found = Vec::new();
            for keys in keys.chunks(strip) {
                let mut numbers = keys.to_vec();
                let bounds = strips.choose(&mut numbers);
                found.extend(numbers.iter().map(|&number| bounds.keep(number)));
            }
            prop_assert_eq!(&found, &twin);
            let whole = interval.in_block(0).bounds();
            prop_assert_eq!(whole.is_some(), quotas.iter().all(|&quota| quota == 0 || quota == ALL));
            if let Some(bounds) = whole {
                let found: Vec<bool> = keys.iter().map(|&key| bounds.keep(key)).collect();
                prop_assert_eq!(found, twin);
            }
        }
    }

    #[test]
    fn bounds_at_their_ends() {
        assert!(Bounds::ALL.keep(0) && Bounds::ALL.keep(0x7fff_ffff));
        assert!(!Bounds::NOTHING.keep(0) && !Bounds::NOTHING.keep(u32::MAX));
        assert!(!Bounds::NON_ZERO.keep(0) && Bounds::NON_ZERO.keep(1));
        assert!(Bounds::NON_ZERO.keep(u32::MAX));
        assert!(Bounds::below(7).keep(6) && !Bounds::below(7).keep(7));
        let nothing = KeyInterval::nothing().in_block(3);
        assert_eq!(nothing.bounds().map(|bounds| bounds.keep(0)), Some(false));
    }
}
