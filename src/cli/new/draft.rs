//! The text of a new recipe.

use std::fmt::Write;

use super::models::Found;
use crate::fit;
use crate::output::Failure;
use errors::Refusal;
use methods::{BaseRule, MethodInfo, ParamInfo, ParamScope, ParamValue};

/// How wide the comments at the top are.
const COMMENT_WIDTH: usize = 98;

/// A recipe that is not written yet.
pub(super) struct Draft<'a> {
    found: &'a Found,
    method: &'static MethodInfo,
    dtype: Option<&'static str>,
    /// The base, as the method wants it: the one that was found, or the first model.
    base: Option<&'a str>,
    aligned: bool,
}

impl<'a> Draft<'a> {
    /// A draft by this method, or by one that suits what was found.
    pub(super) fn new(
        found: &'a Found,
        method: Option<&'static MethodInfo>,
        dtype: Option<&'static str>,
    ) -> Result<Draft<'a>, Failure> {
        let method = method.or_else(|| suggested(found));
        let method = method.ok_or_else(|| Failure::tool("no method suits these models"))?;
        if method.statistics.is_some() {
            let name = method.name;
            return Err(Failure::input(
                Refusal::new(format!(
                    "{name} reads files of statistics, which only you can name"
                ))
                .with_hint(format!(
                    "begin with recipes/{name}.yml; `weld explain {name}` says which files it needs"
                )),
            ));
        }
        let base = fitting_base(found, method)?;
        Ok(Draft {
            found,
            method,
            dtype: dtype.or_else(|| found.dtype()),
            base,
            aligned: false,
        })
    }

    /// Adds the key that aligns vocabularies.
    pub(super) fn align_vocabularies(&mut self) {
        self.aligned = true;
    }

    /// The recipe.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let MethodInfo { name, summary, .. } = self.method;
        writeln!(out, "# Written by `weld new`.")?;
        for remark in self.remarks() {
            for line in fit::wrapped(&one_line(&remark), COMMENT_WIDTH).lines() {
                writeln!(out, "# {line}")?;
            }
        }
        writeln!(
            out,
            "# `weld methods {name}` explains the method and its parameters.\n"
        )?;
        writeln!(out, "merge_method: {name} # {summary}")?;
        if let Some(base) = self.base {
            writeln!(out, "base_model: {}", quoted(base))?;
        }
        writeln!(out, "models:")?;
        let each: Vec<&ParamInfo> = (self.method.params.iter())
            .filter(|param| param.scope != ParamScope::Tensor && param.required)
            .collect();
        for name in self.listed() {
            writeln!(out, "  - model: {}", quoted(name))?;
            if !each.is_empty() && self.takes_values(name) {
                writeln!(out, "    parameters:")?;
                for param in &each {
                    writeln!(out, "      {}: {}", param.name, self.value(param))?;
                }
            }
        }
        self.write_parameters(out, &each)?;
        if self.aligned {
            writeln!(out, "tokenizer:")?;
            writeln!(
                out,
                "  source: union # the vocabularies differ: every token of every model is kept"
            )?;
        }
        if let Some(dtype) = self.dtype {
            writeln!(
                out,
                "dtype: {dtype} # what is written; arithmetic is float32 at least"
            )?;
        }
        Ok(())
    }

    /// What is worth saying at the top.
    fn remarks(&self) -> Vec<String> {
        let found = self.found;
        let mut remarks = found.remarks.clone();
        let first = found.all().next().map(|member| &member.checkpoint);
        if let Some(kind) = first.and_then(|model| model.config()?.model_type()) {
            let tensors = first.map_or(0, |model| model.tensors().len());
            remarks.push(format!(
                "All models are of the type {kind}; the first has {tensors} tensors."
            ));
        }
        match (&found.base, &found.why_base, self.base) {
            (Some(base), Some(why), Some(_)) => {
                remarks.push(format!("{} was taken for the base: {why}.", base.name));
                remarks.push("If that is wrong, name the base with `weld new --base`.".to_owned());
            }
            (Some(base), _, None) => remarks.push(format!(
                "{} stays out: {} would merge it with the others. To merge it too, list it under `models`.",
                base.name, self.method.name
            )),
            (None, _, Some(_)) if self.method.base == BaseRule::Required => remarks.push(
                "No base is known, so the first model stands in its place.".to_owned(),
            ),
            (None, _, None) if found.members.len() > 1 => remarks.push(
                "No base is known. If the models are fine-tunes of one, name it with `weld new --base`: \
                 more methods are possible then."
                    .to_owned(),
            ),
            _ => {}
        }
        remarks
    }

    /// The models under `models:`.
    fn listed(&self) -> Vec<&str> {
        self.found
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect()
    }

    /// Whether a model has values of its own.
    fn takes_values(&self, name: &str) -> bool {
        let but_base = |param: &ParamInfo| param.scope == ParamScope::EachButBase && param.required;
        self.base != Some(name) || !self.method.params.iter().any(but_base)
    }

    /// The parameters for all models: those that are needed, and the others as comments.
    fn write_parameters(&self, out: &mut String, each: &[&ParamInfo]) -> std::fmt::Result {
        let is_each = |param: &&ParamInfo| each.iter().any(|each| each.name == param.name);
        let params = self.method.params.iter().filter(|param| !is_each(param));
        // Accepted from mergekit's recipes, without an effect.
        let (active, idle): (Vec<&ParamInfo>, Vec<&ParamInfo>) = params
            .filter(|param| !param.doc.starts_with("No effect"))
            .partition(|param| param.required || usual(self.method.name, param.name).is_some());
        if active.is_empty() {
            if !idle.is_empty() {
                writeln!(out, "# parameters: # the defaults")?;
            }
        } else {
            writeln!(out, "parameters:")?;
        }
        for param in active {
            writeln!(
                out,
                "  {}: {} # {}",
                param.name,
                self.value(param),
                one_line(param.doc)
            )?;
        }
        for param in idle.iter().filter(|param| param.default.is_some()) {
            writeln!(
                out,
                "#   {}: {} # {}",
                param.name,
                self.value(param),
                one_line(param.doc)
            )?;
        }
        Ok(())
    }

    /// A value to begin with.
    fn value(&self, param: &ParamInfo) -> String {
        if let Some(usual) = usual(self.method.name, param.name) {
            return usual.to_owned();
        }
        match param.default {
            Some(ParamValue::Number(number)) => number.to_string(),
            Some(ParamValue::Bool(flag)) => flag.to_string(),
            Some(ParamValue::Word(word)) => word.to_owned(),
            None => "1.0".to_owned(),
        }
    }
}

