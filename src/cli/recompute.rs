//! Shared by `verify` and `attest`: locates the checkpoint, its recipe and its inputs, and computes it again.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::arguments::{Memory, SetArguments, Threads, plan_any, recipe_name, seed};
use super::caller::Caller;
use super::network::{Needs, Network};
use super::output::Failure;
use super::progress::Progress;
use super::recompute_adapter::{self, adapter_weights};
use super::record;
use super::report::ReportArguments;
use audit::provenance::path_in_folder;
use audit::verify::{
    self, Asked, Coverage, FolderListing, GivenRecipe, InputsError, Origin, Premises,
    PremisesError, Profile, Verification, no_plan, verify,
};
use checkpoint::{Checkpoint, Location, Locator, ModelRef};
use errors::Refusal;
use plan::{Options, Plan};
use run::{LOCK_FILE, Lock, LockedInput, Part, RunError};
use transplant::{Request, Transplant, TransplantRecipe};

/// What is computed again, and from what.
#[derive(Args)]
pub(super) struct Recomputation {
    /// The checkpoint: a folder, a file, or an id on the Hub
    #[arg(value_parser = ModelRef::parse)]
    pub(super) model: ModelRef,

    /// The recipe that the checkpoint was made with; `-` reads it from standard input [default: the one in its lock]
    #[arg(long, value_name = "FILE")]
    pub(super) recipe: Option<PathBuf>,

    #[command(flatten)]
    set: SetArguments,

    /// Where the inputs are: NAME=PATH for one model, by its name in the recipe; or the folder where relative paths
    /// start. Can be repeated
    #[arg(long, value_name = "NAME=PATH|FOLDER")]
    pub(super) inputs: Vec<String>,

    /// A file or folder of the checkpoint that is no part of the model and need not be of the merge, or signed; its path
    /// starts in the checkpoint's folder. Can be repeated
    #[arg(long, value_name = "PATH", alias = "ignore-paths")]
    ignore: Vec<String>,

    /// Seed of the random masks, if there is no lock to tell it
    #[arg(long, value_parser = seed, allow_negative_numbers = true)]
    seed: Option<u64>,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    pub(super) threads: Threads,

    #[command(flatten)]
    memory: Memory,

    /// Print only the report
    #[arg(long, short)]
    pub(super) quiet: bool,

    #[command(flatten)]
    pub(super) report: ReportArguments,
}

impl Recomputation {
    /// The files that it reads, as far as they are named.
    pub(super) fn read(&self) -> Vec<PathBuf> {
        let model = PathBuf::from(&self.model.path);
        [model].into_iter().chain(self.recipe.clone()).collect()
    }
}

/// The arithmetic that a checkpoint is compared with.
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

impl From<Arithmetic> for verify::Arithmetic {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::Auto => Self::Auto,
            Arithmetic::Weldment => Self::Weldment,
            Arithmetic::MergekitFloat32 => Self::Mergekit(Profile::Float32),
            Arithmetic::MergekitBfloat16 => Self::Mergekit(Profile::Bfloat16),
            Arithmetic::MergekitFloat16 => Self::Mergekit(Profile::Float16),
        }
    }
}

/// How much of a checkpoint is computed again, and how it is compared.
pub(super) struct Thoroughness {
    pub(super) coverage: Coverage,
    /// Whether differences of a single ULP are accepted, if it is said.
    pub(super) allow_step: Option<bool>,
    /// The arithmetic to compare with, if it is said.
    pub(super) arithmetic: Option<Arithmetic>,
    /// The part of the plan; `None` for all of it.
    pub(super) part: Option<Part>,
}

/// The result of computing a checkpoint again.
pub(super) struct Recomputed {
    pub(super) verification: Verification,
    pub(super) folder: FolderListing,
    pub(super) model: Checkpoint,
    pub(super) lock: Option<Lock>,
    /// The inputs that were read, as a lock has them.
    pub(super) inputs: Option<Vec<LockedInput>>,
    /// None for adapters, and if the recipe and the inputs cannot be planned; the report says why.
    pub(super) plan: Option<Plan>,
}

impl Recomputation {
    /// Locates the checkpoint, and the places for its inputs.
    pub(super) fn locate(&self, caller: &Caller) -> Result<(Locator, Location), Failure> {
        let folder = self.recipe.as_deref().and_then(|path| path.parent());
        let locator = self.network.locator(folder, Needs::Weights, caller)?;
        let location = locator.locate(&self.model);
        let location = location.map_err(|error| caller.failure(Failure::could_not_run(error)))?;
        Ok((locator, location))
    }

    /// The recipe of `--recipe`, with the values of `--set`.
    fn given(&self) -> Result<Option<GivenRecipe>, Failure> {
        let Some(path) = &self.recipe else {
            self.set.check_unused()?;
            return Ok(None);
        };
        Ok(Some(GivenRecipe {
            name: recipe_name(path),
            text: self.set.text(path).map_err(Failure::no_recipe)?,
        }))
    }

    /// The paths of `--ignore`, from the checkpoint's folder.
    pub(super) fn ignored(&self, location: &Location) -> Result<Vec<String>, Failure> {
        ignored(&self.ignore, location)
    }

