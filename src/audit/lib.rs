//! How one knows that a checkpoint is right: `check`, `diff`, `verify`, and the reports that they make.
//!
//! A command looks at checkpoints and makes a [`Report`]: findings, each of a [`CheckInfo`] of the registry,
//! and what people and programs want to see beside them. [`formats`] writes a report down; a format knows no
//! command, and a command no format.
//!
//! Nothing here prints or writes to a checkpoint (`check --mutate` writes copies into a folder that it is given), and a
//! finding is never an error: an error means that the command could not run.

#[macro_use]
mod report;

pub mod check;
pub mod diff;
mod fields;
pub mod formats;
pub mod policy;
pub mod provenance;
mod registry;
mod statistics;
pub mod verify;

pub use registry::{all_checks, checks_as_markdown, find_check};
pub use report::{
    CheckInfo, Command, Finding, HeatMap, Histogram, Place, PolicyChange, Report, Severity,
    Skipped, Table, Verdict,
};
pub use statistics::{Statistics, TensorStatistics, exponent_of, statistics};
