//! What `verify` and `attest` share: the checkpoint, its recipe and its inputs, and that it is computed again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::arguments::{Threads, plan_any, size};
use super::environment;
use super::output::{Failure, say};
use super::progress::Progress;
use super::report::ReportArguments;
use audit::Report;
use audit::verify::{Coverage, Numerics, Request, verify};
use checkpoint::{Checkpoint, Location, Locator, ModelRef};
use engine::Settings;
use errors::Refusal;
use methods::mergekit::Profile;
use plan::{MoeOptions, Options, Plan};
use recipe::{self, AnyRecipe, RecipeError};
use run::Lock;

/// The file in which mergekit leaves the recipe of a merge.
const MERGEKIT_RECIPE: &str = "mergekit_config.yml";

/// What is computed again, and from what.
#[derive(Args)]
pub(super) struct Recomputation {
    /// The checkpoint: a folder, a file, or a Hub id in the local cache
    #[arg(value_parser = ModelRef::parse)]
    pub(super) model: ModelRef,

    /// The recipe that the checkpoint was made with [default: the one in its lock]
    #[arg(long, value_name = "FILE")]
    pub(super) recipe: Option<PathBuf>,

    /// Where the inputs are: NAME=PATH for one model, by its name in the recipe; or the folder where relative paths
    /// start
    #[arg(long, value_name = "NAME=PATH|FOLDER", num_args = 1..)]
    pub(super) inputs: Vec<String>,

    /// Seed of the random masks, if there is no lock to tell it
    #[arg(long)]
    seed: Option<u64>,

    #[command(flatten)]
    pub(super) threads: Threads,

    /// Limit for weld's own memory; memory-mapped model files do not count
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    memory: u64,

    /// Print only the report
    #[arg(long, short)]
    pub(super) quiet: bool,

    #[command(flatten)]
    pub(super) report: ReportArguments,
}

/// The arithmetic that a checkpoint is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Arithmetic {
    /// Weldment's; where the result is not equal, also mergekit's in the recipe's dtype
    Auto,
    /// Weldment's only
    Weldment,
    /// mergekit's, each operation in float32
    MergekitFloat32,
    /// mergekit's, each operation rounded to bfloat16
    MergekitBfloat16,
    /// mergekit's, each operation rounded to float16
    MergekitFloat16,
}

/// A checkpoint that was computed again.
pub(super) struct Recomputed {
    pub(super) report: Report,
    pub(super) model: Checkpoint,
    pub(super) lock: Option<Lock>,
    /// None if the recipe and the inputs come to nothing; the report says why.
    pub(super) plan: Option<Plan>,
}

impl Recomputation {
    /// Where the checkpoint is, and where its inputs are looked for.
    pub(super) fn locate(&self) -> Result<(Locator, Location), Failure> {
        let folder = self.recipe.as_deref().and_then(|path| path.parent());
        let locator = environment::locator(folder)?;
        let location = locator.locate(&self.model);
        Ok((locator, location.map_err(Failure::could_not_run)?))
    }

    /// Computes it again. `allow_step` says whether single roundings are accepted, `numerics` in which arithmetic, if
    /// anything does.
    pub(super) fn run(
        &self,
        locator: Locator,
        location: &Location,
        coverage: Coverage,
        allow_step: Option<bool>,
        numerics: Option<Arithmetic>,
        stop: Arc<AtomicBool>,
    ) -> Result<Recomputed, Failure> {
        let model = Checkpoint::open(&self.model.to_string(), location)?;
        let lock = match model.is_single_file() {
            true => None,
            false => Lock::read(&location.path)?,
        };
        let threads = self.threads.count();
        let by_mergekit = location.path.join(MERGEKIT_RECIPE);
        let by_mergekit = by_mergekit.is_file().then_some(by_mergekit);
        let allow_step = allow_step.unwrap_or(lock.is_none() && by_mergekit.is_some());
        let recipe = self.the_recipe(lock.as_ref(), by_mergekit)?;
        let locator = with_inputs(locator, &self.inputs, &location.path)?;
        let options = self.options(lock.as_ref(), threads)?;
        let planned = plan_any(&recipe.recipe, &recipe.name, &locator, &options);
        let planned = planned.map_err(|error| no_plan(&error));
        let request = Request {
            model: &model,
            plan: planned.as_ref().map_err(Refusal::clone),
            lock: lock.as_ref(),
            recipe_of_lock: self.recipe.is_none(),
            coverage,
            allow_step,
            numerics: numerics_of(numerics, lock.as_ref(), &recipe.recipe),
            threads,
            scratch: &std::env::temp_dir(),
        };
        let progress = Progress::verifying(&model, planned.as_ref().ok(), self.quiet, stop);
        let report = verify(&request, &progress);
        progress.finish();
        Ok(Recomputed {
            report: report?,
            model,
            lock,
            plan: planned.ok(),
        })
    }

