//! Arguments that several subcommands share, and their conversion to the engine's settings.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::available_parallelism;

use bytesize::ByteSize;
use clap::builder::{PathBufValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, Args, Command, Error, ValueEnum};

use super::caller::Caller;
use super::memory::available;
use super::mergekit::Mergekit;
use super::network::{Needs, Network};
use super::output::Failure;
use super::stores::{self, is_in_store};
use checkpoint::{Locator, ModelRef};
use engine::{Budget, Settings};
use errors::Refusal;
use eval::Split;
use moe::MoeOptions;
use plan::{self, Options, Plan};
use recipe::{self, AnyRecipe, Assignment, Recipe, RecipeError};

/// The half of the items of a task that is taken, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// To choose by
    Validation,
    /// To judge by
    Test,
    /// All
    All,
}

impl Part {
    /// The split that it means.
    pub(super) fn split(self) -> Split {
        match self {
            Part::Validation => Split::Validation,
            Part::Test => Split::Test,
            Part::All => Split::All,
        }
    }
}

/// The output format on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Reads where something is written: a place on this machine, and no address of a store.
pub(super) fn place() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match is_in_store(&path) {
        true => Err("this is not written to a store: name a place on this machine, and copy it"),
        false => Ok(path),
    })
}

/// Reads where a checkpoint is written: a folder, or an address of a store where weld is built with them.
pub(super) fn folder_or_store() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match is_in_store(&path) && !cfg!(feature = "store") {
        true => Err(
            "this weld is built without object stores: write to a folder, and copy it, or build it with \
             `--features store`",
        ),
        false => Ok(path),
    })
}

/// What a plan depends on.
#[derive(Args)]
pub(super) struct PlanArguments {
    /// The recipe, a YAML file as for mergekit; `-` reads it from standard input
    pub(super) recipe: PathBuf,

    #[command(flatten)]
    set: SetArguments,

    /// Maximum size of a shard, in bytes of tensors (5GB, 500MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = shard_size)]
    shard_size: u64,

    /// Copy the tokenizer files from this model, not from the base or the first model
    #[arg(long, value_name = "MODEL", value_parser = ModelRef::parse)]
    tokenizer_from: Option<ModelRef>,

    /// Seed for random masks (dare_*, della*), stochastic rounding, and what is random in a mixture of experts
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    memory: Memory,

    /// Keep NaN and infinity from the inputs; without this they are an error
    #[arg(long)]
    allow_nonfinite: bool,

    /// Clamp values that are too large for the output's dtype; without this they are an error
    #[arg(long)]
    saturate: bool,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    mergekit: Mergekit,
}

impl PlanArguments {
    /// What messages call the recipe.
    pub(super) fn name(&self) -> String {
        recipe_name(&self.recipe)
    }

    /// Reads the recipe, of any kind, with the values of `--set`.
    pub(super) fn read(&self) -> Result<AnyRecipe, Failure> {
        let text = self.set.text(&self.recipe)?;
        Ok(recipe::parse_any(&self.name(), &text)?)
    }

    /// Reads the recipe of a merge, with the values of `--set`.
    pub(super) fn merge(&self) -> Result<Recipe, Failure> {
        self.merge_with(&[])
    }

    /// The same, with values that other options set.
    pub(super) fn merge_with(&self, more: &[Assignment]) -> Result<Recipe, Failure> {
        let text = self.set.text(&self.recipe)?;
        let text = recipe::assign(&self.name(), &text, more)?;
        Ok(recipe::parse_with_registry(&self.name(), &text)?)
    }

    /// Plans the recipe of a merge, for an output if there is to be one.
    pub(super) fn plan(
        &self,
        recipe: &Recipe,
        needs: Needs,
        out: Option<&Path>,
        caller: &Caller,
    ) -> Result<Plan, Failure> {
        let (locator, mut options) = self.surroundings(needs, caller)?;
        self.leave_room(out, &mut options)?;
        let path = self.name();
        let plan = plan::plan(recipe, &path, &locator, &options);
        plan.map_err(|error| caller.failure(error.into()))
    }

    /// Plans a recipe of any kind, for an output if there is to be one.
    pub(super) fn plan_recipe(
        &self,
        recipe: &AnyRecipe,
        moe: &MoeArguments,
        needs: Needs,
        out: Option<&Path>,
        caller: &Caller,
    ) -> Result<Plan, Failure> {
        let (locator, mut options) = self.surroundings(needs, caller)?;
        self.leave_room(out, &mut options)?;
        let path = self.name();
        let plan = plan_any(recipe, &path, &locator, &moe.options(options));
        plan.map_err(|error| caller.failure(error.into()))
    }

    /// Says what mergekit's options mean here, if some were given.
    pub(super) fn say_mergekit(&self, say: impl Fn(&str)) {
        for note in &self.mergekit.notes {
            say(&format!("note: {note}"));
        }
    }

    /// Leaves the memory that an output in a store takes.
    fn leave_room(&self, out: Option<&Path>, options: &mut Options) -> Result<(), Failure> {
        let Some(out) = out.filter(|out| is_in_store(out)) else {
            return Ok(());
        };
        if self.network.offline {
            let out = out.display();
            let message = format!("the network is not to be used, and `{out}` is in a store");
            let hint = "leave out --offline, or write to a folder";
            return Err(Failure::input(Refusal::new(message).with_hint(hint)));
        }
        options.settings.memory = options.settings.memory.without(stores::held());
        Ok(())
    }

