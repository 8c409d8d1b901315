//! How much memory an execution may use, and how large tiles and batches are as a result.

use std::borrow::Cow;
use std::fmt;

use bytesize::ByteSize;

use super::program::Cost;
use super::tile::PAGE;
use errors::Hint;
use numeric::BLOCK;

/// How the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Worker threads; at least one.
    pub threads: usize,
    /// How much anonymous memory may be used; mapped files are not counted.
    pub memory: Budget,
    /// Whether NaN and infinity in inputs are allowed.
    pub allow_non_finite: bool,
    /// Whether results out of range become the output format's largest value.
    pub saturate: bool,
}

/// How much anonymous memory may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// At most this many bytes: what the user allows.
    Limit(u64),
    /// What is usual, and more where a tensor needs it.
    Grows {
        /// Bytes for tensors that are computed block by block.
        usual: u64,
        /// The most bytes that it may grow to: what the machine has free.
        free: u64,
    },
}

impl Budget {
    /// 256 MiB, and more where a tensor needs it, up to what the machine has free.
    pub fn growing(free: u64) -> Self {
        Budget::Grows {
            usual: 256 << 20,
            free,
        }
    }

    /// Bytes for work that is cut to what there is.
    pub fn usual(self) -> u64 {
        match self {
            Budget::Limit(bytes) => bytes,
            Budget::Grows { usual, free } => usual.min(free),
        }
    }

    /// What is left of it beside so many bytes.
    #[must_use]
    pub fn without(self, held: u64) -> Self {
        match self {
            Budget::Limit(bytes) => Budget::Limit(bytes.saturating_sub(held)),
            Budget::Grows { usual, free } => Budget::Grows {
                usual: usual.saturating_sub(held),
                free: free.saturating_sub(held),
            },
        }
    }

    /// The most bytes.
    pub fn most(self) -> u64 {
        match self {
            Budget::Limit(bytes) => bytes,
            Budget::Grows { free, .. } => free,
        }
    }

    /// Bytes for jobs that need at least so many, of them so many for whole matrices.
    fn suited_to(self, needed: u64, matrix: u64) -> u64 {
        match self {
            Budget::Limit(bytes) => bytes,
            Budget::Grows { usual, free } => usual.saturating_add(matrix).max(needed).min(free),
        }
    }
}

/// The memory budget, divided up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes for the statistics of all active jobs together.
    pub statistics: u64,
    /// Bytes of a tile of output, the unit in which output is written to disk.
    pub tile: usize,
    /// Tiles that the workers and the sink may hold together.
    pub tiles: usize,
    /// Bytes for the carried masks of all active jobs together.
    pub carried: u64,
    /// Anonymous memory at the peak, in bytes.
    pub peak: u64,
}

/// The memory budget is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetError {
    /// The budget.
    pub budget: Budget,
    /// The least bytes that would be enough.
    pub needed: u64,
    /// Worker threads.
    pub threads: usize,
    /// The most threads for which the budget is enough; zero if there are none.
    pub fewer_threads: usize,
    /// Sources of the widest job.
    pub sources: usize,
    /// Elements of the longest block; more than [`BLOCK`] if a job needs whole rows.
    pub block: usize,
    /// Bytes for sums over columns.
    pub columns: u64,
    /// Bytes for a pass over whole matrices.
    pub matrix: u64,
}

impl BudgetError {
    /// The same where so many bytes are held besides.
    #[must_use]
    pub fn beside(self, held: u64) -> Self {
        let budget = match self.budget {
            Budget::Limit(bytes) => Budget::Limit(bytes.saturating_add(held)),
            Budget::Grows { usual, free } => Budget::Grows {
                usual: usual.saturating_add(held),
                free: free.saturating_add(held),
            },
        };
        Self {
            budget,
            needed: self.needed.saturating_add(held),
            ..self
        }
    }
}

impl fmt::Display for BudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        write!(
            f,
            "{} and {} need at least {} of memory, and ",
            count(self.threads, "thread"),
            count(self.sources, "source"),
            ByteSize(self.needed)
        )?;
        match self.budget {
            Budget::Limit(bytes) => write!(f, "the limit is {}", ByteSize(bytes)),
            Budget::Grows { free, .. } => write!(f, "this machine has {} free", ByteSize(free)),
        }
    }
}

impl std::error::Error for BudgetError {}

