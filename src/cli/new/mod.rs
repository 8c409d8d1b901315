//! `weld new`: writes a recipe for models, from what their headers and a sample of their values show.

mod ask;
mod draft;
mod kinship;
mod models;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::{Suggesting, method_names, plan_any};
use super::environment;
use super::output::{Failure, print_made, say, say_unbroken};
use super::report::write;
use ask::Answers;
use checkpoint::{Locator, ModelRef};
use draft::Draft;
use engine::{Budget, Settings};
use errors::{Refusal, printable};
use methods::MethodInfo;
use models::Found;
use moe::MoeOptions;
use plan::Options;
use recipe::nearest;

/// Write a recipe for models, with comments on what was found in them
///
/// Reads headers and a small sample of the values: whether the models fit together, which of them the others were
/// fine-tuned from, which are LoRA adapters. The recipe that it writes can be planned, or nothing is written. At a
/// terminal and without models, it asks.
#[derive(Args)]
pub(super) struct Arguments {
    /// The models to merge: folders, files, Hub ids in the local cache, adapters, or `model+adapter`
    models: Vec<String>,

    /// The model that the others were fine-tuned from [default: recognised where three models or more show it]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,

    /// The merge method; `weld methods` lists them [default: by what the models are]
    #[arg(long, value_parser = Suggesting(method, method_names), hide_possible_values = true)]
    method: Option<&'static MethodInfo>,

    /// The dtype that is written [default: that of most tensors]
    #[arg(long, value_parser = Suggesting(dtype, dtypes), hide_possible_values = true)]
    dtype: Option<&'static str>,

    /// The recipe's file; `-` for stdout
    #[arg(long, short, value_name = "FILE", default_value = "recipe.yml")]
    out: PathBuf,

    /// Replace the recipe if it is there
    #[arg(long)]
    force: bool,
}

/// The dtypes that are offered.
const DTYPES: [&str; 3] = ["bfloat16", "float16", "float32"];

fn dtypes() -> Vec<&'static str> {
    DTYPES.to_vec()
}

fn dtype(text: &str) -> Result<&'static str, String> {
    let known = DTYPES.into_iter().find(|dtype| *dtype == text);
    known.ok_or_else(|| format!("expected one of {}", DTYPES.join(", ")))
}

fn method(text: &str) -> Result<&'static MethodInfo, String> {
    if let Some(method) = methods::find(text) {
        return Ok(method.info());
    }
    let near = nearest(text, method_names()).map(|near| format!("did you mean `{near}`? "));
    Err(format!(
        "there is no such method; {}`weld methods` lists them",
        near.unwrap_or_default()
    ))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let to_stdout = arguments.out == Path::new("-");
    if !to_stdout && !arguments.force && arguments.out.symlink_metadata().is_ok() {
        let message = format!("{} is there already", arguments.out.display());
        let hint = "name another file with --out, or replace it with --force";
        return Err(Failure::input(Refusal::new(message).with_hint(hint)));
    }
    let locator = environment::locator(arguments.out.parent().filter(|_| !to_stdout))?;
    let (found, asked) = found(arguments, &locator)?;
    let draft = Draft::new(&found, asked.method, asked.dtype)?;
    let text = plannable(draft, &locator)?;
    if to_stdout {
        return print_made(&text);
    }
    write(&arguments.out, &text)?;
    let shown = printable(&arguments.out.display().to_string()).into_owned();
    say(&format!("wrote {shown}"));
    say_unbroken(&format!("see what it would do with: weld plan {shown}"));
    Ok(())
}

/// What is left to decide once the models are known.
struct Asked {
    method: Option<&'static MethodInfo>,
    dtype: Option<&'static str>,
}

/// The models, from the arguments or from answers to questions.
fn found(arguments: &Arguments, locator: &Locator) -> Result<(Found, Asked), Failure> {
    if !arguments.models.is_empty() {
        let found = Found::open(&arguments.models, arguments.base.as_deref(), locator)?;
        let (method, dtype) = (arguments.method, arguments.dtype);
        return Ok((found, Asked { method, dtype }));
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::tool(
            Refusal::new("no models are named, and there is no terminal to ask at")
                .with_hint("name them: weld new MODEL MODEL --base MODEL"),
        ));
    }
    let Answers {
        found,
        method,
        dtype,
    } = ask::questions(
        &mut io::stdin().lock(),
        &mut |text| say(text),
        &mut |models, base| Found::open(models, base, locator),
        (arguments.base.as_deref(), arguments.method, arguments.dtype),
    )?;
    Ok((found, Asked { method, dtype }))
}

/// The text of a draft that can be planned: as it is, or with vocabularies aligned where that is all that is missing.
fn plannable(mut draft: Draft<'_>, locator: &Locator) -> Result<String, Failure> {
    let first = draft.text();
    let Err(failure) = planned(&first, locator) else {
        return Ok(first);
    };
    draft.align_vocabularies();
    let aligned = draft.text();
    match planned(&aligned, locator) {
        Ok(()) => Ok(aligned),
        Err(_) => Err(failure),
    }
}

/// Plans a recipe that is not written yet.
fn planned(text: &str, locator: &Locator) -> Result<(), Failure> {
    let name = "the new recipe";
    let recipe = recipe::parse_any(name, text)?;
    let options = MoeOptions {
        plan: Options {
            settings: Settings {
                threads: 1,
                memory: Budget::growing(u64::MAX),
                allow_non_finite: false,
                saturate: false,
            },
            seed: 0,
            shard_size: u64::MAX / 2,
            tokenizer_from: None,
        },
        inexact: false,
        fused: false,
    };
    plan_any(&recipe, name, locator, &options)?;
    Ok(())
}

/// A model as it is written in a recipe.
fn reference(text: &str) -> Result<ModelRef, Failure> {
    ModelRef::parse(text).map_err(|why| Failure::input(format!("the model `{text}`: {why}")))
}
