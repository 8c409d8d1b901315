//! Bands of keys: which elements are kept by the order of their keys, so many and no more.
//!
//! Elements with equal keys at a threshold are kept by lowest index.

use std::sync::Arc;

use super::order::{Counts, Cut, Order};
use crate::engine::Measured;
use crate::numeric::Real;

/// How many elements of a stream shall be kept: the `count` largest but for the `skip` largest of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) stream: usize,
    pub(super) skip: u64,
    /// At least one.
    pub(super) count: u64,
}

impl Wanted {
    /// How many ranks must be looked up.
    pub(super) fn ranks(skip: u64) -> usize {
        if skip > 0 { 2 } else { 1 }
    }
}

impl<K: Clone> Order<K> {
    /// The bands that keep these, or the measure that is missing.
    pub(super) fn bands<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        wanted: &[Wanted],
    ) -> Result<Vec<Band>, Counts<K>> {
        let mut ranks = Vec::new();
        for &Wanted {
            stream,
            skip,
            count,
        } in wanted
        {
            ranks.push((stream, skip + count));
            ranks.extend((skip > 0).then_some((stream, skip)));
        }
        let mut cuts = self.cuts(measured, &ranks)?.into_iter();
        let mut bands = Vec::new();
        let mut tied = Vec::new();
        for wanted in wanted {
            let Some(low) = cuts.next() else { break };
            let high = if wanted.skip > 0 { cuts.next() } else { None };
            let (band, ties) = Band::between(low, high);
            for (key, count) in ties {
                tied.push((bands.len(), wanted.stream, key, count));
            }
            bands.push(band);
        }
        let keys: Vec<(usize, u32)> = tied
            .iter()
            .map(|&(_, stream, key, _)| (stream, key))
            .collect();
        let counts = self.equal(measured, &keys)?;
        for (&(place, _, key, count), counts) in tied.iter().zip(counts) {
            bands[place].ties.push(Tie {
                key,
                quota: quotas(count, counts),
            });
        }
        Ok(bands)
    }
}

/// Keys that are kept: from `from` on and below `below`, and of those that tie with a threshold, the first.
#[derive(Debug, Clone)]
pub(super) struct Band {
    from: u32,
    below: u32,
    /// Two at most, neither within the bounds.
    ties: Vec<Tie>,
}

/// Of the elements with a key, each block keeps the first `quota`.
#[derive(Debug, Clone)]
struct Tie {
    key: u32,
    quota: Arc<[u64]>,
}

impl Band {
    /// Keeps nothing.
    pub(super) fn nothing() -> Self {
        Self {
            from: u32::MAX,
            below: 0,
            ties: Vec::new(),
        }
    }

    /// Between the smallest that is kept and the smallest of the largest, which are not; and the keys of which
    /// only so many are kept, their quotas still to come.
    fn between(low: Cut, high: Option<Cut>) -> (Self, Vec<(u32, u64)>) {
        let mut band = Self {
            from: low.key,
            below: high.map_or(u32::MAX, |high| high.key),
            ties: Vec::new(),
        };
        let mut tied = Vec::new();
        match high {
            Some(high) if high.key == low.key => {
                tied.push((low.key, low.inside.saturating_sub(high.inside)));
            }
            _ => {
                if low.inside < low.held {
                    band.from = low.key + 1;
                    tied.push((low.key, low.inside));
                }
                if let Some(high) = high.filter(|high| high.inside < high.held) {
                    tied.push((high.key, high.held - high.inside));
                }
            }
        }
        (band, tied)
    }

    /// The band in one block.
    pub(super) fn in_block(&self, block: usize) -> BlockBand {
        let left = |place| {
            self.ties.get(place).map_or(NO_TIE, |tie: &Tie| {
                (tie.key, tie.quota.get(block).copied().unwrap_or(0))
            })
        };
        BlockBand {
            from: self.from,
            below: self.below,
            first: left(0),
            second: left(1),
        }
    }
}

/// How many of the elements counted by block each block may keep, so that the first `wanted` stay.
fn quotas(wanted: u64, counts: &[u64]) -> Arc<[u64]> {
    let mut before = 0;
    counts
        .iter()
        .map(|held| {
            let quota = wanted.saturating_sub(before);
            before += held;
            quota
        })
        .collect()
}

/// No key is as large.
const NO_TIE: (u32, u64) = (u32::MAX, 0);

/// A band in one block, whose elements are asked for in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockBand {
    from: u32,
    below: u32,
    /// A tied key, and how many of it are still kept.
    first: (u32, u64),
    second: (u32, u64),
}

impl BlockBand {
    /// One where an element is kept, zero where not: a number of the same width as the values lets the
    /// compiler work on many at once, where a `bool` makes it branch.
    pub(super) fn fill<R: Real>(&mut self, keys: impl Iterator<Item = u32>, keep: &mut [R]) {
        let Self { from, below, .. } = *self;
        let within = |key| (key >= from) & (key < below);
        if self.first == NO_TIE {
            keep.iter_mut()
                .zip(keys)
                .for_each(|(keep, key)| *keep = one_if(within(key)));
            return;
        }
        let mut ties = [self.first, self.second];
        for (keep, key) in keep.iter_mut().zip(keys) {
            let mut kept = within(key);
            for (tied, left) in &mut ties {
                let tie = (key == *tied) & (*left > 0);
                *left -= u64::from(tie);
                kept |= tie;
            }
            *keep = one_if(kept);
        }
        [self.first, self.second] = ties;
    }
}

/// One for yes, zero for no.
#[inline(always)]
pub(super) fn one_if<R: Real>(yes: bool) -> R {
    if yes { R::ONE } else { R::ZERO }
}