impl Hint for BudgetError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let least = format!("--memory {}MiB", self.needed.div_ceil(1 << 20));
        let fewer = match self.fewer_threads {
            0 => String::new(),
            threads => format!("--threads {threads}, or "),
        };
        Some(match self.budget {
            Budget::Limit(_) => format!("{fewer}{least}, or more; without --memory weld takes what it needs").into(),
            Budget::Grows { .. } => format!(
                "{fewer}a machine with more memory; {least} tries it here, which is slow where the system swaps"
            )
            .into(),
        })
    }
}

/// The program itself with stacks, headers and plan: measured at 6 to 20 MiB, rounded up.
const OVERHEAD: u64 = 32 << 20;
/// Blocks that a worker measures at a time.
pub(super) const MEASURED_BLOCKS: usize = 16;
/// Bytes for statistics beyond what the most demanding job needs, as far as the budget allows.
const STATISTICS: u64 = 8 << 20;
/// Bytes for carried masks beyond what the most demanding job asks for, as far as the budget allows.
const CARRIED: u64 = 16 << 20;

/// Bytes of a tile of output: one large page, and a good size for a write to disk.
const TILE: u64 = 2 << 20;
/// Tiles besides those that the workers fill: while one batch of tensors is written, the next is measured.
const MORE_TILES: u64 = 32;

impl Settings {
    /// Divides the memory up for jobs with at most this many sources and at most this cost each.
    ///
    /// # Errors
    /// The memory does not suffice for this many threads; the error says how much would.
    pub fn limits(&self, sources: usize, cost: Cost) -> Result<Limits, BudgetError> {
        let threads = self.threads as u64;
        let Need {
            worker,
            neediest,
            fixed,
            least,
            filled,
            needed,
        } = Need::of(threads, sources, cost);
        let memory = self.memory.suited_to(needed, cost.matrix);
        if needed > memory {
            let most = self.memory.most();
            let enough = |threads: &usize| Need::of(*threads as u64, sources, cost).needed <= most;
            return Err(BudgetError {
                budget: self.memory,
                needed,
                threads: self.threads,
                fewer_threads: (1..self.threads).rev().find(enough).unwrap_or(0),
                sources,
                block: BLOCK.max(cost.row),
                columns: column_sums(cost),
                matrix: cost.matrix,
            });
        }
        let spare = memory - fixed;
        let most = filled + MORE_TILES;
        let tile = (spare / 2 / most).min(TILE) / PAGE as u64 * PAGE as u64;
        let tile = tile.max(least);
        let tiles = (spare / 2 / tile).clamp(filled, most);
        let statistics = neediest + STATISTICS.min(spare - tiles * tile);
        let peak = OVERHEAD + threads * worker + statistics + tiles * tile + cost.matrix;
        let carried = match cost.carried {
            0 => 0,
            wished => (wished + CARRIED).min(memory.saturating_sub(peak)),
        };
        Ok(Limits {
            tile: tile as usize,
            tiles: tiles as usize,
            statistics,
            carried,
            peak: peak + carried,
        })
    }
}

/// What jobs need of memory, in bytes.
struct Need {
    /// Of each worker.
    worker: u64,
    /// For statistics.
    neediest: u64,
    /// All but tiles.
    fixed: u64,
    /// The least that a tile may have.
    least: u64,
    /// Tiles that the workers may hold together.
    filled: u64,
    /// In all, at least.
    needed: u64,
}

impl Need {
    fn of(threads: u64, sources: usize, cost: Cost) -> Self {
        let longest = BLOCK.max(cost.row) as u64;
        let outputs = 1 + cost.more_outputs as u64;
        // Blocks of sources and outputs in both precisions, and what the passes hold. The sums of measured blocks
        // are kept until it is their turn to be folded.
        let band = cost.band as u64;
        let worker = longest * ((sources as u64 + outputs) * (4 + 8) + cost.scratch as u64)
            + (MEASURED_BLOCKS * 2 * 8 * cost.sums) as u64
            + band.saturating_mul(8);
        // A block of the widest format or the codes of a band, wherever in a page they begin.
        let least = (band.max(longest * 8) + PAGE as u64).next_multiple_of(PAGE as u64);
        let neediest = statistics(cost, threads as usize);
        let fixed = (OVERHEAD + threads * worker + neediest).saturating_add(cost.matrix);
        // A worker may hold one tile of every output and must never wait for a tile; otherwise all could wait for
        // each other.
        let filled = threads * outputs;
        let needed = fixed.saturating_add(filled * least);
        Self {
            worker,
            neediest,
            fixed,
            least,
            filled,
            needed,
        }
    }
}

