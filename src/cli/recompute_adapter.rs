//! Makes a LoRA adapter again, in memory, and compares it: `verify` and `attest` of what `merge` with `output: adapter`
//! or `extract-lora` wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::caller::Caller;
use super::output::Failure;
use super::progress::Progress;
use super::recompute::{Recomputation, Recomputed};
use super::record;
use audit::verify::{
    ADAPTER_WEIGHTS, AdapterRequest, Asked, FolderListing, Inputs, Origin, Premises, no_plan,
    verify_adapter,
};
use checkpoint::{Checkpoint, Location, Locator, ModelRef, Resolver};
use errors::{Hint, Refusal};
use lora::{AdapterMerge, ExtractError, Extraction, ExtractionRecipe};
use plan::Options;
use recipe::{AnyRecipe, Recipe};
use run::destination::Memory;
use run::{Lock, locked_inputs, locked_recipe};

/// The files of an adapter, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// What messages call the adapter that is made again.
const MEMORY: &str = "the adapter made again";

/// Why no adapter is made again.
const MODEL: &str = "the recipe makes a model";

/// The weights of the adapter at a location, if it is an adapter alone.
pub(super) fn adapter_weights(location: &Location) -> Option<Location> {
    let path = location.path.join(ADAPTER_WEIGHTS);
    let is_alone = location.adapters.is_empty() && path.is_file();
    is_alone.then(|| Location {
        path,
        ..location.clone()
    })
}

/// Makes the adapter at a location again and compares it.
pub(super) fn verify(
    recomputation: &Recomputation,
    locator: Locator,
    (location, weights): (&Location, &Location),
    asked: &Asked,
    caller: &Caller,
) -> Result<Recomputed, Failure> {
    let label = recomputation.model.to_string();
    let folder = FolderListing::look(location, recomputation.ignored(location)?);
    let folder = folder.map_err(Failure::could_not_run)?;
    let model = Checkpoint::open(&label, weights).map_err(Failure::could_not_run)?;
    let premises = Premises::read(location, asked)?;
    if !premises.origin.is_adapter() {
        let why = format!("the recipe makes a model, and `{label}` is an adapter");
        return Err(Failure::tool(
            Refusal::new(why).with_hint("name the recipe of the adapter with --recipe"),
        ));
    }
    let recorded = premises.lock.as_ref().map(record::read).unwrap_or_default();
    let recipe_dir = locator.recipe_dir.clone();
    let inputs = premises.inputs(location, &recomputation.inputs, recorded, locator)?;
    let found = inputs.locator(location, recipe_dir);
    let judge = Judge {
        is_of_lock: premises.is_of_lock(),
        allow_step: premises.allows_step(),
        lock: premises.lock,
        inputs,
        folder,
        weights: model,
        label,
        threads: asked.threads,
        caller,
    };
    match premises.origin {
        Origin::Extraction(recipe) => judge.extraction(&recipe, &found),
        Origin::Recipe(recipe) => match *recipe {
            AnyRecipe::Merge(recipe) => {
                judge.merge(*recipe, &premises.name, &found, &premises.options.plan)
            }
            AnyRecipe::Moe(_) | AnyRecipe::Edit(_) => judge.nothing(MODEL),
        },
        Origin::Transplant(_) => judge.nothing(MODEL),
    }
}

/// Judges an adapter once it was made again.
struct Judge<'c> {
    is_of_lock: bool,
    allow_step: bool,
    lock: Option<Lock>,
    inputs: Inputs,
    folder: FolderListing,
    weights: Checkpoint,
    label: String,
    threads: usize,
    caller: &'c Caller,
}

impl Judge<'_> {
    /// Merges the adapters again.
    fn merge(
        self,
        recipe: Recipe,
        name: &str,
        locator: &Locator,
        options: &Options,
    ) -> Result<Recomputed, Failure> {
        let text = recipe.text.resolved.clone();
        let merge = match AdapterMerge::plan(recipe, name, locator, options) {
            Ok(merge) => merge,
            Err(error) => return self.nothing(no_plan(&error)),
        };
        let progress = Progress::reading(&merge.models(), "merging again", self.caller);
        let memory = Memory::new(MEMORY);
        let done = merge.run(&memory, &std::env::temp_dir(), false, &progress);
        progress.finish();
        self.against(files(done.map(drop), memory)?, &merge.models(), &text)
    }

    /// Extracts the adapter again.
    fn extraction(
        self,
        recipe: &ExtractionRecipe,
        locator: &Locator,
    ) -> Result<Recomputed, Failure> {
        let models = match resolved(recipe, locator) {
            Ok(models) => models,
            Err(why) => return self.nothing(why),
        };
        let [base, tuned] = &models;
        let request = recipe.request(base, tuned, self.threads);
        let extraction = match request.and_then(Extraction::plan) {
            Ok(extraction) => extraction,
            Err(why) => return self.nothing(why),
        };
        let progress = Progress::reading(&[base, tuned], "extracting again from", self.caller);
        let memory = Memory::new(MEMORY);
        let origin = recipe.origin(base, tuned, self.threads);
        let done = extraction.run(origin, &memory, &progress);
        progress.finish();
        let files = files(done.map(drop), memory)?;
        self.against(files, &[base, tuned], &recipe.text())
    }

    /// What can be said where nothing can be made again.
    fn nothing(self, why: impl Into<Refusal>) -> Result<Recomputed, Failure> {
        self.against(Err(why.into()), &[], "")
    }

    /// Compares the adapter with the files that were made again of these models, the base first, by a recipe.
    fn against(
        self,
        remade: Result<Files, Refusal>,
        models: &[&Checkpoint],
        recipe: &str,
    ) -> Result<Recomputed, Failure> {
        if remade.is_ok() {
            self.inputs.check_used(models)?;
        }
        let progress = Progress::reading(&[&self.weights], "comparing", self.caller);
        let verification = verify_adapter(
            &AdapterRequest {
                label: &self.label,
                folder: &self.folder,
                weights: &self.weights,
                lock: self.lock.as_ref(),
                recipe: (!self.is_of_lock).then(|| locked_recipe(recipe, models)),
                models,
                inputs: &self.inputs,
                remade,
                allow_step: self.allow_step,
                threads: self.threads,
            },
            &progress,
        );
        progress.finish();
        Ok(Recomputed {
            verification: verification?,
            folder: self.folder,
            inputs: (!models.is_empty()).then(|| locked_inputs(models)),
            model: self.weights,
            lock: self.lock,
            plan: None,
        })
    }
}

/// The base and the fine-tune of an extraction.
fn resolved(recipe: &ExtractionRecipe, locator: &Locator) -> Result<[Arc<Checkpoint>; 2], Refusal> {
    let open = |name: &ModelRef| {
        locator.resolve(name).map_err(|error| {
            Refusal::from(&error).with_hint("say where the inputs are: --inputs NAME=PATH")
        })
    };
    let [base, tuned] = recipe.models()?;
    Ok([open(&base)?, open(&tuned)?])
}

/// The files that were made; why there are none, if the inputs are to blame.
fn files(
    done: Result<(), ExtractError>,
    memory: Memory,
) -> Result<Result<Files, Refusal>, Failure> {
    match done {
        Ok(()) => Ok(Ok(memory.into_files())),
        Err(error) if error.is_users() => {
            let why = Refusal::new(error.to_string());
            Ok(Err(match error.hint() {
                Some(hint) => why.with_hint(hint),
                None => why,
            }))
        }
        Err(error) => Err(error.into()),
    }
}
