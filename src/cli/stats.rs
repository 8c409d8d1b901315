//! `weld stats`: statistics of a model's activations, for methods that need data.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::arguments::{Format, Memory, Part, Threads, seed};
use super::caller::Caller;
use super::eval::Stops;
use super::memory::PeakMemory;
use super::network::{Needs, Network, open};
use super::output::{Failure, print_json};
use super::signals::Work;
use super::single_file::FileKind;
use ::eval::{Options, Tasks};
use ::stats::{Collection, Keep, Request, StatsError};
use checkpoint::{Checkpoint, Location, ModelRef, Statistics};
use errors::{Refusal, printable};
use run::destination::{Disk, folder_of};

/// Write statistics of a model's activations, for methods that need data
///
/// The model is run over the texts layer by layer. Of the input of each linear layer the file has the Gram matrix (for
/// regmean), the mean magnitudes (for aim), and the number of tokens. It appears when it is complete, or not at all.
#[derive(Args)]
pub(super) struct Arguments {
    /// The model: a folder, a file, or an id on the Hub; `+ADAPTER` adds a LoRA adapter
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// Texts, as files of tasks: {"text"} or {"prompt", "answer"} a line, which the model reads whole. Can be repeated
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    data: Vec<PathBuf>,

    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// What to keep of each input
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Gram, Kind::Magnitude])]
    keep: Vec<Kind>,

    /// The texts to take: one half, the other, or all; as `weld eval` splits tasks
    #[arg(long, value_enum, default_value_t = Part::All)]
    split: Part,

    /// Seed of the split, and of the texts that --limit takes
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,

    /// The most texts of each file, taken at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,

    /// Replace OUT if it is an earlier file of statistics
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    memory: Memory,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,

    /// What to print at the end: a summary on stderr, or a JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// A statistic by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The sum of x' x over tokens
    Gram,
    /// The mean of |x|
    Magnitude,
}

/// A file of statistics.
const STATISTICS: FileKind = FileKind {
    name: "file of statistics",
    example: "stats.safetensors",
    may_be_lost: is_statistics_or_empty,
};

fn is_statistics_or_empty(path: &Path) -> bool {
    if path.metadata().is_ok_and(|found| found.len() == 0) {
        return true;
    }
    let opened = Checkpoint::open(&path.display().to_string(), &Location::local(path));
    opened.is_ok_and(|file| Statistics::new(file.into()).is_ok())
}

/// Refuses a file in the model's own folder, where it would be taken for weights.
fn check_apart(out: &Path, model: &Checkpoint) -> Result<(), Failure> {
    let folder = folder_of(out).canonicalize().ok();
    let own = model.location().path.canonicalize().ok();
    let within = own.filter(|own| own.is_dir()).zip(folder);
    if within.is_none_or(|(own, folder)| !folder.starts_with(own)) {
        return Ok(());
    }
    let why = format!(
        "{} is in the folder of the model, where it would be taken for weights",
        out.display()
    );
    Err(Failure::input(
        Refusal::new(why).with_hint("name a file beside the folder with --out"),
    ))
}

impl From<StatsError> for Failure {
    fn from(error: StatsError) -> Failure {
        match error {
            StatsError::Stopped => Failure::Stopped("stopped".to_owned()),
            StatsError::Refused(refusal) => Failure::input(refusal),
            StatsError::Run(error) => error.into(),
            error => Failure::tool(&error),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.quiet)?;
    let made = call(arguments, &caller)?;
    match arguments.format {
        Format::Json => print_json(&made),
        Format::Text => Ok(()),
    }
}

/// Writes the file for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    write(arguments, caller).map_err(|failure| caller.failure(failure))
}

/// Writes the file; what was written is returned as JSON.
fn write(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let texts = Tasks::read(&arguments.data)?;
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let model = open(&locator, &arguments.model)?;
    STATISTICS.check_free(&arguments.out, arguments.force, &model)?;
    check_apart(&arguments.out, &model)?;
    let keep = |kind| arguments.keep.contains(&kind);
    let options = Options {
        split: arguments.split.split(),
        seed: arguments.seed,
        limit: arguments.limit.map(|limit| limit as usize),
        threads: arguments.threads.count(),
        ..Options::default()
    };
    let request = Request {
        model: &model,
        texts: &texts,
        options: &options,
        keep: Keep {
            gram: keep(Kind::Gram),
            magnitude: keep(Kind::Magnitude),
        },
        memory: arguments.memory.budget().most(),
    };
    let collection = Collection::plan(&request, &Stops(caller))?;
    caller.say(&format!(
        "running {} tokens, with {} of memory; the file will have {}",
        collection.tokens(),
        ByteSize(collection.memory()),
        ByteSize(collection.bytes()).display().si()
    ));
    let peak = PeakMemory::watch();
    let started = std::time::Instant::now();
    let written = collection.write(&Disk::default(), &arguments.out, &|| !caller.stopped())?;
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak.stop());
    let out = arguments.out.display().to_string();
    if arguments.format == Format::Text {
        let mut text = format!(
            "{}: {} inputs, {} tokens, {} in {seconds:.2} s",
            printable(&out),
            written.inputs,
            written.tokens,
            ByteSize(written.bytes).display().si()
        );
        if let Some(peak) = peak {
            text += &format!(", {} of own memory", ByteSize(peak));
        }
        if written.unreached > 0 {
            text += &format!(
                "\nno token reached {} of the inputs, those of experts that none was routed to",
                written.unreached
            );
        }
        caller.say(&text);
    }
    Ok(json!({
        "out": out,
        "tokens": written.tokens,
        "inputs": written.inputs,
        "unreached": written.unreached,
        "bytes": written.bytes,
        "memory": collection.memory(),
        "seconds": seconds,
        "peak_memory": peak,
    }))
}
