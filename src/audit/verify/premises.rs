//! What a checkpoint is verified against. Whatever the caller leaves open comes from its lock or mergekit's file: the
//! recipe, the options and the arithmetic.

use std::borrow::Cow;
use std::path::PathBuf;

use bytesize::ByteSize;

use super::folder::FolderListing;
use super::inputs::{self, Inputs, InputsError};
use super::mergekit::Profile;
use super::{Coverage, Numerics, Request};
use checkpoint::{Checkpoint, CheckpointError, Location, Locator, ModelRef};
use engine::{Budget, Settings};
use errors::{About, Hint, Refusal};
use lora::ExtractionRecipe;
use moe::MoeOptions;
use plan::{Options, Plan};
use recipe::{AnyRecipe, RecipeError};
use run::{Lock, LockedHub, LockedInput};
use transplant::TransplantRecipe;

/// The file in which mergekit stores the recipe of a merge.
const MERGEKIT_RECIPE: &str = "mergekit_config.yml";

/// The commands of locks whose recipe is what they were asked for.
const TRANSPLANT: &str = "transplant";
const EXTRACT_LORA: &str = "extract-lora";

/// The caller's choices.
#[derive(Debug, Clone)]
pub struct Asked {
    /// A recipe to use instead of the lock's or mergekit's.
    pub recipe: Option<GivenRecipe>,
    /// The seed of random masks, instead of the lock's.
    pub seed: Option<u64>,
    /// Whether values that are one ULP of their dtype off are accepted.
    pub allow_step: Option<bool>,
    /// The arithmetic to compare with.
    pub arithmetic: Option<Arithmetic>,
    /// How much memory may be used.
    pub memory: Budget,
    /// Number of worker threads.
    pub threads: usize,
    /// A folder for results that several documents read.
    pub scratch: PathBuf,
}

/// A recipe that the caller gives.
#[derive(Debug, Clone)]
pub struct GivenRecipe {
    /// Its name in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// The arithmetic that a checkpoint is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Weldment's; if that is not equal, mergekit's in the recipe's dtype.
    Auto,
    /// Weldment's only.
    Weldment,
    /// mergekit's only.
    Mergekit(Profile),
}

/// What a checkpoint is verified against.
#[derive(Debug)]
pub struct Premises {
    /// Its lock, if it has one.
    pub lock: Option<Lock>,
    /// Its recipe.
    pub origin: Origin,
    /// The name of the recipe in messages.
    pub name: String,
    /// The options that a plan depends on besides the recipe.
    pub options: MoeOptions,
    recipe_of_lock: bool,
    allow_step: bool,
    numerics: Numerics,
    scratch: PathBuf,
}

/// What a checkpoint was made by.
#[derive(Debug)]
pub enum Origin {
    /// A recipe, for a model or for an adapter.
    Recipe(Box<AnyRecipe>),
    /// `weld transplant`.
    Transplant(TransplantRecipe),
    /// `weld extract-lora`.
    Extraction(ExtractionRecipe),
}

impl Origin {
    /// Whether it makes an adapter.
    pub fn is_adapter(&self) -> bool {
        match self {
            Self::Recipe(recipe) => {
                matches!(&**recipe, AnyRecipe::Merge(recipe) if recipe.output.is_some())
            }
            Self::Transplant(_) => false,
            Self::Extraction(_) => true,
        }
    }

    /// The names of its models.
    fn names(&self, tokenizer_from: Option<&ModelRef>) -> Vec<String> {
        let models = match self {
            Self::Recipe(recipe) => return inputs::names(recipe, tokenizer_from),
            Self::Transplant(recipe) => recipe.models(),
            Self::Extraction(recipe) => recipe.models(),
        };
        let mut names = Vec::new();
        for model in models.iter().flatten() {
            inputs::add_names(model, &mut names);
        }
        names
    }
}

/// Why it is unknown what a checkpoint should be.
#[derive(Debug, thiserror::Error)]
pub enum PremisesError {
    /// Its lock cannot be read.
    #[error(transparent)]
    Lock(#[from] CheckpointError),
    /// Its recipe cannot be read.
    #[error("cannot read the recipe {name}")]
    Recipe {
        /// The recipe's name.
        name: String,
        /// The recipe's error.
        error: RecipeError,
    },
    /// The checkpoint has no recipe.
    #[error(
        "the checkpoint has no weldment.lock.json and no mergekit_config.yml, so its recipe is unknown"
    )]
    NoRecipe,
    /// What the lock says that a command was asked for cannot be.
    #[error("recipe of the lock: {0}")]
    Command(Refusal),
    /// The lock names a model that cannot exist.
    #[error("options.tokenizer_from of the lock: {0}")]
    TokenizerFrom(String),
}

