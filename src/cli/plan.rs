//! `weld plan`: shows what a merge would do.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::arguments::{MoeArguments, PlanArguments, whole};
use super::caller::Caller;
use super::held::Held;
use super::merge_adapter;
use super::network::{Needs, Scratch};
use super::output::{Failure, print, print_json, print_made, say};
use audit::formats::plan_page;
use checkpoint::Checkpoint;
use errors::Refusal;
use plan::{self, Detail, Plan, count};
use recipe::AnyRecipe;
use run::{MAX_PARTS, Share};

/// Show what a recipe would do: every tensor, its sources and values; computes nothing
///
/// Finds every error that can be found without reading weights: missing models, tensors that do not match,
/// parameters without a value. Writes nothing.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanArguments,

    /// List every tensor with its sources and parameter values
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    moe: MoeArguments,

    /// Show how the work is cut into so many parts, for `weld merge --part`
    #[arg(long, value_name = "N", value_parser = parts)]
    parts: Option<usize>,

    #[command(flatten)]
    scratch: Scratch,

    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// A page to look at
    Html,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.plan.say_mergekit(say);
    let caller = Caller::unguarded(false);
    let recipe = arguments.plan.read()?;
    let detail = if arguments.all {
        Detail::All
    } else {
        Detail::Summary
    };
    let recipe = match recipe {
        AnyRecipe::Merge(recipe) if recipe.output.is_some() => {
            let merge = merge_adapter::plan(&arguments.plan, *recipe, &caller)?;
            return match arguments.format {
                Format::Text => print(&merge.text(detail)),
                Format::Json => print_json(&merge.json()),
                Format::Html => Err(Failure::input(
                    Refusal::new("there is no page of a recipe whose `output` is an adapter")
                        .with_hint("leave `--format html` out"),
                )),
            };
        }
        recipe => recipe,
    };
    let plan = planned(arguments, &recipe, &caller)?;
    let shares = match arguments.parts {
        Some(parts) => run::shares(&plan, parts)?,
        None => Vec::new(),
    };
    match arguments.format {
        Format::Text => print(&(plan::text(&plan, detail) + &shares_text(&shares))),
        Format::Json => {
            let mut shown = plan::json(&plan);
            if arguments.parts.is_some() {
                shown["shares"] = shares_json(&plan, &shares);
            }
            print_json(&shown)
        }
        Format::Html => {
            let page = plan_page(&plan);
            print_made(
                &page.map_err(|error| Failure::tool(format!("cannot write the page: {error}")))?,
            )
        }
    }
}

/// Parses a number of parts.
fn parts(text: &str) -> Result<usize, String> {
    whole(text, 1, MAX_PARTS)
}

/// A line for each part.
fn shares_text(shares: &[Share]) -> String {
    let size = |bytes: u64| ByteSize(bytes).display().si().to_string();
    let lines = (1..).zip(shares).map(|(number, share)| {
        format!(
            "part     {number}/{}: {}, {}, reads {}, writes {}\n",
            shares.len(),
            count(share.shards.len(), "weight file"),
            count(share.tensors.len(), "tensor"),
            size(share.read),
            size(share.written),
        )
    });
    lines.collect()
}

/// The parts for programs.
fn shares_json(plan: &Plan, shares: &[Share]) -> Value {
    let share = |(number, share): (usize, &Share)| {
        let files = plan.shards[share.shards.clone()].iter();
        json!({
            "part": format!("{number}/{}", shares.len()),
            "files": files.map(|file| file.file_name.as_str()).collect::<Vec<_>>(),
            "tensors": share.tensors.len(),
            "bytes_read": share.read,
            "bytes_written": share.written,
        })
    };
    (1..).zip(shares).map(share).collect()
}

/// Plans a merge for a program that holds some of its models.
pub(super) fn call_with(
    arguments: &Arguments,
    models: BTreeMap<String, Arc<Checkpoint>>,
    caller: &Caller,
) -> Result<Plan, Failure> {
    let recipe = arguments.plan.merge()?;
    let (locator, options) = arguments.plan.surroundings(Needs::Weights, caller)?;
    let held = Held::new(models, locator);
    let plan = plan::plan(&recipe, &arguments.plan.name(), &held, &options)?;
    held.check_used()?;
    Ok(plan)
}

/// Plans for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Plan, Failure> {
    planned(arguments, &arguments.plan.read()?, caller)
}

fn planned(arguments: &Arguments, recipe: &AnyRecipe, caller: &Caller) -> Result<Plan, Failure> {
    let (moe, needs) = (&arguments.moe, Needs::Headers);
    let mut plan = arguments
        .plan
        .plan_recipe(recipe, moe, needs, None, caller)?;
    if let Some(limit) = arguments.scratch.limit
        && let Some(fetches) = run::fetches(&plan, Some(limit))?
    {
        plan.notes.push(fetches.to_string());
    }
    Ok(plan)
}
