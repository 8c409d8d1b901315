//! `weld diff`: compares two checkpoints.

use std::path::PathBuf;

use clap::Args;

use super::arguments::Threads;
use super::caller::Caller;
use super::network::{Needs, Network, open};
use super::output::Failure;
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals::Work;
use audit::diff::{Request, diff};
use audit::{Command, Report};
use checkpoint::ModelRef;

/// Compare two checkpoints: tensors, configs, tokenizers
///
/// Compares every value, also between different dtypes and shards. With --base, also compares the two as fine-tunes of
/// that model. Exit codes: 0 equal, or within the limits of --policy; 1 different; 2 could not run.
#[derive(Args)]
pub(super) struct Arguments {
    /// The first model: a folder, a file, or an id on the Hub; `+ADAPTER` adds a LoRA adapter
    #[arg(value_parser = ModelRef::parse)]
    a: ModelRef,

    /// The second model
    #[arg(value_parser = ModelRef::parse)]
    b: ModelRef,

    /// The model that both were fine-tuned from: adds the angle and the sign conflicts between their task vectors
    #[arg(long, value_name = "MODEL", value_parser = ModelRef::parse)]
    base: Option<ModelRef>,

    /// Show every tensor, role and layer, not only those that differ most
    #[arg(long)]
    all: bool,

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
    let subject = format!("{} and {}", arguments.a, arguments.b);
    let models = [&arguments.a, &arguments.b]
        .into_iter()
        .chain(&arguments.base);
    let read: Vec<PathBuf> = models.map(|model| PathBuf::from(&model.path)).collect();
    arguments.report.finish(Command::Diff, &subject, &read, || {
        let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
        report(arguments, &caller)
    })
}

/// Compares for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    arguments.report.made(|| report(arguments, caller))
}

fn report(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let a = open(&locator, &arguments.a)?;
    let b = open(&locator, &arguments.b)?;
    let base = arguments
        .base
        .as_ref()
        .map(|base| open(&locator, base))
        .transpose()?;
    let request = Request {
        a: &a,
        b: &b,
        base: base.as_ref(),
        all: arguments.all,
        policy: arguments.report.policy()?.map(|policy| &policy.diff),
        threads: arguments.threads.count(),
    };
    let progress = Progress::reading(&[&a, &b], "comparing", caller);
    let report = diff(&request, &progress);
    progress.finish();
    Ok(report?)
}
