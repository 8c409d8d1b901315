//! The model card: `README.md` with the Hub's metadata and the recipe.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::lock::{Lock, Shortened};
use checkpoint::{Checkpoint, Licence};
use plan::{InputLicence, Plan, shared_licence};

/// The card's file name.
pub(super) const CARD_FILE: &str = "README.md";

/// What a card says.
pub(super) struct Card<'a> {
    /// What the output is called.
    pub(super) out: &'a Path,
    /// The repositories that the Hub shows as its models.
    pub(super) hub: Vec<&'a str>,
    /// What it is to them: `merge` or `adapter`.
    pub(super) relation: &'static str,
    /// The library that loads it.
    pub(super) library: Option<&'static str>,
    pub(super) tags: Vec<&'a str>,
    /// What was done, in a sentence.
    pub(super) made: String,
    /// The model that is called the base.
    pub(super) base: Option<&'a str>,
    pub(super) models: Vec<&'a Checkpoint>,
    pub(super) licences: &'a [InputLicence],
    /// The seed, if the result depends on it.
    pub(super) seed: Option<u64>,
    /// How the recipe was found, in Markdown.
    pub(super) found: Option<&'a str>,
}

/// The repositories of models and their adapters.
pub(super) fn repositories<'a>(models: impl Iterator<Item = &'a Checkpoint>) -> Vec<&'a str> {
    let locations = models.flat_map(|model| model.location().parts());
    let mut hub: Vec<&str> = locations
        .filter_map(|location| location.hub.as_ref())
        .map(|hub| hub.repo.as_str())
        .collect();
    // The recipe may name a repository at several revisions.
    let mut seen = HashSet::new();
    hub.retain(|repo| seen.insert(*repo));
    hub
}

impl<'a> Card<'a> {
    /// The card of the checkpoint that a plan writes to `out`. `found` says how the recipe was found, in Markdown.
    pub(super) fn of_plan(plan: &'a Plan, out: &'a Path, found: Option<&'a str>) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let models = plan.stored_models();
        let purpose = plan.purpose.as_ref();
        let of_command = purpose.map(|purpose| purpose.command);
        Self {
            out,
            hub: repositories(models.iter().copied()),
            relation: "merge",
            library: library(plan),
            tags: std::iter::once("merge").chain(of_command).collect(),
            made: match purpose {
                Some(purpose) => format!(
                    "Assembled with Weldment {version}: {}.",
                    purpose.description
                ),
                None => format!(
                    "Merged with Weldment {version} by the `{}` method ({}).",
                    plan.method.name, plan.method.source
                ),
            },
            base: plan.base.map(|base| plan.models[base].label()),
            models,
            licences: &plan.licences,
            seed: plan.random.then_some(plan.seed),
            found,
        }
    }

    /// Its text, with names and recipe as the lock has them: without absolute paths.
    pub(super) fn text(&self, lock: &Lock) -> String {
        let name = self.out.file_name().map_or_else(
            || "merge".into(),
            |name| name.to_string_lossy().into_owned(),
        );
        let mut card = String::from("---\n");
        if !self.hub.is_empty() {
            card.push_str("base_model:\n");
            for repo in &self.hub {
                card.push_str(&format!("- {}\n", quoted(repo)));
            }
            card.push_str(&format!("base_model_relation: {}\n", self.relation));
        }
        if let Some(library) = self.library {
            card.push_str(&format!("library_name: {library}\n"));
        }
        if let Some(licence) = shared_licence(self.licences) {
            card.push_str(&licence_fields(licence));
        }
        card.push_str("tags:\n");
        for tag in &self.tags {
            card.push_str(&format!("- {tag}\n"));
        }
        card.push_str("- weldment\n---\n");
        card.push_str(&format!("# {}\n\n{}", escaped(&name), self.made));
        card.push_str("\n\n## Models\n\n");
        for (model, locked) in self.models.iter().zip(&lock.inputs) {
            let role = if self.base == Some(model.label()) {
                " (base)"
            } else {
                ""
            };
            card.push_str(&format!("- {}{role}\n", code(&locked.model)));
        }
        card.push_str(&licences(self.licences, &self.models));
        card.push_str("\n## Recipe\n\n");
        if let Some(seed) = self.seed {
            card.push_str(&format!("Run with `--seed {seed}`.\n\n"));
        }
        // A fence longer than any run of backticks in the recipe cannot be closed by the recipe.
        let fence = "`".repeat(longest_run(&lock.recipe).max(2) + 1);
        card.push_str(&format!(
            "{fence}yaml\n{}\n{fence}\n",
            lock.recipe.trim_end()
        ));
        if let Some(found) = self.found {
            card.push_str(&format!("\n## How the values were found\n\n{found}\n"));
        }
        card
    }
}

/// The licence of all inputs, as the Hub reads it.
fn licence_fields(licence: &Licence) -> String {
    let fields = [
        ("license", Some(&licence.id)),
        ("license_name", licence.name.as_ref()),
        ("license_link", licence.link.as_ref()),
    ];
    let line = |(key, value): (&str, Option<&String>)| Some(format!("{key}: {}\n", quoted(value?)));
    fields.into_iter().filter_map(line).collect()
}

/// The section on what the inputs state of their licences; empty if none states any.
fn licences(licences: &[InputLicence], models: &[&Checkpoint]) -> String {
    if licences.is_empty() {
        return String::new();
    }
    let short = Shortened::new(models);
    let line = |input: &InputLicence| {
        let stated = match &input.licence {
            Some(licence) => {
                let link = licence.link.as_ref();
                let link = link.map_or(String::new(), |link| format!(", {}", code(link)));
                format!("{}{link}", code(licence.label()))
            }
            None => "not stated".to_owned(),
        };
        format!("- {}: {stated}\n", code(&short.apply(&input.model)))
    };
    let lines: String = licences.iter().map(line).collect();
    let intro = "What the models' own files state. Check whether the terms go together before you use or publish this \
                 model.";
    format!("\n## Licences\n\n{intro}\n\n{lines}")
}

/// The library that loads the output.
fn library(plan: &Plan) -> Option<&'static str> {
    let of_diffusers = |config: &Value| config.get("_class_name").is_some();
    match &plan.config {
        Some(config) if of_diffusers(config) => Some("diffusers"),
        Some(_) => Some("transformers"),
        None => plan.models[plan.donor].is_pipeline().then_some("diffusers"),
    }
}

/// A YAML string; every JSON string is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Escapes text so that Markdown finds no markup in it.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let special = c.is_ascii_punctuation() && !matches!(c, '-' | '.' | ',');
            special
                .then_some('\\')
                .into_iter()
                .chain([if c.is_control() { ' ' } else { c }])
        })
        .collect()
}

/// Text in code style.
fn code(text: &str) -> String {
    let fence = "`".repeat(longest_run(text) + 1);
    format!("{fence}{}{fence}", text.replace(char::is_control, " "))
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_recipes_cannot_break_out_of_the_card() {
        assert_eq!(escaped("a_b*[x](y)\n#"), "a\\_b\\*\\[x\\]\\(y\\) \\#");
        assert_eq!(code("a`b``c"), "```a`b``c```");
        assert_eq!(quoted("x: \"y\"\n- z"), r#""x: \"y\"\n- z""#);
        assert_eq!(longest_run("``` a ````"), 4);
    }
}
