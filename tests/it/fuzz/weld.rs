//! What `weld` does with files, in this process, and the rules that its outcomes are held to.

use std::fs;
use std::path::Path;

use weldment::audit::check::{check, check_written};
use weldment::audit::formats::ReportFormat;
use weldment::audit::verify::{Asked, Coverage, FolderListing, Origin, Premises, no_plan, verify};
use weldment::audit::{Report, Severity, Verdict};
use weldment::checkpoint::{Checkpoint, Locator, ModelRef, Survey};
use weldment::engine::{Budget, Observer, Settings};
use weldment::errors::Hint;
use weldment::moe::{self, MoeOptions};
use weldment::plan::{self, Options, Plan};
use weldment::recipe::{self, AnyRecipe, RecipeError};
use weldment::run::destination::Folder;
use weldment::run::{self, RunOptions};

use crate::fixtures::Bench;

pub(super) struct Silent;

impl Observer for Silent {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

const MEMORY: u64 = 256 << 20;

fn locator(bench: &Bench) -> Locator {
    Locator {
        working_dir: bench.path(""),
        recipe_dir: None,
        hub_cache: Some(bench.path("no-hub")),
        ..Locator::default()
    }
}

fn planned(
    recipe: &AnyRecipe,
    name: &str,
    locator: &Locator,
    options: &MoeOptions,
) -> Result<Plan, RecipeError> {
    match recipe {
        AnyRecipe::Merge(recipe) => plan::plan(recipe, name, locator, &options.plan),
        AnyRecipe::Moe(recipe) => moe::plan(recipe, name, locator, options),
        AnyRecipe::Edit(recipe) => moe::plan_edit(recipe, name, locator, options),
    }
}

/// Merges to `out`, or says what the refusal says.
pub(super) fn merge(bench: &Bench, recipe: &str) -> Result<(), String> {
    let options = Options {
        settings: Settings {
            threads: 1,
            memory: Budget::Limit(MEMORY),
            allow_non_finite: false,
            saturate: false,
        },
        seed: 0,
        shard_size: 5_000_000_000,
        tokenizer_from: None,
    };
    let shown = |error: &RecipeError| recipe::render(error, false);
    let parsed = recipe::parse_any("recipe.yml", recipe).map_err(|error| shown(&error))?;
    let plan = planned(&parsed, "recipe.yml", &locator(bench), &options.into());
    let plan = plan.map_err(|error| shown(&error))?;
    let out = Folder::new(&bench.path("out"), false);
    let look = |folder: &Path| check_written(folder, &plan.stored_models());
    let options = RunOptions {
        look: Some(&look),
        ..RunOptions::default()
    };
    let done = run::run(&plan, &out, options, &Silent);
    done.map(drop)
        .map_err(|error| format!("{error} {}", error.hint().unwrap_or_default()))
}

/// A report's verdict, once every format has been written, and its errors.
fn told(mut report: Report) -> (Verdict, Vec<String>) {
    report.sort();
    for format in ReportFormat::ALL {
        format.write(&report).expect("a report can be written");
    }
    let errors = report.findings.iter();
    let errors = errors.filter(|finding| finding.severity == Severity::Error);
    let errors = errors.map(|finding| {
        let (expected, found) = (&finding.expected, &finding.found);
        format!("{}: expected {expected}, found {found}", finding.check.id)
    });
    (report.verdict(), errors.collect())
}

/// What `check` says of a model, or None if it cannot be read.
pub(super) fn checked(bench: &Bench, model: &str) -> Option<(Verdict, Vec<String>)> {
    let model = ModelRef::parse(model).expect("a name");
    let location = locator(bench).locate(&model).ok()?;
    let survey = Survey::open(&model.to_string(), &location).ok()?;
    let report = check(&model.to_string(), &location, survey, 1, &Silent);
    report.ok().map(told)
}

/// What `verify --full` says of a model, or None if it could not run.
pub(super) fn verified(bench: &Bench, model: &str) -> Option<(Verdict, Vec<String>)> {
    let name = ModelRef::parse(model).expect("a name");
    let location = locator(bench).locate(&name).ok()?;
    let folder = FolderListing::look(&location, Vec::new()).ok()?;
    let model = Checkpoint::open(model, &location).ok()?;
    let asked = Asked {
        recipe: None,
        seed: None,
        allow_step: None,
        arithmetic: None,
        memory: Budget::Limit(MEMORY),
        threads: 1,
        scratch: bench.path(""),
    };
    let premises = Premises::read(&location, &asked).ok()?;
    let inputs = premises.inputs(&location, &[], Vec::new(), locator(bench));
    let inputs = inputs.ok()?;
    let Origin::Recipe(recipe) = &premises.origin else {
        return None;
    };
    let options = &premises.options;
    let plan = planned(
        recipe,
        &premises.name,
        &inputs.locator(&location, None),
        options,
    );
    let plan = plan.as_ref().map_err(no_plan);
    let request = premises.request((&folder, &model), plan, &inputs, Coverage::Full);
    let verification = verify(&request, &Silent).ok()?;
    Some(told(verification.report))
}

/// The names in a folder.
fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Merges to `out`. If that is refused, there is a message and nothing is left behind; else the output verifies, and
/// passes `check`.
pub(super) fn judged(bench: &Bench, recipe: &str) -> Result<(), String> {
    let before = listed(&bench.path(""));
    let merged = merge(bench, recipe);
    let after = listed(&bench.path(""));
    let more: Vec<&String> = after.iter().filter(|name| !before.contains(name)).collect();
    if let Err(why) = merged {
        return match (why.trim().is_empty(), more.is_empty()) {
            (true, _) => Err("refused without a word".to_owned()),
            (_, false) => Err(format!("refused ({why}), and left {more:?}")),
            _ => Ok(()),
        };
    }
    if more != ["out"] {
        return Err(format!("merged, and left {more:?}"));
    }
    passes("check of the output", checked(bench, "out"))?;
    passes("verify of the output", verified(bench, "out"))
}

/// Expects that something passed.
pub(super) fn passes(what: &str, verdict: Option<(Verdict, Vec<String>)>) -> Result<(), String> {
    match verdict {
        Some((Verdict::Passed, _)) => Ok(()),
        other => Err(format!("{what} gives {other:?}")),
    }
}
