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
    /// Bytes of a chunk of output, the unit of writing to a disk; a power of two.
    pub chunk: usize,
    /// Chunks that the sink may hold.
    pub chunks: usize,
    /// Bytes that the memos of the jobs in flight may hold together.
    pub memo: u64,
    /// Own memory at the peak, in bytes.
    pub peak: u64,
}

/// The memory budget is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{threads} threads and {sources} sources need at least {needed} bytes of memory, the budget is {budget}; blocks \
     hold {block} elements, column sums take {columns} bytes"
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
    /// Elements of the longest block; more than [`BLOCK`] where whole rows are held.
    pub block: usize,
    /// Bytes that the sums over columns take.
    pub columns: u64,
}

/// The program itself, its stacks, headers and plan: measured at 6 to 20 MiB, rounded up.
const OVERHEAD: u64 = 32 << 20;
/// Blocks in the largest tile worth having: 512 KiB of 16-bit output, which stay in a worker's second cache until they
/// are hashed and copied.
const MOST_TILE_BLOCKS: u64 = 16;
/// Bytes that statistics get at the least, beside what the neediest job takes.
const STATISTICS: u64 = 8 << 20;
/// Bytes that memos get at the most, beside what the neediest job wishes.
const MEMOS: u64 = 16 << 20;

/// The smallest and the largest chunk of output worth writing at a time.
const CHUNK: [u64; 2] = [64 << 10, 4 << 20];
/// Chunks beside those that the workers fill: what one batch of tensors gives is written while the next is
/// measured.
const MORE_CHUNKS: u64 = 16;

impl Settings {
    /// Divides the memory up for jobs of at most so many sources and so much cost each.
    pub fn limits(&self, sources: usize, cost: Cost) -> Result<Limits, BudgetError> {
        let threads = self.threads as u64;
        // Sources and a block of output in both precisions, and what the passes hold.
        let longest = BLOCK.max(cost.row) as u64;
        let worker = longest * ((sources as u64 + 1) * (4 + 8) + cost.scratch as u64);
        // Its output, and its sums: those of a tile are held while it is computed, and while it waits for its turn
        // to be folded.
        let block = longest * 8 + 2 * 8 * cost.sums as u64;
        let neediest = statistics(cost, self.threads);
        let chunks = threads + MORE_CHUNKS;
        let fixed = OVERHEAD + threads * worker + neediest + chunks * CHUNK[0];
        let needed = fixed + threads * block;
        if needed > self.memory {
            return Err(BudgetError {
                budget: self.memory,
                needed,
                threads: self.threads,
                sources,
                block: longest as usize,
                columns: column_sums(cost),
            });
        }
        let mut spare = self.memory - fixed;
        let mut chunk = CHUNK[0];
        while chunk < CHUNK[1] && chunks * chunk <= spare / 4 {
            spare -= chunks * chunk;
            chunk *= 2;
        }
        let tile_blocks = (spare / 2 / (threads * block)).clamp(1, MOST_TILE_BLOCKS);
        let statistics =
            neediest + STATISTICS.min(spare - (threads * block * tile_blocks).min(spare));
        let peak =
            OVERHEAD + threads * (worker + tile_blocks * block) + statistics + chunks * chunk;
        let memo = match cost.memo {
            0 => 0,
            wished => (wished + MEMOS).min(self.memory.saturating_sub(peak)),
        };
        Ok(Limits {
            tile_blocks: tile_blocks as usize,
            statistics,
            chunk: chunk as usize,
            chunks: chunks as usize,
            memo,
            peak: peak + memo,
        })
    }
}

/// Bytes that the statistics of a job hold at the most: every worker's counts and their total, before and
/// after, the folded sums, and those over columns.
pub(super) fn statistics(cost: Cost, threads: usize) -> u64 {
    (cost.counts as u64) * 8 * (threads as u64 + 2) + (cost.sums as u64) * 8 + column_sums(cost)
}

/// Bytes of the sums over columns: as the workers leave them, put together, and what the program makes of
/// them, which is no more.
fn column_sums(cost: Cost) -> u64 {
    (cost.column_sums as u64).saturating_mul(3 * 8)
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
                        column_sums: 3 * 16_000 * (threads - 1),
                        memo: (sources as u64 - 1) << 26,
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
    fn long_rows_and_many_columns_count() {
        let rows = Cost {
            row: 50_000_000,
            ..Cost::default()
        };
        let error = settings(256 << 20, 2).limits(3, rows).unwrap_err();
        assert_eq!(error.block, 50_000_000);
        assert!(error.needed > 2 * 4 * 12 * 50_000_000);
        let columns = Cost {
            column_sums: 50_000_000,
            ..Cost::default()
        };
        let error = settings(256 << 20, 2).limits(3, columns).unwrap_err();
        assert_eq!(error.columns, 3 * 8 * 50_000_000);
        assert!(settings(error.needed, 2).limits(3, columns).is_ok());
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