/// The most bytes that a job's statistics take: the counts of every worker, their total before and after, the
/// folded sums, and the sums over columns.
pub(super) fn statistics(cost: Cost, threads: usize) -> u64 {
    (cost.counts as u64) * 8 * (threads as u64 + 2) + (cost.sums as u64) * 8 + column_sums(cost)
}

/// Bytes for sums over columns: as the workers leave them, joined, and what the program derives from them, which is
/// no larger.
fn column_sums(cost: Cost) -> u64 {
    (cost.column_sums as u64).saturating_mul(3 * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(memory: u64, threads: usize) -> Settings {
        Settings {
            threads,
            memory: Budget::Limit(memory),
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
                        more_outputs: sources % 3,
                        matrix: (sources as u64 - 1) << 22,
                        carried: (sources as u64 - 1) << 26,
                        band: 3_000_000 * (threads - 1),
                    };
                    if let Ok(limits) = settings(memory, threads).limits(sources, cost) {
                        assert!(
                            limits.peak <= memory,
                            "{memory} {threads} {sources}: {limits:?}"
                        );
                        assert!(limits.tiles >= threads * (1 + cost.more_outputs));
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
    fn a_whole_matrix_is_a_term_of_its_own() {
        let matrix = Cost {
            matrix: 3 << 30,
            ..Cost::default()
        };
        let error = settings(1 << 30, 2).limits(3, matrix).unwrap_err();
        let without = settings(1 << 20, 2).limits(3, Cost::default()).unwrap_err();
        assert_eq!(error.matrix, 3 << 30);
        assert_eq!(error.needed - without.needed, 3 << 30);
        let limits = settings(error.needed, 2).limits(3, matrix).unwrap();
        assert!(limits.peak > 3 << 30 && limits.peak <= error.needed);
        let endless = Cost {
            matrix: u64::MAX,
            ..Cost::default()
        };
        assert!(settings(u64::MAX - 1, 2).limits(3, endless).is_err());
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

    #[test]
    fn without_a_limit_the_budget_grows_to_what_a_matrix_needs_and_no_further_than_what_is_free() {
        let growing = |free| Settings {
            memory: Budget::growing(free),
            ..settings(0, 2)
        };
        let matrix = Cost {
            matrix: 3 << 30,
            ..Cost::default()
        };
        let usual = settings(256 << 20, 2).limits(3, Cost::default()).unwrap();
        // What is free changes nothing for tensors that are computed by blocks.
        for free in [256 << 20, u64::MAX] {
            assert_eq!(growing(free).limits(3, Cost::default()), Ok(usual));
        }
        let grown = growing(u64::MAX).limits(3, matrix).unwrap();
        assert_eq!(grown.peak, usual.peak + (3 << 30));
        let error = growing(1 << 30).limits(3, matrix).unwrap_err();
        assert!(error.to_string().contains("this machine has 1.0 GiB free"));
        let enough = growing(error.needed).limits(3, matrix).unwrap();
        assert_eq!(enough.peak, error.needed);
        // Long rows grow too: they are no matrices.
        let rows = Cost {
            row: 10_000_000,
            ..Cost::default()
        };
        assert!(growing(u64::MAX).limits(3, rows).is_ok());
    }

    #[test]
    fn the_remedy_works() {
        let rows = Cost {
            row: 1_000_003,
            ..Cost::default()
        };
        let error = settings(256 << 20, 7).limits(3, rows).unwrap_err();
        let hint = error.hint().unwrap().into_owned();
        let after = |option: &str| -> u64 {
            let rest = hint.split(option).nth(1).unwrap().trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            digits.parse().unwrap()
        };
        assert!(settings(after("--memory") << 20, 7).limits(3, rows).is_ok());
        let fewer = after("--threads") as usize;
        assert!(settings(256 << 20, fewer).limits(3, rows).is_ok());
        assert!(settings(256 << 20, fewer + 1).limits(3, rows).is_err());
        // Fewer threads are not named where they do not help.
        let matrix = Cost {
            matrix: 3 << 30,
            ..Cost::default()
        };
        let error = settings(256 << 20, 7).limits(3, matrix).unwrap_err();
        assert!(!error.hint().unwrap().contains("--threads"));
    }
}