    /// Computes the checkpoint again.
    pub(super) fn run(
        &self,
        locator: Locator,
        location: &Location,
        how: Thoroughness,
        caller: &Caller,
    ) -> Result<Recomputed, Failure> {
        let asked = Asked {
            recipe: self.given()?,
            seed: self.seed,
            allow_step: how.allow_step,
            arithmetic: how.arithmetic.map(Into::into),
            memory: self.memory.budget(),
            threads: self.threads.count(),
            scratch: std::env::temp_dir(),
        };
        let opened = Checkpoint::open(&self.model.to_string(), location);
        let is_made = asked.recipe.is_some() || location.path.join(LOCK_FILE).is_file();
        if opened.is_err()
            && is_made
            && let Some(weights) = adapter_weights(location)
        {
            if how.part.is_some() {
                let message = "an adapter is not verified in parts";
                let refusal = Refusal::new(message).with_hint("leave --part out");
                return Err(Failure::tool(refusal));
            }
            return recompute_adapter::verify(self, locator, (location, &weights), &asked, caller);
        }
        let folder = FolderListing::look(location, self.ignored(location)?);
        let folder = folder.map_err(Failure::could_not_run)?;
        // What was written are codes and scales, not the values that they stand for.
        let model = opened.map_err(Failure::could_not_run)?.as_stored();
        let premises = Premises::read(location, &asked)?;
        let recorded = premises.lock.as_ref().map(record::read).unwrap_or_default();
        let recipe_dir = locator.recipe_dir.clone();
        let inputs = premises.inputs(location, &self.inputs, recorded, locator)?;
        let found = inputs.locator(location, recipe_dir);
        let planned = self.plan(&premises, &found, caller)?;
        if let Ok(plan) = &planned {
            inputs.check_used(&plan.stored_models())?;
        }
        if let (Ok(plan), Some(part)) = (&planned, how.part) {
            // The checkpoint may be right; the question is not.
            run::share(plan, part).map_err(|error| Failure::tool(&error))?;
        }
        let plan = planned.as_ref().map_err(Refusal::clone);
        let mut request = premises.request((&folder, &model), plan, &inputs, how.coverage);
        request.part = how.part;
        let progress = Progress::verifying(&model, planned.as_ref().ok(), caller);
        let verification = verify(&request, &progress);
        progress.finish();
        Ok(Recomputed {
            verification: verification?,
            folder,
            model,
            lock: premises.lock,
            inputs: (planned.as_ref().ok()).map(|plan| run::locked_inputs(&plan.stored_models())),
            plan: planned.ok(),
        })
    }

    /// The plan of what made a model, or why there is none.
    fn plan(
        &self,
        premises: &Premises,
        locator: &Locator,
        caller: &Caller,
    ) -> Result<Result<Plan, Refusal>, Failure> {
        let options = &premises.options;
        match &premises.origin {
            origin if origin.is_adapter() => {
                let why = format!(
                    "the recipe makes an adapter, and `{}` is a model",
                    self.model
                );
                Err(Failure::tool(
                    Refusal::new(why).with_hint("name the recipe of the model with --recipe"),
                ))
            }
            Origin::Recipe(recipe) => {
                let planned = plan_any(recipe, &premises.name, locator, options);
                Ok(planned.map_err(|error| no_plan(&error)))
            }
            Origin::Transplant(recipe) => transplanted(recipe, &options.plan, locator, caller),
            Origin::Extraction(_) => Ok(Err(Refusal::new("the recipe makes an adapter"))),
        }
    }
}

/// The plan of a transplant, whose new rows are made again.
fn transplanted(
    recipe: &TransplantRecipe,
    options: &Options,
    locator: &Locator,
    caller: &Caller,
) -> Result<Result<Plan, Refusal>, Failure> {
    let asked = recipe
        .models()
        .and_then(|models| Ok((models, recipe.method()?)));
    let ([model, donor], method) = match asked {
        Ok(asked) => asked,
        Err(why) => return Ok(Err(why)),
    };
    let request = Request {
        model: &model,
        donor: &donor,
        method,
        resolver: locator,
        options: options.clone(),
        scratch: &std::env::temp_dir(),
    };
    let progress = Progress::reading(&[], "approximating rows again", caller);
    let made = Transplant::new(&request, &progress);
    progress.finish();
    match made {
        Ok(made) => Ok(Ok(made.plan)),
        Err(_) if caller.stopped() => Err(RunError::Cancelled.into()),
        Err(transplant::Failure::Refused(why)) => Ok(Err(why)),
        Err(transplant::Failure::Plan(error)) => Ok(Err(no_plan(&error))),
    }
}

/// The paths of `--ignore`, from the folder at a location.
pub(super) fn ignored(given: &[String], location: &Location) -> Result<Vec<String>, Failure> {
    let path = |given: &String| {
        path_in_folder(&location.path, given).ok_or_else(|| {
            let what = format!(
                "--ignore {}: not a path in the checkpoint's folder",
                given.escape_debug()
            );
            Failure::tool(
                Refusal::new(what)
                    .with_hint("begin it in the checkpoint's folder: `notes/log.txt`"),
            )
        })
    };
    given.iter().map(path).collect()
}

impl From<PremisesError> for Failure {
    fn from(error: PremisesError) -> Self {
        match error {
            PremisesError::Lock(error) => Self::could_not_run(error),
            PremisesError::Recipe { error, .. } => Self::no_recipe(error),
            error => Self::tool(&error),
        }
    }
}

impl From<InputsError> for Failure {
    fn from(error: InputsError) -> Self {
        Self::tool(&error)
    }
}
