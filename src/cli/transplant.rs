//! `weld transplant`: a model with the vocabulary of another.

use std::num::NonZero;

use clap::{Args, ValueEnum};

use super::arguments::{Format, Memory, Threads, shard_size};
use super::caller::Caller;
use super::merge::OutputArguments;
use super::network::{Needs, Network};
use super::output::Failure;
use super::progress::Progress;
use super::signals::Work;
use super::stores;
use checkpoint::{ModelRef, Resolver};
use engine::Settings;
use errors::{printable, some_of};
use plan::Options;
use serde_json::Value;
use transplant::{Method, Report, Request, TableReport, Transplant};

/// How many of the worst approximated tokens are named, and how many the JSON has.
const SHOWN: usize = 5;
const IN_JSON: usize = 100;

/// Give a model the vocabulary of another
///
/// OUT is MODEL with DONOR's tokenizer. Rows of tokens that both have are copied; the others are approximated, and the
/// summary says how well. All other weights are MODEL's, byte for byte. `weld verify OUT` makes it again and compares.
#[derive(Args)]
pub(super) struct Arguments {
    /// The model: a folder, or a Hub id
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// The model whose vocabulary it gets
    #[arg(value_parser = ModelRef::parse)]
    donor: ModelRef,

    #[command(flatten)]
    output: OutputArguments,

    /// How the rows of tokens come about that MODEL does not have
    #[arg(long, value_enum, default_value_t = MethodName::Omp)]
    method: MethodName,

    /// With omp: how many shared tokens a row is a sum of
    #[arg(long, short, value_name = "K", default_value = "64")]
    k: NonZero<u16>,

    /// Maximum size of a shard, in bytes of tensors (5GB, 500MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = shard_size)]
    shard_size: u64,

    #[command(flatten)]
    memory: Memory,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    network: Network,
}

/// The methods by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    /// As DONOR's row is a sum of rows of shared tokens (orthogonal matching pursuit)
    Omp,
    /// The mean of the rows of the pieces into which MODEL cuts the token
    Subword,
    /// The mean of all rows
    Mean,
    /// Zeros
    Zero,
}

impl From<transplant::Failure> for Failure {
    fn from(failure: transplant::Failure) -> Self {
        match failure {
            transplant::Failure::Refused(refusal) => Self::input(refusal),
            transplant::Failure::Plan(error) => error.into(),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let output = &arguments.output;
    let caller = Caller::terminal(Work::Writes, output.quiet)?;
    let made = write(arguments, &caller)?;
    output.print(&made)
}

/// What was written, as JSON.
fn write(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let output = &arguments.output;
    let scratch = stores::scratch_for(&output.out);
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let request = Request {
        model: &arguments.model,
        donor: &arguments.donor,
        method: match arguments.method {
            MethodName::Omp => Method::Pursuit(usize::from(arguments.k.get())),
            MethodName::Subword => Method::Subword,
            MethodName::Mean => Method::Mean,
            MethodName::Zero => Method::Zero,
        },
        resolver: &locator,
        options: Options {
            settings: Settings {
                threads: arguments.threads.count(),
                memory: arguments.memory.budget(),
                allow_non_finite: false,
                saturate: false,
            },
            seed: 0,
            shard_size: arguments.shard_size,
            tokenizer_from: None,
        },
        scratch: &scratch,
    };
    let donor = locator
        .resolve(&arguments.donor)
        .map_err(|error| caller.failure(error.into()))?;
    let progress = Progress::reading(&[&donor], "approximating rows by those of", caller);
    let made = Transplant::new(&request, &progress);
    progress.finish();
    let made = made.map_err(|failure| caller.failure(failure.into()));
    let Transplant { plan, report } = made?;
    if output.format == Format::Text {
        caller.say(&as_text(&report));
    }
    let mut json = output.write(&plan, None, caller)?;
    json["vocabulary"] = report.json(IN_JSON);
    Ok(json)
}

fn as_text(report: &Report) -> String {
    let mut text = format!("{} tokens, {} rows", report.tokens, report.rows);
    for table in &report.tables {
        text += &table_text(table);
    }
    text
}

fn table_text(table: &TableReport) -> String {
    let mut text = format!(
        "\n  {}: {} rows copied, {} approximated",
        printable(&table.tensor),
        table.copied,
        table.approximated
    );
    for (count, what) in [(table.means, "the mean of all"), (table.zeros, "zeros")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if let (Some(median), Some(most)) = (table.within(0.5), table.within(0.95)) {
        let worst = table
            .left_out
            .iter()
            .take(SHOWN)
            .map(|token| format!("{:?} ({:.2})", token.token, token.left_out));
        text += &format!(
            "\n    left out of a row's length: half of them at most {median:.2}, 95 % at most {most:.2}; the worst are {}",
            printable(&some_of(worst.collect::<Vec<String>>(), SHOWN))
        );
    }
    text
}