impl Hint for PremisesError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Lock(source) => source.hint(),
            Self::NoRecipe => Some("give the recipe with --recipe FILE".into()),
            Self::Command(why) => why.hint(),
            Self::Recipe { .. } | Self::TokenizerFrom(_) => None,
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Lock(source) => source.about(),
            Self::Recipe { error, .. } => error.about(),
            Self::NoRecipe | Self::Command(_) | Self::TokenizerFrom(_) => About::default(),
        }
    }
}

impl Premises {
    /// Reads what the checkpoint at a location is verified against.
    ///
    /// # Errors
    /// Its lock or its recipe cannot be read, or it has no recipe.
    pub fn read(location: &Location, asked: &Asked) -> Result<Premises, PremisesError> {
        let folder = &location.path;
        let lock = match folder.is_dir() {
            true => Lock::read(folder)?,
            false => None,
        };
        let by_mergekit = folder.join(MERGEKIT_RECIPE);
        let by_mergekit = by_mergekit.is_file().then_some(by_mergekit);
        let allow_step = lock.is_none() && by_mergekit.is_some();
        let (mut origin, name) = match (&asked.recipe, &lock, &by_mergekit) {
            (Some(given), ..) => {
                let name = given.name.clone();
                named(recipe::parse_any(&name, &given.text), name)?
            }
            (None, None, Some(path)) => {
                named(recipe::read_recorded(path), path.display().to_string())?
            }
            (None, Some(lock), _) => from_lock(lock)?,
            (None, None, None) => return Err(PremisesError::NoRecipe),
        };
        if let Origin::Recipe(recipe) = &mut origin
            && let AnyRecipe::Merge(recipe) = &mut **recipe
        {
            recipe.mark_recorded(lock.is_none());
        }
        Ok(Premises {
            options: options(lock.as_ref(), asked)?,
            recipe_of_lock: asked.recipe.is_none(),
            allow_step: asked.allow_step.unwrap_or(allow_step),
            numerics: numerics(asked.arithmetic, lock.as_ref(), &origin),
            scratch: asked.scratch.clone(),
            lock,
            origin,
            name,
        })
    }

    /// Where to look for the inputs. `given` are the caller's arguments, each `NAME=PATH` or the folder where relative
    /// paths start; `recorded` are the paths that the merge recorded on this machine, by the lock's names.
    ///
    /// # Errors
    /// An argument names no model, no folder, or nothing that exists.
    pub fn inputs(
        &self,
        location: &Location,
        given: &[String],
        recorded: Vec<(String, PathBuf)>,
        locator: Locator,
    ) -> Result<Inputs, InputsError> {
        // The record is of the lock's recipe.
        let recorded = match self.recipe_of_lock {
            true => recorded,
            false => Vec::new(),
        };
        let locator = Locator {
            pinned: self.pinned(),
            ..locator
        };
        let donor = self.options.plan.tokenizer_from.as_ref();
        let names = self.origin.names(donor);
        Inputs::new(names, location, given, recorded, locator)
    }

    /// The commits of the inputs from the Hub, by their names in the recipe, as the lock has them.
    fn pinned(&self) -> Vec<(String, String)> {
        let of_lock = self.lock.as_ref().filter(|_| self.recipe_of_lock);
        let inputs = of_lock.map_or(&[][..], |lock| &lock.inputs);
        let pins = inputs.iter().flat_map(LockedInput::parts);
        let pin = |(model, hub): (ModelRef, Option<&LockedHub>)| {
            let hub = hub?;
            let whole = model.entry.as_ref().and_then(|entry| {
                let text = model.text().strip_suffix(entry.as_str())?;
                text.strip_suffix('#')
            });
            let text = whole.unwrap_or(model.text()).to_owned();
            (hub.repo == model.path).then(|| (text, hub.commit.clone()))
        };
        pins.filter_map(pin).collect()
    }

