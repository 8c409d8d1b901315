//! `weld eval --command`: a model is scored by a program that is not weld.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::caller::Caller;
use super::environment::{scratch_roots, secrets};
use super::output::Failure;
use super::progress::Progress;
use ::eval::{CommandLine, EvalError, Evaluator, Measured, MetricPlace, Run, Split, plain_folder};
use checkpoint::Checkpoint;
use errors::Refusal;
use plan::Plan;
use run::Scratch;

/// A command that scores, and where its metrics are.
#[derive(Args)]
pub(super) struct CommandArguments {
    /// Score by a command in place of --tasks. It is cut into words as by a shell and run without one. In its words, `{model}`
    /// is the model's folder, `{out}` the file or folder for its JSON (without it, the JSON is its output), `{split}` the
    /// --split. A recipe is merged to scratch for it
    #[arg(
        long,
        value_name = "COMMAND",
        value_parser = CommandLine::parse,
        conflicts_with_all = ["tasks", "limit", "chat_template", "generate", "items", "compare_by"],
    )]
    command: Option<CommandLine>,

    /// A metric and its place in the command's JSON, a JSON pointer: acc=/results/sums/acc,none. Without this, the JSON is
    /// lm-eval's. Can be repeated
    #[arg(long, value_name = "NAME=POINTER", requires = "command", value_parser = place)]
    metric: Vec<(String, String)>,

    /// The place of a metric's standard error. Can be repeated
    #[arg(long, value_name = "NAME=POINTER", requires = "metric", value_parser = place)]
    metric_error: Vec<(String, String)>,

    /// A metric of which a lower value is better. Can be repeated
    #[arg(long, value_name = "NAME", requires = "metric")]
    lower_is_better: Vec<String>,

    /// The most time that the command may take: 90s, 10min, 2h
    #[arg(long, value_name = "TIME", requires = "command", value_parser = time)]
    time_limit: Option<Duration>,

    /// How often the command is run again if it fails
    #[arg(long, value_name = "N", default_value_t = 0, requires = "command", value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,

    /// The folder in which a recipe is merged for the command [default: /dev/shm if it fits into memory, else that for
    /// temporary files]
    #[arg(long, value_name = "DIR", requires = "command")]
    scratch: Option<PathBuf>,
}

/// Parses `NAME=POINTER`.
fn place(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, pointer)) if !name.is_empty() && pointer.starts_with('/') => {
            Ok((name.to_owned(), pointer.to_owned()))
        }
        _ => Err("expected a name and a JSON pointer, such as acc=/results/sums/acc,none".into()),
    }
}

/// Parses a time.
fn time(text: &str) -> Result<Duration, String> {
    study::duration(text).ok_or_else(|| "expected a time such as 90s, 10min or 2h".into())
}

/// What a command is to score.
pub(super) enum Scored {
    /// A model that lies in files.
    Model(Box<Checkpoint>),
    /// What a recipe gives.
    Merge(Box<Plan>),
}

impl CommandArguments {
    /// The command, if there is one.
    ///
    /// # Errors
    /// An error or a direction is of no metric, or a part of the items is asked for that the command cannot know.
    pub(super) fn evaluator(&self, split: Split) -> Result<Option<Evaluator>, Failure> {
        let Some(line) = self.command.clone() else {
            return Ok(None);
        };
        let is_metric = |name: &String| self.metric.iter().any(|(metric, _)| metric == name);
        let others = self
            .metric_error
            .iter()
            .map(|(name, _)| name)
            .chain(&self.lower_is_better);
        if let Some(other) = others.into_iter().find(|name| !is_metric(name)) {
            let why = format!("there is no --metric {other}=POINTER");
            return Err(Failure::tool(
                Refusal::new(why).with_hint("name it as in --metric"),
            ));
        }
        if split != Split::All && !line.names_split() {
            let why = format!(
                "--split {}: the command does not hold `{{split}}`",
                split.name()
            );
            let hint = "write {split} where the command is told which items to score, or leave --split out";
            return Err(Failure::tool(Refusal::new(why).with_hint(hint)));
        }
        let metric = |(name, pointer): &(String, String)| MetricPlace {
            name: name.clone(),
            pointer: pointer.clone(),
            error: self
                .metric_error
                .iter()
                .find(|(of, _)| of == name)
                .map(|(_, error)| error.clone()),
            larger_is_better: !self.lower_is_better.contains(name),
        };
        Ok(Some(Evaluator {
            metrics: self.metric.iter().map(metric).collect(),
            line,
            time_limit: self.time_limit,
            retries: self.retries,
            folder: PathBuf::from("."),
            secrets: secrets(),
        }))
    }

    /// Runs the command on a model; a merge is written for it, and removed.
    pub(super) fn measure(
        &self,
        evaluator: &Evaluator,
        scored: &Scored,
        split: Split,
        caller: &Caller,
    ) -> Result<Vec<Measured>, Failure> {
        let roots = scratch_roots(self.scratch.clone());
        let bytes = match scored {
            Scored::Model(_) => 0,
            Scored::Merge(plan) => plan.bytes_written().saturating_add(plan.scratch_bytes()),
        };
        let no_merge = |failure: Failure| match caller.failure(failure) {
            Failure::Input(refusal) => Failure::Tool(refusal),
            failure => failure,
        };
        let scratch = Scratch::new(roots.root(bytes)).map_err(|error| no_merge(error.into()))?;
        let model = match scored {
            Scored::Model(model) => plain_folder(model).ok_or_else(|| no_folder(model.label()))?,
            Scored::Merge(plan) => {
                let progress = Progress::start(plan, caller);
                let written = scratch.write(plan, &progress);
                progress.finish();
                written.map_err(|error| no_merge(error.into()))?
            }
        };
        caller.say(&format!("running {}", evaluator.line.program()));
        let run = Run {
            model: &model,
            out: &scratch.path().join("out"),
            split,
            gpus: None,
        };
        let measured = evaluator.measure(&run, &|| caller.stopped());
        measured.map_err(|error: EvalError| caller.failure(error.into()))
    }
}

fn no_folder(model: &str) -> Failure {
    let why = format!("model `{model}`: a command scores a folder with the model's files alone");
    let hint =
        "name the folder; for a file or an adapter, write a recipe with it as its only model";
    Failure::tool(Refusal::new(why).with_hint(hint))
}
