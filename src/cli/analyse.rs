//! `weld analyse`: fine-tunes of one base side by side, before they are merged.

use std::path::PathBuf;

use clap::Args;

use super::arguments::Threads;
use super::caller::Caller;
use super::network::{Needs, Network, open};
use super::output::Failure;
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals::Work;
use audit::analyse::{Request, analyse};
use audit::{Command, Report};
use checkpoint::{Checkpoint, ModelRef};

/// The most models: each pair is compared element by element.
const MAX_MODELS: usize = 64;

/// Compare fine-tunes of one base before merging: cosines of their task vectors, sign conflicts, size by role and layer
///
/// Reads every model once. Nothing is judged: the exit code is 0, or 2 if it could not run.
#[derive(Args)]
pub(super) struct Arguments {
    /// The fine-tunes: folders, files, or ids on the Hub; `+ADAPTER` adds a LoRA adapter
    #[arg(required = true, value_parser = ModelRef::parse)]
    models: Vec<ModelRef>,

    /// The model that all were fine-tuned from
    #[arg(long, value_name = "MODEL", value_parser = ModelRef::parse)]
    base: ModelRef,

    /// Also measure, for each pair and weight of a linear layer, how far the subspaces of the leading RANK singular vectors
    /// overlap: ||U_a' U_b||^2 / RANK, 1 the same, 0 at right angles. Decomposes every weight of every model, which takes
    /// far longer than the rest [default: 16]
    #[arg(long, value_name = "RANK", num_args = 0..=1, require_equals = true, default_missing_value = "16", value_parser = clap::value_parser!(u32).range(1..=4096))]
    subspaces: Option<u32>,

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
    let subject: Vec<String> = arguments.models.iter().map(ToString::to_string).collect();
    let models = arguments.models.iter().chain([&arguments.base]);
    let read: Vec<PathBuf> = models.map(|model| PathBuf::from(&model.path)).collect();
    arguments
        .report
        .finish(Command::Analyse, &subject.join(", "), &read, || {
            let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
            report(arguments, &caller)
        })
}

/// Compares for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    arguments.report.made(|| report(arguments, caller))
}

fn report(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    if arguments.models.len() > MAX_MODELS {
        let found = arguments.models.len();
        return Err(Failure::tool(format!(
            "expected at most {MAX_MODELS} models, found {found}"
        )));
    }
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let base = open(&locator, &arguments.base)?;
    let models = arguments.models.iter().map(|model| open(&locator, model));
    let models: Vec<Checkpoint> = models.collect::<Result<_, Failure>>()?;
    let read: Vec<&Checkpoint> = models.iter().chain([&base]).collect();
    let progress = Progress::reading(&read, "analysing", caller);
    let request = Request {
        models: &models,
        base: &base,
        threads: arguments.threads.count(),
        subspaces: arguments.subspaces.map(|rank| rank as usize),
    };
    let report = analyse(&request, &progress);
    progress.finish();
    Ok(report?)
}
