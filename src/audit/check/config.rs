//! Checks config.json by itself, and the dtypes that it states.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::parts::each_part;
use crate::{Finding, Place, Report, Severity};
use checkpoint::{
    Checkpoint, CheckpointError, Location, MAX_NAMED_FOLDERS, Survey, parse_json, read_sidecar,
    settings,
};
use errors::Hint;
use numeric::FloatType;

checks! {
    MALFORMED = "config.malformed", Error,
        "A config is malformed",
        "Loaders need config.json to know what the tensors are, and the configs beside it to prepare inputs.",
        "correct it, or download it again";
    MISSING = "config.missing", Warning,
        "The checkpoint has no config.json",
        "Nothing says what the tensors should be, and loaders of whole models refuse it.",
        "copy the config.json of the model";
    NAMED = "config.named-file-missing", Error,
        "A file that a config names is not there",
        "Loaders need it for the tokenizer, the processor, the code, or a module behind the model.",
        "restore the file from where the checkpoint was made";
    DTYPE = "config.dtype", Note,
        "config.json names another dtype than most weights have",
        "Loaders convert the weights to it, which loses precision or wastes memory.",
        "set `dtype` (or `torch_dtype`) to that of the weights";
    QUANTISATION = "config.quantization-left", Warning,
        "config.json says that the weights are quantised, and they are plain",
        "Loaders look for packed weights and fail, or quantise again.",
        "remove `quantization_config` from config.json";
    QUANTISED = "config.quantised", Note,
        "The weights are quantised",
        "The stored numbers are codes and scales. Where weld knows the format, the values that they make are looked at; \
         otherwise nothing is said of structure and values.",
        "check the model that it was made from as well";
}

/// Findings about configs that cannot be read or were not downloaded, and what names anything outside of the folder.
pub(super) fn malformed(survey: &Survey, location: &Location) -> Vec<Finding> {
    let file = |path: &Path| {
        let within = path.strip_prefix(&location.path).unwrap_or(path);
        Place::file(within.to_string_lossy())
    };
    let finding = |problem: &CheckpointError| {
        let found = problem.to_string();
        let remedy = problem.hint().unwrap_or_default();
        Some(match problem {
            // The finding names the file already.
            CheckpointError::JsonMalformed { path, detail } => {
                Finding::new(&MALFORMED, file(path), "a JSON object", detail.clone())
            }
            CheckpointError::NotDownloaded { file, .. } => {
                let missing = Finding::new(&MISSING, Place::file(file), "the file", found);
                missing.with_severity(Severity::Error).with_remedy(remedy)
            }
            CheckpointError::NoComponent { path } => {
                let expected = "the folder, which model_index.json names";
                Finding::new(&NAMED, file(path), expected, "none").with_remedy(remedy)
            }
            CheckpointError::NamesOutside { path, name } => {
                let found = format!("`{name}`");
                Finding::new(&NAMED, file(path), "a folder of the model", found).with_remedy(remedy)
            }
            _ => return None,
        })
    };
    survey.problems.iter().filter_map(finding).collect()
}

/// Checks the configs of a model and of its parts.
pub(super) fn check_config(survey: &Survey, model: &Checkpoint, report: &mut Report) {
    named_files(model, report);
    let is_reported = |problem: &CheckpointError| {
        matches!(
            problem,
            CheckpointError::JsonMalformed { .. } | CheckpointError::NotDownloaded { .. }
        )
    };
    if !survey.problems.iter().any(is_reported) {
        each_part(model, report, |part, report| of_part(survey, part, report));
    }
}

