//! `weld methods`: the reference of merge methods, from the registry.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::arguments::{Suggesting, any, method_names};
use super::output::{Failure, print};
use errors::Refusal;
use methods::{
    self, BaseRule, MethodInfo, NeedOf, ParamInfo, ParamKind, ParamScope, ParamValue, Statistic,
};
use recipe::nearest;

/// List the merge methods, or explain one
#[derive(Args)]
pub(super) struct Arguments {
    /// The method to explain
    #[arg(value_parser = Suggesting(any, method_names), hide_possible_values = true)]
    name: Option<String>,

    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// The reference page, docs/methods.md
    Markdown,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let all = || methods::all().iter().map(|method| method.info());
    let chosen: Vec<&MethodInfo> = match &arguments.name {
        None => all().collect(),
        Some(name) => match methods::find(name) {
            Some(method) => vec![method.info()],
            None => {
                let near = nearest(name, all().map(|info| info.name))
                    .map(|near| format!("did you mean `{near}`? "));
                let refusal = Refusal::new(format!("there is no method `{name}`"));
                return Err(Failure::input(refusal.with_hint(format!(
                    "{}the methods are {}",
                    near.unwrap_or_default(),
                    method_names().join(", ")
                ))));
            }
        },
    };
    print(&match (arguments.format, &arguments.name) {
        (Format::Json, _) => format!(
            "{:#}",
            serde_json::Value::Array(chosen.into_iter().map(as_json).collect())
        ),
        (Format::Markdown, _) => reference(&chosen),
        (Format::Text, None) => list(&chosen),
        (Format::Text, Some(_)) => chosen.into_iter().map(page).collect(),
    })
}

fn list(all: &[&MethodInfo]) -> String {
    let width = all.iter().map(|info| info.name.len()).max().unwrap_or(0);
    all.iter()
        .map(|info| format!("{:width$}  {}\n", info.name, info.summary))
        .collect()
}

/// The kind of values that a parameter takes.
fn kind(kind: ParamKind) -> String {
    match kind {
        ParamKind::Number => "number".into(),
        ParamKind::Range { min, max } if max.is_infinite() => format!("number, {min} or more"),
        ParamKind::Range { min, max } => format!("number from {min} to {max}"),
        ParamKind::Bool => "true or false".into(),
        ParamKind::Word { words, .. } => words.join(", "),
    }
}

fn scope(scope: ParamScope) -> &'static str {
    match scope {
        ParamScope::Tensor => "all models",
        ParamScope::EachModel => "each model",
        ParamScope::EachButBase => "each model but the base",
    }
}

fn default(param: &ParamInfo) -> String {
    match param.default {
        Some(ParamValue::Number(number)) => number.to_string(),
        Some(ParamValue::Bool(flag)) => flag.to_string(),
        Some(ParamValue::Word(word)) => word.into(),
        None if param.required => "none (required)".into(),
        None => "unset".into(),
    }
}

fn takes(info: &MethodInfo) -> String {
    let models = match (info.models.min, info.models.max) {
        (min, Some(max)) if min == max && min == 1 => "exactly one model".into(),
        (min, Some(max)) if min == max && info.base == BaseRule::Optional => {
            format!("exactly {min} models")
        }
        (min, Some(max)) if min == max => format!("exactly {min} models, the base included"),
        (min, Some(max)) => format!("{min} to {max} models"),
        (min, None) => format!("{min} or more models"),
    };
    match info.base {
        BaseRule::Required => format!("{models}; needs `base_model`"),
        BaseRule::OneOfModels => format!("{models}; `base_model` counts as one of them"),
        BaseRule::Optional => {
            format!("{models}; with a `base_model` besides them, merges their differences from it")
        }
    }
}

/// The files of statistics that a method reads; empty if it reads none.
fn statistics(info: &MethodInfo) -> String {
    let Some(need) = info.statistics else {
        return String::new();
    };
    let of = match need.of {
        NeedOf::EachModel => "each model: `statistics` beside `model`",
        NeedOf::Base => "the base: `statistics` beside `base_model`",
    };
    let made = match need.kind {
        Statistic::Gram => "`weld stats --keep gram` makes it",
        Statistic::Magnitude => "`weld stats --keep magnitude` makes it",
        Statistic::Fisher => "docs/statistics.md has a script that makes it",
    };
    format!("a file of statistics of {of}; {made}")
}

/// What there is to know of a method, for people.
pub(super) fn page(info: &MethodInfo) -> String {
    let mut out = format!("{}: {}\n\n", info.name, info.summary);
    let mut section = |title: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "{title}\n  {text}\n");
        }
    };
    section("formula", info.formula);
    section("takes", &takes(info));
    section("reads", &statistics(info));
    section("when", info.when);
    section("departs", info.departs);
    section("source", info.source);
    let _ = writeln!(out, "parameters");
    for param in info.params {
        let _ = writeln!(
            out,
            "  {}  {}, for {}, default {}\n      {}",
            param.name,
            kind(param.kind),
            scope(param.scope),
            default(param),
            param.doc
        );
    }
    out
}

/// The text of docs/methods.md.
fn reference(all: &[&MethodInfo]) -> String {
    let mut out = String::from(
        "# Merge methods\n\nWhat each method computes, when to use it, and its parameters. \
         [Choosing a method](choosing.md) says where to begin.\n\n",
    );
    if all.len() > 1 {
        out += "| method | result |\n| --- | --- |\n";
        for info in all {
            let _ = writeln!(out, "| [`{0}`](#{0}) | {1} |", info.name, info.summary);
        }
        out += "\n";
    }
    out += "In the formulas, `x_i` are the models' tensors, `w_i` their weights, `base` is the base model's tensor, and `N` \
            its number of elements.\nArithmetic is at least float32, reductions are float64, and each result is rounded \
            once.\n\n`weld methods --format markdown` writes this page; a test compares the two.\n";
    for info in all {
        let _ = write!(
            out,
            "\n## {}\n\n{}.\n\n```text\n{}\n```\n\nTakes {}.\n\nUse it for: {}.\n",
            info.name,
            capitalised(info.summary),
            info.formula.replace("; ", "\n"),
            takes(info),
            info.when
        );
        if info.statistics.is_some() {
            let _ = write!(
                out,
                "\nReads {}; see [statistics from data](statistics.md).\n",
                statistics(info)
            );
        }
        if !info.departs.is_empty() {
            let _ = write!(out, "\n{}\n", info.departs);
        }
        let _ = write!(
            out,
            "\nSource: {}.\n\n| parameter | takes | for | default | |\n| --- | --- | --- | --- | --- |\n",
            info.source
        );
        for param in info.params {
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {} |",
                param.name,
                kind(param.kind),
                scope(param.scope),
                default(param),
                param.doc
            );
        }
    }
    out
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

/// The same for programs.
pub(super) fn as_json(info: &MethodInfo) -> serde_json::Value {
    let params: Vec<_> = info
        .params
        .iter()
        .map(|param| {
            json!({
                "name": param.name,
                "takes": kind(param.kind),
                "for": scope(param.scope),
                "required": param.required,
                "default": param.default.map(|value| match value {
                    ParamValue::Number(number) => json!(number),
                    ParamValue::Bool(flag) => json!(flag),
                    ParamValue::Word(word) => json!(word),
                }),
                "doc": param.doc,
            })
        })
        .collect();
    json!({
        "name": info.name,
        "summary": info.summary,
        "formula": info.formula,
        "takes": takes(info),
        "when": info.when,
        "departs": info.departs,
        "source": info.source,
        "random": info.random,
        "statistics": info.statistics.map(|_| statistics(info)),
        "parameters": params,
    })
}
