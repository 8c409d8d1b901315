//! Finds out whether a checkpoint is right: `check`, `diff`, `verify`, scores, and their reports.
//!
//! A command reads checkpoints and makes a [`Report`]. It consists of findings, each of a kind ([`CheckInfo`]) from the
//! registry, and of the numbers and tables that go with them. [`formats`] writes the report. Formats do not know
//! commands, and commands do not know formats.
//!
//! Nothing here prints, and nothing changes a checkpoint: `check --mutate` writes copies into a folder that it is
//! given. A finding is never an error; an error means that the command could not run.

#[macro_use]
mod report;

pub mod analyse;
pub mod check;
pub mod diff;
mod evaluation;
mod fields;
pub mod formats;
mod loaders;
mod measured;
pub mod policy;
pub mod provenance;
mod registry;
mod statistics;
pub mod verify;

pub use evaluation::evaluation;
pub use loaders::is_of_checkpoint;
pub use measured::{MeasuredBaseline, measurements};
pub use registry::{all_checks, checks_as_markdown, command_of, examples_of, find_check};
pub use report::{
    CheckInfo, Command, Finding, HeatMap, Histogram, Place, PolicyChange, Report, Severity,
    Skipped, Table, Verdict,
};
pub use statistics::{Statistics, TensorStatistics, exponent_of, statistics};
