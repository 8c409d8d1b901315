//! `weld extract-lora`: what a fine-tune changed, as a LoRA adapter.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::Value;

use super::arguments::{Format, Threads, folder_or_store};
use super::caller::Caller;
use super::memory::PeakMemory;
use super::merge::{record_places, say_how_to_verify};
use super::network::{Needs, Network};
use super::output::{Failure, print_json};
use super::progress::Progress;
use super::signals::Work;
use super::stores;
use checkpoint::{Checkpoint, Locator, ModelRef};
use errors::{printable, some_of};
use lora::{ExtractError, Extraction, ExtractionRecipe, Report};
use run::AdapterOrigin;

/// How many tensors that stay out of the adapter are named.
const LEFT_OUT_SHOWN: usize = 5;

/// Write what a fine-tune changed as a LoRA adapter
///
/// The adapter is a folder as PEFT writes it: BASE with it is FINETUNE, up to the error that is printed. Matrices are
/// read and decomposed one at a time. OUT appears when it is complete, or not at all. `weld verify OUT` extracts it again
/// and compares.
#[derive(Args)]
#[command(group = ArgGroup::new("size").required(true).args(["rank", "energy"]))]
pub(super) struct Arguments {
    /// The base: a folder, a file, or a Hub id
    #[arg(value_parser = ModelRef::parse)]
    base: ModelRef,

    /// The fine-tune of that base
    #[arg(value_parser = ModelRef::parse)]
    finetune: ModelRef,

    /// The folder to write, here or in an object store (s3://BUCKET/FOLDER)
    #[arg(value_parser = folder_or_store())]
    out: PathBuf,

    /// The rank of each matrix; lower where its change has a lower one
    #[arg(long, value_name = "R", value_parser = rank)]
    rank: Option<usize>,

    /// The share of each matrix's change to keep, in squares: as many ranks as that takes
    #[arg(long, value_name = "SHARE", value_parser = share)]
    energy: Option<f64>,

    /// With --energy: the highest rank
    #[arg(long, value_name = "R", value_parser = rank, conflicts_with = "rank")]
    max_rank: Option<usize>,

    /// Adapt only these modules: a name, the end of one (`q_proj`), or a pattern with `*`; may be repeated
    #[arg(long, value_name = "MODULE")]
    module: Vec<String>,

    /// Leave these modules out of the adapter; may be repeated
    #[arg(long, value_name = "MODULE")]
    exclude: Vec<String>,

    /// Save these modules whole, as PEFT's `modules_to_save`: embeddings, the head, norms; may be repeated
    #[arg(long, value_name = "MODULE")]
    save: Vec<String>,

    /// The dtype of the factors
    #[arg(long, value_enum, default_value_t = FactorType::Float32)]
    dtype: FactorType,

    /// Replace OUT if it is not empty
    #[arg(long)]
    force: bool,

    /// Add the digest of every input tensor to the lock; this reads the inputs once more
    #[arg(long)]
    hash_inputs: bool,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    network: Network,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,

    /// What to print at the end: a summary on stderr, or a JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The dtypes that factors may have.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FactorType {
    /// IEEE 754 single precision
    Float32,
    /// The top half of a float32
    Bfloat16,
    /// IEEE 754 half precision
    Float16,
}

impl FactorType {
    /// The name in recipes.
    fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}

