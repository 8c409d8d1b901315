//! The command that scores the trials of a study, as its file has it, and what a user allows it.

use std::path::PathBuf;
use std::time::Duration;

use eval::{CommandLine, MetricPlace};
use run::ScratchRoots;

/// What a study's file says of the command that scores its trials.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The command.
    pub line: CommandLine,
    /// The metrics by their places in its JSON; none: the JSON is lm-eval's.
    pub metrics: Vec<MetricPlace>,
    /// The most time that it takes.
    pub time_limit: Option<Duration>,
    /// How often it is run again if it fails.
    pub retries: u32,
    /// How many trials are scored at once.
    pub slots: usize,
    /// The GPUs of each slot, as CUDA counts them: one text for each slot, or none at all.
    pub gpus: Vec<String>,
    /// Where merges are written for a while.
    pub scratch: Option<PathBuf>,
}

impl Command {
    /// The digest of what the metrics depend on.
    pub(crate) fn digest(&self) -> String {
        eval::digest_of_command(&self.line, &self.metrics)
    }
}

/// That the user lets a study run commands, and what is known of this machine for it.
#[derive(Debug, Clone)]
pub struct Commands {
    /// Where merges may be written for a while, if the study does not say.
    pub roots: ScratchRoots,
    /// Texts that are not repeated where output of the command is, such as passwords in the environment.
    pub secrets: Vec<String>,
}