/// Checks the config of a part of a model.
fn of_part(survey: &Survey, model: &Checkpoint, report: &mut Report) {
    let Some(config) = model.config() else {
        if !model.is_single_file() {
            let place = Place::file("config.json");
            report.add(Finding::new(&MISSING, place, "the file", "none"));
        }
        return;
    };
    if let Some(quantised) = &survey.quantised {
        let plain = survey.quantised_by_config_only;
        let (check, place) = match plain {
            true => (
                &QUANTISATION,
                Place::field("config.json", "quantization_config"),
            ),
            false => (&QUANTISED, Place::default()),
        };
        let found = quantised.to_string();
        report.add(Finding::new(check, place, "plain weights", found));
    }
    if let Some(scheme) = &survey.scheme {
        let found = scheme.clone();
        report.add(Finding::new(
            &QUANTISED,
            Place::default(),
            "plain weights",
            found,
        ));
    }
    let field = ["dtype", "torch_dtype"];
    let stated = field
        .iter()
        .find_map(|key| Some((*key, config.get_str(key)?)));
    let Some((key, stated)) = stated else {
        return;
    };
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in model.tensors() {
        let name = match FloatType::from_dtype(tensor.dtype) {
            Some(FloatType::F32) => "float32",
            Some(FloatType::F16) => "float16",
            Some(FloatType::Bf16) => "bfloat16",
            Some(FloatType::F64) => "float64",
            _ => continue,
        };
        *bytes.entry(name).or_default() += tensor.len;
    }
    let most = bytes
        .iter()
        .max_by_key(|(_, bytes)| **bytes)
        .map(|(name, _)| *name);
    if let Some(most) = most.filter(|most| *most != stated && survey.quantised.is_none()) {
        let place = Place::field("config.json", key);
        report.add(Finding::new(&DTYPE, place, most, format!("`{stated}`")));
    }
}

/// The configs that may name code.
const WITH_CODE: [&str; 5] = [
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
];

/// Modules of sentence-transformers that need a config of their own, and whether they have weights.
const MODULES: [(&str, bool); 6] = [
    ("Pooling", false),
    ("Dense", true),
    ("CNN", true),
    ("LSTM", true),
    ("LayerNorm", true),
    ("WeightedLayerPooling", true),
];

/// Reports code that an `auto_map` names, and parts of modules that `modules.json` names, which are not there.
fn named_files(model: &Checkpoint, report: &mut Report) {
    if model.is_single_file() {
        return;
    }
    let there = |name: &str| fs::symlink_metadata(model.location().path.join(name)).is_ok();
    let mut missing = |file: &str, field: &str, name: String| {
        let place = Place::field(file, field.to_owned());
        report.add(Finding::new(
            &NAMED,
            place,
            format!("the file `{}`", name.escape_debug()),
            "none",
        ));
    };
    for file in WITH_CODE {
        // What cannot be read is a finding of its own.
        let config = settings(model, file).ok().flatten();
        let map = config
            .as_ref()
            .and_then(|config| config.get("auto_map")?.as_object());
        let mut names: Vec<String> = map
            .into_iter()
            .flatten()
            .flat_map(|(_, value)| code_files(value))
            .collect();
        names.sort();
        names.dedup();
        for name in names.into_iter().filter(|name| !there(name)) {
            missing(file, "auto_map", name);
        }
    }
    let modules = read_sidecar(&model.location().path.join("modules.json")).ok();
    let modules = modules.and_then(|bytes| parse_json(&bytes).ok());
    // More is an error of its own.
    let few = |modules: &&Vec<Value>| modules.len() <= MAX_NAMED_FOLDERS;
    for module in modules
        .as_ref()
        .and_then(Value::as_array)
        .filter(few)
        .into_iter()
        .flatten()
    {
        let text = |key: &str| module.get(key).and_then(Value::as_str);
        let (Some(path), Some(kind)) = (text("path"), text("type")) else {
            continue;
        };
        let is_of = |(name, _): &&(&str, bool)| kind.rsplit('.').next() == Some(*name);
        let Some((_, weights)) = MODULES.iter().find(is_of).filter(|_| is_plain(path)) else {
            continue;
        };
        let mut needed = vec![format!("{path}/config.json")];
        let stored =
            ["model.safetensors", "pytorch_model.bin"].map(|name| format!("{path}/{name}"));
        if *weights && !stored.iter().any(|name| there(name)) {
            needed.push(stored[0].clone());
        }
        for name in needed.into_iter().filter(|name| !there(name)) {
            missing("modules.json", "path", name);
        }
    }
}

/// The Python files that a value of an `auto_map` names; code of other repositories is loaded from there.
fn code_files(value: &Value) -> Vec<String> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        value => std::slice::from_ref(value),
    };
    let file = |class: &str| {
        let (module, _) = class.rsplit_once('.')?;
        let name = format!("{}.py", module.replace('.', "/"));
        (!class.contains("--") && is_plain(&name)).then_some(name)
    };
    list.iter()
        .filter_map(Value::as_str)
        .filter_map(file)
        .collect()
}

/// Whether a path stays within the folder.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
