//! Compares the files other than weights with those that the recipe writes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::checks;
use crate::fields::{Field, differences, shown};
use crate::{Finding, Place, Severity};
use checkpoint::{Checkpoint, ModelConfig, read_sidecar};
use plan::Plan;

/// Fields that record which program wrote a config.
const WRITER_FIELDS: [&str; 3] = [
    "transformers_version",
    "_name_or_path",
    "_attn_implementation_autoset",
];

/// What was compared.
#[derive(Default)]
pub(super) struct Compared {
    pub(super) findings: Vec<Finding>,
    /// The files that the plan makes and that can be compared.
    pub(super) names: BTreeSet<String>,
}

/// Compares the files of a folder with those of a plan.
///
/// Other tools rewrite a config and add fields that were left to the defaults. Unless `exact` is set, such a field is
/// only a note, and so is a tokenizer file with other bytes.
pub(super) fn compare(plan: &Plan, model: &Checkpoint, exact: bool) -> Compared {
    let mut compared = Compared::default();
    let folder = &model.location().path;
    if model.is_single_file() {
        return compared;
    }
    let Compared { findings, names } = &mut compared;
    let with_config = plan
        .parts
        .iter()
        .filter(|part| plan.config_of(part).is_some());
    for (part, (name, expected, _)) in with_config.zip(plan.configs()) {
        match config_of(model, &part.prefix) {
            Some(found) => {
                let fields = differences(expected, found.value());
                let of_field = |found| field(&name, found, exact);
                findings.extend(fields.iter().filter_map(of_field));
            }
            None => findings.push(Finding::new(
                &checks::CONFIG,
                Place::file(&name),
                "a config",
                "none",
            )),
        }
        names.insert(name);
    }
    let made = plan
        .made
        .iter()
        .map(|(name, bytes)| (name.as_str(), Some(bytes.clone())));
    let copied = plan
        .sidecars
        .iter()
        .map(|(_, file)| (file.name.as_str(), read_sidecar(&file.path).ok()));
    for (name, expected) in made.chain(copied) {
        // A file that the input no longer has cannot be compared with it.
        if let Some(expected) = expected {
            names.insert(name.to_owned());
            findings.extend(compare_file(folder, name, &expected, exact));
        }
    }
    compared
}

fn compare_file(folder: &Path, name: &str, expected: &[u8], exact: bool) -> Option<Finding> {
    let path = folder.join(name);
    if fs::metadata(&path).is_err() {
        let finding = Finding::new(&checks::FILE, Place::file(name), "the file", "none");
        return Some(match exact {
            true => finding,
            false => finding.with_severity(Severity::Note),
        });
    }
    let found = match read_sidecar(&path) {
        Ok(found) if found == expected => return None,
        Ok(found) => found,
        Err(error) => {
            let what = "a file that can be read";
            return Some(Finding::new(
                &checks::FILE,
                Place::file(name),
                what,
                error.to_string(),
            ));
        }
    };
    let digest = |bytes: &[u8]| format!("{} bytes, BLAKE3 {}", bytes.len(), blake3::hash(bytes));
    let finding = Finding::new(
        &checks::FILE,
        Place::file(name),
        digest(expected),
        digest(&found),
    );
    Some(match exact {
        true => finding,
        false => finding.with_severity(Severity::Note),
    })
}

/// The config of a part of a model, or of the model itself.
fn config_of<'m>(model: &'m Checkpoint, prefix: &str) -> Option<&'m ModelConfig> {
    let mut parts = model.parts().iter();
    match parts.find(|part| part.prefix == prefix) {
        Some(part) => part.model.config(),
        None => model.config().filter(|_| prefix.is_empty()),
    }
}

/// The finding about a field of a config that differs.
fn field(file: &str, field: &Field, exact: bool) -> Option<Finding> {
    let name = field.path.rsplit('.').next().unwrap_or_default();
    if !exact && WRITER_FIELDS.contains(&name) {
        return None;
    }
    let finding = Finding::new(
        &checks::CONFIG,
        Place::field(file, &field.path),
        shown(field.first.as_ref()),
        shown(field.second.as_ref()),
    );
    // A field that only one config has may depend on the program that wrote it.
    let by_one = field.first.is_none() || field.second.is_none();
    Some(match !exact && by_one {
        true => finding.with_severity(Severity::Note),
        false => finding,
    })
}