    /// The locator for models, and the plan's options.
    pub(super) fn surroundings(
        &self,
        needs: Needs,
        caller: &Caller,
    ) -> Result<(Locator, Options), Failure> {
        let locator = self.network.locator(self.recipe.parent(), needs, caller)?;
        let options = Options {
            settings: Settings {
                threads: (self.mergekit.threads).map_or_else(|| self.threads.count(), usize::from),
                memory: self.memory.budget(),
                allow_non_finite: self.allow_nonfinite,
                saturate: self.saturate,
            },
            seed: self.mergekit.seed.unwrap_or(self.seed),
            shard_size: self.mergekit.shard_size.unwrap_or(self.shard_size),
            tokenizer_from: self.tokenizer_from.clone(),
        };
        Ok((locator, options))
    }
}

/// Values of the recipe that are set on the command line.
#[derive(Args)]
pub(super) struct SetArguments {
    /// Set a value of the recipe, by its path: parameters.density=0.3, models[0].parameters.weight=0.7, or with `[*]` for
    /// all models. Can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Assignment::parse)]
    set: Vec<Assignment>,
}

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// What messages call a recipe.
pub(super) fn recipe_name(path: &Path) -> String {
    match path.to_str() {
        Some(STANDARD_INPUT) => "standard input".into(),
        _ => path.display().to_string(),
    }
}

impl SetArguments {
    /// Checks that no value is set where there is no recipe to set it in.
    ///
    /// # Errors
    /// One is.
    pub(super) fn check_unused(&self) -> Result<(), Failure> {
        match self.set.first() {
            None => Ok(()),
            Some(first) => {
                let what = format!(
                    "--set {first}: the lock holds the recipe with the values that were set"
                );
                Err(Failure::tool(Refusal::new(what).with_hint(
                    "leave --set out, or give the recipe with --recipe FILE",
                )))
            }
        }
    }

    /// The recipe's text with these values.
    ///
    /// # Errors
    /// It cannot be read, or has no place for one of them.
    pub(super) fn text(&self, path: &Path) -> Result<String, RecipeError> {
        let name = recipe_name(path);
        let text = match path.to_str() {
            Some(STANDARD_INPUT) => recipe::text_from(&name, std::io::stdin().lock())?,
            _ => recipe::read_text(path)?,
        };
        recipe::assign(&name, &text, &self.set)
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
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
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

/// The memory that may be used.
#[derive(Args)]
pub(super) struct Memory {
    /// Limit for weld's own memory; memory-mapped model files do not count [default: 256MiB, and what a method needs
    /// that holds whole matrices]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
}

impl Memory {
    /// The limit that was given, or one that grows up to what the machine has free.
    pub(super) fn budget(&self) -> Budget {
        let growing = || Budget::growing(available().unwrap_or(u64::MAX));
        self.memory.map_or_else(growing, Budget::Limit)
    }
}

/// Parses a seed.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    whole(text, 0, u64::MAX)
}

/// Parses a number of threads.
pub(super) fn threads(text: &str) -> Result<u16, String> {
    whole(text, 1, 1024)
}

/// Parses a whole number within bounds, inclusive.
pub(super) fn whole<T: FromStr + PartialOrd + Display>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    let parsed = text.parse().ok().filter(|n| (&least..=&most).contains(&n));
    parsed.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

/// A parser of an argument whose usual values completions suggest. It may take others too.
#[derive(Clone)]
pub(super) struct Suggesting<T>(
    /// The parser.
    pub(super) fn(&str) -> Result<T, String>,
    /// The values that are suggested.
    pub(super) fn() -> Vec<&'static str>,
);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Suggesting<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let Self(parse, _) = *self;
        let parser = move |text: &str| parse(text);
        TypedValueParser::parse_ref(&parser, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let Self(_, suggested) = self;
        Some(Box::new(suggested().into_iter().map(PossibleValue::new)))
    }
}

/// Any name, for [`Suggesting`]: one that is unknown is answered with the nearest.
pub(super) fn any(name: &str) -> Result<String, String> {
    Ok(name.to_owned())
}

/// The names of all merge methods.
pub(super) fn method_names() -> Vec<&'static str> {
    methods::all()
        .iter()
        .map(|method| method.info().name)
        .collect()
}

/// Parses the size of a shard. mergekit writes billions as `5B`, and means bytes by it.
pub(super) fn shard_size(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix(['B', 'b']).unwrap_or_default();
    let is_whole = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = number.parse::<u64>().ok();
    match bytes.and_then(|billions| billions.checked_mul(1_000_000_000)) {
        Some(0) => Err("must be more than 0".into()),
        Some(bytes) => Ok(bytes),
        None if is_whole => Err("expected a size such as 5GB, 500MB or 2GiB".into()),
        None => size(text),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_may_be_given_in_billions() {
        for (text, expected) in [
            ("5B", Ok(5_000_000_000)),
            ("5b", Ok(5_000_000_000)),
            ("5GB", Ok(5_000_000_000)),
            ("500M", Ok(500_000_000)),
            ("40K", Ok(40_000)),
            ("2GiB", Ok(2 << 30)),
            ("1000", Ok(1000)),
        ] {
            assert_eq!(shard_size(text), expected, "{text}");
        }
        assert_eq!(
            threads("0"),
            Err("expected a whole number from 1 to 1024".to_owned())
        );
        assert_eq!(
            seed("-1"),
            Err("expected a whole number from 0 to 18446744073709551615".to_owned())
        );
        assert_eq!(seed("18446744073709551615"), Ok(u64::MAX));
        for text in [
            "0B",
            "B",
            "99999999999999999999B",
            "18446744073709551615B",
            "-5B",
            "lots",
        ] {
            assert!(shard_size(text).is_err(), "{text}");
        }
    }
}
