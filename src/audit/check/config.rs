//! Checks config.json by itself, and the dtypes that it states.

use std::collections::BTreeMap;

use crate::{Finding, Place, Report, Severity};
use checkpoint::{Checkpoint, CheckpointError, Survey};
use errors::Hint;
use numeric::FloatType;

checks! {
    MALFORMED = "config.malformed", Error,
        "config.json is malformed",
        "Loaders need it to know what the tensors are.",
        "correct it, or download it again";
    MISSING = "config.missing", Warning,
        "The checkpoint has no config.json",
        "Nothing says what the tensors should be, and loaders of whole models refuse it.",
        "copy the config.json of the model";
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
        "Their structure and values are not those of the architecture, and are not looked at.",
        "check the model that it was made from as well";
}

/// Checks config.json.
pub(super) fn check_config(survey: &Survey, model: &Checkpoint, report: &mut Report) {
    let is_config =
        |problem: &&CheckpointError| matches!(problem, CheckpointError::JsonMalformed { .. });
    if let Some(problem) = survey.problems.iter().find(is_config) {
        report.add(Finding::new(
            &MALFORMED,
            Place::file("config.json"),
            "a JSON object",
            problem.to_string(),
        ));
        return;
    }
    let not_downloaded =
        |problem: &&CheckpointError| matches!(problem, CheckpointError::NotDownloaded { .. });
    if let Some(problem) = survey.problems.iter().find(not_downloaded) {
        let place = Place::file("config.json");
        let found = problem.to_string();
        let missing = Finding::new(&MISSING, place, "the file", found);
        let remedy = problem.hint().unwrap_or_default();
        report.add(missing.with_severity(Severity::Error).with_remedy(remedy));
        return;
    }
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
    let field = ["dtype", "torch_dtype"];
    let stated = field
        .iter()
        .find_map(|key| Some((*key, config.get_str(key)?)));
    let Some((key, stated)) = stated else {
        return;
    };
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in model.tensors() {
        let name = match FloatType::of(tensor.dtype) {
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
