//! What is asked for.

use std::path::PathBuf;

use checkpoint::Checkpoint;
use numeric::FloatType;

use super::patterns::Patterns;

/// How many ranks a matrix gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// So many; fewer where its change has fewer.
    Fixed(usize),
    /// As many as it takes to keep a share of its energy, the sum of the squares of its change.
    Energy {
        /// The share, above 0 and at most 1.
        share: f64,
        /// How many at the most.
        most: Option<usize>,
    },
}

/// What is to be extracted.
pub struct Request<'a> {
    /// The model that the adapter is for.
    pub base: &'a Checkpoint,
    /// The fine-tune.
    pub tuned: &'a Checkpoint,
    /// The base as the config names it.
    pub base_name: &'a str,
    /// The rank of each matrix.
    pub rank: Rank,
    /// The only modules that get factors; all linear layers if there are none.
    pub only: Patterns,
    /// Modules that stay out of the adapter.
    pub except: Patterns,
    /// Modules that are saved as they are.
    pub save: Patterns,
    /// The format of the factors.
    pub format: FloatType,
    /// The number of threads.
    pub threads: usize,
    /// Files and folders besides those of the two models that the adapter must not replace.
    pub also_reads: Vec<PathBuf>,
}