/// Values to begin with, where the default is none or does nothing: those of the recipes that come with weld.
fn usual(method: &str, param: &str) -> Option<&'static str> {
    match (method, param) {
        (
            "task_arithmetic" | "dare_linear" | "dare_ties" | "della_linear" | "consensus_ta",
            "weight",
        ) => Some("0.3"),
        ("breadcrumbs" | "breadcrumbs_ties", "weight") => Some("0.3"),
        ("breadcrumbs" | "breadcrumbs_ties", "density") => Some("0.9"),
        ("ties" | "consensus_ties", "density") => Some("0.5"),
        ("dare_linear" | "dare_ties" | "della" | "della_linear", "density") => Some("0.5"),
        ("sce", "select_topk") => Some("0.5"),
        ("slerp", "t") => Some("0.5"),
        ("lines", "alpha") => Some("0.8"),
        ("lines", "beta") => Some("0.2"),
        ("nearswap", "t") => Some("0.001"),
        _ => None,
    }
}

/// The method to begin with, as docs/choosing.md has it.
fn suggested(found: &Found) -> Option<&'static MethodInfo> {
    let name = match (&found.base, found.members.len()) {
        (Some(_), _) => "task_arithmetic",
        (None, 1) => "passthrough",
        (None, 2) => "slerp",
        (None, _) => "linear",
    };
    methods::find(name).map(|method| method.info())
}

/// The base as the method wants it.
fn fitting_base<'a>(found: &'a Found, method: &MethodInfo) -> Result<Option<&'a str>, Failure> {
    let known = found.base.as_ref().map(|base| base.name.as_str());
    let members = found.members.len();
    let base = match (method.base, known) {
        // One of two models is where the way to the other begins.
        (BaseRule::Required, None) if members > 1 && method.models.max == Some(2) => {
            found.members.first().map(|member| member.name.as_str())
        }
        (BaseRule::Required, None) => {
            let name = method.name;
            return Err(Failure::input(
                Refusal::new(format!(
                    "{name} needs the model that the others were fine-tuned from"
                ))
                .with_hint("name it with --base MODEL, or choose linear, karcher or slerp"),
            ));
        }
        // It would be merged with the others.
        (BaseRule::OneOfModels, _) => None,
        (_, known) => known,
    };
    let is_extra = known.is_some() && method.base == BaseRule::Required;
    let count = members + usize::from(is_extra);
    let arity = method.models;
    if count < arity.min || arity.max.is_some_and(|max| count > max) {
        let most = match arity.max {
            Some(max) if max == arity.min => format!("exactly {max}"),
            Some(max) => format!("{} to {max}", arity.min),
            None => format!("{} or more", arity.min),
        };
        let with = if is_extra { ", the base included" } else { "" };
        return Err(Failure::input(
            Refusal::new(format!(
                "{} takes {most} models, and there are {count}{with}",
                method.name
            ))
            .with_hint("choose another method with --method; `weld methods` lists them"),
        ));
    }
    Ok(base)
}

/// A text that a comment can hold.
fn one_line(text: &str) -> String {
    errors::printable(text).replace(['\n', '\r'], " ")
}

/// A model's name as YAML reads it back.
fn quoted(name: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@".contains(c);
    let begins = |c: char| c.is_ascii_alphabetic() || c == '/';
    let is_plain = name.starts_with(begins)
        && name.chars().all(plain)
        && !WORDS.contains(&name.to_ascii_lowercase().as_str());
    match is_plain {
        true => name.to_owned(),
        // Every JSON string is one in YAML.
        false => serde_json::Value::from(name).to_string(),
    }
}
