//! Searches for the values of a recipe whose merge scores best on files of tasks.
//!
//! A [`Study`] says which values of which recipes are searched, by which strategy, and what merges are scored on.
//! [`run()`] merges each trial in memory, from models that stay open, and scores it; a [`Folder`] keeps every trial, so that a study
//! that was killed goes on where it was, and several processes may share the work. Trials are compared on the validation
//! split alone; the chosen ones are scored on the test split at the end.
//!
//! A strategy is a function of the seed and of the trials before: nothing else is kept, so nothing can be lost.

mod bench;
mod changes;
mod checks;
mod chosen;
mod command;
mod draw;
mod error;
mod external;
mod file;
mod folder;
mod inputs;
mod journal;
mod report;
mod search;
mod space;
mod statistics;
mod strategy;
mod trial;
mod values;

#[cfg(test)]
mod tests;

pub use bench::Means;
pub use chosen::Chosen;
pub use command::{Command, Commands};
pub use error::StudyError;
pub use file::{Halving, Search, Study, duration, parse, read};
pub use folder::{Folder, Record, SearchSettings, Settings, TaskSettings};
pub use inputs::{Input, MadeWith};
pub use report::{Interval, Report, Row, SearchSummary, Skill, csv, html, json, markdown, text};
pub use search::{Event, Listener, run};
pub use space::{Dimension, Domain, Parameter, Space};
pub use statistics::Estimate;
pub use strategy::{Proposal, Seen, Strategy};
pub use trial::{Objective, Reference, Status, TaskResult, Tested, Trial};
