//! `weld check`: finds defects in a checkpoint.

use architecture::Runtime;
use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::arguments::Threads;
use super::caller::Caller;
use super::network::{Needs, Network};
use super::output::{Failure, print};
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals::Work;
use audit::check::mutate::{MutateError, mutate};
use audit::check::{CheckError, Runtimes, check};
use audit::{Command, Report, checks_as_markdown};
use checkpoint::{Checkpoint, ModelRef, Survey};
use errors::Refusal;

/// Find defects in a checkpoint: files, index, config, structure, values, tokenizer, safety
///
/// Needs no other model to compare with. Exit codes: 0 no defect, 1 defects, 2 could not run, 3 inconclusive.
#[derive(Args)]
pub(super) struct Arguments {
    /// A folder, a weight file, or a model's id on the Hub (org/name@revision)
    #[arg(value_parser = ModelRef::parse, required_unless_present = "list")]
    model: Option<ModelRef>,

    /// Print a list of all checks, as Markdown
    #[arg(long, conflicts_with_all = ["model", "threads"])]
    list: bool,

    /// Test the checks: plant every known defect in a copy of the model, one at a time, and see that it is found. For
    /// models up to 64 MiB. Exit codes: 0 all found, 1 one not found, 3 one could not be planted
    #[arg(long, conflicts_with = "list")]
    mutate: bool,

    /// Find too what these read otherwise than the checkpoint means it, or do not load: llama.cpp, mlx, vllm,
    /// transformers
    #[arg(long = "for", value_name = "RUNTIME", value_delimiter = ',', value_parser = runtime_names(), conflicts_with_all = ["list", "mutate"])]
    runtimes: Vec<String>,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    threads: Threads,

    /// Print only the report
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    report: ReportArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Some(model) = &arguments.model else {
        return print(&checks_as_markdown());
    };
    let read = [PathBuf::from(&model.path)];
    arguments.report.finish(Command::Check, model, &read, || {
        let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
        report(arguments, model, &caller)
    })
}

/// Checks for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    let Some(model) = &arguments.model else {
        return Err(Failure::input("expected a model"));
    };
    arguments.report.made(|| report(arguments, model, caller))
}

fn report(arguments: &Arguments, model: &ModelRef, caller: &Caller) -> Result<Report, Failure> {
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let location = locator
        .locate(model)
        .map_err(|error| caller.failure(Failure::could_not_run(error)))?;
    if !location.adapters.is_empty() {
        return Err(Failure::tool(
            Refusal::new("a model with an adapter is not one checkpoint")
                .with_hint("check the model by itself"),
        ));
    }
    let label = model.to_string();
    let survey = Survey::open(&label, &location).map_err(Failure::could_not_run)?;
    let models: Vec<&Checkpoint> = survey.checkpoint.iter().collect();
    let threads = arguments.threads.count();
    if arguments.mutate {
        let scratch = tempfile::tempdir()
            .map_err(|error| Failure::tool(format!("cannot make a temporary folder: {error}")))?;
        let progress = Progress::reading(&models, "planting defects", caller);
        let report = mutate(&label, &survey, scratch.path(), threads, &progress);
        progress.finish();
        return report.map_err(|error| match error {
            MutateError::Check(error) => error.into(),
            error => Failure::tool(&error),
        });
    }
    let progress = Progress::reading(&models, "checking", caller);
    let asked =
        |runtime: &&'static Runtime| arguments.runtimes.iter().any(|name| name == runtime.name);
    let runtimes: Vec<&Runtime> = Runtime::all().filter(asked).collect();
    let served = Runtimes::new(&survey, &runtimes);
    let report = check(&label, &location, survey, threads, &progress);
    progress.finish();
    let mut report = report?;
    if !runtimes.is_empty() {
        served.add_to(&mut report);
    }
    Ok(report)
}

/// The names that `--for` takes.
fn runtime_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Runtime::names())
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Failure {
        match error {
            CheckError::Unreadable(error) => Failure::could_not_run(error),
            CheckError::Run(error) => error.into(),
        }
    }
}