impl From<ExtractError> for Failure {
    fn from(error: ExtractError) -> Self {
        match error {
            ExtractError::Refused(refusal) => Self::input(refusal),
            ExtractError::Run(error) => error.into(),
            // The enum may grow.
            error => Self::tool(&error),
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

/// Extracts; what was written is returned as JSON.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let locator = (arguments.network).locator(None, Needs::Weights, caller)?;
    let base = open(&locator, &arguments.base)?;
    let tuned = open(&locator, &arguments.finetune)?;
    let recipe = arguments.recipe();
    let threads = arguments.threads.count();
    let request = recipe.request(&base, &tuned, threads);
    let extraction = Extraction::plan(request.map_err(Failure::input)?).map_err(Failure::input)?;
    for note in extraction.notes() {
        caller.say(&format!("note: {}", printable(&note)));
    }
    let destination = stores::destination(&arguments.out, arguments.force, caller)?;
    let origin = AdapterOrigin {
        hash_inputs: arguments.hash_inputs,
        ..recipe.origin(&base, &tuned, threads)
    };
    let peak = PeakMemory::watch();
    let progress = Progress::reading(&[&base, &tuned], "extracting from", caller);
    let started = std::time::Instant::now();
    let done = extraction.run(origin, &*destination, &progress);
    progress.finish();
    let (made, peak) = (done?, peak.stop());
    let report = &made.report;
    let seconds = started.elapsed().as_secs_f64();
    record_places(made.recorded.lock, &[&base, &tuned], caller);
    for note in &made.recorded.notes {
        caller.say(&format!("note: {}", printable(note)));
    }
    if arguments.format == Format::Text {
        caller.say(&as_text(arguments, report, seconds, peak));
        say_how_to_verify(&arguments.out, caller);
    }
    let mut made = report.json();
    made["out"] = arguments.out.display().to_string().into();
    made["seconds"] = seconds.into();
    made["peak_memory"] = peak.into();
    Ok(made)
}

impl Arguments {
    /// What is asked for, as the lock keeps it.
    fn recipe(&self) -> ExtractionRecipe {
        ExtractionRecipe {
            base: self.base.to_string(),
            finetune: self.finetune.to_string(),
            rank: self.rank,
            energy: self.energy,
            max_rank: self.max_rank,
            modules: self.module.clone(),
            exclude: self.exclude.clone(),
            save: self.save.clone(),
            dtype: self.dtype.name().to_owned(),
        }
    }
}

fn open(locator: &Locator, model: &ModelRef) -> Result<Checkpoint, Failure> {
    let location = locator.locate(model)?;
    Ok(Checkpoint::open(&model.to_string(), &location)?)
}

fn as_text(arguments: &Arguments, report: &Report, seconds: f64, peak: Option<u64>) -> String {
    let mut text = format!(
        "{}: {} modules of rank {}, {} in {seconds:.2} s",
        printable(&arguments.out.display().to_string()),
        report.fits.len(),
        report.rank,
        ByteSize(report.bytes).display().si(),
    );
    if let Some(peak) = peak {
        text += &format!(", {} of own memory", ByteSize(peak));
    }
    text += &format!(
        "\nrelative error {:.3e}, of the whole change {:.3e}",
        report.error(),
        report.whole_error()
    );
    let roles = report.roles();
    let width = roles.iter().map(|role| role.name.chars().count()).max();
    let width = width.unwrap_or(0);
    for role in &roles {
        let ranks = match role.ranks {
            (least, largest) if least == largest => format!("{least}"),
            (least, largest) => format!("{least} to {largest}"),
        };
        let name = printable(&role.name);
        text += &format!("\n  {name:width$}  rank {ranks}  error {:.3e}", role.error);
    }
    let layers = report.layers();
    let worst = layers.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    if let Some(worst) = worst.filter(|_| layers.len() > 1) {
        text += &format!(
            "\nlargest error of a layer: {:.3e}, {}",
            worst.error,
            printable(&worst.name)
        );
    }
    if !report.left_out.is_empty() {
        let left = report.left_out.iter().map(|tensor| {
            let change = tensor.relative();
            let change = change.map_or(String::new(), |change| {
                format!(", changed by {:.2} %", 100.0 * change)
            });
            format!(
                "{} ({}{change})",
                printable(&tensor.tensor),
                printable(&tensor.why)
            )
        });
        text += &format!(
            "\nnot in the adapter, though it differs: {}",
            some_of(left.collect::<Vec<String>>(), LEFT_OUT_SHOWN)
        );
    }
    text
}

/// Parses a rank. PEFT has no higher one than a matrix has sides.
fn rank(text: &str) -> Result<usize, String> {
    let rank = text
        .parse()
        .ok()
        .filter(|rank| (1..=1 << 20).contains(rank));
    rank.ok_or_else(|| "expected a whole number from 1 to 1048576".to_owned())
}

/// Parses a share.
fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and up to 1, such as 0.99".to_owned())
}