    fn the_recipe(
        &self,
        lock: Option<&Lock>,
        by_mergekit: Option<PathBuf>,
    ) -> Result<Named, Failure> {
        let file = self.recipe.clone();
        let from_file = |path: PathBuf| -> Result<Named, Failure> {
            let recipe = recipe::read_any(&path).map_err(|error| {
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
                let name = run::LOCK_FILE;
                let recipe = recipe::parse_any(name, &lock.recipe).map_err(|error| {
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
                Refusal::new(
                    "the checkpoint has no weldment.lock.json and no mergekit_config.yml, so nothing says what it is \
                     to be",
                )
                .with_hint("name the recipe with --recipe"),
            )),
        }
    }

    fn options(&self, lock: Option<&Lock>, threads: usize) -> Result<Options, Failure> {
        let locked = lock.map(|lock| &lock.options);
        let tokenizer_from = locked
            .and_then(|options| options.tokenizer_from.as_deref())
            .map(ModelRef::parse)
            .transpose()
            .map_err(|why| Failure::tool(format!("options.tokenizer_from of the lock: {why}")))?;
        Ok(Options {
            settings: Settings {
                threads,
                memory: self.memory,
                allow_non_finite: locked.is_some_and(|options| options.allow_nonfinite),
                saturate: locked.is_some_and(|options| options.saturate),
            },
            seed: self
                .seed
                .or(locked.map(|options| options.seed))
                .unwrap_or(0),
            shard_size: locked.map_or(ByteSize::gb(5).as_u64(), |options| options.shard_size),
            tokenizer_from,
            moe: MoeOptions {
                inexact: locked.is_some_and(|options| options.inexact),
                fused: locked.is_some_and(|options| options.fused),
            },
        })
    }
}

/// The arithmetic that was asked for; else weldment's where a lock says that weld made it, or only weld reads the recipe.
fn numerics_of(asked: Option<Arithmetic>, lock: Option<&Lock>, recipe: &AnyRecipe) -> Numerics {
    let auto = || match recipe {
        AnyRecipe::Merge(recipe) => Numerics::Auto(recipe.dtype),
        AnyRecipe::Moe(_) | AnyRecipe::Edit(_) => Numerics::Weldment,
    };
    match asked {
        None if lock.is_some() => Numerics::Weldment,
        None | Some(Arithmetic::Auto) => auto(),
        Some(Arithmetic::Weldment) => Numerics::Weldment,
        Some(Arithmetic::MergekitFloat32) => Numerics::Mergekit(Profile::Float32),
        Some(Arithmetic::MergekitBfloat16) => Numerics::Mergekit(Profile::Bfloat16),
        Some(Arithmetic::MergekitFloat16) => Numerics::Mergekit(Profile::Float16),
    }
}

/// Why a recipe comes to nothing.
fn no_plan(error: &RecipeError) -> Refusal {
    let first = error.problems.first();
    let first = first.map_or(String::new(), |problem| problem.message.clone());
    let more = match error.problems.len() {
        0 | 1 => String::new(),
        more => format!("; and {} more problems", more - 1),
    };
    Refusal::new(format!("{first}{more}")).with_hint(
        "name the inputs with --inputs NAME=PATH, or the folder that their paths start from with --inputs FOLDER",
    )
}

/// A recipe, and what messages call it.
struct Named {
    recipe: AnyRecipe,
    name: String,
}

fn with_inputs(locator: Locator, inputs: &[String], model: &Path) -> Result<Locator, Failure> {
    let mut locator = locator;
    let mut folder = None;
    for input in inputs {
        match input.split_once('=') {
            Some((name, path)) => locator.elsewhere.push((name.to_owned(), path.into())),
            None if folder.is_none() => folder = Some(locator.working_dir.join(input)),
            None => {
                return Err(Failure::tool(
                    Refusal::new("--inputs names more than one folder")
                        .with_hint("give others as NAME=PATH"),
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
