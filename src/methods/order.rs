//! Order statistics over passes: the k-th largest key of a tensor, exactly, and which of its equals stay.
//!
//! It knows keys and blocks, not what the keys are made of. See [`numeric`](crate::numeric) for the two
//! histograms; a third pass counts, block by block, the elements that equal a threshold.

use crate::engine::{Block, Measure, Measured};
use crate::numeric::{HIGH_BINS, LOW_BINS, Rank, Real, high_bin, low_bin, rank_from_top};

/// Passes that [`Order::cuts`] and [`Order::equal`] take together, at most.
pub(super) const PASSES: usize = 3;

/// Makes [magnitude keys](Real::magnitude_key) of a tensor's elements, in one or more streams.
pub(super) trait Keys<R>: Clone + Send + Sync + 'static {
    /// Sets `keys`, one for each element of the block.
    fn fill(&self, block: &Block<'_, R>, stream: usize, keys: &mut [u32]);
}

/// The keys of a tensor, and into how many blocks it is cut.
pub(super) struct Order<K> {
    pub(super) keys: K,
    pub(super) blocks: usize,
}

/// The k-th largest key of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) key: u32,
    /// How many elements of this key are among the k largest.
    pub(super) inside: u64,
    /// How many elements have this key.
    pub(super) held: u64,
}

impl<K: Clone> Order<K> {
    /// Length of the longest vector of counts for so many ranks.
    pub(super) fn counts(&self, ranks: usize) -> usize {
        ranks * HIGH_BINS.max(self.blocks)
    }

    /// The cuts at these ranks (stream, and rank from the top, from 1 on), or the measure that is missing.
    ///
    /// Ranks of one stream stand together.
    pub(super) fn cuts<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        ranks: &[(usize, u64)],
    ) -> Result<Vec<Cut>, Counts<K>> {
        if ranks.is_empty() {
            return Ok(Vec::new());
        }
        let mut streams: Vec<usize> = ranks.iter().map(|&(stream, _)| stream).collect();
        streams.dedup();
        let high = self.counted(
            measured,
            streams.iter().map(|&stream| (stream, Target::HighBins)),
        )?;
        let tops: Vec<_> = ranks
            .iter()
            .map(|&(stream, rank)| {
                let place = streams.iter().position(|&other| other == stream)?;
                let counts = high.counts.chunks_exact(HIGH_BINS).nth(place)?;
                rank_from_top(counts, rank)
            })
            .collect();
        let low = self.counted(
            measured,
            ranks.iter().zip(&tops).map(|(&(stream, _), top)| {
                let bin = top.map_or(0, |top| top.bin);
                (stream, Target::LowBins { bin })
            }),
        )?;
        let cut = |(top, counts): (&Option<_>, &[u64])| {
            let top: Rank = (*top)?;
            let rank = rank_from_top(counts, top.wanted)?;
            Some(Cut {
                key: (top.bin * LOW_BINS + rank.bin) as u32,
                inside: rank.wanted,
                held: rank.held,
            })
        };
        // A rank beyond the last element cuts nothing off.
        let all = Cut {
            key: 0,
            inside: 0,
            held: 0,
        };
        Ok(tops
            .iter()
            .zip(low.counts.chunks_exact(LOW_BINS))
            .map(|pair| cut(pair).unwrap_or(all))
            .collect())
    }

    /// How many elements have these keys (stream and key), block by block; or the measure that is missing.
    pub(super) fn equal<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        keys: &[(usize, u32)],
    ) -> Result<Vec<&'m [u64]>, Counts<K>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let targets = keys
            .iter()
            .map(|&(stream, key)| (stream, Target::Equal { key }));
        let counted = self.counted(measured, targets)?;
        Ok(counted.counts.chunks_exact(self.blocks.max(1)).collect())
    }

    /// The counts of these targets, or the measure that makes them.
    fn counted<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        targets: impl Iterator<Item = (usize, Target)>,
    ) -> Result<&'m Measured, Counts<K>> {
        measured.next().ok_or_else(|| Counts {
            keys: self.keys.clone(),
            blocks: self.blocks,
            targets: targets.collect(),
        })
    }
}

/// What is counted of a stream's keys.
#[derive(Debug, Clone, Copy)]
enum Target {
    HighBins,
    LowBins {
        bin: usize,
    },
    /// Those equal to a key, by block.
    Equal {
        key: u32,
    },
}

/// Counts keys.
pub(super) struct Counts<K> {
    keys: K,
    blocks: usize,
    targets: Vec<(usize, Target)>,
}

impl<R: Real, K: Keys<R>> Measure<R> for Counts<K> {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        self.targets
            .iter()
            .map(|(_, target)| match target {
                Target::HighBins => HIGH_BINS,
                Target::LowBins { .. } => LOW_BINS,
                Target::Equal { .. } => self.blocks,
            })
            .sum()
    }

    fn block(&self, block: Block<'_, R>, _sums: &mut [f64], mut counts: &mut [u64]) {
        let mut keys = vec![0; block.len()];
        let mut filled = None;
        for &(stream, target) in &self.targets {
            if filled != Some(stream) {
                self.keys.fill(&block, stream, &mut keys);
                filled = Some(stream);
            }
            let width = match target {
                Target::HighBins => {
                    keys.iter().for_each(|&key| counts[high_bin(key)] += 1);
                    HIGH_BINS
                }
                Target::LowBins { bin } => {
                    keys.iter()
                        .filter(|&&key| high_bin(key) == bin)
                        .for_each(|&key| counts[low_bin(key)] += 1);
                    LOW_BINS
                }
                Target::Equal { key: wanted } => {
                    let equal = keys.iter().filter(|&&key| key == wanted).count();
                    counts[block.index] += equal as u64;
                    self.blocks
                }
            };
            counts = &mut counts[width..];
        }
    }
}
