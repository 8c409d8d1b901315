//! `weld verify`: recomputes a checkpoint and compares.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::arguments::{Threads, size};
use super::environment;
use super::keys;
use super::output::{Failure, say};
use super::progress::Progress;
use super::report::ReportArguments;
use super::signals;
use crate::audit::Report;
use crate::audit::provenance::{Signature, SignatureReport, missing_signature};
use crate::audit::verify::{Coverage, Request, not_recomputed, not_trusted, verify};
use crate::checkpoint::{Checkpoint, Location, Locator, ModelRef};
use crate::engine::Settings;
use crate::plan::{self, Options};
use crate::recipe::{self, Recipe, RecipeError};
use crate::run::Lock;

/// The file in which mergekit leaves the recipe of a merge.
const MERGEKIT_RECIPE: &str = "mergekit_config.yml";

/// Recompute a merged checkpoint from its recipe and inputs, and compare
///
/// Recipe and options come from the checkpoint's weldment.lock.json, unless --recipe names one; mergekit's
/// mergekit_config.yml is taken if there is no lock. By default a sample of every tensor is recomputed, and every
/// tensor's digest is held against the lock. With --signature or --key, the signature is checked first, and nothing
/// else unless --recompute, --full, --recipe or --inputs asks for it. Exit codes: 0 right, 1 wrong, 2 could not run,
/// 3 could not tell.
#[derive(Args)]
pub(super) struct Arguments {
    /// The checkpoint: a folder, a file, or a Hub id in the local cache
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// The recipe that it is to be the result of [default: that of its lock]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    /// Where the inputs are: NAME=PATH for a model as the recipe writes it, or a folder that relative paths start from
    #[arg(long, value_name = "NAME=PATH|FOLDER", num_args = 1..)]
    inputs: Vec<String>,

    /// The signature that is checked first [default with --key: model.sig in the folder, or FILE.sig beside a file]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,

    /// The public key, in PEM, of who must have signed [default: the policy's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Recompute too where the signature holds
    #[arg(long)]
    recompute: bool,

    /// Recompute every byte
    #[arg(long, conflicts_with = "samples")]
    full: bool,

    /// Blocks of 16,384 elements of each tensor that are recomputed
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// Choose the same blocks again [default: another choice each time]
    #[arg(long, value_name = "SEED")]
    sample_seed: Option<u64>,

    /// What is accepted [default: the policy's; else exact with a lock, step for what mergekit made]
    #[arg(long, value_enum)]
    allow: Option<Allow>,

    /// Seed of random masks, where no lock says it
    #[arg(long)]
    seed: Option<u64>,

    #[command(flatten)]
    threads: Threads,

    /// Own memory that may be held, mapped files not counted
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    memory: u64,

    /// Say nothing but the report
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    report: ReportArguments,
}

/// How far a value may be from the recomputed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Allow {
    /// Equal bytes
    Exact,
    /// The next value of the dtype: another order of arithmetic
    Step,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = signals::install()?;
    let locator = environment::locator(arguments.recipe.as_deref().and_then(|path| path.parent()))?;
    let location = locator
        .locate(&arguments.model)
        .map_err(Failure::could_not_run)?;
    let threads = arguments.threads.count();
    let signature = signature(arguments, &location.path, threads, &stop)?;
    let label = arguments.model.to_string();
    let mut report = match &signature {
        Some(signature) if !signature.holds() => not_trusted(&label),
        Some(_) if arguments.only_signature() => not_recomputed(&label, &location.path)?,
        _ => recompute(arguments, locator, &location, threads, stop)?,
    };
    if let Some(signature) = signature {
        signature.add_to(&mut report);
    }
    arguments.report.finish(report)
}

impl Arguments {
    /// Whether a signature is all that was asked for.
    fn only_signature(&self) -> bool {
        let recompute =
            self.recompute || self.full || self.recipe.is_some() || !self.inputs.is_empty();
        (self.signature.is_some() || self.key.is_some()) && !recompute
    }
}

/// Checks the signature, if one is asked for.
fn signature(
    arguments: &Arguments,
    root: &Path,
    threads: usize,
    stop: &Arc<AtomicBool>,
) -> Result<Option<SignatureReport>, Failure> {
    let Some(key) = &arguments.key else {
        return match &arguments.signature {
            None => Ok(None),
            Some(_) => Err(Failure::tool(
                "a signature proves nothing without the key of who must have made it; hint: name the public key with \
                 --key",
            )),
        };
    };
    let key = keys::public(key)?;
    let default = keys::signature_of(root);
    let file = arguments.signature.as_ref().unwrap_or(&default);
    if arguments.signature.is_none() && file.symlink_metadata().is_err() {
        return Ok(Some(missing_signature(file)));
    }
    let opened = Signature::open(root, file, &key).map_err(Failure::could_not_run)?;
    let what = "checking the signature";
    let progress = Progress::hashing(opened.bytes(), what, arguments.quiet, stop.clone());
    let checked = opened.check(threads, &progress);
    progress.finish();
    Ok(Some(checked?))
}

