//! Trials that a command scores: each merge is written to scratch once, scored, and removed.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::bench::Stops;
use super::command::{Command, Commands};
use super::error::StudyError;
use super::search::Listener;
use super::trial::TaskResult;
use checkpoint::Checkpoint;
use errors::Refusal;
use eval::{Evaluator, Measured, Run, Split, plain_folder};
use plan::Plan;
use run::{Scratch, ScratchRoots};

/// Scores merges and models by a command.
pub(crate) struct External {
    evaluator: Evaluator,
    roots: ScratchRoots,
    pub(crate) slots: usize,
    gpus: Vec<String>,
    /// Merges use all threads, so there is one at a time.
    merging: Mutex<()>,
}

impl External {
    /// # Errors
    /// The user does not let the study run commands.
    pub(crate) fn new(
        command: &Command,
        folder: PathBuf,
        allowed: Option<&Commands>,
    ) -> Result<External, StudyError> {
        let Some(allowed) = allowed else {
            let why = format!("the study runs a command on this machine: {}", command.line);
            let hint = "read it, and if it may run, say so with --run-commands";
            return Err(Refusal::new(why).with_hint(hint).into());
        };
        let chosen = command.scratch.as_ref().map(|scratch| folder.join(scratch));
        Ok(External {
            evaluator: Evaluator {
                line: command.line.clone(),
                metrics: command.metrics.clone(),
                time_limit: command.time_limit,
                retries: command.retries,
                folder,
                secrets: allowed.secrets.clone(),
            },
            roots: ScratchRoots {
                chosen: chosen.or_else(|| allowed.roots.chosen.clone()),
                ..allowed.roots.clone()
            },
            slots: command.slots,
            gpus: command.gpus.clone(),
            merging: Mutex::default(),
        })
    }

    /// Whether the command scores validation and test items apart.
    pub(crate) fn has_test(&self) -> bool {
        self.evaluator.line.names_split()
    }

    /// The part of the items by which trials are compared.
    pub(crate) fn validation(&self) -> Split {
        match self.has_test() {
            true => Split::Validation,
            false => Split::All,
        }
    }

    /// Scores what a plan gives, in a slot.
    pub(crate) fn score_merge(
        &self,
        plan: &Plan,
        split: Split,
        slot: usize,
        listener: &dyn Listener,
    ) -> Result<Vec<TaskResult>, StudyError> {
        let bytes = plan.bytes_written().saturating_add(plan.scratch_bytes());
        let scratch = Scratch::new(self.roots.root(bytes.saturating_mul(self.slots as u64)))?;
        let model = {
            let _alone = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
            scratch.write(plan, &Stops(listener))?
        };
        let run = Run {
            model: &model,
            out: &scratch.path().join("out"),
            split,
            gpus: self.gpus.get(slot).map(String::as_str),
        };
        self.measure(&run, listener)
    }

    /// Scores a model where it lies.
    pub(crate) fn score_stored(
        &self,
        model: &Checkpoint,
        split: Split,
        listener: &dyn Listener,
    ) -> Result<Vec<TaskResult>, StudyError> {
        let Some(folder) = plain_folder(model) else {
            let why = "a command scores a folder with the model's files alone";
            return Err(Refusal::new(why).into());
        };
        let scratch = Scratch::new(self.roots.root(0))?;
        let run = Run {
            model: &folder,
            out: &scratch.path().join("out"),
            split,
            gpus: self.gpus.first().map(String::as_str),
        };
        self.measure(&run, listener)
    }

    fn measure(
        &self,
        run: &Run<'_>,
        listener: &dyn Listener,
    ) -> Result<Vec<TaskResult>, StudyError> {
        let measured = self.evaluator.measure(run, &|| listener.is_stopped())?;
        Ok(measured.into_iter().map(result).collect())
    }
}

/// A metric as the result of a task, of which larger is better.
fn result(measured: Measured) -> TaskResult {
    let sign = if measured.larger_is_better { 1.0 } else { -1.0 };
    TaskResult {
        task: measured.name,
        items: measured.items.unwrap_or(0),
        score: sign * measured.value,
        standard_error: measured.standard_error,
        verdicts: String::new(),
        values: Vec::new(),
    }
}
