//! Arguments that several subcommands share, and their conversion to the engine's settings.

use std::path::PathBuf;
use std::thread::available_parallelism;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::environment;
use super::output::Failure;
use checkpoint::{Locator, ModelRef};
use engine::Settings;
use moe::MoeOptions;
use plan::{self, Options, Plan};
use recipe::{self, AnyRecipe, RecipeError};

/// The output format on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// What a plan depends on.
#[derive(Args)]
pub(super) struct PlanArguments {
    /// The recipe, a YAML file as for mergekit
    pub(super) recipe: PathBuf,

    /// Maximum size of a shard, in bytes of tensors (5GB, 500MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,

    /// Copy the tokenizer files from this model, not from the base or the first model
    #[arg(long, value_name = "MODEL", value_parser = ModelRef::parse)]
    tokenizer_from: Option<ModelRef>,

    /// Seed for random masks (dare_*, della*), and for what is random in a mixture of experts
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    threads: Threads,

    /// Limit for weld's own memory; memory-mapped model files do not count
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    memory: u64,

    /// Keep NaN and infinity from the inputs; without this they are an error
    #[arg(long)]
    allow_nonfinite: bool,

    /// Clamp values that are too large for the output's dtype; without this they are an error
    #[arg(long)]
    saturate: bool,
}

impl PlanArguments {
    /// Reads the recipe of a merge and plans it.
    pub(super) fn plan(&self) -> Result<Plan, Failure> {
        let recipe = recipe::read(&self.recipe)?;
        let (locator, options) = self.surroundings()?;
        let path = self.recipe.display().to_string();
        Ok(plan::plan(&recipe, &path, &locator, &options)?)
    }

    /// Plans a recipe of any kind.
    pub(super) fn plan_recipe(
        &self,
        recipe: &AnyRecipe,
        moe: &MoeArguments,
    ) -> Result<Plan, Failure> {
        let (locator, options) = self.surroundings()?;
        let path = self.recipe.display().to_string();
        Ok(plan_any(recipe, &path, &locator, &moe.options(options))?)
    }

    /// The locator for models, and the plan's options.
    pub(super) fn surroundings(&self) -> Result<(Locator, Options), Failure> {
        let locator = environment::locator(self.recipe.parent())?;
        let options = Options {
            settings: Settings {
                threads: self.threads.count(),
                memory: self.memory,
                allow_non_finite: self.allow_nonfinite,
                saturate: self.saturate,
            },
            seed: self.seed,
            shard_size: self.shard_size,
            tokenizer_from: self.tokenizer_from.clone(),
        };
        Ok((locator, options))
    }
}

/// How mixtures of experts are written.
#[derive(Args)]
pub(super) struct MoeArguments {
    /// Mixtures of experts: allow a mixture that does not compute exactly what its models do; notes list the
    /// differences
    #[arg(long)]
    inexact: bool,

    /// Mixtures of experts: write all experts of a layer as two tensors, as transformers 5 holds them in memory;
    /// transformers 4 cannot load them
    #[arg(long)]
    fused: bool,
}

impl MoeArguments {
    pub(super) fn options(&self, plan: Options) -> MoeOptions {
        MoeOptions {
            plan,
            inexact: self.inexact,
            fused: self.fused,
        }
    }
}

/// Plans a recipe of any kind; messages call it `path`.
pub(super) fn plan_any(
    recipe: &AnyRecipe,
    path: &str,
    locator: &Locator,
    options: &MoeOptions,
) -> Result<Plan, RecipeError> {
    match recipe {
        AnyRecipe::Merge(recipe) => plan::plan(recipe, path, locator, &options.plan),
        AnyRecipe::Moe(recipe) => moe::plan(recipe, path, locator, options),
        AnyRecipe::Edit(recipe) => moe::plan_edit(recipe, path, locator, options),
    }
}

/// The number of threads.
#[derive(Args)]
pub(super) struct Threads {
    /// Number of worker threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    /// The requested number, or the number of processors.
    pub(super) fn count(&self) -> usize {
        self.threads.map_or_else(
            || available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }
}

/// Parses a size: a number of bytes, or with a unit, decimal (GB) or binary (GiB).
pub(super) fn size(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("must be more than 0".into()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("expected a size such as 5GB, 500MB or 256MiB".into()),
    }
}
