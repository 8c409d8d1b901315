//! `weld moe`: assembles a mixture of experts.

use clap::Args;
use serde_json::Value;

use super::arguments::{MoeArguments, PlanArguments};
use super::caller::Caller;
use super::merge::OutputArguments;
use super::network::Needs;
use super::output::Failure;
use super::progress::Progress;
use super::signals::Work;
use audit::verify::{FolderListing, Request, verify};
use audit::{Verdict, formats};
use checkpoint::{Checkpoint, Location};
use errors::printable;
use plan::{self, Plan};
use recipe::{AnyRecipe, MoeRecipe, Problem, ProblemKind};
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
    #[arg(long, conflicts_with = "part")]
    check: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.output.quiet)?;
    let (plan, made) = make(arguments, &caller)?;
    arguments.output.print(&made)?;
    recompute(arguments, &plan, &caller)
}

/// Assembles for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let (plan, made) = make(arguments, caller)?;
    recompute(arguments, &plan, caller)?;
    Ok(made)
}

/// Writes the mixture; what was written, as JSON, is returned with its plan.
fn make(arguments: &Arguments, caller: &Caller) -> Result<(Plan, Value), Failure> {
    arguments.plan.say_mergekit(|note| caller.say(note));
    let recipe = arguments.plan.read()?;
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
    let out = Some(arguments.output.out.as_path());
    let plan = arguments
        .plan
        .plan_recipe(&recipe, &arguments.moe, Needs::Weights, out, caller)?;
    if let Some(assembly) = assembly.filter(|_| arguments.check) {
        prove(arguments, assembly, caller)?;
    }
    let made = arguments.output.write(&plan, None, caller)?;
    Ok((plan, made))
}

/// Checks that the target computes what the base does.
fn prove(arguments: &Arguments, recipe: &MoeRecipe, caller: &Caller) -> Result<(), Failure> {
    let (locator, options) = arguments.plan.surroundings(Needs::Weights, caller)?;
    let options = arguments.moe.options(options);
    let error = moe::prove_identity(recipe, &locator, &options).map_err(Failure::Input)?;
    caller.say(&format!(
        "checked: with `{}` as every expert, logits are its own within {error:.1e}",
        printable(&recipe.base_model.value.to_string())
    ));
    Ok(())
}

/// With `--check`, checks that every written byte is what the recipe says.
fn recompute(arguments: &Arguments, plan: &Plan, caller: &Caller) -> Result<(), Failure> {
    if !arguments.check {
        return Ok(());
    }
    let out = &arguments.output.out;
    let location = Location::local(out);
    let folder = FolderListing::look(&location, Vec::new())?;
    let model = Checkpoint::open(&out.display().to_string(), &location)?;
    let lock = Lock::read(&location.path)?;
    let scratch = std::env::temp_dir();
    let request = Request::of_written((&folder, &model), plan, lock.as_ref(), &scratch);
    let progress = Progress::verifying(&model, Some(plan), caller);
    let report = verify(&request, &progress);
    progress.finish();
    let report = report?.report;
    if report.verdict() != Verdict::Passed {
        caller.show(&formats::text(&report, None));
        return Err(Failure::Verdict(report.verdict()));
    }
    let tensors = plan::count(model.tensors().len(), "tensor");
    caller.say(&format!(
        "checked: {tensors} computed again, every byte as it should be"
    ));
    Ok(())
}
