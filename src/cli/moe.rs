//! `weld moe`: assembles a mixture of experts.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::arguments::{MoeArguments, PlanArguments};
use super::merge::OutputArguments;
use super::output::{Failure, say};
use super::progress::Progress;
use super::signals;
use audit::verify::{FolderListing, Request, verify};
use audit::{Verdict, formats};
use checkpoint::{Checkpoint, Location};
use errors::printable;
use plan::{self, Plan};
use recipe::{self, AnyRecipe, MoeRecipe, Problem, ProblemKind};
use run::Lock;

/// Build a mixture of experts from dense models, with mergekit-moe's recipes; or edit a mixture
///
/// Writes the layout that transformers, vLLM and llama.cpp read. If the mixture could not compute exactly what its
/// models compute, it is refused before anything is written (see --inexact). `weld plan` shows what a recipe would do;
/// docs/moe.md explains the recipes.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanArguments,

    #[command(flatten)]
    output: OutputArguments,

    #[command(flatten)]
    moe: MoeArguments,

    /// Prove the result: before writing, that identical experts give the base's logits; afterwards, recompute every
    /// byte
    #[arg(long)]
    check: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = signals::install(signals::Work::Writes)?;
    if !arguments.output.quiet {
        arguments.plan.say_mergekit();
    }
    let recipe = recipe::read_any(&arguments.plan.recipe)?;
    let assembly = match &recipe {
        AnyRecipe::Moe(assembly) => Some(assembly),
        // An edited mixture has no dense model to compare with: its bytes are recomputed afterwards.
        AnyRecipe::Edit(_) => None,
        AnyRecipe::Merge(merge) => {
            let message = "expected a recipe of a mixture of experts, found one that merges";
            let problem = Problem::new(ProblemKind::Invalid, merge.method_at, message);
            let problem = problem.with_hint("run it with `weld merge`");
            return Err(merge.error(vec![problem]).into());
        }
    };
    let plan = arguments.plan.plan_recipe(&recipe, &arguments.moe)?;
    if let Some(assembly) = assembly.filter(|_| arguments.check) {
        prove(arguments, assembly)?;
    }
    arguments.output.write(&plan, Arc::clone(&stop))?;
    if arguments.check {
        recompute(arguments, &plan, stop)?;
    }
    Ok(())
}

/// Checks that the target computes what the base does.
fn prove(arguments: &Arguments, recipe: &MoeRecipe) -> Result<(), Failure> {
    let (locator, options) = arguments.plan.surroundings()?;
    let options = arguments.moe.options(options);
    let error = moe::prove_identity(recipe, &locator, &options).map_err(Failure::Input)?;
    if !arguments.output.quiet {
        say(&format!(
            "checked: with `{}` as every expert, logits are its own within {error:.1e}",
            printable(&recipe.base_model.value.to_string())
        ));
    }
    Ok(())
}

/// Checks that every written byte is what the recipe says.
fn recompute(arguments: &Arguments, plan: &Plan, stop: Arc<AtomicBool>) -> Result<(), Failure> {
    let out = &arguments.output.out;
    let location = Location::local(out);
    let folder = FolderListing::look(&location, Vec::new())?;
    let model = Checkpoint::open(&out.display().to_string(), &location)?;
    let lock = Lock::read(&location.path)?;
    let scratch = std::env::temp_dir();
    let request = Request::of_written((&folder, &model), plan, lock.as_ref(), &scratch);
    let quiet = arguments.output.quiet;
    let progress = Progress::verifying(&model, Some(plan), quiet, stop);
    let report = verify(&request, &progress);
    progress.finish();
    let report = report?.report;
    if report.verdict() != Verdict::Passed {
        say(&formats::text(&report));
        return Err(Failure::Verdict(report.verdict()));
    }
    if !quiet {
        let tensors = plan::count(model.tensors().len(), "tensor");
        say(&format!(
            "checked: {tensors} computed again, every byte as it should be"
        ));
    }
    Ok(())
}
