//! Scores a model on files of tasks: exact answers, choices by log-likelihood, perplexity of texts.
//!
//! A task is a file of JSON lines, all of one [kind](Kind). [`Tasks::read`] reads and checks them, [`Prepared`] cuts them
//! into tokens, and [`Prepared::score`] runs a model over them. [`Scores`] hold every item's result, so that two models can
//! be compared item by item; they are saved and read back as JSON. An [`Evaluator`] has a command score a model instead.
//!
//! This layer knows checkpoints and [`forward`]; it must not know recipes, how a score is printed, or what it is for.

mod compare;
mod draw;
mod error;
mod external;
mod prepare;
mod read;
mod score;
mod scores;
mod split;
mod statistics;
mod surroundings;
mod task;
mod write;

#[cfg(test)]
mod tests;

pub use compare::{Comparison, TaskComparison};
pub use error::EvalError;
pub use external::{
    CommandLine, Evaluator, Measured, MetricPlace, Run, digest_of_command, plain_folder,
};
pub use prepare::{Options, Prepared};
pub use score::{Listener, score};
pub use scores::{ItemScore, Metric, MetricName, Scores, TaskScores};
pub use split::Split;
pub use statistics::{Interval, TWO_SIDED_95};
pub use surroundings::Surroundings;
pub use task::{Content, Input, Item, Kind, Task, Tasks};