    /// Whether the recipe is the lock's own.
    pub fn is_of_lock(&self) -> bool {
        self.recipe_of_lock
    }

    /// Whether differences of a single ULP are accepted.
    pub fn allows_step(&self) -> bool {
        self.allow_step
    }

    /// The request to verify the checkpoint against a plan of the recipe.
    pub fn request<'a>(
        &'a self,
        (folder, model): (&'a FolderListing, &'a Checkpoint),
        plan: Result<&'a Plan, Refusal>,
        inputs: &'a Inputs,
        coverage: Coverage,
    ) -> Request<'a> {
        Request {
            model: super::written(model, plan.as_ref().ok().copied(), self.lock.as_ref()),
            folder,
            plan,
            inputs: Some(inputs),
            lock: self.lock.as_ref(),
            recipe_of_lock: self.recipe_of_lock,
            coverage,
            allow_step: self.allow_step,
            numerics: self.numerics,
            part: None,
            threads: self.options.plan.settings.threads,
            scratch: &self.scratch,
        }
    }
}

/// A recipe that was read, and its name.
fn named(
    read: Result<AnyRecipe, RecipeError>,
    name: String,
) -> Result<(Origin, String), PremisesError> {
    match read {
        Ok(recipe) => Ok((Origin::Recipe(Box::new(recipe)), name)),
        Err(error) => Err(PremisesError::Recipe { name, error }),
    }
}

fn from_lock(lock: &Lock) -> Result<(Origin, String), PremisesError> {
    let name = run::LOCK_FILE.to_owned();
    let text = &lock.recipe;
    let origin = match lock.command.as_str() {
        TRANSPLANT => TransplantRecipe::parse(text).map(Origin::Transplant),
        EXTRACT_LORA => ExtractionRecipe::parse(text).map(Origin::Extraction),
        _ => {
            return match recipe::parse_any(&name, text) {
                Ok(recipe) => Ok((Origin::Recipe(Box::new(recipe)), name)),
                Err(error) => Err(PremisesError::Recipe {
                    name: format!("in {name}"),
                    error,
                }),
            };
        }
    };
    Ok((origin.map_err(PremisesError::Command)?, name))
}

/// The options of the lock. Those that it does not have are as in a merge without options.
fn options(lock: Option<&Lock>, asked: &Asked) -> Result<MoeOptions, PremisesError> {
    let locked = lock.map(|lock| &lock.options);
    let tokenizer_from = locked.and_then(|options| options.tokenizer_from.as_deref());
    let tokenizer_from = tokenizer_from.map(ModelRef::parse).transpose();
    let plan = Options {
        settings: Settings {
            threads: asked.threads,
            memory: asked.memory,
            allow_non_finite: locked.is_some_and(|options| options.allow_nonfinite),
            saturate: locked.is_some_and(|options| options.saturate),
        },
        seed: asked
            .seed
            .or(locked.map(|options| options.seed))
            .unwrap_or(0),
        shard_size: locked.map_or(ByteSize::gb(5).as_u64(), |options| options.shard_size),
        tokenizer_from: tokenizer_from.map_err(PremisesError::TokenizerFrom)?,
    };
    Ok(MoeOptions {
        plan,
        inexact: locked.is_some_and(|options| options.inexact),
        fused: locked.is_some_and(|options| options.fused),
    })
}

/// The arithmetic that was asked for. Otherwise it is weldment's if the lock says that weld made the checkpoint, or if
/// only weld can read the recipe.
fn numerics(asked: Option<Arithmetic>, lock: Option<&Lock>, origin: &Origin) -> Numerics {
    let merge = match origin {
        Origin::Recipe(recipe) => match &**recipe {
            AnyRecipe::Merge(recipe) => Some(recipe),
            AnyRecipe::Moe(_) | AnyRecipe::Edit(_) => None,
        },
        Origin::Transplant(_) | Origin::Extraction(_) => None,
    };
    match asked {
        None if lock.is_some() => Numerics::Weldment,
        None | Some(Arithmetic::Auto) => match merge {
            Some(recipe) => Numerics::Auto(recipe.dtype),
            None => Numerics::Weldment,
        },
        Some(Arithmetic::Weldment) => Numerics::Weldment,
        Some(Arithmetic::Mergekit(profile)) => Numerics::Mergekit(profile),
    }
}
