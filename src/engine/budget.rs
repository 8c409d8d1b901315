//! How much memory an execution may hold, and what follows for tiles and batches.

use super::program::Cost;
use crate::numeric::BLOCK;

/// The engine's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Worker threads, at least one.
    pub threads: usize,
    /// Bytes of own (anonymous) memory, mapped files not counted.
    pub memory: u64,
    /// Whether NaN and infinity in inputs are let through.
    pub allow_non_finite: bool,
    /// Whether results beyond the output's range become its largest value.
    pub saturate: bool,
}

/// The memory that the needs of the jobs leave, divided up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blocks in a tile.
    pub tile_blocks: usize,
    /// Bytes that the statistics of the jobs in flight may hold together.
    pub statistics: u64,
    /// Own memory at the peak, in bytes.
    pub peak: u64,
}

/// The memory budget is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{threads} threads and {sources} sources need at least {needed} bytes of memory, the budget is {budget}"
)]
pub struct BudgetError {
    /// The budget in bytes.
    pub budget: u64,
    /// The least that would do.
    pub needed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Sources of the widest job.
    pub sources: usize,
}

/// The program itself, its stacks, headers and plan: measured at 6 to 20 MiB, rounded up.
const OVERHEAD: u64 = 32 << 20;
/// Blocks in the largest tile worth having: 4 MiB of 16-bit output.
const MOST_TILE_BLOCKS: u64 = 128;
/// Bytes that statistics get at the least, beside what the neediest job takes.
const STATISTICS: u64 = 8 << 20;

impl Settings {
    /// Divides the memory up for jobs of at most so many sources and so much cost each.
    pub fn limits(&self, sources: usize, cost: Cost) -> Result<Limits, BudgetError> {
        let threads = self.threads as u64;
        // Sources and a block of output in both precisions, and what the passes hold.
        let longest = BLOCK.max(cost.row) as u64;
        let worker = longest * ((sources as u64 + 1) * (4 + 8) + cost.scratch as u64);
        let block = longest * 8;
        let neediest = statistics(cost, 1, self.threads);
        let fixed = OVERHEAD + threads * worker + neediest;
        let needed = fixed + threads * block;
        if needed > self.memory {
            return Err(BudgetError {
                budget: self.memory,
                needed,
                threads: self.threads,
                sources,
            });
        }
        let spare = self.memory - fixed;
        let tile_blocks = (spare / 2 / (threads * block)).clamp(1, MOST_TILE_BLOCKS);
        let statistics =
            neediest + STATISTICS.min(spare - (threads * block * tile_blocks).min(spare));
        let peak = OVERHEAD + threads * (worker + tile_blocks * block) + statistics;
        Ok(Limits {
            tile_blocks: tile_blocks as usize,
            statistics,
            peak,
        })
    }
}

/// Bytes that the statistics of a job with so many blocks hold at the most: every worker's counts and their
/// total, before and after, and every block's sums.
pub(super) fn statistics(cost: Cost, blocks: usize, threads: usize) -> u64 {
    (cost.counts as u64) * 8 * (threads as u64 + 2) + (cost.sums as u64) * 8 * blocks as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(memory: u64, threads: usize) -> Settings {
        Settings {
            threads,
            memory,
            allow_non_finite: false,
            saturate: false,
        }
    }

    #[test]
    fn the_peak_stays_within_the_budget() {
        for memory in [64u64 << 20, 256 << 20, 1 << 30] {
            for threads in [1, 2, 8] {
                for sources in [1, 3, 9] {
                    let cost = Cost {
                        measures: 2,
                        counts: 65_536 * sources,
                        sums: 3,
                        row: 70_000 * (threads - 1),
                        scratch: 4,
                    };
                    if let Ok(limits) = settings(memory, threads).limits(sources, cost) {
                        assert!(
                            limits.peak <= memory,
                            "{memory} {threads} {sources}: {limits:?}"
                        );
                        assert!(limits.tile_blocks >= 1);
                    }
                }
            }
        }
        assert!(settings(256 << 20, 16).limits(8, Cost::default()).is_ok());
    }

    #[test]
    fn too_little_memory_says_how_much_would_do() {
        let error = settings(1 << 20, 2).limits(3, Cost::default()).unwrap_err();
        assert!(settings(error.needed, 2).limits(3, Cost::default()).is_ok());
        assert!(
            settings(error.needed - 1, 2)
                .limits(3, Cost::default())
                .is_err()
        );
    }
}
