//! `weld check`: whether a checkpoint is right.

use clap::Args;

use super::arguments::Threads;
use super::environment;
use super::output::{Failure, print};
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals;
use crate::audit::check::{CheckError, check};
use crate::audit::checks_as_markdown;
use crate::checkpoint::{Checkpoint, ModelRef, Survey};

/// Look for whatever is wrong with a checkpoint: files, index, config, structure, values, tokenizer, safety
///
/// Exit codes: 0 right, 1 wrong, 2 could not run, 3 could not tell.
#[derive(Args)]
pub(super) struct Arguments {
    /// A folder, a weight file, or a Hub id in the local cache (org/name@revision)
    #[arg(value_parser = ModelRef::parse, required_unless_present = "list")]
    model: Option<ModelRef>,

    /// Print every check that weld knows, as Markdown
    #[arg(long, conflicts_with_all = ["model", "threads"])]
    list: bool,

    #[command(flatten)]
    threads: Threads,

    /// Say nothing but the report
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    report: ReportArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Some(model) = &arguments.model else {
        return print(&checks_as_markdown());
    };
    let location = environment::locator(None)?
        .locate(model)
        .map_err(Failure::could_not_run)?;
    if location.adapter.is_some() {
        return Err(Failure::tool(
            "a model with an adapter is not one checkpoint; hint: check the model by itself",
        ));
    }
    let stop = signals::install()?;
    let label = model.to_string();
    let survey = Survey::of(&label, &location).map_err(Failure::could_not_run)?;
    let models: Vec<&Checkpoint> = survey.checkpoint.iter().collect();
    let progress = Progress::reading(&models, "checking", arguments.quiet, stop);
    let report = check(
        &label,
        &location,
        survey,
        arguments.threads.count(),
        &progress,
    );
    progress.finish();
    let report = report.map_err(|error| match error {
        CheckError::Unreadable(error) => Failure::could_not_run(error),
        CheckError::Run(error) => error.into(),
    });
    arguments.report.finish(report?)
}
