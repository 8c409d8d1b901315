//! `weld diff`: compares two checkpoints.

use clap::Args;

use super::arguments::Threads;
use super::environment;
use super::output::Failure;
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals;
use audit::diff::{Request, diff};
use checkpoint::{Checkpoint, Locator, ModelRef};

/// Compare two checkpoints: tensors, configs, tokenizers
///
/// Every value is compared, whatever the dtypes and the files; with --base the two are also compared as fine-tunes of
/// it. Exit codes: 0 equal, 1 different, 2 could not run.
#[derive(Args)]
pub(super) struct Arguments {
    /// The first: a folder, a file, or a Hub id in the local cache; a LoRA adapter may follow a `+`
    #[arg(value_parser = ModelRef::parse)]
    a: ModelRef,

    /// The second
    #[arg(value_parser = ModelRef::parse)]
    b: ModelRef,

    /// What both were made from: shows task vectors, their angle and their conflicts
    #[arg(long, value_name = "MODEL", value_parser = ModelRef::parse)]
    base: Option<ModelRef>,

    /// Show every tensor, role and layer, and not only those that differ most
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    threads: Threads,

    /// Say nothing but the report
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    report: ReportArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = signals::install()?;
    let locator = environment::locator(None)?;
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
        policy: arguments.report.policy().map(|policy| &policy.diff),
        threads: arguments.threads.count(),
    };
    let progress = Progress::reading(&[&a, &b], "comparing", arguments.quiet, stop);
    let report = diff(&request, &progress);
    progress.finish();
    arguments.report.finish(report?)
}

/// A model that cannot be opened cannot be compared: exit code 2.
fn open(locator: &Locator, model: &ModelRef) -> Result<Checkpoint, Failure> {
    let opened = locator
        .locate(model)
        .and_then(|location| Checkpoint::open(&model.to_string(), &location));
    opened.map_err(Failure::could_not_run)
}