fn recompute(
    arguments: &Arguments,
    locator: Locator,
    location: &Location,
    threads: usize,
    stop: Arc<AtomicBool>,
) -> Result<Report, Failure> {
    let model = Checkpoint::open(&arguments.model.to_string(), location)?;
    let lock = match model.is_single_file() {
        true => None,
        false => Lock::read(&location.path)?,
    };
    let by_mergekit = location.path.join(MERGEKIT_RECIPE);
    let by_mergekit = by_mergekit.is_file().then_some(by_mergekit);
    let recipe = the_recipe(arguments, lock.as_ref(), by_mergekit.clone())?;
    let locator = with_inputs(locator, &arguments.inputs, &location.path)?;
    let options = options(arguments, lock.as_ref(), threads)?;
    let planned = plan::plan(&recipe.recipe, &recipe.name, &locator, &options);
    let planned = planned.map_err(|error| no_plan(&error));
    let coverage = match arguments.full {
        true => Coverage::Full,
        false => Coverage::Sample {
            blocks: arguments.samples as usize,
            seed: arguments.sample_seed.unwrap_or_else(environment::random),
        },
    };
    let of_policy = arguments
        .report
        .policy()
        .and_then(|policy| policy.allow_step);
    let allow_step = match (arguments.allow, of_policy) {
        (Some(allow), _) => allow == Allow::Step,
        (None, Some(allow_step)) => allow_step,
        (None, None) => lock.is_none() && by_mergekit.is_some(),
    };
    let request = Request {
        model: &model,
        plan: planned.as_ref().map_err(String::clone),
        lock: lock.as_ref(),
        recipe_of_lock: arguments.recipe.is_none(),
        coverage,
        allow_step,
        threads,
    };
    let progress = Progress::verifying(&model, planned.as_ref().ok(), arguments.quiet, stop);
    let report = verify(&request, &progress);
    progress.finish();
    Ok(report?)
}

/// Why a recipe comes to nothing, in one line.
fn no_plan(error: &RecipeError) -> String {
    let first = error.problems.first();
    let first = first.map_or(String::new(), |problem| problem.message.clone());
    let more = match error.problems.len() {
        0 | 1 => String::new(),
        more => format!("; and {} more problems", more - 1),
    };
    format!(
        "{first}{more}; hint: name the inputs with --inputs NAME=PATH, or the folder that their paths start from with \
         --inputs FOLDER"
    )
}

/// A recipe, and what messages call it.
struct Named {
    recipe: Recipe,
    name: String,
}

fn the_recipe(
    arguments: &Arguments,
    lock: Option<&Lock>,
    by_mergekit: Option<PathBuf>,
) -> Result<Named, Failure> {
    let file = arguments.recipe.clone();
    let from_file = |path: PathBuf| -> Result<Named, Failure> {
        let recipe = recipe::read(&path).map_err(|error| {
            say(&recipe::render(&error, false));
            Failure::tool(format!("cannot read the recipe {}", path.display()))
        })?;
        Ok(Named {
            recipe,
            name: path.display().to_string(),
        })
    };
    match (file, lock, by_mergekit) {
        (Some(path), ..) => from_file(path),
        (None, Some(lock), _) => {
            let name = crate::run::LOCK_FILE;
            let recipe = recipe::parse_with_registry(name, &lock.recipe).map_err(|error| {
                say(&recipe::render(&error, false));
                Failure::tool(format!("cannot read the recipe in {name}"))
            })?;
            Ok(Named {
                recipe,
                name: name.to_owned(),
            })
        }
        (None, None, Some(path)) => from_file(path),
        (None, None, None) => Err(Failure::tool(
            "the checkpoint has no weldment.lock.json and no mergekit_config.yml, so nothing says what it is to be; \
             hint: name the recipe with --recipe",
        )),
    }
}

fn with_inputs(
    locator: Locator,
    inputs: &[String],
    model: &std::path::Path,
) -> Result<Locator, Failure> {
    let mut locator = locator;
    let mut folder = None;
    for input in inputs {
        match input.split_once('=') {
            Some((name, path)) => locator.elsewhere.push((name.to_owned(), path.into())),
            None if folder.is_none() => folder = Some(locator.working_dir.join(input)),
            None => {
                return Err(Failure::tool(
                    "--inputs names more than one folder; hint: give others as NAME=PATH",
                ));
            }
        }
    }
    // Merges often lie beside their inputs.
    let beside = || locator.working_dir.join(model).parent().map(Into::into);
    locator.recipe_dir = folder
        .or_else(|| locator.recipe_dir.clone())
        .or_else(beside);
    Ok(locator)
}

fn options(arguments: &Arguments, lock: Option<&Lock>, threads: usize) -> Result<Options, Failure> {
    let locked = lock.map(|lock| &lock.options);
    let tokenizer_from = locked
        .and_then(|options| options.tokenizer_from.as_deref())
        .map(ModelRef::parse)
        .transpose()
        .map_err(|why| Failure::tool(format!("options.tokenizer_from of the lock: {why}")))?;
    Ok(Options {
        settings: Settings {
            threads,
            memory: arguments.memory,
            allow_non_finite: locked.is_some_and(|options| options.allow_nonfinite),
            saturate: locked.is_some_and(|options| options.saturate),
        },
        seed: arguments
            .seed
            .or(locked.map(|options| options.seed))
            .unwrap_or(0),
        shard_size: locked.map_or(ByteSize::gb(5).as_u64(), |options| options.shard_size),
        tokenizer_from,
    })
}
