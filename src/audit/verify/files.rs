//! The files beside the weights: what is there against what the recipe writes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::checks;
use crate::audit::{Finding, Place, Severity};
use crate::checkpoint::{Checkpoint, read_bounded};
use crate::plan::Plan;

/// Files that tools write anew with every save, and that say nothing about how a model computes.
const NOT_COMPARED: [&str; 2] = ["README.md", "model.safetensors.index.json"];

/// Fields of a config that name who wrote it.
const WRITER_FIELDS: [&str; 3] = [
    "transformers_version",
    "_name_or_path",
    "_attn_implementation_autoset",
];

/// The largest file that is compared.
const MOST_BYTES: u64 = 512 << 20;

/// Compares the files of a folder with those of a plan.
///
/// Other tools write a config anew, with fields that it left to the defaults: where `exact` is not asked for, such
/// a field is only worth a note, as is a tokenizer's file of other bytes.
pub(super) fn compare(plan: &Plan, model: &Checkpoint, exact: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = &model.location().path;
    if model.is_single_file() {
        return findings;
    }
    match (&plan.config, model.config()) {
        (Some(expected), Some(found)) => {
            compare_fields(expected, found.value(), "", exact, &mut findings);
        }
        (Some(_), None) => findings.push(Finding::new(
            &checks::CONFIG,
            Place::file("config.json"),
            "a config",
            "none",
        )),
        (None, _) => {}
    }
    let made = plan
        .made
        .iter()
        .map(|(name, bytes)| (name.as_str(), Some(bytes.clone())));
    let copied = plan.sidecars.iter().map(|(_, file)| {
        (
            file.name.as_str(),
            read_bounded(&file.path, MOST_BYTES, "file, in bytes").ok(),
        )
    });
    for (name, expected) in made.chain(copied) {
        if !NOT_COMPARED.contains(&name) {
            findings.extend(compare_file(folder, name, expected.as_deref(), exact));
        }
    }
    findings
}

fn compare_file(
    folder: &Path,
    name: &str,
    expected: Option<&[u8]>,
    exact: bool,
) -> Option<Finding> {
    let path = folder.join(name);
    let Some(expected) = expected else {
        // What it is a copy of can no longer be read.
        return None;
    };
    if fs::metadata(&path).is_err() {
        let mut finding = Finding::new(&checks::FILE, Place::file(name), "the file", "none");
        if !exact {
            finding.severity = Severity::Warning;
        }
        return Some(finding);
    }
    let found = match read_bounded(&path, MOST_BYTES, "file, in bytes") {
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
    let mut finding = Finding::new(
        &checks::FILE,
        Place::file(name),
        digest(expected),
        digest(&found),
    );
    if !exact {
        finding.severity = Severity::Note;
    }
    Some(finding)
}

/// Compares two JSON values field by field.
fn compare_fields(
    expected: &Value,
    found: &Value,
    at: &str,
    exact: bool,
    findings: &mut Vec<Finding>,
) {
    if let (Value::Object(expected), Value::Object(found)) = (expected, found) {
        let keys = expected
            .keys()
            .chain(found.keys().filter(|key| !expected.contains_key(*key)));
        for key in keys {
            if !exact && WRITER_FIELDS.contains(&key.as_str()) {
                continue;
            }
            let at = match at {
                "" => key.clone(),
                at => format!("{at}.{key}"),
            };
            let of = |map: &serde_json::Map<String, Value>| {
                let other = match key.as_str() {
                    "dtype" => "torch_dtype",
                    "torch_dtype" => "dtype",
                    key => key,
                };
                map.get(key)
                    .or_else(|| map.get(other).filter(|_| !exact))
                    .cloned()
            };
            match (of(expected), of(found)) {
                (Some(expected), Some(found)) => {
                    compare_fields(&expected, &found, &at, exact, findings);
                }
                (expected, found) => {
                    findings.push(field(at, expected.as_ref(), found.as_ref(), exact))
                }
            }
        }
        return;
    }
    let equal = expected == found
        || matches!((expected.as_f64(), found.as_f64()), (Some(a), Some(b)) if a == b);
    if !equal {
        // A field that both have is never a matter of who wrote it.
        findings.push(field(at.to_owned(), Some(expected), Some(found), true));
    }
}

fn field(at: String, expected: Option<&Value>, found: Option<&Value>, exact: bool) -> Finding {
    let text = |value: Option<&Value>| match value {
        None => "none".to_owned(),
        Some(value) => {
            let text = value.to_string();
            match text.char_indices().nth(80) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    };
    let mut finding = Finding::new(
        &checks::CONFIG,
        Place::field("config.json", at),
        text(expected),
        text(found),
    );
    if !exact {
        finding.severity = Severity::Note;
    }
    finding
}
