//! `weld stats`: statistics of a model's activations, for methods that need data.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::arguments::{Format, Memory, Part, Threads, place, seed};
use super::caller::Caller;
use super::eval::Stops;
use super::memory::PeakMemory;
use super::network::{Needs, Network, open};
use super::output::{Failure, print_json};
use super::signals::Work;
use super::single_file::FileKind;
use super::stats_of_merge;
use ::eval::{Options, Tasks};
use ::stats::{Collection, Keep, Request, StatsError, Written};
use checkpoint::{Checkpoint, Location, ModelRef, Statistics};
use errors::{Refusal, printable};
use run::destination::{Disk, folder_of};

/// Write statistics of a model's activations, for methods that need data
///
/// The model is run over the texts layer by layer. Of the input of each linear layer the file has the Gram matrix (for
/// regmean), the mean magnitudes (for aim), and the number of tokens. It appears when it is complete, or not at all.
///
/// A recipe of regmean in place of the model makes the files of all its models together: each layer of a model is run on
/// what the merged layers before it give (RegMean++).
#[derive(Args)]
pub(super) struct Arguments {
    /// The model: a folder, a file, or an id on the Hub; `+ADAPTER` adds a LoRA adapter. Or a recipe of regmean, a `.yml`
    /// file
    #[arg(value_parser = Subject::parse)]
    model: Subject,

    /// Texts, as files of tasks: {"text"} or {"prompt", "answer"} a line, which the model reads whole. Can be repeated; for
    /// a recipe, one file for each of its models, in their order
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(super) data: Vec<PathBuf>,

    /// The file to write; for a recipe, these are the files that it names
    #[arg(long, value_name = "FILE", value_parser = place())]
    out: Option<PathBuf>,

    /// What to keep of each input [default: gram,magnitude; for a recipe gram]
    #[arg(long, value_enum, value_delimiter = ',')]
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
    pub(super) force: bool,

    #[command(flatten)]
    pub(super) network: Network,

    #[command(flatten)]
    pub(super) threads: Threads,

    #[command(flatten)]
    pub(super) memory: Memory,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,

    /// What to print at the end: a summary on stderr, or a JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
}

/// Of what statistics are made.
#[derive(Debug, Clone)]
enum Subject {
    Model(ModelRef),
    Recipe(PathBuf),
}

impl Subject {
    fn parse(text: &str) -> Result<Self, String> {
        let path = Path::new(text);
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("yml" | "yaml") if !path.is_dir() => Ok(Self::Recipe(path.to_owned())),
            _ => ModelRef::parse(text).map(Self::Model),
        }
    }
}

impl Arguments {
    /// Which texts are taken, and by how many threads the model is run.
    pub(super) fn options(&self) -> Options {
        Options {
            split: self.split.split(),
            seed: self.seed,
            limit: self.limit.map(|limit| limit as usize),
            threads: self.threads.count(),
            ..Options::default()
        }
    }
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
pub(super) const STATISTICS: FileKind = FileKind {
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
pub(super) fn check_apart(out: &Path, model: &Checkpoint) -> Result<(), Failure> {
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

/// Writes the file, or those of a recipe, for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let made = match &arguments.model {
        Subject::Model(model) => write(arguments, model, caller),
        Subject::Recipe(recipe) => match (&arguments.out, &arguments.keep[..]) {
            (None, [] | [Kind::Gram]) => stats_of_merge::write(arguments, recipe, caller),
            (None, _) => Err(Failure::tool(
                Refusal::new(
                    "--keep: of a recipe's models, Gram matrices are kept, and nothing else",
                )
                .with_hint("leave --keep out"),
            )),
            (Some(_), _) => Err(Failure::tool(
                Refusal::new("--out: a recipe names the files of its models' statistics itself")
                    .with_hint("leave --out out"),
            )),
        },
    };
    made.map_err(|failure| caller.failure(failure))
}

/// Writes the file; what was written is returned as JSON.
fn write(arguments: &Arguments, model: &ModelRef, caller: &Caller) -> Result<Value, Failure> {
    let Some(out) = &arguments.out else {
        return Err(Failure::tool(
            Refusal::new("--out is missing: the file to write")
                .with_hint("such as --out stats.safetensors"),
        ));
    };
    let texts = Tasks::read(&arguments.data)?;
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    let model = open(&locator, model)?;
    STATISTICS.check_free(out, arguments.force, &model)?;
    check_apart(out, &model)?;
    let keep = |kind| arguments.keep.is_empty() || arguments.keep.contains(&kind);
    let options = arguments.options();
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
    let written = collection.write(&Disk::default(), out, &|| !caller.stopped())?;
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak.stop());
    let out = out.display().to_string();
    if arguments.format == Format::Text {
        let mut text = format!("{} in {seconds:.2} s", said(&out, written));
        if let Some(peak) = peak {
            text += &format!(", {} of own memory", ByteSize(peak));
        }
        caller.say(&(text + &said_of_unreached(written)));
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

/// What was written to a file.
pub(super) fn said(out: &str, written: Written) -> String {
    format!(
        "{}: {} inputs, {} tokens, {}",
        printable(out),
        written.inputs,
        written.tokens,
        ByteSize(written.bytes).display().si()
    )
}

/// What is to be said of inputs that no token reached, in a line of its own.
pub(super) fn said_of_unreached(written: Written) -> String {
    match written.unreached {
        0 => String::new(),
        count => format!(
            "\nno token reached {count} of the inputs, those of experts that none was routed to"
        ),
    }
}
