//! `weld moe`: assembles a mixture of experts.

use clap::Args;

use super::arguments::PlanArguments;
use super::merge::OutputArguments;
use super::output::Failure;
use super::signals;
use crate::recipe::{self, AnyRecipe, Problem, ProblemKind};

/// Assemble dense models into a mixture of experts, by mergekit-moe's YAML
///
/// Writes the layout that transformers, vLLM and llama.cpp read. What it could not compute exactly as the models do
/// is refused before anything is written. `weld plan` shows what a recipe would do, docs/moe.md what it may say.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanArguments,

    #[command(flatten)]
    output: OutputArguments,

    /// Assemble it though it won't compute what its models do, and say in notes where
    #[arg(long)]
    inexact: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = signals::install()?;
    let recipe = recipe::read_any(&arguments.plan.recipe)?;
    if let AnyRecipe::Merge(merge) = &recipe {
        let message = "expected a recipe of a mixture of experts, found one that merges";
        let problem = Problem::new(ProblemKind::Invalid, merge.method_at, message);
        return Err(merge
            .error(vec![problem.with_hint("run it with `weld merge`")])
            .into());
    }
    let plan = arguments.plan.plan_recipe(&recipe, arguments.inexact)?;
    arguments.output.write(&plan, stop)
}
