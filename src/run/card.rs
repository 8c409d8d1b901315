//! The model card: `README.md` with the Hub's metadata and the recipe.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::lock::{Lock, Shortened};
use checkpoint::Licence;
use plan::{InputLicence, Plan};

/// The card of the checkpoint at `out`, with names and recipe as the lock has them: without absolute paths. `found` says
/// how the recipe was found, in Markdown.
pub(super) fn text(plan: &Plan, lock: &Lock, out: &Path, found: Option<&str>) -> String {
    let name = out.file_name().map_or_else(
        || "merge".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    let models = plan.stored_models();
    let mut hub: Vec<&str> = models
        .iter()
        .flat_map(|model| {
            let location = model.location();
            let adapter = location.adapter.as_deref();
            std::iter::once(location).chain(adapter)
        })
        .filter_map(|location| location.hub.as_ref())
        .map(|hub| hub.repo.as_str())
        .collect();
    // The recipe may name a repository at several revisions.
    let mut seen = HashSet::new();
    hub.retain(|repo| seen.insert(*repo));
    let mut card = String::from("---\n");
    if !hub.is_empty() {
        card.push_str("base_model:\n");
        for repo in hub {
            card.push_str(&format!("- {}\n", quoted(repo)));
        }
        card.push_str("base_model_relation: merge\n");
    }
    if let Some(library) = library(plan) {
        card.push_str(&format!("library_name: {library}\n"));
    }
    if let Some(licence) = plan.shared_licence() {
        card.push_str(&licence_fields(licence));
    }
    card.push_str("tags:\n- merge\n");
    if let Some(purpose) = &plan.purpose {
        card.push_str(&format!("- {}\n", purpose.command));
    }
    card.push_str("- weldment\n---\n");
    card.push_str(&format!("# {}\n\n", escaped(&name)));
    let version = env!("CARGO_PKG_VERSION");
    card.push_str(&match &plan.purpose {
        Some(purpose) => format!(
            "Assembled with Weldment {version}: {}.",
            purpose.description
        ),
        None => format!(
            "Merged with Weldment {version} by the `{}` method ({}).",
            plan.method.name, plan.method.source
        ),
    });
    card.push_str("\n\n## Models\n\n");
    let base = plan.base.map(|base| plan.models[base].label());
    for (model, locked) in models.iter().zip(&lock.inputs) {
        let role = if base == Some(model.label()) {
            " (base)"
        } else {
            ""
        };
        card.push_str(&format!("- {}{role}\n", code(&locked.model)));
    }
    card.push_str(&licences(plan));
    card.push_str("\n## Recipe\n\n");
    if plan.random {
        card.push_str(&format!("Run with `--seed {}`.\n\n", plan.seed));
    }
    // A fence longer than any run of backticks in the recipe cannot be closed by the recipe.
    let fence = "`".repeat(longest_run(&lock.recipe).max(2) + 1);
    card.push_str(&format!(
        "{fence}yaml\n{}\n{fence}\n",
        lock.recipe.trim_end()
    ));
    if let Some(found) = found {
        card.push_str(&format!("\n## How the values were found\n\n{found}\n"));
    }
    card
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
fn licences(plan: &Plan) -> String {
    if plan.licences.is_empty() {
        return String::new();
    }
    let short = Shortened::new(&plan.stored_models());
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
    let lines: String = plan.licences.iter().map(line).collect();
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
